//! The outbox's limit: the oldest deltas go, and one `gap` stands in their place.
//!
//! State messages are coalesced and never dropped. What has been handed to the publisher is in flight and is
//! not dropped either: the gap takes the row of the last delta that went, which no acknowledgement may meet.

use redb::ReadableTable as _;

use super::Gap;
use super::chunk;
use super::ledger::{Fault, Ledger, RenderGap};

/// What remains of the limit after a drop, so that not every commit drops.
const REMAINS_PERCENT: u64 = 90;

impl Ledger<'_> {
    /// Drops the oldest deltas behind what was handed out, if the limit is passed; the first and the last seq.
    pub(super) fn drop_oldest(
        &mut self,
        handed: u64,
        bytes_max: u64,
        render: &RenderGap<'_>,
    ) -> Result<Option<(u64, u64)>, Fault> {
        let bytes = self.books.meta.totals.bytes;
        if bytes <= bytes_max {
            return Ok(None);
        }
        let wanted = bytes.saturating_sub(bytes_max / 100 * REMAINS_PERCENT);
        let kept_row = handed.max(self.books.meta.acked_row);
        let mut keys = Vec::new();
        let (mut freed, mut count, mut row) = (0, 0, 0);
        let (mut seq_from, mut seq) = (u64::MAX, 0);
        for entry in self.deltas.range(kept_row + 1..)? {
            let (key, chunk) = entry?;
            let head = chunk::decode(chunk.value())?.0;
            keys.push(key.value());
            freed += head.bytes;
            count += u64::from(head.count);
            row = head.last_row;
            seq_from = seq_from.min(head.seq_from);
            seq = seq.max(head.seq);
            if freed >= wanted {
                break;
            }
        }
        // A lone delta would only be replaced by a gap of its own size.
        if count < 2 {
            return Ok(None);
        }
        for key in keys {
            self.deltas.remove(key)?;
        }
        let meta = &mut self.books.meta;
        meta.totals.messages = meta.totals.messages.saturating_sub(count);
        meta.totals.deltas = meta.totals.deltas.saturating_sub(count);
        meta.totals.bytes = meta.totals.bytes.saturating_sub(freed);
        meta.snapshot_owed = true;
        self.books.tail.find_anew();
        let gap = Gap {
            seq_from,
            seq,
            row,
            reason: "overflow",
        };
        self.append_gap(&gap, render)?;
        Ok(Some((seq_from, seq)))
    }
}
