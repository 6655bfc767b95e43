//! The stream of the deltas and the KV buckets: created, checked, listed. Settings and reasons: design §3.
//!
//! A bucket is a stream with the settings that NATS's KV clients expect (ADR-8): one message a subject,
//! rollups allowed, deletes denied, direct reads. It has no limit in bytes; values and delete markers that
//! nobody renews leave after [`retention`].

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};

use super::connection::Connection;
use super::naming::Naming;
use crate::model::Topic;
use crate::sink::{ManageTopics, SinkError, TopicSettings, retention};

/// Within this time a delta that is sent again is recognised by its id: the server's default.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// The server's code for a stream that is not there.
const STREAM_NOT_FOUND: u64 = 10_059;

/// A stream as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its name; a bucket's begins with `KV_`.
    pub name: String,
    /// Whether it is there; the rest is empty where it is not.
    pub exists: bool,
    /// What it listens to.
    pub subjects: Vec<String>,
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Replicas.
    pub replicas: usize,
    /// Messages leave it after this time; zero for never.
    pub age_max: Duration,
    /// Messages that it keeps of each subject; -1 for all.
    pub messages_per_subject: i64,
}

impl fmt::Display for StreamInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.exists {
            return write!(f, "{}: not there", self.name);
        }
        write!(
            f,
            "{}: {} messages, {} bytes, subjects {}, replicas {}, max_age {} s, max_msgs_per_subject {}",
            self.name,
            self.messages,
            self.bytes,
            self.subjects.join(" "),
            self.replicas,
            self.age_max.as_secs(),
            self.messages_per_subject
        )
    }
}

/// Creates and checks, only checks, or leaves alone, as the settings say; the names of what was created.
pub(super) async fn prepare(
    connection: &Connection,
    naming: &Naming,
    settings: &TopicSettings,
) -> Result<Vec<String>, SinkError> {
    match settings.manage {
        ManageTopics::Create => {
            let created = create(connection, naming, settings).await?;
            verify(connection, naming, settings).await?;
            Ok(created)
        }
        ManageTopics::Verify => verify(connection, naming, settings)
            .await
            .map(|()| Vec::new()),
        ManageTopics::Off => Ok(Vec::new()),
    }
}

/// Creates what is missing and returns the names of what it created; what exists is not touched.
pub(super) async fn create(
    connection: &Connection,
    naming: &Naming,
    settings: &TopicSettings,
) -> Result<Vec<String>, SinkError> {
    let mut created = Vec::new();
    for topic in settings.used.iter().copied() {
        let name = naming.stream(topic);
        if look_up(connection, &name).await?.is_some() {
            continue;
        }
        let config = wanted(naming, topic, settings);
        let mark = connection.refusals();
        if let Err(error) = connection.jetstream.create_stream(config).await {
            let error = creation_error(&name, error.kind(), settings);
            let subject = format!("$JS.API.STREAM.CREATE.{name}");
            return Err(connection.explain(mark, &subject, error));
        }
        created.push(name);
    }
    Ok(created)
}

/// Checks that each stream exists and keeps what its readers rely on.
pub(super) async fn verify(
    connection: &Connection,
    naming: &Naming,
    settings: &TopicSettings,
) -> Result<(), SinkError> {
    for topic in settings.used.iter().copied() {
        let name = naming.stream(topic);
        let Some(info) = look_up(connection, &name).await? else {
            return Err(SinkError::Misconfigured {
                message: format!(
                    "the stream `{name}` is not there: create it, set topics.manage = \"create\", or \
                     choose another topics.prefix"
                ),
            });
        };
        if let Some(difference) = difference(naming, topic, &info.config) {
            return Err(SinkError::Misconfigured {
                message: format!(
                    "the stream `{name}` has {difference}: alter the stream, choose another \
                     topics.prefix, or set topics.manage = \"off\" to go without this check"
                ),
            });
        }
    }
    Ok(())
}

/// Shows the streams as they are.
pub(super) async fn list(
    connection: &Connection,
    naming: &Naming,
    settings: &TopicSettings,
) -> Result<Vec<StreamInfo>, SinkError> {
    let mut infos = Vec::new();
    for topic in settings.used.iter().copied() {
        let name = naming.stream(topic);
        infos.push(match look_up(connection, &name).await? {
            Some(info) => StreamInfo {
                name,
                exists: true,
                subjects: info.config.subjects,
                messages: info.state.messages,
                bytes: info.state.bytes,
                replicas: info.config.num_replicas,
                age_max: info.config.max_age,
                messages_per_subject: info.config.max_messages_per_subject,
            },
            None => StreamInfo {
                name,
                exists: false,
                subjects: Vec::new(),
                messages: 0,
                bytes: 0,
                replicas: 0,
                age_max: Duration::ZERO,
                messages_per_subject: 0,
            },
        });
    }
    Ok(infos)
}

/// What the server says of a stream; `None` where it does not exist.
pub(super) async fn look_up(
    connection: &Connection,
    name: &str,
) -> Result<Option<async_nats::jetstream::stream::Info>, SinkError> {
    let mark = connection.refusals();
    match connection.jetstream.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(told) if told.error_code().0 == STREAM_NOT_FOUND => {
                Ok(None)
            }
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::InvalidStreamName => {
                let subject = format!("$JS.API.STREAM.INFO.{name}");
                if let Some(told) = connection.refused_since(mark, &subject) {
                    return Err(SinkError::Denied {
                        message: format!(
                            "failed to ask nats for the stream `{name}`: {told}: grant that right"
                        ),
                    });
                }
                Err(SinkError::Unavailable {
                    message: format!(
                        "failed to ask nats for the stream `{name}` (is JetStream enabled there?)"
                    ),
                    source: Some(Box::new(error)),
                })
            }
        },
    }
}

fn wanted(naming: &Naming, topic: Topic, settings: &TopicSettings) -> Config {
    let base = Config {
        name: naming.stream(topic),
        subjects: vec![naming.subjects(topic)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        max_age: retention(topic),
        max_bytes: -1,
        max_messages: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: usize::try_from(settings.replication).unwrap_or(1).max(1),
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    };
    match topic {
        Topic::Deltas | Topic::Processes | Topic::Ports => Config {
            max_messages_per_subject: -1,
            discard: DiscardPolicy::Old,
            ..base
        },
        Topic::Records | Topic::Pns | Topic::Status => Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            ..base
        },
    }
}

/// What an existing stream has otherwise than its readers need; limits in bytes, age and replicas are its
/// owner's matter.
fn difference(naming: &Naming, topic: Topic, found: &Config) -> Option<String> {
    let subjects = naming.subjects(topic);
    if !found.subjects.contains(&subjects) {
        return Some(format!(
            "the subjects `{}`, and `{subjects}` is needed",
            found.subjects.join(" ")
        ));
    }
    if found.retention != RetentionPolicy::Limits {
        return Some(format!(
            "the retention `{:?}`, and `Limits` is needed",
            found.retention
        ));
    }
    if found.no_ack {
        return Some("no_ack set, and acknowledgements are needed".to_owned());
    }
    let per_subject = found.max_messages_per_subject;
    match topic {
        Topic::Deltas | Topic::Processes | Topic::Ports if per_subject > 0 => Some(format!(
            "max_msgs_per_subject {per_subject}, and no such limit (-1) is needed"
        )),
        Topic::Records | Topic::Pns | Topic::Status if per_subject < 1 => Some(format!(
            "max_msgs_per_subject {per_subject}, and 1 is needed, as a KV bucket has"
        )),
        Topic::Deltas
        | Topic::Records
        | Topic::Pns
        | Topic::Status
        | Topic::Processes
        | Topic::Ports => None,
    }
}

/// Why a stream was not created.
fn creation_error(name: &str, kind: CreateStreamErrorKind, settings: &TopicSettings) -> SinkError {
    // Stream limit 10027, invalid config 10052, replicas not updatable 10061 or without a cluster 10074,
    // subjects overlap 10065, name in use 10058.
    const PERSONS_MATTER: [u64; 6] = [10_027, 10_052, 10_058, 10_061, 10_065, 10_074];
    if let CreateStreamErrorKind::JetStream(told) = &kind
        && PERSONS_MATTER.contains(&told.error_code().0)
    {
        return SinkError::Misconfigured {
            message: format!(
                "nats refuses to create the stream `{name}` with topics.replication = {} ({told}): \
                 alter that or topics.prefix, or create it by hand and set topics.manage = \"verify\"",
                settings.replication
            ),
        };
    }
    SinkError::Unavailable {
        message: format!("failed to create the stream `{name}`: {kind}"),
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_readers_rely_on_is_a_difference() {
        let settings = TopicSettings::default();
        let naming = Naming::new(&settings);
        let deltas = wanted(&naming, Topic::Deltas, &settings);
        let records = wanted(&naming, Topic::Records, &settings);
        let cases = [
            (Topic::Deltas, deltas.clone(), None),
            (Topic::Records, records.clone(), None),
            (
                Topic::Records,
                Config {
                    max_messages_per_subject: -1,
                    ..records.clone()
                },
                Some("max_msgs_per_subject -1"),
            ),
            (
                Topic::Deltas,
                Config {
                    max_messages_per_subject: 1,
                    ..deltas.clone()
                },
                Some("max_msgs_per_subject 1"),
            ),
            (
                Topic::Deltas,
                Config {
                    retention: RetentionPolicy::WorkQueue,
                    ..deltas.clone()
                },
                Some("WorkQueue"),
            ),
            (Topic::Deltas, records, Some("$KV.quaymaster-records.>")),
            (
                Topic::Deltas,
                Config {
                    max_bytes: 1_000,
                    max_age: Duration::from_secs(60),
                    num_replicas: 3,
                    ..deltas
                },
                None,
            ),
        ];
        for (topic, found, piece) in cases {
            let told = difference(&naming, topic, &found);
            assert_eq!(told.is_some(), piece.is_some(), "{told:?}");
            if let (Some(told), Some(piece)) = (told, piece) {
                assert!(told.contains(piece), "{told}");
            }
        }
    }
}
