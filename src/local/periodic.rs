//! Sends the host's processes to the bus, again and again.
//!
//! Each snapshot is sent at most once: it has until the next one is due, and what the bus has not acknowledged by then
//! is counted and forgotten. The collector is asked for its containers, which costs it a moment; everything else
//! happens on a task and a blocking thread of its own. While a look at the process table hangs, no other is begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::scan::{Scene, look};
use super::tenants::Tenant;
use crate::collector::Input;
use crate::model::Topic;
use crate::procfs::ProcessTable;
use crate::sink::snapshot::{self, Sent};
use crate::sink::{Bus, Outgoing, SinkError, TopicSettings};
use crate::telemetry;
use crate::wire::Host;
use crate::wire::local::Snapshot;

/// What came of the snapshots since the start.
#[derive(Debug, Default)]
pub struct Figures {
    /// Snapshots that the bus has whole.
    pub snapshots: AtomicU64,
    /// Records that the bus acknowledged.
    pub records: AtomicU64,
    /// Records that it refused, or did not acknowledge in time.
    pub lost_records: AtomicU64,
    /// Snapshots that were not taken or not sent: the bus was away, the process table hung.
    pub failed: AtomicU64,
}

/// Sends them.
pub struct Periodic {
    /// The time between two.
    pub interval: Duration,
    /// Where to.
    pub bus: Bus,
    /// How the topics are named and made.
    pub topics: TopicSettings,
    /// Who the bus sees.
    pub client_id: String,
    /// The host that is spoken of.
    pub host: Host,
    /// Its processes.
    pub table: Arc<ProcessTable>,
    /// The way to the collector, who knows the containers.
    pub collector: mpsc::Sender<Input>,
    /// What came of it.
    pub figures: Arc<Figures>,
    /// The end.
    pub stop: CancellationToken,
}

impl Periodic {
    /// Runs until `stop`, or until the collector has ended.
    pub async fn run(self) {
        let mut due = tokio::time::interval(self.interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut was_well = true;
        loop {
            let at = tokio::select! {
                () = self.stop.cancelled() => return,
                at = due.tick() => at,
            };
            let sent = tokio::select! {
                () = self.stop.cancelled() => return,
                sent = self.send(at + self.interval) => sent,
            };
            let Some(sent) = sent else { return };
            let is_well = self.count(&sent);
            if was_well && !is_well {
                let error = sent
                    .as_ref()
                    .map_or_else(|error| telemetry::chain(error), |sent| sent.error.clone());
                tracing::warn!(
                    error,
                    "a snapshot of the processes was lost; the next one is tried in its turn"
                );
            } else if !was_well && is_well {
                tracing::info!("snapshots of the processes are sent again");
            }
            was_well = is_well;
        }
    }

    /// One snapshot; `None` where the collector has ended.
    async fn send(&self, deadline: Instant) -> Option<Result<Sent, SinkError>> {
        let (answer, tenants) = oneshot::channel();
        self.collector.send(Input::Tenants(answer)).await.ok()?;
        let tenants = tenants.await.ok()?;
        let table = Arc::clone(&self.table);
        let host = self.host.clone();
        let looking = tokio::task::spawn_blocking(move || processes(&table, tenants, host));
        // A look that hangs is waited for past the deadline: a second one would hang too.
        Some(match looking.await {
            Ok(Ok(messages)) => self.publish(messages, deadline).await,
            Ok(Err(error)) => Err(not_read(Box::new(error))),
            Err(error) => Err(not_read(Box::new(error))),
        })
    }

    async fn publish(&self, messages: Vec<Outgoing>, deadline: Instant) -> Result<Sent, SinkError> {
        let topics = TopicSettings {
            used: vec![Topic::Processes],
            ..self.topics.clone()
        };
        let sink = crate::sink::open(&self.bus, &topics, &self.client_id)?;
        snapshot::send(sink, messages, deadline, &self.stop).await
    }

    /// Counts, and says whether all is well.
    fn count(&self, sent: &Result<Sent, SinkError>) -> bool {
        let add = |to: &AtomicU64, count: u64| to.fetch_add(count, Ordering::Relaxed);
        match sent {
            Ok(sent) => {
                add(&self.figures.records, sent.acknowledged);
                add(&self.figures.lost_records, sent.lost());
                if sent.lost() == 0 {
                    add(&self.figures.snapshots, 1);
                }
                sent.lost() == 0
            }
            Err(_) => {
                add(&self.figures.failed, 1);
                false
            }
        }
    }
}

/// All processes as messages. Blocks.
///
/// # Errors
/// Where the process table cannot be listed.
fn processes(
    table: &ProcessTable,
    tenants: Vec<Tenant>,
    host: Host,
) -> std::io::Result<Vec<Outgoing>> {
    let mut scene = Scene::read(table, tenants)?;
    let snapshot = Snapshot::new(host, crate::runtime::watch::now_ms());
    let look = look(table);
    let mut messages = Vec::with_capacity(scene.processes.len());
    for process in &scene.processes {
        let owner = scene.tenants.owner(process, &look);
        let container = owner.as_ref().map(|owner| &*owner.container);
        messages.push(snapshot.process_message(process, container));
    }
    Ok(messages)
}

fn not_read(source: Box<dyn std::error::Error + Send + Sync>) -> SinkError {
    SinkError::Unavailable {
        message: "failed to read the processes".to_owned(),
        source: Some(source),
    }
}
