//! The publisher: from the outbox to the sink, in order; from the sink's reports back to the collector.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Ended, Landmark, Loss, Outgoing, Report, Sink, SinkError, SinkHealth, Verdict};
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
    /// Told when the bus has lost data: its keys are to be read back.
    pub lost: Arc<Notify>,
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
    /// Runs until `finish` and all that was handed over is reported, or `stop`. Where the bus has lost what it had
    /// acknowledged, all is handed over again from the oldest on.
    ///
    /// # Errors
    /// When the bus contradicts the configuration at the start, or can never take a message again.
    pub async fn run(mut self, mut sink: Box<dyn Sink>) -> Result<(), SinkError> {
        let (stop, finish) = (self.stop.clone(), self.finish.clone());
        let mut is_first = true;
        let mut last = self.landmark();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                ready = self.make_ready(&mut sink, last.as_ref(), is_first) => ready?,
                () = finish.cancelled() => return Ok(()),
            }
            is_first = false;
            let ended;
            (sink, ended) = self.session(sink).await?;
            match ended {
                Ended::Finished => return Ok(()),
                Ended::BusLostData(loss) => self.owe_again(&loss).await,
            }
            // What is owed again has no place on the bus yet.
            last = None;
        }
    }

    /// Waits until the bus is there and has what it acknowledged, or what it lost is owed again.
    async fn make_ready(
        &mut self,
        sink: &mut Box<dyn Sink>,
        last: Option<&Landmark>,
        is_first: bool,
    ) -> Result<(), SinkError> {
        let mut backoff = Backoff::new(PREPARE_RETRY.0, PREPARE_RETRY.1);
        loop {
            match self.try_make_ready(sink, last).await {
                Ok(()) => {
                    self.health.send_replace(SinkHealth {
                        up: true,
                        ..SinkHealth::default()
                    });
                    return Ok(());
                }
                Err(error) if !error.may_heal() && is_first => return Err(error),
                // What was right at the start is a person's matter later; the messages wait for it.
                Err(error) if !error.may_heal() => {
                    let error = telemetry::chain(&error);
                    tracing::error!(%error, "the bus is not as it was; messages wait in the outbox");
                    self.health.send_replace(SinkHealth {
                        error,
                        ..SinkHealth::default()
                    });
                }
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::warn!(%error, "the bus is not there yet; messages wait in the outbox");
                    self.health.send_replace(SinkHealth {
                        error,
                        ..SinkHealth::default()
                    });
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn try_make_ready(
        &mut self,
        sink: &mut Box<dyn Sink>,
        last: Option<&Landmark>,
    ) -> Result<(), SinkError> {
        sink.prepare().await?;
        let checked = sink.check(last).await?;
        match checked.verdict {
            Verdict::Kept => {}
            Verdict::Lost(loss) => self.owe_again(&loss).await,
        }
        // A collector that has ended takes no reports either.
        let _ = self.reports.send(Input::BusIs(checked.bus)).await;
        Ok(())
    }

    /// The newest delta that the bus acknowledged, as far as the collector has committed it.
    fn landmark(&self) -> Option<Landmark> {
        self.reader.last_acked().map(|last| Landmark {
            bus: last.bus,
            position: last.position,
            ce_id: last.ce_id,
        })
    }

    /// Has the collector owe what the bus lost, and waits until that is committed.
    async fn owe_again(&self, loss: &Loss) {
        let last = self.reader.last_acked();
        let lost_from = last.and_then(|last| lost_from(loss.newest.as_deref()?, &last.ce_id));
        tracing::error!(
            reason = loss.reason,
            lost_from,
            "the bus has lost what it had acknowledged"
        );
        let (done, committed) = oneshot::channel();
        let lost = Input::BusLostData { lost_from, done };
        if self.reports.send(lost).await.is_ok() {
            // Without an answer the collector has ended, and we are about to.
            let _ = committed.await;
            self.lost.notify_one();
        }
    }

    /// One run of the sink, from the oldest message that is owed on; the sink comes back.
    async fn session(
        &mut self,
        mut sink: Box<dyn Sink>,
    ) -> Result<(Box<dyn Sink>, Ended), SinkError> {
        let (requests_tx, requests) = mpsc::channel(QUEUE_MAX);
        let (reports_tx, reports) = mpsc::channel(REPORTS_MAX);
        let (health, stop) = (self.health.clone(), self.stop.clone());
        let forward = tokio::spawn(forward_reports(reports, self.reports.clone()));
        let running = tokio::spawn(async move {
            let ended = sink.run(requests, reports_tx, health, stop).await;
            (sink, ended)
        });
        self.feed(requests_tx).await;
        let ran = running.await;
        // The reports end with the sink; the task that passes them on ends with the reports.
        let _ = forward.await;
        let (sink, ended) = ran.map_err(|error| SinkError::Unavailable {
            message: "the sink's task ended abnormally".to_owned(),
            source: Some(Box::new(error)),
        })?;
        Ok((sink, ended?))
    }

    /// Hands over everything that is owed, oldest first, and then what comes.
    async fn feed(&mut self, requests: mpsc::Sender<Outgoing>) {
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
                () = requests.closed() => return,
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

/// The oldest delta that is lost, by the newest one of the same host and epoch that is there.
fn lost_from(newest: &str, last: &str) -> Option<u64> {
    let (line, newest) = newest.rsplit_once(':')?;
    let (last_line, last) = last.rsplit_once(':')?;
    let (newest, last): (u64, u64) = (newest.parse().ok()?, last.parse().ok()?);
    (line == last_line && newest <= last).then(|| newest + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_begins_behind_the_newest_that_is_there() {
        for (newest, last, from) in [
            ("h:e:41", "h:e:50", Some(42)),
            ("h:e:50", "h:e:50", Some(51)),
            ("h:e:51", "h:e:50", None),
            ("h:earlier:41", "h:e:50", None),
            ("h:e:r41", "h:e:50", None),
            ("", "h:e:50", None),
        ] {
            assert_eq!(lost_from(newest, last), from, "{newest} {last}");
        }
    }
}
