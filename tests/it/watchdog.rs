//! A collector that hangs is noticed by those who could end it: systemd's watchdog, and whoever asks `/livez`.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::PATIENCE;
use crate::fake_docker::FakeDocker;
use crate::http::Listening;

/// What systemd is told to wait for. The collector's word is given once a second.
const WATCHDOG: Duration = Duration::from_secs(4);
/// A collector that has not gone round for a minute is told as dead by `/livez`.
const LIVEZ_PATIENCE: Duration = Duration::from_secs(100);

/// Stops one thread, and lets it go on when its stdin ends, or when it ends itself.
const STOP_A_THREAD: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
thread = int(sys.argv[1])
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
for request in PTRACE_SEIZE, PTRACE_INTERRUPT:
    if libc.ptrace(request, thread, None, None) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print('stopped', flush=True)
sys.stdin.read()
";

/// A thread that stands still for as long as this lives.
struct Stopped {
    tracer: Child,
    stdin: Option<ChildStdin>,
}

impl Stopped {
    /// `None` where threads may not be traced, which is no error but in CI.
    fn thread(pid: u32, name: &str) -> anyhow::Result<Option<Self>> {
        let mut thread = None;
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            if std::fs::read_to_string(path.join("comm"))?.trim() == name {
                thread = path.file_name().and_then(|id| id.to_str()?.parse().ok());
            }
        }
        let thread: u32 = thread.with_context(|| format!("no thread `{name}`"))?;
        let started = Command::new("python3")
            .args(["-c", STOP_A_THREAD, &thread.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut line = String::new();
        if let Ok(mut tracer) = started {
            let stdin = tracer.stdin.take();
            let stdout = tracer.stdout.take().context("stdout is piped")?;
            BufReader::new(stdout).read_line(&mut line)?;
            let stopped = Self { tracer, stdin };
            if line.trim() == "stopped" {
                return Ok(Some(stopped));
            }
        }
        let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        ensure!(
            !is_ci,
            "no thread can be stopped: python3 and root are needed"
        );
        Ok(None)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.tracer.wait();
    }
}

/// Waits for a word of the service.
fn hear(manager: &UnixDatagram, word: &str) -> anyhow::Result<()> {
    let mut buffer = [0; 64];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let count = manager
            .recv(&mut buffer)
            .with_context(|| format!("no {word}"))?;
        if &buffer[..count] == word.as_bytes() {
            return Ok(());
        }
    }
    anyhow::bail!("no {word}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_is_noticed_and_one_that_goes_on_is_not() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let docker = FakeDocker::start(directory.path())?;
    let endpoint = format!("docker={}", docker.endpoint().uri());
    let socket = directory.path().join("notify.sock");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let socket = socket.to_str().context("a path is not UTF-8")?;
    let usec = WATCHDOG.as_micros().to_string();
    let environment = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", usec.as_str())];
    let collector = Listening::start_in(&["--endpoint", &endpoint], &environment)?;
    hear(&manager, "READY=1")?;
    for _ in 0..3 {
        hear(&manager, "WATCHDOG=1")?;
    }
    collector.await_status_for("/livez", 200, PATIENCE)?;

    let Some(stopped) = Stopped::thread(collector.child.id(), "collector")? else {
        return Ok(());
    };
    // Within that time of silence systemd ends it.
    manager.set_read_timeout(Some(WATCHDOG))?;
    let began = Instant::now();
    let mut buffer = [0; 64];
    while manager.recv(&mut buffer).is_ok() {
        ensure!(began.elapsed() < PATIENCE, "a hung one is told as alive");
    }
    let dead = collector.await_status_for("/livez", 503, LIVEZ_PATIENCE)?;
    ensure!(dead.contains("has not gone round"), "{dead}");

    drop(stopped);
    manager.set_read_timeout(Some(PATIENCE))?;
    hear(&manager, "WATCHDOG=1")?;
    collector.await_status_for("/livez", 200, PATIENCE)?;
    Ok(())
}
