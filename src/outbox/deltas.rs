//! The line of deltas: those that the bus has and that are kept for a while, then those that are owed.
//!
//! ```text
//!   trimmed │ kept                │ owed
//!   ────────┼─────────────────────┼──────────────────────► rows
//!        trimmed              acked_row
//! ```
//!
//! An acknowledgement only moves `acked_row` on; nothing is written for it but the books. What is acknowledged
//! ahead of an earlier delta is remembered until that one is too; a crash forgets it, and sends it twice.

use std::collections::{BTreeMap, VecDeque};

use redb::ReadableTable as _;

use super::chunk::{self, StoredDelta};
use super::ledger::{Fault, Ledger, RenderGap};
use super::{Gap, NewestAcked};
use crate::sink::Position;

/// How long an acknowledged delta is kept at least, so that it can be sent again to a bus that lost it.
pub const KEPT_MS: u64 = 10 * 60 * 1_000;
/// Most bytes that are kept of acknowledged deltas. A storm of 1,000 containers a minute makes half of that in
/// [`KEPT_MS`]; what makes more has a shorter tail rather than a full disk.
pub const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How exactly the time of an acknowledgement is known: one mark is made in this time.
const MARK_MS: u64 = 10_000;
/// Most chunks that one commit trims, so that it stays short; no fewer than are acknowledged between two of them.
const TRIM_CHUNKS_MAX: usize = super::UNSYNCED_MAX;

/// A delta that is owed, without its text.
#[derive(Clone, Copy, Debug)]
struct Entry {
    row: u64,
    seq: u64,
    bytes: u64,
}

/// The deltas that the next acknowledgements are expected of: those of one chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Front {
    entries: VecDeque<Entry>,
    /// Where the chunk behind it begins at the earliest; `None`: still to be found by `acked_row`.
    next: Option<u64>,
}

/// What is known of acknowledged deltas besides the books on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    front: Front,
    /// Rows of deltas that the bus has while an earlier one is owed. Bounded by what a sink holds unreported.
    ahead: BTreeMap<u64, Option<Position>>,
    /// What was taken out of `ahead` in this transaction.
    pub(super) passed: Vec<(u64, Option<Position>)>,
    /// Up to which row deltas were acknowledged at a time, the oldest first.
    marks: VecDeque<(u64, u64)>,
}

impl Tail {
    /// The line has changed under it.
    pub(super) fn find_anew(&mut self) {
        self.front = Front::default();
    }
}

impl Ledger<'_> {
    /// Stores deltas, in the order of their rows, which are above all others.
    pub(super) fn append(&mut self, deltas: &[StoredDelta<'_>]) -> Result<(), Fault> {
        let (table, totals) = (&mut self.deltas, &mut self.books.meta.totals);
        chunk::encode(deltas, &mut self.buffer, |key, bytes, head| {
            table.insert(key, bytes)?;
            totals.messages += u64::from(head.count);
            totals.deltas += u64::from(head.count);
            totals.bytes += head.bytes;
            Ok(())
        })
    }

    /// Moves on over the first delta that is owed, if that is the row, and over those that were acknowledged
    /// ahead of it.
    pub(super) fn settle_front(
        &mut self,
        row: u64,
        position: Option<Position>,
    ) -> Result<bool, Fault> {
        if row <= self.books.meta.acked_row || self.front_row()? != Some(row) {
            return Ok(false);
        }
        self.pass(position);
        while !self.books.tail.ahead.is_empty() {
            let Some(next) = self.front_row()? else { break };
            let Some(position) = self.books.tail.ahead.remove(&next) else {
                break;
            };
            self.books.tail.passed.push((next, position));
            self.pass(position);
        }
        Ok(true)
    }

    /// Remembers a delta that the bus has while an earlier one is owed.
    pub(super) fn settle_ahead(
        &mut self,
        row: u64,
        position: Option<Position>,
    ) -> Result<(), Fault> {
        if row <= self.books.meta.acked_row || self.books.meta.totals.deltas == 0 {
            return Ok(());
        }
        let Some(chunk) = self.deltas.range(..=row)?.next_back() else {
            return Ok(());
        };
        let (_, chunk) = chunk?;
        let mut deltas = chunk::decode(chunk.value())?.1;
        if deltas.any(|delta| delta.is_ok_and(|delta| delta.row == row)) {
            self.books.tail.ahead.insert(row, position);
        }
        Ok(())
    }

    /// The row of the first delta that is owed.
    fn front_row(&mut self) -> Result<Option<u64>, Fault> {
        let meta = &mut self.books.meta;
        let front = &mut self.books.tail.front;
        if meta.totals.deltas == 0 {
            return Ok(None);
        }
        while front.entries.is_empty() {
            let from = match front.next {
                Some(next) => next,
                None => {
                    let before = self.deltas.range(..=meta.acked_row)?.next_back();
                    before
                        .transpose()?
                        .map_or(meta.acked_row + 1, |(key, _)| key.value())
                }
            };
            let Some(found) = self.deltas.range(from..)?.next() else {
                return Ok(None);
            };
            let (key, chunk) = found?;
            front.next = Some(key.value() + 1);
            match chunk::decode(chunk.value()) {
                Ok((head, deltas)) => {
                    front.next = Some(head.last_row.max(key.value()) + 1);
                    let owed = deltas
                        .filter_map(Result::ok)
                        .filter(|delta| delta.row > meta.acked_row);
                    front.entries.extend(owed.map(|delta| Entry {
                        row: delta.row,
                        seq: delta.seq,
                        bytes: delta.bytes(),
                    }));
                }
                Err(error) => {
                    tracing::error!(row = key.value(), %error, "stored deltas cannot be decoded");
                    meta.snapshot_owed = true;
                }
            }
        }
        Ok(front.entries.front().map(|entry| entry.row))
    }

    /// The first delta that is owed is so no longer.
    fn pass(&mut self, position: Option<Position>) {
        let Some(entry) = self.books.tail.front.entries.pop_front() else {
            return;
        };
        let meta = &mut self.books.meta;
        meta.acked_row = entry.row;
        meta.totals.messages = meta.totals.messages.saturating_sub(1);
        meta.totals.deltas = meta.totals.deltas.saturating_sub(1);
        meta.totals.bytes = meta.totals.bytes.saturating_sub(entry.bytes);
        meta.kept_bytes += entry.bytes;
        if let Some(position) = position {
            meta.newest_acked = Some(NewestAcked {
                bus: meta.bus.clone(),
                partition: position.partition,
                offset: position.offset,
                seq: entry.seq,
                row: entry.row,
            });
        }
    }

    /// Lets go of what was acknowledged long ago, or is too much.
    pub(super) fn trim(&mut self, now_ms: u64) -> Result<(), Fault> {
        let meta = &mut self.books.meta;
        let marks = &mut self.books.tail.marks;
        let newest = marks.back().copied();
        if meta.kept_bytes > 0
            && newest.is_none_or(|(at_ms, row)| {
                row < meta.acked_row && (now_ms < at_ms || now_ms - at_ms >= MARK_MS)
            })
        {
            marks.push_back((now_ms, meta.acked_row));
        }
        let mut until_row = 0;
        while let Some((at_ms, row)) = marks.front().copied()
            && at_ms.saturating_add(KEPT_MS) <= now_ms
        {
            until_row = row;
            marks.pop_front();
        }
        meta.trim_to_row = meta.trim_to_row.max(until_row);
        for _ in 0..TRIM_CHUNKS_MAX {
            let is_due = meta.trimmed.map_or(0, |(row, _)| row) < meta.trim_to_row;
            if !is_due && meta.kept_bytes <= KEPT_BYTES_MAX {
                break;
            }
            let head = match self.deltas.first()? {
                Some((_, chunk)) => chunk::decode(chunk.value())?.0,
                None => break,
            };
            let is_old = head.last_row <= meta.trim_to_row;
            let is_acked = head.last_row <= meta.acked_row;
            if !is_acked || !(is_old || meta.kept_bytes > KEPT_BYTES_MAX) {
                break;
            }
            self.deltas.pop_first()?;
            meta.kept_bytes = meta.kept_bytes.saturating_sub(head.bytes);
            let seq = meta.trimmed.map_or(0, |(_, seq)| seq).max(head.seq);
            meta.trimmed = Some((head.last_row, seq));
        }
        Ok(())
    }

    /// Makes what the bus lost owed again: the deltas from `lost_from` on, or all that are kept. Where those do
    /// not reach back so far, a `gap` stands before them, in the row of the last one that is no longer kept.
    pub(super) fn rewind(
        &mut self,
        lost_from: Option<u64>,
        render: &RenderGap<'_>,
    ) -> Result<(), Fault> {
        self.books.tail = Tail::default();
        let lost_from = lost_from.unwrap_or(1).max(1);
        let was_acked_row = self.books.meta.acked_row;
        let mut acked_row = 0;
        let (mut count, mut bytes) = (0, 0);
        for entry in self.deltas.iter()? {
            let (_, chunk) = entry?;
            let deltas = chunk::decode(chunk.value())?.1;
            for delta in deltas {
                let delta = delta?;
                if delta.row > was_acked_row {
                    break;
                }
                if delta.seq < lost_from && count == 0 {
                    acked_row = delta.row;
                } else {
                    count += 1;
                    bytes += delta.bytes();
                }
            }
        }
        let meta = &mut self.books.meta;
        meta.totals.messages += count;
        meta.totals.deltas += count;
        meta.totals.bytes += bytes;
        meta.kept_bytes = meta.kept_bytes.saturating_sub(bytes);
        meta.newest_acked = None;
        meta.acked_row = acked_row;
        if let Some((row, seq)) = meta.trimmed {
            if acked_row == 0 {
                meta.acked_row = row.saturating_sub(1);
            }
            if lost_from <= seq {
                meta.snapshot_owed = true;
                self.put_first_gap(lost_from, (row, seq), render)?;
            }
        }
        Ok(())
    }

    /// Puts the gap before all that is kept, in place of an earlier one that is still owed.
    fn put_first_gap(
        &mut self,
        lost_from: u64,
        trimmed: (u64, u64),
        render: &RenderGap<'_>,
    ) -> Result<(), Fault> {
        let (row, seq) = trimmed;
        let mut seq_from = lost_from;
        if let Some(earlier) = self.deltas.remove(row)? {
            let head = chunk::decode(earlier.value())?.0;
            seq_from = seq_from.min(head.seq_from);
            let totals = &mut self.books.meta.totals;
            totals.messages = totals.messages.saturating_sub(u64::from(head.count));
            totals.deltas = totals.deltas.saturating_sub(u64::from(head.count));
            totals.bytes = totals.bytes.saturating_sub(head.bytes);
        }
        let gap = Gap {
            seq_from,
            seq,
            row,
            reason: "bus_lost_data",
        };
        self.append_gap(&gap, render)
    }
}
