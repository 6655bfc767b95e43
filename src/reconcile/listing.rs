//! Runtimes that come and go, their lists, and the resync.
//!
//! A list asks only for what it cannot know: a row that is new or differs from the same runtime's previous row
//! is inspected; one that is the same has its init process looked at; after a gap in the stream what is not
//! running is inspected once, because a run that began and ended in the gap shows no difference.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::Tracked;
use super::{Effect, ListOutcome, Reconciler, RowKey};
use crate::model::message::{Origin, RuntimeSource};
use crate::model::{ContainerId, ListRow, RuntimeType, SourceId, State};

/// Where the list of a runtime stands.
#[derive(Clone, Debug, Default)]
pub(super) struct ListState {
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

/// What is kept of a runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    pub(super) runtime: Arc<RuntimeSource>,
    /// Since when it is away, in unix milliseconds; 0 while it is up.
    away_since_ms: u64,
    /// For how long it is away; counted, so that a clock that steps forgets nothing.
    #[serde(skip)]
    away_ms: u64,
    #[serde(skip)]
    pub(super) up: bool,
    #[serde(skip)]
    pub(super) streaming: bool,
    #[serde(skip)]
    pub(super) list: ListState,
    /// What is not running is to be inspected once: a gap in the stream may hide whole runs.
    #[serde(skip)]
    gap: bool,
    /// Every container of the next list is to have its record put again.
    #[serde(skip)]
    refresh: bool,
    /// It has been listed whole in this life of the process.
    #[serde(skip)]
    pub(super) listed_once: bool,
}

impl Source {
    fn new(runtime: Arc<RuntimeSource>) -> Self {
        Self {
            runtime,
            away_since_ms: 0,
            away_ms: 0,
            up: false,
            streaming: false,
            list: ListState::default(),
            gap: false,
            refresh: false,
            listed_once: false,
        }
    }

    /// Whether its containers run once (CRI).
    pub(super) fn runs_once(&self) -> bool {
        self.runtime.runtime == RuntimeType::Cri
    }

    /// Whether the event of a pause is to be believed at once: not behind a gap, where it may speak of another run, nor of
    /// Podman, which says so of a pause that failed, too (libpod/container_api.go).
    pub(super) fn tells_pauses(&self) -> bool {
        !self.gap && &*self.runtime.name != "podman"
    }

    /// Whether it only lends names to the containers of Docker (cri-dockerd).
    pub(super) fn is_overlay(&self) -> bool {
        self.runtime.runtime == RuntimeType::Cri && &*self.runtime.name == "docker"
    }
}

/// What a list is compared with.
struct Compare {
    serial: u64,
    gap: bool,
    refresh: bool,
}

impl Reconciler {
    pub(super) fn source_up(
        &mut self,
        id: SourceId,
        runtime: RuntimeSource,
        streaming: bool,
        is_listing: bool,
    ) {
        self.lose_requests(&id);
        let runtime = Arc::new(runtime);
        let source = self
            .sources
            .entry(id.clone())
            .or_insert_with(|| Source::new(Arc::clone(&runtime)));
        let is_other = source.runtime != runtime;
        source.runtime = runtime;
        source.away_since_ms = 0;
        source.away_ms = 0;
        source.up = true;
        source.streaming = streaming;
        source.gap = true;
        source.list.is_asked = is_listing;
        source.list.again = false;
        if is_other {
            self.forget_fingerprints(&id);
        }
        self.effects
            .push(Effect::SaveRow(RowKey::Source(id.clone())));
        if !is_listing {
            self.relist(&id);
        }
    }

    /// Another version answers: what it says of its containers has changed, though its rows have not.
    fn forget_fingerprints(&mut self, source: &SourceId) {
        for tracked in self.containers.values_mut() {
            if tracked.owner == *source {
                tracked.fingerprint = None;
            }
        }
    }

    pub(super) fn source_down(&mut self, id: &SourceId) {
        self.expected.remove(id);
        let Some(source) = self.sources.get_mut(id) else {
            return;
        };
        if source.up {
            source.away_since_ms = self.now_ms;
        }
        source.up = false;
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
                tracked.life.is_watched = false;
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

    /// Lists a runtime without a stream; one with a stream tells by itself.
    pub(super) fn list_due(&mut self, id: &SourceId) {
        let wanted = self.sources.get(id).is_some_and(|source| {
            source.list.is_idle() && !source.is_overlay() && !source.streaming
        });
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
        self.expected.remove(id);
        let again = std::mem::take(&mut source.list.again);
        let (rows, is_complete) = match outcome {
            ListOutcome::Complete(rows) => (rows, true),
            ListOutcome::Partial(rows) => (rows, false),
            ListOutcome::Failed => (Vec::new(), false),
        };
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
        if source.is_overlay() {
            self.compare_overlay(id, &rows);
        } else {
            for row in &rows {
                self.compare_row(id, row, &compare);
            }
            if is_complete {
                let listed = rows.iter().map(|row| &row.id).collect();
                self.delete_unlisted(id, &listed, &compare);
            }
        }
        if again {
            self.relist(id);
        }
    }

    fn compare_row(&mut self, source: &SourceId, row: &ListRow, compare: &Compare) {
        if let Some(deletion) = self.deleted.get(&row.id) {
            if deletion.told_at_ns.is_some() {
                return;
            }
            self.deleted.remove(&row.id);
        }
        if !self.containers.contains_key(&row.id) {
            let tracked = Tracked::new(source.clone(), row.kind);
            self.containers.insert(row.id.clone(), tracked);
        }
        if !self.is_owner(source, &row.id) {
            return;
        }
        let Some(tracked) = self.containers.get_mut(&row.id) else {
            return;
        };
        let puts_record = compare.refresh && self.settings.records_refresh_ms.is_none();
        let is_newer_than_list =
            tracked.life.touched_list >= compare.serial && tracked.life.touched_list != 0;
        let is_known = is_newer_than_list || is_as_before(tracked, row, compare.gap);
        if !is_known {
            tracked.life.asked_fingerprint = Some(row.fingerprint);
            tracked.life.is_forced |= compare.gap;
        }
        if !is_known || tracked.is_awaited() {
            tracked.life.is_record_due |= puts_record;
        } else if puts_record {
            self.publish_record(&row.id);
        }
        if is_newer_than_list {
            return;
        }
        if !is_known {
            self.ask(&row.id);
        } else if compare.gap || compare.refresh {
            self.read_processes(&row.id);
        }
    }

    fn read_processes(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get(id) else {
            return;
        };
        for pid in tracked.pids() {
            let id = id.clone();
            self.effects.push(Effect::ReadProcess { id, pid });
        }
    }

    /// What a complete list no longer has is deleted. Where a whole stream tells it too, that is waited for: it
    /// knows when and how.
    fn delete_unlisted(
        &mut self,
        source: &SourceId,
        listed: &BTreeSet<&ContainerId>,
        compare: &Compare,
    ) {
        let is_streaming = self
            .sources
            .get(source)
            .is_some_and(|source| source.streaming);
        let unlisted: Vec<_> = self
            .containers
            .iter()
            .filter(|(id, tracked)| {
                let touched = tracked.life.touched_list;
                tracked.owner == *source
                    && !listed.contains(id)
                    && !tracked.is_awaited()
                    && (touched < compare.serial || touched == 0)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in unlisted {
            if is_streaming && !compare.gap {
                self.await_deletion(&id);
            } else {
                self.conclude_unlisted(&id, "");
            }
        }
    }

    fn conclude_unlisted(&mut self, id: &ContainerId, reason: &'static str) {
        if self.containers.get(id).is_some_and(Tracked::has_story) {
            self.conclude(id, Origin::Resync, reason);
        } else {
            self.drop_untold(id);
        }
    }

    /// At the start: how long the runtimes were away before, as far as that was seen.
    pub(super) fn count_away(&mut self, last_alive_ms: u64) {
        for source in self.sources.values_mut() {
            source.away_ms = match source.away_since_ms {
                0 => 0,
                since_ms => last_alive_ms.saturating_sub(since_ms),
            };
        }
    }

    /// Looks after the runtimes that are away: their processes may end unseen, and one day they are forgotten.
    pub(super) fn check_away(&mut self, elapsed_ms: u64) {
        let mut forgotten = Vec::new();
        let mut away = Vec::new();
        for (id, source) in &mut self.sources {
            if source.up {
                continue;
            }
            source.away_ms += elapsed_ms;
            if source.away_since_ms == 0 {
                source.away_since_ms = self.now_ms;
                self.effects
                    .push(Effect::SaveRow(RowKey::Source(id.clone())));
            }
            if source.away_ms >= self.settings.forget_after_ms {
                forgotten.push(id.clone());
            } else {
                let owned = self
                    .containers
                    .iter()
                    .filter(|(_, tracked)| tracked.owner == *id);
                away.extend(owned.map(|(id, _)| id.clone()));
            }
        }
        for id in away {
            self.read_processes(&id);
        }
        for id in forgotten {
            self.forget_source(&id);
        }
    }

    pub(super) fn forget_source(&mut self, id: &SourceId) {
        self.expected.remove(id);
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

/// Whether a row tells nothing that is not known.
fn is_as_before(tracked: &Tracked, row: &ListRow, gap: bool) -> bool {
    let has_run = tracked.run.is_some();
    let is_agreed = match row.state {
        State::Running | State::Paused => has_run,
        State::Created | State::Restarting | State::Removing | State::Exited | State::Dead => {
            !has_run
        }
        State::Unknown => true,
    };
    let may_hide_runs = gap && !(row.state.is_live() && tracked.open_pid().is_some());
    tracked.is_told()
        && tracked.fingerprint == Some(row.fingerprint)
        && !tracked.life.is_stale
        && is_agreed
        && !may_hide_runs
}
