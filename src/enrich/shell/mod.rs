//! What both shells share: their settings, their clock, and what they tell of themselves.

pub mod page;
pub mod stats;

use std::time::{Duration, Instant};

use super::clock::Now;
use super::event::EventReader;
use super::fields::EventFields;
use super::joiner::JoinSettings;
use crate::sink::TopicSettings;

/// How often the table is looked through for what expired long ago.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// How often figures are told to [`stats::Stats`].
pub(super) const TELL_INTERVAL: Duration = Duration::from_millis(250);

/// How often the state of things is logged.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long what is under way may still take at the end, besides the grace of what waits.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// What a shell has to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The topics of the collectors, for the mappings.
    pub topics: TopicSettings,
    /// The name that the bus sees.
    pub client_id: String,
    /// Where events come from.
    pub input: String,
    /// Where they go.
    pub output: String,
    /// Where the invalid ones go, if they go to a topic.
    pub invalid: String,
    /// The name of the consumer group, or of the durable consumer.
    pub group: String,
    /// The events' format.
    pub fields: EventFields,
    /// How to join.
    pub join: JoinSettings,
}

impl Setup {
    /// A reader for the format.
    ///
    /// # Errors
    /// As [`EventReader::new`].
    pub fn reader(&self) -> Result<EventReader, String> {
        EventReader::new(self.fields.clone(), &self.join.added_field)
    }
}

/// The clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(super) fn now(self) -> Now {
        let steady_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            wall_ms: crate::runtime::watch::now_ms(),
            steady_ms,
        }
    }
}
