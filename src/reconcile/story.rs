//! Telling: from the line of a round's runs to deltas, mappings and the record.
//!
//! `create` (or, while an epoch opens, `snapshot`) if the container was never told, a `start` and a `stop` for
//! each run as far as they are still owed, then either an `update` where the container is otherwise not as it
//! was told last, or `delete`.

use std::sync::Arc;

use super::container::{Run, Tracked};
use super::runs::{End, Line, Newest, RunStory, Said, line_of};
use super::views::{RunView, barely_known, keep_what_events_told, stop_reason};
use super::{Effect, Opening, ProcessReading, Reconciler, RowKey};
use crate::model::message::{Delta, Message, Op, Origin};
use crate::model::record::Fields;
use crate::model::{
    Container, ContainerId, ContainerKind, EventKind, RuntimeEvent, RuntimeType, State,
};

/// How many inspects in a row must contradict the runs that were told before they are believed.
const INSISTED: u32 = 3;

/// One round: the events that are settled now, and what was said after them.
#[derive(Debug)]
pub(super) struct Round {
    /// The events that the inspect covers.
    pub(super) events: Vec<RuntimeEvent>,
    pub(super) inspect: Option<Box<Container>>,
    pub(super) reading: Option<ProcessReading>,
    /// Events that came after the inspect was asked for; of a final round only.
    pub(super) later: Vec<RuntimeEvent>,
    /// Whether a run that only the inspect shows is told at once.
    pub(super) tells_ahead: bool,
    /// It is deleted: everything is told now.
    pub(super) is_final: bool,
    pub(super) origin: Origin,
    pub(super) reason: &'static str,
}

impl Round {
    /// A round that only compares what is known anyway.
    pub(super) fn of_resync(reason: &'static str) -> Self {
        Self {
            events: Vec::new(),
            inspect: None,
            reading: None,
            later: Vec::new(),
            tells_ahead: true,
            is_final: false,
            origin: Origin::Resync,
            reason,
        }
    }

    fn events(&self) -> impl Iterator<Item = &RuntimeEvent> {
        self.events.iter().chain(&self.later)
    }

    fn event_ns(&self, what: EventKind) -> Option<u64> {
        self.events()
            .find(|event| event.what == what)
            .map(|event| event.at_ns)
    }

    /// What it says of the runs. Only a process that a live container's inspect names counts.
    fn said(&self, is_insisted: bool, now_ms: u64) -> Said<'_> {
        let inspect = self.inspect.as_deref();
        let is_live = inspect.is_some_and(|container| container.state.is_live());
        let process = match &self.reading {
            Some(ProcessReading::Alive(process)) if is_live => Some(process),
            Some(ProcessReading::Alive(_) | ProcessReading::Dead | ProcessReading::Denied)
            | None => None,
        };
        Said {
            events: &self.events,
            inspect,
            process: process.map(|process| (process.pid, process.start_ticks)),
            process_started_at_ns: process.map(|process| process.started_at_ms * 1_000_000),
            later: &self.later,
            tells_ahead: self.tells_ahead,
            is_insisted,
            now_ns: end_of_ms_ns(now_ms),
        }
    }
}

/// What goes into one delta besides the container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling {
    pub(super) op: Op,
    /// When, in unix nanoseconds; 0 for now.
    pub(super) at_ns: u64,
    /// The time of the event that told it.
    pub(super) event_ns: Option<u64>,
    pub(super) origin: Origin,
    pub(super) reason: &'static str,
    /// Whether it counts as missed by the stream where a resync found it.
    pub(super) may_be_missed: bool,
}

impl Reconciler {
    pub(super) fn tell_round(&mut self, mut tracked: Tracked, id: &ContainerId, mut round: Round) {
        let source = self.sources.get(&tracked.owner);
        let runs_once = source.is_some_and(super::Source::runs_once);
        let is_new = !tracked.is_told();
        let is_snapshot = is_new
            && self.opening != Opening::Done
            && !round.is_final
            && round.event_ns(EventKind::Created).is_none();
        // What ran before a snapshot is not told: there is nothing to wait for.
        round.tells_ahead |= is_snapshot;
        let is_insisted = tracked.life.attempts >= INSISTED;
        let said = round.said(is_insisted, self.now_ms);
        let line = line_of(&tracked.known_runs(runs_once), &said);
        let mut base = self.base_of(&tracked, id, &mut round);
        let mut reading = round.reading.take();
        let hint_is_ahead = line.is_ahead && tracked.is_hinted(reading.as_ref());
        let seq = self.seq;
        if is_snapshot {
            self.tell_snapshot(&mut tracked, &mut base, &line, &mut reading);
        } else {
            if is_new {
                let at_ns = base.created_at_ns;
                let telling = Telling {
                    event_ns: round.event_ns(EventKind::Created),
                    ..round_telling(&round, Op::Create, at_ns)
                };
                let view = RunView::before_first_run(&base);
                self.tell(&mut tracked, &mut base, view, telling);
            }
            for (index, story) in line.runs.iter().enumerate() {
                // The process that was read is of the last run, or of one that is still to be told.
                let is_last = index + 1 == line.runs.len() && !hint_is_ahead;
                let rest = (is_last, &mut reading);
                self.tell_run(&mut tracked, &mut base, story, &round, rest);
            }
        }
        if round.is_final {
            self.tell_end(tracked, id, base, &round, reading);
            return;
        }
        self.place_reading(&mut tracked, &base, &line, reading);
        let has_told = self.seq != seq;
        if self.agrees(&mut tracked, id, &base, &line) {
            self.tell_rest(&mut tracked, id, base, &round);
        } else if has_told {
            tracked.keep_facts(base);
        }
        let is_record_due = std::mem::take(&mut tracked.life.is_record_due) || self.seq != seq;
        self.containers.insert(id.clone(), tracked);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
        if is_record_due {
            self.publish_record(id);
        }
        if is_new {
            self.ask_overlay(id);
        }
    }

    /// The best that is known of the container as a whole, with cri-dockerd's names.
    fn base_of(&self, tracked: &Tracked, id: &ContainerId, round: &mut Round) -> Arc<Container> {
        let known = match (round.inspect.take(), &tracked.told) {
            (Some(inspect), _) => Some(Arc::from(inspect)),
            (None, Some(told)) => return Arc::clone(&told.container),
            (None, None) => tracked.life.event_facts.clone(),
        };
        let mut container = known.unwrap_or_else(|| {
            let mut times = round.events().map(|event| event.at_ns);
            let first_ns = times.find(|at_ns| *at_ns != 0);
            let created_at_ns = first_ns.unwrap_or(self.now_ms * 1_000_000);
            let source = self.sources.get(&tracked.owner);
            let runtime = source.map(|source| &*source.runtime);
            Arc::new(barely_known(id, tracked.kind, runtime, created_at_ns))
        });
        if let Some(overlay) = &tracked.overlay {
            overlay.lay_over(Arc::make_mut(&mut container));
        }
        container
    }

    fn tell_snapshot(
        &mut self,
        tracked: &mut Tracked,
        base: &mut Arc<Container>,
        line: &Line,
        reading: &mut Option<ProcessReading>,
    ) {
        if let Some(newest) = line.runs.last() {
            if newest.end.is_none() {
                let reading = if newest.is_inspected {
                    reading.take()
                } else {
                    None
                };
                self.open_run(tracked, base, newest, true, reading);
            }
            tracked.newest = Some(newest_of(newest, tracked.run.as_ref()));
        }
        let end = line.runs.last().and_then(|newest| newest.end.as_ref());
        let view = match (&tracked.run, end) {
            (Some(run), _) if !base.state.is_live() => {
                RunView::running(base, run.started_at_ns, base.finished_at_ns)
            }
            (None, Some(end)) if base.state.is_live() => {
                RunView::exited(base, base.started_at_ns, end)
            }
            (Some(_) | None, _) => RunView::of(base),
        };
        let fields = tracked.show(base, view);
        tracked.keep_fields(fields);
        self.publish_snapshot(tracked);
    }

    /// Publishes a container that is told, anew.
    pub(super) fn publish_snapshot(&mut self, tracked: &Tracked) {
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
        base: &mut Arc<Container>,
        story: &RunStory,
        round: &Round,
        (is_last, reading): (bool, &mut Option<ProcessReading>),
    ) {
        if story.is_told {
            if let Some(newest) = &mut tracked.newest {
                newest.started_at_ns = story.started_at_ns;
                newest.is_exact = story.is_exact;
                newest.sketched_at_ns = story.sketched_at_ns;
                newest.awaits_start = story.awaits_start;
                newest.awaits_end = story.awaits_end;
            }
            if let Some(run) = &mut tracked.run {
                run.started_at_ns = story.started_at_ns;
            }
        } else {
            let is_live = story.is_inspected && base.state.is_live();
            let reading = if is_live { reading.take() } else { None };
            self.open_run(tracked, base, story, is_last, reading);
            tracked.newest = Some(newest_of(story, tracked.run.as_ref()));
            // The end of the run before it.
            let finished_at_ns = if is_live {
                base.finished_at_ns
            } else {
                tracked.container().and_then(|told| told.finished_at_ns)
            };
            let view = RunView::running(base, story.started_at_ns, finished_at_ns);
            let telling = Telling {
                event_ns: story.start_event_ns,
                ..round_telling(round, Op::Start, story.started_at_ns)
            };
            self.tell(tracked, base, view, telling);
        }
        if let Some(end) = &story.end
            && tracked.run.is_some()
        {
            self.tell_stop(tracked, base, end, story.is_inspected, round);
        }
    }

    pub(super) fn tell_stop(
        &mut self,
        tracked: &mut Tracked,
        base: &mut Arc<Container>,
        end: &End,
        is_inspected: bool,
        round: &Round,
    ) {
        let Some(run) = tracked.run.take() else {
            return;
        };
        let view = if is_inspected && !base.state.is_live() {
            let told = tracked.container();
            let started_at_ns = match (base.runtime, base.kind) {
                (RuntimeType::Containerd, _) => Some(run.started_at_ns),
                (_, ContainerKind::Sandbox) => told.and_then(|told| told.started_at_ns),
                (RuntimeType::Docker | RuntimeType::Cri, ContainerKind::Container) => None,
            };
            RunView::inspected(base, started_at_ns, end)
        } else {
            RunView::exited(base, Some(run.started_at_ns), end)
        };
        let telling = Telling {
            event_ns: end.event_ns,
            ..round_telling(round, Op::Stop, end.at_ns)
        };
        self.tell(tracked, base, view, telling);
        let ended_ms = match end.at_ns {
            0 => self.now_ms,
            at_ns => at_ns / 1_000_000,
        };
        self.leave_namespace(&base.id, &run, ended_ms);
    }

    fn tell_end(
        &mut self,
        mut tracked: Tracked,
        id: &ContainerId,
        mut base: Arc<Container>,
        round: &Round,
        reading: Option<ProcessReading>,
    ) {
        let deleted_at_ns = tracked.life.deleted_at_ns.filter(|at_ns| *at_ns != 0);
        let now_ns = self.now_ms * 1_000_000;
        if tracked.run.is_some() {
            let seen_ns = tracked.life.end_ms(self.now_ms) * 1_000_000;
            let end = End {
                at_ns: deleted_at_ns.unwrap_or(seen_ns),
                exit_code: None,
                event_ns: None,
            };
            self.tell_stop(&mut tracked, &mut base, &end, false, round);
        }
        self.drop_hint(&mut tracked, id, self.now_ms);
        if let Some(reading) = &reading {
            self.release_reading(reading);
        }
        if tracked.is_told() {
            let telling = Telling {
                event_ns: deleted_at_ns,
                ..round_telling(round, Op::Delete, deleted_at_ns.unwrap_or(now_ns))
            };
            self.publish_told(&tracked, tracked.fields(), telling.reason, telling);
            self.effects
                .push(Effect::Publish(Message::RecordTombstone { id: id.clone() }));
        }
        self.remember_deleted(id, tracked.life.deleted_at_ns);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
    }

    /// Whether the inspect agrees with the runs that were told. If it does not, it is asked for again.
    fn agrees(
        &mut self,
        tracked: &mut Tracked,
        id: &ContainerId,
        base: &Container,
        line: &Line,
    ) -> bool {
        let is_agreed = match base.state {
            State::Running | State::Paused => tracked.run.is_some(),
            State::Created | State::Restarting | State::Removing | State::Exited | State::Dead => {
                tracked.run.is_none()
            }
            State::Unknown => true,
        };
        let is_agreed = is_agreed && !line.is_ahead && !line.is_contradicted;
        if !is_agreed {
            self.hold(tracked, id, line.is_ahead);
        }
        is_agreed
    }

    /// Tells what else differs.
    fn tell_rest(
        &mut self,
        tracked: &mut Tracked,
        id: &ContainerId,
        mut base: Arc<Container>,
        round: &Round,
    ) {
        tracked.life.attempts = 0;
        self.check_hint(tracked, id);
        let last = round.events.last();
        let telling = Telling {
            event_ns: last.map(|event| event.at_ns),
            ..round_telling(round, Op::Update, last.map_or(0, |event| event.at_ns))
        };
        keep_what_events_told(&mut base, tracked.container());
        pause_in_turn(&mut base, tracked, &round.events);
        self.tell_update(tracked, base, telling);
    }

    /// Tells a container that is not as it was told last.
    pub(super) fn tell_update(
        &mut self,
        tracked: &mut Tracked,
        view: Arc<Container>,
        telling: Telling,
    ) {
        let process = tracked.process_facts();
        let Some(told) = &mut tracked.told else {
            return;
        };
        if told.container == view && told.process == process {
            return;
        }
        let fields = Fields::of(&view, process);
        let before = std::mem::replace(&mut told.container, view);
        if tracked.fields_told() == Some(&fields) {
            tracked.keep_fields(fields);
            return;
        }
        self.publish_told(tracked, fields.clone(), telling.reason, telling);
        tracked.keep_fields(fields);
        let is_renamed = tracked.container().is_some_and(|told| {
            told.name != before.name
                || told.image_name != before.image_name
                || told.kind != before.kind
                || told.runtime != before.runtime
                || told.pod != before.pod
        });
        if is_renamed {
            self.rename_member(tracked);
        }
    }

    /// Publishes one delta, and keeps what it says as what was told last.
    fn tell(
        &mut self,
        tracked: &mut Tracked,
        base: &mut Arc<Container>,
        view: RunView,
        telling: Telling,
    ) {
        let fields = tracked.show(base, view);
        let reason = match (telling.reason, telling.op) {
            ("", Op::Stop) => tracked.container().map_or("", stop_reason),
            (reason, _) => reason,
        };
        self.publish_told(tracked, fields.clone(), reason, telling);
        tracked.keep_fields(fields);
    }

    /// Publishes one delta of a container, compared with what was told of it before.
    fn publish_told(&mut self, tracked: &Tracked, fields: Fields, reason: &str, telling: Telling) {
        let before = tracked.fields_told();
        let changed = before.map_or_else(Vec::new, |before| fields.changes_since(before));
        let source = self.sources.get(&tracked.owner);
        let is_missed = telling.may_be_missed
            && telling.origin == Origin::Resync
            && self.opening == Opening::Done
            && source.is_some_and(|source| source.streaming);
        if is_missed {
            self.counters.missed += 1;
        }
        let source = source.map(|source| Arc::clone(&source.runtime));
        let delta = self.bare_delta(telling.op);
        self.publish_delta(Delta {
            ts_ms: match telling.at_ns {
                0 => self.now_ms,
                at_ns => at_ns / 1_000_000,
            },
            source,
            origin: telling.origin,
            event_ts_ns: match telling.origin {
                Origin::Event => telling.event_ns.unwrap_or(telling.at_ns),
                Origin::Resync => 0,
            },
            fields: Some(fields),
            changed,
            reason: reason.into(),
            ..delta
        });
    }

    /// Begins a run: with the process that was read, else with the one that was seen before the start.
    fn open_run(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        story: &RunStory,
        is_last: bool,
        reading: Option<ProcessReading>,
    ) {
        // A stop that nobody told is told by the line before the next start; this is for the type's sake.
        debug_assert!(tracked.run.is_none(), "a run is opened while one is open");
        let started_at_ns = story.started_at_ns;
        let end_ns = story.end.as_ref().map(|end| end.at_ns);
        let end_ns = end_ns.filter(|end_ns| *end_ns != 0);
        // A process is there before its start is told, and not after its end: that of a later run may have been seen already.
        let start_event_ns = story.start_event_ns.filter(|at_ns| *at_ns != 0);
        let latest_ns = start_event_ns.into_iter().chain(end_ns).min();
        let is_of_this_run = |hint: &Run| {
            is_last && latest_ns.is_none_or(|latest_ns| hint.started_at_ns <= latest_ns)
        };
        let run = match reading {
            Some(ProcessReading::Alive(process)) => {
                self.replace_hint(tracked, &base.id, &process);
                self.join_namespace(base, &process);
                Run::of(&process, started_at_ns, &self.identity.boot_id)
            }
            Some(ProcessReading::Dead | ProcessReading::Denied) | None => {
                let is_denied = matches!(reading, Some(ProcessReading::Denied));
                let pid = base.pid.filter(|_| is_denied);
                match tracked.hint.take_if(|hint| is_of_this_run(hint)) {
                    Some(hint) => Run {
                        started_at_ns,
                        ..hint
                    },
                    None => Run::unseen(started_at_ns, pid, &self.identity.boot_id),
                }
            }
        };
        tracked.life.last_alive_ms = 0;
        tracked.life.seen_dead_ms = 0;
        tracked.run = Some(run);
    }
}

/// Where later events tell a pause or its end, the inspect may show that already: then what the events before it told
/// stands, and theirs is told in its turn, with its own time.
fn pause_in_turn(base: &mut Arc<Container>, tracked: &Tracked, covered: &[RuntimeEvent]) {
    let state_of = |event: &RuntimeEvent| match event.what {
        EventKind::Paused => Some(State::Paused),
        EventKind::Unpaused => Some(State::Running),
        EventKind::Created
        | EventKind::Initialized
        | EventKind::Started
        | EventKind::Renamed
        | EventKind::Died
        | EventKind::Deleted => None,
    };
    let told = tracked.container().map(|told| told.state);
    let before = covered.iter().rev().find_map(state_of).or(told);
    let is_live = |state| matches!(state, State::Running | State::Paused);
    if let Some(before) = before
        && tracked
            .life
            .pending
            .iter()
            .any(|event| state_of(event).is_some())
        && is_live(before)
        && is_live(base.state)
        && before != base.state
    {
        Arc::make_mut(base).state = before;
    }
}

fn newest_of(story: &RunStory, run: Option<&Run>) -> Newest {
    Newest {
        started_at_ns: story.started_at_ns,
        is_exact: story.is_exact,
        sketched_at_ns: story.sketched_at_ns,
        process: run.and_then(Run::process_key),
        awaits_start: story.awaits_start,
        awaits_end: story.awaits_end,
    }
}

/// The last nanosecond of a millisecond.
pub(super) fn end_of_ms_ns(at_ms: u64) -> u64 {
    at_ms * 1_000_000 + 999_999
}

fn round_telling(round: &Round, op: Op, at_ns: u64) -> Telling {
    Telling {
        op,
        at_ns,
        event_ns: None,
        origin: round.origin,
        reason: round.reason,
        may_be_missed: round.reason.is_empty(),
    }
}
