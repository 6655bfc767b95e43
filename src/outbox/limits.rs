//! The outbox's limit: the oldest deltas go, and one `gap` stands in their place.
//!
//! State messages are coalesced and never dropped. What has been handed to the publisher is in flight and is
//! not dropped either: the gap takes the row of the last delta that went, which no acknowledgement may meet.

use std::sync::PoisonError;

use super::{Batch, Outbox, Owed, Plan, Stage, message_bytes};
use crate::sink::Outgoing;

/// What remains of the limit after a drop, so that not every commit drops.
const REMAINS_PERCENT: u64 = 90;

/// Deltas that go.
#[derive(Debug)]
pub(super) struct Drop {
    pub(super) rows: Vec<u64>,
    seq_from: u64,
    seq: u64,
}

impl Drop {
    /// The gap that stands for them, in the row of the last.
    pub(super) fn gap(&self, render: &dyn Fn(u64, u64, u64) -> Outgoing) -> Owed {
        let row = self.rows.last().copied().unwrap_or(0);
        Owed {
            outgoing: render(self.seq_from, self.seq, row),
            generation: 0,
            seq: self.seq_from,
            stage: Stage::None,
        }
    }
}

impl Outbox {
    /// Chooses what goes, if the batch passes the limit.
    pub(super) fn plan_drop(&self, batch: &Batch, plan: &Plan) -> Option<Drop> {
        let added: u64 = batch
            .messages
            .iter()
            .enumerate()
            .filter(|(index, _)| !plan.skipped.contains(index))
            .map(|(_, owed)| u64::from(message_bytes(&owed.outgoing)))
            .sum();
        let removed: u64 = plan
            .removed
            .iter()
            .filter_map(|row| self.known.get(row))
            .map(|known| u64::from(known.bytes))
            .sum();
        let after = (self.totals.bytes + added).saturating_sub(removed);
        if after <= self.options.bytes_max || batch.messages.is_empty() {
            return None;
        }
        let wanted = after.saturating_sub(self.options.bytes_max / 100 * REMAINS_PERCENT);
        let handed = *self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut drop = Drop {
            rows: Vec::new(),
            seq_from: 0,
            seq: 0,
        };
        let mut freed = 0;
        for (row, known) in self.known.range(handed + 1..) {
            if known.state.is_some() || plan.removed.contains(row) {
                continue;
            }
            if drop.rows.is_empty() {
                drop.seq_from = known.seq;
            }
            drop.rows.push(*row);
            drop.seq = known.seq;
            freed += u64::from(known.bytes);
            if freed >= wanted {
                break;
            }
        }
        // A lone delta would only be replaced by a gap of its own size. The seq of a gap that is dropped again
        // is its first one; its last is one less than that of the delta behind it.
        if drop.rows.len() < 2 {
            return None;
        }
        let last = drop.rows.last().copied()?;
        let next = self
            .known
            .range(last + 1..)
            .find(|(_, known)| known.state.is_none());
        let next_seq = next.map(|(_, known)| known.seq).or_else(|| {
            let first = batch.messages.iter().find(|owed| owed.seq != 0);
            first.map(|owed| owed.seq)
        });
        if let Some(next_seq) = next_seq {
            drop.seq = next_seq - 1;
        }
        Some(drop)
    }

    /// Takes a drop that was committed into account, and says which deltas went.
    pub(super) fn apply_drop(
        &mut self,
        drop: Drop,
        render: &dyn Fn(u64, u64, u64) -> Outgoing,
    ) -> (u64, u64) {
        for row in &drop.rows {
            self.forget_message(*row);
        }
        let gap = drop.gap(render);
        self.know_message(&gap);
        (drop.seq_from, drop.seq)
    }
}
