//! Sends a snapshot: many messages at once, over a connection of their own, none of which is kept or sent again.
//!
//! At most once is meant for whole snapshots: what the bus does not acknowledge by the deadline is not sent again by
//! us. (The sink below retries within that time, so that the bus may have a message twice.)

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Ended, IN_FLIGHT_MAX, Outcome, Outgoing, Sink, SinkError, SinkHealth};

/// Messages between us and the sink.
const QUEUE_MAX: usize = 256;

/// What became of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Messages that the bus has.
    pub acknowledged: u64,
    /// Messages that it refused for what they are.
    pub refused: u64,
    /// Messages that it did not acknowledge in time, or that were never sent.
    pub unanswered: u64,
    /// What the bus or the sink last complained of; empty where all is well.
    pub error: String,
}

impl Sent {
    /// Messages that the bus does not have, as far as we know.
    pub fn lost(&self) -> u64 {
        self.refused + self.unanswered
    }
}

/// Prepares the sink, sends, and waits for the bus's answers until a deadline. Dropped midway, some of the messages
/// are sent.
///
/// # Errors
/// Where the bus is not there or not as it should be; nothing was sent then.
pub async fn send(
    mut sink: Box<dyn Sink>,
    messages: Vec<Outgoing>,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Sent, SinkError> {
    match timeout_at(deadline, sink.prepare()).await {
        Ok(prepared) => prepared?,
        Err(source) => {
            return Err(SinkError::Unavailable {
                message: "the bus did not answer in time".to_owned(),
                source: Some(Box::new(source)),
            });
        }
    }
    let total = messages.len() as u64;
    let mut sent = Sent::default();
    let stop = stop.child_token();
    // Dropping this future ends the sink too.
    let _ends = stop.clone().drop_guard();
    let (requests, incoming) = mpsc::channel(QUEUE_MAX);
    let (reports_tx, mut reports) = mpsc::channel(IN_FLIGHT_MAX);
    let (health_tx, health) = watch::channel(SinkHealth {
        is_brief: true,
        ..SinkHealth::default()
    });
    let ends = stop.clone();
    let running =
        tokio::spawn(async move { sink.run(incoming, reports_tx, health_tx, ends).await });
    let feed = async move {
        for (row, message) in (1..).zip(messages) {
            if requests.send(Outgoing { row, ..message }).await.is_err() {
                return;
            }
        }
    };
    let collect = async {
        while let Some(report) = reports.recv().await {
            match report.outcome {
                Outcome::Acked(_) => sent.acknowledged += 1,
                Outcome::Rejected(reason) | Outcome::Replaced { reason, .. } => {
                    sent.refused += 1;
                    sent.error = reason;
                }
            }
        }
    };
    let is_late = timeout_at(deadline, async { tokio::join!(feed, collect) })
        .await
        .is_err();
    stop.cancel();
    sent.unanswered = total.saturating_sub(sent.acknowledged + sent.refused);
    match running.await {
        Ok(Ok(Ended::Finished)) => {}
        // What the bus has lost of it is unanswered.
        Ok(Ok(Ended::BusLostData(loss))) => sent.error = loss.reason,
        Ok(Err(error)) => sent.error = crate::telemetry::chain(&error),
        Err(error) => sent.error = error.to_string(),
    }
    if sent.unanswered > 0 && sent.error.is_empty() {
        let told = health.borrow().error.clone();
        sent.error = if told.is_empty() && is_late {
            "the bus did not take all of it in time".to_owned()
        } else {
            told
        };
    }
    Ok(sent)
}
