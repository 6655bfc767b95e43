//! The binary, run as a person would, with all that it says kept and searched for secrets.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(60);

/// Passwords, tokens and seeds that must appear nowhere.
pub(crate) struct Secrets(pub(crate) Vec<String>);

impl Secrets {
    /// Fails where a text tells one.
    pub(crate) fn assert_untold(&self, text: &str, whose: &str) {
        assert!(!self.0.is_empty());
        for secret in &self.0 {
            assert!(
                !text.contains(secret.as_str()),
                "{whose} tells a secret: {text}"
            );
        }
    }
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

/// Runs a command to its end; its output tells none of the secrets.
pub(crate) fn command(
    arguments: &[&str],
    variables: &[(&str, &str)],
    secrets: &Secrets,
) -> anyhow::Result<Ended> {
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .env("QUAYMASTER_LOG", "trace")
        .stdin(Stdio::null())
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    secrets.assert_untold(&said, &format!("{arguments:?}"));
    Ok(Ended {
        code: output.status.code(),
        said,
    })
}

/// A state directory that one collector leaves to the next.
pub(crate) struct State(tempfile::TempDir);

/// A collector without runtimes: it publishes its epoch and its status.
pub(crate) struct Collector<'a> {
    child: Child,
    /// `None` after `finish`.
    folder: Option<tempfile::TempDir>,
    secrets: &'a Secrets,
}

impl<'a> Collector<'a> {
    pub(crate) fn start(
        arguments: &[&str],
        variables: &[(&str, &str)],
        secrets: &'a Secrets,
    ) -> anyhow::Result<Self> {
        Self::start_with(arguments, variables, secrets, None)
    }

    /// The same with the state that another one left.
    pub(crate) fn start_with(
        arguments: &[&str],
        variables: &[(&str, &str)],
        secrets: &'a Secrets,
        state: Option<State>,
    ) -> anyhow::Result<Self> {
        let folder = match state {
            Some(State(folder)) => folder,
            None => tempfile::tempdir()?,
        };
        let path = |name: &str| folder.path().join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
            .arg("run")
            .args(["--host-id", "quay-secure", "--listen", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(path("state"))
            .arg(format!(
                "--endpoint=docker=unix://{}",
                path("none.sock").display()
            ))
            .args(arguments)
            .env_clear()
            .envs(variables.iter().copied())
            .env("QUAYMASTER_LOG", "quaymaster=debug,info")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(path("out"))?)
            .stderr(std::fs::File::create(path("log"))?)
            .spawn()?;
        Ok(Self {
            child,
            folder: Some(folder),
            secrets,
        })
    }

    pub(crate) fn log(&self) -> anyhow::Result<String> {
        let folder = self.folder.as_ref().context("it has not finished")?;
        Ok(std::fs::read_to_string(folder.path().join("log"))?)
    }

    /// Waits until the log has a text.
    pub(crate) fn until_log(&self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        while !self.log()?.contains(text) {
            if Instant::now() > deadline {
                bail!("the log never says `{text}`: {}", self.log()?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until the bus takes messages.
    pub(crate) fn until_up(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        while !self.page("/metrics")?.contains("quaymaster_bus_up 1") {
            if Instant::now() > deadline {
                bail!("the bus is never up: {}", self.log()?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What the HTTP listener says; it tells none of the secrets.
    pub(crate) fn page(&self, path: &str) -> anyhow::Result<String> {
        self.until_log("listening")?;
        let log = self.log()?;
        let address = log
            .split("address=")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .context("the address is logged")?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(WAIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: quay\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        self.secrets.assert_untold(&text, path);
        Ok(text)
    }

    /// Ends it, and looks at all that it said and kept; gives its state.
    pub(crate) fn finish(mut self) -> anyhow::Result<State> {
        for path in ["/status", "/metrics", "/readyz", "/livez"] {
            self.page(path)?;
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        self.child.wait()?;
        self.secrets.assert_untold(&self.log()?, "the log");
        let folder = self.folder.take().context("it has not finished")?;
        for file in files_below(folder.path())? {
            let bytes = std::fs::read(&file)?;
            let whose = file.display().to_string();
            self.secrets
                .assert_untold(&String::from_utf8_lossy(&bytes), &whose);
        }
        Ok(State(folder))
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        // After `finish` it has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn files_below(folder: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}
