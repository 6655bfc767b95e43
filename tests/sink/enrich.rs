//! `quaymaster enrich`, the real binary, between real topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use quaymaster::model::Topic;
use quaymaster::sink::TopicSettings;
use quaymaster::sink::kafka::topics::Admin;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::drive::{WAIT, now_ms};
use crate::kafka::kcat;
use crate::lab::{Broker, fresh_topics};

/// Containers, by the numbers of their namespaces.
const INODES: std::ops::Range<u64> = 4_026_540_000..4_026_540_020;

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
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {WAIT:?}: {what}");
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

struct Kafka {
    servers: Vec<String>,
    topics: TopicSettings,
    producer: ThreadedProducer<DefaultProducerContext>,
    input: String,
    output: String,
}

impl Kafka {
    async fn new(servers: &[String]) -> anyhow::Result<Self> {
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
            .set("partitioner", "murmur2_random")
            .create()?;
        Ok(Self {
            servers: servers.to_vec(),
            topics,
            producer,
            input,
            output,
        })
    }

    fn bus(&self) -> String {
        format!("kafka://{}", self.servers.join(","))
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
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

    async fn delivered(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        while self.producer.in_flight_count() > 0 {
            ensure!(Instant::now() < deadline, "not delivered within {WAIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn map(&self, inode: u64) -> anyhow::Result<()> {
        let topic = self.topics.topic_name(Topic::Pns);
        let value = mapping("h", inode, now_ms() - 60_000);
        self.put(&topic, &format!("h/{inode}"), Some(&value)).await
    }

    async fn events(&self, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        for number in numbers {
            let inode = INODES.start + number as u64 % (INODES.end - INODES.start);
            let event = event("h", inode, number);
            self.put(&self.input, &format!("h/{number}"), Some(&event))
                .await?;
        }
        Ok(())
    }

    /// What is in the output, by number; each has its namespace's container.
    async fn joined(&self) -> anyhow::Result<BTreeMap<u64, usize>> {
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

    async fn joined_all(&self, total: usize) -> anyhow::Result<BTreeMap<u64, usize>> {
        until("all events are in the output", async || {
            let numbers = self.joined().await?;
            Ok((numbers.len() == total).then_some(numbers))
        })
        .await
    }

    /// How many offsets of the input the group has committed.
    fn committed(&self) -> anyhow::Result<i64> {
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
    let topics = fresh_topics();
    let mut sink = quaymaster::sink::nats::NatsSink::new(&broker.servers, &topics, "test");
    sink.create_streams().await?;
    let flat = topics.prefix.replace('.', "_");
    let (input, output) = (format!("{flat}_in"), format!("{flat}_out"));
    let client = async_nats::connect(broker.servers.join(",")).await?;
    let jetstream = async_nats::jetstream::new(client);
    jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: format!("{flat}_events"),
            subjects: vec![format!("{input}.>")],
            ..Default::default()
        })
        .await?;
    let bucket = jetstream.get_key_value(format!("{flat}-pns")).await?;
    for inode in INODES.skip(1) {
        let value = mapping("h", inode, now_ms() - 60_000);
        bucket.put(format!("h.{inode}"), value.into()).await?;
    }
    bucket.put("foreign", "not a mapping".into()).await?;
    bucket.delete("h.5").await?;
    let bus = format!("nats://{}", broker.servers.join(","));
    let from = format!("{input}.>");
    let arguments = ["--input", &from, "--output", &output, "--grace", "60s"];
    let mut first = Enricher::start(&bus, &topics, &arguments)?;
    first.says(&["the table is filled", "mappings=19"]).await?;
    let mut second = Enricher::start(&bus, &topics, &arguments)?;
    second.says(&["the table is filled"]).await?;
    let total = 600;
    let large = large_event(INODES.start + 1, total + 1, 1_048_400);
    let send = async |numbers: std::ops::Range<usize>| -> anyhow::Result<()> {
        for number in numbers {
            let inode = INODES.start + number as u64 % (INODES.end - INODES.start);
            let subject = format!("{input}.h.{number}");
            let event = event("h", inode, number);
            jetstream.publish(subject, event.into()).await?.await?;
        }
        Ok(())
    };
    send(0..300).await?;
    jetstream
        .publish(format!("{input}.h.x"), "not json".into())
        .await?
        .await?;
    jetstream
        .publish(format!("{input}.h.x"), large.clone().into())
        .await?
        .await?;
    // Those of the first namespace have come before their mapping.
    let late = INODES.start;
    let value = mapping("h", late, now_ms() - 60_000);
    bucket.put(format!("h.{late}"), value.into()).await?;
    send(300..total).await?;
    let stream = until("there is an output", async || {
        Ok(jetstream.get_stream(output.to_uppercase()).await.ok())
    })
    .await?;
    let mut joined = BTreeSet::new();
    let (mut next, mut has_large, mut has_bad) = (1, false, false);
    until("all events are in the output", async || {
        while let Ok(message) = stream.get_raw_message(next).await {
            next += 1;
            has_large |= message.payload == large.as_bytes();
            has_bad |= &*message.payload == b"not json";
            let Ok(value) = serde_json::from_slice::<Value>(&message.payload) else {
                continue;
            };
            let inode = value["fields"]["pns_inode"].as_str().unwrap_or_default();
            if value["container"]["container_id"] == format!("c{inode}") {
                joined.extend(value["number"].as_u64());
            }
        }
        Ok((joined.len() == total && has_large && has_bad).then_some(()))
    })
    .await?;
    for member in [first, second] {
        let log = member.stop().await?;
        ensure!(!log.contains("ERROR"), "{log}");
    }
    Ok(())
}
