//! From a real runtime's event to a real Kafka's acknowledgement, and how it divides.

use std::collections::HashMap;
use std::process::{Command, Stdio};
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

use crate::daemon::{Daemon, endpoints};

const ROUNDS: u32 = 150;
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

/// Nanoseconds of one delta: the runtime's event, handed to the sink, acknowledged.
#[derive(Clone, Copy, Debug)]
struct Times {
    event_ns: u64,
    handed_ns: u64,
    acked_ns: u64,
}

/// Passes on to the real sink, and notes when.
struct Timed {
    inner: Option<Box<dyn Sink>>,
    times: Arc<Mutex<Vec<Times>>>,
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
        let mut handed: HashMap<u64, (u64, u64)> = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                message = requests.recv() => {
                    let Some(message) = message else { break };
                    if let Some(event_ns) = event_ns(&message) {
                        handed.insert(message.row, (event_ns, now_ns()));
                    }
                    if inner_requests.send(message).await.is_err() { break }
                }
                Some(report) = inner_reports.recv() => {
                    if let Some((event_ns, handed_ns)) = handed.remove(&report.row) {
                        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
                        times.push(Times { event_ns, handed_ns, acked_ns: now_ns() });
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
fn event_ns(message: &Outgoing) -> Option<u64> {
    if message.topic != Topic::Deltas {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(message.value.as_deref()?).ok()?;
    let source = value.get("source")?;
    let at = source.get("event_ts_ns")?.as_str()?.parse().ok()?;
    (source.get("origin")?.as_str()? == "event" && at != 0).then_some(at)
}

/// Unix time in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let kafka = std::env::var("LAB_KAFKA").context("LAB_KAFKA: use `make bench`")?;
    let bus: BusUrl = format!("kafka://{kafka}").parse()?;
    let topics = TopicSettings {
        prefix: format!("bench{}", std::process::id()),
        ..TopicSettings::default()
    };
    let times = Arc::new(Mutex::new(Vec::new()));
    let sink = Timed {
        inner: Some(quaymaster::sink::open(&bus, &topics, "bench")?),
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
        docker(&["pause", "bench-latency"])?;
        docker(&["unpause", "bench-latency"])?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    print_times("pause and unpause", &times);
    for round in 0..ROUNDS / 5 {
        let name = format!("bench-latency-{round}");
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
        docker(&["rm", "-f", &name])?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    print_times("create, start, stop, delete", &times);
    docker(&["rm", "-f", "bench-latency"])?;
    daemon.end().await?;
    Ok(())
}

fn print_times(name: &str, times: &Mutex<Vec<Times>>) {
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some ms")]
    let of = |pick: fn(&Times) -> u64| {
        times
            .iter()
            .map(|t| pick(t) as f64 / 1e6)
            .collect::<Vec<_>>()
    };
    println!("== latency on Docker and Kafka: {name}");
    crate::print_distribution(
        "event to acknowledgement",
        of(|t| t.acked_ns.saturating_sub(t.event_ns)),
    );
    crate::print_distribution(
        "  event to sink (stream, inspect, decide, commit)",
        of(|t| t.handed_ns.saturating_sub(t.event_ns)),
    );
    crate::print_distribution(
        "  sink to acknowledgement (Kafka)",
        of(|t| t.acked_ns.saturating_sub(t.handed_ns)),
    );
}

/// Runs the docker client of the lab.
pub(crate) fn docker(arguments: &[&str]) -> anyhow::Result<()> {
    let client = std::env::var("LAB_DOCKER_CLI").unwrap_or_else(|_| "docker".to_owned());
    let socket =
        std::env::var("LAB_DOCKER_SOCKET").context("LAB_DOCKER_SOCKET: use `make bench`")?;
    let status = Command::new(client)
        .arg("-H")
        .arg(format!("unix://{socket}"))
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "docker {arguments:?} failed: {status}");
    Ok(())
}
