//! What a running daemon has given up, and what it takes anew at SIGHUP.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(30);
/// CAP_SYS_PTRACE alone, as the kernel prints it.
const SYS_PTRACE: &str = "0000000000080000";

struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start(config: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("quaymaster.toml"), config)?;
        let child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
            .arg("run")
            .args(["--host-id", "quay", "--config"])
            .arg(path("quaymaster.toml"))
            .arg("--state-dir")
            .arg(path("state"))
            .arg(format!(
                "--endpoint=docker=unix://{}",
                path("none.sock").display()
            ))
            .args(arguments)
            .env_clear()
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log"))?)
            .spawn()?;
        let daemon = Self { child, folder };
        daemon.until_log("starting")?;
        Ok(daemon)
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("log"))?)
    }

    fn until_log(&self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        while !self.log()?.contains(text) {
            if Instant::now() > deadline {
                bail!("the log never says `{text}`: {}", self.log()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// `/proc/PID/status` of each thread.
    fn threads(&self) -> anyhow::Result<Vec<String>> {
        let tasks = Path::new("/proc")
            .join(self.child.id().to_string())
            .join("task");
        let mut all = Vec::new();
        for task in std::fs::read_dir(tasks)? {
            all.push(std::fs::read_to_string(task?.path().join("status"))?);
        }
        Ok(all)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test may have ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn field<'a>(status: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| name.to_owned())?.trim())
}

#[test]
fn every_thread_of_a_running_daemon_has_only_what_it_needs() -> anyhow::Result<()> {
    let daemon = Daemon::start("", &[])?;
    let threads = daemon.threads()?;
    assert!(threads.len() > 2, "the collector and tokio have threads");
    for status in &threads {
        assert_eq!(field(status, "NoNewPrivs:")?, "1");
        assert_eq!(field(status, "Seccomp:")?, "2");
        assert_eq!(field(status, "CapInh:")?, "0000000000000000");
        assert_eq!(field(status, "CapAmb:")?, "0000000000000000");
        if rustix::process::geteuid().is_root() {
            for set in ["CapBnd:", "CapPrm:", "CapEff:"] {
                assert_eq!(field(status, set)?, SYS_PTRACE, "{set} {status}");
            }
        }
    }
    assert!(!daemon.log()?.contains("given up"), "{}", daemon.log()?);
    Ok(())
}

#[test]
fn privileges_are_kept_where_a_person_says_so() -> anyhow::Result<()> {
    let daemon = Daemon::start("", &["--keep-privileges"])?;
    for status in daemon.threads()? {
        assert_eq!(field(&status, "NoNewPrivs:")?, "0");
        assert_eq!(field(&status, "Seccomp:")?, "0");
    }
    assert!(daemon.log()?.contains("all privileges are kept"));
    Ok(())
}

/// Where the kernel leaves cores as files; elsewhere there is nothing to be seen.
#[test]
fn a_daemon_that_crashes_leaves_no_core() -> anyhow::Result<()> {
    let cores = |arguments: &[&str]| -> anyhow::Result<usize> {
        let mut daemon = Daemon::start("", arguments)?;
        let (current, maximum) = (None, None);
        let unlimited = rustix::process::Rlimit { current, maximum };
        let pid = Some(Pid::from_child(&daemon.child));
        if rustix::process::prlimit(pid, rustix::process::Resource::Core, unlimited).is_err() {
            return Ok(0);
        }
        daemon.signal(Signal::ABORT)?;
        daemon.child.wait()?;
        let entries = std::fs::read_dir(daemon.folder.path())?;
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        Ok(names
            .filter(|name| name.to_string_lossy().starts_with("core"))
            .count())
    };
    if cores(&["--keep-privileges"])? > 0 {
        assert_eq!(cores(&[])?, 0);
    }
    Ok(())
}

#[test]
fn sighup_takes_the_log_filter_anew_and_names_what_needs_a_restart() -> anyhow::Result<()> {
    let daemon = Daemon::start("resync_interval = \"5m\"\n[log]\nfilter = \"info\"\n", &[])?;
    let file = daemon.folder.path().join("quaymaster.toml");
    std::fs::write(
        &file,
        "resync_interval = \"1h\"\n[log]\nfilter = \"debug\"\n[pns]\nlinger = \"3m\"\n",
    )?;
    daemon.signal(Signal::HUP)?;
    daemon.until_log("need a restart")?;
    daemon.until_log("the configuration is read again")?;
    let log = daemon.log()?;
    assert!(log.contains("pns.linger"), "{log}");
    assert!(log.contains("resync_interval, log.filter"), "{log}");
    daemon.until_log("DEBUG")?;
    std::fs::write(&file, "resync_intervall = 7\n")?;
    daemon.signal(Signal::HUP)?;
    daemon.until_log("did you mean `resync_interval`?")?;
    daemon.until_log("left as it was")
}
