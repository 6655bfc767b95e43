//! A fleet on one real Kafka: what the compacted topics weigh, and how long a joiner takes to fill.
//!
//! Each host's messages are made by the project's own renderer and sent by its own sink, a host after the other, so that
//! bytes, headers and batches are those of so many collectors. What is not played: the time between them.
//!
//! `QUAYMASTER_FLEET_HOSTS` (10,000), `QUAYMASTER_FLEET_CONTAINERS` of each (100), `QUAYMASTER_FLEET_CHURN_PERCENT` of the
//! containers that are replaced (10), `QUAYMASTER_FLEET_EVENTS` that the joiner joins (2,000,000).

mod broker;
mod host;
mod joiner;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use quaymaster::model::Topic;
use quaymaster::sink::kafka::KafkaSink;
use quaymaster::sink::{
    Ended, IN_FLIGHT_MAX, Outgoing, Report, Sink as _, SinkHealth, TopicSettings,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::broker::Broker;
use self::host::Host;

/// Sinks that play hosts at the same time.
const PLAYERS: usize = 8;
/// The topics that are weighed.
const WEIGHED: [Topic; 3] = [Topic::Pns, Topic::Records, Topic::Deltas];
/// How often progress is told.
const TELL_EVERY: usize = 1_000;

/// How large the fleet is.
#[derive(Clone, Copy, Debug)]
struct Fleet {
    hosts: usize,
    containers: usize,
    churned: usize,
    events: usize,
}

impl Fleet {
    fn of_environment() -> anyhow::Result<Self> {
        let number = |name: &str, default: usize| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name} is `{text}`")),
            Err(_) => Ok(default),
        };
        let containers = number("QUAYMASTER_FLEET_CONTAINERS", 100)?;
        Ok(Self {
            hosts: number("QUAYMASTER_FLEET_HOSTS", 10_000)?,
            containers,
            churned: containers * number("QUAYMASTER_FLEET_CHURN_PERCENT", 10)? / 100,
            events: number("QUAYMASTER_FLEET_EVENTS", 2_000_000)?,
        })
    }

    fn mappings(&self) -> usize {
        self.hosts * self.containers
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(Fleet::of_environment()?))
}

async fn measure(fleet: Fleet) -> anyhow::Result<()> {
    let kafka = std::env::var("LAB_KAFKA").context("LAB_KAFKA: use `benches/run fleet`")?;
    let lab = std::env::var("LAB_DIR").context("LAB_DIR: use `benches/run fleet`")?;
    println!(
        "== fleet: {} hosts with {} containers each, {} mappings",
        fleet.hosts,
        fleet.containers,
        fleet.mappings()
    );
    let topics = TopicSettings {
        prefix: "fleet".to_owned(),
        ..TopicSettings::default()
    };
    let broker = Broker::new(&kafka, &lab, &topics)?;
    KafkaSink::new(std::slice::from_ref(&kafka), &topics, "fleet")
        .prepare()
        .await?;

    for (name, phase) in [
        ("every host's first list", Phase::First),
        ("a resync and a refresh of all mappings", Phase::Refresh),
        ("containers replaced", Phase::Churn),
    ] {
        let before = broker.weigh()?;
        let began = Instant::now();
        let sent = play(fleet, phase, &kafka, &topics).await?;
        println!(
            "{name}: {sent} messages in {:.0} s",
            began.elapsed().as_secs_f64()
        );
        let after = broker.weigh()?;
        for (topic, count) in WEIGHED.iter().zip(sent_of(fleet, phase)) {
            let grown = after[topic.as_str()] - before[topic.as_str()];
            print_weight(&format!("  {} grew by", topic.as_str()), grown, count);
        }
    }
    let began = Instant::now();
    broker.compact().await?;
    println!("compacted in {:.0} s", began.elapsed().as_secs_f64());
    let weights = broker.weigh()?;
    for topic in [Topic::Pns, Topic::Records] {
        let weight = weights[topic.as_str()];
        print_weight(
            &format!("  {} weighs", topic.as_str()),
            weight,
            fleet.mappings(),
        );
    }
    for topic in [Topic::Pns, Topic::Records] {
        let filled = broker.read_all(topic)?;
        println!(
            "a plain consumer reads all of {}: {} messages, {:.0} MB in {:.1} s ({:.0} messages/s, {:.2} µs of CPU each)",
            topic.as_str(),
            filled.messages,
            mb(filled.bytes),
            filled.wall.as_secs_f64(),
            per_second(filled.messages, filled.wall),
            filled.cpu.as_secs_f64() * 1e6 / float(filled.messages.max(1)),
        );
    }
    joiner::measure(&broker, fleet, &kafka)
}

/// What all hosts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    First,
    Refresh,
    Churn,
}

/// How many messages of [`WEIGHED`] a phase has.
fn sent_of(fleet: Fleet, phase: Phase) -> [usize; 3] {
    let all = fleet.mappings();
    let churned = fleet.hosts * fleet.churned;
    match phase {
        // A snapshot of each container stands in the deltas.
        Phase::First => [all, all, all],
        Phase::Refresh => [all, all, 0],
        // The end, the tombstone, and the new one; tombstone and new; stop, delete, create, start.
        Phase::Churn => [3 * churned, 2 * churned, 4 * churned],
    }
}

/// Plays a phase of all hosts; gives the number of messages.
async fn play(
    fleet: Fleet,
    phase: Phase,
    kafka: &str,
    topics: &TopicSettings,
) -> anyhow::Result<usize> {
    let mut tasks = Vec::new();
    for player in 0..PLAYERS {
        let mut player_sink = Player::start(kafka, topics, player);
        tasks.push(tokio::spawn(async move {
            let mut sent = 0;
            for number in (player..fleet.hosts).step_by(PLAYERS) {
                let host = Host::new(number, fleet.containers);
                let messages = match phase {
                    Phase::First => host.first(),
                    Phase::Refresh => host.refresh(),
                    Phase::Churn => host.churn(fleet.churned),
                };
                sent += messages.len();
                player_sink.send(messages).await?;
                if number % TELL_EVERY == 0 {
                    tell(&format!("{phase:?}: host {number}"));
                }
            }
            player_sink.end().await?;
            anyhow::Ok(sent)
        }));
    }
    let mut sent = 0;
    for task in tasks {
        sent += task.await??;
    }
    Ok(sent)
}

/// One sink, as a collector has it.
struct Player {
    requests: mpsc::Sender<Outgoing>,
    reports: mpsc::Receiver<Report>,
    task: JoinHandle<Result<Ended, quaymaster::sink::SinkError>>,
    next_row: u64,
}

impl Player {
    fn start(kafka: &str, topics: &TopicSettings, number: usize) -> Self {
        let mut sink = KafkaSink::new(
            [kafka.to_owned()].as_slice(),
            topics,
            &format!("fleet-{number}"),
        );
        let (requests, incoming) = mpsc::channel(IN_FLIGHT_MAX);
        let (outgoing, reports) = mpsc::channel(IN_FLIGHT_MAX);
        let (health, _) = watch::channel(SinkHealth::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(async move { sink.run(incoming, outgoing, health, stop).await });
        Self {
            requests,
            reports,
            task,
            next_row: 1,
        }
    }

    /// Sends a host's messages and waits for the broker to have them: the next host's are in batches of their own.
    async fn send(&mut self, messages: Vec<Outgoing>) -> anyhow::Result<()> {
        let mut unreported = messages.len();
        for mut message in messages {
            message.row = self.next_row;
            self.next_row += 1;
            self.requests.send(message).await?;
            while self.reports.try_recv().is_ok() {
                unreported -= 1;
            }
        }
        while unreported > 0 {
            self.reports.recv().await.context("the sink has ended")?;
            unreported -= 1;
        }
        Ok(())
    }

    async fn end(self) -> anyhow::Result<()> {
        drop(self.requests);
        match self.task.await?? {
            Ended::Finished => Ok(()),
            Ended::BusLostData(loss) => anyhow::bail!("the broker lost data: {loss:?}"),
        }
    }
}

fn print_weight(what: &str, bytes: u64, messages: usize) {
    if messages > 0 {
        println!(
            "{what} {:.0} MB, {:.0} bytes for each of {messages}",
            mb(bytes),
            float(bytes) / messages as f64
        );
    }
}

#[expect(clippy::print_stderr, reason = "progress")]
fn tell(what: &str) {
    eprintln!("fleet: {what}");
}

fn now_ms() -> u64 {
    crate::latency::now_ns() / 1_000_000
}

fn float(number: u64) -> f64 {
    number as f64
}

fn mb(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

fn per_second(count: u64, wall: Duration) -> f64 {
    float(count) / wall.as_secs_f64()
}
