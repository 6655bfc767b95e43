//! A new epoch does not know which keys its host has on the bus: it reads them back once, in the background.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Sink;
use crate::backoff::Backoff;
use crate::collector::{Input, Snapshot};
use crate::telemetry;

/// The first and the longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Waits until the host's containers have been listed, reads its keys back, and gives them to the collector, which
/// tombstones those that it does not hold.
pub async fn read_back(
    mut sink: Box<dyn Sink>,
    host_id: String,
    mut snapshot: watch::Receiver<Snapshot>,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
) {
    let settled =
        snapshot.wait_for(|snapshot| snapshot.status.state == "live" && snapshot.is_settled);
    tokio::select! {
        () = stop.cancelled() => return,
        settled = settled => if settled.is_err() { return },
    }
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let read = tokio::select! {
            () = stop.cancelled() => return,
            read = sink.own_keys(&host_id) => read,
        };
        match read {
            Ok(keys) => {
                tracing::info!(
                    keys = keys.len(),
                    "this host's keys were read back from the bus"
                );
                // A collector that has ended needs them no more.
                let _ = inputs.send(Input::ReadBack(keys)).await;
                return;
            }
            Err(error) => {
                tracing::warn!(
                    error = telemetry::chain(&error),
                    "this host's keys cannot be read back from the bus yet"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}
