//! Whether a consumer still fetches all of its partitions.
//!
//! librdkafka can leave one alone for good: an answer that names no leader for a partition (KIP-951) makes it read a leader's
//! epoch from memory that was never written (`rd_kafka_handle_Fetch_metadata_update` of 2.12.1). If that is a later one than the
//! broker's, the broker refuses to be asked with it, and all that the cluster says after that counts as older. Another client
//! is what helps.

use std::collections::{BTreeMap, BTreeSet};

/// What a consumer's statistics say of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    /// The offset to fetch next; negative where it is not known, which is behind all.
    pub(super) next_offset: i64,
    /// Messages that were fetched so far.
    pub(super) received: u64,
}

/// What was seen at earlier looks.
#[derive(Debug, Default)]
pub(super) struct Stall {
    seen: BTreeMap<i32, Fetched>,
    suspects: BTreeSet<i32>,
}

impl Stall {
    /// A partition of which nothing was fetched between two looks, though there was something to fetch at both.
    ///
    /// With `is_busy` there may be no room for what is fetched; then a partition counts only if another one was fetched
    /// meanwhile. `end_of` asks the cluster for the end of a partition, by another client; `None` where the cluster does not
    /// tell: it is not the consumer's fault then that nothing comes.
    pub(super) fn look(
        &mut self,
        fetched: &BTreeMap<i32, Fetched>,
        is_busy: bool,
        mut end_of: impl FnMut(i32) -> Option<i64>,
    ) -> Option<i32> {
        let seen = std::mem::replace(&mut self.seen, fetched.clone());
        let suspects = std::mem::take(&mut self.suspects);
        let stands = |(partition, now): &(&i32, &Fetched)| seen.get(partition) == Some(now);
        let moves = |(partition, now): (&i32, &Fetched)| {
            let before = seen.get(partition);
            before.is_some_and(|before| before.received != now.received)
        };
        if is_busy && !fetched.iter().any(moves) {
            return None;
        }
        for (partition, now) in fetched.iter().filter(stands) {
            if end_of(*partition).is_none_or(|end| now.next_offset >= end) {
                continue;
            }
            if suspects.contains(partition) {
                return Some(*partition);
            }
            self.suspects.insert(*partition);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(next_offset: i64) -> Fetched {
        Fetched {
            next_offset,
            received: u64::try_from(next_offset).unwrap_or(0),
        }
    }

    /// Looks at partitions 0 and 1 with these next offsets; both end at 10.
    fn look(stall: &mut Stall, next: [i64; 2], is_busy: bool) -> Option<i32> {
        let fetched = BTreeMap::from([(0, at(next[0])), (1, at(next[1]))]);
        stall.look(&fetched, is_busy, |_| Some(10))
    }

    #[test]
    fn a_partition_that_is_behind_and_stays_there_is_stalled() {
        let mut stall = Stall::default();
        assert_eq!(look(&mut stall, [10, 5], false), None, "it is new");
        assert_eq!(
            look(&mut stall, [10, 5], false),
            None,
            "it may come just now"
        );
        assert_eq!(look(&mut stall, [10, 5], false), Some(1));
    }

    #[test]
    fn one_that_moves_or_is_at_its_end_is_not() {
        let mut stall = Stall::default();
        for next in 0..10 {
            assert_eq!(look(&mut stall, [10, next], false), None);
        }
        for next in [-1_001, -1_001, 3, 3, 4] {
            assert_eq!(look(&mut stall, [10, next], false), None);
        }
    }

    #[test]
    fn of_a_busy_consumer_it_is_one_that_stays_behind_the_others() {
        let mut stall = Stall::default();
        for _ in 0..4 {
            assert_eq!(look(&mut stall, [5, 5], true), None, "there is no room");
        }
        assert_eq!(look(&mut stall, [6, 5], true), None);
        assert_eq!(look(&mut stall, [7, 5], true), Some(1));
    }

    #[test]
    fn neither_is_one_whose_end_the_cluster_does_not_tell() {
        let mut stall = Stall::default();
        let fetched = BTreeMap::from([(0, at(5))]);
        for end in [Some(10), Some(10), None, Some(10), None] {
            assert_eq!(stall.look(&fetched, false, |_| end), None);
        }
    }
}
