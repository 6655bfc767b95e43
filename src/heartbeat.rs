//! A sign of life: whoever must not hang beats, whoever watches asks how long ago that was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time of the newest beat. It goes by a clock that never steps.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    newest_ms: AtomicU64,
}

impl Heartbeat {
    /// One that beats now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            newest_ms: AtomicU64::new(0),
        }
    }

    /// Beats.
    pub fn beat(&self) {
        let elapsed = self.start.elapsed().as_millis();
        let elapsed_ms = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.newest_ms.store(elapsed_ms, Ordering::Relaxed);
    }

    /// How long ago the newest beat was.
    pub fn age(&self) -> Duration {
        let newest = Duration::from_millis(self.newest_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(newest)
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}
