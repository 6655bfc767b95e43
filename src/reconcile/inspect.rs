//! Events and inspects of one container: what is asked, what is waited for, and when a round is told.
//!
//! An event is told when an inspect that was asked for after it has been answered; a deletion at once, and a pause, which
//! the inspect then confirms. One inspect of a container is under way at a time. Three things are waited for, each with a limit:
//!
//! - an inspect that failed or contradicted what is known is repeated, later and later;
//! - a container that an inspect no longer finds waits for the event of its deletion;
//! - a run that an inspect shows and no event has told waits for its events where a stream will bring them:
//!   else the runs between would never be told.
//!
//! While an epoch opens, a container that runs may be told by a sketch (its list row and its process), so that all
//! mappings are there before the runtime has answered hundreds of inspects; what the sketch lacks follows as one
//! `update` when its inspect is answered (`fills.rs`), before the opening ends.

use std::sync::Arc;

use super::container::Tracked;
use super::story::{Round, Telling};
use super::{Effect, InspectOutcome, Opening, ProcessReading, Reconciler, RowKey};
use crate::model::message::{Op, Origin};
use crate::model::{Container, ContainerId, EventKind, RuntimeEvent, RuntimeType, SourceId, State};

/// Most events of one container that wait for its inspect; beyond it the oldest are dropped.
const PENDING_MAX: usize = 256;
/// How long an event is waited for that an inspect has run ahead of.
const EVENT_GRACE_MS: u64 = 2_000;
/// The first and the longest wait before an inspect is asked again.
const RETRY_MS: (u64, u64) = (500, 60_000);

impl Reconciler {
    pub(super) fn event(&mut self, source: &SourceId, event: RuntimeEvent) {
        let Some(known) = self.sources.get(source) else {
            return;
        };
        let list = known.list.serial();
        let id = event.id.clone();
        let is_deletion = event.what == EventKind::Deleted;
        let is_unknown = !self.containers.contains_key(&id);
        if known.is_overlay() || self.is_buried(&event, known.runtime.runtime) {
            self.counters.ignored_events += 1;
            return;
        }
        if is_unknown {
            let tracked = Tracked::new(source.clone(), event.kind);
            self.containers.insert(id.clone(), tracked);
        }
        let is_owner = self.is_owner(source, &id);
        let Some(tracked) = self.containers.get_mut(&id) else {
            return;
        };
        if !is_owner || tracked.is_double(&event) {
            self.counters.ignored_events += 1;
            return;
        }
        tracked.fingerprint = None;
        tracked.take_facts(event.facts.as_deref());
        self.take_early(&id);
        let Some(tracked) = self.containers.get_mut(&id) else {
            return;
        };
        let life = &mut tracked.life;
        life.touched_list = list;
        life.asked_fingerprint = None;
        life.is_watched |= event.what == EventKind::Created;
        if is_deletion {
            life.deleted_at_ns = Some(event.at_ns);
        } else {
            if life.pending.len() == PENDING_MAX {
                life.pending.remove(0);
                life.inspecting = life.inspecting.map(|covered| covered.saturating_sub(1));
                life.is_watched = false;
            }
            life.pending.push(event);
        }
        if life.inspecting.is_some() {
            life.is_dirty = true;
        } else if life.deleted_at_ns.is_some() {
            self.conclude_deleted(&id);
        } else if !life.is_gone {
            self.tell_pause(&id);
            self.ask(&id);
        }
    }

    /// Tells at once what a lone event says of a pause or its end: nothing else of the container changes with it. An event
    /// that may be from before the last inspect is told by the next one.
    fn tell_pause(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get(id) else {
            return;
        };
        let source = self.sources.get(&tracked.owner);
        if !source.is_some_and(super::Source::tells_pauses) {
            return;
        }
        let Some((view, at_ns)) = pause_of(tracked) else {
            return;
        };
        let Some(mut tracked) = self.containers.remove(id) else {
            return;
        };
        let telling = Telling {
            op: Op::Update,
            at_ns,
            event_ns: Some(at_ns),
            origin: Origin::Event,
            reason: "",
            may_be_missed: false,
        };
        self.tell_update(&mut tracked, view, telling);
        self.containers.insert(id.clone(), tracked);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
        self.publish_record(id);
    }

    /// An event told a container's deletion. Where events come in any order, those of its run are waited for.
    fn conclude_deleted(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let source = self.sources.get(&tracked.owner);
        let runs_once = source.is_some_and(super::Source::runs_once);
        let has_end = tracked.newest.is_some() && tracked.run.is_none();
        let mut pending = tracked.life.pending.iter();
        let is_complete =
            !runs_once || has_end || pending.any(|event| event.what == EventKind::Died);
        if is_complete {
            self.conclude(id, Origin::Event, "");
        } else {
            self.await_deletion(id);
        }
    }

    /// Whether the event is of a container whose deletion was told.
    fn is_buried(&mut self, event: &RuntimeEvent, runtime: RuntimeType) -> bool {
        let Some(deletion) = self.deleted.get(&event.id) else {
            return false;
        };
        let is_reused = runtime == RuntimeType::Containerd
            && event.what == EventKind::Created
            && deletion
                .told_at_ns
                .is_some_and(|deleted_at_ns| event.at_ns > deleted_at_ns);
        if is_reused {
            self.deleted.remove(&event.id);
        }
        !is_reused
    }

    /// Whether a runtime is the one that says what a container is. One that is away gives way to another of the same
    /// user: what a user's own runtime says is never taken for what root's said.
    pub(super) fn is_owner(&mut self, source: &SourceId, id: &ContainerId) -> bool {
        let Some(tracked) = self.containers.get_mut(id) else {
            return false;
        };
        if tracked.owner == *source {
            return true;
        }
        let owner = self.sources.get(&tracked.owner);
        let uid = self.sources.get(source).map(|source| source.runtime.uid);
        let is_kept = owner.is_some_and(|owner| owner.up || Some(owner.runtime.uid) != uid);
        if is_kept {
            return false;
        }
        tracked.owner = source.clone();
        tracked.fingerprint = None;
        true
    }

    /// Whether a sketch of a container may be told: one that is found while an epoch opens, of which no event has
    /// told anything.
    fn may_sketch(&self, id: &ContainerId) -> bool {
        let Some(tracked) = self.containers.get(id) else {
            return false;
        };
        let life = &tracked.life;
        self.opening != Opening::Done
            && !tracked.is_told()
            && life.pending.is_empty()
            && life.deleted_at_ns.is_none()
            && self
                .sources
                .get(&tracked.owner)
                .is_some_and(|source| source.runtime.runtime != RuntimeType::Containerd)
    }

    /// Asks for an inspect; while one is under way, for another one after it.
    pub(super) fn ask(&mut self, id: &ContainerId) {
        let may_sketch = self.may_sketch(id);
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let is_up = self
            .sources
            .get(&tracked.owner)
            .is_some_and(|source| source.up);
        let life = &mut tracked.life;
        if !is_up {
            life.is_stale = true;
        } else if life.inspecting.is_some() {
            life.is_dirty = true;
        } else {
            life.inspecting = Some(life.pending.len());
            life.asked_at_ms = self.now_ms;
            life.is_dirty = false;
            self.effects.push(Effect::Inspect {
                source: tracked.owner.clone(),
                id: id.clone(),
                kind: tracked.kind,
                may_sketch,
            });
        }
    }

    pub(super) fn inspected(
        &mut self,
        source: &SourceId,
        id: &ContainerId,
        outcome: InspectOutcome,
    ) {
        if self
            .sources
            .get(source)
            .is_some_and(super::Source::is_overlay)
        {
            self.overlay_inspected(source, id, outcome);
            return;
        }
        let covered = self
            .containers
            .get_mut(id)
            .filter(|tracked| tracked.owner == *source)
            .and_then(|tracked| tracked.life.inspecting.take());
        let Some(covered) = covered else {
            self.release_outcome(outcome);
            return;
        };
        match outcome {
            InspectOutcome::Found { container, process } => {
                self.fills.forget(id);
                self.found(id, covered, container, process);
            }
            InspectOutcome::Sketched { container, process } => {
                self.sketched(id, covered, container, process);
            }
            InspectOutcome::Gone => {
                self.fills.forget(id);
                self.gone(id);
            }
            InspectOutcome::Failed => self.inspect_failed(id),
        }
    }

    /// Tells what a sketch shows; the whole is asked for when everything else is told, and the list row counts as
    /// answered only with that. Where a sketch will not do any more, the whole is asked for now.
    fn sketched(
        &mut self,
        id: &ContainerId,
        covered: usize,
        container: Box<Container>,
        process: ProcessReading,
    ) {
        let asked = self
            .containers
            .get_mut(id)
            .and_then(|tracked| tracked.life.asked_fingerprint.take());
        let is_told = self.may_sketch(id);
        if is_told {
            self.found(id, covered, container, Some(process));
        } else {
            self.release_reading(&process);
        }
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        tracked.life.asked_fingerprint = asked;
        if tracked.life.inspecting.is_some() {
            return;
        }
        if is_told {
            self.fills.hold(id, self.uptime_ms);
        } else {
            self.ask(id);
        }
    }

    fn found(
        &mut self,
        id: &ContainerId,
        covered: usize,
        container: Box<Container>,
        reading: Option<ProcessReading>,
    ) {
        let Some(mut tracked) = self.containers.remove(id) else {
            return;
        };
        self.waiting.remove(id);
        let source = self.sources.get(&tracked.owner);
        let is_streaming = source.is_some_and(|source| source.streaming);
        let runs_once = source.is_some_and(super::Source::runs_once);
        tracked.kind = container.kind;
        self.take_early_found(&mut tracked, id, &container, reading.as_ref());
        let is_told = tracked.is_told();
        let life = &mut tracked.life;
        let is_deleted = life.deleted_at_ns.is_some();
        let is_final = is_deleted && !runs_once;
        let covered = if is_deleted && runs_once {
            life.pending.len()
        } else {
            covered
        };
        let is_dirty = std::mem::take(&mut life.is_dirty) && !is_deleted;
        let is_forced = std::mem::take(&mut life.is_forced);
        life.is_stale = false;
        life.is_gone = false;
        life.is_held = false;
        if !is_dirty && let Some(asked) = life.asked_fingerprint.take() {
            tracked.fingerprint = Some(asked);
        }
        let mut events = std::mem::take(&mut life.pending);
        let later = events.split_off(covered.min(events.len()));
        let later = if is_final {
            later
        } else {
            life.pending = later;
            Vec::new()
        };
        // One that an event showed in the midst of its life has an earlier part that no event will tell.
        let is_known_whole = is_told || life.is_watched || events.is_empty();
        let expects_events = is_streaming && is_known_whole && !is_final;
        let origin = if events.is_empty() && !is_final {
            Origin::Resync
        } else {
            Origin::Event
        };
        let round = Round {
            events,
            inspect: Some(container),
            reading,
            later,
            tells_ahead: !expects_events || (is_forced && !is_dirty),
            is_final,
            origin,
            reason: "",
        };
        self.tell_round(tracked, id, round);
        if is_dirty {
            self.ask(id);
        } else if is_deleted && runs_once {
            self.conclude_deleted(id);
        }
    }

    /// What an inspect showed is not to be told yet: it is asked for again.
    pub(super) fn hold(&mut self, tracked: &mut Tracked, id: &ContainerId, is_ahead: bool) {
        let life = &mut tracked.life;
        let wait_ms = if is_ahead {
            life.is_held = true;
            EVENT_GRACE_MS
        } else {
            life.is_stale = true;
            life.attempts += 1;
            retry_ms(life.attempts)
        };
        self.waiting.insert(id.clone(), self.uptime_ms + wait_ms);
    }

    fn gone(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let life = &mut tracked.life;
        life.is_dirty = false;
        let source = self.sources.get(&tracked.owner);
        let awaits_event = source.is_some_and(|source| source.streaming && source.up);
        if life.deleted_at_ns.is_some() {
            self.conclude_deleted(id);
        } else if !tracked.has_story() {
            self.drop_untold(id);
        } else if awaits_event {
            self.await_deletion(id);
        } else {
            self.conclude(id, Origin::Resync, "");
        }
    }

    /// A container is not there any more: the events that tell it are waited for, but not long.
    pub(super) fn await_deletion(&mut self, id: &ContainerId) {
        if let Some(tracked) = self.containers.get_mut(id)
            && !tracked.life.is_gone
        {
            tracked.life.is_gone = true;
            tracked.life.note_dead(self.now_ms);
            let until_ms = self.uptime_ms + EVENT_GRACE_MS;
            self.waiting.insert(id.clone(), until_ms);
        }
    }

    fn inspect_failed(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let life = &mut tracked.life;
        life.is_stale = true;
        life.attempts += 1;
        if life.deleted_at_ns.is_some() {
            self.conclude_deleted(id);
            return;
        }
        let until_ms = self.uptime_ms + retry_ms(life.attempts);
        self.waiting.insert(id.clone(), until_ms);
    }

    /// A wait is over: an inspect is repeated, or a deletion is told.
    pub(super) fn wake(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let life = &mut tracked.life;
        if life.inspecting.is_some() {
            return;
        }
        if life.is_gone {
            let origin = if life.pending.is_empty() && life.deleted_at_ns.is_none() {
                Origin::Resync
            } else {
                Origin::Event
            };
            self.conclude(id, origin, "");
        } else if life.is_held {
            life.is_forced = true;
            self.ask(id);
        } else if life.is_stale {
            self.ask(id);
        }
    }

    /// Tells the rest of a container's story and forgets it.
    pub(super) fn conclude(&mut self, id: &ContainerId, origin: Origin, reason: &'static str) {
        if self
            .containers
            .get(id)
            .is_some_and(|tracked| !tracked.has_story())
        {
            self.drop_untold(id);
            return;
        }
        let Some(mut tracked) = self.containers.remove(id) else {
            return;
        };
        self.waiting.remove(id);
        self.drop_early(id);
        let events = std::mem::take(&mut tracked.life.pending);
        let round = Round {
            events,
            inspect: None,
            reading: None,
            later: Vec::new(),
            tells_ahead: true,
            is_final: true,
            origin,
            reason,
        };
        self.tell_round(tracked, id, round);
    }

    /// Forgets a container of which nothing is to be told.
    pub(super) fn drop_untold(&mut self, id: &ContainerId) {
        self.waiting.remove(id);
        self.drop_early(id);
        if let Some(mut tracked) = self.containers.remove(id) {
            if tracked.hint.is_some() {
                self.drop_hint(&mut tracked, id, self.now_ms);
                self.effects
                    .push(Effect::SaveRow(RowKey::Container(id.clone())));
            }
            if tracked.life.deleted_at_ns.is_some() {
                self.counters.ignored_events += 1;
                self.remember_deleted(id, tracked.life.deleted_at_ns);
            }
        }
    }

    /// Resets what was awaited of a runtime that went away.
    pub(super) fn lose_requests(&mut self, source: &SourceId) {
        self.lose_fills(source);
        let mut to_conclude = Vec::new();
        for (id, tracked) in &mut self.containers {
            if tracked.owner != *source {
                continue;
            }
            let life = &mut tracked.life;
            life.is_watched = false;
            life.is_dirty = false;
            if life.inspecting.take().is_some() || life.is_held || !life.pending.is_empty() {
                life.is_stale = true;
            }
            if life.deleted_at_ns.is_some() {
                to_conclude.push(id.clone());
            }
        }
        for id in to_conclude {
            self.conclude(&id, Origin::Event, "");
        }
    }

    fn release_outcome(&mut self, outcome: InspectOutcome) {
        match outcome {
            InspectOutcome::Found {
                process: Some(reading),
                ..
            }
            | InspectOutcome::Sketched {
                process: reading, ..
            } => self.release_reading(&reading),
            InspectOutcome::Found { process: None, .. }
            | InspectOutcome::Gone
            | InspectOutcome::Failed => {}
        }
    }
}

/// A running container as paused, or a paused one as running, by the one event that waits; and when.
fn pause_of(tracked: &Tracked) -> Option<(Arc<Container>, u64)> {
    let life = &tracked.life;
    let [event] = life.pending.as_slice() else {
        return None;
    };
    let (before, after) = match event.what {
        EventKind::Paused => (State::Running, State::Paused),
        EventKind::Unpaused => (State::Paused, State::Running),
        EventKind::Created
        | EventKind::Initialized
        | EventKind::Started
        | EventKind::Died
        | EventKind::Deleted
        | EventKind::Renamed => return None,
    };
    let is_new = life.asked_at_ms != 0 && event.at_ns / 1_000_000 > life.asked_at_ms;
    if !is_new || life.is_stale || life.is_held || tracked.run.is_none() {
        return None;
    }
    let mut container = tracked.shared().filter(|told| told.state == before)?;
    Arc::make_mut(&mut container).state = after;
    Some((container, event.at_ns))
}

fn retry_ms(attempts: u32) -> u64 {
    (RETRY_MS.0 << attempts.min(10)).min(RETRY_MS.1)
}
