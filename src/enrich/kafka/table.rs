//! Reads the mapping topic: all partitions, from the beginning, and then for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::stall::Stall;
use super::unusable;
use super::watch::{Watch, end_of};
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
        let fetched = self.consumer.context().fetched();
        self.is_stalled |= self.stall.look(&fetched, end_of).is_some();
    }

    /// The end of a partition of any topic. `None` where the cluster does not tell.
    pub(super) fn end_of(&self, topic: &str, partition: i32) -> Option<i64> {
        end_of(&self.consumer, topic, partition)
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
                    let key = message.key().and_then(TableKey::parse);
                    take(key.as_ref(), message.payload());
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.open.remove(&partition);
                }
                Some(Err(error)) => return Err(error),
            }
            patience = Duration::ZERO;
        }
        Ok(most)
    }
}
