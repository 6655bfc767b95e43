//! The words of the domain: what a container is, which runtime knows it, and what a message is for.
//!
//! Nothing here knows a wire format: `wire/` renders messages, `outbox/` stores rows. The serde derives are
//! for the rows that the outbox keeps, in its own versioned encoding.

pub mod message;
pub mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a container: 64 hex digits for Docker and CRI, `<namespace>:<id>` for containerd's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(Arc<str>);

/// Longest container id that is taken from a runtime, in bytes. Real ones have 64; containerd's own allow 76
/// and a namespace before it.
pub const CONTAINER_ID_BYTES_MAX: usize = 256;

impl ContainerId {
    /// Takes an id as a runtime gives it; `None` where it is empty, too long, or has characters that no
    /// runtime uses in an id (they would end up in keys and subjects).
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty()
            && text.len() <= CONTAINER_ID_BYTES_MAX
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':'));
        fits.then(|| Self(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id's text, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one endpoint of one runtime for as long as the state lives: its kind and address, as in
/// `docker=unix:///run/docker.sock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceId(Arc<str>);

impl SourceId {
    /// Takes the text of an endpoint.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text of the endpoint.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The type of runtime, as the record's `runtime` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuntimeType {
    /// Docker Engine, and Podman through the same API.
    Docker,
    /// A CRI v1 server.
    Cri,
    /// A containerd namespace that nobody else watches.
    Containerd,
}

impl RuntimeType {
    /// The word of the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Cri => "cri",
            Self::Containerd => "containerd",
        }
    }
}

impl fmt::Display for RuntimeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a container is one that a person asked for, or a pod's infrastructure (pause) container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ContainerKind {
    /// An ordinary container.
    Container,
    /// A pod's sandbox.
    Sandbox,
}

impl ContainerKind {
    /// The word of the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Sandbox => "sandbox",
        }
    }
}

/// The state of a container: Docker's words, of which CRI's four are a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// Made, never started (or, in CRI, not yet).
    Created,
    /// Its init process lives.
    Running,
    /// Its init process lives, frozen.
    Paused,
    /// Between two runs, by its restart policy.
    Restarting,
    /// On its way out.
    Removing,
    /// Its init process has ended.
    Exited,
    /// Could not be removed whole.
    Dead,
    /// The runtime itself does not know, or said a word that we do not.
    Unknown,
}

impl State {
    /// The word of the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }

    /// Whether an init process lives in this state.
    pub fn is_live(self) -> bool {
        match self {
            Self::Running | Self::Paused => true,
            Self::Created
            | Self::Restarting
            | Self::Removing
            | Self::Exited
            | Self::Dead
            | Self::Unknown => false,
        }
    }
}

/// The pod that a container belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.name` of the pod.
    pub name: String,
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// The id of its sandbox.
    pub sandbox_id: String,
}

/// What a runtime says of one container at one moment, normalised. Times are unix nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The whole id.
    pub id: ContainerId,
    /// The name, without a leading `/`.
    pub name: String,
    /// Container or sandbox.
    pub kind: ContainerKind,
    /// The type of runtime.
    pub runtime: RuntimeType,
    /// `docker`, `podman`, `containerd`, `cri-o`, …
    pub runtime_name: Arc<str>,
    /// The runtime's version text.
    pub runtime_version: Arc<str>,
    /// The state.
    pub state: State,
    /// The bare digest of the image's configuration, without `sha256:`.
    pub image_id: String,
    /// The image's name as a person gave it.
    pub image_name: String,
    /// The repository digest (`repo@sha256:…`) where the runtime tells it.
    pub image_digest: String,
    /// The init process in the host's PID namespace, as the runtime says; `None` for 0.
    pub pid: Option<u32>,
    /// When it was created.
    pub created_at_ns: u64,
    /// When its newest run started; `None` before the first.
    pub started_at_ns: Option<u64>,
    /// When its newest run that has ended ended.
    pub finished_at_ns: Option<u64>,
    /// The exit code of the newest run, only where that run has ended.
    pub exit_code: Option<i32>,
    /// Whether the kernel's OOM killer ended it, where the runtime tells.
    pub oom_killed: Option<bool>,
    /// How often it was restarted: Docker's RestartCount, CRI's `metadata.attempt`.
    pub restart_count: Option<u32>,
    /// Its pod.
    pub pod: Option<Pod>,
    /// The PID mode: `""` (own), `host`, `container:<id>`; CRI: `pod`, `node`, `target` for shared ones.
    pub pid_mode: String,
    /// Whether it is privileged, where the runtime tells.
    pub privileged: Option<bool>,
    /// Why it ended or waits, in the runtime's words (`OOMKilled`, `Error`, …).
    pub reason: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Container {
    /// One that is created, and of which nothing else is known.
    pub fn bare(id: ContainerId, kind: ContainerKind, runtime: RuntimeType) -> Self {
        Self {
            id,
            name: String::new(),
            kind,
            runtime,
            runtime_name: "".into(),
            runtime_version: "".into(),
            state: State::Created,
            image_id: String::new(),
            image_name: String::new(),
            image_digest: String::new(),
            pid: None,
            created_at_ns: 0,
            started_at_ns: None,
            finished_at_ns: None,
            exit_code: None,
            oom_killed: None,
            restart_count: None,
            pod: None,
            pid_mode: String::new(),
            privileged: None,
            reason: String::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// One row of a runtime's list: just what tells whether an inspect is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRow {
    /// The whole id.
    pub id: ContainerId,
    /// Container or sandbox.
    pub kind: ContainerKind,
    /// The state as the list says it.
    pub state: State,
    /// A hash of all that the row says and that time alone does not change (no `Up 5 minutes`).
    pub fingerprint: u64,
}

/// What a runtime's stream tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// It exists now.
    Created,
    /// Its init process is there and waits (Podman's `init`).
    Initialized,
    /// Its init process runs.
    Started,
    /// It was frozen.
    Paused,
    /// It was thawed.
    Unpaused,
    /// It has another name.
    Renamed,
    /// Its init process has ended.
    Died,
    /// It is no longer there.
    Deleted,
}

/// One event of a runtime's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// The container.
    pub id: ContainerId,
    /// Container or sandbox.
    pub kind: ContainerKind,
    /// What happened.
    pub what: EventKind,
    /// When, by the runtime's clock, in unix nanoseconds; 0 where it does not say.
    pub at_ns: u64,
    /// The exit code, of `Died` where the runtime tells it.
    pub exit_code: Option<i32>,
    /// What the event itself carried of the container (CRI: the status, without a pid; Docker: name, image
    /// and labels are too little, `None`).
    pub facts: Option<Box<Container>>,
}

/// Which of the published streams a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// Changes, in order, of one host.
    Deltas,
    /// The newest record of each container, compacted.
    Records,
    /// The newest mapping of each PID namespace, compacted.
    Pns,
    /// The collector's own state, compacted.
    Status,
    /// The host's processes, in snapshots.
    Processes,
    /// The host's listening sockets, in snapshots.
    Ports,
}

impl Topic {
    /// Those that every collector fills, in the order in which they are created. Snapshots have theirs only where
    /// they are asked for.
    pub const ALL: [Self; 4] = [Self::Deltas, Self::Records, Self::Pns, Self::Status];

    /// The last word of the topic's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deltas => "deltas",
            Self::Records => "records",
            Self::Pns => "pns",
            Self::Status => "status",
            Self::Processes => "processes",
            Self::Ports => "ports",
        }
    }
}
