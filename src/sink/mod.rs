//! The ends of the flow: stdout, Kafka and NATS behind one trait.
//!
//! A sink takes messages in the outbox's order and reports each exactly once per life of the sink: acknowledged
//! by the bus, or rejected for what the message is. It retries for as long as it takes; no retry gives up on
//! time. What was handed over and not reported when the process dies is handed over again by the next one.
//!
//! A bus can lose what it acknowledged: restored from a copy, started after a power loss, made anew. Each time it
//! is reached again, before anything is sent, the last acknowledged delta is read back ([`Sink::check`]).

pub mod access;
mod bus;
mod cloudevents;
pub mod kafka;
pub mod nats;
pub mod publisher;
pub mod read_back;
mod reap;
mod report;
pub mod snapshot;
pub mod stdout;
mod tls;
pub mod twin;

pub use bus::{Bus, BusUrl, BusUrlError, open};
pub use reap::Reaped;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::model::Topic;
use crate::wire::encoding::{Encoding, EncodingError};

/// Most messages that a sink holds unreported, a bound on memory and on what a crash sends twice.
pub const IN_FLIGHT_MAX: usize = 4_096;

/// Longest first word of the topics' names, in bytes. Kafka takes names of up to 249, NATS's file storage
/// makes a folder of up to 255 from a stream's name.
pub const TOPIC_PREFIX_BYTES_MAX: usize = 200;

/// Messages of a status topic's partition that are looked at for those of one host: a minute's worth of some
/// thousand hosts.
pub const STATUSES_READ_MAX: i64 = 5_000;

/// How long messages stay on the bus: deltas, and as a backstop (design §3) the compacted topics.
pub const RETENTION: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3_600);

/// How long snapshots of processes and ports stay: each of them makes the one before worthless.
pub const SNAPSHOT_RETENTION: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// How long the messages of a topic stay on the bus.
pub fn retention(topic: Topic) -> std::time::Duration {
    match topic {
        Topic::Deltas | Topic::Records | Topic::Pns | Topic::Status => RETENTION,
        Topic::Processes | Topic::Ports => SNAPSHOT_RETENTION,
    }
}

/// One message on its way out. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its row in the outbox, which orders it and names it in the report. 0 for status messages, which are
    /// not stored and not reported.
    pub row: u64,
    /// Which stream.
    pub topic: Topic,
    /// The host, first part of every key.
    pub host_id: Arc<str>,
    /// What follows the host in the key: container id, namespace number, pid, socket, or empty.
    pub item: Arc<str>,
    /// The delta's op, last token of its NATS subject; empty for state messages.
    pub op: Arc<str>,
    /// The JSON text; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// CloudEvents `id`: `host_id:epoch:seq` of a delta, `host_id:epoch:r<row>` of a state message.
    pub ce_id: Arc<str>,
    /// CloudEvents `type`.
    pub ce_type: &'static str,
    /// CloudEvents `source`.
    pub ce_source: Arc<str>,
    /// CloudEvents `time`, and the Kafka timestamp, in unix milliseconds.
    pub time_ms: i64,
}

impl Outgoing {
    /// The Kafka key: `host_id`, or `host_id/item`.
    pub fn key(&self) -> String {
        if self.item.is_empty() {
            self.host_id.to_string()
        } else {
            format!("{}/{}", self.host_id, self.item)
        }
    }
}

/// Where the bus put a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Kafka's partition; 0 elsewhere.
    pub partition: i32,
    /// Kafka's offset, NATS's stream sequence, stdout's line.
    pub offset: i64,
}

/// The newest delta that a bus acknowledged, by which it is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landmark {
    /// The identity of the bus that acknowledged it ([`Checked::bus`]); empty where it was not told.
    pub bus: Arc<str>,
    /// Where the bus put it.
    pub position: Position,
    /// Its CloudEvents `id`.
    pub ce_id: Arc<str>,
}

/// What a bus still has of what it acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What names this bus for as long as it is the same: Kafka's cluster id, the time at which the stream of the
    /// deltas was made on NATS; empty where there is nothing of the kind.
    pub bus: Arc<str>,
    /// Whether all is there.
    pub verdict: Verdict,
}

/// Whether a bus still has what it acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last acknowledged delta is where it was, or went with the topic's retention.
    Kept,
    /// It is not.
    Lost(Loss),
}

/// What is known of a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What was found.
    pub reason: String,
    /// The CloudEvents `id` of the newest delta of this host that is still there, where one was found below the
    /// place of the loss.
    pub newest: Option<Arc<str>>,
}

/// A loss after which nothing is known to be there.
fn lost(reason: String) -> Verdict {
    Verdict::Lost(Loss {
        reason,
        newest: None,
    })
}

/// How a sink's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All is reported and nothing more comes, or it was stopped.
    Finished,
    /// The bus has lost acknowledged data. Everything that came before is reported; what is not reported is to be
    /// handed over again, behind what was lost.
    BusLostData(Loss),
}

/// A key of a compacted topic, without its host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnKey {
    /// Which topic.
    pub topic: Topic,
    /// Container id or namespace number.
    pub item: Arc<str>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The bus has it.
    Acked(Position),
    /// The bus refuses it for what it is: too large, invalid.
    Rejected(String),
    /// The bus refuses the delta for what it is, and has the `gap` of [`crate::wire::quarantine_gap`] in its place.
    Replaced {
        /// Why it refuses the delta.
        reason: String,
        /// Where it has the gap.
        position: Position,
    },
}

/// One message's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its row.
    pub row: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// A message's value as the bus gets it; `None` is a tombstone.
fn encoded(
    message: &Outgoing,
    encoding: Encoding,
) -> Result<Option<std::borrow::Cow<'_, [u8]>>, EncodingError> {
    let value = message.value.as_deref();
    value
        .map(|value| encoding.encode(message.topic, value))
        .transpose()
}

/// Whether the bus takes messages, for status, readiness and logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkHealth {
    /// The newest attempt went through.
    pub up: bool,
    /// The newest error, its whole chain; empty when up.
    pub error: String,
    /// The connection is one snapshot's, made anew for each: its changes are told at DEBUG.
    pub is_brief: bool,
}

/// How topics, streams and buckets are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManageTopics {
    /// Create what is missing, check what is there.
    Create,
    /// Check, and fail where one is missing or otherwise than needed.
    Verify,
    /// Leave them alone.
    Off,
}

/// The topics as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// The first word of every name.
    pub prefix: String,
    /// Kafka partitions of each topic.
    pub partitions: i32,
    /// Kafka replication factor; `-1` for the broker's default. NATS replicas: at least 1.
    pub replication: i32,
    /// Who makes them.
    pub manage: ManageTopics,
    /// How values are written; on stdout always as JSON.
    pub encoding: Encoding,
    /// Which of them are used, and so made and checked.
    pub used: Vec<Topic>,
}

impl TopicSettings {
    /// The name of a topic on Kafka, and the start of its subjects on NATS: `<prefix>.<word>`.
    pub fn topic_name(&self, topic: Topic) -> String {
        format!("{}.{}", self.prefix, topic.as_str())
    }

    /// Checks what no bus takes: a prefix with other characters than `[-._A-Za-z0-9]`, with an empty word
    /// between dots, or longer than [`TOPIC_PREFIX_BYTES_MAX`]; no partitions; a replication factor of 0.
    ///
    /// # Errors
    /// [`SinkError::Misconfigured`] names the setting.
    pub fn check(&self) -> Result<(), SinkError> {
        let wrong = |message: String| Err(SinkError::Misconfigured { message });
        let prefix = &self.prefix;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if prefix.is_empty() || prefix.len() > TOPIC_PREFIX_BYTES_MAX || !prefix.bytes().all(legal)
        {
            return wrong(format!(
                "topics.prefix `{prefix}` must be 1 to {TOPIC_PREFIX_BYTES_MAX} characters of \
                 letters, digits, `-`, `_` and `.`"
            ));
        }
        if prefix.split('.').any(str::is_empty) {
            return wrong(format!(
                "topics.prefix `{prefix}` must not begin or end with `.`, nor have two in a row"
            ));
        }
        if self.partitions < 1 {
            return wrong(format!(
                "topics.partitions must be at least 1, not {}",
                self.partitions
            ));
        }
        if self.replication != -1 && !(1..=i32::from(i16::MAX)).contains(&self.replication) {
            return wrong(format!(
                "topics.replication must be -1 (the broker's default) or at least 1, not {}",
                self.replication
            ));
        }
        Ok(())
    }
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            prefix: "quaymaster".to_owned(),
            partitions: 12,
            replication: -1,
            manage: ManageTopics::Create,
            encoding: Encoding::Json,
            used: Topic::ALL.to_vec(),
        }
    }
}

/// What a sink could not do. `Display` leaves the source out.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A setting is wrong, or the bus has a topic that contradicts it: a person has to act.
    #[error("{message}")]
    Misconfigured {
        /// What, on which topic, and which setting.
        message: String,
    },
    /// The bus cannot be reached or cannot answer now.
    #[error("{message}")]
    Unavailable {
        /// What was tried and where.
        message: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The bus is there and does not let us in: a wrong password, a right that is missing.
    #[error("{message}")]
    Denied {
        /// Where, what it says, and what to do.
        message: String,
    },
    /// A certificate, the bus's or ours, is not believed.
    #[error("{message}")]
    Untrusted {
        /// Whose, why, and what to do.
        message: String,
    },
    /// A file with a certificate or a secret is of no use.
    #[error(transparent)]
    File(#[from] access::FileError),
}

impl SinkError {
    /// Whether it may heal without a setting being changed, so that whoever runs for long tries again: a bus that
    /// comes back, a certificate that is renewed, a password that is set anew in its file.
    pub fn may_heal(&self) -> bool {
        match self {
            Self::Misconfigured { .. } => false,
            Self::Unavailable { .. }
            | Self::Denied { .. }
            | Self::Untrusted { .. }
            | Self::File(_) => true,
        }
    }
}

/// One bus.
#[async_trait]
pub trait Sink: Send + 'static {
    /// Connects, and creates or checks the topics.
    ///
    /// # Errors
    /// One that [may heal](SinkError::may_heal) is tried again by the caller; another one ends the program.
    /// It may be dropped midway.
    async fn prepare(&mut self) -> Result<(), SinkError>;

    /// Reads the last acknowledged delta back. Called after [`Self::prepare`] and before [`Self::run`], which does the
    /// same by itself at each reconnect. Without a landmark the bus only tells who it is.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where the bus cannot tell now. It may be dropped midway.
    async fn check(&mut self, _last: Option<&Landmark>) -> Result<Checked, SinkError> {
        Ok(Checked {
            bus: Arc::from(""),
            verdict: Verdict::Kept,
        })
    }

    /// The keys of a host in the compacted topics of records and mappings whose newest message is a value. It reads
    /// at a bounded rate, for minutes where the topics are large.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where the bus cannot tell now. Dropped midway, the reading ends within a second.
    async fn own_keys(&mut self, _host_id: &str) -> Result<Vec<OwnKey>, SinkError> {
        Ok(Vec::new())
    }

    /// The newest status messages of a host that the bus has, the oldest first: one at most on NATS, those among the
    /// last [`STATUSES_READ_MAX`] of the partition on Kafka.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where the bus cannot tell now. It may be dropped midway.
    async fn statuses(&mut self, _host_id: &str) -> Result<Vec<Vec<u8>>, SinkError> {
        Ok(Vec::new())
    }

    /// Sends what comes in, in order, and reports each, until `requests` is closed and all is reported, or
    /// `stop` is cancelled. Retries by itself. Each time the bus was away, nothing is sent before the last
    /// acknowledged delta is read back.
    ///
    /// # Errors
    /// Only for what no retry can heal: stdout was closed.
    async fn run(
        &mut self,
        requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError>;
}
