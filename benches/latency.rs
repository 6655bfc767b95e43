//! From a real runtime's event to a real Kafka's acknowledgement, and how it divides. The collector and the broker have
//! the priority that they have in `early`.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use async_trait::async_trait;
use quaymaster::model::Topic;
use quaymaster::sink::{
    BusUrl, Ended, Outcome, Outgoing, Position, Report, Sink, SinkError, SinkHealth, TopicSettings,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::daemon::{Daemon, endpoints};

const ROUNDS: u32 = 150;
/// The quiet before each operation: the client's start and end, and what the runtime does behind an event, would else be
/// part of the next one's time, and a host on which something is paused every 30 ms is no idle one.
const QUIET: Duration = Duration::from_millis(150);
const QUEUE: usize = 256;

/// A bus that has everything at once.
pub(crate) struct Nowhere;

#[async_trait]
impl Sink for Nowhere {
    async fn prepare(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        _health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Finished),
                message = requests.recv() => message,
            };
            let Some(message) = message else {
                return Ok(Ended::Finished);
            };
            let report = Report {
                row: message.row,
                outcome: Outcome::Acked(Position {
                    partition: 0,
                    offset: 0,
                }),
            };
            if message.row != 0 && reports.send(report).await.is_err() {
                return Ok(Ended::Finished);
            }
        }
    }
}

/// What is of interest in a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picked {
    /// The runtime's time of the event that a delta tells.
    pub(crate) event_ns: u64,
    /// The namespace of a mapping.
    pub(crate) pns: String,
    /// The containers in it.
    pub(crate) containers: Vec<String>,
}

/// One message on its way; nanoseconds of unix time.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    pub(crate) picked: Picked,
    row: u64,
    handed_ns: u64,
    pub(crate) acked_ns: u64,
}

/// Passes on to the real sink, and notes when.
pub(crate) struct Timed {
    pub(crate) inner: Option<Box<dyn Sink>>,
    pub(crate) pick: fn(&Outgoing) -> Option<Picked>,
    pub(crate) times: Arc<Mutex<Vec<Times>>>,
}

#[async_trait]
impl Sink for Timed {
    async fn prepare(&mut self) -> Result<(), SinkError> {
        match &mut self.inner {
            Some(inner) => inner.prepare().await,
            None => Ok(()),
        }
    }

    async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        let Some(mut inner) = self.inner.take() else {
            return Ok(Ended::Finished);
        };
        let (inner_requests, incoming) = mpsc::channel(QUEUE);
        let (outgoing, mut inner_reports) = mpsc::channel(QUEUE);
        let stopped = stop.clone();
        let task =
            tokio::spawn(async move { inner.run(incoming, outgoing, health, stopped).await });
        let mut handed: HashMap<u64, (Picked, u64)> = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                message = requests.recv() => {
                    let Some(message) = message else { break };
                    let (copy, handed_ns) = (message.clone(), now_ns());
                    if inner_requests.send(message).await.is_err() { break }
                    // While it is on its way: parsing is not to be a part of the time.
                    if let Some(picked) = (self.pick)(&copy) {
                        handed.insert(copy.row, (picked, handed_ns));
                    }
                }
                Some(report) = inner_reports.recv() => {
                    if let Some((picked, handed_ns)) = handed.remove(&report.row) {
                        let (row, acked_ns) = (report.row, now_ns());
                        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
                        times.push(Times { picked, row, handed_ns, acked_ns });
                    }
                    if reports.send(report).await.is_err() { break }
                }
            }
        }
        drop(inner_requests);
        let _ = task.await;
        Ok(Ended::Finished)
    }
}

/// The runtime's time of a delta that an event told.
fn event_of(message: &Outgoing) -> Option<Picked> {
    if message.topic != Topic::Deltas {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(message.value.as_deref()?).ok()?;
    let source = value.get("source")?;
    let at = source.get("event_ts_ns")?.as_str()?.parse().ok()?;
    let is_event = source.get("origin")?.as_str()? == "event" && at != 0;
    is_event.then(|| Picked {
        event_ns: at,
        ..Picked::default()
    })
}

/// Unix time in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn run() -> anyhow::Result<()> {
    let nice = crate::early::favour_collector_and_broker()?;
    println!("latency: the collector and the broker run at nice {nice}, runtimes and clients at 0");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let marks = Marks::default();
    // The collector decides on a thread of its own: the marks are the process's.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(marks.clone()))?;
    runtime.block_on(measure(&marks))
}

/// When the library said that it has seen an event, and that it has committed a row.
#[derive(Clone, Debug, Default)]
struct Marks(Arc<Mutex<MarksSeen>>);

#[derive(Debug, Default)]
struct MarksSeen {
    /// By the event's own time.
    observed_ns: HashMap<u64, u64>,
    /// By the newest row of a commit.
    committed_ns: std::collections::BTreeMap<u64, u64>,
}

impl<S: tracing::Subscriber> Layer<S> for Marks {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut fields = MarkFields::default();
        event.record(&mut fields);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (fields.at_ns, fields.last_row) {
            (Some(at_ns), _) => _ = seen.observed_ns.insert(at_ns, now_ns()),
            (None, Some(row)) => _ = seen.committed_ns.insert(row, now_ns()),
            (None, None) => {}
        }
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
        metadata.target().starts_with("quaymaster::")
            && ["at_ns", "last_row"]
                .iter()
                .any(|name| metadata.fields().field(name).is_some())
    }
}

#[derive(Default)]
struct MarkFields {
    at_ns: Option<u64>,
    last_row: Option<u64>,
}

impl Visit for MarkFields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "at_ns" => self.at_ns = Some(value),
            "last_row" => self.last_row = Some(value),
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

async fn measure(marks: &Marks) -> anyhow::Result<()> {
    let kafka = std::env::var("LAB_KAFKA").context("LAB_KAFKA: use `make bench`")?;
    let bus: BusUrl = format!("kafka://{kafka}").parse()?;
    let topics = TopicSettings {
        prefix: format!("bench{}", std::process::id()),
        ..TopicSettings::default()
    };
    let times = Arc::new(Mutex::new(Vec::new()));
    let sink = Timed {
        inner: Some(quaymaster::sink::open(&bus, &topics, "bench")?),
        pick: event_of,
        times: Arc::clone(&times),
    };
    let mut daemon = Daemon::start(&endpoints()?, Box::new(sink)).await?;
    daemon.settled().await?;
    // The first messages open connections and topics.
    docker(&[
        "run",
        "-d",
        "--name",
        "bench-latency",
        "--network",
        "none",
        "busybox:lab",
        "sleep",
        "600",
    ])?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    times.lock().unwrap_or_else(PoisonError::into_inner).clear();
    for _ in 0..ROUNDS {
        tokio::time::sleep(QUIET).await;
        docker(&["pause", "bench-latency"])?;
        tokio::time::sleep(QUIET).await;
        docker(&["unpause", "bench-latency"])?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    print_times("pause and unpause", &times, marks);
    for round in 0..ROUNDS / 5 {
        let name = format!("bench-latency-{round}");
        tokio::time::sleep(QUIET).await;
        docker(&[
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "none",
            "busybox:lab",
            "sleep",
            "600",
        ])?;
        tokio::time::sleep(QUIET).await;
        docker(&["rm", "-f", &name])?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    print_times("create, start, stop, delete", &times, marks);
    docker(&["rm", "-f", "bench-latency"])?;
    daemon.end().await?;
    Ok(())
}

fn print_times(name: &str, times: &Mutex<Vec<Times>>, marks: &Marks) {
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let seen = marks.0.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |part: &dyn Fn(&Times) -> Option<(u64, u64)>| {
        let parts = times.iter().filter_map(part);
        parts.map(|(from, to)| between_ms(from, to)).collect()
    };
    let observed = |t: &Times| seen.observed_ns.get(&t.picked.event_ns).copied();
    let committed = |t: &Times| seen.committed_ns.range(t.row..).next().map(|(_, ns)| *ns);
    println!(
        "== latency on Docker and Kafka: {name}, {} ms of quiet before each",
        QUIET.as_millis()
    );
    crate::print_distribution(
        "event to acknowledgement",
        of(&|t| Some((t.picked.event_ns, t.acked_ns))),
    );
    crate::print_distribution(
        "  event to observed (the runtime's stream)",
        of(&|t| Some((t.picked.event_ns, observed(t)?))),
    );
    crate::print_distribution(
        "  observed to committed (inspect, decide, commit)",
        of(&|t| Some((observed(t)?, committed(t)?))),
    );
    crate::print_distribution(
        "  committed to handed over (publisher)",
        of(&|t| Some((committed(t)?, t.handed_ns))),
    );
    crate::print_distribution(
        "  handed over to acknowledged (Kafka)",
        of(&|t| Some((t.handed_ns, t.acked_ns))),
    );
}

/// From one moment to another, which may be the earlier one.
pub(crate) fn between_ms(from_ns: u64, to_ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some ms")]
    let ms = from_ns.abs_diff(to_ns) as f64 / 1e6;
    if to_ns < from_ns { -ms } else { ms }
}

/// Runs the docker client of the lab.
fn docker(arguments: &[&str]) -> anyhow::Result<()> {
    let client = std::env::var("LAB_DOCKER_CLI").unwrap_or_else(|_| "docker".to_owned());
    let socket =
        std::env::var("LAB_DOCKER_SOCKET").context("LAB_DOCKER_SOCKET: use `make bench`")?;
    let status = crate::early::client(&client)
        .arg("-H")
        .arg(format!("unix://{socket}"))
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "docker {arguments:?} failed: {status}");
    Ok(())
}
