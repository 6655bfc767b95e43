//! The waits between attempts: the one place that uses the `backoff` crate, which is unmaintained
//! (RUSTSEC-2025-0012) and can be replaced here.

use std::time::Duration;

use ::backoff::backoff::Backoff as _;
use ::backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Waits that grow from `first` to `longest`, each spread by half of it either way, without an end.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// A sequence of waits from `first`, doubled each time, up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let inner = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(longest)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_elapsed_time(None)
            .build();
        Self { inner, longest }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.longest)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_never_end() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let waits: Vec<_> = (0..50).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(150));
        assert!(waits[20] >= Duration::from_secs(1));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(3)));
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(150));
    }
}
