//! Processes in PID namespaces of their own, so that procfs, namespaces and the reuse of their numbers are real.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Where cgroups may be made: version 2 beside 1, version 2 alone, or version 1.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/freezer",
];
/// Enters a cgroup by its file `$1`, and begins a namespace from there with the same pid.
const ENTER_AND_BEGIN: &str = r#"echo $$ >"$1"; exec unshare --pid --fork --kill-child cat"#;
/// How often a pid is tried to be had.
const TAKES_MAX: usize = 10;
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
    /// Its cgroup, which names its container, where one can be made.
    cgroup: Option<PathBuf>,
}

impl Life {
    /// The same with a pid that another process had; `None` where somebody else was always faster.
    pub(crate) fn begin_as(pid: u32, container: &str) -> anyhow::Result<Option<Self>> {
        for _ in 0..TAKES_MAX {
            // The next process gets the next number: `unshare`, and then its child.
            let last = pid.saturating_sub(2).to_string();
            if std::fs::write("/proc/sys/kernel/ns_last_pid", last).is_err() {
                return Ok(None);
            }
            let life = Self::begin(container)?;
            if life.pid == pid {
                return Ok(Some(life));
            }
            life.end();
        }
        Ok(None)
    }

    /// Starts a process that does nothing, as a container's.
    pub(crate) fn begin(container: &str) -> anyhow::Result<Self> {
        let from_ms = now_ms();
        let cgroup = make_cgroup(container);
        let procs = cgroup.as_ref().map(|path| path.join("cgroup.procs"));
        // It is in its cgroup before there is a child: whoever reads that finds whose it is from the first moment on.
        // It reads a pipe whose other end closes with the test.
        let mut unshare = Command::new("sh")
            .args(["-c", ENTER_AND_BEGIN, "sh"])
            .arg(procs.as_deref().unwrap_or(Path::new("/dev/null")))
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
                    cgroup,
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
        if let Some(cgroup) = self.cgroup.take() {
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}

/// A cgroup that names its container, as every runtime makes one; `None` where this machine lets us make none.
fn make_cgroup(container: &str) -> Option<PathBuf> {
    let name = format!("qf-{}-{container}", std::process::id());
    for hierarchy in HIERARCHIES {
        let path = Path::new(hierarchy).join(&name);
        if std::fs::create_dir(&path).is_ok() {
            if path.join("cgroup.procs").exists() {
                return Some(path);
            }
            let _ = std::fs::remove_dir(&path);
        }
    }
    None
}

impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How far the host's clock is from the machine's, in nanoseconds.
static CLOCK_OFFSET_NS: AtomicI64 = AtomicI64::new(0);

/// From now on the host's clock is so far from the machine's.
pub(crate) fn step_clock(offset_s: i64) {
    CLOCK_OFFSET_NS.store(offset_s * 1_000_000_000, Ordering::Relaxed);
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
    let machine_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    machine_ns.saturating_add_signed(CLOCK_OFFSET_NS.load(Ordering::Relaxed))
}
