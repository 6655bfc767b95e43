//! The real binary as a process that is killed and started again.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for an end that was asked for.
const END_MAX: Duration = Duration::from_secs(30);

/// The program under test: that of this build, or a copy of it that `QUAYMASTER_FAULTS_BINARY` names, so that a course of
/// an hour does not change it by the next build.
pub(crate) fn binary() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_quaymaster").into();
    std::env::var_os("QUAYMASTER_FAULTS_BINARY").map_or_else(built, PathBuf::from)
}

/// How it is started each time.
pub(crate) struct Daemon {
    arguments: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
    /// What it writes to stdout, line by line, over all its lives.
    pub(crate) stdout: PathBuf,
    /// Its log, over all its lives.
    pub(crate) log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(
        folder: &Path,
        arguments: Vec<String>,
        environment: Vec<(&'static str, OsString)>,
    ) -> Self {
        Self {
            arguments,
            environment,
            stdout: folder.join("stdout"),
            log: folder.join("log"),
            child: None,
        }
    }

    pub(crate) fn spawn(&mut self) -> anyhow::Result<()> {
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let child = Command::new(binary())
            .arg("run")
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(append(&self.stdout)?)
            .stderr(append(&self.log)?)
            .spawn()
            .context("failed to start quaymaster")?;
        self.child = Some(child);
        Ok(())
    }

    /// An error where it has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            bail!("quaymaster is not running");
        };
        if let Some(status) = child.try_wait()? {
            bail!("quaymaster ended by itself with {status}:\n{}", self.tail());
        }
        Ok(())
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.check()?;
        let child = self.child.as_ref().context("quaymaster is not running")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a pid that is none")?, signal)?;
        Ok(())
    }

    /// SIGKILL. A line that it was writing is cut off, as whoever reads a pipe would.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        cut_torn_line(&self.stdout)
    }

    /// SIGTERM, and its status.
    pub(crate) fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().context("quaymaster is not running")?;
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > END_MAX {
                let _ = child.kill();
                let _ = child.wait();
                bail!("quaymaster does not end at SIGTERM:\n{}", self.tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines of its log that hold a text.
    pub(crate) fn log_lines(&self, text: &str) -> Vec<String> {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let found = log.lines().filter(|line| line.contains(text));
        found.map(str::to_owned).collect()
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(1_500);
        String::from_utf8_lossy(&log[from..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn cut_torn_line(path: &Path) -> anyhow::Result<()> {
    let mut file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(1024 * 1024);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |at| at as u64 + 1);
    file.set_len(from + whole)?;
    Ok(())
}
