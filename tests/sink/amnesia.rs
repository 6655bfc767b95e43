//! What a real Kafka says of itself for a moment, and what librdkafka never recovers from:
//!
//! - Its only broker is fenced, as one is that was just started or whose heartbeats come too late: it tells of its topics
//!   and of no broker. librdkafka then forgets all brokers. It begins with those that it was given again, but for a race that
//!   it loses now and then: then it never asks again. Here it is told not to begin again, which comes to the same each time.
//! - A partition's leader has a later epoch than it ever had, which librdkafka reads now and then from memory that nobody
//!   wrote. What the cluster says after that counts as older, and the partition is never fetched.
//!
//! The broker is a real one; a proxy before it changes its answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use quaymaster::model::Topic;
use quaymaster::sink::access::KafkaAccess;
use quaymaster::sink::kafka::KafkaSink;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::drive::{Driven, delta};
use crate::enrich::{Enricher, INODES, Kafka, until};
use crate::kafka::{Read, first_appearances, kcat};
use crate::lab::{Broker, Steady, fresh_topics};

/// What a client is set to: to ask often (a producer does so every five minutes), and not to begin again.
const SETTINGS: [(&str, &str); 2] = [
    ("topic.metadata.refresh.interval.ms", "500"),
    ("metadata.recovery.strategy", "none"),
];
/// Kafka's number of a request for metadata.
const METADATA: i16 = 3;
/// From this version on such an answer is as it is read here (`MetadataResponse.json` of Kafka).
const METADATA_VERSION: i16 = 10;
/// What was to be fetched is there after this time.
const SETTLED: Duration = Duration::from_secs(4);
/// The largest piece that is taken, in bytes.
const FRAME_MAX: usize = 64 << 20;

/// An epoch that no leader here ever has.
const EPOCH: i32 = 1_000_000;

/// What is wrong with the answers.
#[derive(Clone, Debug, Default)]
enum Wrong {
    #[default]
    Nothing,
    /// No broker is named.
    NoBroker,
    /// The leaders of this topic's partitions have a late epoch.
    Epoch(String),
}

/// What the connections share.
#[derive(Default)]
struct Answers {
    wrong: Mutex<Wrong>,
    /// How many were changed.
    changed: AtomicUsize,
}

impl Answers {
    /// Changes an answer of a compact version, if something is wrong.
    fn change(&self, frame: &mut Vec<u8>) {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = match &*wrong {
            Wrong::Nothing => false,
            Wrong::NoBroker => without_brokers(frame).is_some(),
            Wrong::Epoch(topic) => with_late_epochs(frame, topic) == Some(true),
        };
        if is_changed {
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Stands before the broker until it is dropped.
struct Proxy {
    address: String,
    answers: Arc<Answers>,
    serving: JoinHandle<()>,
}

impl Proxy {
    async fn before(broker: &Steady) -> anyhow::Result<Self> {
        let address = broker.setting("LAB_KAFKA_PROXY")?;
        let server = broker.setting("LAB_KAFKA_PROXIED")?;
        let listener = TcpListener::bind(&address).await;
        let listener = listener.with_context(|| format!("no proxy can stand at {address}"))?;
        let answers = Arc::new(Answers::default());
        let shared = Arc::clone(&answers);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server.clone(), Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            answers,
            serving,
        })
    }

    fn becomes(&self, wrong: Wrong) {
        let mut now = self
            .answers
            .wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *now = wrong;
    }

    /// Waits until so many more answers were changed.
    async fn has_changed(&self, answers: usize) -> anyhow::Result<()> {
        let changed = || self.answers.changed.load(Ordering::Relaxed);
        let before = changed();
        until("the clients have asked for metadata", async || {
            Ok((changed() - before >= answers).then_some(()))
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One connection, to its end.
async fn carry(client: TcpStream, server: String, answers: Arc<Answers>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The versions of the requests for metadata that are not answered yet, by correlation id.
    let asked = Mutex::new(HashMap::new());
    let note = |frame: &mut Vec<u8>| {
        if number::<2>(frame, 0).map(i16::from_be_bytes) == Some(METADATA)
            && let (Some(version), Some(id)) = (number(frame, 2), number::<4>(frame, 4))
        {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.insert(id, i16::from_be_bytes(version));
        }
    };
    let change = |frame: &mut Vec<u8>| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(version) = number::<4>(frame, 0).and_then(|id| asked.remove(&id)) else {
            return;
        };
        if version >= METADATA_VERSION {
            answers.change(frame);
        }
    };
    tokio::select! {
        _ = pump(from_client, to_server, note) => {}
        _ = pump(from_server, to_client, change) => {}
    }
}

/// Passes on pieces, each of which has its length before it.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    change: impl Fn(&mut Vec<u8>),
) -> anyhow::Result<()> {
    loop {
        let length = usize::try_from(from.read_u32().await?)?;
        ensure!(length <= FRAME_MAX, "a piece of {length} bytes");
        let mut frame = vec![0; length];
        from.read_exact(&mut frame).await?;
        change(&mut frame);
        to.write_u32(u32::try_from(frame.len())?).await?;
        to.write_all(&frame).await?;
    }
}

fn number<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

/// Reads an answer from its brokers on.
struct Cursor<'f> {
    frame: &'f [u8],
    at: usize,
}

impl<'f> Cursor<'f> {
    /// Before it are the correlation id, the header's tags (none) and the throttle time.
    const BROKERS_AT: usize = 4 + 1 + 4;

    fn at_brokers(frame: &'f [u8]) -> Self {
        let at = Self::BROKERS_AT;
        Self { frame, at }
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in (0..28).step_by(7) {
            let byte = *self.frame.get(self.at)?;
            self.at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The length of what follows: a string's bytes, an array's elements.
    fn length(&mut self) -> Option<usize> {
        Some(self.varint()?.saturating_sub(1))
    }

    fn string(&mut self) -> Option<&'f [u8]> {
        let length = self.length()?;
        let text = self.frame.get(self.at..self.at + length);
        self.at += length;
        text
    }

    fn no_tags(&mut self) -> Option<()> {
        (self.varint()? == 0).then_some(())
    }

    fn brokers(&mut self) -> Option<()> {
        for _ in 0..self.length()? {
            // The id; host, port, rack.
            self.at += 4;
            self.string()?;
            self.at += 4;
            self.string()?;
            self.no_tags()?;
        }
        Some(())
    }
}

/// Takes the brokers out of an answer.
fn without_brokers(frame: &mut Vec<u8>) -> Option<()> {
    let mut cursor = Cursor::at_brokers(frame);
    cursor.brokers()?;
    let end = cursor.at;
    frame.splice(Cursor::BROKERS_AT..end, [1]);
    Some(())
}

/// Gives the leaders of a topic's partitions a late epoch. Whether the answer has that topic.
fn with_late_epochs(frame: &mut [u8], topic: &str) -> Option<bool> {
    let mut epochs_at = Vec::new();
    let mut cursor = Cursor::at_brokers(frame);
    cursor.brokers()?;
    // The cluster's id, the controller.
    cursor.string()?;
    cursor.at += 4;
    for _ in 0..cursor.length()? {
        // An error; name, id, whether it is internal.
        cursor.at += 2;
        let is_wanted = cursor.string()? == topic.as_bytes();
        cursor.at += 16 + 1;
        for _ in 0..cursor.length()? {
            // An error, index, leader.
            cursor.at += 2 + 4 + 4;
            if is_wanted {
                epochs_at.push(cursor.at);
            }
            cursor.at += 4;
            for _replicas in 0..3 {
                cursor.at += 4 * cursor.length()?;
            }
            cursor.no_tags()?;
        }
        // What one may do.
        cursor.at += 4;
        cursor.no_tags()?;
    }
    for at in &epochs_at {
        frame
            .get_mut(*at..*at + 4)?
            .copy_from_slice(&EPOCH.to_be_bytes());
    }
    Some(!epochs_at.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_kafka_named_no_broker_goes_on_and_loses_nothing() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let proxy = Proxy::before(&broker).await?;
    let topics = fresh_topics();
    let mut access = KafkaAccess::from(&vec![proxy.address.clone()]);
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    access.librdkafka.extend(settings);
    let sink = KafkaSink::new(access, &topics, "quaymaster-test");
    let mut driven = Driven::prepared(Box::new(sink)).await?;
    let sending = driven.send_all((1..=10).map(delta).collect());
    let mut acked = driven.acked(10).await?;
    sending.await?;
    proxy.becomes(Wrong::NoBroker);
    proxy.has_changed(3).await?;
    proxy.becomes(Wrong::Nothing);

    let sending = driven.send_all((11..=20).map(delta).collect());
    acked.extend(driven.acked(10).await?);
    sending.await?;
    assert!(driven.finish().await?.is_empty(), "each is reported once");
    acked.sort_unstable();
    assert!(acked.into_iter().eq(1..=20));
    let read = kcat(&broker.servers, &topics.topic_name(Topic::Deltas)).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    assert!(first_appearances(&mut seqs).into_iter().eq(1..=20));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enricher_whose_kafka_named_no_broker_goes_on_with_events_and_mappings()
-> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let proxy = Proxy::before(&broker).await?;
    let kafka = Kafka::new(&broker.servers).await?;
    let (before, after) = (INODES.start, INODES.start + 1);
    kafka.map(before).await?;
    let settings = SETTINGS
        .map(|(name, value)| format!("{name}={value}"))
        .join(",");
    let more = ["--librdkafka", &settings];
    let arguments = kafka.arguments(&more);
    let bus = format!("kafka://{}", proxy.address);
    let mut enricher = Enricher::start(&bus, &kafka.topics, &arguments)?;
    enricher.says(&["partitions are assigned"]).await?;
    kafka.hand_over_event(0)?;
    until("the first event is joined", async || {
        let joined = kafka.joined().await?;
        Ok(joined.contains_key(&0).then_some(()))
    })
    .await?;
    // Three clients, which ask more than once.
    proxy.becomes(Wrong::NoBroker);
    proxy.has_changed(20).await?;
    proxy.becomes(Wrong::Nothing);

    kafka.map(after).await?;
    for number in [1, 20, 21] {
        kafka.hand_over_event(number)?;
    }
    until("all events are joined", async || {
        let joined = kafka.joined().await?;
        Ok(joined.keys().eq(&[0, 1, 20, 21]).then_some(()))
    })
    .await?;
    enricher
        .says(&["begins anew from what was committed"])
        .await?;
    let log = enricher.stop().await?;
    ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enricher_whose_partitions_are_not_fetched_any_more_begins_anew() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let proxy = Proxy::before(&broker).await?;
    let kafka = Kafka::new(&broker.servers).await?;
    for inode in INODES {
        kafka.map(inode).await?;
    }
    let bus = format!("kafka://{}", proxy.address);
    proxy.becomes(Wrong::Epoch(kafka.topics.topic_name(Topic::Pns)));
    let mut enricher = Enricher::start(&bus, &kafka.topics, &kafka.arguments(&[]))?;
    proxy.has_changed(1).await?;
    tokio::time::sleep(SETTLED).await;
    ensure!(
        !enricher.log()?.contains("the table is filled"),
        "nothing is fetched"
    );
    proxy.becomes(Wrong::Epoch(kafka.input().to_owned()));
    enricher.says(&["the table is filled"]).await?;
    enricher.says(&["partitions are assigned"]).await?;
    kafka.events(0..60).await?;
    tokio::time::sleep(SETTLED).await;
    ensure!(kafka.joined().await?.is_empty(), "nothing is fetched");
    proxy.becomes(Wrong::Nothing);

    kafka.joined_all(60).await?;
    enricher.says(&["is not fetched any more"]).await?;
    let log = enricher.stop().await?;
    ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}
