//! Runtimes that come and go, their lists, and the resync.
//!
//! A list asks only for what it cannot know: a row that is new or differs from the same runtime's previous row
//! is inspected; one that is the same has its init process looked at; after a gap in the stream what is not
//! running is inspected once, because a run that began and ended in the gap shows no difference.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::container::Tracked;
use super::{AWAY_CHECK_MS, Effect, ListOutcome, Reconciler, RowKey, Source};
use crate::model::message::{Origin, RuntimeSource};
use crate::model::{ContainerId, ListRow, SourceId};

/// Labels that say that cri-dockerd made one of Docker's containers.
const KUBERNETES_LABELS: [&str; 2] = ["io.kubernetes.docker.type", "io.kubernetes.pod.uid"];

/// Where the list of a runtime stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListState {
    is_asked: bool,
    /// Another list is wanted when this one is done.
    again: bool,
    /// The number of the newest list that has begun.
    serial: u64,
}

impl ListState {
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.is_asked
    }
}

impl Reconciler {
    pub(super) fn source_up(&mut self, id: SourceId, runtime: RuntimeSource, streaming: bool) {
        let runtime = Arc::new(runtime);
        let source = self.sources.entry(id.clone()).or_insert_with(|| Source {
            runtime: Arc::clone(&runtime),
            last_up_ms: 0,
            up: false,
            streaming: false,
            list: ListState::default(),
            gap: false,
            refresh: false,
            listed_once: false,
        });
        source.runtime = runtime;
        source.last_up_ms = self.now_ms;
        source.up = true;
        source.streaming = streaming;
        source.gap = true;
        source.list.is_asked = false;
        self.effects
            .push(Effect::SaveRow(RowKey::Source(id.clone())));
        self.relist(&id);
    }

    pub(super) fn source_down(&mut self, id: &SourceId) {
        let Some(source) = self.sources.get_mut(id) else {
            return;
        };
        source.up = false;
        source.last_up_ms = self.now_ms;
        source.list.is_asked = false;
        source.list.again = false;
        self.effects
            .push(Effect::SaveRow(RowKey::Source(id.clone())));
        self.lose_requests(id);
    }

    pub(super) fn stream_gap(&mut self, id: &SourceId) {
        let Some(source) = self.sources.get_mut(id) else {
            return;
        };
        source.gap = true;
        for tracked in self.containers.values_mut() {
            if tracked.owner == *id {
                tracked.forget_awaited_events();
            }
        }
        self.relist(id);
    }

    pub(super) fn resync_due(&mut self) {
        self.package_seq += 1;
        let ids: Vec<_> = self.sources.keys().cloned().collect();
        for id in ids {
            if let Some(source) = self.sources.get_mut(&id) {
                source.refresh = true;
            }
            self.relist(&id);
        }
    }

    pub(super) fn list_due(&mut self, id: &SourceId) {
        let wanted = self
            .sources
            .get(id)
            .is_some_and(|source| source.list.is_idle() && !source.is_overlay());
        if wanted {
            self.relist(id);
        }
    }

    fn relist(&mut self, id: &SourceId) {
        let Some(source) = self.sources.get_mut(id).filter(|source| source.up) else {
            return;
        };
        if source.list.is_asked {
            source.list.again = true;
        } else {
            source.list.is_asked = true;
            source.list.again = false;
            self.effects.push(Effect::List { source: id.clone() });
        }
    }

    pub(super) fn list_began(&mut self, id: &SourceId) {
        if let Some(source) = self.sources.get_mut(id) {
            source.list.serial += 1;
        }
    }

    pub(super) fn list_done(&mut self, id: &SourceId, outcome: ListOutcome) {
        let Some(source) = self
            .sources
            .get_mut(id)
            .filter(|source| source.list.is_asked)
        else {
            return;
        };
        source.list.is_asked = false;
        let again = std::mem::take(&mut source.list.again);
        let (rows, is_complete) = match outcome {
            ListOutcome::Complete(rows) => (rows, true),
            ListOutcome::Partial(rows) => (rows, false),
            ListOutcome::Failed => {
                if again {
                    self.relist(id);
                }
                return;
            }
        };
        if source.is_overlay() {
            source.listed_once = true;
            self.compare_overlay(id, &rows);
        } else {
            let compare = Compare {
                serial: source.list.serial,
                gap: source.gap,
                refresh: source.refresh,
            };
            if is_complete {
                source.listed_once = true;
                source.gap = false;
                source.refresh = false;
            }
            let listed: BTreeSet<&ContainerId> = rows.iter().map(|row| &row.id).collect();
            for row in &rows {
                self.compare_row(id, row, &compare);
            }
            if is_complete {
                self.delete_unlisted(id, &listed, compare.serial);
            }
        }
        if again {
            self.relist(id);
        }
    }

    fn compare_row(&mut self, source: &SourceId, row: &ListRow, compare: &Compare) {
        if self.deleted.contains_key(&row.id) {
            return;
        }
        let tracked = self
            .containers
            .entry(row.id.clone())
            .or_insert_with(|| Tracked::new(source.clone(), row.kind));
        if tracked.owner != *source {
            return;
        }
        let is_newer_than_list =
            tracked.touched_list >= compare.serial && tracked.touched_list != 0;
        if is_newer_than_list {
            return;
        }
        let is_known = tracked.is_told()
            && tracked.fingerprint == Some(row.fingerprint)
            && !tracked.stale
            && !(compare.gap && !row.state.is_live());
        if !is_known {
            tracked.asked_fingerprint = Some(row.fingerprint);
            self.ask(&row.id);
            return;
        }
        if (compare.gap || compare.refresh)
            && let Some(pid) = tracked.open_pid()
        {
            self.effects.push(Effect::ReadProcess {
                id: row.id.clone(),
                pid,
            });
        }
        if compare.refresh && self.settings.records_refresh_ms.is_none() {
            self.publish_record(&row.id);
        }
    }

    fn delete_unlisted(&mut self, source: &SourceId, listed: &BTreeSet<&ContainerId>, serial: u64) {
        let unlisted: Vec<_> = self
            .containers
            .iter()
            .filter(|(id, tracked)| {
                tracked.owner == *source
                    && !listed.contains(id)
                    && !tracked.is_awaited()
                    && (tracked.touched_list < serial || tracked.touched_list == 0)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in unlisted {
            self.conclude_unlisted(&id, "");
        }
    }

    fn conclude_unlisted(&mut self, id: &ContainerId, reason: &'static str) {
        if self.containers.get(id).is_some_and(Tracked::has_story) {
            self.conclude(id, Origin::Resync, reason);
        } else {
            self.containers.remove(id);
        }
    }

    fn compare_overlay(&mut self, source: &SourceId, rows: &[ListRow]) {
        for row in rows {
            let Some(tracked) = self.containers.get_mut(&row.id) else {
                continue;
            };
            let is_known = tracked.overlay.as_ref().is_some_and(|overlay| {
                overlay.source == *source && overlay.fingerprint == Some(row.fingerprint)
            });
            if !is_known {
                tracked.asked_overlay = Some(row.fingerprint);
                self.effects.push(Effect::Inspect {
                    source: source.clone(),
                    id: row.id.clone(),
                    kind: row.kind,
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
        if !is_kubernetes || container.runtime != crate::model::RuntimeType::Docker {
            return;
        }
        let is_sandbox = container
            .labels
            .get(KUBERNETES_LABELS[0])
            .map(String::as_str)
            == Some("podsandbox");
        let kind = if is_sandbox {
            crate::model::ContainerKind::Sandbox
        } else {
            crate::model::ContainerKind::Container
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
            });
        }
    }

    /// Looks after the runtimes that are away: their processes may end unseen, and one day they are forgotten.
    pub(super) fn check_away(&mut self) {
        let mut forgotten = Vec::new();
        for (id, source) in &mut self.sources {
            if source.up {
                source.last_up_ms = self.now_ms;
                continue;
            }
            let away_ms = self.now_ms.saturating_sub(source.last_up_ms);
            if away_ms >= self.settings.forget_after_ms.max(AWAY_CHECK_MS) {
                forgotten.push(id.clone());
                continue;
            }
            for (container, tracked) in &self.containers {
                if tracked.owner == *id
                    && let Some(pid) = tracked.open_pid()
                {
                    self.effects.push(Effect::ReadProcess {
                        id: container.clone(),
                        pid,
                    });
                }
            }
        }
        for id in forgotten {
            self.forget_source(&id);
        }
    }

    pub(super) fn forget_source(&mut self, id: &SourceId) {
        let owned: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, tracked)| tracked.owner == *id)
            .map(|(id, _)| id.clone())
            .collect();
        for container in owned {
            self.conclude_unlisted(&container, "endpoint forgotten");
        }
        if self.sources.remove(id).is_some() {
            self.effects
                .push(Effect::SaveRow(RowKey::Source(id.clone())));
        }
    }
}

/// What a list is compared with.
struct Compare {
    serial: u64,
    gap: bool,
    refresh: bool,
}
