//! Delete markers for what expired long ago in the buckets. Each says which message it replaces, so that a
//! value that its host puts again meanwhile stays.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{HeaderMap, Request};
use futures::StreamExt as _;

use super::connection::Connection;
use super::errors::{Class, classify};
use super::naming::Naming;
use super::publish::{Answer, DELETED};
use crate::model::Topic;
use crate::sink::SinkError;
use crate::sink::reap::{CE_TYPE, READ_MAX, REAP_MAX, Reaped, is_expired};

/// Time for the next message.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Reads the newest value of each key and deletes those that expired before `before_ms` (unix milliseconds).
pub(super) async fn reap(
    connection: &Connection,
    naming: &Naming,
    before_ms: i64,
) -> Result<Vec<Reaped>, SinkError> {
    let mut all = Vec::new();
    for topic in [Topic::Records, Topic::Pns, Topic::Status] {
        let name = naming.stream(topic);
        let reaped = reap_bucket(connection, &name, &naming.subjects(topic), before_ms)
            .await
            .map_err(|source| SinkError::Unavailable {
                message: format!("failed to reap the stream `{name}`"),
                source: Some(source),
            })?;
        all.push(reaped);
    }
    Ok(all)
}

async fn reap_bucket(
    connection: &Connection,
    name: &str,
    subjects: &str,
    before_ms: i64,
) -> Result<Reaped, BoxError> {
    let (expired, read) = expired(connection, name, subjects, before_ms).await?;
    let mut tombstoned = 0;
    for (subject, sequence) in expired {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", DELETED);
        headers.insert("ce-type", CE_TYPE);
        headers.insert(
            async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            sequence.to_string(),
        );
        let request = Request::new().headers(headers);
        let answer = connection.client.send_request(subject, request).await?;
        match serde_json::from_slice::<Answer>(&answer.payload)?.error {
            None => tombstoned += 1,
            // Its host has put it again.
            Some(error) if classify(error.err_code) == Class::WrongLastSequence => {}
            Some(error) => return Err(error.description.into()),
        }
    }
    Ok(Reaped {
        name: name.to_owned(),
        read,
        tombstoned,
    })
}

/// Subjects whose last message has expired, with its sequence, and how many messages were read.
async fn expired(
    connection: &Connection,
    name: &str,
    subjects: &str,
    before_ms: i64,
) -> Result<(Vec<(String, u64)>, u64), BoxError> {
    let stream = connection.jetstream.get_stream(name).await?;
    let (mut expired, mut read) = (Vec::new(), 0);
    if stream.cached_info().state.messages == 0 {
        return Ok((expired, read));
    }
    let consumer = stream
        .create_consumer(OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: subjects.to_owned(),
            ..OrderedConfig::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    while read < READ_MAX && expired.len() < REAP_MAX {
        let Some(message) = tokio::time::timeout(READ_TIMEOUT, messages.next()).await? else {
            break;
        };
        let message = message?;
        let info = message.info()?;
        read += 1;
        // A delete marker has no value, and so never expires here.
        if is_expired(&message.payload, before_ms) {
            expired.push((message.subject.to_string(), info.stream_sequence));
        }
        if info.pending == 0 {
            break;
        }
    }
    Ok((expired, read))
}
