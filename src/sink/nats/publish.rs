//! One message until it is stored, or refused for what it is.
//!
//! - A request without an answer may have been stored: the subject's last message is read, and its `ce-id`
//!   tells. A delta that is sent again carries the same `Nats-Msg-Id`, so the server drops the second one
//!   within its window; the look at the last message covers longer outages.
//! - A state message says which message of its subject it replaces (`Nats-Expected-Last-Subject-Sequence`), so
//!   that no late copy of an older one, still on its way in some buffer, can come after it. It carries no
//!   `Nats-Msg-Id`: within the window that would drop a value that is put again.
//! - A request goes out only while the connection is up. So at most one copy of a message lies in the client's
//!   own buffer when the connection is lost.
//! - After each reconnect nothing goes out before the last acknowledged delta is read back ([`super::sound`]). Where
//!   it is lost, no message ends any more, and [`Publisher::lost`] tells.

use std::borrow::Cow;
use std::str::FromStr as _;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::{HeaderMap, HeaderValue, Request};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::check::ce_id;
use super::connection::{ANSWER_TIMEOUT, Connection};
use super::errors::{Class, classify};
use super::naming::Naming;
use super::sound::Sound;
use super::streams;
use crate::backoff::Backoff;
use crate::model::Topic;
use crate::sink::report::HealthTeller;
use crate::sink::{
    Loss, ManageTopics, Outcome, Outgoing, Position, TopicSettings, cloudevents, encoded,
};
use crate::telemetry::chain;
use crate::wire;
use crate::wire::encoding::Encoding;

/// The waits before a message is sent again.
const RETRY_FIRST: Duration = Duration::from_millis(20);
/// The longest of them.
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// Missing streams are looked for, and warnings repeated, at most this often.
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);
/// A warning is repeated at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// What a KV client writes to delete a key. (`PURGE` would also remove the key's history, of which these
/// buckets keep none.)
pub(super) const DELETED: &str = "DEL";

/// What the sink's tasks share.
pub(super) struct Publisher {
    connection: Connection,
    naming: Naming,
    settings: TopicSettings,
    health: HealthTeller,
    sound: Sound,
    /// When streams were last created again.
    repaired_at: Mutex<Option<Instant>>,
    warned_at: std::sync::Mutex<Option<Instant>>,
}

/// A message's end.
pub(super) struct Delivered {
    pub(super) outcome: Outcome,
    /// Its sequence in the stream, where it was stored.
    pub(super) sequence: Option<u64>,
}

/// What came of one attempt.
enum Attempt {
    /// Under this sequence; whether it was there before.
    Stored(u64, bool),
    Rejected(String),
    /// Another message is the subject's last one.
    WrongLast,
    /// No stream takes it.
    NoStream(String),
    /// It was not stored.
    Refused {
        error: String,
        is_persons_matter: bool,
    },
    /// Nobody knows whether it was stored.
    Unknown(String),
}

/// The answer to a message.
#[derive(Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    pub(super) error: Option<ApiError>,
}

#[derive(Deserialize)]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

/// The last message of a subject.
struct Last {
    sequence: u64,
    ce_id: String,
}

impl Publisher {
    pub(super) fn new(
        connection: Connection,
        naming: Naming,
        settings: TopicSettings,
        health: HealthTeller,
        sound: Sound,
    ) -> Self {
        Self {
            connection,
            naming,
            settings,
            health,
            sound,
            repaired_at: Mutex::new(None),
            warned_at: std::sync::Mutex::new(None),
        }
    }

    /// Sends a message until it is stored or rejected. `replaces` is the sequence of its subject's last
    /// message, 0 for none, as far as is known; it means nothing for a delta.
    ///
    /// A delta that is rejected has its gap in its place. Dropped midway, the message may be stored or not.
    pub(super) async fn deliver(&self, message: &Outgoing, replaces: u64) -> Delivered {
        let delivered = self.deliver_as_it_is(message, replaces).await;
        let Outcome::Rejected(reason) = &delivered.outcome else {
            return delivered;
        };
        let Some(gap) = wire::quarantine_gap(message, crate::runtime::watch::now_ms()) else {
            return delivered;
        };
        let told = self.deliver_as_it_is(&gap, replaces).await;
        match told.outcome {
            Outcome::Acked(position) => Delivered {
                outcome: Outcome::Replaced {
                    reason: reason.clone(),
                    position,
                },
                ..told
            },
            Outcome::Rejected(_) | Outcome::Replaced { .. } => delivered,
        }
    }

    async fn deliver_as_it_is(&self, message: &Outgoing, replaces: u64) -> Delivered {
        let subject = self.naming.subject(message);
        let stream = self.naming.stream(message.topic);
        let encoding = self.settings.encoding;
        let mut headers = match headers(message, encoding) {
            Ok(headers) => headers,
            Err(reason) => return rejected(reason),
        };
        let payload = match encoded(message, encoding) {
            Ok(value) => value.map(Cow::into_owned).unwrap_or_default(),
            Err(error) => return rejected(chain(&error)),
        };
        let mut replaces = replaces;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            match message.topic {
                Topic::Deltas | Topic::Processes | Topic::Ports => {}
                Topic::Records | Topic::Pns | Topic::Status => {
                    let name = async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
                    headers.insert(name, replaces.to_string());
                }
            }
            self.wait_until_sound().await;
            let must_look = match self
                .attempt(&subject, headers.clone(), payload.clone())
                .await
            {
                Attempt::Stored(sequence, is_double) => {
                    return self.stored(message, sequence, is_double).await;
                }
                Attempt::Rejected(reason) => return rejected(reason),
                Attempt::WrongLast => true,
                Attempt::NoStream(error) => {
                    self.health.down(&error);
                    self.warn(&error);
                    self.create_again().await;
                    tokio::time::sleep(backoff.next_wait()).await;
                    false
                }
                Attempt::Refused {
                    error,
                    is_persons_matter,
                } => {
                    self.health.down(&error);
                    if is_persons_matter {
                        self.warn(&error);
                    }
                    tokio::time::sleep(backoff.next_wait()).await;
                    false
                }
                Attempt::Unknown(error) => {
                    self.health.down(&error);
                    tokio::time::sleep(backoff.next_wait()).await;
                    true
                }
            };
            if must_look {
                let last = self.last(&stream, &subject).await;
                match last {
                    Some(last) if *last.ce_id == *message.ce_id => {
                        return self.stored(message, last.sequence, true).await;
                    }
                    Some(last) => replaces = last.sequence,
                    None => replaces = 0,
                }
            }
        }
    }

    /// Tells the health each time the connection is lost; never ends. The sink runs it beside its messages, for
    /// a bus that goes away while nothing is to be sent.
    pub(super) async fn watch_connection(&self) {
        loop {
            self.connection.lost().await;
            self.health
                .down(&self.why("the connection to nats was lost"));
            // Looked for also where nothing is to be sent.
            self.wait_until_sound().await;
        }
    }

    async fn wait_until_up(&self) {
        if !self.connection.is_up() {
            self.health.down(&self.why("nats is away"));
            self.connection.wait_until_up().await;
        }
    }

    /// Waits until the connection is up, and the last acknowledged delta was found since it was made.
    async fn wait_until_sound(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            self.wait_until_up().await;
            match self.sound.look(&self.connection, &self.naming).await {
                Ok(()) => return,
                Err(error) => self.health.down(&chain(&error)),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Waits until acknowledged data is found to be lost.
    pub(super) async fn lost(&self) -> Loss {
        self.sound.lost().await
    }

    async fn stored(&self, message: &Outgoing, sequence: u64, is_double: bool) -> Delivered {
        let position = Position {
            partition: 0,
            offset: i64::try_from(sequence).unwrap_or(i64::MAX),
        };
        match message.topic {
            Topic::Deltas => {
                self.sound
                    .remember(position, &message.ce_id, is_double)
                    .await;
            }
            Topic::Records | Topic::Pns | Topic::Status | Topic::Processes | Topic::Ports => {}
        }
        self.health.up();
        Delivered {
            outcome: Outcome::Acked(position),
            sequence: Some(sequence),
        }
    }

    async fn attempt(&self, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> Attempt {
        let lost = self.connection.lost();
        let request = Request::new().headers(headers).payload(payload.into());
        let sending = self
            .connection
            .client
            .send_request(subject.to_owned(), request);
        // The client's own time does not count while its queue is full.
        let answered = tokio::select! {
            answered = tokio::time::timeout(ANSWER_TIMEOUT, sending) => answered,
            () = lost => {
                return Attempt::Unknown(self.why("the connection to nats was lost"));
            }
        };
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return match error.kind() {
                    RequestErrorKind::MaxPayloadExceeded => {
                        Attempt::Rejected(format!("nats takes no such size: {}", chain(&error)))
                    }
                    RequestErrorKind::InvalidSubject => {
                        Attempt::Rejected(format!("`{subject}` is no subject"))
                    }
                    RequestErrorKind::NoResponders => {
                        Attempt::NoStream(format!("no stream of nats takes `{subject}`"))
                    }
                    RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                        Attempt::Unknown(self.why("nats does not answer"))
                    }
                };
            }
            Err(_) => return Attempt::Unknown(self.why("nats does not answer")),
        };
        match serde_json::from_slice::<Answer>(&answer.payload) {
            Ok(Answer {
                error: None,
                seq,
                duplicate,
            }) if seq > 0 => Attempt::Stored(seq, duplicate),
            Ok(Answer {
                error: Some(error), ..
            }) => refusal(&error),
            Ok(_) | Err(_) => {
                Attempt::Unknown(format!("the answer to `{subject}` is none of JetStream's"))
            }
        }
    }

    /// The last message of a subject; asks until it is told.
    async fn last(&self, stream: &str, subject: &str) -> Option<Last> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            self.wait_until_up().await;
            match self.try_last(stream, subject).await {
                Ok(last) => return last,
                Err(error) => self.health.down(&error),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// By way of the stream's leader, not of whoever answers first: a follower may be behind.
    async fn try_last(&self, stream: &str, subject: &str) -> Result<Option<Last>, String> {
        let tried = format!("failed to read the last message of `{subject}`");
        let stream = self
            .connection
            .jetstream
            .get_stream_no_info(stream)
            .await
            .map_err(|error| format!("{tried}: {error}"))?;
        let asking = stream.get_last_raw_message_by_subject(subject);
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(message)) => Ok(Some(Last {
                sequence: message.sequence,
                ce_id: ce_id(&message.headers),
            })),
            Ok(Err(error)) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                // Without its stream the subject has no message.
                LastRawMessageErrorKind::JetStream(told)
                    if classify(told.error_code().0) == Class::NoStream =>
                {
                    Ok(None)
                }
                LastRawMessageErrorKind::JetStream(_)
                | LastRawMessageErrorKind::InvalidSubject
                | LastRawMessageErrorKind::Other => Err(format!("{tried}: {}", chain(&error))),
            },
            Err(_) => Err(self.why(&tried)),
        }
    }

    /// Creates missing streams again, where that is ours to do. One task at a time does it, for all.
    async fn create_again(&self) {
        match self.settings.manage {
            ManageTopics::Create => {}
            ManageTopics::Verify | ManageTopics::Off => return,
        }
        let mut repaired_at = self.repaired_at.lock().await;
        if repaired_at.is_some_and(|at| at.elapsed() < REPAIR_INTERVAL) {
            return;
        }
        match streams::create(&self.connection, &self.naming, &self.settings).await {
            Ok(created) => {
                if !created.is_empty() {
                    tracing::warn!(?created, "streams of nats were gone and are created again");
                    drop(repaired_at);
                    return self.sound.created_again(&created).await;
                }
            }
            Err(error) => tracing::debug!(error = chain(&error), "streams cannot be created again"),
        }
        *repaired_at = Some(Instant::now());
    }

    /// What happened, with what the server last said.
    fn why(&self, what: &str) -> String {
        let told = self.connection.last_error();
        if told.is_empty() {
            what.to_owned()
        } else {
            format!("{what}: {told}")
        }
    }

    /// Warns, at most once in [`WARN_INTERVAL`].
    fn warn(&self, error: &str) {
        let mut warned_at = self
            .warned_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            *warned_at = Some(Instant::now());
            tracing::warn!(error, "nats refuses messages, which are tried again");
        }
    }
}

fn refusal(error: &ApiError) -> Attempt {
    let text = format!(
        "nats refuses it: {} ({})",
        error.description, error.err_code
    );
    match classify(error.err_code) {
        Class::Rejected => Attempt::Rejected(text),
        Class::WrongLastSequence => Attempt::WrongLast,
        Class::NoStream => Attempt::NoStream(text),
        Class::Retry => Attempt::Refused {
            error: text,
            is_persons_matter: false,
        },
        Class::RetryAndWarn => Attempt::Refused {
            error: text,
            is_persons_matter: true,
        },
    }
}

/// The headers of a message, but for the sequence that it replaces.
fn headers(message: &Outgoing, encoding: Encoding) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in cloudevents::headers(message, '-', encoding) {
        let value = HeaderValue::from_str(&value)
            .map_err(|_| format!("the header {name} has a line break in it"))?;
        headers.insert(name.as_str(), value);
    }
    match message.topic {
        Topic::Deltas | Topic::Processes | Topic::Ports => {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, message.ce_id.as_ref());
        }
        Topic::Records | Topic::Pns | Topic::Status => {
            if message.value.is_none() {
                headers.insert("KV-Operation", DELETED);
            }
        }
    }
    Ok(headers)
}

fn rejected(reason: String) -> Delivered {
    Delivered {
        outcome: Outcome::Rejected(reason),
        sequence: None,
    }
}
