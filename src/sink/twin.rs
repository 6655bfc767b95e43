//! Another collector with the same host id: two machines cloned from one image, say. Their deltas and keys would mix.
//!
//! Each collector puts a status with its boot every half minute. One of another boot that is fresh, and newer than what
//! stood there when we came, is another collector's: what stood there first may be our own, from before a reboot.

use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Bus, Sink};
use crate::model::Topic;
use crate::telemetry;
use crate::wire::encoding;

/// The looks of the first minute, in which another's status is put twice.
const FIRST_LOOKS: u32 = 7;

/// While another collector is seen, it is told of once in this time.
const TOLD_INTERVAL: Duration = Duration::from_secs(600);

/// Whose host id it is.
#[derive(Clone, Debug)]
pub struct Own {
    /// The host id.
    pub host_id: String,
    /// The boot.
    pub boot_id: String,
}

/// A status of another boot that has not expired.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Other {
    /// Its boot.
    pub boot_id: String,
    /// The name of its host.
    #[serde(default)]
    pub host_name: String,
    #[serde(default)]
    state: String,
    /// When it expires, in unix milliseconds.
    pub expires_at_ms: i64,
}

/// The newest status of another boot that is fresh and is no farewell.
pub fn other(statuses: &[Vec<u8>], own_boot_id: &str, now_ms: i64) -> Option<Other> {
    statuses
        .iter()
        .filter_map(|value| {
            let json = encoding::to_json(Topic::Status, value).ok()?;
            serde_json::from_slice::<Other>(&json).ok()
        })
        .filter(|status| status.boot_id != own_boot_id && status.state != "stopping")
        .filter(|status| status.expires_at_ms > now_ms)
        .max_by_key(|status| status.expires_at_ms)
}

/// Looks for another collector until `stop`, and tells of one as an error in the log.
pub async fn watch(mut sink: Box<dyn Sink>, bus: Bus, own: Own, stop: CancellationToken) {
    let Some((first, later)) = rhythm(&bus) else {
        return;
    };
    let mut looks = 0_u32;
    let mut left_over = None;
    let mut told_at: Option<tokio::time::Instant> = None;
    loop {
        let statuses = tokio::select! {
            () = stop.cancelled() => return,
            statuses = sink.statuses(&own.host_id) => statuses,
        };
        match statuses {
            Ok(statuses) => {
                let found = other(&statuses, &own.boot_id, unix_now_ms());
                let expires_at_ms = found.as_ref().map_or(0, |found| found.expires_at_ms);
                let known = *left_over.get_or_insert(expires_at_ms);
                if let Some(found) = found.filter(|found| found.expires_at_ms > known)
                    && told_at.is_none_or(|at| at.elapsed() >= TOLD_INTERVAL)
                {
                    told_at = Some(tokio::time::Instant::now());
                    tracing::error!(
                        host_id = own.host_id,
                        boot_id = found.boot_id,
                        host_name = found.host_name,
                        "another collector publishes with this host id: give each host its own with `--host-id`"
                    );
                }
                looks = looks.saturating_add(1);
            }
            Err(error) => {
                tracing::debug!(
                    error = telemetry::chain(&error),
                    "the status topic cannot be read now"
                );
            }
        }
        let wait = if looks < FIRST_LOOKS { first } else { later };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The time between two looks, in the first minute and later. On NATS there is only the newest status of a key, and a
/// look costs one request: the times are no multiples of the half minute in which two collectors take turns. On Kafka
/// all are there, and a look reads some megabytes.
fn rhythm(bus: &Bus) -> Option<(Duration, Duration)> {
    match bus {
        Bus::Stdout => None,
        Bus::Kafka(_) => Some((Duration::from_secs(11), Duration::from_secs(3_600))),
        Bus::Nats(_) => Some((Duration::from_secs(7), Duration::from_secs(67))),
    }
}

fn unix_now_ms() -> i64 {
    i64::try_from(crate::runtime::watch::now_ms()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_status_of_another_boot_is_anothers() {
        let status = |boot: &str, state: &str, expires: i64| {
            format!(
                "{{\"boot_id\":\"{boot}\",\"host_name\":\"n\",\"state\":\"{state}\",\"expires_at_ms\":{expires}}}"
            )
            .into_bytes()
        };
        let found = |statuses: &[Vec<u8>]| other(statuses, "ours", 1_000).map(|o| o.expires_at_ms);
        assert_eq!(found(&[status("ours", "live", 2_000)]), None);
        assert_eq!(found(&[status("theirs", "live", 999)]), None);
        assert_eq!(found(&[status("theirs", "stopping", 2_000)]), None);
        assert_eq!(found(&[b"no JSON".to_vec()]), None);
        let mixed = [
            status("theirs", "live", 2_000),
            status("theirs", "starting", 3_000),
            status("ours", "live", 4_000),
        ];
        assert_eq!(found(&mixed), Some(3_000));
    }
}
