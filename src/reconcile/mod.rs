//! The reconciler: from what the runtimes and the process table say to what the bus is owed.
//!
//! It is pure: no I/O, no clock, no randomness. `now` is an argument, identity and settings are given once, and
//! [`Reconciler::handle`] answers an [`Observation`] with [`Effect`]s. Observations may be lost, doubled, late
//! or out of order; what is published is a whole story for each container all the same.
//!
//! # Invariants
//!
//! 1. `seq` is contiguous within an epoch; folding all deltas from the epoch's opening gives [`Reconciler::tally`].
//! 2. No `start`, `stop`, `update` or `delete` of a container that was not told by `create` or `snapshot`; no
//!    `start` while a run is open, no `stop` while none is, no `delete` while one is.
//! 3. A complete list, once its inspects are answered, gives the truth; the same list again gives no delta.
//! 4. A partial or failed list deletes nothing, nor does a list that began before the event that it contradicts.
//! 5. A mapping names only containers whose process was seen alive in that namespace. Each mapping that ends is
//!    put with its `valid_to_ms`, and after the linger gets its tombstone, unless its number has gone to another
//!    namespace by then.
//! 6. Every namespace token that comes in with a [`Process`] is held by one mapping or released.
//!
//! There are four parts: this file (the grammar and the dispatch), `container.rs` (the story of one container),
//! `listing.rs` (lists and resyncs) and `namespace.rs` (mappings).

mod container;
mod listing;
mod namespace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use container::Tracked;
pub use namespace::{NamespaceRow, Phase};

use crate::model::message::{Delta, Message, Op, Origin, RuntimeSource};
use crate::model::record::Fields;
use crate::model::{Container, ContainerId, ContainerKind, ListRow, RuntimeEvent, SourceId};

/// How long the id of a deleted container is remembered, so that a late list does not revive it.
const DELETED_REMEMBERED_MS: u64 = 10 * 60 * 1_000;
/// Most ids of deleted containers that are remembered.
const DELETED_REMEMBERED_MAX: usize = 65_536;
/// How long the opening of an epoch waits for the first lists.
const OPENING_MS_MAX: u64 = 30_000;
/// How often the processes of a runtime that is away are looked at.
const AWAY_CHECK_MS: u64 = 10_000;

/// Who we are, for one life of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Arc<str>,
    /// The number of the host's own PID namespace.
    pub host_pns_inode: u64,
    /// The epoch before this one, where it is known.
    pub previous_epoch: Option<Arc<str>>,
}

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a mapping stays after its namespace ended, counted from that put's acknowledgement.
    pub linger_ms: u64,
    /// Most mappings that linger at once.
    pub held_max: usize,
    /// How often an unchanged mapping is put again.
    pub pns_refresh_ms: u64,
    /// How often an unchanged record is put again; `None`: at every resync.
    pub records_refresh_ms: Option<u64>,
    /// After how long an endpoint that is away is forgotten.
    pub forget_after_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linger_ms: 10 * 60 * 1_000,
            held_max: 4_096,
            pns_refresh_ms: 60 * 60 * 1_000,
            records_refresh_ms: None,
            forget_after_ms: 24 * 60 * 60 * 1_000,
        }
    }
}

/// Names an open namespace fd that the collector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdToken(pub u64);

/// A process as it was read, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid in the host's PID namespace.
    pub pid: u32,
    /// Its start in clock ticks since boot.
    pub start_ticks: u64,
    /// The same in unix milliseconds, less one tick.
    pub started_at_ms: u64,
    /// The number of its PID namespace.
    pub pns_inode: u64,
    /// The kernel's id of it.
    pub pns_id: Option<u64>,
    /// The number of its mount namespace; 0 where it could not be read.
    pub mnt_ns: u64,
    /// Its cgroup's path.
    pub cgroup: Box<str>,
    /// Whether it is pid 1 of its namespace.
    pub is_init: bool,
    /// The fd that keeps the namespace's number from being given out again.
    pub fd: Option<FdToken>,
}

/// What reading a process gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessReading {
    /// It lives.
    Alive(Box<Process>),
    /// There is no such process (any more), or it is another one.
    Dead,
    /// It may live, but may not be read.
    Denied,
}

/// What an inspect gave.
#[derive(Clone, Debug)]
pub enum InspectOutcome {
    /// The container, and its init process where it says one.
    Found {
        /// As the runtime says.
        container: Box<Container>,
        /// As the process table says; `None` where the runtime names no pid.
        process: Option<ProcessReading>,
    },
    /// The runtime does not know it.
    Gone,
    /// The runtime did not answer.
    Failed,
}

/// What a list gave.
#[derive(Clone, Debug)]
pub enum ListOutcome {
    /// Everything that is there.
    Complete(Vec<ListRow>),
    /// Some of what is there.
    Partial(Vec<ListRow>),
    /// No answer.
    Failed,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Observation {
    /// The process has started, with the state as it was left. Comes first, once.
    Began {
        /// The last moment of the earlier life, for what ended in between.
        last_alive_ms: u64,
        /// Mappings of the state whose put is still owed to the bus.
        owed: BTreeSet<(u64, u64)>,
    },
    /// A runtime answers, and its stream, if it has one, is subscribed to.
    SourceUp {
        /// Which.
        source: SourceId,
        /// Who answers.
        runtime: RuntimeSource,
        /// Whether it has a stream.
        streaming: bool,
    },
    /// A runtime is away. Lists and inspects that are under way will not be answered.
    SourceDown {
        /// Which.
        source: SourceId,
    },
    /// A runtime is no longer configured.
    SourceForgotten {
        /// Which.
        source: SourceId,
    },
    /// A stream lost something.
    StreamGap {
        /// Which.
        source: SourceId,
    },
    /// The list that was asked for is being made from now on.
    ListBegan {
        /// Which.
        source: SourceId,
    },
    /// The list that was asked for.
    ListDone {
        /// Which.
        source: SourceId,
        /// What it gave.
        outcome: ListOutcome,
    },
    /// A stream told something.
    Event {
        /// Which.
        source: SourceId,
        /// What.
        event: RuntimeEvent,
    },
    /// The inspect that was asked for.
    Inspected {
        /// Which.
        source: SourceId,
        /// Which container.
        id: ContainerId,
        /// What it gave.
        outcome: InspectOutcome,
    },
    /// The process that was asked for, or (a hint) a process of a container that is about to start.
    Process {
        /// Which container.
        id: ContainerId,
        /// Which pid.
        pid: u32,
        /// What was read.
        reading: ProcessReading,
    },
    /// The bus has the newest put of a mapping.
    MappingAcked {
        /// The namespace's number.
        pns_inode: u64,
        /// Which namespace of that number.
        generation: u64,
    },
    /// The bus has the tombstone of a mapping.
    TombstoneAcked {
        /// The namespace's number.
        pns_inode: u64,
        /// Which namespace of that number.
        generation: u64,
    },
    /// Deltas were lost from the outbox: everything is to be told anew.
    SnapshotDue,
    /// It is time for a full resync.
    ResyncDue,
    /// It is time to list one runtime (one without a stream).
    ListDue {
        /// Which.
        source: SourceId,
    },
    /// Time has passed.
    Tick,
}

/// A row of the state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// A container.
    Container(ContainerId),
    /// A mapping, by the namespace's number.
    Namespace(u64),
    /// A runtime.
    Source(SourceId),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Owed to the bus.
    Publish(Message),
    /// The row changed; [`Reconciler::row`] gives it, or nothing where it is to be forgotten.
    SaveRow(RowKey),
    /// List a runtime.
    List {
        /// Which.
        source: SourceId,
    },
    /// Inspect a container.
    Inspect {
        /// At which runtime.
        source: SourceId,
        /// Which.
        id: ContainerId,
        /// What it is.
        kind: ContainerKind,
    },
    /// Look at a process, and answer with [`Observation::Process`].
    ReadProcess {
        /// Whose.
        id: ContainerId,
        /// Which.
        pid: u32,
    },
    /// Close a namespace's fd.
    ReleaseNamespace(FdToken),
}

/// What is kept of a runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    pub(crate) runtime: Arc<RuntimeSource>,
    pub(crate) last_up_ms: u64,
    #[serde(skip)]
    pub(crate) up: bool,
    #[serde(skip)]
    pub(crate) streaming: bool,
    #[serde(skip)]
    pub(crate) list: listing::ListState,
    /// What is not running is to be inspected once: a gap in the stream may hide whole runs.
    #[serde(skip)]
    pub(crate) gap: bool,
    /// Every container of the next list is to have its record put again.
    #[serde(skip)]
    pub(crate) refresh: bool,
    /// It has been listed whole in this life of the process.
    #[serde(skip)]
    pub(crate) listed_once: bool,
}

impl Source {
    /// Whether it only lends names to the containers of Docker (cri-dockerd).
    fn is_overlay(&self) -> bool {
        self.runtime.runtime == crate::model::RuntimeType::Cri && &*self.runtime.name == "docker"
    }
}

/// A row of the state with its content.
#[derive(Clone, Debug)]
pub enum Row<'a> {
    /// A container.
    Container(&'a Tracked),
    /// A mapping.
    Namespace(&'a NamespaceRow),
    /// A runtime.
    Source(&'a Source),
}

/// The state as the outbox gives it back.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Containers by id.
    pub containers: BTreeMap<ContainerId, Tracked>,
    /// Mappings by the namespace's number.
    pub namespaces: BTreeMap<u64, NamespaceRow>,
    /// Runtimes.
    pub sources: BTreeMap<SourceId, Source>,
    /// The newest delta.
    pub seq: u64,
    /// The newest resync.
    pub package_seq: u64,
    /// The newest generation of a mapping.
    pub generation: u64,
    /// Whether the epoch's opening has been told to its end.
    pub opened: bool,
}

/// Figures for the status and for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes that a list found and that no event of a stream had told.
    pub missed: u64,
    /// Events that were doubled or too late to matter.
    pub ignored_events: u64,
    /// Mappings that were ended before their linger was over, because too many lingered.
    pub evicted: u64,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Reconciler {
    identity: Identity,
    settings: Settings,
    sources: BTreeMap<SourceId, Source>,
    containers: BTreeMap<ContainerId, Tracked>,
    namespaces: BTreeMap<u64, NamespaceRow>,
    deleted: BTreeMap<ContainerId, u64>,
    deleted_order: VecDeque<ContainerId>,
    /// Containers that wait for time to pass: a repeated inspect, a deletion that is not yet told.
    waiting: BTreeMap<ContainerId, u64>,
    seq: u64,
    package_seq: u64,
    generation: u64,
    opening: Opening,
    next_away_check_ms: u64,
    counters: Counters,
    effects: Vec<Effect>,
    now_ms: u64,
}

/// Whether the epoch's opening has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// `epoch` is still to be sent.
    Unopened,
    /// `epoch` is sent; containers that are found are snapshots, until this moment at the latest.
    Until(u64),
    /// `snapshot_end` is sent.
    Done,
}

impl Reconciler {
    /// A reconciler with the state that was left.
    pub fn new(identity: Identity, settings: Settings, restored: Restored) -> Self {
        Self {
            identity,
            settings,
            sources: restored.sources,
            containers: restored.containers,
            namespaces: restored.namespaces,
            deleted: BTreeMap::new(),
            deleted_order: VecDeque::new(),
            waiting: BTreeMap::new(),
            seq: restored.seq,
            package_seq: restored.package_seq,
            generation: restored.generation,
            opening: if restored.opened {
                Opening::Done
            } else {
                Opening::Unopened
            },
            next_away_check_ms: 0,
            counters: Counters::default(),
            effects: Vec::new(),
            now_ms: 0,
        }
    }

    /// Takes one observation and says what is to be done, in order. `now_ms` is unix time; it may step.
    pub fn handle(&mut self, observation: Observation, now_ms: u64) -> Vec<Effect> {
        self.now_ms = now_ms;
        match observation {
            Observation::Began {
                last_alive_ms,
                owed,
            } => self.begin(last_alive_ms, &owed),
            Observation::SourceUp {
                source,
                runtime,
                streaming,
            } => self.source_up(source, runtime, streaming),
            Observation::SourceDown { source } => self.source_down(&source),
            Observation::SourceForgotten { source } => self.forget_source(&source),
            Observation::StreamGap { source } => self.stream_gap(&source),
            Observation::ListBegan { source } => self.list_began(&source),
            Observation::ListDone { source, outcome } => self.list_done(&source, outcome),
            Observation::Event { source, event } => self.event(&source, event),
            Observation::Inspected {
                source,
                id,
                outcome,
            } => self.inspected(&source, &id, outcome),
            Observation::Process { id, pid, reading } => self.process_read(&id, pid, reading),
            Observation::MappingAcked {
                pns_inode,
                generation,
            } => self.mapping_acked(pns_inode, generation),
            Observation::TombstoneAcked {
                pns_inode,
                generation,
            } => self.tombstone_acked(pns_inode, generation),
            Observation::SnapshotDue => self.snapshot_all(),
            Observation::ResyncDue => self.resync_due(),
            Observation::ListDue { source } => self.list_due(&source),
            Observation::Tick => self.tick(),
        }
        self.close_opening();
        std::mem::take(&mut self.effects)
    }

    /// The newest delta's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The newest resync's number.
    pub fn package_seq(&self) -> u64 {
        self.package_seq
    }

    /// The newest generation of a mapping.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the epoch's opening has been told to its end.
    pub fn opened(&self) -> bool {
        self.opening == Opening::Done
    }

    /// The figures so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What has been told of each container, in the order of ids.
    pub fn tally(&self) -> impl Iterator<Item = (&ContainerId, Fields)> {
        self.containers
            .iter()
            .filter(|(_, tracked)| tracked.is_told())
            .map(|(id, tracked)| (id, tracked.fields()))
    }

    /// The containers that are tracked, told or not.
    pub fn containers(&self) -> impl Iterator<Item = &Tracked> {
        self.containers.values()
    }

    /// The mappings that stand, lingering ones too.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceRow> {
        self.namespaces.values()
    }

    /// The runtimes: id, who, whether it is up, whether it streams.
    pub fn sources(&self) -> impl Iterator<Item = (&SourceId, &RuntimeSource, bool, bool)> {
        self.sources
            .iter()
            .map(|(id, source)| (id, &*source.runtime, source.up, source.streaming))
    }

    /// Whether no list and no inspect is awaited.
    pub fn is_settled(&self) -> bool {
        self.sources.values().all(|source| source.list.is_idle())
            && self
                .containers
                .values()
                .all(|tracked| !tracked.is_awaited())
            && self.waiting.is_empty()
    }

    /// The content of a row; `None` where it is gone.
    pub fn row(&self, key: &RowKey) -> Option<Row<'_>> {
        match key {
            RowKey::Container(id) => self.containers.get(id).map(Row::Container),
            RowKey::Namespace(inode) => self.namespaces.get(inode).map(Row::Namespace),
            RowKey::Source(id) => self.sources.get(id).map(Row::Source),
        }
    }

    fn begin(&mut self, last_alive_ms: u64, owed: &BTreeSet<(u64, u64)>) {
        if self.opening == Opening::Unopened {
            let previous_epoch = self.identity.previous_epoch.clone();
            self.opening = Opening::Until(self.now_ms + OPENING_MS_MAX);
            let delta = self.bare_delta(Op::Epoch);
            self.publish_delta(Delta {
                previous_epoch,
                ..delta
            });
        }
        self.end_earlier_boot(last_alive_ms);
        self.settle_owed(owed);
        let runs: Vec<_> = self
            .containers
            .iter()
            .filter_map(|(id, tracked)| Some((id.clone(), tracked.open_pid()?)))
            .collect();
        for (id, pid) in runs {
            self.effects.push(Effect::ReadProcess { id, pid });
        }
        for tracked in self.containers.values_mut() {
            tracked.last_alive_ms = last_alive_ms;
        }
    }

    fn close_opening(&mut self) {
        let Opening::Until(deadline_ms) = self.opening else {
            return;
        };
        let listed = !self.sources.is_empty()
            && self
                .sources
                .values()
                .all(|source| source.listed_once || !source.up)
            && self.sources.values().any(|source| source.listed_once)
            && self
                .containers
                .values()
                .all(|tracked| !tracked.is_awaited());
        if listed || self.now_ms >= deadline_ms {
            self.opening = Opening::Done;
            let delta = self.bare_delta(Op::SnapshotEnd);
            self.publish_delta(delta);
        }
    }

    fn is_opening(&self) -> bool {
        self.opening != Opening::Done
    }

    fn snapshot_all(&mut self) {
        let told: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, tracked)| tracked.is_told())
            .map(|(id, tracked)| (id.clone(), tracked.fields()))
            .collect();
        for (id, fields) in told {
            let source = self.source_of(&id);
            let delta = self.bare_delta(Op::Snapshot);
            self.publish_delta(Delta {
                source,
                fields: Some(fields),
                ..delta
            });
        }
        let delta = self.bare_delta(Op::SnapshotEnd);
        self.publish_delta(delta);
    }

    fn source_of(&self, id: &ContainerId) -> Option<Arc<RuntimeSource>> {
        let owner = self.containers.get(id)?.owner();
        Some(Arc::clone(&self.sources.get(owner)?.runtime))
    }

    fn bare_delta(&self, op: Op) -> Delta {
        Delta {
            seq: 0,
            op,
            ts_ms: self.now_ms,
            source: None,
            origin: Origin::Resync,
            event_ts_ns: 0,
            fields: None,
            changed: Vec::new(),
            reason: "".into(),
            package_seq: self.package_seq,
            previous_epoch: None,
        }
    }

    fn publish_delta(&mut self, delta: Delta) {
        self.seq += 1;
        let delta = Delta {
            seq: self.seq,
            ..delta
        };
        self.effects
            .push(Effect::Publish(Message::Delta(Box::new(delta))));
    }

    fn publish_record(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        if !tracked.is_told() {
            return;
        }
        tracked.record_put_ms = self.now_ms;
        let message = Message::Record {
            id: id.clone(),
            fields: tracked.fields(),
            package_seq: self.package_seq,
            seq: self.seq,
        };
        self.effects.push(Effect::Publish(message));
    }

    fn tick(&mut self) {
        let due: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, at_ms)| **at_ms <= self.now_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.waiting.remove(&id);
            self.wake(&id);
        }
        while let Some(oldest) = self.deleted_order.front() {
            let at_ms = self.deleted.get(oldest).copied().unwrap_or(0);
            let keep = self.now_ms < at_ms.saturating_add(DELETED_REMEMBERED_MS)
                && self.deleted_order.len() <= DELETED_REMEMBERED_MAX;
            if keep {
                break;
            }
            if let Some(oldest) = self.deleted_order.pop_front() {
                self.deleted.remove(&oldest);
            }
        }
        if self.now_ms >= self.next_away_check_ms {
            self.next_away_check_ms = self.now_ms + AWAY_CHECK_MS;
            self.check_away();
        }
        self.refresh_records();
        self.tick_namespaces();
    }

    fn refresh_records(&mut self) {
        let Some(refresh_ms) = self.settings.records_refresh_ms else {
            return;
        };
        let due: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, tracked)| self.now_ms >= tracked.record_put_ms.saturating_add(refresh_ms))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.publish_record(&id);
        }
    }

    fn remember_deleted(&mut self, id: &ContainerId) {
        if self.deleted.insert(id.clone(), self.now_ms).is_none() {
            self.deleted_order.push_back(id.clone());
        }
    }
}
