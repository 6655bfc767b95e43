//! The line of a container's runs: from the events of one round and the inspect after them, by content.
//!
//! Pure functions. What they rest on:
//!
//! - An inspect was asked for after the round's events had come, so it is newer than each of them.
//! - Docker tells exactly one `start` and one `die` for each run, in order, and `StartedAt` of a run lies
//!   between the `die` before it and its own `start`. So the first `start` at or after a run's `StartedAt` is
//!   its own, and where an inspect speaks of the newest run that was told, there is no newer one.
//! - CRI's containers and sandboxes run once, and their events come in any order: states only advance.

use serde::{Deserialize, Serialize};

use crate::model::{Container, ContainerKind, EventKind, RuntimeEvent, RuntimeType, State};

/// The newest run that was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Newest {
    /// Its start: the runtime's own `StartedAt`, or the time of the event.
    pub(super) started_at_ns: u64,
    /// Whether that is the runtime's own.
    pub(super) is_exact: bool,
    /// Pid and start ticks of its process, where it was seen.
    pub(super) process: Option<(u32, u64)>,
    /// A sketch told it, at this time: it began at the latest then.
    #[serde(skip)]
    pub(super) sketched_at_ns: Option<u64>,
    /// An inspect told its start before its event came.
    #[serde(skip)]
    pub(super) awaits_start: bool,
    /// An inspect told its end before its event came.
    #[serde(skip)]
    pub(super) awaits_end: bool,
}

/// What was known before the round.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// The newest run that was told.
    pub(super) newest: Option<&'a Newest>,
    /// Whether that run is open.
    pub(super) is_open: bool,
    /// Whether there is only ever one run (CRI).
    pub(super) runs_once: bool,
    /// Its creation was seen, and nothing of its runtime's stream was lost since.
    pub(super) is_watched: bool,
}

/// What is said in one round.
#[derive(Debug)]
pub(super) struct Said<'a> {
    /// The events that the inspect covers, as they came.
    pub(super) events: &'a [RuntimeEvent],
    /// The inspect.
    pub(super) inspect: Option<&'a Container>,
    /// Pid and start ticks of the process that lives, as read after the inspect.
    pub(super) process: Option<(u32, u64)>,
    /// The time of that process's start, less than a tick or two before it.
    pub(super) process_started_at_ns: Option<u64>,
    /// Events that came after the inspect was asked for.
    pub(super) later: &'a [RuntimeEvent],
    /// Whether a run that only the inspect shows is told at once, or its events are waited for.
    pub(super) tells_ahead: bool,
    /// Whether several inspects in a row have contradicted what was told: then they are believed.
    pub(super) is_insisted: bool,
    /// Now.
    pub(super) now_ns: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) at_ns: u64,
    pub(super) exit_code: Option<i32>,
    /// The time of the event that told it.
    pub(super) event_ns: Option<u64>,
}

/// One run in the line of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunStory {
    pub(super) started_at_ns: u64,
    pub(super) is_exact: bool,
    /// A sketch told it, at this time.
    pub(super) sketched_at_ns: Option<u64>,
    /// The time of the event of its start, where it was among those of the round.
    pub(super) start_event_ns: Option<u64>,
    /// It is the newest run that was told, and not a new one.
    pub(super) is_told: bool,
    /// It is the run that the inspect speaks of.
    pub(super) is_inspected: bool,
    pub(super) end: Option<End>,
    /// It was told and had ended before this round.
    pub(super) was_closed: bool,
    /// The event of its start is still to come.
    pub(super) awaits_start: bool,
    /// The event of its end is still to come, though the end is known.
    pub(super) awaits_end: bool,
}

/// The runs of a round, in order. The first is the newest that was told, if any was.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) runs: Vec<RunStory>,
    /// The inspect speaks of a run whose events are still to come; it is not in the line.
    pub(super) is_ahead: bool,
    /// The inspect says that a run lives whose end was told.
    pub(super) is_contradicted: bool,
}

impl RunStory {
    fn told(newest: &Newest, is_open: bool) -> Self {
        Self {
            started_at_ns: newest.started_at_ns,
            is_exact: newest.is_exact,
            sketched_at_ns: newest.sketched_at_ns,
            start_event_ns: None,
            is_told: true,
            is_inspected: false,
            end: None,
            was_closed: !is_open,
            awaits_start: newest.awaits_start,
            awaits_end: newest.awaits_end,
        }
    }

    fn new(started_at_ns: u64) -> Self {
        Self {
            started_at_ns,
            is_exact: false,
            sketched_at_ns: None,
            start_event_ns: None,
            is_told: false,
            is_inspected: false,
            end: None,
            was_closed: false,
            awaits_start: false,
            awaits_end: false,
        }
    }

    fn is_closed(&self) -> bool {
        self.was_closed || self.end.is_some()
    }
}

/// Puts the runs of a round in order.
pub(super) fn line_of(known: &Known<'_>, said: &Said<'_>) -> Line {
    let mut line = Line::default();
    line.runs.extend(
        known
            .newest
            .map(|newest| RunStory::told(newest, known.is_open)),
    );
    if known.runs_once {
        one_run(&mut line, said);
    } else {
        many_runs(&mut line, known, said);
    }
    if line.is_contradicted && said.is_insisted && said.process.is_some() {
        line.is_contradicted = false;
        believe(&mut line, said);
    }
    line
}

/// A process lives of a run whose end was told: whatever told that end, the container runs.
fn believe(line: &mut Line, said: &Said<'_>) {
    let told_ns = line.runs.last().map_or(1, |run| run.started_at_ns);
    let started_at_ns = said.inspect.and_then(|container| container.started_at_ns);
    line.runs.push(RunStory {
        is_exact: started_at_ns.is_some(),
        is_inspected: true,
        ..RunStory::new(started_at_ns.unwrap_or(told_ns))
    });
}

/// CRI: the one run, as far as anything says it.
fn one_run(line: &mut Line, said: &Said<'_>) {
    let events = || said.events.iter().chain(said.later);
    let first = |what| events().find(move |event| event.what == what);
    let facts = || events().filter_map(|event| event.facts.as_deref());
    let started = first(EventKind::Started);
    let died = first(EventKind::Died);
    let inspected = said.inspect.and_then(start_of);
    let exact = inspected.or_else(|| facts().find_map(start_of));
    let never_ran = exact.is_none()
        && started.is_none()
        && (said.inspect.is_some_and(is_ended) || died.is_some_and(|event| event.facts.is_some()));
    if line.runs.is_empty() {
        let at_ns = exact
            .or(started.map(|event| event.at_ns))
            .or(died.map(|event| event.at_ns));
        let Some(at_ns) = at_ns.filter(|_| !never_ran) else {
            return;
        };
        // A sandbox runs from its creation on; a container of which no start is known began some time after it.
        let is_sketch = said.inspect.is_some_and(|container| {
            container.kind == ContainerKind::Container && container.started_at_ns.is_none()
        });
        line.runs.push(RunStory {
            is_exact: exact.is_some() && !is_sketch,
            ..RunStory::new(at_ns)
        });
    }
    let Some(run) = line.runs.first_mut() else {
        return;
    };
    run.start_event_ns = started.map(|event| event.at_ns);
    run.is_inspected = inspected.is_some();
    if let Some(container) = said.inspect {
        be_exact(run, container);
    }
    let is_live = said
        .inspect
        .is_some_and(|container| container.state.is_live());
    if run.was_closed {
        line.is_contradicted = is_live;
        return;
    }
    let from_event = died.map(|event| {
        let facts = event.facts.as_deref();
        End {
            at_ns: facts
                .and_then(|facts| facts.finished_at_ns)
                .unwrap_or(event.at_ns),
            exit_code: event.exit_code.or(facts.and_then(|facts| facts.exit_code)),
            event_ns: Some(event.at_ns),
        }
    });
    let inspected_end = said.inspect.filter(|container| is_ended(container));
    run.end = match inspected_end {
        Some(container) => Some(end_of(container, run.started_at_ns, from_event)),
        None => from_event,
    };
    line.is_contradicted = run.end.is_some() && is_live;
}

/// When the run of a CRI container began, as it says. A sandbox does not say (CRI v1): it runs as soon as it is
/// created.
fn start_of(container: &Container) -> Option<u64> {
    let has_run = container.state.is_live()
        || (container.kind == ContainerKind::Sandbox && is_ended(container));
    let by_state = has_run.then_some(container.created_at_ns.max(1));
    container.started_at_ns.or(by_state)
}

/// Docker: any number of runs, whose events come in order.
fn many_runs(line: &mut Line, known: &Known<'_>, said: &Said<'_>) {
    let inspect = said.inspect;
    let is_same = inspect.is_some_and(|container| {
        known
            .newest
            .is_some_and(|newest| speaks_of(container, newest, known.is_open, said.process))
    });
    for event in said.events {
        take_event(line, known, event, !is_same);
    }
    if let Some(container) = inspect {
        // containerd does not say of a task when it started.
        let never_ran = container.started_at_ns.is_none()
            && container.runtime != RuntimeType::Containerd
            && is_ended(container);
        if never_ran {
            line.runs.retain(|run| run.is_told);
        }
        if is_same {
            merge_told(line, container, said.process.is_some());
        } else {
            let tells_ahead = said.tells_ahead && said.later.is_empty();
            merge_new(line, container, said, tells_ahead);
        }
    }
    for event in said.later {
        take_event(line, known, event, true);
    }
    if let Some(container) = inspect
        && line.is_ahead
        && said.tells_ahead
    {
        line.is_ahead = false;
        merge_late(line, container, said);
    }
}

/// The inspect ran ahead of events that have come by now: it speaks of the first run that it began before.
fn merge_late(line: &mut Line, container: &Container, said: &Said<'_>) {
    let started_at_ns = container.started_at_ns.unwrap_or(0);
    let mut runs = line.runs.iter_mut();
    let shown = runs.find(|run| {
        let is_its_start = run.start_event_ns.is_none() || run.started_at_ns >= started_at_ns;
        !run.is_told && is_its_start
    });
    if let Some(run) = shown {
        be_exact(run, container);
        run.is_inspected = true;
    } else {
        merge_new(line, container, said, true);
    }
}

/// Whether an inspect speaks of the newest run that was told.
fn speaks_of(
    container: &Container,
    newest: &Newest,
    is_open: bool,
    process: Option<(u32, u64)>,
) -> bool {
    let is_other_process =
        process.is_some() && newest.process.is_some() && process != newest.process;
    let is_over = !is_open && container.state.is_live();
    let is_same_process = is_open && process.is_some() && process == newest.process;
    let latest_ns = newest.sketched_at_ns.unwrap_or(newest.started_at_ns);
    match container.started_at_ns {
        Some(started_at_ns) if newest.is_exact => started_at_ns == newest.started_at_ns,
        Some(started_at_ns) => {
            (started_at_ns <= latest_ns || is_same_process) && !is_other_process && !is_over
        }
        None => !is_other_process && !is_over,
    }
}

fn take_event(line: &mut Line, known: &Known<'_>, event: &RuntimeEvent, may_be_new: bool) {
    let last = line.runs.last_mut();
    match (event.what, last) {
        (EventKind::Started, Some(run)) if run.awaits_start => {
            let is_own = event.at_ns == 0 || event.at_ns >= run.started_at_ns;
            if is_own {
                run.start_event_ns = Some(event.at_ns);
                run.awaits_start = false;
            }
        }
        (EventKind::Started, last) if may_be_new => {
            if let Some(run) = last
                && !run.is_closed()
            {
                run.end = Some(End {
                    at_ns: event.at_ns,
                    exit_code: None,
                    event_ns: None,
                });
            }
            line.runs.push(RunStory {
                start_event_ns: Some(event.at_ns),
                ..RunStory::new(event.at_ns)
            });
        }
        // The start of the newest run is still to come: what ended before it was an earlier one.
        (EventKind::Died, Some(run))
            if run.awaits_start && event.at_ns != 0 && event.at_ns < run.started_at_ns => {}
        (EventKind::Died, Some(run)) if !run.is_closed() => {
            run.end = Some(end_by(event));
            run.awaits_start = false;
        }
        (EventKind::Died, Some(run)) if run.awaits_end => {
            run.awaits_end = false;
            run.awaits_start = false;
            if let Some(end) = &mut run.end {
                end.event_ns = Some(event.at_ns);
            }
        }
        (EventKind::Died, None) if !known.is_watched => line.runs.push(RunStory {
            end: Some(end_by(event)),
            ..RunStory::new(event.at_ns)
        }),
        (
            EventKind::Created
            | EventKind::Initialized
            | EventKind::Started
            | EventKind::Paused
            | EventKind::Unpaused
            | EventKind::Renamed
            | EventKind::Died
            | EventKind::Deleted,
            _,
        ) => {}
    }
}

/// The inspect speaks of the newest run that was told.
fn merge_told(line: &mut Line, container: &Container, is_alive: bool) {
    let Some(run) = line.runs.first_mut() else {
        return;
    };
    run.is_inspected = true;
    be_exact(run, container);
    let is_live = container.state.is_live();
    let is_of_earlier = run
        .end
        .as_ref()
        .is_some_and(|end| end.at_ns != 0 && end.at_ns < run.started_at_ns);
    // The inspect is newer than the events: if its process is alive, they told the end of an earlier run.
    if is_live && (is_of_earlier || is_alive) && !run.was_closed {
        run.end = None;
    }
    if is_live && run.is_closed() {
        line.is_contradicted = true;
    } else if is_ended(container) && !run.was_closed {
        end_as_inspected(run, container);
    }
}

/// The inspect speaks of a run that was not told: the last of those that events showed, or a newer one.
fn merge_new(line: &mut Line, container: &Container, said: &Said<'_>, tells_ahead: bool) {
    let is_live = container.state.is_live();
    // Docker says of a container that runs when it started: without that it is a sketch.
    let is_sketch =
        is_live && container.started_at_ns.is_none() && container.runtime == RuntimeType::Docker;
    let started_at_ns = match (container.started_at_ns, is_live) {
        (Some(started_at_ns), _) => started_at_ns,
        (None, true) if is_sketch => said
            .process_started_at_ns
            .unwrap_or(container.created_at_ns)
            .max(1),
        (None, true) => container.created_at_ns.max(1),
        (None, false) => {
            // containerd does not say when a task began that has ended; its events do.
            line.is_ahead = !tells_ahead
                && container.runtime == RuntimeType::Containerd
                && is_ended(container)
                && line.runs.iter().all(|run| run.is_told);
            return;
        }
    };
    let shown = line.runs.last_mut().filter(|run| {
        // A run of which only the end was heard has no start to compare.
        let is_its_start = run.start_event_ns.is_none() || run.started_at_ns >= started_at_ns;
        !run.is_told && is_its_start && !(is_live && run.end.is_some())
    });
    let run = match shown {
        Some(run) => run,
        None if !tells_ahead => {
            line.is_ahead = true;
            return;
        }
        None => {
            if let Some(run) = line.runs.last_mut()
                && !run.is_closed()
            {
                run.end = Some(End {
                    at_ns: started_at_ns,
                    exit_code: None,
                    event_ns: None,
                });
            }
            line.runs.push(RunStory::new(started_at_ns));
            let index = line.runs.len() - 1;
            &mut line.runs[index]
        }
    };
    if container.started_at_ns.is_some() || run.start_event_ns.is_none() {
        run.started_at_ns = started_at_ns;
        run.is_exact = container.started_at_ns.is_some();
        run.sketched_at_ns = is_sketch.then_some(said.now_ns);
    }
    run.is_inspected = true;
    run.awaits_start = run.start_event_ns.is_none();
    if is_ended(container) {
        end_as_inspected(run, container);
    }
}

/// Takes the runtime's own start where only an event's time was known.
fn be_exact(run: &mut RunStory, container: &Container) {
    if let Some(started_at_ns) = container.started_at_ns
        && !run.is_exact
    {
        run.started_at_ns = started_at_ns;
        run.is_exact = true;
        run.sketched_at_ns = None;
    }
}

fn end_as_inspected(run: &mut RunStory, container: &Container) {
    let told = run.end.take();
    run.awaits_end = told.is_none();
    run.end = Some(end_of(container, run.started_at_ns, told));
}

fn end_by(event: &RuntimeEvent) -> End {
    End {
        at_ns: event.at_ns,
        exit_code: event.exit_code,
        event_ns: Some(event.at_ns),
    }
}

/// The end as an inspect says it. Its time counts only if it ended after it started.
fn end_of(container: &Container, started_at_ns: u64, told: Option<End>) -> End {
    let finished_at_ns = container
        .finished_at_ns
        .filter(|finished_at_ns| *finished_at_ns >= started_at_ns);
    let event_ns = told.as_ref().and_then(|end| end.event_ns);
    let by_event = told.as_ref().map(|end| end.at_ns);
    End {
        at_ns: finished_at_ns.or(by_event).unwrap_or(0),
        exit_code: container.exit_code.or(told.and_then(|end| end.exit_code)),
        event_ns,
    }
}

/// Whether the runtime says that the run which it speaks of has ended.
pub(super) fn is_ended(container: &Container) -> bool {
    match container.state {
        State::Exited | State::Dead | State::Restarting | State::Removing => true,
        State::Created | State::Running | State::Paused | State::Unknown => false,
    }
}
