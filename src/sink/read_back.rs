//! A new epoch does not know which keys its host has on the bus, and a bus that lost data may have lost tombstones:
//! then the keys are read back, in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Sink;
use crate::backoff::Backoff;
use crate::collector::{Input, Snapshot};
use crate::telemetry;

/// The first and the longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Reads back where it is `owed`, and each time that `again` says so, until `stop`.
pub async fn read_back(
    mut sink: Box<dyn Sink>,
    host_id: String,
    snapshot: watch::Receiver<Snapshot>,
    inputs: mpsc::Sender<Input>,
    owed: bool,
    again: Arc<Notify>,
    stop: CancellationToken,
) {
    let reading = async {
        if !owed {
            again.notified().await;
        }
        loop {
            read_once(&mut sink, &host_id, snapshot.clone(), &inputs).await;
            again.notified().await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reading => {}
    }
}

/// Waits until the host's containers have been listed, reads its keys back, and gives them to the collector, which
/// tombstones those that it does not hold. Retries for as long as it takes.
async fn read_once(
    sink: &mut Box<dyn Sink>,
    host_id: &str,
    mut snapshot: watch::Receiver<Snapshot>,
    inputs: &mpsc::Sender<Input>,
) {
    let settled =
        snapshot.wait_for(|snapshot| snapshot.status.state == "live" && snapshot.is_settled);
    if settled.await.is_err() {
        return;
    }
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match sink.own_keys(host_id).await {
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
        tokio::time::sleep(backoff.next_wait()).await;
    }
}
