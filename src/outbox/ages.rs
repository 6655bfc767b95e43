//! Since when the oldest message waits, for the status.
//!
//! What is owed is in the file with the times that it tells of, and those of a mapping or a snapshot may be long past.
//! When a row was stored is remembered here, to the second, in memory alone: of rows that an earlier life stored, its
//! last moment is known.

use std::collections::VecDeque;

use redb::{Database, ReadableDatabase as _, ReadableTable as _};

use super::chunk;
use super::ledger::Fault;
use super::{DELTAS, Meta, STATES};

/// How exactly a row's time is known.
const MARK_MS: u64 = 1_000;
/// Most marks that are kept, of a bus that is away for long; beyond it every second one goes, and what waits counts as
/// somewhat older than it is.
const MARKS_MAX: usize = 2_048;

/// From which row on rows were stored at a time, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Ages {
    marks: VecDeque<(u64, u64)>,
}

impl Ages {
    /// All rows so far were stored by then.
    pub(super) fn since(at_ms: u64) -> Self {
        Self {
            marks: VecDeque::from([(0, at_ms)]),
        }
    }

    /// Rows from this one on are stored now.
    pub(super) fn note(&mut self, first_row: u64, now_ms: u64) {
        // A clock that was set back makes a mark too.
        let is_near = |(_, at_ms): &(u64, u64)| now_ms.wrapping_sub(*at_ms) < MARK_MS;
        if self.marks.back().is_some_and(is_near) {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            let mut is_kept = false;
            self.marks.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.marks.push_back((first_row, now_ms));
    }

    /// When the oldest row that is owed was stored. What is known of those before it goes.
    pub(super) fn of(&mut self, oldest_row: u64) -> u64 {
        while self.marks.get(1).is_some_and(|(row, _)| *row <= oldest_row) {
            self.marks.pop_front();
        }
        self.marks.front().map_or(0, |(_, at_ms)| *at_ms)
    }
}

/// The first row that is owed; `None` where none is.
pub(super) fn oldest_row(database: &Database, meta: &Meta) -> Result<Option<u64>, Fault> {
    let transaction = database.begin_read()?;
    let states = transaction.open_table(STATES)?;
    let state = states.first()?.map(|(row, _)| row.value());
    if meta.totals.deltas == 0 {
        return Ok(state);
    }
    let deltas = transaction.open_table(DELTAS)?;
    let before = deltas.range(..=meta.acked_row)?.next_back().transpose()?;
    let is_begun = before.is_some_and(|(_, deltas)| {
        chunk::decode(deltas.value()).is_ok_and(|(head, _)| head.last_row > meta.acked_row)
    });
    let delta = if is_begun {
        Some(meta.acked_row + 1)
    } else {
        let next = deltas.range(meta.acked_row + 1..)?.next().transpose()?;
        next.map(|(row, _)| row.value())
    };
    Ok(state.into_iter().chain(delta).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_old_as_the_mark_before_it() {
        let mut ages = Ages::since(1_000);
        ages.note(10, 5_000);
        ages.note(20, 5_500);
        ages.note(30, 9_000);
        ages.note(40, 2_000);
        for (row, at_ms) in [
            (9, 1_000),
            (10, 5_000),
            (29, 5_000),
            (39, 9_000),
            (40, 2_000),
        ] {
            assert_eq!(ages.of(row), at_ms, "row {row}");
        }
        assert_eq!(Ages::default().of(7), 0);
    }

    #[test]
    fn marks_are_bounded_and_err_to_the_older_side() {
        let mut ages = Ages::since(0);
        for second in 1..=10 * MARKS_MAX as u64 {
            ages.note(second, second * 1_000);
        }
        assert!(ages.marks.len() <= MARKS_MAX);
        for row in [1, 5_000, 20_000] {
            let at_ms = ages.clone().of(row);
            assert!(at_ms <= row * 1_000, "row {row} at {at_ms}");
        }
    }
}
