//! Reads the mapping topic: all partitions, from the beginning, and then for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::session::{is_refusal, unusable};
use super::stall::Stall;
use super::watch::{Watch, ends_of};
use crate::enrich::table::TableKey;
use crate::sink::access::KafkaAccess;
use crate::sink::kafka::{base_config, set_statistics};

/// Time for the topic's metadata.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// Follows the mapping topic.
pub(super) struct TableReader {
    consumer: BaseConsumer<Watch>,
    /// Partitions whose end has not been seen yet.
    open: BTreeSet<i32>,
    stall: Stall,
    is_stalled: bool,
    /// Whether the topic may not be read.
    is_refused: bool,
}

impl TableReader {
    /// Begins at the beginning. May block for some seconds.
    ///
    /// # Errors
    /// When the cluster does not tell the topic's partitions.
    pub(super) fn open(
        access: &KafkaAccess,
        client_id: &str,
        group: &str,
        topic: &str,
    ) -> Result<Self, KafkaError> {
        let mut config = base_config(access, client_id).map_err(|error| unusable(&error))?;
        config
            // Needed by name only: partitions are assigned by hand, and nothing is committed. The events' own does: no right
            // on another is needed.
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        set_statistics(&mut config);
        let consumer: BaseConsumer<Watch> = config.create_with_context(Watch::default())?;
        let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
        let mut open = BTreeSet::new();
        for found in metadata.topics() {
            if let Some(error) = found.error() {
                return Err(KafkaError::MetadataFetch(error.into()));
            }
            if found.name() == topic {
                open.extend(found.partitions().iter().map(|one| one.id()));
            }
        }
        if open.is_empty() {
            let code = rdkafka::error::RDKafkaErrorCode::UnknownTopic;
            return Err(KafkaError::MetadataFetch(code));
        }
        let mut assignment = TopicPartitionList::new();
        for partition in &open {
            assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Self {
            consumer,
            open,
            stall: Stall::default(),
            is_stalled: false,
            is_refused: false,
        })
    }

    /// Whether everything that was there at the beginning has been read.
    pub(super) fn is_filled(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether it reads no more, or not all, and another one is to begin anew.
    pub(super) fn is_lost(&self) -> bool {
        self.is_stalled || self.consumer.context().is_forsaken()
    }

    /// Looks whether all partitions are fetched still; `end_of` as in [`Stall::look`].
    pub(super) fn look(&mut self, end_of: impl FnMut(i32) -> Option<i64>) {
        let watch = self.consumer.context();
        // Without the right to it nothing is fetched either.
        if !self.is_refused {
            let stalled = self.stall.look(&watch.fetched(), watch.is_busy(), end_of);
            self.is_stalled |= stalled.is_some();
        }
    }

    /// Asks the cluster for the ends of a topic's partitions.
    pub(super) fn ends_of(&self, topic: &str) -> impl FnMut(i32) -> Option<i64> {
        ends_of(&self.consumer, topic)
    }

    /// Whether another reader would get further: its cluster knows a partition's end that this one waits for.
    pub(super) fn waits_in_vain(&self, other: &Self, topic: &str) -> bool {
        let mut ends = other.ends_of(topic);
        self.open.iter().any(|partition| ends(*partition).is_some())
    }

    /// Hands over at most `most` messages, waiting for the first one for `patience`. How many there were.
    ///
    /// # Errors
    /// Those that the consumer tells; it goes on by itself.
    pub(super) fn read(
        &mut self,
        most: usize,
        patience: Duration,
        mut take: impl FnMut(Option<&TableKey<'_>>, Option<&[u8]>),
    ) -> Result<usize, KafkaError> {
        let mut patience = patience;
        for count in 0..most {
            match self.consumer.poll(patience) {
                None => return Ok(count),
                Some(Ok(message)) => {
                    self.is_refused = false;
                    let key = message.key().and_then(TableKey::parse);
                    take(key.as_ref(), message.payload());
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.open.remove(&partition);
                }
                Some(Err(error)) => {
                    self.is_refused |= is_refusal(&error);
                    return Err(error);
                }
            }
            patience = Duration::ZERO;
        }
        Ok(most)
    }
}
