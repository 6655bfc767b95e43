//! Delete markers for what expired long ago in the buckets. Each says which message it replaces, so that a
//! value that its host puts again meanwhile stays.

use async_nats::{HeaderMap, Message, Request};

use super::connection::Connection;
use super::errors::{Class, classify};
use super::naming::Naming;
use super::own::newest;
use super::publish::{Answer, DELETED};
use crate::model::Topic;
use crate::sink::SinkError;
use crate::sink::reap::{CE_TYPE, REAP_MAX, Reaped, is_expired};

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
        let reaped = reap_bucket(connection, topic, naming, before_ms)
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
    topic: Topic,
    naming: &Naming,
    before_ms: i64,
) -> Result<Reaped, BoxError> {
    let (expired, read) = expired(connection, topic, naming, before_ms).await?;
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
        name: naming.stream(topic),
        read,
        tombstoned,
    })
}

/// Subjects whose last message has expired, with its sequence, and how many messages were read.
async fn expired(
    connection: &Connection,
    topic: Topic,
    naming: &Naming,
    before_ms: i64,
) -> Result<(Vec<(String, u64)>, u64), BoxError> {
    let mut expired = Vec::new();
    let mut take = |message: &Message, sequence| {
        // A delete marker has no value, and so never expires here.
        if is_expired(topic, &message.payload, before_ms) {
            expired.push((message.subject.to_string(), sequence));
        }
        expired.len() < REAP_MAX
    };
    let read = newest(
        connection,
        &naming.stream(topic),
        &naming.subjects(topic),
        &mut take,
    )
    .await?;
    Ok((expired, read))
}
