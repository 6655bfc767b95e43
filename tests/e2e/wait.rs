//! Bounded waits on conditions: what tests have instead of sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that has been caused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until `condition` succeeds, and gives its value; after [`PATIENCE`] its last error.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                bail!("not within {PATIENCE:?}: {what}: {error:#}")
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}
