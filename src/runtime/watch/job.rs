//! One request that is under way: a list, some sketches, or an inspect.
//!
//! A job is a task of its session and ends with it, wherever it waits. What it finds out it tells as observations, of
//! which each waits for room in the collector's queue; a request that failed is told as one, too. Whether the session goes
//! on after a list that failed is decided here. Whose a container's process is, `init_process.rs` finds out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use tokio::sync::{Semaphore, watch};

use super::init_process::Unowned;
use super::{EndpointFigures, INSPECTS_MAX, WatchContext, now_ms};
use crate::model::{Container, ContainerId, ContainerKind, SourceId};
use crate::procfs::FirstLook;
use crate::reconcile::{InspectOutcome, ListOutcome, Observation, ProcessReading};
use crate::runtime::{RuntimeClient, RuntimeError};
use crate::telemetry;

/// From how many containers on sketches are worth a look at all processes.
const SKETCHES_MIN: usize = 8;

/// One request that is under way.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) source: SourceId,
    pub(super) client: Arc<dyn RuntimeClient>,
    pub(super) context: WatchContext,
    pub(super) figures: Arc<EndpointFigures>,
    pub(super) error: watch::Sender<String>,
}

impl Job {
    pub(super) async fn list(self) -> Result<(), RuntimeError> {
        let began = Observation::ListBegan {
            source: self.source.clone(),
        };
        // A closed queue means that the collector ends, and this task with it.
        self.context.observations.send(began).await;
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let listed = self.client.list().await;
        let (outcome, result) = match listed {
            Ok(listing) if listing.skipped == 0 => {
                self.figures
                    .last_resync_ms
                    .store(now_ms(), Ordering::Relaxed);
                (ListOutcome::Complete(listing.rows), Ok(()))
            }
            Ok(listing) => {
                tracing::warn!(
                    source = %self.source,
                    skipped = listing.skipped,
                    "some rows of the list cannot be understood; nothing is deleted by it"
                );
                (ListOutcome::Partial(listing.rows), Ok(()))
            }
            Err(error) => {
                self.figures.failed_lists.fetch_add(1, Ordering::Relaxed);
                (ListOutcome::Failed, Err(error))
            }
        };
        let result = self.tell_too_long(result);
        let done = Observation::ListDone {
            source: self.source,
            outcome,
        };
        self.context.observations.send(done).await;
        result
    }

    /// A list that is too long is none, and nothing is wrong with the connection: the stream goes on. Any other error is the
    /// session's end.
    fn tell_too_long(&self, result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        let source = &self.source;
        match result {
            Err(error @ RuntimeError::TooLong { .. }) => {
                let error = telemetry::chain(&error);
                if self.error.send_replace(error.clone()) == error {
                    tracing::debug!(%source, %error, "the runtime's list is still too long");
                } else {
                    tracing::error!(
                        %source,
                        %error,
                        "the runtime's list is too long; only what its events tell is followed"
                    );
                }
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => {
                if !self.error.send_replace(String::new()).is_empty() {
                    tracing::info!(%source, "the runtime's list is taken again");
                }
                Ok(())
            }
        }
    }

    /// Sketches the containers whose list rows and processes tell enough, and inspects the others.
    pub(super) async fn sketch(
        self,
        mut wanted: Vec<(ContainerId, ContainerKind)>,
        look: Arc<FirstLook>,
        inspects: Arc<Semaphore>,
    ) {
        if wanted.len() >= SKETCHES_MIN {
            let ids = wanted.iter().map(|(id, _)| id.clone()).collect();
            let told = self.tell_sketches(self.client.sketch(&ids), look).await;
            wanted.retain(|(id, _)| !told.contains(id));
        }
        let asking = wanted.into_iter().map(|(id, kind)| {
            let (job, inspects) = (self.clone(), Arc::clone(&inspects));
            async move {
                let _permit = inspects.acquire().await;
                job.inspect(id, kind).await;
            }
        });
        futures::stream::iter(asking)
            .buffer_unordered(INSPECTS_MAX)
            .collect::<()>()
            .await;
    }

    /// Tells the sketches whose init process is plain to see; gives the ids of those.
    async fn tell_sketches(
        &self,
        sketches: Vec<Container>,
        look: Arc<FirstLook>,
    ) -> BTreeSet<ContainerId> {
        let mut told = BTreeSet::new();
        let ids: BTreeSet<_> = sketches.iter().map(|sketch| sketch.id.clone()).collect();
        if ids.is_empty() {
            return told;
        }
        let uid = self.client.info().peer_uid;
        let finding = tokio::task::spawn_blocking(move || look.take(&ids, uid));
        let Ok(mut inits) = finding.await else {
            return told;
        };
        for mut container in sketches {
            let Some(process) = inits.take(&container.id) else {
                continue;
            };
            container.pid = Some(process.pid);
            let fd = Unowned(&self.context.processes, process.fd);
            let sketched = Observation::Inspected {
                source: self.source.clone(),
                id: container.id.clone(),
                outcome: InspectOutcome::Sketched {
                    process: ProcessReading::Alive(Box::new(process)),
                    container: Box::new(container),
                },
            };
            if let Observation::Inspected { id, .. } = &sketched {
                told.insert(id.clone());
            }
            if !self.context.observations.send(sketched).await {
                break;
            }
            fd.hand_over();
        }
        told
    }

    pub(super) async fn inspect(self, id: ContainerId, kind: ContainerKind) {
        let outcome = match self.look(&id, kind).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(
                    source = %self.source,
                    %id,
                    error = telemetry::chain(&error),
                    "inspect failed; it is asked again"
                );
                InspectOutcome::Failed
            }
        };
        let fd = self.unowned(match &outcome {
            InspectOutcome::Found { process, .. } => process.as_ref(),
            InspectOutcome::Sketched { process, .. } => Some(process),
            InspectOutcome::Gone | InspectOutcome::Failed => None,
        });
        let inspected = Observation::Inspected {
            source: self.source.clone(),
            id,
            outcome,
        };
        if self.context.observations.send(inspected).await {
            fd.hand_over();
        }
    }
}
