//! What CRI-O tells nobody: that a sandbox was removed, and with it the containers that were still in it.
//!
//! It has the event of a sandbox, and makes it when the sandbox is no longer known, so that it is never sent (cri-o 1.34,
//! `RemovePodSandbox` in `server/sandbox_remove.go`; `generateCRIEvent` gives up without the sandbox); for its containers it
//! makes none there. A sandbox is stopped before it is removed, and that is told. So while one is known to be stopped, the
//! sandboxes are listed now and then, and what is not among them any more is gone. kubelet keeps stopped sandboxes for as
//! long as their pods are there.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::Sleep;
use tonic::transport::Channel;

use super::normalise;
use super::pods::Pods;
use super::proto::ListPodSandboxRequest;
use super::proto::runtime_service_client::RuntimeServiceClient;
use crate::model::{ContainerId, ContainerKind};

/// How often sandboxes are listed while a stopped one is known. CRI-O answers from memory; polling would ask for all
/// containers too, every second.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The sandboxes that are there, or `None` where the server did not say.
type Listed = Option<BTreeSet<ContainerId>>;

enum Phase {
    Waiting(Pin<Box<Sleep>>),
    /// These were known to be stopped before the list was asked for.
    Asking(BTreeSet<ContainerId>, BoxFuture<'static, Listed>),
}

/// Finds the sandboxes that are removed, and their containers.
pub(super) struct Removals {
    calls: RuntimeServiceClient<Channel>,
    pods: Arc<Pods>,
    timeout: Duration,
    phase: Phase,
    found: VecDeque<(ContainerId, ContainerKind)>,
}

impl Removals {
    /// Each list gets `timeout`; one that fails is asked for again.
    pub(super) fn new(
        calls: RuntimeServiceClient<Channel>,
        pods: Arc<Pods>,
        timeout: Duration,
    ) -> Self {
        Self {
            calls,
            pods,
            timeout,
            phase: Phase::waiting(),
            found: VecDeque::new(),
        }
    }

    /// The next of them, a sandbox after its containers. It may be dropped midway: all that is under way stays in `self`.
    pub(super) async fn next(&mut self) -> (ContainerId, ContainerKind) {
        loop {
            if let Some(gone) = self.found.pop_front() {
                return gone;
            }
            match &mut self.phase {
                Phase::Waiting(wait) => {
                    wait.as_mut().await;
                    let stopped = self.pods.stopped();
                    self.phase = if stopped.is_empty() {
                        Phase::waiting()
                    } else {
                        Phase::Asking(stopped, list(self.calls.clone(), self.timeout).boxed())
                    };
                }
                Phase::Asking(stopped, listing) => {
                    if let Some(there) = listing.await {
                        let removed: BTreeSet<_> = stopped.difference(&there).cloned().collect();
                        let members = self.pods.forget_sandboxes(&removed).into_iter();
                        let members = members.map(|id| (id, ContainerKind::Container));
                        let sandboxes = removed.into_iter().map(|id| (id, ContainerKind::Sandbox));
                        self.found.extend(members.chain(sandboxes));
                    }
                    self.phase = Phase::waiting();
                }
            }
        }
    }
}

impl Phase {
    fn waiting() -> Self {
        Self::Waiting(Box::pin(tokio::time::sleep(LOOK_EVERY)))
    }
}

async fn list(mut calls: RuntimeServiceClient<Channel>, timeout: Duration) -> Listed {
    let call = calls.list_pod_sandbox(ListPodSandboxRequest {});
    let answer = tokio::time::timeout(timeout, call).await.ok()?.ok()?;
    let rows = answer.into_inner().items;
    Some(
        rows.iter()
            .filter_map(|row| normalise::id(&row.id))
            .collect(),
    )
}
