//! Which timestamp a Kafka record gets: the event's own time where the broker takes it.
//!
//! - A record that is older than the topic's retention is deleted within minutes of its arrival (Kafka's
//!   retention goes by the records' own times, and takes the active segment too). So that nothing that was
//!   acknowledged is lost to it, no record is older than half the retention; `ce_time` says the true time.
//! - A broker refuses times too far ahead of its own clock (`message.timestamp.after.max.ms`, an hour by
//!   default since Kafka 4.0) and, where so configured, too old ones. After a refusal the present is tried. If
//!   that is refused too, our clock is wrong, and the distance to the broker's is searched: doubling until
//!   something is taken, then halving to within an hour, a message at a time.
//!
//! Pure: the present is an argument.

use crate::sink::RETENTION;

/// The oldest a record may be.
const AGE_MAX_MS: i64 = RETENTION.as_millis() as i64 / 2;

/// The first distance that is tried, and how near the search comes.
const STEP_MS: i64 = 3_600_000;

/// The longest distance that is tried before the search begins anew: about a century.
const DISTANCE_MAX_MS: i64 = 100 * 366 * 24 * 3_600_000;

/// How long a distance is believed before the present is tried again: clocks get set.
const BELIEVED_MS: i64 = 600_000;

/// What is known of the broker's clock.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    search: Option<Search>,
}

#[derive(Debug)]
struct Search {
    /// A record this far behind our clock was still refused as too new.
    refused_ms: i64,
    /// A record this far behind our clock was taken.
    taken_ms: Option<i64>,
    /// When it began, by our clock.
    since_ms: i64,
}

/// A timestamp, and what its refusal would tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Unix milliseconds.
    pub(super) time_ms: i64,
    /// Whether the message must be alone on its way, so that an answer tells about this stamp.
    pub(super) alone: bool,
    /// How far behind our clock it was put on purpose.
    behind_ms: Option<i64>,
}

impl Stamps {
    /// The stamp for a message whose event was at `event_ms` and which was refused `refusals` times for
    /// its time.
    pub(super) fn next(&mut self, event_ms: i64, refusals: u32, now_ms: i64) -> Stamp {
        let elapsed = |since: i64| now_ms.saturating_sub(since).unsigned_abs();
        if self
            .search
            .as_ref()
            .is_some_and(|search| elapsed(search.since_ms) > BELIEVED_MS.unsigned_abs())
        {
            self.search = None;
        }
        let Some(search) = &self.search else {
            return if refusals == 0 {
                Stamp {
                    time_ms: event_ms.max(now_ms.saturating_sub(AGE_MAX_MS)).max(0),
                    alone: false,
                    behind_ms: None,
                }
            } else {
                Stamp {
                    time_ms: now_ms,
                    alone: true,
                    behind_ms: Some(0),
                }
            };
        };
        let behind = search.next_behind_ms();
        Stamp {
            time_ms: now_ms.saturating_sub(behind).max(0),
            alone: !search.is_settled(),
            behind_ms: Some(behind),
        }
    }

    /// The broker refused a stamp of a message that was alone.
    pub(super) fn refused(&mut self, stamp: Stamp, now_ms: i64) {
        let Some(behind) = stamp.behind_ms else {
            return;
        };
        let search = self.search.get_or_insert(Search {
            refused_ms: 0,
            taken_ms: None,
            since_ms: now_ms,
        });
        search.refused_ms = search.refused_ms.max(behind);
        if search
            .taken_ms
            .is_some_and(|taken| taken <= search.refused_ms)
        {
            search.taken_ms = None;
        }
        if search.refused_ms > DISTANCE_MAX_MS {
            self.search = None;
        }
    }

    /// The broker took a stamp.
    pub(super) fn taken(&mut self, stamp: Stamp) {
        if let (Some(behind), Some(search)) = (stamp.behind_ms, &mut self.search)
            && behind > search.refused_ms
            && search.taken_ms.is_none_or(|taken| behind < taken)
        {
            search.taken_ms = Some(behind);
        }
    }
}

impl Search {
    fn is_settled(&self) -> bool {
        self.taken_ms
            .is_some_and(|taken| taken - self.refused_ms <= STEP_MS)
    }

    fn next_behind_ms(&self) -> i64 {
        match self.taken_ms {
            Some(taken) if taken - self.refused_ms <= STEP_MS => taken,
            Some(taken) => self.refused_ms.midpoint(taken),
            None => self.refused_ms.saturating_mul(2).max(STEP_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn a_record_has_its_events_time_unless_retention_would_delete_it_at_once() {
        let mut stamps = Stamps::default();
        for (event, stamp) in [
            (NOW - 5_000, NOW - 5_000),
            (NOW + 5_000, NOW + 5_000),
            (NOW - 30 * 24 * STEP_MS, NOW - AGE_MAX_MS),
            (-1, NOW - AGE_MAX_MS),
        ] {
            assert_eq!(stamps.next(event, 0, NOW).time_ms, stamp);
        }
    }

    #[test]
    fn a_refused_event_gets_the_present_and_the_next_one_its_own_time_again() {
        let mut stamps = Stamps::default();
        let first = stamps.next(NOW - 5_000, 0, NOW);
        stamps.refused(first, NOW);
        let second = stamps.next(NOW - 5_000, 1, NOW);
        assert_eq!(second.time_ms, NOW);
        stamps.taken(second);
        assert_eq!(stamps.next(NOW - 4_000, 0, NOW).time_ms, NOW - 4_000);
    }

    #[test]
    fn a_clock_far_ahead_is_found_to_within_two_hours() {
        for ahead_ms in [
            2 * STEP_MS,
            25 * STEP_MS,
            400 * 24 * STEP_MS,
            87_600 * STEP_MS,
        ] {
            let mut stamps = Stamps::default();
            let broker_takes = |time_ms: i64| time_ms <= NOW - ahead_ms + STEP_MS;
            let mut attempts = 0;
            let mut refusals = 0;
            let settled = loop {
                attempts += 1;
                assert!(attempts < 60, "it converges");
                let stamp = stamps.next(NOW, refusals, NOW);
                if broker_takes(stamp.time_ms) {
                    stamps.taken(stamp);
                    refusals = 0;
                    if !stamp.alone {
                        break stamp;
                    }
                } else {
                    stamps.refused(stamp, NOW);
                    refusals += 1;
                }
            };
            let wrong_by = (settled.time_ms - (NOW - ahead_ms)).abs();
            assert!(wrong_by <= 2 * STEP_MS, "{ahead_ms}: {wrong_by}");
            // Some time later the present is tried again.
            let later = stamps.next(NOW + 700_000, 0, NOW + 700_000);
            assert_eq!(later.time_ms, NOW + 700_000);
        }
    }
}
