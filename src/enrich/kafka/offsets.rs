//! Which offsets of the input are done, and so which may be committed: all below the first one that is not.
//!
//! A partition that is given away and comes back has another generation: what was begun before is no longer its own.

use std::collections::{BTreeMap, VecDeque};

/// A message of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) partition: i32,
    pub(super) offset: i64,
    generation: u64,
}

#[derive(Debug, Default)]
struct Partition {
    generation: u64,
    /// Begun and not yet below what may be committed, by offset; whether each is done.
    open: VecDeque<(i64, bool)>,
    /// What may be committed, if it has not been.
    due: Option<i64>,
}

/// The partitions that this member has.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    partitions: BTreeMap<i32, Partition>,
    generation: u64,
}

impl Offsets {
    /// Notes that a message was taken. They come by offset in each partition; one that was there already is taken anew.
    pub(super) fn begin(&mut self, partition: i32, offset: i64) -> Mark {
        let generation = self.generation;
        let state = self
            .partitions
            .entry(partition)
            .or_insert_with(|| Partition {
                generation,
                ..Partition::default()
            });
        if state.open.back().is_some_and(|(last, _)| *last >= offset) {
            self.generation += 1;
            *state = Partition {
                generation: self.generation,
                ..Partition::default()
            };
        }
        state.open.push_back((offset, false));
        Mark {
            partition,
            offset,
            generation: state.generation,
        }
    }

    /// Notes that a message is done.
    pub(super) fn end(&mut self, mark: Mark) {
        let Some(state) = self.partitions.get_mut(&mark.partition) else {
            return;
        };
        if state.generation != mark.generation {
            return;
        }
        let Ok(at) = state
            .open
            .binary_search_by_key(&mark.offset, |(offset, _)| *offset)
        else {
            return;
        };
        state.open[at].1 = true;
        while let Some((offset, true)) = state.open.front() {
            state.due = Some(offset + 1);
            state.open.pop_front();
        }
    }

    /// Whether a message is still this member's.
    pub(super) fn owns(&self, mark: Mark) -> bool {
        let state = self.partitions.get(&mark.partition);
        state.is_some_and(|state| state.generation == mark.generation)
    }

    /// What may be committed since the last call: partitions and the offsets to go on with.
    pub(super) fn take_due(&mut self) -> Vec<(i32, i64)> {
        let due = self.partitions.iter_mut();
        due.filter_map(|(partition, state)| Some((*partition, state.due.take()?)))
            .collect()
    }

    /// Lets go of partitions.
    pub(super) fn give_up(&mut self, partitions: &[i32]) {
        self.generation += 1;
        for partition in partitions {
            self.partitions.remove(partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_the_first_undone_one_may_be_committed() {
        let mut offsets = Offsets::default();
        // Compacted and transactional topics have holes.
        let marks: Vec<_> = [5, 6, 9].map(|offset| offsets.begin(0, offset)).to_vec();
        let other = offsets.begin(1, 0);
        offsets.end(marks[1]);
        assert_eq!(offsets.take_due(), []);
        offsets.end(marks[0]);
        offsets.end(marks[0]);
        offsets.end(other);
        assert_eq!(offsets.take_due(), [(0, 7), (1, 1)]);
        assert_eq!(offsets.take_due(), []);
        offsets.end(marks[2]);
        assert_eq!(offsets.take_due(), [(0, 10)]);
    }

    #[test]
    fn what_was_begun_before_a_partition_was_given_away_commits_nothing() {
        let mut offsets = Offsets::default();
        let before = offsets.begin(0, 5);
        offsets.give_up(&[0]);
        assert!(!offsets.owns(before));
        let again = offsets.begin(0, 5);
        offsets.end(before);
        assert_eq!(offsets.take_due(), []);
        offsets.end(again);
        assert_eq!(offsets.take_due(), [(0, 6)]);
        assert!(offsets.owns(again));
    }

    #[test]
    fn a_consumer_that_goes_back_begins_anew() {
        let mut offsets = Offsets::default();
        let (first, second) = (offsets.begin(0, 5), offsets.begin(0, 6));
        offsets.end(second);
        let again = offsets.begin(0, 5);
        offsets.end(first);
        assert_eq!(offsets.take_due(), []);
        offsets.end(again);
        assert_eq!(offsets.take_due(), [(0, 6)]);
    }
}
