//! The Kafka sink: one ordered, idempotent sender.
//!
//! - [`sender`] decides what is sent when; [`client`] is librdkafka as we set it up, [`settings`] what may be set
//!   besides; [`errors`] classifies, [`trouble`] finds out why a cluster does not let us in;
//!   [`stamps`] picks timestamps; [`topics`] creates and checks topics; [`read`] reads back, for [`mod@check`] (what was
//!   acknowledged), [`own`] (what stands there of this host) and [`mod@reap`].
//! - Messages of one partition are appended in the order in which they came, first appearances at least:
//!   librdkafka's idempotence keeps it while a producer lives (`enable.gapless.guarantee` kills the producer
//!   rather than leave a hole), and after its death everything unreported is sent again, in order.
//! - A message counts as delivered only by its own successful delivery report: not when it expired, was
//!   purged, or the producer died.

mod check;
mod client;
mod errors;
mod own;
mod read;
mod reap;
pub mod rights;
mod sender;
pub mod settings;
mod stamps;
pub mod topics;
mod trouble;

pub(crate) use self::client::{
    BATCH_BYTES_MAX, BATCH_BYTES_MIN, FORSAKEN, LogLimit, Notice, Order, Producer, base_config,
    knows_no_broker, open_producer, set_statistics,
};
pub(crate) use self::errors::{Class, classify};
pub use self::reap::reap;
pub(super) use self::settings::check;

use std::sync::Arc;

use async_trait::async_trait;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::check::Checker;
use super::access::KafkaAccess;
use super::report::{HealthTeller, Reporter};
use super::{
    Checked, Ended, Landmark, Outgoing, OwnKey, Report, Sink, SinkError, SinkHealth, TopicSettings,
    Verdict,
};

/// Kafka.
pub struct KafkaSink {
    access: KafkaAccess,
    topics: TopicSettings,
    client_id: String,
    /// Topics that `prepare` created.
    created: Vec<String>,
    /// The last acknowledged delta, where `check` found it.
    last: Option<Landmark>,
    /// The cluster that `check` found.
    bus: Arc<str>,
}

impl KafkaSink {
    /// A sink for a cluster. Nothing is connected yet.
    pub fn new(access: impl Into<KafkaAccess>, topics: &TopicSettings, client_id: &str) -> Self {
        Self {
            access: access.into(),
            topics: topics.clone(),
            client_id: client_id.to_owned(),
            created: Vec::new(),
            last: None,
            bus: Arc::from(""),
        }
    }

    fn base(&self) -> Result<ClientConfig, SinkError> {
        Ok(client::base_config(&self.access, &self.client_id)?)
    }

    fn checker(&self) -> Checker {
        Checker {
            access: self.access.clone(),
            client_id: self.client_id.clone(),
            topics: self.topics.clone(),
        }
    }
}

#[async_trait]
impl Sink for KafkaSink {
    /// Dropped midway, a topic may have been created or not; a later call finds out.
    async fn prepare(&mut self) -> Result<(), SinkError> {
        self.created = topics::Admin::new(&self.access, &self.client_id)?
            .prepare(&self.topics)
            .await?;
        Ok(())
    }

    async fn check(&mut self, last: Option<&Landmark>) -> Result<Checked, SinkError> {
        let checked = self.checker().check(last, &self.created).await?;
        self.created.clear();
        self.bus = Arc::clone(&checked.bus);
        self.last = match checked.verdict {
            Verdict::Kept => last.cloned(),
            Verdict::Lost(_) => None,
        };
        Ok(checked)
    }

    async fn own_keys(&mut self, host_id: &str) -> Result<Vec<OwnKey>, SinkError> {
        own::keys(&self.base()?, &self.topics, host_id).await
    }

    async fn statuses(&mut self, host_id: &str) -> Result<Vec<Vec<u8>>, SinkError> {
        own::statuses(&self.base()?, &self.topics, host_id).await
    }

    async fn run(
        &mut self,
        requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        sender::Sender::new(
            self.checker(),
            self.last.take(),
            Arc::clone(&self.bus),
            Reporter::new(reports),
            HealthTeller::new(health, "kafka"),
        )
        .run(requests, stop)
        .await
    }
}

fn unavailable(message: String, source: KafkaError) -> SinkError {
    // The code alone, where there is one: rdkafka's own text has it twice.
    let source: Box<dyn std::error::Error + Send + Sync> = match source.rdkafka_error_code() {
        Some(code) => Box::new(code),
        None => Box::new(source),
    };
    SinkError::Unavailable {
        message,
        source: Some(source),
    }
}
