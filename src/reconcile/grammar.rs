//! The grammar: what comes in, what is to be done, and what is given and taken at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::container::Tracked;
use super::listing::Source;
use super::namespace::NamespaceRow;
use super::nested::{MappingKey, NestedLook, NestedQuery};
use crate::model::message::{Message, RuntimeSource};
use crate::model::{Container, ContainerId, ContainerKind, ListRow, RuntimeEvent, SourceId};

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
    /// Whether PID namespaces below those of containers are mapped.
    pub nested: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linger_ms: 10 * 60 * 1_000,
            held_max: 4_096,
            pns_refresh_ms: 60 * 60 * 1_000,
            records_refresh_ms: None,
            forget_after_ms: 24 * 60 * 60 * 1_000,
            nested: true,
        }
    }
}

/// Names an open namespace fd that the collector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdToken(pub u64);

/// What is known of a process whose namespace is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its start, in clock ticks since boot.
    pub start_ticks: u64,
    /// The fd on its namespace.
    pub fd: FdToken,
}

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
    /// It may live, but may not be read, or cannot be for want of files or memory.
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
    /// What can be known of a container that runs without asking about it alone: its list row, and its process.
    /// When it started and such is not in it; the whole is asked for next.
    Sketched {
        /// As the list says.
        container: Box<Container>,
        /// As the process table says.
        process: ProcessReading,
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
    /// A runtime is watched from now on; an epoch's opening waits for its first list, or for its absence.
    SourceExpected {
        /// Which.
        source: SourceId,
    },
    /// A runtime answers, and its stream, if it has one, is subscribed to.
    SourceUp {
        /// Which.
        source: SourceId,
        /// Who answers.
        runtime: RuntimeSource,
        /// Whether it has a stream.
        streaming: bool,
        /// Whether a list that began after its subscription is told next; else one is to be asked for.
        is_listing: bool,
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
    /// A hint of a runtime that another user than root serves: what another user's runtime told is none of its business.
    ProcessOf {
        /// The user.
        uid: u32,
        /// Which container.
        id: ContainerId,
        /// Which pid.
        pid: u32,
        /// What was read.
        reading: ProcessReading,
    },
    /// The look that [`Effect::FindNested`] asked for.
    NestedLooked {
        /// What it found.
        look: Box<NestedLook>,
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
    /// The bus lost what it had: every record and mapping is to be put again.
    StateDue,
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
    /// The row changed; [`Reconciler::row`](super::Reconciler::row) gives it, or nothing where it is to be forgotten.
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
        /// Whether [`InspectOutcome::Sketched`] will do for now.
        may_sketch: bool,
    },
    /// Look at a process, and answer with [`Observation::Process`].
    ReadProcess {
        /// Whose.
        id: ContainerId,
        /// Which.
        pid: u32,
    },
    /// Look at all processes, away from here, for PID namespaces below those of containers, and answer with
    /// [`Observation::NestedLooked`]. It may be left out: the next resync asks again.
    FindNested(Box<NestedQuery>),
    /// Close a namespace's fd.
    ReleaseNamespace(FdToken),
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

impl Restored {
    /// Whether this very mapping is of this boot, has no fd, and would hold one.
    pub fn lacks_fd(&self, mapping: MappingKey, boot_id: &str) -> bool {
        self.namespaces.get(&mapping.pns_inode).is_some_and(|row| {
            row.fd.is_none() && row.key() == mapping && &*row.mapping.boot_id == boot_id
        })
    }

    /// Gives a mapping the fd that was held for it meanwhile.
    pub fn give_fd(&mut self, mapping: MappingKey, fd: FdToken) {
        let row = self.namespaces.get_mut(&mapping.pns_inode);
        if let Some(row) = row.filter(|row| row.key() == mapping) {
            row.fd = Some(fd);
        }
    }
}

/// Figures for the status and for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes that a list found and that no event of a stream had told.
    pub missed: u64,
    /// Events that were doubled or too late to matter.
    pub ignored_events: u64,
    /// Namespaces that were let go before their tombstone was acknowledged, because too many were held.
    pub evicted: u64,
    /// Nested namespaces that were left out, at all looks, because too many were mapped.
    pub nested_skipped: u64,
    /// Processes that might not be read, at all looks for nested namespaces.
    pub nested_denied: u64,
}
