//! Processes: what was read of them, ahead of a start, during a run, and after its end.
//!
//! A container has one init process at a time. The one of its open run is known by pid and start ticks; one
//! that was seen alive before its start was told is the container's hint: its namespace is mapped at once, so
//! that the mapping is on the bus before the start.

use super::container::{Run, Tracked};
use super::runs::{Line, is_ended};
use super::{Effect, Process, ProcessReading, Reconciler, RowKey};
use crate::model::{Container, ContainerId};

/// How long a process waits for the start of its run, before it is looked at whether it still lives. What is told late by a
/// runtime that is busy is told within some seconds.
const HINT_MS: u64 = 10_000;

impl Reconciler {
    /// Takes what was read of a process: of an open run, or ahead of a start.
    pub(super) fn process_read(&mut self, id: &ContainerId, pid: u32, reading: ProcessReading) {
        let Some(tracked) = self.containers.get(id) else {
            if let ProcessReading::Alive(process) = reading {
                self.keep_early(id, *process);
            }
            return;
        };
        let open = tracked.run.clone().filter(|run| run.pid == Some(pid));
        let is_hint = tracked
            .hint
            .as_ref()
            .is_some_and(|hint| hint.pid == Some(pid));
        match (open, reading) {
            (Some(run), ProcessReading::Alive(process)) if run.is_process(&process) => {
                self.still_alive(id, &process);
            }
            (Some(run), ProcessReading::Alive(process)) => {
                self.release_fd(process.fd);
                self.process_gone(id, &run);
            }
            (Some(run), ProcessReading::Dead) => self.process_gone(id, &run),
            (None, ProcessReading::Alive(process)) => self.hinted(id, &process),
            (None, ProcessReading::Dead) if is_hint => self.hint_gone(id),
            (Some(_) | None, ProcessReading::Denied) | (None, ProcessReading::Dead) => {}
        }
    }

    /// Takes a hint of a runtime that some user serves, of a container that a runtime of the same user told. Of one that nobody
    /// told yet it is not known whose it will be.
    pub(super) fn process_named(
        &mut self,
        uid: u32,
        id: &ContainerId,
        pid: u32,
        reading: ProcessReading,
    ) {
        let owner = self.containers.get(id).map(|tracked| &tracked.owner);
        let owner = owner.and_then(|owner| self.sources.get(owner));
        if owner.is_some_and(|owner| owner.runtime.uid == uid) {
            self.process_read(id, pid, reading);
        } else {
            self.release_reading(&reading);
        }
    }

    fn still_alive(&mut self, id: &ContainerId, process: &Process) {
        let Some(tracked) = self.containers.get_mut(id) else {
            self.release_fd(process.fd);
            return;
        };
        tracked.life.last_alive_ms = 0;
        tracked.life.seen_dead_ms = 0;
        match tracked.best_known() {
            Some(known) => self.join_namespace(&known, process),
            None => self.release_fd(process.fd),
        }
    }

    fn process_gone(&mut self, id: &ContainerId, run: &Run) {
        let now_ms = self.now_ms;
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        tracked.life.is_stale = true;
        tracked.life.note_dead(now_ms);
        let is_up = self
            .sources
            .get(&tracked.owner)
            .is_some_and(|source| source.up);
        if is_up {
            self.ask(id);
        } else {
            let last_alive_ms = self.last_alive_ms(id);
            self.leave_namespace(id, run, last_alive_ms);
        }
    }

    /// When the process of a container's run is known to have lived last, as it is not there now.
    fn last_alive_ms(&self, id: &ContainerId) -> u64 {
        let earlier_ms = self
            .containers
            .get(id)
            .map_or(0, |tracked| tracked.life.last_alive_ms);
        if earlier_ms == 0 {
            self.now_ms
        } else {
            earlier_ms
        }
    }

    fn hint_gone(&mut self, id: &ContainerId) {
        let at_ms = self.last_alive_ms(id);
        if let Some(mut tracked) = self.containers.remove(id) {
            self.drop_hint(&mut tracked, id, at_ms);
            self.containers.insert(id.clone(), tracked);
            self.effects
                .push(Effect::SaveRow(RowKey::Container(id.clone())));
        }
    }

    /// A process of a container that is about to start: its namespace is mapped ahead of its `start`.
    pub(super) fn hinted(&mut self, id: &ContainerId, process: &Process) {
        let Some(mut tracked) = self.containers.remove(id) else {
            self.release_fd(process.fd);
            return;
        };
        let is_unseen_run = tracked.run.as_ref().is_some_and(|run| !run.is_seen());
        let is_known = tracked
            .hint
            .as_ref()
            .is_some_and(|hint| hint.is_process(process));
        self.take_hint(&mut tracked, id, process);
        self.containers.insert(id.clone(), tracked);
        self.effects
            .push(Effect::SaveRow(RowKey::Container(id.clone())));
        if is_unseen_run && !is_known {
            self.ask(id);
        }
    }

    /// Keeps a live process as the container's hint, and maps its namespace, where the container is known; else it waits.
    /// One that was told, or of a container that has had its one run, is let go.
    pub(super) fn take_hint(&mut self, tracked: &mut Tracked, id: &ContainerId, process: &Process) {
        let key = Some((process.pid, process.start_ticks));
        let has_run = tracked.newest.is_some()
            && self
                .sources
                .get(&tracked.owner)
                .is_some_and(super::Source::runs_once);
        let newest = tracked.newest.as_ref().and_then(|newest| newest.process);
        let was_told = newest == key;
        // Processes follow one another: one that is older than another that was seen has ended by now.
        let hinted = tracked.hint.as_ref().and_then(Run::process_key);
        let mut seen = newest.into_iter().chain(hinted);
        let is_over = seen.any(|(_, start_ticks)| process.start_ticks < start_ticks);
        let known = tracked.best_known();
        if was_told || is_over || has_run {
            self.release_fd(process.fd);
            return;
        }
        let Some(known) = known else {
            self.keep_early(id, process.clone());
            return;
        };
        self.replace_hint(tracked, id, process);
        let seen_ns = process.started_at_ms * 1_000_000;
        tracked.hint = Some(Run::of(process, seen_ns, &self.identity.boot_id));
        self.join_namespace(&known, process);
    }

    /// The same of the process of a run that an inspect showed before its events came: the runtime says when it began,
    /// which the kernel tells to a tick or two only.
    fn take_hint_ahead(&mut self, tracked: &mut Tracked, base: &Container, process: &Process) {
        self.take_hint(tracked, &base.id, process);
        if let Some(hint) = tracked
            .hint
            .as_mut()
            .filter(|hint| hint.is_process(process))
            && let Some(started_at_ns) = base.started_at_ns
        {
            hint.started_at_ns = started_at_ns;
        }
    }

    /// A process is seen alive: another one that was the hint no longer lives.
    pub(super) fn replace_hint(
        &mut self,
        tracked: &mut Tracked,
        id: &ContainerId,
        process: &Process,
    ) {
        match tracked.hint.take() {
            Some(hint) if !hint.is_process(process) => {
                self.leave_namespace(id, &hint, process.started_at_ms);
            }
            Some(_) | None => {}
        }
    }

    /// Looks at the processes that no run took for long, and of whose containers nothing is awaited: a runtime that is killed
    /// between a container's creation and its start kills such a process when it is back, and tells nobody.
    pub(super) fn check_hints(&mut self) {
        let before_ns = self.now_ms.saturating_sub(HINT_MS) * 1_000_000;
        let left = self.containers.iter().filter_map(|(id, tracked)| {
            let hint = tracked.hint.as_ref()?;
            let is_quiet = !tracked.is_awaited() && tracked.life.pending.is_empty();
            let is_left = is_quiet && hint.started_at_ns <= before_ns;
            let (id, pid) = (id.clone(), hint.pid.filter(|_| is_left)?);
            Some(Effect::ReadProcess { id, pid })
        });
        self.effects.extend(left);
    }

    /// A hint that no run took is either of one that is about to start, or its process has ended.
    pub(super) fn check_hint(&mut self, tracked: &Tracked, id: &ContainerId) {
        let hint = tracked.hint.as_ref();
        if let Some(pid) = hint.and_then(|hint| hint.pid) {
            let id = id.clone();
            self.effects.push(Effect::ReadProcess { id, pid });
        }
    }

    pub(super) fn drop_hint(&mut self, tracked: &mut Tracked, id: &ContainerId, at_ms: u64) {
        if let Some(hint) = tracked.hint.take() {
            self.leave_namespace(id, &hint, at_ms);
        }
    }

    /// Gives a reading that no new run took to the run that is open, keeps it for the one that is about to be
    /// told, or lets its fd go.
    pub(super) fn place_reading(
        &mut self,
        tracked: &mut Tracked,
        base: &Container,
        line: &Line,
        reading: Option<ProcessReading>,
    ) {
        let Some(reading) = reading else {
            return;
        };
        let is_of_open_run = base.state.is_live() && tracked.run.is_some() && !line.is_ahead;
        let is_ahead = line.is_ahead || (!base.state.is_live() && tracked.run.is_none());
        match reading {
            ProcessReading::Alive(process) if is_of_open_run => {
                self.pin_open_run(tracked, base, &process);
            }
            ProcessReading::Alive(process) if line.is_ahead && !is_ended(base) => {
                self.take_hint_ahead(tracked, base, &process);
            }
            ProcessReading::Alive(process) if is_ahead && !is_ended(base) => {
                self.take_hint(tracked, &base.id, &process);
            }
            ProcessReading::Alive(process) => self.release_fd(process.fd),
            ProcessReading::Dead if is_of_open_run => {
                let at_ms = match tracked.life.last_alive_ms {
                    0 => self.now_ms,
                    earlier_ms => earlier_ms,
                };
                if let Some(run) = tracked.run.clone().filter(|run| run.pid == base.pid) {
                    self.leave_namespace(&base.id, &run, at_ms);
                }
            }
            ProcessReading::Dead | ProcessReading::Denied => {}
        }
    }

    fn pin_open_run(&mut self, tracked: &mut Tracked, base: &Container, process: &Process) {
        let Some(run) = tracked.run.as_ref() else {
            self.release_fd(process.fd);
            return;
        };
        if !run.is_process(process) {
            let other = run.clone();
            self.leave_namespace(&base.id, &other, process.started_at_ms);
            self.replace_hint(tracked, &base.id, process);
            let run = Run::of(process, other.started_at_ns, &self.identity.boot_id);
            if let Some(newest) = &mut tracked.newest {
                newest.process = run.process_key();
            }
            tracked.run = Some(run);
        }
        tracked.life.last_alive_ms = 0;
        self.join_namespace(base, process);
    }

    pub(super) fn release_reading(&mut self, reading: &ProcessReading) {
        if let ProcessReading::Alive(process) = reading {
            self.release_fd(process.fd);
        }
    }
}
