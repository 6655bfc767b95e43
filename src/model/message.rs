//! What is published: deltas, records, mappings and their tombstones, before any wire format.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::Fields;
use super::{ContainerId, ContainerKind, Pod, RuntimeType};

/// What a delta says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// A container is there.
    Create,
    /// A run of it began.
    Start,
    /// That run ended.
    Stop,
    /// The container is no longer there.
    Delete,
    /// Something else about it changed.
    Update,
    /// A new epoch: readers drop what they hold of this host.
    Epoch,
    /// A container that is there, told anew.
    Snapshot,
    /// All that are there have been told.
    SnapshotEnd,
}

impl Op {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Delete,
        Self::Update,
        Self::Epoch,
        Self::Snapshot,
        Self::SnapshotEnd,
    ];

    /// The word of the delta.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Epoch => "epoch",
            Self::Snapshot => "snapshot",
            Self::SnapshotEnd => "snapshot_end",
        }
    }
}

/// How a change was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An event told it.
    Event,
    /// Comparing told it.
    Resync,
}

impl Origin {
    /// The word of the delta.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Resync => "resync",
        }
    }
}

/// Which runtime told a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeSource {
    /// Its type.
    pub runtime: RuntimeType,
    /// `docker`, `podman`, `containerd`, `cri-o`, …
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// The URI of its socket.
    pub endpoint: Arc<str>,
    /// The user that serves the socket; 0 of one that has not answered yet.
    #[serde(skip)]
    pub uid: u32,
}

/// One change of one host's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Its number in the epoch.
    pub seq: u64,
    /// What happened.
    pub op: Op,
    /// When, in unix milliseconds.
    pub ts_ms: u64,
    /// Who told it; `None` for the ops about the epoch itself.
    pub source: Option<Arc<RuntimeSource>>,
    /// How it was found.
    pub origin: Origin,
    /// The runtime's own time of the event in unix nanoseconds, 0 where there is none.
    pub event_ts_ns: u64,
    /// The container afterwards (of a delete: as it last was).
    pub fields: Option<Fields>,
    /// The fields that changed, with their earlier values.
    pub changed: Vec<(&'static str, Box<str>)>,
    /// Why, where the runtime tells.
    pub reason: Box<str>,
    /// The resync that the container's fields belong to.
    pub package_seq: u64,
    /// The epoch before, of an `epoch` delta.
    pub previous_epoch: Option<Arc<str>>,
}

/// One container in a PID namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub container_id: ContainerId,
    /// Its name.
    pub container_name: Box<str>,
    /// Container or sandbox.
    pub kind: ContainerKind,
    /// Its type of runtime.
    pub runtime: RuntimeType,
    /// Its image's name.
    pub image_name: Box<str>,
    /// Its pod.
    pub pod: Option<Pod>,
    /// Its init process, in the host's PID namespace.
    pub pid: u32,
    /// The start time of that process in clock ticks since boot.
    pub start_ticks: u64,
    /// The same in unix milliseconds.
    pub started_at_ms: u64,
    /// The number of its mount namespace; 0 where it could not be read.
    pub mnt_ns: u64,
    /// Its cgroup's path.
    pub cgroup: Box<str>,
    /// Whether that process is pid 1 of the namespace.
    pub is_init: bool,
}

/// One PID namespace and its containers, as it is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The namespace's number.
    pub pns_inode: u64,
    /// The kernel's id of it, never reused; `None` on kernels without it.
    pub pns_id: Option<u64>,
    /// Tells namespaces of the same number apart, on this host, in this epoch.
    pub generation: u64,
    /// The boot in which it lives.
    pub boot_id: Arc<str>,
    /// The start of its first known process, less one clock tick, in unix milliseconds.
    pub valid_from_ms: u64,
    /// When it ended; `None` while it lives.
    pub valid_to_ms: Option<u64>,
    /// The container that the mapping names.
    pub owner: Member,
    /// All its containers, by id.
    pub members: Vec<Member>,
    /// Whether it lies below the PID namespace of its container, and is not that one itself.
    #[serde(skip)]
    pub nested: bool,
    /// The newest delta when this was put.
    pub seq: u64,
}

/// One thing that is owed to the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A change.
    Delta(Box<Delta>),
    /// The state of a container.
    Record {
        /// Which.
        id: ContainerId,
        /// Its fields.
        fields: Fields,
        /// The resync it belongs to.
        package_seq: u64,
        /// The newest delta.
        seq: u64,
    },
    /// A container's record goes.
    RecordTombstone {
        /// Which.
        id: ContainerId,
    },
    /// A namespace and its containers.
    Mapping {
        /// What is put.
        mapping: Box<Mapping>,
        /// Whether this only renews what was put before.
        refresh: bool,
    },
    /// A namespace's mapping goes.
    MappingTombstone {
        /// Its number.
        pns_inode: u64,
        /// Which namespace of that number.
        generation: u64,
    },
}
