//! What an enricher tells of itself, for metrics, readiness and logs.

use std::sync::{Mutex, PoisonError};

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
        tracing::info!(
            events = figures.counts.events,
            sent = figures.sent,
            matched = figures.counts.matched,
            unmatched = figures.counts.unmatched,
            waiting = figures.waiting,
            mappings = figures.mappings,
            lag = figures.lag,
            "joined so far"
        );
    }

    /// As they are.
    pub fn figures(&self) -> Figures {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.clone()
    }
}
