//! A session: the consumer of the group, the producer, and whether they are of use still.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::flight::{Failure, Flight, Routes};
use super::stall::Stall;
use super::table::TableReader;
use super::watch::{Watch, commit, ends_of};
use crate::enrich::shell::Setup;
use crate::sink::access::{FileError, KafkaAccess};
use crate::sink::kafka::{FORSAKEN, Order, base_config, open_producer, set_statistics};

/// How soon a member that was killed is missed. Kafka's own default is 45 s.
const SESSION_TIMEOUT_MS: &str = "10000";

/// Largest message that the producer takes; what the broker takes is the broker's matter.
const MESSAGE_BYTES_MAX: &str = "67108864";

/// A consumer of the group and a producer.
pub(super) struct Session {
    pub(super) consumer: BaseConsumer<Watch>,
    flight: Arc<Mutex<Flight>>,
    input: String,
    is_closed: bool,
    /// Whether it was closed since the last look at the partitions.
    was_closed: bool,
    /// Whether the input may not be read.
    pub(super) is_refused: bool,
    stall: Stall,
    /// A partition that is not fetched any more.
    stalled: Option<i32>,
}

impl Session {
    pub(super) fn open(
        setup: &Setup,
        access: &KafkaAccess,
        routes: Routes,
    ) -> Result<Self, KafkaError> {
        let mut config = base_config(access, &setup.client_id).map_err(|error| unusable(&error))?;
        config.set("message.max.bytes", MESSAGE_BYTES_MAX);
        let (producer, notices) = open_producer(&config, routes.batch_bytes, Order::Loose)?;
        let flight = Arc::new(Mutex::new(Flight::new(routes, producer, notices)));
        let mut config = base_config(access, &setup.client_id).map_err(|error| unusable(&error))?;
        config
            .set("group.id", &setup.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION_TIMEOUT_MS)
            .set("heartbeat.interval.ms", "2000")
            .set("topic.metadata.refresh.interval.ms", "10000");
        set_statistics(&mut config);
        let consumer: BaseConsumer<Watch> =
            config.create_with_context(Watch::of(Arc::clone(&flight)))?;
        consumer.subscribe(&[&setup.input])?;
        Ok(Self {
            consumer,
            flight,
            input: setup.input.clone(),
            is_closed: false,
            was_closed: false,
            is_refused: false,
            stall: Stall::default(),
            stalled: None,
        })
    }

    /// It is never kept over a poll, in which partitions may come and go.
    pub(super) fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no more events in, or lets them in again. The consumer is polled all the same: the group has to know that we live.
    pub(super) fn close_intake(&mut self, closed: bool) -> Result<(), KafkaError> {
        if closed {
            // Partitions may have come since the last time.
            self.consumer.pause(&self.consumer.assignment()?)?;
        } else if self.is_closed {
            self.consumer.resume(&self.consumer.assignment()?)?;
        }
        self.is_closed = closed;
        self.was_closed |= closed;
        Ok(())
    }

    /// Looks whether all partitions of both consumers are fetched still. Each asks for the ends of the other's.
    pub(super) fn look(&mut self, table: &mut TableReader, mappings: &str) {
        let watch = self.consumer.context();
        let is_busy = std::mem::replace(&mut self.was_closed, self.is_closed) || watch.is_busy();
        // Without the right to it nothing is fetched either.
        if !self.is_refused {
            let ends = table.ends_of(&self.input);
            self.stalled = self.stall.look(&watch.fetched(), is_busy, ends);
        }
        table.look(ends_of(&self.consumer, mappings));
    }

    /// Why these consumers are of no use any more, if they are not.
    pub(super) fn lost(&self, table: &TableReader) -> Option<Failure> {
        let error = if let Some(partition) = self.stalled {
            format!(
                "partition {partition} of `{}` is not fetched any more",
                self.input
            )
        } else if self.consumer.context().is_forsaken() {
            FORSAKEN.to_owned()
        } else if table.is_lost() {
            "the mapping topic is not read any more".to_owned()
        } else {
            return None;
        };
        Some(Failure::Bus(error))
    }

    /// Commits what is done. Where that fails it is only taken again, by whoever comes next.
    pub(super) fn commit(&self, mode: CommitMode) {
        let due = self.flight().take_due();
        if let Err(error) = commit(&self.consumer, &self.input, &due, mode) {
            tracing::debug!(%error, "offsets are not committed");
        }
    }
}

/// A file with a secret or a certificate that is of no use, as librdkafka's own errors are told.
pub(super) fn unusable(error: &FileError) -> KafkaError {
    KafkaError::ClientCreation(crate::telemetry::chain(error))
}

/// Whether the cluster does not let us read.
pub(super) fn is_refusal(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed)
    )
}
