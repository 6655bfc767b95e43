//! The real binary, as a service manager runs it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::lab::Lab;
use crate::wait::eventually;

/// The host id of the tests' collectors. With what NATS has to escape, and what it has not.
pub(crate) const HOST_ID: &str = "e2e_host-1";

/// How a collector is started, every time.
pub(crate) struct Setup {
    dir: PathBuf,
    bus: String,
    endpoints: Vec<String>,
    arguments: Vec<String>,
    /// The binary, after what it is started through.
    program: Vec<OsString>,
    /// Log lines at ERROR that a test expects, by a part of their text.
    pub(crate) expected_errors: Vec<String>,
}

impl Setup {
    /// A collector with its state below the lab's folder. `endpoints` as in `docker=unix:///…`.
    pub(crate) fn new(lab: &Lab, bus: &str, endpoints: &[String]) -> Self {
        Self {
            dir: lab.dir().join("quaymaster"),
            bus: bus.to_owned(),
            endpoints: endpoints.to_vec(),
            arguments: Vec::new(),
            program: vec![env!("CARGO_BIN_EXE_quaymaster").into()],
            expected_errors: Vec::new(),
        }
    }

    /// More arguments for `quaymaster run`.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Another binary, after what it is started through, such as `setpriv`, which ends by becoming it.
    pub(crate) fn through(mut self, program: Vec<OsString>) -> Self {
        self.program = program;
        self
    }

    /// The folder of its state, its output and its log.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Log lines at ERROR that are expected, by a part of their text.
    pub(crate) fn expecting(mut self, errors: &[&str]) -> Self {
        self.expected_errors
            .extend(errors.iter().map(|&error| error.to_owned()));
        self
    }

    /// What all its lives wrote to stdout.
    pub(crate) fn stdout(&self) -> PathBuf {
        self.dir.join("stdout")
    }

    /// One of its subcommands, with the same settings.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        self.give(&mut command, subcommand);
        command
    }

    fn give(&self, command: &mut Command, subcommand: &str) {
        command
            .arg(subcommand)
            .args(["--bus", &self.bus, "--host-id", HOST_ID]);
        command.arg("--state-dir").arg(self.dir.join("state"));
        for endpoint in &self.endpoints {
            command.args(["--endpoint", endpoint]);
        }
        command
            .args(&self.arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
    }

    /// Another bus than the one that consumers read at, such as a listener that asks for more.
    pub(crate) fn at(mut self, bus: &str) -> Self {
        bus.clone_into(&mut self.bus);
        self
    }

    /// Starts it. State, output and log go on where its last life left them.
    pub(crate) fn start(&self) -> Result<Collector<'_>> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        self.start_by(command)
    }

    /// Starts it by a command that ends as `quaymaster` with the arguments that are added.
    pub(crate) fn start_by(&self, mut command: Command) -> Result<Collector<'_>> {
        std::fs::create_dir_all(&self.dir)?;
        let log_path = self.dir.join("log");
        let log_from = std::fs::metadata(&log_path).map_or(0, |metadata| metadata.len());
        self.give(&mut command, "run");
        let child = command
            .stdout(append(&self.stdout())?)
            .stderr(append(&log_path)?)
            .spawn()
            .context("failed to start quaymaster")?;
        Ok(Collector {
            setup: self,
            child,
            log_path,
            log_from,
            is_ended: false,
        })
    }
}

/// A collector that runs. One that is dropped before it was ended is killed, and shows its log: its test failed.
pub(crate) struct Collector<'a> {
    setup: &'a Setup,
    child: Child,
    log_path: PathBuf,
    log_from: u64,
    is_ended: bool,
}

impl Collector<'_> {
    /// Asks for a resync.
    pub(crate) fn resync(&self) -> Result<()> {
        self.signal(Signal::USR1)
    }

    /// Ends it with SIGTERM: it must go with status 0 and must not have logged an ERROR.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait()?;
        ensure!(
            status.success(),
            "quaymaster ended with {status} on SIGTERM"
        );
        self.check_log()?;
        self.is_ended = true;
        Ok(())
    }

    /// Lets it have no more open files than so many; those that it has stay. `None` is as many as we may have.
    pub(crate) fn limit_files(&self, current: Option<u64>) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = current.or(maximum);
        let limit = Rlimit { current, maximum };
        prlimit(Some(pid), Resource::Nofile, limit).context("failed to limit open files")?;
        Ok(())
    }

    /// Stops it where it is; only SIGKILL ends it then.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait()?;
        self.check_log()?;
        self.is_ended = true;
        Ok(())
    }

    /// What this life of it has logged.
    pub(crate) fn log(&self) -> Result<String> {
        let text = std::fs::read(&self.log_path)?;
        let from = usize::try_from(self.log_from)?.min(text.len());
        Ok(String::from_utf8_lossy(&text[from..]).into_owned())
    }

    fn check_log(&self) -> Result<()> {
        let log = self.log()?;
        let is_expected = |line: &str| {
            self.setup
                .expected_errors
                .iter()
                .any(|text| line.contains(text))
        };
        let errors: Vec<_> = log
            .lines()
            .filter(|line| line.contains(" ERROR ") || line.contains("panicked at"))
            .filter(|line| !is_expected(line))
            .collect();
        ensure!(errors.is_empty(), "quaymaster logged errors: {errors:#?}");
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context("quaymaster has ended by itself")
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        eventually("quaymaster ends", || {
            child.try_wait()?.context("it runs still")
        })
    }
}

impl Drop for Collector<'_> {
    #[expect(clippy::print_stderr, reason = "the log of a failed test")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.is_ended {
            let log = self.log().unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- what quaymaster logged:\n{}\n---", tail.join("\n"));
        }
    }
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("failed to open `{}`", path.display()))
}
