//! cri-dockerd: the same containers as Docker's, with their pods' names.
//!
//! Existence, state, pid, times and exit code are Docker's alone. cri-dockerd lends name, pod, kind and restart
//! count, never creates or deletes, and its last values outlive its outage.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::Tracked;
use super::story::Telling;
use super::{Effect, InspectOutcome, Reconciler, RowKey};
use crate::model::message::{Op, Origin};
use crate::model::{Container, ContainerId, ContainerKind, ListRow, Pod, RuntimeType, SourceId};

/// Labels that say that cri-dockerd made one of Docker's containers.
const KUBERNETES_LABELS: [&str; 2] = ["io.kubernetes.docker.type", "io.kubernetes.pod.uid"];

/// What cri-dockerd says of one of Docker's containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Overlay {
    source: SourceId,
    /// The list row that it answers for.
    fingerprint: Option<u64>,
    name: String,
    kind: ContainerKind,
    pod: Option<Pod>,
    restart_count: Option<u32>,
}

impl Overlay {
    /// Puts what cri-dockerd says in the place of what Docker says.
    pub(super) fn lay_over(&self, container: &mut Container) {
        container.name.clone_from(&self.name);
        container.kind = self.kind;
        container.pod.clone_from(&self.pod);
        container.restart_count = self.restart_count.or(container.restart_count);
        container.runtime = RuntimeType::Cri;
    }
}

impl Reconciler {
    pub(super) fn compare_overlay(&mut self, source: &SourceId, rows: &[ListRow]) {
        for row in rows {
            let Some(tracked) = self.containers.get_mut(&row.id) else {
                continue;
            };
            let overlay = tracked.overlay.as_mut();
            let is_known = overlay.is_some_and(|overlay| {
                // What CRI calls metadata never changes: the first row after an inspect is what it answered for.
                let answered = *overlay.fingerprint.get_or_insert(row.fingerprint);
                overlay.source == *source && answered == row.fingerprint
            });
            if !is_known {
                tracked.life.asked_overlay = Some(row.fingerprint);
                self.effects.push(Effect::Inspect {
                    source: source.clone(),
                    id: row.id.clone(),
                    kind: row.kind,
                    may_sketch: false,
                });
            }
        }
    }

    /// Asks cri-dockerd about one of Docker's containers that is new and by its labels one of its own.
    pub(super) fn ask_overlay(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id).and_then(Tracked::container) else {
            return;
        };
        let is_kubernetes = KUBERNETES_LABELS
            .iter()
            .any(|label| container.labels.contains_key(*label));
        if !is_kubernetes || container.runtime != RuntimeType::Docker {
            return;
        }
        let type_label = container.labels.get(KUBERNETES_LABELS[0]);
        let kind = match type_label.map(String::as_str) {
            Some("podsandbox") => ContainerKind::Sandbox,
            Some(_) | None => ContainerKind::Container,
        };
        let overlay = self
            .sources
            .iter()
            .find(|(_, source)| source.up && source.is_overlay())
            .map(|(id, _)| id.clone());
        if let Some(source) = overlay {
            self.effects.push(Effect::Inspect {
                source,
                id: id.clone(),
                kind,
                may_sketch: false,
            });
        }
    }

    pub(super) fn overlay_inspected(
        &mut self,
        source: &SourceId,
        id: &ContainerId,
        outcome: InspectOutcome,
    ) {
        let (container, process) = match outcome {
            InspectOutcome::Found { container, process } => (container, process),
            InspectOutcome::Sketched { container, process } => (container, Some(process)),
            InspectOutcome::Gone | InspectOutcome::Failed => return,
        };
        if let Some(reading) = process {
            self.release_reading(&reading);
        }
        let Some(mut tracked) = self.containers.remove(id) else {
            return;
        };
        let fingerprint = tracked.life.asked_overlay.take();
        let known = tracked.overlay.take();
        let overlay = Overlay {
            source: source.clone(),
            fingerprint: fingerprint.or(known.and_then(|known| known.fingerprint)),
            name: container.name,
            kind: container.kind,
            pod: container.pod,
            restart_count: container.restart_count,
        };
        let seq = self.seq;
        if let Some(told) = &tracked.told {
            let mut view = Arc::clone(&told.container);
            overlay.lay_over(Arc::make_mut(&mut view));
            let telling = Telling {
                op: Op::Update,
                at_ns: 0,
                event_ns: None,
                origin: Origin::Resync,
                reason: "",
                may_be_missed: false,
            };
            tracked.overlay = Some(overlay);
            self.tell_update(&mut tracked, view, telling);
        } else {
            tracked.overlay = Some(overlay);
        }
        let is_told = tracked.is_told();
        self.containers.insert(id.clone(), tracked);
        if is_told {
            self.effects
                .push(Effect::SaveRow(RowKey::Container(id.clone())));
        }
        if self.seq != seq {
            self.publish_record(id);
        }
    }
}
