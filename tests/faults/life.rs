//! Processes in PID namespaces of their own, so that procfs, namespaces and the reuse of their numbers are real.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a process to be there.
const BIRTH_MAX: Duration = Duration::from_secs(10);

/// The init process of a namespace. It ends when this is dropped, and when the test's process ends.
#[derive(Debug)]
pub(crate) struct Life {
    unshare: Child,
    /// In the host's namespace.
    pub(crate) pid: u32,
    /// The number of its own namespace.
    pub(crate) inode: u64,
    /// It was not there before this unix millisecond.
    pub(crate) from_ms: u64,
}

impl Life {
    /// Starts a process that does nothing.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let from_ms = now_ms();
        // It reads a pipe whose other end closes with the test.
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to run `unshare` of util-linux")?;
        let parent = unshare.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            let pid: Option<u32> = text.split_whitespace().next().and_then(|w| w.parse().ok());
            if let Some(pid) = pid
                && let Ok(namespace) = std::fs::metadata(format!("/proc/{pid}/ns/pid"))
            {
                let inode = namespace.ino();
                return Ok(Self {
                    unshare,
                    pid,
                    inode,
                    from_ms,
                });
            }
            if began.elapsed() > BIRTH_MAX {
                let _ = unshare.kill();
                let _ = unshare.wait();
                bail!("`unshare --pid --fork` starts nothing: are we root?");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it and waits until it is gone; afterwards its number is anyone's.
    pub(crate) fn end(mut self) -> u64 {
        self.kill();
        now_ms()
    }

    fn kill(&mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // `unshare` has not reaped it while we have not waited for `unshare`.
            if matches!(self.unshare.try_wait(), Ok(None)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.unshare.wait();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Unix time in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
