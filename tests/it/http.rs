//! The HTTP listener of a running collector, with clients that are slow, hostile, or ask for what is not there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::PATIENCE;
use crate::fake_docker::{FakeContainer, FakeDocker};

/// A collector that listens; it ends when it is dropped.
pub(crate) struct Listening {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    _state: tempfile::TempDir,
}

impl Listening {
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(arguments, &[])
    }

    /// One that finds these in its environment.
    pub(crate) fn start_in(
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let state = tempfile::tempdir()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
            .args([
                "run",
                "--host-id",
                "h",
                "--listen",
                "127.0.0.1:0",
                "--state-dir",
            ])
            .arg(state.path())
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = loop {
            let line = lines.next().context("it says where it listens")??;
            if let Some((_, address)) = line.split_once("listening address=") {
                break address.trim().parse()?;
            }
        };
        // What it logs from now on must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            child,
            address,
            _state: state,
        })
    }

    fn ask(&self, request: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text
            .split(' ')
            .nth(1)
            .context("there is a status")?
            .parse()?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_owned()))
    }

    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Asks until the answer has this status.
    fn await_status(&self, path: &str, status: u16) -> anyhow::Result<String> {
        self.await_status_for(path, status, PATIENCE)
    }

    pub(crate) fn await_status_for(
        &self,
        path: &str,
        status: u16,
        patience: Duration,
    ) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let (found, body) = self.get(path)?;
            if found == status {
                return Ok(body);
            }
            anyhow::ensure!(Instant::now() < deadline, "{path}: {found} {body}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_tells_of_itself() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let docker = FakeDocker::start(directory.path())?;
    docker.put(&FakeContainer::running(crate::ID, "web", 4_711));
    let endpoint = format!("docker={}", docker.endpoint().uri());
    let collector = Listening::start(&["--endpoint", &endpoint])?;
    assert_eq!(collector.await_status("/readyz", 200)?, "ok\n");
    assert_eq!(collector.get("/livez")?, (200, "ok\n".to_owned()));

    let status: Value = serde_json::from_str(&collector.await_status("/status", 200)?)?;
    assert_eq!(status["host_id"], "h");
    assert_eq!(status["state"], "live");
    assert_eq!(status["runtimes"][0]["name"], "docker");
    assert_eq!(
        crate::schema::errors_of_status(&status)?,
        Vec::<String>::new()
    );

    let metrics = collector.await_status("/metrics", 200)?;
    for line in [
        "quaymaster_bus_up 1",
        "quaymaster_failed_commits_total 0",
        "quaymaster_outbox_messages ",
        "quaymaster_build_info{version=",
        "quaymaster_runtime_events_total{endpoint=\"unix://",
        "# EOF",
    ] {
        assert!(
            metrics.lines().any(|found| found.starts_with(line)),
            "{line}\n{metrics}"
        );
    }
    assert!(!metrics.contains(crate::ID), "no container is named");

    assert_eq!(collector.get("/nowhere")?.0, 404);
    assert_eq!(
        collector
            .ask("POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")?
            .0,
        405
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_away_fails_readiness_and_not_liveness() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let docker = FakeDocker::start(directory.path())?;
    let endpoint = format!("docker={}", docker.endpoint().uri());
    let bus = "nats://127.0.0.1:1";
    let collector = Listening::start(&["--endpoint", &endpoint, "--bus", bus])?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = collector.get("/readyz")?;
        assert_eq!(status, 503, "{body}");
        if body.contains("the bus") {
            break;
        }
        anyhow::ensure!(Instant::now() < deadline, "{body}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(collector.get("/livez")?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_hostile_clients_keep_nobody_out() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("none.sock");
    let endpoint = format!("docker=unix://{}", socket.display());
    let collector = Listening::start(&["--endpoint", &endpoint])?;
    // Who says nothing and holds a place loses it to who comes. If it kept its place for its time, ten such rounds would take
    // longer than patience lasts.
    let silent: Vec<_> = (0..quaymaster::http::CONNECTIONS_MAX * 10)
        .map(|_| TcpStream::connect(collector.address))
        .collect::<Result<_, _>>()?;
    assert_eq!(collector.get("/livez")?.0, 200);
    drop(silent);
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(64 * 1024));
    let status = collector.ask(&long).map(|(status, _)| status);
    // It is refused, and the connection may end before all of it was sent.
    assert!(
        status.as_ref().map_or(true, |status| *status >= 400),
        "{status:?}"
    );
    assert!(
        collector
            .ask("\u{1}\u{2}\r\n\r\n")
            .map_or(true, |(status, _)| status == 400)
    );
    assert_eq!(collector.get("/livez")?.0, 200);
    Ok(())
}

#[test]
fn a_port_in_use_is_named() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let state = tempfile::tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(["run", "--host-id", "h", "--listen", &address, "--state-dir"])
        .arg(state.path())
        .env_clear()
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(&address), "{said}");
    Ok(())
}
