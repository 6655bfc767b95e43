//! The story of one container: from events and inspects, in whatever order they come, to deltas.
//!
//! A container lives in runs. What is known of them in one round (the events since the last one, and what an
//! inspect said after them) is first made into a line of [`RunStory`]s, ordered by content; then the line is
//! told: `create` if it was never told, a `start` and a `stop` for each run as far as they are still owed, and
//! an `update` where the container is otherwise not as it was told last.
//!
//! Docker says exactly one `start` and one `die` for each run, in order. Where an inspect told a run's start or
//! end before its event came, that event is awaited and swallowed ([`Tracked::awaits_start`]).

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Effect, InspectOutcome, Opening, Process, ProcessReading, Reconciler, RowKey};
use crate::model::message::{Delta, Message, Op, Origin};
use crate::model::record::{Fields, ProcessFacts};
use crate::model::{
    Container, ContainerId, ContainerKind, EventKind, Pod, RuntimeEvent, RuntimeType, SourceId,
    State,
};

/// Most events of one container that wait for its inspect; beyond it the oldest are dropped.
const PENDING_MAX: usize = 256;
/// How many events are remembered to know their doubles.
const SEEN_MAX: usize = 8;
/// How long a container that an inspect no longer finds waits for the event that tells its deletion.
const GONE_GRACE_MS: u64 = 2_000;
/// The first and the longest wait before an inspect that failed is asked again.
const RETRY_MS: (u64, u64) = (500, 60_000);

/// One life of an init process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(crate) started_at_ns: u64,
    pub(crate) pid: Option<u32>,
    pub(crate) start_ticks: u64,
    pub(crate) pns_inode: Option<u64>,
    pub(crate) pns_id: Option<u64>,
    pub(crate) boot_id: Arc<str>,
}

/// What cri-dockerd says of one of Docker's containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Overlay {
    pub(super) source: SourceId,
    pub(super) fingerprint: Option<u64>,
    name: String,
    kind: ContainerKind,
    pod: Option<Pod>,
    restart_count: Option<u32>,
}

/// What is known of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tracked {
    pub(super) owner: SourceId,
    pub(super) kind: ContainerKind,
    /// As it was told last; `None` before its `create`.
    told: Option<Box<Container>>,
    told_process: ProcessFacts,
    pub(super) run: Option<Run>,
    /// The start of the newest run that was told.
    newest_run_ns: u64,
    newest_process: (u32, u64),
    pub(super) overlay: Option<Overlay>,
    /// The newest list row whose inspect was answered.
    pub(super) fingerprint: Option<u64>,
    #[serde(skip)]
    pub(super) asked_fingerprint: Option<u64>,
    #[serde(skip)]
    pub(super) asked_overlay: Option<u64>,
    /// Its next list row is to be inspected whatever it says.
    #[serde(skip)]
    pub(super) stale: bool,
    #[serde(skip)]
    pub(super) record_due: bool,
    #[serde(skip)]
    pub(super) record_put_ms: u64,
    /// The newest list of its source that had begun when an event touched it.
    #[serde(skip)]
    pub(super) touched_list: u64,
    #[serde(skip)]
    pub(super) last_alive_ms: u64,
    #[serde(skip)]
    event_facts: Option<Box<Container>>,
    #[serde(skip)]
    pending: Vec<RuntimeEvent>,
    #[serde(skip)]
    seen: VecDeque<(EventKind, u64)>,
    /// An inspect is under way; it covers so many of the pending events.
    #[serde(skip)]
    inspecting: Option<usize>,
    /// Something happened since that inspect was asked for.
    #[serde(skip)]
    dirty: bool,
    #[serde(skip)]
    attempts: u32,
    /// An event told its deletion, at this time.
    #[serde(skip)]
    deleted_at_ns: Option<u64>,
    #[serde(skip)]
    is_gone: bool,
    #[serde(skip)]
    awaits_start: bool,
    #[serde(skip)]
    awaits_die: bool,
    #[serde(skip)]
    hint: Option<Run>,
}

impl Tracked {
    pub(super) fn new(owner: SourceId, kind: ContainerKind) -> Self {
        Self {
            owner,
            kind,
            told: None,
            told_process: ProcessFacts::default(),
            run: None,
            newest_run_ns: 0,
            newest_process: (0, 0),
            overlay: None,
            fingerprint: None,
            asked_fingerprint: None,
            asked_overlay: None,
            stale: false,
            record_due: false,
            record_put_ms: 0,
            touched_list: 0,
            last_alive_ms: 0,
            event_facts: None,
            pending: Vec::new(),
            seen: VecDeque::new(),
            inspecting: None,
            dirty: false,
            attempts: 0,
            deleted_at_ns: None,
            is_gone: false,
            awaits_start: false,
            awaits_die: false,
            hint: None,
        }
    }

    /// Whether a `create` or a `snapshot` told it.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// As it was told last.
    pub fn container(&self) -> Option<&Container> {
        self.told.as_deref()
    }

    /// The runtime that says what it is.
    pub fn owner(&self) -> &SourceId {
        &self.owner
    }

    /// The pid of its open run.
    pub fn open_pid(&self) -> Option<u32> {
        self.run.as_ref()?.pid
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.inspecting.is_some()
    }

    fn process_facts(&self) -> ProcessFacts {
        self.run
            .as_ref()
            .map_or_else(ProcessFacts::default, Run::facts)
    }

    /// The fields as they were told last.
    ///
    /// # Panics
    /// Never for a container that [is told](Self::is_told).
    pub fn fields(&self) -> Fields {
        let told = self.told.as_deref().expect("only what was told has fields");
        Fields::of(told, self.told_process)
    }

    /// Whether anything was told or is to be told of it.
    pub(super) fn has_story(&self) -> bool {
        self.is_told() || !self.pending.is_empty()
    }

    fn is_double(&mut self, event: &RuntimeEvent) -> bool {
        let mark = (event.what, event.at_ns);
        if event.at_ns != 0 && self.seen.contains(&mark) {
            return true;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(mark);
        false
    }

    pub(super) fn forget_awaited_events(&mut self) {
        self.awaits_start = false;
        self.awaits_die = false;
    }

    fn with_overlay(&self, mut container: Container) -> Container {
        if let Some(overlay) = &self.overlay {
            container.name.clone_from(&overlay.name);
            container.kind = overlay.kind;
            container.pod.clone_from(&overlay.pod);
            container.restart_count = overlay.restart_count.or(container.restart_count);
            container.runtime = RuntimeType::Cri;
        }
        container
    }
}

impl Run {
    fn of(process: &Process, started_at_ns: u64, boot_id: &Arc<str>) -> Self {
        Self {
            started_at_ns,
            pid: Some(process.pid),
            start_ticks: process.start_ticks,
            pns_inode: Some(process.pns_inode),
            pns_id: process.pns_id,
            boot_id: Arc::clone(boot_id),
        }
    }

    fn facts(&self) -> ProcessFacts {
        ProcessFacts {
            pid: self.pid,
            pns_inode: self.pns_inode,
            pns_id: self.pns_id,
        }
    }

    fn is_process(&self, process: &Process) -> bool {
        self.pid == Some(process.pid) && self.start_ticks == process.start_ticks
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
struct End {
    at_ns: u64,
    exit_code: Option<i32>,
}

/// One run in the line of a round.
#[derive(Debug)]
struct RunStory {
    started_at_ns: u64,
    is_told: bool,
    /// It is the run that the inspect speaks of.
    is_inspected: bool,
    /// The event of its start was among those of the round.
    has_start_event: bool,
    end: Option<End>,
}

/// One round: the events that are settled now, and what was said after them.
struct Round {
    events: Vec<RuntimeEvent>,
    inspect: Option<Box<Container>>,
    reading: Option<ProcessReading>,
    /// It is deleted: everything is told now.
    is_final: bool,
    origin: Origin,
    reason: &'static str,
}

impl Reconciler {
    pub(super) fn event(&mut self, source: &SourceId, event: RuntimeEvent) {
        let Some(known) = self.sources.get(source) else {
            return;
        };
        let list = known.list.serial();
        let id = event.id.clone();
        let is_unknown = !self.containers.contains_key(&id);
        if known.is_overlay()
            || self.deleted.contains_key(&id)
            || (is_unknown && event.what == EventKind::Deleted)
        {
            self.counters.ignored_events += 1;
            if is_unknown && event.what == EventKind::Deleted {
                self.remember_deleted(&id);
            }
            return;
        }
        let tracked = self
            .containers
            .entry(id.clone())
            .or_insert_with(|| Tracked::new(source.clone(), event.kind));
        if tracked.owner != *source || tracked.is_double(&event) {
            self.counters.ignored_events += 1;
            return;
        }
        tracked.touched_list = list;
        if let Some(facts) = &event.facts {
            tracked.event_facts = Some(facts.clone());
        }
        let is_deletion = event.what == EventKind::Deleted;
        if is_deletion {
            tracked.deleted_at_ns = Some(event.at_ns);
        } else {
            if tracked.pending.len() == PENDING_MAX {
                tracked.pending.remove(0);
                tracked.inspecting = tracked.inspecting.map(|covered| covered.saturating_sub(1));
            }
            tracked.pending.push(event);
        }
        if tracked.inspecting.is_some() {
            tracked.dirty = true;
        } else if is_deletion {
            self.conclude(&id, Origin::Event, "");
        } else {
            self.ask(&id);
        }
    }

    /// Asks for an inspect, unless one is under way.
    pub(super) fn ask(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        if !self
            .sources
            .get(&tracked.owner)
            .is_some_and(|source| source.up)
        {
            tracked.stale = true;
        } else if tracked.inspecting.is_some() {
            tracked.dirty = true;
        } else {
            tracked.inspecting = Some(tracked.pending.len());
            tracked.dirty = false;
            self.effects.push(Effect::Inspect {
                source: tracked.owner.clone(),
                id: id.clone(),
                kind: tracked.kind,
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
            .and_then(|tracked| tracked.inspecting.take());
        let Some(covered) = covered else {
            self.release_outcome(outcome);
            return;
        };
        match outcome {
            InspectOutcome::Found { container, process } => {
                self.found(id, covered, container, process);
            }
            InspectOutcome::Gone => self.gone(id),
            InspectOutcome::Failed => self.inspect_failed(id),
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
        tracked.attempts = 0;
        tracked.stale = false;
        tracked.is_gone = false;
        tracked.kind = container.kind;
        if let Some(asked) = tracked.asked_fingerprint.take() {
            tracked.fingerprint = Some(asked);
        }
        let is_final = tracked.deleted_at_ns.is_some();
        let covered = if is_final {
            tracked.pending.len()
        } else {
            covered
        };
        let events: Vec<_> = tracked
            .pending
            .drain(..covered.min(tracked.pending.len()))
            .collect();
        let origin = if events.is_empty() && !is_final {
            Origin::Resync
        } else {
            Origin::Event
        };
        let is_dirty = std::mem::take(&mut tracked.dirty) && !is_final;
        self.tell_round(
            tracked,
            id,
            Round {
                events,
                inspect: Some(container),
                reading,
                is_final,
                origin,
                reason: "",
            },
        );
        if is_dirty {
            self.ask(id);
        }
    }

    fn gone(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        let awaits_event = self
            .sources
            .get(&tracked.owner)
            .is_some_and(|source| source.streaming && source.up);
        if tracked.deleted_at_ns.is_some() {
            self.conclude(id, Origin::Event, "");
        } else if tracked.told.is_none() && tracked.pending.is_empty() {
            self.containers.remove(id);
        } else if awaits_event {
            tracked.is_gone = true;
            self.waiting.insert(id.clone(), self.now_ms + GONE_GRACE_MS);
        } else {
            self.conclude(id, Origin::Resync, "");
        }
    }

    fn inspect_failed(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        tracked.stale = true;
        tracked.attempts += 1;
        if tracked.deleted_at_ns.is_some() {
            self.conclude(id, Origin::Event, "");
            return;
        }
        let wait_ms = (RETRY_MS.0 << tracked.attempts.min(10)).min(RETRY_MS.1);
        self.waiting.insert(id.clone(), self.now_ms + wait_ms);
    }

    /// A wait is over: an inspect is repeated, or a deletion is told.
    pub(super) fn wake(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        if tracked.is_gone && tracked.inspecting.is_none() {
            let origin = if tracked.pending.is_empty() {
                Origin::Resync
            } else {
                Origin::Event
            };
            self.conclude(id, origin, "");
        } else if tracked.stale {
            self.ask(id);
        }
    }

    /// Tells the rest of a container's story and forgets it.
    pub(super) fn conclude(&mut self, id: &ContainerId, origin: Origin, reason: &'static str) {
        let Some(mut tracked) = self.containers.remove(id) else {
            return;
        };
        self.waiting.remove(id);
        let events = std::mem::take(&mut tracked.pending);
        self.tell_round(
            tracked,
            id,
            Round {
                events,
                inspect: None,
                reading: None,
                is_final: true,
                origin,
                reason,
            },
        );
    }

    fn tell_round(&mut self, mut tracked: Tracked, id: &ContainerId, round: Round) {
        let base = self.base_of(&tracked, id, &round);
        let is_new = !tracked.is_told();
        let created_here = round
            .events
            .iter()
            .any(|event| event.what == EventKind::Created);
        let runs = line_of_runs(&mut tracked, &round);
        let mut reading = round.reading.clone();

        if !tracked.is_told() {
            let is_snapshot = self.is_opening() && !round.is_final && !created_here;
            if is_snapshot {
                self.tell_snapshot(&mut tracked, &base, &runs, &mut reading);
            } else {
                let at_ns = base.created_at_ns;
                let view = before_first_run(base.clone());
                self.tell(&mut tracked, Op::Create, view, &round, at_ns);
            }
        }
        for story in &runs {
            self.tell_run(&mut tracked, &base, story, &round, &mut reading);
        }
        if round.is_final {
            self.tell_end(tracked, id, &base, &round);
            return;
        }
        self.pin_open_run(&mut tracked, reading);
        if round.inspect.is_some() {
            let is_live_claim_of_a_closed_run = base.state.is_live() && tracked.run.is_none();
            let view = if is_live_claim_of_a_closed_run {
                tracked.stale = true;
                self.waiting.insert(id.clone(), self.now_ms + RETRY_MS.0);
                tracked.told.as_deref().cloned().unwrap_or(base)
            } else {
                base
            };
            self.tell_rest(&mut tracked, view, &round);
        }
        tracked.record_due = false;
        self.containers.insert(id.clone(), tracked);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
        self.publish_record(id);
        if is_new {
            self.ask_overlay(id);
        }
    }

    /// The best that is known of the container as a whole, with cri-dockerd's names.
    fn base_of(&self, tracked: &Tracked, id: &ContainerId, round: &Round) -> Container {
        let known = round
            .inspect
            .as_deref()
            .or(tracked.told.as_deref())
            .or(tracked.event_facts.as_deref());
        let container = known.cloned().unwrap_or_else(|| {
            let runtime = self
                .sources
                .get(&tracked.owner)
                .map(|source| &source.runtime);
            let first_ns = round
                .events
                .iter()
                .map(|event| event.at_ns)
                .find(|at| *at != 0);
            Container {
                id: id.clone(),
                name: String::new(),
                kind: tracked.kind,
                runtime: runtime.map_or(RuntimeType::Docker, |runtime| runtime.runtime),
                runtime_name: runtime.map_or_else(|| "".into(), |runtime| runtime.name.clone()),
                runtime_version: runtime
                    .map_or_else(|| "".into(), |runtime| runtime.version.clone()),
                state: State::Created,
                image_id: String::new(),
                image_name: String::new(),
                image_digest: String::new(),
                pid: None,
                created_at_ns: first_ns.unwrap_or(self.now_ms * 1_000_000),
                started_at_ns: None,
                finished_at_ns: None,
                exit_code: None,
                oom_killed: None,
                restart_count: None,
                pod: None,
                pid_mode: String::new(),
                privileged: None,
                reason: String::new(),
                labels: std::collections::BTreeMap::new(),
            }
        });
        tracked.with_overlay(container)
    }

    fn tell_snapshot(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        runs: &[RunStory],
        reading: &mut Option<ProcessReading>,
    ) {
        let Some(newest) = runs.last() else {
            self.tell_as_snapshot(tracked, base.clone());
            return;
        };
        tracked.newest_run_ns = newest.started_at_ns;
        if newest.end.is_none() && newest.is_inspected {
            self.open_run(tracked, base, newest.started_at_ns, reading);
        }
        self.tell_as_snapshot(tracked, base.clone());
    }

    fn tell_as_snapshot(&mut self, tracked: &mut Tracked, view: Container) {
        tracked.told_process = tracked.process_facts();
        tracked.told = Some(Box::new(view));
        let delta = self.bare_delta(Op::Snapshot);
        let source = self.sources.get(&tracked.owner);
        let source = source.map(|source| Arc::clone(&source.runtime));
        self.publish_delta(Delta {
            source,
            fields: Some(tracked.fields()),
            ..delta
        });
    }

    fn tell_run(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        story: &RunStory,
        round: &Round,
        reading: &mut Option<ProcessReading>,
    ) {
        if !story.is_told {
            if tracked.run.is_some() {
                let end = End {
                    at_ns: story.started_at_ns,
                    exit_code: None,
                };
                self.tell_stop(tracked, base, &end, false, round);
            }
            let mut for_this_run = if story.is_inspected {
                reading.take()
            } else {
                None
            };
            self.open_run(tracked, base, story.started_at_ns, &mut for_this_run);
            self.pin_open_run(tracked, for_this_run);
            let view = Container {
                state: State::Running,
                started_at_ns: Some(story.started_at_ns),
                finished_at_ns: None,
                exit_code: None,
                oom_killed: base.oom_killed.map(|_| false),
                reason: String::new(),
                ..base.clone()
            };
            tracked.awaits_start = story.is_inspected && !story.has_start_event;
            tracked.awaits_die = false;
            self.tell(tracked, Op::Start, view, round, story.started_at_ns);
        }
        if let Some(end) = &story.end
            && tracked.run.is_some()
        {
            self.tell_stop(tracked, base, end, story.is_inspected, round);
        }
    }

    fn tell_stop(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        end: &End,
        is_inspected: bool,
        round: &Round,
    ) {
        let run = tracked.run.take();
        let inspected = is_inspected && round.inspect.is_some();
        let died = round
            .events
            .iter()
            .any(|event| event.what == EventKind::Died && event.at_ns >= tracked.newest_run_ns);
        tracked.awaits_die = inspected && !died;
        let view = if inspected && !base.state.is_live() {
            Container {
                exit_code: end.exit_code,
                finished_at_ns: Some(end.at_ns),
                ..base.clone()
            }
        } else {
            Container {
                state: State::Exited,
                started_at_ns: run.as_ref().map(|run| run.started_at_ns),
                finished_at_ns: Some(end.at_ns),
                exit_code: end.exit_code,
                oom_killed: base.oom_killed.map(|_| false),
                reason: String::new(),
                ..base.clone()
            }
        };
        let id = base.id.clone();
        self.tell(tracked, Op::Stop, view, round, end.at_ns);
        let ended_ms = if end.at_ns == 0 {
            self.now_ms
        } else {
            end.at_ns / 1_000_000
        };
        self.leave_namespace(&id, run.as_ref().and_then(|run| run.pns_inode), ended_ms);
    }

    fn tell_end(
        &mut self,
        mut tracked: Tracked,
        id: &ContainerId,
        base: &Container,
        round: &Round,
    ) {
        let deleted_ns = tracked.deleted_at_ns.unwrap_or(self.now_ms * 1_000_000);
        if tracked.run.is_some() {
            let last_ns = if round.reason.is_empty() || tracked.last_alive_ms == 0 {
                deleted_ns
            } else {
                tracked.last_alive_ms * 1_000_000
            };
            let end = End {
                at_ns: last_ns,
                exit_code: None,
            };
            self.tell_stop(&mut tracked, base, &end, false, round);
        }
        if let Some(hint) = tracked.hint.take() {
            self.leave_namespace(id, hint.pns_inode, self.now_ms);
        }
        if let Some(view) = tracked.told.as_deref().cloned() {
            self.tell(&mut tracked, Op::Delete, view, round, deleted_ns);
            self.effects
                .push(Effect::Publish(Message::RecordTombstone { id: id.clone() }));
        }
        if let Some(reading) = &round.reading {
            self.release_reading(reading);
        }
        self.remember_deleted(id);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
    }

    fn tell_rest(&mut self, tracked: &mut Tracked, view: Container, round: &Round) {
        let is_same = tracked.told.as_deref() == Some(&view)
            && tracked.told_process == tracked.process_facts();
        if is_same
            || (tracked.is_told() && tracked.fields() == Fields::of(&view, tracked.process_facts()))
        {
            return;
        }
        let renamed = tracked
            .told
            .as_ref()
            .is_some_and(|told| told.name != view.name || told.image_name != view.image_name);
        let at_ns = round.events.last().map_or(0, |event| event.at_ns);
        self.tell(tracked, Op::Update, view, round, at_ns);
        if renamed {
            let inode = tracked.run.as_ref().and_then(|run| run.pns_inode);
            if let (Some(inode), Some(told)) = (inode, tracked.told.as_deref()) {
                self.rename_member(inode, told);
            }
        }
    }

    /// Publishes one delta and keeps the view as what was told last.
    fn tell(&mut self, tracked: &mut Tracked, op: Op, view: Container, round: &Round, at_ns: u64) {
        let after = Fields::of(&view, tracked.process_facts());
        let changed = if tracked.is_told() {
            after.changes_since(&tracked.fields())
        } else {
            Vec::new()
        };
        let ts_ms = if at_ns == 0 {
            self.now_ms
        } else {
            at_ns / 1_000_000
        };
        let event_ts_ns = match (round.origin, op) {
            (Origin::Resync, _) => 0,
            (Origin::Event, Op::Create) => event_time(round, EventKind::Created).unwrap_or(at_ns),
            (Origin::Event, Op::Start) => event_time(round, EventKind::Started).unwrap_or(at_ns),
            (Origin::Event, Op::Stop) => event_time(round, EventKind::Died).unwrap_or(at_ns),
            (
                Origin::Event,
                Op::Delete | Op::Update | Op::Epoch | Op::Snapshot | Op::SnapshotEnd,
            ) => at_ns,
        };
        let source = self.sources.get(&tracked.owner);
        let is_missed = round.origin == Origin::Resync
            && self.opening == Opening::Done
            && source.is_some_and(|source| source.streaming);
        if is_missed {
            self.counters.missed += 1;
        }
        let source = source.map(|source| Arc::clone(&source.runtime));
        let reason = if round.reason.is_empty() {
            match op {
                Op::Stop => stop_reason(&view),
                Op::Create | Op::Start | Op::Delete | Op::Update => "",
                Op::Epoch | Op::Snapshot | Op::SnapshotEnd => "",
            }
            .into()
        } else {
            round.reason.into()
        };
        let delta = self.bare_delta(op);
        self.publish_delta(Delta {
            ts_ms,
            source,
            origin: round.origin,
            event_ts_ns,
            fields: Some(after),
            changed,
            reason,
            ..delta
        });
        tracked.told_process = tracked.process_facts();
        tracked.told = Some(Box::new(view));
    }

    /// Begins a run: with the process that was read, else with the one that a hint told before the start.
    fn open_run(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        started_at_ns: u64,
        reading: &mut Option<ProcessReading>,
    ) {
        let hint = tracked.hint.take();
        let run = match (reading.take(), hint) {
            (Some(ProcessReading::Alive(process)), hint) => {
                let run = Run::of(&process, started_at_ns, &self.identity.boot_id);
                if let Some(hint) = hint
                    && hint.pns_inode != run.pns_inode
                {
                    self.leave_namespace(&base.id, hint.pns_inode, self.now_ms);
                }
                self.join_namespace(base, &process);
                run
            }
            (Some(ProcessReading::Dead | ProcessReading::Denied) | None, Some(hint)) => Run {
                started_at_ns,
                ..hint
            },
            (Some(ProcessReading::Denied), None) => Run {
                pid: base.pid,
                ..self.unseen_run(started_at_ns)
            },
            (Some(ProcessReading::Dead) | None, None) => self.unseen_run(started_at_ns),
        };
        tracked.newest_run_ns = started_at_ns;
        tracked.newest_process = run.pid.map_or((0, 0), |pid| (pid, run.start_ticks));
        tracked.run = Some(run);
    }

    fn unseen_run(&self, started_at_ns: u64) -> Run {
        Run {
            started_at_ns,
            pid: None,
            start_ticks: 0,
            pns_inode: None,
            pns_id: None,
            boot_id: Arc::clone(&self.identity.boot_id),
        }
    }

    /// Gives a reading that no new run took to the run that is open, or lets its fd go.
    fn pin_open_run(&mut self, tracked: &mut Tracked, reading: Option<ProcessReading>) {
        let Some(ProcessReading::Alive(process)) = reading else {
            return;
        };
        let Some(run) = &mut tracked.run else {
            self.release_fd(process.fd);
            return;
        };
        let is_unseen = run.start_ticks == 0;
        if is_unseen {
            *run = Run::of(&process, run.started_at_ns, &self.identity.boot_id);
            tracked.newest_process = (process.pid, process.start_ticks);
        }
        if is_unseen || run.is_process(&process) {
            let told = tracked.told.as_deref().cloned();
            match told {
                Some(told) => self.join_namespace(&told, &process),
                None => self.release_fd(process.fd),
            }
        } else {
            self.release_fd(process.fd);
        }
    }

    /// Takes what was read of a process: of an open run, or ahead of a start.
    pub(super) fn process_read(&mut self, id: &ContainerId, pid: u32, reading: ProcessReading) {
        let Some(tracked) = self.containers.get_mut(id) else {
            self.release_reading(&reading);
            return;
        };
        let open = tracked
            .run
            .as_ref()
            .filter(|run| run.pid == Some(pid))
            .cloned();
        match (open, reading) {
            (Some(run), ProcessReading::Alive(process)) if run.is_process(&process) => {
                if let Some(told) = tracked.told.as_deref().cloned() {
                    self.join_namespace(&told, &process);
                }
            }
            (Some(run), ProcessReading::Alive(process)) => {
                self.release_fd(process.fd);
                self.process_gone(id, &run);
            }
            (Some(run), ProcessReading::Dead) => self.process_gone(id, &run),
            (None, ProcessReading::Alive(process)) => self.hinted(id, *process),
            (Some(_) | None, ProcessReading::Denied) | (None, ProcessReading::Dead) => {}
        }
    }

    fn process_gone(&mut self, id: &ContainerId, run: &Run) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        tracked.stale = true;
        let is_up = self
            .sources
            .get(&tracked.owner)
            .is_some_and(|source| source.up);
        let last_alive_ms = if tracked.last_alive_ms == 0 {
            self.now_ms
        } else {
            tracked.last_alive_ms
        };
        if is_up {
            self.ask(id);
        } else {
            self.leave_namespace(id, run.pns_inode, last_alive_ms);
        }
    }

    /// A process of a container that is about to start: its namespace is mapped ahead of its `start`.
    fn hinted(&mut self, id: &ContainerId, process: Process) {
        let Some(tracked) = self.containers.get_mut(id) else {
            self.release_fd(process.fd);
            return;
        };
        let known = tracked
            .told
            .as_deref()
            .or(tracked.event_facts.as_deref())
            .cloned();
        let is_open = tracked.run.is_some();
        let (Some(known), false) = (known, is_open) else {
            self.release_fd(process.fd);
            return;
        };
        tracked.hint = Some(Run::of(&process, 0, &self.identity.boot_id));
        self.join_namespace(&known, &process);
    }

    fn overlay_inspected(&mut self, source: &SourceId, id: &ContainerId, outcome: InspectOutcome) {
        let Some(mut tracked) = self.containers.remove(id) else {
            self.release_outcome(outcome);
            return;
        };
        if let InspectOutcome::Found { container, process } = outcome {
            if let Some(reading) = process {
                self.release_reading(&reading);
            }
            tracked.overlay = Some(Overlay {
                source: source.clone(),
                fingerprint: tracked.asked_overlay.take(),
                name: container.name,
                kind: container.kind,
                pod: container.pod,
                restart_count: container.restart_count,
            });
            if let Some(told) = tracked.told.as_deref().cloned() {
                let view = tracked.with_overlay(told);
                let round = Round {
                    events: Vec::new(),
                    inspect: None,
                    reading: None,
                    is_final: false,
                    origin: Origin::Resync,
                    reason: "",
                };
                self.tell_rest(&mut tracked, view, &round);
            }
        }
        self.containers.insert(id.clone(), tracked);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
        self.publish_record(id);
    }

    /// Ends every run of an earlier boot.
    pub(super) fn end_earlier_boot(&mut self, last_alive_ms: u64) {
        self.end_earlier_namespaces(last_alive_ms);
        let boot_id = Arc::clone(&self.identity.boot_id);
        let ended: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, tracked)| {
                tracked
                    .run
                    .as_ref()
                    .is_some_and(|run| run.boot_id != boot_id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let Some(mut tracked) = self.containers.remove(&id) else {
                continue;
            };
            tracked.fingerprint = None;
            if let Some(base) = tracked.told.as_deref().cloned() {
                let round = Round {
                    events: Vec::new(),
                    inspect: None,
                    reading: None,
                    is_final: false,
                    origin: Origin::Resync,
                    reason: "reboot",
                };
                let end = End {
                    at_ns: last_alive_ms * 1_000_000,
                    exit_code: None,
                };
                self.tell_stop(&mut tracked, &base, &end, false, &round);
            }
            self.containers.insert(id.clone(), tracked);
            self.effects
                .push(Effect::SaveRow(RowKey::Container(id.clone())));
            self.publish_record(&id);
        }
    }

    fn release_outcome(&mut self, outcome: InspectOutcome) {
        if let InspectOutcome::Found {
            process: Some(reading),
            ..
        } = outcome
        {
            self.release_reading(&reading);
        }
    }

    fn release_reading(&mut self, reading: &ProcessReading) {
        if let ProcessReading::Alive(process) = reading {
            self.release_fd(process.fd);
        }
    }

    /// Resets what was awaited of a runtime that went away.
    pub(super) fn lose_requests(&mut self, source: &SourceId) {
        let mut to_conclude = Vec::new();
        for (id, tracked) in &mut self.containers {
            if tracked.owner == *source {
                tracked.forget_awaited_events();
                if tracked.inspecting.take().is_some() || !tracked.pending.is_empty() {
                    tracked.stale = true;
                }
                if tracked.deleted_at_ns.is_some() {
                    to_conclude.push(id.clone());
                }
            }
        }
        for id in to_conclude {
            self.conclude(&id, Origin::Event, "");
        }
    }
}

/// Puts the runs of a round in order. The first is the open run that was told, if there is one.
fn line_of_runs(tracked: &mut Tracked, round: &Round) -> Vec<RunStory> {
    let mut runs = Vec::new();
    if let Some(run) = &tracked.run {
        runs.push(RunStory {
            started_at_ns: run.started_at_ns,
            is_told: true,
            is_inspected: false,
            has_start_event: false,
            end: None,
        });
    }
    let mut events: Vec<&RuntimeEvent> = round.events.iter().collect();
    if events.iter().all(|event| event.at_ns != 0) {
        events.sort_by_key(|event| event.at_ns);
    }
    let has_one_run = round
        .inspect
        .as_deref()
        .or(tracked.told.as_deref())
        .or(tracked.event_facts.as_deref())
        .is_some_and(|container| {
            container.runtime == RuntimeType::Cri && tracked.overlay.is_none()
        });
    let never_ran =
        round.inspect.as_deref().is_some_and(|container| {
            container.started_at_ns.is_none() && !container.state.is_live()
        }) && !round.is_final;
    for event in events {
        match event.what {
            EventKind::Started => {
                let is_known = has_one_run && (!runs.is_empty() || tracked.newest_run_ns != 0);
                if std::mem::take(&mut tracked.awaits_start) || is_known {
                    continue;
                }
                runs.push(RunStory {
                    started_at_ns: event.at_ns,
                    is_told: false,
                    is_inspected: false,
                    has_start_event: true,
                    end: None,
                });
            }
            EventKind::Died => take_end(tracked, &mut runs, event, has_one_run, never_ran),
            EventKind::Created
            | EventKind::Initialized
            | EventKind::Paused
            | EventKind::Unpaused
            | EventKind::Renamed
            | EventKind::Deleted => {}
        }
    }
    if let Some(container) = round.inspect.as_deref() {
        merge_inspect(tracked, &mut runs, container, round.reading.as_ref());
    }
    if has_one_run {
        runs.truncate(1);
    }
    runs
}

fn take_end(
    tracked: &mut Tracked,
    runs: &mut Vec<RunStory>,
    event: &RuntimeEvent,
    has_one_run: bool,
    never_ran: bool,
) {
    let end = End {
        at_ns: event.at_ns,
        exit_code: event.exit_code,
    };
    match runs.last_mut() {
        Some(run) if run.end.is_none() => {
            if event.at_ns == 0 || event.at_ns >= run.started_at_ns || has_one_run {
                run.end = Some(end);
            }
        }
        Some(_) => {}
        None => {
            let is_known =
                std::mem::take(&mut tracked.awaits_die) || never_ran || tracked.newest_run_ns != 0;
            if !is_known {
                runs.push(RunStory {
                    started_at_ns: event.at_ns,
                    is_told: false,
                    is_inspected: false,
                    has_start_event: false,
                    end: Some(end),
                });
            }
        }
    }
}

/// Finds the run that an inspect speaks of, or adds it, and takes its start and end from there.
fn merge_inspect(
    tracked: &Tracked,
    runs: &mut Vec<RunStory>,
    container: &Container,
    reading: Option<&ProcessReading>,
) {
    let started_at_ns = match (container.started_at_ns, container.state.is_live()) {
        (Some(started_at_ns), _) => started_at_ns,
        (None, true) => container.created_at_ns.max(1),
        (None, false) => return,
    };
    let is_other_process = match reading {
        Some(ProcessReading::Alive(process)) => {
            tracked.newest_process != (0, 0)
                && tracked.newest_process != (process.pid, process.start_ticks)
        }
        Some(ProcessReading::Dead | ProcessReading::Denied) | None => false,
    };
    let is_new = started_at_ns > tracked.newest_run_ns
        || (started_at_ns != tracked.newest_run_ns && is_other_process);
    let index = if is_new {
        let found = runs
            .iter()
            .position(|run| !run.is_told && run.started_at_ns >= started_at_ns);
        Some(found.unwrap_or_else(|| {
            runs.push(RunStory {
                started_at_ns,
                is_told: false,
                is_inspected: true,
                has_start_event: false,
                end: None,
            });
            runs.len() - 1
        }))
    } else {
        runs.iter().position(|run| run.is_told)
    };
    let Some(run) = index.and_then(|index| runs.get_mut(index)) else {
        return;
    };
    run.is_inspected = true;
    if !run.is_told {
        run.started_at_ns = started_at_ns;
    }
    match container.state {
        State::Running | State::Paused => run.end = None,
        State::Exited | State::Dead | State::Restarting | State::Removing => {
            let told = run.end.take();
            let at_ns = container
                .finished_at_ns
                .or(told.as_ref().map(|end| end.at_ns))
                .unwrap_or(0);
            run.end = Some(End {
                at_ns,
                exit_code: container.exit_code.or(told.and_then(|end| end.exit_code)),
            });
        }
        State::Created | State::Unknown => {}
    }
}

/// The container as it was between its creation and its first run.
fn before_first_run(container: Container) -> Container {
    Container {
        state: State::Created,
        pid: None,
        started_at_ns: None,
        finished_at_ns: None,
        exit_code: None,
        oom_killed: container.oom_killed.map(|_| false),
        reason: String::new(),
        ..container
    }
}

fn event_time(round: &Round, what: EventKind) -> Option<u64> {
    let event = round.events.iter().rev().find(|event| event.what == what)?;
    Some(event.at_ns)
}

fn stop_reason(view: &Container) -> &str {
    if view.oom_killed == Some(true) {
        return "oom";
    }
    if !view.reason.is_empty() {
        return &view.reason;
    }
    match view.exit_code {
        Some(129..=165) => "signal",
        Some(_) | None => "",
    }
}
