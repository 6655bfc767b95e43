//! Tombstones for what expired long ago in the compacted topics.
//!
//! Kafka cannot write on a condition: a row that its host puts again between the reading and the tombstone is
//! deleted, and comes back with that host's next refresh. It takes a host that was silent for a day and returns
//! within those seconds.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::Offset;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{self, BATCH_BYTES_MAX, FORSAKEN, Notice, Order, Producer};
use super::errors::{denied_write, is_swept_out};
use super::read::{Reader, unreadable};
use crate::model::Topic;
use crate::sink::access::KafkaAccess;
use crate::sink::reap::{CE_TYPE, READ_MAX, REAP_MAX, Reaped, is_expired};
use crate::sink::{SinkError, TopicSettings};

/// Time for a tombstone to be acknowledged.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Tombstones on their way at once.
const IN_FLIGHT_MAX: usize = 1_000;

/// Reads the compacted topics from their beginning and tombstones the keys whose newest value expired before
/// `before_ms` (unix milliseconds). Dropped midway, the reading ends within a second.
///
/// # Errors
/// [`SinkError::Unavailable`] where the cluster does not answer or does not take the tombstones, [`SinkError::Denied`]
/// where it does not let this user read or write.
pub async fn reap(
    access: impl Into<KafkaAccess>,
    settings: &TopicSettings,
    client_id: &str,
    before_ms: i64,
) -> Result<Vec<Reaped>, SinkError> {
    let access = access.into();
    let mut all = Vec::new();
    for topic in [Topic::Records, Topic::Pns, Topic::Status] {
        let name = settings.topic_name(topic);
        let config = client::base_config(&access, client_id)?;
        let stop = CancellationToken::new();
        let _dropped = stop.clone().drop_guard();
        let reading = {
            let name = name.clone();
            tokio::task::spawn_blocking(move || {
                expired_keys(&config, stop, topic, &name, before_ms)
            })
        };
        let tried = format!("failed to read the topic `{name}`");
        let (keys, read) = match reading.await {
            Ok(result) => result.map_err(|source| unreadable(&name, tried, source))?,
            Err(source) => return Err(unavailable(tried, source)),
        };
        let tombstoned = keys.len() as u64;
        if !keys.is_empty() {
            let config = client::base_config(&access, client_id)?;
            let tried = || format!("failed to start a producer for the topic `{name}`");
            let (producer, notices) =
                client::open_producer(&config, BATCH_BYTES_MAX, Order::Gapless)
                    .map_err(|source| unavailable(tried(), source))?;
            tombstone(&producer, notices, &name, keys).await?;
        }
        all.push(Reaped {
            name,
            read,
            tombstoned,
        });
    }
    Ok(all)
}

/// The keys of a topic whose newest value has expired, and how many messages were read.
fn expired_keys(
    config: &rdkafka::ClientConfig,
    stop: CancellationToken,
    topic: Topic,
    name: &str,
    before_ms: i64,
) -> Result<(BTreeSet<Vec<u8>>, u64), KafkaError> {
    let reader = Reader::open(config, stop)?;
    let partitions = reader.partitions(name)?;
    let from: Vec<_> = partitions
        .into_iter()
        .map(|partition| (partition, Offset::Beginning))
        .collect();
    let (mut keys, mut read) = (BTreeSet::new(), 0);
    let is_whole = reader.read(name, &from, &mut |message| {
        read += 1;
        let key = message.key().unwrap_or_default();
        if message
            .payload()
            .is_some_and(|value| is_expired(topic, value, before_ms))
        {
            if keys.len() < REAP_MAX {
                keys.insert(key.to_vec());
            }
        } else {
            keys.remove(key);
        }
        if read < READ_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    if !is_whole {
        // Without the rest of a partition, no key of it may be called expired.
        return Err(KafkaError::MessageConsumption(Code::Partial));
    }
    Ok((keys, read))
}

/// Writes a tombstone for each key, and waits until all are acknowledged.
async fn tombstone(
    producer: &Producer,
    mut notices: mpsc::UnboundedReceiver<Notice>,
    topic: &str,
    keys: BTreeSet<Vec<u8>>,
) -> Result<(), SinkError> {
    let mut in_flight = 0_usize;
    let mut keys = keys.into_iter();
    let mut ticket = 0_usize;
    let mut swept_out = None;
    loop {
        while in_flight < IN_FLIGHT_MAX
            && swept_out.is_none()
            && let Some(key) = keys.next()
        {
            ticket += 1;
            let headers = OwnedHeaders::new().insert(Header {
                key: "ce_type",
                value: Some(CE_TYPE),
            });
            let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, ticket)
                .key(&key)
                .headers(headers);
            producer
                .send(record)
                .map_err(|source| match producer.fatal_error() {
                    Some((code, _)) => not_taken(topic, code),
                    None => unavailable(not_sent(topic), source),
                })?;
            in_flight += 1;
        }
        if in_flight == 0 {
            let Some(code) = swept_out else {
                return Ok(());
            };
            let why = producer.fatal_error().map_or(code, |(why, _)| why);
            return Err(not_taken(topic, why));
        }
        let notice = tokio::time::timeout(ACK_TIMEOUT, notices.recv()).await;
        match notice {
            Ok(Some(Notice::Delivered { result, .. })) => {
                in_flight -= 1;
                match result {
                    Ok(_) => {}
                    // The culprit may come yet.
                    Err(code) if is_swept_out(code) => swept_out = Some(code),
                    Err(code) => return Err(not_taken(topic, code)),
                }
            }
            Ok(Some(Notice::Client { .. })) => {}
            Ok(Some(Notice::Forsaken)) => {
                return Err(SinkError::Unavailable {
                    message: FORSAKEN.to_owned(),
                    source: None,
                });
            }
            Ok(None) | Err(_) => {
                return Err(SinkError::Unavailable {
                    message: format!("the tombstones for `{topic}` are not acknowledged"),
                    source: None,
                });
            }
        }
    }
}

/// Why a tombstone was not taken.
fn not_taken(topic: &str, code: Code) -> SinkError {
    match denied_write(code, topic) {
        Some(denied) => SinkError::Denied {
            message: format!("{}: {denied}", not_sent(topic)),
        },
        None => unavailable(not_sent(topic), code),
    }
}

fn not_sent(topic: &str) -> String {
    format!("failed to send tombstones to `{topic}`")
}

fn unavailable(
    message: String,
    source: impl std::error::Error + Send + Sync + 'static,
) -> SinkError {
    SinkError::Unavailable {
        message,
        source: Some(Box::new(source)),
    }
}
