//! Reads what is owed, in order, for the publisher.

use std::sync::{Arc, Mutex, PoisonError};

use redb::ReadableDatabase as _;
use serde::{Deserialize, Serialize};

use super::{MESSAGES, OutboxError, Owed, Shared, Stage};
use crate::model::Topic;
use crate::sink::Outgoing;
use crate::wire;

/// A message as it is stored; the host and the CloudEvents attributes that follow from it are not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredMessage {
    topic: Topic,
    item: Arc<str>,
    op: Arc<str>,
    #[serde(with = "serde_bytes")]
    value: Option<Vec<u8>>,
    ce_id: Arc<str>,
    time_ms: i64,
    generation: u64,
    seq: u64,
    stage: Stage,
}

/// The same, borrowed from a message on its way in.
#[derive(Serialize)]
pub(super) struct MessageToStore<'a> {
    topic: Topic,
    item: &'a str,
    op: &'a str,
    #[serde(with = "serde_bytes")]
    value: Option<&'a [u8]>,
    ce_id: &'a str,
    time_ms: i64,
    generation: u64,
    seq: u64,
    stage: Stage,
}

impl<'a> From<&'a Owed> for MessageToStore<'a> {
    fn from(owed: &'a Owed) -> Self {
        let outgoing = &owed.outgoing;
        Self {
            topic: outgoing.topic,
            item: &outgoing.item,
            op: &outgoing.op,
            value: outgoing.value.as_deref(),
            ce_id: &outgoing.ce_id,
            time_ms: outgoing.time_ms,
            generation: owed.generation,
            seq: owed.seq,
            stage: owed.stage,
        }
    }
}

impl StoredMessage {
    /// The message as it is sent.
    pub(super) fn into_owed(self, row: u64, host_id: &Arc<str>, ce_source: &Arc<str>) -> Owed {
        Owed {
            outgoing: Outgoing {
                row,
                topic: self.topic,
                host_id: Arc::clone(host_id),
                item: self.item,
                op: self.op,
                value: self.value.map(Arc::from),
                ce_id: self.ce_id,
                ce_type: wire::ce_type(self.topic),
                ce_source: Arc::clone(ce_source),
                time_ms: self.time_ms,
            },
            generation: self.generation,
            seq: self.seq,
            stage: self.stage,
        }
    }
}

/// Reads messages in the order of their rows.
#[derive(Clone)]
pub struct OutboxReader {
    database: Shared,
    handed: Arc<Mutex<u64>>,
}

impl OutboxReader {
    pub(super) fn new(database: Shared, handed: Arc<Mutex<u64>>) -> Self {
        Self { database, handed }
    }

    /// The next messages from `from_row` on, at most `messages_max` of them and, but for the first, `bytes_max`.
    /// Rows that cannot be decoded are skipped with an error in the log; they stay in the file.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn read(
        &self,
        from_row: u64,
        messages_max: usize,
        bytes_max: usize,
        host_id: &Arc<str>,
        ce_source: &Arc<str>,
    ) -> Result<Vec<Outgoing>, OutboxError> {
        let failed = |source: redb::Error| OutboxError::Database {
            action: "read",
            path: "".into(),
            source: Box::new(source),
        };
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            return Ok(Vec::new());
        };
        let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
        let table = transaction
            .open_table(MESSAGES)
            .map_err(|e| failed(e.into()))?;
        let mut messages = Vec::new();
        let mut bytes = 0;
        for entry in table.range(from_row..).map_err(|e| failed(e.into()))? {
            let (row, value) = entry.map_err(|e| failed(e.into()))?;
            bytes += value.value().len();
            if !messages.is_empty() && bytes > bytes_max {
                break;
            }
            match postcard::from_bytes::<StoredMessage>(value.value()) {
                Ok(stored) => {
                    messages.push(stored.into_owed(row.value(), host_id, ce_source).outgoing);
                }
                Err(error) => {
                    tracing::error!(row = row.value(), %error, "a stored message cannot be decoded");
                }
            }
            if messages.len() >= messages_max {
                break;
            }
        }
        if let Some(last) = messages.last() {
            *handed = (*handed).max(last.row);
        }
        Ok(messages)
    }
}
