//! What reaping is on every bus: finding rows that expired long ago. The reading and the tombstones are each
//! bus's own.

use serde::Deserialize;

use crate::model::Topic;
use crate::wire::encoding;

/// Most rows that are read of one topic in one run; the next run goes on where a compacted topic has become
/// smaller.
pub(super) const READ_MAX: u64 = 10_000_000;

/// Most rows of one topic that one run tombstones, a bound on memory.
pub(super) const REAP_MAX: usize = 1_000_000;

/// The CloudEvents type of a tombstone that was not its host's own.
pub(super) const CE_TYPE: &str = "io.quaymaster.reap.v1";

/// What was found in one compacted topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// The topic, or the stream of the bucket.
    pub name: String,
    /// Messages read.
    pub read: u64,
    /// Keys tombstoned.
    pub tombstoned: u64,
}

/// The one field that every compacted value has.
#[derive(Deserialize)]
struct Expiring {
    expires_at_ms: Option<i64>,
}

/// Whether a value of a topic expired before `before_ms` (unix milliseconds). What is no value of ours never did.
pub(super) fn is_expired(topic: Topic, value: &[u8], before_ms: i64) -> bool {
    encoding::to_json(topic, value)
        .ok()
        .and_then(|json| serde_json::from_slice::<Expiring>(&json).ok())
        .and_then(|expiring| expiring.expires_at_ms)
        // As protobuf, nothing at all is a message whose numbers are 0.
        .filter(|expires_at_ms| *expires_at_ms > 0)
        .is_some_and(|expires_at_ms| expires_at_ms < before_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_of_ours_that_expired_before_the_time_are_expired() {
        for (value, expired) in [
            ("{\"expires_at_ms\":99,\"x\":{}}", true),
            ("{\"expires_at_ms\":100}", false),
            ("{\"expires_at_ms\":\"1\"}", false),
            ("{}", false),
            ("7", false),
            ("{\"expires_at_ms\":", false),
            ("", false),
            // Protobuf with one text.
            ("\n\u{1}h", false),
        ] {
            let found = is_expired(Topic::Records, value.as_bytes(), 100);
            assert_eq!(found, expired, "{value}");
        }
    }
}
