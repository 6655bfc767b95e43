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
    /// The offset to fetch next; negative where it is not known.
    pub(super) next_offset: i64,
    /// Messages that were fetched so far.
    pub(super) received: u64,
    /// Messages that were fetched and not taken yet.
    pub(super) queued: i64,
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
    /// `end_of` asks the cluster for the end of a partition, by another client; `None` where the cluster does not tell: it
    /// is not the consumer's fault then that nothing comes.
    pub(super) fn look(
        &mut self,
        fetched: &BTreeMap<i32, Fetched>,
        mut end_of: impl FnMut(i32) -> Option<i64>,
    ) -> Option<i32> {
        let seen = std::mem::replace(&mut self.seen, fetched.clone());
        let suspects = std::mem::take(&mut self.suspects);
        for (partition, now) in fetched {
            if now.queued > 0 || seen.get(partition) != Some(now) {
                continue;
            }
            let Some(end) = end_of(*partition) else {
                self.suspects.clear();
                return None;
            };
            if now.next_offset >= end {
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
            received: 0,
            queued: 0,
        }
    }

    /// Looks at partitions 0 and 1 with these next offsets; both end at 10.
    fn look(stall: &mut Stall, next: [i64; 2]) -> Option<i32> {
        let fetched = BTreeMap::from([(0, at(next[0])), (1, at(next[1]))]);
        stall.look(&fetched, |_| Some(10))
    }

    #[test]
    fn a_partition_that_is_behind_and_stays_there_is_stalled() {
        let mut stall = Stall::default();
        assert_eq!(look(&mut stall, [10, 5]), None, "it is new");
        assert_eq!(look(&mut stall, [10, 5]), None, "perhaps it comes just now");
        assert_eq!(look(&mut stall, [10, 5]), Some(1));
    }

    #[test]
    fn one_that_moves_or_is_at_its_end_is_not() {
        let mut stall = Stall::default();
        for next in 0..10 {
            assert_eq!(look(&mut stall, [10, next]), None);
        }
        for next in [-1_001, -1_001, 3, 3, 4] {
            assert_eq!(look(&mut stall, [10, next]), None);
        }
    }

    #[test]
    fn neither_is_one_that_is_not_taken_nor_any_of_a_cluster_that_is_away() {
        let mut stall = Stall::default();
        let queued = Fetched { queued: 1, ..at(5) };
        for _ in 0..4 {
            assert_eq!(
                stall.look(&BTreeMap::from([(0, queued)]), |_| Some(10)),
                None
            );
        }
        for end in [Some(10), Some(10), None, Some(10), None] {
            assert_eq!(stall.look(&BTreeMap::from([(0, at(5))]), |_| end), None);
        }
    }
}
