//! One Kafka and one NATS for all tests of this binary, ended with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use quaymaster::sink::TopicSettings;
use quaymaster::telemetry::{self, LogFormat};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broker {
    Kafka,
    Nats,
}

/// The brokers, or why there are none.
static LAB: OnceLock<Result<Lab, String>> = OnceLock::new();
static KAFKA: RwLock<()> = RwLock::const_new(());
static NATS: RwLock<()> = RwLock::const_new(());
static SECOND_KAFKA: Mutex<bool> = Mutex::const_new(false);
static PREFIXES: AtomicU32 = AtomicU32::new(0);

struct Lab {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
}

/// A broker that keeps running while this lives.
pub(crate) struct Steady {
    pub(crate) servers: Vec<String>,
    _guard: RwLockReadGuard<'static, ()>,
}

/// A broker that this test may stop and start: no other test uses it meanwhile.
pub(crate) struct Fragile {
    pub(crate) servers: Vec<String>,
    broker: Broker,
    _guard: RwLockWriteGuard<'static, ()>,
}

impl Broker {
    fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Nats => "nats",
        }
    }

    fn lock(self) -> &'static RwLock<()> {
        match self {
            Self::Kafka => &KAFKA,
            Self::Nats => &NATS,
        }
    }

    fn servers(self) -> anyhow::Result<Option<Vec<String>>> {
        let lab = match LAB.get_or_init(|| Lab::start().map_err(|error| format!("{error:#}"))) {
            Ok(lab) => lab,
            Err(error) if std::env::var("CI").is_ok_and(|value| value == "true") => {
                bail!("no brokers: {error}")
            }
            Err(error) => {
                report(&format!("SKIPPED, as there are no brokers: {error}"));
                return Ok(None);
            }
        };
        let key = match self {
            Self::Kafka => "LAB_KAFKA",
            Self::Nats => "LAB_NATS",
        };
        let address = lab
            .settings
            .get(key)
            .with_context(|| format!("{key} is not in the lab's env"))?;
        Ok(Some(vec![address.clone()]))
    }

    /// The broker, running; `None` where there is none and the test is skipped.
    pub(crate) async fn steady(self) -> anyhow::Result<Option<Steady>> {
        let guard = self.lock().read().await;
        Ok(self.servers()?.map(|servers| Steady {
            servers,
            _guard: guard,
        }))
    }

    /// Lets Kafka's cluster know a second broker, which is stopped: two replicas can be asked for, and there is one.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) async fn know_second_kafka() -> anyhow::Result<()> {
        let mut is_known = SECOND_KAFKA.lock().await;
        if !*is_known {
            for verb in ["up", "stop"] {
                tokio::task::spawn_blocking(move || match LAB.get() {
                    Some(Ok(lab)) => lab.run(verb, &["kafka2"]),
                    Some(Err(_)) | None => bail!("there is no lab"),
                })
                .await??;
            }
            *is_known = true;
        }
        Ok(())
    }

    /// The broker, to be stopped and started; `None` where there is none and the test is skipped.
    pub(crate) async fn fragile(self) -> anyhow::Result<Option<Fragile>> {
        let guard = self.lock().write().await;
        Ok(self.servers()?.map(|servers| Fragile {
            servers,
            broker: self,
            _guard: guard,
        }))
    }
}

impl Steady {
    /// What the lab tells of itself under a name.
    #[allow(dead_code, reason = "for tests/sink alone")]
    pub(crate) fn setting(&self, key: &str) -> anyhow::Result<String> {
        match LAB.get() {
            Some(Ok(lab)) => lab.settings.get(key).cloned(),
            Some(Err(_)) | None => None,
        }
        .with_context(|| format!("{key} is not in the lab's env"))
    }
}

impl Fragile {
    /// Where the lab keeps it.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn folder(&self) -> PathBuf {
        folder()
    }

    /// What the lab tells of itself.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn setting(&self, key: &str) -> anyhow::Result<String> {
        let Some(Ok(lab)) = LAB.get() else {
            bail!("there is no lab");
        };
        let value = lab.settings.get(key).cloned();
        value.with_context(|| format!("{key} is not in the lab's env"))
    }

    /// What the lab calls it.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn name(&self) -> &'static str {
        self.broker.name()
    }

    /// Copies a folder of the lab to another, which it replaces. The broker must be stopped.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn copy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (from, to) = (folder().join(from), folder().join(to));
        if to.exists() {
            std::fs::remove_dir_all(&to)?;
        }
        let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status()?;
        anyhow::ensure!(copied.success(), "failed to copy {}", from.display());
        Ok(())
    }

    /// Runs `lab stop`, `lab start` or `lab kill9`.
    pub(crate) async fn order(&self, verb: &'static str) -> anyhow::Result<()> {
        let broker = self.broker;
        tokio::task::spawn_blocking(move || match LAB.get() {
            Some(Ok(lab)) => lab.run(verb, &[broker.name()]),
            Some(Err(_)) | None => bail!("there is no lab"),
        })
        .await?
    }
}

impl Lab {
    fn start() -> anyhow::Result<Self> {
        let lab = Self {
            folder: folder(),
            settings: BTreeMap::new(),
        };
        if let Ok(filter) = std::env::var("QUAYMASTER_TEST_LOG") {
            telemetry::start(&filter, LogFormat::Text).map_err(anyhow::Error::msg)?;
        }
        lab.end_with_this_process()?;
        lab.run("up", &["kafka", "nats"])?;
        let text = std::fs::read_to_string(lab.folder.join("env"))?;
        let settings = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Self { settings, ..lab })
    }

    /// Starts a shell that waits for the end of this process, however it comes, and then ends the brokers.
    fn end_with_this_process(&self) -> anyhow::Result<()> {
        let mut shell = Command::new("setsid")
            .args(["sh", "-c", "read -r _; exec \"$0\" down \"$1\""])
            .arg(script())
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start a shell")?;
        // The other end of this pipe closes with this process.
        std::mem::forget(shell.stdin.take());
        Ok(())
    }

    fn run(&self, verb: &str, components: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(script())
            .arg(verb)
            .arg(&self.folder)
            .args(components)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("failed to run {}", script().display()))?;
        if !output.status.success() {
            bail!(
                "`lab {verb}` ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

fn folder() -> PathBuf {
    PathBuf::from(format!("/tmp/quay-sink-{}", std::process::id()))
}

pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/lab")
}

/// Topics that no other test uses.
pub(crate) fn fresh_topics() -> TopicSettings {
    let number = PREFIXES.fetch_add(1, Ordering::Relaxed);
    TopicSettings {
        prefix: format!("t{}.n{number}", std::process::id()),
        partitions: 3,
        ..TopicSettings::default()
    }
}

/// Writes a line past the test harness's capture.
pub(crate) fn report(line: &str) {
    use std::io::Write as _;
    let text = format!("tests/{}: {line}\n", env!("CARGO_CRATE_NAME"));
    // Nobody to tell when stderr is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
