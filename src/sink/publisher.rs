//! The publisher: from the outbox to the sink, in order; from the sink's reports back to the collector.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Outgoing, Report, Sink, SinkError, SinkHealth};
use crate::backoff::Backoff;
use crate::collector::Input;
use crate::outbox::OutboxReader;
use crate::telemetry;

/// Messages that are read from the outbox at once.
const READ_MESSAGES_MAX: usize = 512;
/// Bytes that are read from the outbox at once.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Messages between the publisher and the sink.
const QUEUE_MAX: usize = 256;
/// Reports between the sink and the collector.
const REPORTS_MAX: usize = 4_096;
/// The first and the longest wait before a bus that is not there is tried again.
const PREPARE_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What the publisher works with.
pub struct Publisher {
    /// What is owed.
    pub reader: OutboxReader,
    /// The host, for messages that are read back.
    pub host_id: Arc<str>,
    /// The CloudEvents source, likewise.
    pub ce_source: Arc<str>,
    /// Tells that a commit has added messages.
    pub committed: Arc<Notify>,
    /// The status, newest last.
    pub status: mpsc::Receiver<Outgoing>,
    /// Reports go to the collector.
    pub reports: mpsc::Sender<Input>,
    /// How the bus stands.
    pub health: watch::Sender<SinkHealth>,
    /// No more is read; what is in flight is still waited for.
    pub finish: CancellationToken,
    /// Everything is dropped at once.
    pub stop: CancellationToken,
}

impl Publisher {
    /// Runs until `finish` and all that was handed over is reported, or `stop`.
    ///
    /// # Errors
    /// When the bus contradicts the configuration, or can never take a message again.
    pub async fn run(self, mut sink: Box<dyn Sink>) -> Result<(), SinkError> {
        let stop = self.stop.clone();
        let finish = self.finish.clone();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = finish.cancelled() => return Ok(()),
            prepared = prepare(&mut sink, &self.health) => prepared?,
        }
        let (requests_tx, requests) = mpsc::channel(QUEUE_MAX);
        let (reports_tx, reports) = mpsc::channel(REPORTS_MAX);
        let health = self.health.clone();
        let to_collector = self.reports.clone();
        let forward = tokio::spawn(forward_reports(reports, to_collector));
        let sink = tokio::spawn(sink.run(requests, reports_tx, health, self.stop.clone()));
        self.feed(requests_tx).await;
        let ended = sink.await.unwrap_or_else(|error| {
            Err(SinkError::Unavailable {
                message: "the sink's task ended abnormally".to_owned(),
                source: Some(Box::new(error)),
            })
        });
        // The reports end with the sink; the task that passes them on ends with the reports.
        let _ = forward.await;
        ended
    }

    /// Hands over everything that is owed, oldest first, and then what comes.
    async fn feed(mut self, requests: mpsc::Sender<Outgoing>) {
        let mut next_row = 0;
        loop {
            let committed = Arc::clone(&self.committed);
            let committed = committed.notified();
            let read = self.reader.read(
                next_row,
                READ_MESSAGES_MAX,
                READ_BYTES_MAX,
                &self.host_id,
                &self.ce_source,
            );
            let messages = read.unwrap_or_else(|error| {
                tracing::error!(
                    error = telemetry::chain(&error),
                    "the outbox cannot be read"
                );
                Vec::new()
            });
            let is_empty = messages.is_empty();
            for message in messages {
                next_row = message.row + 1;
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    sent = requests.send(message) => if sent.is_err() { return },
                }
            }
            if !is_empty {
                while let Ok(status) = self.status.try_recv() {
                    if requests.send(status).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                status = self.status.recv() => match status {
                    Some(status) => if requests.send(status).await.is_err() { return },
                    None => return,
                },
                () = committed => {}
                () = self.finish.cancelled() => break,
            }
        }
        while let Ok(status) = self.status.try_recv() {
            if requests.send(status).await.is_err() {
                return;
            }
        }
    }
}

async fn prepare(
    sink: &mut Box<dyn Sink>,
    health: &watch::Sender<SinkHealth>,
) -> Result<(), SinkError> {
    let mut backoff = Backoff::new(PREPARE_RETRY.0, PREPARE_RETRY.1);
    loop {
        match sink.prepare().await {
            Ok(()) => {
                health.send_replace(SinkHealth {
                    up: true,
                    error: String::new(),
                });
                return Ok(());
            }
            Err(error) if !error.may_heal() => return Err(error),
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::warn!(%error, "the bus is not there yet; messages wait in the outbox");
                health.send_replace(SinkHealth { up: false, error });
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Passes reports on in groups, as many as have come.
async fn forward_reports(mut reports: mpsc::Receiver<Report>, to: mpsc::Sender<Input>) {
    loop {
        let mut group = Vec::new();
        if reports.recv_many(&mut group, REPORTS_MAX).await == 0 {
            return;
        }
        if to.send(Input::Reported(group)).await.is_err() {
            return;
        }
    }
}
