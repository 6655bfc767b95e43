//! A Kafka whose only broker is fenced for a while, as one is that was just started or whose heartbeats come too late:
//! it tells of its topics and of no broker. librdkafka then forgets all brokers. It begins with those that it was given
//! again, but for a race that it loses now and then: then it never asks again. Here it is told not to begin again, which
//! comes to the same each time.
//!
//! The broker is a real one; a proxy before it takes the brokers out of its answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
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
/// From this version on such an answer is in the compact encoding (`MetadataResponse.json` of Kafka).
const METADATA_COMPACT: i16 = 9;
/// The largest piece that is taken, in bytes.
const FRAME_MAX: usize = 64 << 20;

/// What the connections share.
#[derive(Default)]
struct Fence {
    is_up: AtomicBool,
    /// Answers that named no broker.
    answers: AtomicUsize,
}

/// Stands before the broker until it is dropped.
struct Proxy {
    address: String,
    fence: Arc<Fence>,
    serving: JoinHandle<()>,
}

impl Proxy {
    async fn before(broker: &Steady) -> anyhow::Result<Self> {
        let address = broker.setting("LAB_KAFKA_PROXY")?;
        let server = broker.setting("LAB_KAFKA_PROXIED")?;
        let listener = TcpListener::bind(&address).await;
        let listener = listener.with_context(|| format!("no proxy can stand at {address}"))?;
        let fence = Arc::new(Fence::default());
        let shared = Arc::clone(&fence);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server.clone(), Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            fence,
            serving,
        })
    }

    /// Names no broker until so many more answers have been given.
    async fn fence(&self, answers: usize) -> anyhow::Result<()> {
        let before = self.fence.answers.load(Ordering::Relaxed);
        self.fence.is_up.store(true, Ordering::Relaxed);
        until("the clients have asked for the brokers", async || {
            let given = self.fence.answers.load(Ordering::Relaxed) - before;
            Ok((given >= answers).then_some(()))
        })
        .await?;
        self.fence.is_up.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One connection, to its end.
async fn carry(client: TcpStream, server: String, fence: Arc<Fence>) {
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
    let hide = |frame: &mut Vec<u8>| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(version) = number::<4>(frame, 0).and_then(|id| asked.remove(&id)) else {
            return;
        };
        if version >= METADATA_COMPACT
            && fence.is_up.load(Ordering::Relaxed)
            && without_brokers(frame).is_some()
        {
            fence.answers.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = pump(from_client, to_server, note) => {}
        _ = pump(from_server, to_client, hide) => {}
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
        anyhow::ensure!(length <= FRAME_MAX, "a piece of {length} bytes");
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

/// Takes the brokers out of an answer of a compact version.
fn without_brokers(frame: &mut Vec<u8>) -> Option<()> {
    // The correlation id, the header's tags (none), the throttle time.
    let brokers_at = 4 + 1 + 4;
    let mut at = brokers_at;
    let count = varint(frame, &mut at)?.checked_sub(1)?;
    for _ in 0..count {
        at += 4;
        let host = varint(frame, &mut at)?.checked_sub(1)?;
        at += host + 4;
        let rack = varint(frame, &mut at)?.saturating_sub(1);
        at += rack;
        let tags = varint(frame, &mut at)?;
        (tags == 0).then_some(())?;
    }
    frame.get(at)?;
    frame.splice(brokers_at..at, [1]);
    Some(())
}

fn varint(frame: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let byte = *frame.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
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
    proxy.fence(3).await?;

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
    proxy.fence(20).await?;

    kafka.map(after).await?;
    for number in [1, 20, 21] {
        kafka.hand_over_event(number)?;
    }
    until("all events are joined", async || {
        let joined = kafka.joined().await?;
        Ok(joined.keys().eq(&[0, 1, 20, 21]).then_some(()))
    })
    .await?;
    enricher.says(&["named none of its brokers"]).await?;
    let log = enricher.stop().await?;
    anyhow::ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}
