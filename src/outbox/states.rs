//! State messages: of each key and generation the newest one, by its row, and by its key that row.

use serde::{Deserialize, Serialize};

use super::ledger::{Fault, Ledger, encode};
use super::{Owed, Stage, StageDone};
use crate::model::Topic;

/// What a state message costs besides its row.
const STATE_OVERHEAD_BYTES: u64 = 48;

/// A state message as it is stored. What follows from the host, the epoch and the row is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredState<'a> {
    #[serde(borrow)]
    pub(super) head: StateHead<'a>,
    pub(super) time_ms: i64,
    #[serde(borrow, with = "serde_bytes")]
    pub(super) value: Option<&'a [u8]>,
}

/// Whose state it is, and what the reconciler waits for. The beginning of a [`StoredState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateHead<'a> {
    pub(super) topic: Topic,
    pub(super) item: &'a str,
    pub(super) generation: u64,
    pub(super) stage: Stage,
}

impl<'a> StoredState<'a> {
    /// A message on its way in.
    pub(super) fn of(owed: &'a Owed) -> Self {
        Self {
            head: StateHead {
                topic: owed.outgoing.topic,
                item: &owed.outgoing.item,
                generation: owed.generation,
                stage: owed.stage,
            },
            time_ms: owed.outgoing.time_ms,
            value: owed.outgoing.value.as_deref(),
        }
    }
}

impl StateHead<'_> {
    /// The namespace whose stage a message ends.
    fn stage_done(&self) -> Option<StageDone> {
        match self.stage {
            Stage::None => None,
            Stage::Mapping | Stage::Tombstone => Some(StageDone {
                pns_inode: self.item.parse().ok()?,
                generation: self.generation,
                stage: self.stage,
            }),
        }
    }
}

/// The key of a state message: topic, generation, item.
pub(super) fn key(topic: Topic, generation: u64, item: &str, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.push(topic as u8);
    buffer.extend_from_slice(&generation.to_be_bytes());
    buffer.extend_from_slice(item.as_bytes());
}

fn bytes_of(stored: &[u8]) -> u64 {
    stored.len() as u64 + STATE_OVERHEAD_BYTES
}

impl Ledger<'_> {
    /// Stores a state message; the earlier one of its key goes.
    pub(super) fn put_state(&mut self, owed: &Owed) -> Result<(), Fault> {
        let stored = StoredState::of(owed);
        let head = stored.head;
        let row = owed.outgoing.row;
        key(head.topic, head.generation, head.item, &mut self.key);
        let earlier = self.latest.insert(self.key.as_slice(), row)?;
        let earlier = earlier.map(|row| row.value());
        if let Some(earlier) = earlier {
            self.take_state(earlier)?;
        }
        let bytes = encode("states", &stored, &mut self.buffer)?;
        self.books.meta.totals.messages += 1;
        self.books.meta.totals.bytes += bytes_of(bytes);
        self.states.insert(row, bytes)?;
        Ok(())
    }

    /// The bus has a state message, or refused it: it goes, if it was not replaced meanwhile. Whether it was
    /// there, and the stage that it ended.
    pub(super) fn settle_state(&mut self, row: u64) -> Result<Option<Option<StageDone>>, Fault> {
        if !self.take_state(row)? {
            return Ok(None);
        }
        // What was taken is in the buffer.
        let (head, _) =
            postcard::take_from_bytes::<StateHead<'_>>(&self.buffer).map_err(|source| {
                Fault::Encoding {
                    table: "states",
                    source,
                }
            })?;
        key(head.topic, head.generation, head.item, &mut self.key);
        let done = head.stage_done();
        self.latest.remove(self.key.as_slice())?;
        Ok(Some(done))
    }

    /// Takes a state message out, into the buffer. `false` where there is none.
    fn take_state(&mut self, row: u64) -> Result<bool, Fault> {
        let Some(taken) = self.states.remove(row)? else {
            return Ok(false);
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(taken.value());
        let totals = &mut self.books.meta.totals;
        totals.messages = totals.messages.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(bytes_of(&self.buffer));
        Ok(true)
    }
}
