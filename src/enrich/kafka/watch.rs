//! What librdkafka's consumers tell: log lines, the lag, and that partitions come and go.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::flight::Flight;
use super::stall::Fetched;
use crate::sink::kafka::{LogLimit, knows_no_broker};

/// How long a partition that is taken away may wait for what is under way: its new owner waits meanwhile.
const HAND_OVER_GRACE: Duration = Duration::from_secs(3);

/// The wait between two looks at that.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long the cluster may take to tell the end of a partition: nothing is joined meanwhile.
const END_TIMEOUT: Duration = Duration::from_millis(250);

/// How long it may take for all partitions of a look.
const ENDS_TIMEOUT: Duration = Duration::from_secs(1);

/// The context of a consumer.
#[derive(Default)]
pub(super) struct Watch {
    log: LogLimit,
    /// Messages of the input that are not committed, of this member's partitions; -1 where it is not known yet.
    lag: AtomicI64,
    /// Whether the consumer knows no broker any more.
    is_forsaken: AtomicBool,
    /// Whether something was fetched and not taken yet.
    is_busy: AtomicBool,
    /// The partitions that it is to fetch.
    fetched: Mutex<BTreeMap<i32, Fetched>>,
    /// What is under way, of the consumer that shares partitions.
    flight: Option<Arc<Mutex<Flight>>>,
}

impl Watch {
    pub(super) fn of(flight: Arc<Mutex<Flight>>) -> Self {
        Self {
            lag: AtomicI64::new(-1),
            flight: Some(flight),
            ..Self::default()
        }
    }

    /// Whether its consumer will hear of no broker again, and another one is to be made.
    pub(super) fn is_forsaken(&self) -> bool {
        self.is_forsaken.load(Ordering::Relaxed)
    }

    /// Whether something was fetched and not taken yet, as of the newest statistics.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// What was fetched of each partition, as of the newest statistics.
    pub(super) fn fetched(&self) -> BTreeMap<i32, Fetched> {
        let fetched = self.fetched.lock();
        fetched.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn lag(&self) -> Option<u64> {
        u64::try_from(self.lag.load(Ordering::Relaxed)).ok()
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        if self.log.admit("error", Instant::now()).is_some() {
            tracing::warn!(%error, reason, "kafka is away");
        }
    }

    fn stats(&self, statistics: Statistics) {
        if knows_no_broker(&statistics) {
            self.is_forsaken.store(true, Ordering::Relaxed);
        }
        let topics = statistics.topics.values();
        let partitions = topics.flat_map(|topic| topic.partitions.values());
        let mut fetched = BTreeMap::new();
        let (mut lag, mut queued) = (0, 0);
        for partition in partitions.filter(|one| one.desired && one.partition >= 0) {
            if partition.fetch_state == "active" && partition.consumer_lag >= 0 {
                lag += partition.consumer_lag;
            }
            let of = Fetched {
                next_offset: partition.next_offset,
                received: partition.rxmsgs,
            };
            fetched.insert(partition.partition, of);
            // librdkafka gives each the length of the queue that they share.
            queued = partition.fetchq_cnt;
        }
        self.lag.store(lag, Ordering::Relaxed);
        self.is_busy.store(queued > 0, Ordering::Relaxed);
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = fetched;
    }
}

impl ConsumerContext for Watch {
    /// What is under way in partitions that are taken away is awaited for a moment and committed: less comes twice.
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let partitions = |list: &TopicPartitionList| -> Vec<i32> {
            list.elements().iter().map(|one| one.partition()).collect()
        };
        let Some(flight) = &self.flight else {
            return;
        };
        let mut flight = flight.lock().unwrap_or_else(PoisonError::into_inner);
        match rebalance {
            Rebalance::Assign(list) => {
                tracing::info!(partitions = ?partitions(list), "partitions are assigned");
            }
            Rebalance::Revoke(list) => {
                let revoked = partitions(list);
                tracing::info!(partitions = ?revoked, "partitions are taken away");
                let deadline = Instant::now() + HAND_OVER_GRACE;
                flight.drain();
                while flight.in_flight_of(&revoked) > 0
                    && flight.failure().is_none()
                    && Instant::now() < deadline
                {
                    std::thread::sleep(LOOK_INTERVAL);
                    flight.drain();
                }
                let due = flight.take_due();
                if let Err(error) = commit(consumer, flight.input(), &due, CommitMode::Sync) {
                    tracing::debug!(%error, "offsets of lost partitions are not committed");
                }
                flight.give_up(&revoked);
            }
            Rebalance::Error(error) => {
                tracing::warn!(%error, "the group cannot share its partitions")
            }
        }
    }
}

/// Asks the cluster for the ends of partitions, for a moment. `None` where that does not tell.
pub(super) fn ends_of(
    consumer: &BaseConsumer<Watch>,
    topic: &str,
) -> impl FnMut(i32) -> Option<i64> {
    let until = Instant::now() + ENDS_TIMEOUT;
    move |partition| {
        if Instant::now() >= until {
            return None;
        }
        let marks = consumer.fetch_watermarks(topic, partition, END_TIMEOUT);
        marks.ok().map(|(_, end)| end)
    }
}

/// Commits offsets to go on with.
///
/// # Errors
/// When the cluster or the group refuses it.
pub(super) fn commit(
    consumer: &BaseConsumer<Watch>,
    topic: &str,
    due: &[(i32, i64)],
    mode: CommitMode,
) -> Result<(), KafkaError> {
    if due.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(due.len());
    for (partition, offset) in due {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    consumer.commit(&list, mode)
}
