//! `quaymaster whois`, `processes` and `ports`, against a process table that is made of files.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::Parser as _;
use quaymaster::cli::local::SnapshotArgs;
use quaymaster::cli::{ports, processes, whois};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::fake_cri::{FakeCri, running};
use crate::fake_docker::{FakeContainer, FakeDocker};
use crate::{ID, ID_B, SANDBOX_ID};

const HOST_PNS: u64 = 4_026_531_836;
const HOST_NET: u64 = 4_026_531_840;

#[derive(clap::Parser)]
enum Cli {
    Whois(whois::WhoisArgs),
    Processes(SnapshotArgs),
    Ports(SnapshotArgs),
}

/// A host with a Docker, a CRI server, and some processes.
struct Fixture {
    folder: TempDir,
    docker: FakeDocker,
    cri: FakeCri,
}

impl Fixture {
    /// `web` of Docker in namespace 100 with a worker; `db` and `sidecar` of one pod in namespace 200.
    fn new() -> anyhow::Result<Self> {
        let folder = tempdir()?;
        let docker = FakeDocker::start(folder.path())?;
        docker.put(&FakeContainer::running(ID, "web", 21));
        let cri = FakeCri::start(folder.path())?;
        cri.put_sandbox(SANDBOX_ID, "db-0", "shop", 31);
        cri.put_container(running(ID_B, "db"), SANDBOX_ID, 32);
        let fixture = Self {
            folder,
            docker,
            cri,
        };
        let random = fixture.proc().join("sys/kernel/random");
        std::fs::create_dir_all(&random)?;
        std::fs::write(random.join("boot_id"), "b007\n")?;
        fixture.process(1, HOST_PNS, 1, b"/sbin/init\0")?;
        fixture.process(21, 4_026_532_100, 1, b"web\0--port\08080\0")?;
        fixture.process(22, 4_026_532_100, 7, b"worker\x1b[2J\n\xff\0\0\0")?;
        fixture.process(31, 4_026_532_200, 1, b"pause\0")?;
        fixture.process(32, 4_026_532_200, 8, b"db\0")?;
        fixture.process(41, 4_026_532_300, 1, b"stray\0")?;
        Ok(fixture)
    }

    fn proc(&self) -> std::path::PathBuf {
        self.folder.path().join("proc")
    }

    fn process(&self, pid: u32, pns: u64, ns_pid: u32, cmdline: &[u8]) -> anyhow::Result<()> {
        let home = self.proc().join(pid.to_string());
        std::fs::create_dir_all(home.join("ns"))?;
        std::fs::create_dir_all(home.join("net"))?;
        std::fs::create_dir_all(home.join("fd"))?;
        let rest = "0 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        std::fs::write(home.join("stat"), format!("{pid} (a) b) S {rest}\n"))?;
        let status =
            format!("Name:\ta\nUid:\t0\t33\t0\t0\nGid:\t0\t34\t0\t0\nNSpid:\t{pid}\t{ns_pid}\n");
        std::fs::write(home.join("status"), status)?;
        std::fs::write(home.join("cmdline"), cmdline)?;
        std::fs::write(home.join("cgroup"), format!("0::/of/{pid}\n"))?;
        symlink(format!("pid:[{pns}]"), home.join("ns/pid"))?;
        symlink(
            format!("mnt:[{}]", 4_026_540_000 + u64::from(pid)),
            home.join("ns/mnt"),
        )?;
        symlink(format!("net:[{HOST_NET}]"), home.join("ns/net"))?;
        symlink("/usr/bin/thing", home.join("exe"))?;
        Ok(())
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        let mut line = vec!["quaymaster".to_owned(), arguments[0].to_owned()];
        line.push(format!("--procfs={}", self.proc().display()));
        for endpoint in [self.docker.endpoint(), self.cri.endpoint()] {
            line.push(format!("--endpoint={endpoint}"));
        }
        if arguments[0] != "whois" {
            line.push("--host-id=h1".to_owned());
        }
        line.extend(arguments[1..].iter().map(|&word| word.to_owned()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = match Cli::try_parse_from(line)? {
            Cli::Whois(args) => whois::run(&args, &mut out, &mut err).await,
            Cli::Processes(args) => processes::run(&args, &mut out, &mut err).await,
            Cli::Ports(args) => ports::run(&args, &mut out, &mut err).await,
        };
        Ok(Ran {
            code,
            out: String::from_utf8(out)?,
            err: String::from_utf8(err)?,
        })
    }
}

struct Ran {
    code: u8,
    out: String,
    err: String,
}

#[tokio::test]
async fn whois_knows_pids_namespaces_ids_and_names() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    for (wanted, id) in [
        ("21", ID),
        ("22", ID),
        ("pid:[4026532100]", ID),
        ("4026532100", ID),
        (ID, ID),
        (&ID[..5], ID),
        ("web", ID),
        ("32", ID_B),
        ("shop/db-0/db", ID_B),
        ("db", ID_B),
        (SANDBOX_ID, SANDBOX_ID),
    ] {
        let ran = host.run(&["whois", wanted]).await?;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{wanted}");
        let line = ran.out.lines().next().unwrap_or_default();
        assert_eq!(line, format!("container  {id}"), "{wanted}: {}", ran.out);
    }
    let text = host.run(&["whois", "32"]).await?.out;
    for part in [
        "name       db\n",
        "pod        shop/db-0\n",
        "process    32 (a) b), 8 inside\n",
        "shared by  ",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn whois_answers_programs_with_json() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    let ran = host.run(&["whois", "--format=json", "22"]).await?;
    let answer: Value = serde_json::from_str(&ran.out)?;
    assert_eq!(answer["container"]["id"], ID);
    assert_eq!(answer["container"]["pns"], "pid:[4026532100]");
    assert_eq!(answer["how"], "namespace");
    assert_eq!(answer["process"]["ns_pid"], 7);
    assert_eq!(answer["members"].as_array().map(Vec::len), Some(1));
    let ran = host.run(&["whois", "--format=json", "1"]).await?;
    let answer: Value = serde_json::from_str(&ran.out)?;
    assert_eq!(
        (ran.code, &answer["container"], &answer["how"]),
        (0, &Value::Null, &Value::Null)
    );
    Ok(())
}

#[tokio::test]
async fn whois_says_what_is_nobodys_unknown_or_ambiguous() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    for (wanted, said) in [
        ("1", "container  none: it is the host's own"),
        (
            "41",
            "container  none: no runtime that was asked knows its namespace",
        ),
    ] {
        let ran = host.run(&["whois", wanted]).await?;
        assert_eq!(ran.code, 0, "{wanted}: {}", ran.err);
        assert!(ran.out.starts_with(said), "{wanted}: {}", ran.out);
    }
    host.docker
        .put(&FakeContainer::running(&ID.replace('9', "8"), "21", 41));
    for (wanted, said) in [
        (
            "999",
            "no process 999 lives, and no container has the id or name `999`",
        ),
        (
            "pid:[4026539999]",
            "no process that can be seen lives in the PID namespace pid:[4026539999]",
        ),
        (
            "nobody\u{1b}[2J",
            "no container has the id or name `nobody\\u{1b}[2J`",
        ),
        (&ID[..4], "may mean any of these"),
        ("21", "the process 21 (a) b)"),
        ("pid:[x]", "no container has the id or name `pid:[x]`"),
    ] {
        let ran = host.run(&["whois", wanted]).await?;
        assert_eq!(ran.code, 1, "{wanted}: {}", ran.out);
        assert!(ran.err.contains(said), "{wanted}: {}", ran.err);
    }
    Ok(())
}

#[tokio::test]
async fn processes_are_shown_with_their_containers() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    let ran = host.run(&["processes"]).await?;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 7, "{}", ran.out);
    let worker = lines[3];
    assert!(
        worker.contains("web") && worker.contains("pid:[4026532100]"),
        "{worker}"
    );
    assert!(
        worker.contains("worker\\u{1b}[2J\\u{a}\u{fffd}"),
        "{worker}"
    );
    assert!(lines[5].contains("shop/db-0"), "{}", lines[5]);

    let ran = host.run(&["processes", "--format=json"]).await?;
    let rows = json_lines(&ran.out)?;
    assert_eq!(rows.len(), 6);
    let worker = &rows[2]["fields"];
    for (key, expected) in [
        ("pid", "22"),
        ("ns_pid", "7"),
        ("cmdline", "worker\u{1b}[2J\n\u{fffd}"),
        ("comm", "a) b"),
        ("exe", "/usr/bin/thing"),
        ("uid", "33"),
        ("gid", "34"),
        ("pid_ns", "pid:[4026532100]"),
        ("mnt_ns", "4026540022"),
        ("host_id", "h1"),
        ("boot_id", "b007"),
        ("container_id", ID),
        ("container_name", "web"),
        ("runtime", "docker"),
    ] {
        assert_eq!(worker[key], expected, "{key}");
    }
    let seqs: Vec<_> = rows
        .iter()
        .map(|row| &row["fields"]["package_seq"])
        .collect();
    assert!(seqs.iter().all(|seq| *seq == seqs[0]), "{seqs:?}");
    assert_eq!(rows[5]["fields"]["container_id"], "");
    Ok(())
}

#[tokio::test]
async fn ports_are_shown_with_their_processes_and_containers() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    let listening = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4711 1\n";
    for pid in [1, 21, 22, 31, 32, 41] {
        let table = host.proc().join(format!("{pid}/net/tcp"));
        std::fs::write(table, format!("{head}{listening}"))?;
    }
    symlink("socket:[4711]", host.proc().join("22/fd/3"))?;
    symlink("socket:[4711]", host.proc().join("21/fd/9"))?;
    let ran = host.run(&["ports"]).await?;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.out);
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(words[..5], ["tcp", "0.0.0.0", "8080", "21", "33"]);
    assert_eq!(words[7..], ["web", "/usr/bin/thing"]);
    let rows = json_lines(&host.run(&["ports", "--format=json"]).await?.out)?;
    let port = &rows[0]["fields"];
    assert_eq!(
        (&port["inode"], &port["container_id"]),
        (&"4711".into(), &ID.into())
    );
    Ok(())
}

#[tokio::test]
async fn without_a_runtime_or_a_process_table_they_end_with_69() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    for command in ["processes", "ports"] {
        let nowhere = host.folder.path().join("none");
        let line = [
            "quaymaster".to_owned(),
            command.to_owned(),
            format!("--procfs={}", nowhere.display()),
        ];
        let (Cli::Processes(args) | Cli::Ports(args)) = Cli::try_parse_from(&line)? else {
            anyhow::bail!("it is parsed as another one");
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(processes::run(&args, &mut out, &mut err).await, 69);
        assert!(String::from_utf8(err)?.contains("none"));
    }
    std::fs::remove_file(host.folder.path().join("docker.sock")).ok();
    Ok(())
}

/// The binary: its stdout is the bus.
fn quaymaster(arguments: &[&str], socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quaymaster"));
    command
        .args(arguments)
        .args(["--host-id", "h1", "--log", "warn"])
        .arg(format!("--endpoint=docker=unix://{}", socket.display()))
        .env_clear()
        .stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_published_once_and_whole() -> anyhow::Result<()> {
    let host = Fixture::new()?;
    let socket = host.docker.endpoint().path.clone();
    let procfs = format!("--procfs={}", host.proc().display());
    let output = tokio::task::spawn_blocking(move || {
        quaymaster(&["processes", "--publish", &procfs], &socket).output()
    })
    .await??;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("the bus has 6 processes"), "{said}");
    let lines = json_lines(&String::from_utf8(output.stdout)?)?;
    assert_eq!(lines.len(), 6);
    let worker = &lines[2];
    assert_eq!(worker["topic"], "quaymaster.processes");
    assert_eq!(worker["key"], "h1/22");
    assert_eq!(worker["value"]["fields"]["container_name"], "web");
    Ok(())
}

#[test]
fn a_daemon_sends_its_processes_again_and_again() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let state = folder.path().join("state");
    let state = state.to_string_lossy();
    let arguments = ["run", "--processes-interval", "1s", "--state-dir", &*state];
    let mut child = quaymaster(&arguments, &folder.path().join("none.sock"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let own = format!("h1/{}", std::process::id());
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let mut seqs = std::collections::BTreeSet::new();
    for line in lines.by_ref() {
        // Two sinks write to this stdout: no line is spoiled by the other.
        let line: Value = serde_json::from_str(&line?)?;
        if line["topic"] == "quaymaster.processes" && line["key"] == own.as_str() {
            seqs.insert(line["value"]["fields"]["package_seq"].to_string());
        }
        if seqs.len() == 3 {
            break;
        }
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )?;
    // It ends when it could say all that it wanted.
    lines.for_each(drop);
    let status = child.wait()?;
    assert_eq!(seqs.len(), 3, "three snapshots were sent");
    assert_eq!(status.code(), Some(0));
    Ok(())
}

fn json_lines(text: &str) -> anyhow::Result<Vec<Value>> {
    Ok(text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}
