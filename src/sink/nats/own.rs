//! What the buckets hold of one host: the newest message of each of its keys.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::StreamExt as _;

use super::connection::{ANSWER_TIMEOUT, Connection};
use super::errors::{Class, classify};
use super::naming::Naming;
use super::streams;
use crate::model::Topic;
use crate::sink::reap::READ_MAX;
use crate::sink::{OwnKey, SinkError};

/// Time for the next message.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The keys of a host whose newest message is a value.
pub(super) async fn keys(
    connection: &Connection,
    naming: &Naming,
    host_id: &str,
) -> Result<Vec<OwnKey>, SinkError> {
    let mut all = Vec::new();
    for topic in [Topic::Records, Topic::Pns] {
        let name = naming.stream(topic);
        if streams::look_up(connection, &name).await?.is_none() {
            continue;
        }
        let subjects = naming.host_subjects(topic, host_id);
        let mut take = |message: &Message, _| {
            if !is_deletion(message)
                && let Some(item) = naming.item(topic, host_id, &message.subject)
            {
                all.push(OwnKey {
                    topic,
                    item: Arc::from(item),
                });
            }
            true
        };
        let mark = connection.refusals();
        newest(connection, &name, &subjects, &mut take)
            .await
            .map_err(|source| {
                let subject = "$JS.API.CONSUMER.";
                connection.explain(mark, subject, unreadable(&name, source))
            })?;
    }
    Ok(all)
}

/// The newest status of a host, where there is one.
pub(super) async fn statuses(
    connection: &Connection,
    naming: &Naming,
    host_id: &str,
) -> Result<Vec<Vec<u8>>, SinkError> {
    let name = naming.stream(Topic::Status);
    let subject = naming.host_subject(Topic::Status, host_id);
    let mark = connection.refusals();
    let unreadable = |source: BoxError| {
        let subject = format!("$JS.API.STREAM.MSG.GET.{name}");
        connection.explain(mark, &subject, unreadable(&name, source))
    };
    let stream = connection.jetstream.get_stream_no_info(&name).await;
    let stream = stream.map_err(|source| unreadable(source.into()))?;
    let asking = stream.get_last_raw_message_by_subject(&subject);
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
    match answered.map_err(|source| unreadable(source.into()))? {
        // A status is never deleted but by an empty marker, which is no JSON.
        Ok(message) => Ok(vec![message.payload.to_vec()]),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(Vec::new()),
            LastRawMessageErrorKind::JetStream(told)
                if classify(told.error_code().0) == Class::NoStream =>
            {
                Ok(Vec::new())
            }
            LastRawMessageErrorKind::JetStream(_)
            | LastRawMessageErrorKind::InvalidSubject
            | LastRawMessageErrorKind::Other => Err(unreadable(error.into())),
        },
    }
}

/// Gives the newest message of each subject, with its sequence, to `take` until that answers `false`; how many
/// there were.
pub(super) async fn newest(
    connection: &Connection,
    name: &str,
    subjects: &str,
    take: &mut (dyn FnMut(&Message, u64) -> bool + Send),
) -> Result<u64, BoxError> {
    let stream = connection.jetstream.get_stream(name).await?;
    let mut read = 0;
    let consumer = stream
        .create_consumer(OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: subjects.to_owned(),
            ..OrderedConfig::default()
        })
        .await?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(read);
    }
    let mut messages = consumer.messages().await?;
    while read < READ_MAX {
        let Some(message) = tokio::time::timeout(READ_TIMEOUT, messages.next()).await? else {
            break;
        };
        let message: jetstream::Message = message?;
        let (pending, sequence) = {
            let info = message.info()?;
            (info.pending, info.stream_sequence)
        };
        read += 1;
        if !take(&message.message, sequence) || pending == 0 {
            break;
        }
    }
    Ok(read)
}

/// Whether a message says that its key has no value.
fn is_deletion(message: &Message) -> bool {
    let headers = message.headers.as_ref();
    headers.is_some_and(|headers| headers.get("KV-Operation").is_some())
}

fn unreadable(name: &str, source: BoxError) -> SinkError {
    SinkError::Unavailable {
        message: format!("failed to read the stream `{name}` back"),
        source: Some(source),
    }
}
