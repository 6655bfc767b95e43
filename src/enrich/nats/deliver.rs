//! Brings one event into the output's stream, however long that takes.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{Context, PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::enrich::Spliced;
use crate::sink::nats::{Class, classify};

/// The first wait between two attempts, and the longest.
const RETRY_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The header of an event that was put aside: why.
const REASON_HEADER: &str = "quaymaster-reason";

/// An event on its way.
pub(super) struct Delivery {
    pub(super) jetstream: Context,
    pub(super) subject: String,
    /// Its `Nats-Msg-Id`: what is sent twice within the stream's window is stored once.
    pub(super) id: String,
    pub(super) headers: Option<HeaderMap>,
    /// Why it is put aside, if it is.
    pub(super) reason: Option<&'static str>,
    pub(super) payload: Spliced,
    pub(super) stop: CancellationToken,
}

/// What has come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Sent {
        is_aside: bool,
    },
    /// It was too large with what was added, and is stored as it came.
    Unaltered,
    /// It is refused for what it is, and lost.
    Rejected,
    /// It was given up at the end: it is handed out again.
    Stopped,
}

pub(super) struct Delivered<T> {
    pub(super) token: T,
    pub(super) outcome: Outcome,
}

impl Delivery {
    /// Sends it; the future is the stream's answer.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(super) async fn attempt(&self) -> Result<PublishAckFuture, PublishError> {
        let mut headers = self.headers.clone().unwrap_or_default();
        if let Some(reason) = self.reason {
            headers.insert(REASON_HEADER, reason);
        }
        // An input's own id would be taken for a double of the input, where one stream has both.
        let message = PublishMessage::build()
            .payload(self.payload.text.clone().into())
            .headers(headers)
            .message_id(&self.id);
        self.jetstream
            .send_publish(self.subject.clone(), message)
            .await
    }
}

/// Awaits the answer to the first attempt, and makes others until the stream has it. Dropped midway it may be stored or not.
pub(super) async fn deliver<T>(
    mut delivery: Delivery,
    first: Result<PublishAckFuture, PublishError>,
    token: T,
) -> Delivered<T> {
    let mut backoff = Backoff::new(RETRY_WAIT.0, RETRY_WAIT.1);
    let mut attempt = first;
    let mut is_unaltered = false;
    let outcome = loop {
        let answer = match attempt {
            Ok(answer) => answer.await.map(drop),
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) if is_unaltered => break Outcome::Unaltered,
            Ok(()) => {
                break Outcome::Sent {
                    is_aside: delivery.reason.is_some(),
                };
            }
            Err(error) if is_rejection(&error) => {
                if delivery.payload.added.is_empty() {
                    tracing::error!(
                        id = delivery.id,
                        error = crate::telemetry::chain(&error),
                        "an event is lost: the bus refuses it for what it is"
                    );
                    break Outcome::Rejected;
                }
                delivery.payload.take_back();
                is_unaltered = true;
            }
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::debug!(error, subject = delivery.subject, "the output is not taken");
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                    () = delivery.stop.cancelled() => break Outcome::Stopped,
                }
            }
        }
        attempt = delivery.attempt().await;
    };
    Delivered { token, outcome }
}

/// Whether the message is refused for what it is.
fn is_rejection(error: &PublishError) -> bool {
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return true;
    }
    let source = std::error::Error::source(error);
    let told = source.and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    told.is_some_and(|told| classify(told.error_code().0) == Class::Rejected)
}
