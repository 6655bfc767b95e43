//! `quaymaster enrich` (of `QUAYMASTER_BIN`, or of this build) on the fleet's table: how long it takes to fill, its memory, and how many events it joins.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use super::broker::Broker;
use super::host::{host_id, pns_of};
use super::{Fleet, float, mb, per_second, tell};

const EVENTS: &str = "fleet-events";
const OUTPUT: &str = "fleet-events-enriched";
const TIMEOUT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn measure(broker: &Broker, fleet: Fleet, kafka: &str) -> anyhow::Result<()> {
    if fleet.events == 0 {
        return Ok(());
    }
    let binary = std::env::var("QUAYMASTER_BIN")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_quaymaster").to_owned());
    let help = Command::new(&binary).args(["enrich", "--help"]).output()?;
    if !help.status.success() {
        println!("`{binary}` has no `enrich`: nothing is joined");
        return Ok(());
    }
    make_events(broker, fleet)?;
    let consumer: BaseConsumer = broker
        .config()
        .set("group.id", "fleet-output")
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[OUTPUT])?;
    let began = Instant::now();
    let enricher = Enricher::start(&binary, kafka)?;
    let pid = enricher.0.id();
    next(&consumer).context("the joiner joins nothing")?;
    let (filled, cpu_filled, memory) = (began.elapsed(), cpu_of(pid)?, resident_bytes(pid)?);
    println!(
        "quaymaster enrich is filled and joins after {:.1} s ({:.1} s of CPU), with {:.0} MB resident: {:.0} bytes a mapping",
        filled.as_secs_f64(),
        cpu_filled.as_secs_f64(),
        mb(memory),
        float(memory) / fleet.mappings() as f64
    );
    let mut joined = 1;
    while joined < fleet.events {
        next(&consumer).context("events are missing")?;
        joined += 1;
    }
    let wall = began.elapsed() - filled;
    let cpu = cpu_of(pid)?.saturating_sub(cpu_filled);
    println!(
        "  it joins {:.0} events/s, {:.0} for each second of its CPU; {:.0} MB resident at the end",
        per_second(joined as u64, wall),
        per_second(joined as u64, cpu),
        mb(resident_bytes(pid)?)
    );
    Ok(())
}

fn make_events(broker: &Broker, fleet: Fleet) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = broker.config().create()?;
    let new = [EVENTS, OUTPUT].map(|name| NewTopic::new(name, 12, TopicReplication::Fixed(1)));
    for made in futures::executor::block_on(admin.create_topics(&new, &AdminOptions::new()))? {
        made.map_err(|(name, code)| anyhow::anyhow!("no topic `{name}`: {code}"))?;
    }
    let producer: ThreadedProducer<DefaultProducerContext> = broker
        .config()
        .set("compression.type", "lz4")
        .set("linger.ms", "20")
        .create()?;
    let time_ms = super::now_ms();
    for number in 0..fleet.events {
        // Hosts in turn; a large odd step, so that neighbours in the table are not neighbours in time.
        let host = (number * 7_919) % fleet.hosts;
        let container = fleet.churned + number % (fleet.containers - fleet.churned);
        let event = format!(
            r#"{{"host_id":"{}","pns_inode":{},"time_ms":{time_ms},"pid":{},"ppid":1,"exe":"/usr/bin/service","cmdline":"/usr/bin/service --listen 0.0.0.0:8080","uid":1000}}"#,
            host_id(host as u64),
            pns_of(container as u64),
            number % 32_768,
        );
        loop {
            match producer.send(BaseRecord::<str, str>::to(EVENTS).payload(&event)) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    producer.flush(FLUSH_TIMEOUT)?;
    tell(&format!("{} events are there", fleet.events));
    Ok(())
}

/// Waits for a message. A single poll may end early, with an assignment in place of a message.
pub(super) fn next(consumer: &BaseConsumer) -> anyhow::Result<BorrowedMessage<'_>> {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if let Some(message) = consumer.poll(POLL) {
            return Ok(message?);
        }
    }
    anyhow::bail!("nothing came within {TIMEOUT:?}")
}

/// `quaymaster enrich`, until it is dropped.
struct Enricher(Child);

impl Enricher {
    fn start(binary: &str, kafka: &str) -> anyhow::Result<Self> {
        let child = Command::new(binary)
            .args(["enrich", "--bus", &format!("kafka://{kafka}")])
            .args(["--topics-prefix", "fleet", "--topics-manage", "off"])
            .args(["--input", EVENTS, "--output", OUTPUT])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start quaymaster")?;
        Ok(Self(child))
    }
}

impl Drop for Enricher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The CPU time of a process, of its user and kernel parts.
pub(super) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may hold anything.
    let rest = stat.rsplit_once(") ").context("no stat")?.1;
    let ticks: u64 = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    Ok(Duration::from_millis(
        ticks * 1_000 / rustix::param::clock_ticks_per_second(),
    ))
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').nth(1).context("no statm")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
