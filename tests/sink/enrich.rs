//! `quaymaster enrich`, the real binary, between real topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use quaymaster::model::Topic;
use quaymaster::sink::TopicSettings;
use quaymaster::sink::kafka::topics::Admin;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::drive::{WAIT, now_ms};
use crate::kafka::kcat;
use crate::lab::{Broker, fresh_topics};

/// Containers, by the numbers of their namespaces.
pub(crate) const INODES: std::ops::Range<u64> = 4_026_540_000..4_026_540_020;

/// Partitions of the input.
const PARTITIONS: i32 = 6;

/// A member that runs. One that is dropped before it was ended is killed, and shows its log: its test failed.
pub(crate) struct Enricher {
    child: Child,
    log: tempfile::NamedTempFile,
    is_ended: bool,
}

impl Enricher {
    pub(crate) fn start(
        bus: &str,
        topics: &TopicSettings,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
            .args(["enrich", "--bus", bus, "--topics-prefix", &topics.prefix])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log.path())?)
            .spawn()?;
        Ok(Self {
            child,
            log,
            is_ended: false,
        })
    }

    pub(crate) fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log.path())?)
    }

    /// Waits until its log has a line with all these words.
    pub(crate) async fn says(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        until(&format!("the log says {words:?}"), async || {
            let log = self.log()?;
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("it ended with {status}: {log}");
            }
            Ok(log.lines().any(has).then_some(()))
        })
        .await
    }

    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.is_ended = true;
        Ok(())
    }

    /// Ends it with SIGTERM, and gives its log.
    pub(crate) async fn stop(mut self) -> anyhow::Result<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status: ExitStatus = until("it ends", async || Ok(self.child.try_wait()?)).await?;
        let log = self.log()?;
        self.is_ended = true;
        ensure!(status.success(), "it ended with {status}: {log}");
        Ok(log)
    }
}

impl Drop for Enricher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.is_ended {
            crate::lab::report(&self.log().unwrap_or_default());
        }
    }
}

/// Looks until there is something.
pub(crate) async fn until<T>(
    what: &str,
    look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    within(WAIT, what, look).await
}

async fn within<T>(
    wait: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + wait;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {wait:?}: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A mapping as a collector puts it.
pub(crate) fn mapping(host: &str, inode: u64, valid_from_ms: i64) -> String {
    json!({
        "schema_version": 1, "host_id": host, "boot_id": "b", "pns": format!("pid:[{inode}]"), "pns_inode": inode,
        "pns_id": inode.to_string(), "container_id": format!("c{inode}"), "container_name": format!("name-{inode}"),
        "runtime": "docker", "image_name": "busybox", "pod_name": "", "pod_namespace": "", "pod_uid": "", "pid": 7,
        "valid_from_ms": valid_from_ms, "valid_to_ms": null, "expires_at_ms": now_ms() + 3_600_000, "shared": false,
        "members": [], "epoch": "e", "seq": 1
    })
    .to_string()
}

/// A process event in the form of data type 5050; `number` tells it from the others.
pub(crate) fn event(host: &str, inode: u64, number: usize) -> String {
    json!({
        "schema_version": 1, "data_type": 5050, "timestamp": now_ms() / 1_000, "number": number,
        "fields": {"pid": "7", "host_id": host, "pns_inode": inode.to_string(), "pid_ns": format!("pid:[{inode}]")}
    })
    .to_string()
}

/// The namespace that an event with this number is of.
fn inode_of(number: usize) -> u64 {
    INODES.start + number as u64 % (INODES.end - INODES.start)
}

/// An event that does not compress, of so many bytes.
pub(crate) fn large_event(inode: u64, number: usize, bytes: usize) -> String {
    let event = event("h", inode, number);
    let mut text = event.strip_suffix('}').unwrap_or(&event).to_owned();
    text.push_str(",\"noise\":\"");
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    while text.len() < bytes - 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let letter = b'#' + u8::try_from(state >> 32 & 0x3f).unwrap_or(0);
        text.push(if letter == b'\\' {
            ' '
        } else {
            char::from(letter)
        });
    }
    text.push_str("\"}");
    text
}

/// What has come of the events that were handed over.
#[derive(Default)]
struct Deliveries {
    failure: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    fn check(&self) -> anyhow::Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(failure.is_none(), "not delivered: {failure:?}");
        Ok(())
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
    }
}

pub(crate) struct Kafka {
    servers: Vec<String>,
    pub(crate) topics: TopicSettings,
    producer: ThreadedProducer<Deliveries>,
    input: String,
    output: String,
}

impl Kafka {
    pub(crate) async fn new(servers: &[String]) -> anyhow::Result<Self> {
        let topics = fresh_topics();
        Admin::new(servers, "test")?.create(&topics).await?;
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers.join(","));
        let (input, output) = (
            format!("{}.in", topics.prefix),
            format!("{}.out", topics.prefix),
        );
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        let topic = NewTopic::new(&input, PARTITIONS, TopicReplication::Fixed(1));
        for created in admin.create_topics(&[topic], &AdminOptions::new()).await? {
            created.map_err(|(name, code)| anyhow::anyhow!("`{name}` is not created: {code}"))?;
        }
        let producer = config
            .clone()
            .set("message.max.bytes", "4000000")
            // Each event once, also where the broker is killed.
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .create_with_context(Deliveries::default())?;
        Ok(Self {
            servers: servers.to_vec(),
            topics,
            producer,
            input,
            output,
        })
    }

    pub(crate) fn input(&self) -> &str {
        &self.input
    }

    pub(crate) fn bus(&self) -> String {
        format!("kafka://{}", self.servers.join(","))
    }

    pub(crate) fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let routes = [
            "--input",
            &self.input,
            "--output",
            &self.output,
            "--group",
            &self.input,
        ];
        [&routes[..], more].concat()
    }

    fn hand_over(&self, topic: &str, key: &str, value: Option<&str>) -> anyhow::Result<()> {
        let mut record = BaseRecord::<str, str>::to(topic).key(key);
        if let Some(value) = value {
            record = record.payload(value);
        }
        let sent = self.producer.send(record);
        sent.map_err(|(error, _)| anyhow::anyhow!("not sent to `{topic}`: {error}"))
    }

    async fn put(&self, topic: &str, key: &str, value: Option<&str>) -> anyhow::Result<()> {
        self.hand_over(topic, key, value)?;
        self.delivered().await
    }

    pub(crate) async fn delivered(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        while self.producer.in_flight_count() > 0 {
            ensure!(Instant::now() < deadline, "not delivered within {WAIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.producer.context().check()
    }

    pub(crate) async fn map(&self, inode: u64) -> anyhow::Result<()> {
        let topic = self.topics.topic_name(Topic::Pns);
        let value = mapping("h", inode, now_ms() - 60_000);
        self.put(&topic, &format!("h/{inode}"), Some(&value)).await
    }

    pub(crate) async fn events(&self, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        for number in numbers {
            self.hand_over_event(number)?;
            self.delivered().await?;
        }
        Ok(())
    }

    /// Sends an event as soon as there is a broker.
    pub(crate) fn hand_over_event(&self, number: usize) -> anyhow::Result<()> {
        let event = event("h", inode_of(number), number);
        self.hand_over(&self.input, &format!("h/{number}"), Some(&event))
    }

    /// What is in the output, by number; each has its namespace's container.
    pub(crate) async fn joined(&self) -> anyhow::Result<BTreeMap<u64, usize>> {
        let mut numbers = BTreeMap::new();
        for read in kcat(&self.servers, &self.output).await? {
            let payload = read.payload.context("an event has a text")?;
            let Ok(value) = serde_json::from_str::<Value>(&payload) else {
                continue;
            };
            let Some(number) = value["number"].as_u64() else {
                continue;
            };
            let inode = value["fields"]["pns_inode"].as_str().unwrap_or_default();
            let container = &value["container"]["container_id"];
            ensure!(container == &format!("c{inode}"), "{payload}");
            *numbers.entry(number).or_insert(0) += 1;
        }
        Ok(numbers)
    }

    pub(crate) async fn joined_all(&self, total: usize) -> anyhow::Result<BTreeMap<u64, usize>> {
        let mut missing = Vec::new();
        // A partition that librdkafka lets lie is missed after half a minute.
        let all = within(3 * WAIT, "all events are in the output", async || {
            let numbers = self.joined().await?;
            missing = (0..total as u64)
                .filter(|number| !numbers.contains_key(number))
                .collect();
            Ok((numbers.len() == total).then_some(numbers))
        })
        .await;
        all.with_context(|| format!("missing: {missing:?}, committed: {:?}", self.committed()))
    }

    /// How many offsets of the input the group has committed.
    pub(crate) fn committed(&self) -> anyhow::Result<i64> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.servers.join(","))
            .set("group.id", &self.input)
            .create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.input, 0, PARTITIONS - 1);
        let committed = consumer.committed_offsets(list, WAIT)?;
        let offsets = committed
            .elements()
            .into_iter()
            .map(|one| match one.offset() {
                Offset::Offset(offset) => offset,
                Offset::Beginning
                | Offset::End
                | Offset::Stored
                | Offset::Invalid
                | Offset::OffsetTail(_) => 0,
            });
        Ok(offsets.sum())
    }
}

/// A stream of events and the bucket of mappings.
pub(crate) struct Nats {
    pub(crate) topics: TopicSettings,
    pub(crate) bus: String,
    jetstream: async_nats::jetstream::Context,
    bucket: async_nats::jetstream::kv::Store,
    input: String,
    from: String,
    output: String,
}

/// What was found in the output up to a sequence.
#[derive(Default)]
pub(crate) struct Read {
    sequence: u64,
    /// The numbers of the events that have their container.
    pub(crate) joined: BTreeSet<u64>,
    others: BTreeSet<String>,
}

impl Read {
    /// How many messages the output has.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Nats {
    pub(crate) async fn new(servers: &[String]) -> anyhow::Result<Self> {
        let topics = fresh_topics();
        let mut sink = quaymaster::sink::nats::NatsSink::new(servers, &topics, "test");
        sink.create_streams().await?;
        let flat = topics.prefix.replace('.', "_");
        let input = format!("{flat}_in");
        let from = format!("{input}.>");
        let client = async_nats::connect(servers.join(",")).await?;
        let jetstream = async_nats::jetstream::new(client);
        jetstream
            .create_stream(async_nats::jetstream::stream::Config {
                name: format!("{flat}_events"),
                subjects: vec![from.clone()],
                ..Default::default()
            })
            .await?;
        Ok(Self {
            bucket: jetstream.get_key_value(format!("{flat}-pns")).await?,
            bus: format!("nats://{}", servers.join(",")),
            output: format!("{flat}_out"),
            topics,
            jetstream,
            input,
            from,
        })
    }

    pub(crate) fn arguments(&self) -> [&str; 6] {
        let (from, to) = (self.from.as_str(), self.output.as_str());
        ["--input", from, "--output", to, "--grace", "60s"]
    }

    pub(crate) async fn map(&self, inode: u64) -> anyhow::Result<()> {
        let value = mapping("h", inode, now_ms() - 60_000);
        self.bucket.put(format!("h.{inode}"), value.into()).await?;
        Ok(())
    }

    /// Sends events; one that has no answer is sent again, until there is a server.
    pub(crate) async fn events(&self, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        for number in numbers {
            let event = event("h", inode_of(number), number);
            let subject = format!("{}.h.{number}", self.input);
            until("an event is taken", async || {
                let sent = self
                    .jetstream
                    .publish(subject.clone(), event.clone().into());
                match sent.await {
                    Ok(answer) => Ok(answer.await.ok()),
                    Err(_) => Ok(None),
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Reads on in the output, as far as it goes.
    pub(crate) async fn read(&self, read: &mut Read) -> anyhow::Result<()> {
        let Ok(stream) = self.jetstream.get_stream(self.output.to_uppercase()).await else {
            return Ok(());
        };
        while let Ok(message) = stream.get_raw_message(read.sequence + 1).await {
            read.sequence += 1;
            let value = serde_json::from_slice::<Value>(&message.payload).unwrap_or_default();
            let inode = value["fields"]["pns_inode"].as_str().unwrap_or_default();
            if value["container"]["container_id"] == format!("c{inode}") {
                read.joined.extend(value["number"].as_u64());
            } else {
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                read.others.insert(text);
            }
        }
        Ok(())
    }

    /// Up to where the group has acknowledged the input.
    pub(crate) async fn acknowledged(&self) -> anyhow::Result<u64> {
        let stream = format!("{}_events", self.topics.prefix.replace('.', "_"));
        let stream = self.jetstream.get_stream(stream).await?;
        let consumer: async_nats::jetstream::consumer::PullConsumer = stream
            .get_consumer("quaymaster-enrich")
            .await
            .map_err(anyhow::Error::msg)?;
        Ok(consumer.cached_info().ack_floor.stream_sequence)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_one_that_is_killed_loses_nothing() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let kafka = Kafka::new(&broker.servers).await?;
    for inode in INODES {
        kafka.map(inode).await?;
    }
    let mut first = Enricher::start(&kafka.bus(), &kafka.topics, &kafka.arguments(&[]))?;
    first
        .says(&["partitions are assigned", "0, 1, 2, 3, 4, 5"])
        .await?;
    let mut second = Enricher::start(&kafka.bus(), &kafka.topics, &kafka.arguments(&[]))?;
    let sending = kafka.events(0..1_500);
    let joining = async {
        first.says(&["partitions are taken away"]).await?;
        second.says(&["partitions are assigned", "["]).await
    };
    tokio::try_join!(sending, joining)?;
    kafka.events(1_500..2_000).await?;
    first.kill()?;
    kafka.events(2_000..2_500).await?;
    kafka.joined_all(2_500).await?;
    let log = second.stop().await?;
    ensure!(!log.contains("ERROR"), "{log}");
    ensure!(kafka.committed()? == 2_500, "{}", kafka.committed()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn late_mappings_foreign_messages_and_bad_events_never_stop_it() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let kafka = Kafka::new(&broker.servers).await?;
    let table = kafka.topics.topic_name(Topic::Pns);
    for (key, value) in [
        ("what?", Some("not a mapping")),
        ("h/5", Some("{}")),
        ("h/6", Some("[1,2]")),
        ("", None),
    ] {
        kafka.put(&table, key, value).await?;
    }
    let inode = INODES.start;
    kafka.map(inode).await?;
    let arguments = kafka.arguments(&["--on-invalid", "topic", "--grace", "60s"]);
    let mut enricher = Enricher::start(&kafka.bus(), &kafka.topics, &arguments)?;
    enricher.says(&["partitions are assigned"]).await?;
    let no_number = r#"{"fields":{"host_id":"h","pns_inode":"soon"}}"#;
    let bad = ["not json", "{}", no_number, "[]", "\u{0}"];
    for text in bad {
        kafka.put(&kafka.input, "k", Some(text)).await?;
    }
    // Fits as it is, and not with what is added.
    let large = large_event(inode, 1, 1_048_400);
    kafka.put(&kafka.input, "k", Some(&large)).await?;
    // Comes before its mapping.
    kafka
        .put(&kafka.input, "k", Some(&event("h", inode + 1, 2)))
        .await?;
    kafka
        .put(&kafka.input, "k", Some(&event("h", inode, 3)))
        .await?;
    let numbers = |reads: Vec<crate::kafka::Read>| -> anyhow::Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for read in reads {
            let value: Value = serde_json::from_str(&read.payload.unwrap_or_default())?;
            numbers.extend(value["number"].as_u64());
        }
        Ok(numbers)
    };
    until("the others do not wait for the early one", async || {
        let found = numbers(kcat(&kafka.servers, &kafka.output).await?)?;
        Ok((found == BTreeSet::from([1, 3])).then_some(()))
    })
    .await?;
    kafka.map(inode + 1).await?;
    until("the early one is there", async || {
        let found = numbers(kcat(&kafka.servers, &kafka.output).await?)?;
        Ok(found.contains(&2).then_some(()))
    })
    .await?;
    let out = kcat(&kafka.servers, &kafka.output).await?;
    let texts: Vec<_> = out
        .iter()
        .filter_map(|read| read.payload.as_deref())
        .collect();
    ensure!(
        texts.contains(&large.as_str()),
        "the large one goes out as it came"
    );
    let early = format!("\"container_id\":\"c{}\"", inode + 1);
    ensure!(texts.iter().any(|text| text.contains(&early)), "{texts:?}");

    let aside = until("the bad ones are put aside", async || {
        let aside = kcat(&kafka.servers, &format!("{}.invalid", kafka.output)).await?;
        Ok((aside.len() == bad.len()).then_some(aside))
    })
    .await?;
    let told: BTreeSet<_> = aside.iter().map(|read| read.headers.join(" ")).collect();
    for reason in ["not_json", "not_an_object", "no_host", "bad_pns"] {
        let header = format!("quaymaster-reason {reason}");
        ensure!(told.contains(&header), "{reason} is not in {told:?}");
    }
    enricher.stop().await?;
    ensure!(kafka.committed()? == 8, "{}", kafka.committed()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_members_share_a_durable_consumer_and_lose_nothing() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let nats = Nats::new(&broker.servers).await?;
    for inode in INODES.skip(1) {
        nats.map(inode).await?;
    }
    nats.bucket.put("foreign", "not a mapping".into()).await?;
    nats.bucket.delete("h.5").await?;
    let (topics, jetstream) = (&nats.topics, &nats.jetstream);
    let arguments = nats.arguments();
    let bus = &nats.bus;
    let mut first = Enricher::start(bus, topics, &arguments)?;
    first.says(&["the table is filled", "mappings=19"]).await?;
    let mut second = Enricher::start(bus, topics, &arguments)?;
    second.says(&["the table is filled"]).await?;
    let total = 600;
    let large = large_event(INODES.start + 1, total + 1, 1_048_400);
    nats.events(0..300).await?;
    let subject = format!("{}.h.x", nats.input);
    for text in ["not json", &large] {
        let sent = jetstream.publish(subject.clone(), text.to_owned().into());
        sent.await?.await?;
    }
    // Those of the first namespace have come before their mapping.
    nats.map(INODES.start).await?;
    nats.events(300..total).await?;
    let mut read = Read::default();
    until("all events are in the output", async || {
        nats.read(&mut read).await?;
        let has_both = ["not json", &large].map(|text| read.others.contains(text));
        Ok((read.joined.len() == total && has_both == [true; 2]).then_some(()))
    })
    .await?;
    for member in [first, second] {
        let log = member.stop().await?;
        ensure!(!log.contains("ERROR"), "{log}");
    }
    Ok(())
}
