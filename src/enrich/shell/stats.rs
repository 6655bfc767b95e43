//! What an enricher tells of itself, for metrics, readiness and logs.

use std::sync::{Mutex, PoisonError};

use crate::enrich::event::Defect;
use crate::enrich::joiner::Counts;
use crate::heartbeat::Heartbeat;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It connects, or creates topics.
    #[default]
    Starting,
    /// It reads the table; no event is taken before it has all of it.
    Filling,
    /// It joins.
    Live,
    /// It takes no more events, and ends what is under way.
    Stopping,
}

impl Phase {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Filling => "filling",
            Self::Live => "live",
            Self::Stopping => "stopping",
        }
    }
}

/// The figures.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How far it is.
    pub phase: Phase,
    /// What the join has counted.
    pub counts: Counts,
    /// Events that the bus has in the output.
    pub sent: u64,
    /// Invalid events that the bus has in their own topic.
    pub aside: u64,
    /// Invalid events that were dropped.
    pub dropped: u64,
    /// Enriched events that the bus refused for what they are, and that went out as they came.
    pub unaltered: u64,
    /// Events that the bus refuses in any form. They are lost.
    pub rejected: u64,
    /// Times that everything under way was begun anew from what was committed.
    pub restarts: u64,
    /// Mappings in the table.
    pub mappings: usize,
    /// Events that wait for their mapping.
    pub waiting: usize,
    /// The bytes of those, about.
    pub waiting_bytes: usize,
    /// Events whose output the bus does not have yet.
    pub in_flight: usize,
    /// Events in the input that are not done, as far as this member has the partitions.
    pub lag: Option<u64>,
    /// How long the table took to fill, in milliseconds.
    pub filled_ms: u64,
    /// Why the bus does not take or give anything; empty while it does.
    pub error: String,
}

/// What may be set wrong, as nothing at all was joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// No event could be read; most often because of this.
    Fields(Defect),
    /// No event was found in the table.
    Hosts,
}

impl Doubt {
    fn of(counts: &Counts) -> Option<Self> {
        let has_joined = counts.matched + counts.host + counts.expired + counts.ambiguous > 0;
        if has_joined {
            return None;
        }
        if counts.unmatched > 0 {
            return Some(Self::Hosts);
        }
        let reasons = Defect::ALL.into_iter().zip(counts.invalid);
        let (reason, count) = reasons.max_by_key(|(_, count)| *count)?;
        (count > 0).then_some(Self::Fields(reason))
    }
}

/// The figures as they are shared, and a sign of life.
#[derive(Debug, Default)]
pub struct Stats {
    figures: Mutex<Figures>,
    /// Beats each time the shell goes round.
    pub heartbeat: Heartbeat,
}

impl Stats {
    /// Alters them.
    pub fn tell(&self, alter: impl FnOnce(&mut Figures)) {
        alter(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Logs those that matter most.
    pub fn log(&self) {
        let figures = self.figures();
        let counts = &figures.counts;
        tracing::info!(
            events = counts.events,
            sent = figures.sent,
            matched = counts.matched,
            unmatched = counts.unmatched,
            host = counts.host,
            expired = counts.expired,
            ambiguous = counts.ambiguous,
            invalid = counts.invalid.iter().sum::<u64>(),
            waiting = figures.waiting,
            mappings = figures.mappings,
            lag = figures.lag,
            "joined so far"
        );
        match Doubt::of(counts) {
            Some(Doubt::Fields(reason)) => tracing::warn!(
                reason = reason.as_str(),
                "no event has what is asked of it: do `--preset` and the `--field-…` fit the input"
            ),
            Some(Doubt::Hosts) => tracing::warn!(
                "no event has found a mapping: do the collectors run with the events' host as `--host-id`"
            ),
            None => {}
        }
    }

    /// As they are.
    pub fn figures(&self) -> Figures {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_set_wrong_is_doubted_only_while_nothing_was_joined() {
        let mut counts = Counts::default();
        assert_eq!(Doubt::of(&counts), None, "no event came yet");
        for (defect, count) in Defect::ALL.iter().zip(&mut counts.invalid) {
            *count = match defect {
                Defect::NoPns => 7,
                Defect::NotJson | Defect::BadTime => 1,
                Defect::NotAnObject
                | Defect::NoHost
                | Defect::BadHost
                | Defect::BadPns
                | Defect::FieldTaken => 0,
            };
        }
        assert_eq!(Doubt::of(&counts), Some(Doubt::Fields(Defect::NoPns)));
        counts.unmatched = 1;
        assert_eq!(Doubt::of(&counts), Some(Doubt::Hosts));
        counts.host = 1;
        assert_eq!(Doubt::of(&counts), None);
    }
}
