//! What is known of one container.
//!
//! A container lives in runs. What is known of them in one round (the events since the last one, and what an
//! inspect said after them) is made into a line, ordered by content (`runs.rs`), and the line is told
//! (`story.rs`). The part that is kept over a restart is the container as it was told last, the newest run, and
//! the process of the open one; what is awaited is not kept, for after a restart everything is listed anew.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::overlay::Overlay;
use super::runs::{Known, Newest};
use super::views::RunView;
use super::{Process, ProcessReading};
use crate::model::record::{Fields, ProcessFacts};
use crate::model::{Container, ContainerKind, EventKind, RuntimeEvent, SourceId};

/// How many events of a container are remembered to know their doubles: some restarts' worth, for a double comes
/// within moments of its twin.
const SEEN_MAX: usize = 64;

/// One life of an init process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    /// Its start in unix nanoseconds; of a process whose start was not told yet, the process's own.
    pub(super) started_at_ns: u64,
    pub(super) pid: Option<u32>,
    /// 0 where the process was never seen.
    pub(super) start_ticks: u64,
    pub(super) pns_inode: Option<u64>,
    pub(super) pns_id: Option<u64>,
    pub(super) boot_id: Arc<str>,
}

/// A container as it was told last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) container: Arc<Container>,
    pub(super) process: ProcessFacts,
    /// As it was told, rendered; `None` only until its first delta is made.
    #[serde(skip)]
    fields: Option<Fields>,
}

/// What is known of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tracked {
    pub(super) owner: SourceId,
    pub(super) kind: ContainerKind,
    /// `None` before its `create` or `snapshot`.
    pub(super) told: Option<Told>,
    /// The run that is open.
    pub(super) run: Option<Run>,
    /// The newest run that was told, open or not.
    pub(super) newest: Option<Newest>,
    /// A process that was seen alive and whose start was not told yet: its namespace is mapped already.
    pub(super) hint: Option<Run>,
    pub(super) overlay: Option<Overlay>,
    /// The newest list row whose inspect was answered; `None` since an event touched it.
    pub(super) fingerprint: Option<u64>,
    #[serde(skip)]
    pub(super) life: Life,
}

/// What is known of a container in this life of the collector only.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    /// The list row that the inspect under way will answer for.
    pub(super) asked_fingerprint: Option<u64>,
    pub(super) asked_overlay: Option<u64>,
    /// Its next list row is to be inspected whatever it says.
    pub(super) is_stale: bool,
    pub(super) is_record_due: bool,
    pub(super) record_put_ms: u64,
    /// The newest list of its source that had begun when an event touched it.
    pub(super) touched_list: u64,
    /// The last moment at which its process is known to have lived, in an earlier life of the collector; 0
    /// once it was seen in this one.
    pub(super) last_alive_ms: u64,
    /// When it was first seen in this life of the collector that its process is there no more; 0 while it is.
    pub(super) seen_dead_ms: u64,
    /// The most that events said of it.
    pub(super) event_facts: Option<Arc<Container>>,
    pub(super) pending: Vec<RuntimeEvent>,
    seen: VecDeque<(EventKind, u64)>,
    /// An inspect is under way; it covers so many of the pending events.
    pub(super) inspecting: Option<usize>,
    /// When the newest inspect was asked for; 0 before the first.
    pub(super) asked_at_ms: u64,
    /// Something happened since that inspect was asked for.
    pub(super) is_dirty: bool,
    /// Inspects in a row that failed or contradicted what is known.
    pub(super) attempts: u32,
    /// An event told its deletion, at this time.
    pub(super) deleted_at_ns: Option<u64>,
    /// An inspect did not find it; the event of its deletion is waited for.
    pub(super) is_gone: bool,
    /// An inspect showed a run whose events are waited for.
    pub(super) is_held: bool,
    /// What the next inspect says is told, whether events told it or not.
    pub(super) is_forced: bool,
    /// The event of its creation was seen, and nothing of the stream was lost since.
    pub(super) is_watched: bool,
}

impl Life {
    /// The process is there no more, or its container: that counts from the first time that it was seen.
    pub(super) fn note_dead(&mut self, now_ms: u64) {
        if self.seen_dead_ms == 0 {
            self.seen_dead_ms = now_ms;
        }
    }

    /// The moment that is known best of the end of a run that nobody told.
    pub(super) fn end_ms(&self, now_ms: u64) -> u64 {
        match (self.last_alive_ms, self.seen_dead_ms) {
            (0, 0) => now_ms,
            (0, seen_dead_ms) => seen_dead_ms,
            (last_alive_ms, _) => last_alive_ms,
        }
    }
}

impl Tracked {
    pub(super) fn new(owner: SourceId, kind: ContainerKind) -> Self {
        Self {
            owner,
            kind,
            told: None,
            run: None,
            newest: None,
            hint: None,
            overlay: None,
            fingerprint: None,
            life: Life::default(),
        }
    }

    /// Whether a `create` or a `snapshot` told it.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// As it was told last.
    pub fn container(&self) -> Option<&Container> {
        self.told.as_ref().map(|told| &*told.container)
    }

    /// The runtime that says what it is.
    pub fn owner(&self) -> &SourceId {
        &self.owner
    }

    /// The same, shared.
    pub fn shared(&self) -> Option<Arc<Container>> {
        self.told.as_ref().map(|told| Arc::clone(&told.container))
    }

    /// The process of its open run, by pid and start ticks; 0 ticks where it was never seen.
    pub fn open_process(&self) -> Option<(u32, u64)> {
        let run = self.run.as_ref()?;
        Some((run.pid?, run.start_ticks))
    }

    /// The pid of its open run.
    pub fn open_pid(&self) -> Option<u32> {
        self.run.as_ref()?.pid
    }

    /// The pids of its open run and of the process that is about to be told.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        let hinted = self.hint.as_ref().and_then(|hint| hint.pid);
        self.open_pid().into_iter().chain(hinted)
    }

    /// Whether a reading is of the process that is the hint.
    pub(super) fn is_hinted(&self, reading: Option<&ProcessReading>) -> bool {
        match (&self.hint, reading) {
            (Some(hint), Some(ProcessReading::Alive(process))) => hint.is_process(process),
            (Some(_), Some(ProcessReading::Dead | ProcessReading::Denied) | None) | (None, _) => {
                false
            }
        }
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.life.inspecting.is_some()
    }

    pub(super) fn process_facts(&self) -> ProcessFacts {
        self.run
            .as_ref()
            .map_or_else(ProcessFacts::default, Run::facts)
    }

    /// The fields as they were told last.
    ///
    /// # Panics
    /// Never for a container that [is told](Self::is_told).
    pub fn fields(&self) -> Fields {
        let told = self.told.as_ref().expect("only what was told has fields");
        match &told.fields {
            Some(fields) => fields.clone(),
            None => Fields::of(&told.container, told.process),
        }
    }

    /// The same, where anything was told.
    pub(super) fn fields_told(&self) -> Option<&Fields> {
        self.told.as_ref()?.fields.as_ref()
    }

    /// Renders again what a row does not keep.
    pub(super) fn restore_fields(&mut self) {
        if let Some(told) = &mut self.told {
            told.fields = Some(Fields::of(&told.container, told.process));
        }
    }

    /// Takes a view of the container, which is about to be told; renders it.
    pub(super) fn show(&mut self, base: &mut Arc<Container>, mut view: RunView) -> Fields {
        let process = self.process_facts();
        let container = Arc::make_mut(base);
        let mut shown = view.clone();
        view.swap(container);
        let fields = Fields::of(container, process);
        match &mut self.told {
            Some(told) => {
                shown.swap(Arc::make_mut(&mut told.container));
                told.process = process;
            }
            None => {
                self.told = Some(Told {
                    container: Arc::new(container.clone()),
                    process,
                    fields: None,
                });
            }
        }
        view.swap(container);
        fields
    }

    /// Keeps the facts that the deltas of a round told, with the run as they told it.
    pub(super) fn keep_facts(&mut self, mut base: Arc<Container>) {
        if let Some(told) = &mut self.told {
            RunView::of(&told.container).swap(Arc::make_mut(&mut base));
            told.container = base;
        }
    }

    /// Keeps what was told now.
    pub(super) fn keep_fields(&mut self, fields: Fields) {
        let process = self.process_facts();
        if let Some(told) = &mut self.told {
            told.process = process;
            told.fields = Some(fields);
        }
    }

    /// The best that is known of it without asking.
    pub(super) fn best_known(&self) -> Option<Arc<Container>> {
        let told = self.told.as_ref().map(|told| &told.container);
        told.or(self.life.event_facts.as_ref()).cloned()
    }

    /// Whether anything was told or is to be told of it.
    pub(super) fn has_story(&self) -> bool {
        self.is_told() || !self.life.pending.is_empty()
    }

    pub(super) fn known_runs(&self, runs_once: bool) -> Known<'_> {
        Known {
            newest: self.newest.as_ref(),
            is_open: self.run.is_some(),
            runs_once,
            is_watched: self.life.is_watched,
        }
    }

    /// Remembers an event; says whether it is the double of one that came before.
    pub(super) fn is_double(&mut self, event: &RuntimeEvent) -> bool {
        let mark = (event.what, event.at_ns);
        let seen = &mut self.life.seen;
        if event.at_ns != 0 && seen.contains(&mark) {
            return true;
        }
        if seen.len() == SEEN_MAX {
            seen.pop_front();
        }
        seen.push_back(mark);
        false
    }

    /// Keeps what an event said of the container, unless it says less than one before.
    pub(super) fn take_facts(&mut self, facts: Option<&Container>) {
        let Some(facts) = facts else {
            return;
        };
        let rank = |container: &Container| {
            (
                container.finished_at_ns.is_some(),
                container.started_at_ns.is_some(),
            )
        };
        let known = self.life.event_facts.as_deref().map(rank);
        if known.is_none_or(|known| rank(facts) >= known) {
            self.life.event_facts = Some(Arc::new(facts.clone()));
        }
    }
}

impl Run {
    pub(super) fn of(process: &Process, started_at_ns: u64, boot_id: &Arc<str>) -> Self {
        Self {
            started_at_ns,
            pid: Some(process.pid),
            start_ticks: process.start_ticks,
            pns_inode: Some(process.pns_inode),
            pns_id: process.pns_id,
            boot_id: Arc::clone(boot_id),
        }
    }

    /// A run whose process nobody saw.
    pub(super) fn unseen(started_at_ns: u64, pid: Option<u32>, boot_id: &Arc<str>) -> Self {
        Self {
            started_at_ns,
            pid,
            start_ticks: 0,
            pns_inode: None,
            pns_id: None,
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

    pub(super) fn is_seen(&self) -> bool {
        self.start_ticks != 0
    }

    pub(super) fn is_process(&self, process: &Process) -> bool {
        self.pid == Some(process.pid) && self.start_ticks == process.start_ticks
    }

    /// Pid and start ticks, where it was seen.
    pub(super) fn process_key(&self) -> Option<(u32, u64)> {
        let pid = self.pid?;
        self.is_seen().then_some((pid, self.start_ticks))
    }
}
