//! Reads what is owed, in order, for the publisher.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable};
use serde::{Deserialize, Serialize};

use super::chunk::{self, StoredDelta};
use super::ledger::Fault;
use super::states::StoredState;
use super::{DELTAS, LastAcked, META, Meta, OutboxError, STATES, Shared};
use crate::model::Topic;
use crate::sink::Outgoing;
use crate::wire;

/// A message by itself, as the quarantine keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMessage {
    pub(super) topic: Topic,
    pub(super) item: Arc<str>,
    pub(super) op: Arc<str>,
    #[serde(with = "serde_bytes")]
    value: Option<Vec<u8>>,
    ce_id: Arc<str>,
    time_ms: i64,
}

impl StoredMessage {
    pub(super) fn of_delta(delta: &StoredDelta<'_>, ce_id: Arc<str>) -> Self {
        Self {
            topic: Topic::Deltas,
            item: "".into(),
            op: delta.op.into(),
            value: Some(delta.value.to_vec()),
            ce_id,
            time_ms: delta.time_ms,
        }
    }

    pub(super) fn of_state(state: &StoredState<'_>, ce_id: Arc<str>) -> Self {
        Self {
            topic: state.head.topic,
            item: state.head.item.into(),
            op: "".into(),
            value: state.value.map(<[u8]>::to_vec),
            ce_id,
            time_ms: state.time_ms,
        }
    }

    /// The message as it is sent.
    pub(super) fn into_outgoing(
        self,
        row: u64,
        host_id: &Arc<str>,
        ce_source: &Arc<str>,
    ) -> Outgoing {
        Outgoing {
            row,
            topic: self.topic,
            host_id: Arc::clone(host_id),
            item: self.item,
            op: self.op,
            value: self.value.map(Bytes::from),
            ce_id: self.ce_id,
            ce_type: wire::ce_type(self.topic),
            ce_source: Arc::clone(ce_source),
            time_ms: self.time_ms,
        }
    }
}

/// What the reader and the one that commits tell each other.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The highest row that was handed out: what is in flight is not dropped.
    pub(super) handed: u64,
    /// The newest delta that the bus has.
    pub(super) last_acked: Option<LastAcked>,
}

/// Reads messages in the order of their rows.
#[derive(Clone)]
pub struct OutboxReader {
    database: Shared,
    flow: Arc<Mutex<Flow>>,
}

impl OutboxReader {
    pub(super) fn new(database: Shared, flow: Arc<Mutex<Flow>>) -> Self {
        Self { database, flow }
    }

    /// The newest delta that the bus acknowledged, as far as that is committed.
    pub fn last_acked(&self) -> Option<LastAcked> {
        let flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        flow.last_acked.clone()
    }

    /// The next messages that are owed from `from_row` on, at most `messages_max` of them and, but for the first,
    /// `bytes_max`. What cannot be decoded is skipped with an error in the log; it stays in the file.
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
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            return Ok(Vec::new());
        };
        let window = Window {
            from_row,
            messages_max,
            bytes_max,
            host_id,
            ce_source,
        };
        let messages = window
            .read(database)
            .map_err(|fault| OutboxError::of("read", "".as_ref(), fault))?;
        if let Some(last) = messages.last() {
            flow.handed = flow.handed.max(last.row);
        }
        Ok(messages)
    }
}

/// What is read at once.
struct Window<'a> {
    from_row: u64,
    messages_max: usize,
    bytes_max: usize,
    host_id: &'a Arc<str>,
    ce_source: &'a Arc<str>,
}

impl Window<'_> {
    fn read(&self, database: &Database) -> Result<Vec<Outgoing>, Fault> {
        let transaction = database.begin_read()?;
        let meta = read_meta(&transaction.open_table(META)?)?;
        let from_row = self.from_row.max(meta.acked_row + 1);
        let deltas = self.deltas(&transaction.open_table(DELTAS)?, from_row, &meta)?;
        let states = self.states(&transaction.open_table(STATES)?, &meta)?;
        // Each is read as far as it would be alone: what is cut off here is behind the end of both.
        let mut bytes = 0;
        Ok(merge(deltas, states)
            .take(self.messages_max)
            .take_while(|message| {
                let is_first = bytes == 0;
                bytes += size_of(message);
                is_first || bytes <= self.bytes_max
            })
            .collect())
    }

    fn deltas(
        &self,
        table: &ReadOnlyTable<u64, &'static [u8]>,
        from_row: u64,
        meta: &Meta,
    ) -> Result<Vec<Outgoing>, Fault> {
        let mut found = Found::of(self);
        let before = table.range(..from_row)?.next_back().transpose()?;
        let first_key = before.map_or(from_row, |(key, _)| key.value());
        for entry in table.range(first_key..)? {
            let (key, chunk) = entry?;
            let deltas = match chunk::decode(chunk.value()) {
                Ok((head, _)) if head.last_row < from_row => continue,
                Ok((_, deltas)) => deltas,
                Err(error) => {
                    tracing::error!(row = key.value(), %error, "stored deltas cannot be decoded");
                    continue;
                }
            };
            for delta in deltas {
                match delta {
                    Ok(delta) if delta.row < from_row => {}
                    Ok(delta) => {
                        let ce_id = wire::delta_id(&meta.host_id, &meta.epoch, delta.seq);
                        let stored = StoredMessage::of_delta(&delta, ce_id);
                        if !found.add(delta.row, stored) {
                            return Ok(found.messages);
                        }
                    }
                    Err(error) => {
                        tracing::error!(row = key.value(), %error, "a stored delta cannot be decoded");
                    }
                }
            }
        }
        Ok(found.messages)
    }

    fn states(
        &self,
        table: &ReadOnlyTable<u64, &'static [u8]>,
        meta: &Meta,
    ) -> Result<Vec<Outgoing>, Fault> {
        let mut found = Found::of(self);
        for entry in table.range(self.from_row..)? {
            let (row, stored) = entry?;
            let row = row.value();
            match postcard::from_bytes::<StoredState<'_>>(stored.value()) {
                Ok(state) => {
                    let ce_id = wire::state_id(&meta.host_id, &meta.epoch, row);
                    if !found.add(row, StoredMessage::of_state(&state, ce_id)) {
                        break;
                    }
                }
                Err(error) => {
                    tracing::error!(row, %error, "a stored message cannot be decoded");
                }
            }
        }
        Ok(found.messages)
    }
}

/// What was found in one table.
struct Found<'w> {
    window: &'w Window<'w>,
    messages: Vec<Outgoing>,
    bytes: usize,
}

impl<'w> Found<'w> {
    fn of(window: &'w Window<'w>) -> Self {
        Self {
            window,
            messages: Vec::new(),
            bytes: 0,
        }
    }

    /// Whether more would fit.
    fn add(&mut self, row: u64, stored: StoredMessage) -> bool {
        let Window {
            host_id, ce_source, ..
        } = self.window;
        let message = stored.into_outgoing(row, host_id, ce_source);
        self.bytes += size_of(&message);
        self.messages.push(message);
        self.messages.len() < self.window.messages_max && self.bytes <= self.window.bytes_max
    }
}

fn size_of(message: &Outgoing) -> usize {
    message.item.len() + message.value.as_ref().map_or(0, |value| value.len()) + 1
}

/// Merges two lists that ascend by row.
fn merge(a: Vec<Outgoing>, b: Vec<Outgoing>) -> impl Iterator<Item = Outgoing> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(first), Some(second)) if second.row < first.row => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

/// What the state says of itself as a whole; the beginning of all where it says nothing.
pub(super) fn read_meta(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Meta, Fault> {
    match table.get("meta")? {
        Some(bytes) => Meta::decode(bytes.value()),
        None => Ok(Meta::default()),
    }
}
