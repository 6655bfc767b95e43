//! Reading topics back: from given offsets to their ends, without a group and without committing anything.
//!
//! All of it blocks, in calls of a fraction of a second, and is run on a thread of tokio's blocking pool.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{Message as _, types::RDKafkaRespErr};
use tokio_util::sync::CancellationToken;

use super::client::Context;
use super::errors::{Class, classify};
use super::unavailable;
use crate::sink::SinkError;

/// Time without a message or an end of partition before the cluster counts as away.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for metadata, offsets, the cluster's id.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for a message before it is looked whether to stop.
const POLL: Duration = Duration::from_millis(200);

/// The group in whose name is read; librdkafka asks for its coordinator, and commits nothing.
pub(super) const GROUP: &str = "quaymaster-read";

/// KiB that librdkafka fetches ahead; its default of 64 MiB would break the memory promise.
const FETCHED_KIB_MAX: &str = "2048";

impl ConsumerContext for Context {}

/// Reads on behalf of one caller.
pub(super) struct Reader {
    consumer: BaseConsumer<Context>,
    stop: CancellationToken,
}

impl Reader {
    /// A reader that ends early when `stop` is cancelled. It connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses a setting or cannot start its threads.
    pub(super) fn open(base: &ClientConfig, stop: CancellationToken) -> Result<Self, KafkaError> {
        let mut config = base.clone();
        // A group's name is asked for where offsets are never committed, too.
        config
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", FETCHED_KIB_MAX);
        let consumer = BaseConsumer::from_config_and_context(&config, Context::default())?;
        Ok(Self { consumer, stop })
    }

    /// The cluster's id; `None` where it does not answer in time.
    pub(super) fn cluster_id(&self) -> Option<String> {
        let client: &Client<Context> = self.consumer.client();
        client.fetch_cluster_id(REQUEST_TIMEOUT)
    }

    /// The partitions of a topic; none where it does not exist.
    pub(super) fn partitions(&self, topic: &str) -> Result<BTreeSet<i32>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(BTreeSet::new());
        };
        match found.error() {
            None => {}
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => return Ok(BTreeSet::new()),
            Some(error) => return Err(KafkaError::MetadataFetch(error.into())),
        }
        Ok(found.partitions().iter().map(|one| one.id()).collect())
    }

    /// The first offset that is there, and the next one that will be given.
    pub(super) fn ends(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        self.consumer
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
    }

    /// Reads partitions from where it is said to their ends, until `take` breaks; whether the ends were reached.
    /// In each partition messages come in order.
    ///
    /// # Errors
    /// Where the cluster goes away for more than some seconds, or refuses.
    pub(super) fn read(
        &self,
        topic: &str,
        from: &[(i32, Offset)],
        take: &mut dyn FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<bool, KafkaError> {
        let mut open: BTreeSet<i32> = from.iter().map(|(partition, _)| *partition).collect();
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in from {
            assignment.add_partition_offset(topic, *partition, *offset)?;
        }
        self.consumer.assign(&assignment)?;
        let mut heard_at = Instant::now();
        while !open.is_empty() {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    if take(&message).is_break() {
                        return Ok(false);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => {
                    let passes = error
                        .rdkafka_error_code()
                        .is_some_and(|code| classify(code) == Class::Retry);
                    if !passes || heard_at.elapsed() >= READ_TIMEOUT {
                        return Err(error);
                    }
                    continue;
                }
                None if heard_at.elapsed() >= READ_TIMEOUT => {
                    return Err(KafkaError::MessageConsumption(Code::OperationTimedOut));
                }
                None => continue,
            }
            heard_at = Instant::now();
        }
        Ok(true)
    }
}

/// Why a topic was not read.
pub(super) fn unreadable(topic: &str, tried: String, error: KafkaError) -> SinkError {
    let (operation, of) = match error.rdkafka_error_code() {
        Some(Code::TopicAuthorizationFailed) => ("Read", format!("the topic `{topic}`")),
        Some(Code::GroupAuthorizationFailed) => ("Read", format!("the group `{GROUP}`")),
        Some(_) | None => return unavailable(tried, error),
    };
    SinkError::Denied {
        message: format!("{tried}: kafka does not let this user do {operation} on {of}: grant it"),
    }
}

/// The CloudEvents `id` of a message, where it has one.
pub(super) fn ce_id<'m>(message: &'m BorrowedMessage<'_>) -> Option<&'m str> {
    let headers = message.headers()?;
    let id = headers.iter().find(|header| header.key == "ce_id")?;
    std::str::from_utf8(id.value?).ok()
}
