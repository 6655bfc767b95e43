//! Memory that is free goes back to the kernel.
//!
//! glibc keeps what was freed for the arena that it came from, and each thread may have one of its own: after a cold start or a
//! storm that is some MB which nobody needs.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// When a cold start is over.
const FIRST: Duration = Duration::from_secs(5);
/// How often it is given back from then on.
const INTERVAL: Duration = Duration::from_secs(60);

/// Gives back what is free, now and then, until `stop`.
pub async fn give_back(stop: CancellationToken) {
    let mut due = interval_at(Instant::now() + FIRST, INTERVAL);
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        // It may take some ms where much is free.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

/// malloc_trim(3).
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's own")]
fn trim() {
    // SAFETY: it takes no pointer, and may be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators know by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
