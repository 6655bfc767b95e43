//! A course: a world, a collector, a bus and an oracle; faults by chance, and checkpoints where all must agree.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bus::Bus;
use crate::daemon::Daemon;
use crate::lab::report;
use crate::oracle::Oracle;
use crate::prng::Prng;
use crate::world::{Side, World};

/// Longest wait for the truth to be on the bus after the last fault. Reconnects to a runtime wait up to 30 s.
const CONVERGE_MAX: Duration = Duration::from_secs(90);
/// Longest wait for a collector to subscribe.
const ATTACH_MAX: Duration = Duration::from_secs(60);
/// Longest wait for stories after the state agrees: a deletion is held back while events of its run may come.
const STORY_MAX: Duration = Duration::from_secs(20);
/// How long a runtime may not have noticed the end of a process, in milliseconds: dockerd takes some ten.
const UNNOTICED_MS_MAX: u64 = 60;
/// Longest wait for an answer over HTTP.
const ASK_MAX: Duration = Duration::from_secs(5);
/// What the log says before the address of the HTTP listener.
const LISTENING: &str = "listening address=";
/// How long mappings linger here.
const LINGER: &str = "1s";

/// What is counted.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) converged_ms: Vec<u64>,
    /// Each may cost an epoch.
    pub(crate) torn_states: usize,
    pub(crate) lost: u64,
    pub(crate) owed_steps: u64,
    pub(crate) wrong_owner: u64,
}

pub(crate) struct Course {
    pub(crate) name: &'static str,
    pub(crate) seed: u64,
    pub(crate) rng: Prng,
    pub(crate) world: World,
    pub(crate) daemon: Daemon,
    pub(crate) oracle: Oracle,
    pub(crate) figures: Figures,
    pub(crate) state_dir: PathBuf,
    pub(crate) bus: Bus,
    folder: TempDir,
    began: Instant,
}

/// What differs from course to course.
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// `None` for stdout.
    pub(crate) bus: Option<Bus>,
    /// Further arguments of the collector.
    pub(crate) arguments: Vec<String>,
    /// Its configuration file.
    pub(crate) file: &'static str,
    /// Where its state is; by default a new folder.
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the collector finds the bus, if not where it is.
    pub(crate) through: Option<String>,
    /// What it finds in its environment.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// What of its log is an error that the course causes.
    pub(crate) starts: bool,
}

impl Setup {
    pub(crate) fn new(name: &'static str, bus: Option<Bus>) -> Self {
        Self {
            name,
            bus,
            arguments: Vec::new(),
            file: "",
            state_dir: None,
            through: None,
            environment: Vec::new(),
            starts: true,
        }
    }
}

impl Course {
    pub(crate) async fn start(setup: Setup) -> anyhow::Result<Self> {
        let seed = seed();
        report(&format!("{}: QUAYMASTER_FAULTS_SEED={seed}", setup.name));
        let folder = tempfile::Builder::new().prefix("qf").tempdir_in("/tmp")?;
        let world = World::start(folder.path(), seed)?;
        let bus = setup.bus.unwrap_or_else(|| Bus::Stdout {
            file: folder.path().join("stdout"),
            offset: 0,
        });
        let state_dir = setup
            .state_dir
            .unwrap_or_else(|| folder.path().join("state"));
        let mut arguments = bus.arguments(setup.through.as_deref());
        arguments.extend([
            format!("--state-dir={}", state_dir.display()),
            format!(
                "--endpoint=docker=unix://{}/docker.sock",
                folder.path().display()
            ),
            format!("--endpoint=cri=unix://{}/cri.sock", folder.path().display()),
            "--host-id=faulty-host".to_owned(),
            "--host-name=faulty".to_owned(),
            format!("--pns-linger={LINGER}"),
            format!("--log={}", log_filter()),
        ]);
        arguments.extend(setup.arguments);
        let file = folder.path().join("config.toml");
        std::fs::write(&file, setup.file)?;
        arguments.push(format!("--config={}", file.display()));
        let mut daemon = Daemon::new(folder.path(), arguments, setup.environment);
        if setup.starts {
            daemon.spawn()?;
        }
        let mut course = Self {
            name: setup.name,
            seed,
            rng: Prng::new(seed ^ 0x5EED),
            world,
            daemon,
            oracle: Oracle::new(matches!(bus, Bus::Nats { .. })),
            figures: Figures::default(),
            state_dir,
            bus,
            folder,
            began: Instant::now(),
        };
        if setup.starts {
            course.attached().await?;
        }
        Ok(course)
    }

    /// Waits until the collector hears both runtimes and has listed them since.
    pub(crate) async fn attached(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.world.docker.is_followed() || !self.world.cri.is_followed() {
            self.daemon.check()?;
            if began.elapsed() > ATTACH_MAX {
                self.fail("the collector does not subscribe and list")?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Some changes of the world, some milliseconds apart.
    pub(crate) async fn live(&mut self, changes: u64) -> anyhow::Result<()> {
        for _ in 0..changes {
            self.world.step()?;
            let pause_ms = self.rng.below(25);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        Ok(())
    }

    pub(crate) fn count(&mut self, fault: &'static str) {
        *self.figures.faults.entry(fault).or_default() += 1;
    }

    /// SIGKILL, and a new life at once.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.kill_only().await?;
        self.daemon.spawn()
    }

    pub(crate) async fn kill_only(&mut self) -> anyhow::Result<()> {
        self.count("SIGKILL");
        self.disturb();
        self.daemon.kill()?;
        self.oracle.may_reuse = true;
        // The kernel has closed its connections; the fakes would notice at their next event.
        self.world.docker.end_events();
        self.world.cri.end_events();
        let began = Instant::now();
        while self.world.docker.subscribers() > 0 || self.world.cri.subscribers() > 0 {
            if began.elapsed() > ATTACH_MAX {
                bail!("the fakes' streams do not end");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    pub(crate) fn disturb(&mut self) {
        self.world.disturb_all();
    }

    /// A pid is another container's before its first one's runtime has noticed.
    pub(crate) async fn reuse_pid(&mut self) -> anyhow::Result<()> {
        let Some((first, other)) = self.world.begin_reuse()? else {
            return Ok(());
        };
        self.count("pid reused before it was read");
        let unnoticed_ms = self.rng.below(UNNOTICED_MS_MAX);
        tokio::time::sleep(Duration::from_millis(unnoticed_ms)).await;
        self.world.end_reuse(&first, &other);
        Ok(())
    }

    /// One fault of a runtime, of eight kinds.
    pub(crate) async fn runtime_fault(&mut self, kind: u64) -> anyhow::Result<()> {
        let side = if self.rng.percent(50) {
            Side::Docker
        } else {
            Side::Cri
        };
        match kind % 8 {
            0 => {
                self.count("stream ended");
                self.end_stream(side);
            }
            1 => {
                self.count("events lost with the stream");
                self.world.loses_events = true;
                self.live(6).await?;
                self.world.loses_events = false;
                self.end_stream(Side::Docker);
                self.end_stream(Side::Cri);
            }
            2 => {
                self.count("runtime restarted");
                self.world.restart(side)?;
            }
            3 => {
                self.count("inspects failing");
                self.break_inspects(side, false);
                self.live(8).await?;
                self.world.heal();
            }
            4 => {
                self.count("inspects hanging");
                self.break_inspects(side, true);
                self.live(8).await?;
                self.world.heal();
                // What hangs is answered by nobody: its time limit is 30 s.
                self.end_stream(side);
            }
            5 => {
                self.count("list cut short");
                self.break_list(side);
                self.end_stream(side);
                self.live(4).await?;
                self.world.heal();
            }
            6 => self.reuse_pid().await?,
            _ => {
                self.count("burst of 800 events");
                self.world.burst(200);
            }
        }
        Ok(())
    }

    /// The bus refuses what it is given, or takes it again. A collector that was just started may not have made its
    /// topics yet.
    pub(crate) async fn refuse(&mut self, refuses: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Err(error) = self.bus.refuse(refuses).await {
            self.daemon.check()?;
            if began.elapsed() > ATTACH_MAX {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// What the newest collector, which was told to listen, answers over HTTP.
    pub(crate) async fn ask(&self, path: &str) -> anyhow::Result<String> {
        let lines = self.daemon.log_lines(LISTENING);
        let line = lines.last().context("the collector does not listen")?;
        let (_, address) = line.split_once(LISTENING).context("an address")?;
        let address = address.split_whitespace().next().context("an address")?;
        let asking = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        tokio::time::timeout(ASK_MAX, asking).await?
    }

    /// A stranger reads the bus from its beginning, and knows nothing of what was there before.
    pub(crate) fn read_anew(&mut self, bus: Bus) {
        self.oracle = Oracle::new(matches!(bus, Bus::Nats { .. }));
        // What the bus lost may have been a tombstone.
        self.oracle.may_reuse = true;
        self.bus = bus;
    }

    fn end_stream(&mut self, side: Side) {
        self.world.disturb(side);
        match side {
            Side::Docker => self.world.docker.end_events(),
            Side::Cri => self.world.cri.end_events(),
        }
    }

    fn break_inspects(&mut self, side: Side, hang: bool) {
        use crate::fake_docker::Reply;
        self.world.disturb(side);
        match side {
            Side::Docker => {
                let ids: Vec<String> = self.world.items.keys().cloned().collect();
                for id in ids {
                    let reply = match hang {
                        true => Reply::Silence,
                        false => Reply::Json(500, "{\"message\":\"broken\"}".to_owned()),
                    };
                    self.world
                        .docker
                        .reply(&format!("/containers/{id}/json"), reply);
                }
            }
            Side::Cri if hang => self.world.cri.state().delay = Duration::from_secs(3_600),
            Side::Cri => {
                let status = tonic::Status::internal("broken");
                self.world.cri.state().inspect_error = Some(status);
            }
        }
    }

    fn break_list(&mut self, side: Side) {
        use crate::fake_docker::Reply;
        self.world.disturb(side);
        match side {
            Side::Docker => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n";
                let cut = format!("{head}[{{\"Id\":\"00\",");
                let reply = Reply::Raw(cut.into_bytes());
                self.world.docker.reply("/containers/json", reply);
            }
            Side::Cri => {
                let status = tonic::Status::unavailable("cut short");
                self.world.cri.state().list_error = Some(status);
            }
        }
    }

    /// Faults have stopped: one resync, and then everything on the bus must be the truth.
    pub(crate) async fn converge(&mut self) -> anyhow::Result<()> {
        self.world.heal();
        let began = Instant::now();
        self.attached().await?;
        self.daemon.signal(Signal::USR1)?;
        let mut agreed = None;
        loop {
            self.daemon.check()?;
            let unread = self.look().await;
            self.judge()?;
            let differences = self.oracle.differences(&self.world);
            if unread.is_none() && differences.is_empty() {
                agreed.get_or_insert_with(Instant::now);
                let (_, lost) = self.oracle.check_stories(&self.world);
                if lost.is_empty() || agreed.is_some_and(|at| at.elapsed() > STORY_MAX) {
                    break;
                }
            }
            if began.elapsed() > CONVERGE_MAX {
                self.fail(&format!("no convergence: {differences:#?}, {unread:?}"))?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let converged = agreed.map_or_else(|| began.elapsed(), |at| at - began);
        let converged_ms = u64::try_from(converged.as_millis())?;
        self.figures.converged_ms.push(converged_ms);
        self.oracle.check_tombstones();
        self.figures.wrong_owner += self.oracle.check_owners(&self.world.owned);
        let (owed, lost) = self.oracle.check_stories(&self.world);
        self.figures.owed_steps += owed;
        self.figures.lost += lost.len() as u64;
        self.oracle.complaints.extend(lost);
        let torn = self.figures.torn_states;
        if self.oracle.lost_epochs > torn {
            let epochs = self.oracle.lost_epochs;
            let complaint =
                format!("{epochs} epochs were lost, and the state was torn {torn} times");
            self.oracle.complaints.push(complaint);
        }
        for line in self.daemon.log_lines("panicked") {
            self.oracle.complaints.push(line);
        }
        self.judge()?;
        self.world.settled();
        Ok(())
    }

    /// Takes what has come since the last look. A reader that fails, as it may on a machine that is busy, is not the
    /// collector's fault: it is to look again.
    async fn look(&mut self) -> Option<anyhow::Error> {
        let mut found = Vec::new();
        let read = self.bus.read(&mut found).await;
        for found in found {
            self.oracle.take(found);
        }
        read.err()
    }

    /// An error where the oracle has a complaint; the first few of them.
    fn judge(&mut self) -> anyhow::Result<()> {
        if self.oracle.complaints.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = self.oracle.complaints.iter().take(4).cloned().collect();
        self.fail(&format!("{first:#?}"))
    }

    /// Waits until what is on the bus satisfies a condition.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        is_true: impl Fn(&Oracle) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let unread = self.look().await;
            if is_true(&self.oracle) {
                return Ok(());
            }
            if began.elapsed() > CONVERGE_MAX {
                self.fail(&format!("never: {what}, {unread:?}"))?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end: SIGTERM ends it well, and the figures are told.
    pub(crate) fn finish(mut self) -> anyhow::Result<Figures> {
        let status = self.daemon.terminate()?;
        if !status.success() {
            self.fail(&format!("quaymaster ended with {status}"))?;
        }
        self.figures.converged_ms.sort_unstable();
        let times = &self.figures.converged_ms;
        let p50 = times.get(times.len() / 2).copied().unwrap_or(0);
        let max = times.last().copied().unwrap_or(0);
        report(&format!(
            "{}: {:.0} s; faults {:?}; {} changes, {} events, {} of them late; on the bus {} messages, {} deltas, {} doubled, {} gaps, \
             {} tombstones, {} epochs, {} lines of lost epochs; {} steps owed for sure, lost {}; out of order 0; \
             wrong owner {}; converged {} times, p50 {p50} ms, max {max} ms",
            self.name,
            self.began.elapsed().as_secs_f32(),
            self.figures.faults,
            self.world.changes,
            self.world.events,
            self.world.overtaken,
            self.oracle.messages,
            self.oracle.deltas,
            self.oracle.doubled,
            self.oracle.gaps,
            self.oracle.tombstones,
            self.oracle.lost_epochs + 1,
            self.oracle.stale(),
            self.figures.owed_steps,
            self.figures.lost,
            self.figures.wrong_owner,
            times.len(),
        ));
        Ok(self.figures)
    }

    fn fail(&mut self, what: &str) -> anyhow::Result<()> {
        let kept = self.folder.path().with_extension("failed");
        let _ = std::fs::create_dir(&kept);
        for file in [&self.daemon.log, &self.daemon.stdout] {
            if let Some(name) = file.file_name() {
                let _ = std::fs::copy(file, kept.join(name));
            }
        }
        let seed = self.seed;
        bail!(
            "{}: {what}\nrepeat it with QUAYMASTER_FAULTS_SEED={seed}; its log is kept in {}",
            self.name,
            kept.display()
        )
    }
}

/// `QUAYMASTER_FAULTS_LOG=debug` tells each event.
fn log_filter() -> String {
    std::env::var("QUAYMASTER_FAULTS_LOG").unwrap_or_else(|_| "info".to_owned())
}

fn seed() -> u64 {
    let given = std::env::var("QUAYMASTER_FAULTS_SEED").ok();
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| crate::life::now_ns() % 1_000_000_000)
}

/// What must be there for any course; `false` where it is missing and that is no error.
pub(crate) fn can_unshare() -> anyhow::Result<bool> {
    match crate::life::Life::begin("none").context("no PID namespaces can be made") {
        Ok(life) => {
            life.end();
            Ok(true)
        }
        Err(error) if std::env::var("CI").is_ok_and(|value| value == "true") => Err(error),
        Err(error) => {
            report(&format!("SKIPPED: {error:#}"));
            Ok(false)
        }
    }
}
