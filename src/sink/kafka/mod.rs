//! The Kafka sink: one ordered, idempotent sender.
//!
//! - [`sender`] decides what is sent when; [`client`] is librdkafka as we set it up, [`settings`] what may be set
//!   besides; [`errors`] classifies, [`trouble`] finds out why a cluster does not let us in;
//!   [`stamps`] picks timestamps; [`topics`] creates and checks topics.
//! - Messages of one partition are appended in the order in which they came, first appearances at least:
//!   librdkafka's idempotence keeps it while a producer lives (`enable.gapless.guarantee` kills the producer
//!   rather than leave a hole), and after its death everything unreported is sent again, in order.
//! - A message counts as delivered only by its own successful delivery report: not when it expired, was
//!   purged, or the producer died.

mod client;
mod errors;
mod reap;
mod sender;
pub mod settings;
mod stamps;
pub mod topics;
mod trouble;

pub(crate) use self::client::{
    BATCH_BYTES_MAX, BATCH_BYTES_MIN, LogLimit, Notice, Order, Producer, base_config, open_producer,
};
pub(crate) use self::errors::{Class, classify};
pub use self::reap::reap;
pub(super) use self::settings::check;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::access::KafkaAccess;
use super::report::{HealthTeller, Reporter};
use super::{Outgoing, Report, Sink, SinkError, SinkHealth, TopicSettings};

/// Kafka.
pub struct KafkaSink {
    access: KafkaAccess,
    topics: TopicSettings,
    client_id: String,
}

impl KafkaSink {
    /// A sink for a cluster. Nothing is connected yet.
    pub fn new(access: impl Into<KafkaAccess>, topics: &TopicSettings, client_id: &str) -> Self {
        Self {
            access: access.into(),
            topics: topics.clone(),
            client_id: client_id.to_owned(),
        }
    }
}

#[async_trait]
impl Sink for KafkaSink {
    /// Dropped midway, a topic may have been created or not; a later call finds out.
    async fn prepare(&mut self) -> Result<(), SinkError> {
        topics::Admin::new(&self.access, &self.client_id)?
            .prepare(&self.topics)
            .await
    }

    async fn run(
        self: Box<Self>,
        requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<(), SinkError> {
        sender::Sender::new(
            self.access,
            self.client_id,
            &self.topics,
            Reporter::new(reports),
            HealthTeller::new(health, "kafka"),
        )
        .run(requests, stop)
        .await
    }
}
