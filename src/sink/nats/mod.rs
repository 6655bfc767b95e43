//! The Nats sink.

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Outgoing, Report, Sink, SinkError, SinkHealth, TopicSettings};

/// Nats.
pub struct NatsSink;

impl NatsSink {
    /// Makes one.
    pub fn new(_servers: &[String], _topics: &TopicSettings, _client_id: &str) -> Self {
        Self
    }
}

#[async_trait]
impl Sink for NatsSink {
    async fn prepare(&mut self) -> Result<(), SinkError> {
        Err(SinkError::Misconfigured {
            message: "nats is not built in yet".to_owned(),
        })
    }

    async fn run(
        self: Box<Self>,
        _requests: mpsc::Receiver<Outgoing>,
        _reports: mpsc::Sender<Report>,
        _health: watch::Sender<SinkHealth>,
        _stop: CancellationToken,
    ) -> Result<(), SinkError> {
        Err(SinkError::Misconfigured {
            message: "nats is not built in yet".to_owned(),
        })
    }
}
