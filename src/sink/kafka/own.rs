//! What the compacted topics hold of one host.
//!
//! A key is `host_id/item`, and its partition follows from all of it: every partition is read from its beginning, at a
//! bounded rate. The status's key is the host alone: it is looked for near the end of its one partition.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset;
use tokio_util::sync::CancellationToken;

use super::read::{Reader, unreadable};
use crate::model::Topic;
use crate::sink::reap::REAP_MAX;
use crate::sink::{OwnKey, STATUSES_READ_MAX, SinkError, TopicSettings};

/// Bytes a second that are read of the compacted topics: a fleet that starts at once must not drown its brokers.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;

/// The longest rest for the sake of the rate, before it is looked whether to stop.
const REST_MAX: Duration = Duration::from_millis(200);

/// The keys of a host whose newest message is a value.
pub(super) async fn keys(
    base: &ClientConfig,
    topics: &TopicSettings,
    host_id: &str,
) -> Result<Vec<OwnKey>, SinkError> {
    let mut all = Vec::new();
    for topic in [Topic::Records, Topic::Pns] {
        let name = topics.topic_name(topic);
        let start = format!("{host_id}/");
        let items = on_a_thread(base, &name, move |reader, name| {
            items_of(&reader, name, &start)
        })
        .await?;
        all.extend(items.into_iter().map(|item| OwnKey {
            topic,
            item: Arc::from(item),
        }));
    }
    Ok(all)
}

/// The status messages of a host near the end of its partition, the oldest first.
pub(super) async fn statuses(
    base: &ClientConfig,
    topics: &TopicSettings,
    host_id: &str,
) -> Result<Vec<Vec<u8>>, SinkError> {
    let name = topics.topic_name(Topic::Status);
    let host_id = host_id.to_owned();
    on_a_thread(base, &name, move |reader, name| {
        let partitions = reader.partitions(name)?;
        let Some(partition) = partition_of(host_id.as_bytes(), partitions.len()) else {
            return Ok(Vec::new());
        };
        let (low, high) = reader.ends(name, partition)?;
        let from = low.max(high - STATUSES_READ_MAX);
        let mut found = Vec::new();
        if from == high {
            return Ok(found);
        }
        reader.read(name, &[(partition, Offset::Offset(from))], &mut |message| {
            if message.key() == Some(host_id.as_bytes())
                && let Some(value) = message.payload()
            {
                found.push(value.to_vec());
            }
            if message.offset() + 1 < high {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(found)
    })
    .await
}

fn items_of(reader: &Reader, topic: &str, start: &str) -> Result<BTreeSet<String>, KafkaError> {
    let from: Vec<_> = reader
        .partitions(topic)?
        .into_iter()
        .map(|partition| (partition, Offset::Beginning))
        .collect();
    let mut items = BTreeSet::new();
    let (began, mut bytes) = (Instant::now(), 0_u64);
    let is_whole = reader.read(topic, &from, &mut |message| {
        bytes += (message.key_len() + message.payload_len()) as u64;
        rest(began, bytes);
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
        if let Some(item) = key.and_then(|key| key.strip_prefix(start)) {
            if message.payload().is_none() {
                items.remove(item);
            } else if items.len() < REAP_MAX {
                items.insert(item.to_owned());
            }
        }
        ControlFlow::Continue(())
    })?;
    if is_whole {
        Ok(items)
    } else {
        Err(KafkaError::MessageConsumption(Code::Partial))
    }
}

/// Sleeps for as long as more was read than the rate allows.
fn rest(began: Instant, bytes: u64) {
    let due = Duration::from_millis(bytes * 1_000 / BYTES_PER_SECOND);
    let ahead = due.saturating_sub(began.elapsed());
    // Small steps would cost more than they rest.
    if ahead >= REST_MAX / 4 {
        std::thread::sleep(ahead.min(REST_MAX));
    }
}

/// Reads on a thread of the blocking pool, which ends within a second when this is dropped.
async fn on_a_thread<T: Send + 'static>(
    base: &ClientConfig,
    name: &str,
    read: impl FnOnce(Reader, &str) -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, SinkError> {
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    let tried = format!("failed to read the topic `{name}` back");
    let (base, name, topic) = (base.clone(), name.to_owned(), name.to_owned());
    let reading =
        tokio::task::spawn_blocking(move || read(Reader::open(&base, stop)?, name.as_str()));
    match reading.await {
        Ok(result) => result.map_err(|source| unreadable(&topic, tried, source)),
        Err(source) => Err(SinkError::Unavailable {
            message: tried,
            source: Some(Box::new(source)),
        }),
    }
}

/// The partition of a key, as Java's default partitioner and librdkafka's `murmur2_random` choose it.
fn partition_of(key: &[u8], partitions: usize) -> Option<i32> {
    let partitions = u32::try_from(partitions).ok().filter(|count| *count > 0)?;
    i32::try_from((murmur2(key) & 0x7fff_ffff) % partitions).ok()
}

/// Austin Appleby's MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = 0x9747_b28c ^ length;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = word
            .iter()
            .rev()
            .fold(0, |k: u32, byte| (k << 8) | u32::from(*byte))
            .wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest
            .iter()
            .rev()
            .fold(0, |k: u32, byte| (k << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn the_hash_is_that_of_kafka() {
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }
}
