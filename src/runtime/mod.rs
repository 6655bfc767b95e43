//! The adapters to the runtimes: one trait, one folder for each protocol.
//!
//! `client.rs` of each does the I/O, `normalise.rs` is pure. What a runtime sends is optional until proved:
//! a row or an event that cannot be understood is counted and skipped, never a panic.

pub mod containerd;
pub mod cri;
pub mod discover;
pub mod docker;
mod endpoint;
mod first_list;
pub mod kubernetes;
mod lenient;
mod probe;
pub mod text;
pub mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::model::{
    Container, ContainerId, ContainerKind, ListRow, RuntimeEvent, RuntimeType, SourceId, State,
};

pub use endpoint::{ParseEndpointError, SOCKET_PATH_BYTES_MAX};

/// Time to connect to an endpoint.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for an endpoint's version, and for a sign of life. Podman runs `conmon` and its OCI runtime for each answer,
/// which takes more than a second on a busy machine.
pub const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a list or an inspect before the runtime counts as hung.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer that is taken from a runtime. containerd's own limit is 16 MiB; a list of some thousand
/// containers passes tonic's default of 4.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How to talk to runtimes; the defaults are right but for tests and for those who know better.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for the version, and for a sign of life.
    pub version_timeout: Duration,
    /// Time for a list or an inspect.
    pub request_timeout: Duration,
    /// Longest answer that is taken.
    pub message_bytes_max: usize,
    /// Whether to subscribe to the CRI events of containerd 1.7, which hands each event to one subscriber
    /// only: a second reader steals kubelet's (containerd 1.7, `pkg/cri/server/container_events.go`).
    pub containerd_1_7_events: bool,
    /// Which namespaces of containerd belong to others; shared by all connections of a process.
    pub claims: Arc<containerd::Claims>,
    /// Pids that are learned ahead of a start; shared by all readers of a process.
    pub pids: Arc<containerd::EarlyPids>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            version_timeout: VERSION_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
            message_bytes_max: MESSAGE_BYTES_MAX,
            containerd_1_7_events: false,
            claims: Arc::default(),
            pids: Arc::default(),
        }
    }
}

/// Connects to a runtime with the default [`Options`].
///
/// # Errors
/// As [`connect_with`].
pub async fn connect(endpoint: &Endpoint) -> Result<Arc<dyn RuntimeClient>, RuntimeError> {
    connect_with(endpoint, &Options::default()).await
}

/// Looks at the socket, connects, and asks for the version. Dropping the future leaves nothing behind.
///
/// # Errors
/// [`RuntimeError::NotThere`], [`RuntimeError::NotASocket`] and [`RuntimeError::NoPermission`] for what is wrong
/// with the path; [`RuntimeError::Timeout`] when connecting takes longer than `connect_timeout`, or the version longer
/// than `version_timeout`;
/// [`RuntimeError::NotARuntime`] when something else answers there; [`RuntimeError::Connect`] for all else.
pub async fn connect_with(
    endpoint: &Endpoint,
    options: &Options,
) -> Result<Arc<dyn RuntimeClient>, RuntimeError> {
    let probe = probe::probe(endpoint, options.connect_timeout).await?;
    let connecting = async {
        match endpoint.runtime {
            RuntimeType::Docker => docker::connect(endpoint, probe, options).await,
            RuntimeType::Cri => cri::connect(endpoint, probe, options).await,
            RuntimeType::Containerd => containerd::connect(endpoint, probe, options).await,
        }
    };
    match tokio::time::timeout(options.version_timeout, connecting).await {
        Ok(result) => result,
        Err(_) => Err(RuntimeError::Timeout {
            endpoint: endpoint.uri(),
            request: "version",
            timeout: options.version_timeout,
        }),
    }
}

/// One socket of one runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Which protocol it speaks.
    pub runtime: RuntimeType,
    /// The unix socket.
    pub path: PathBuf,
}

impl Endpoint {
    /// The address as a URI: `unix:///run/docker.sock`.
    pub fn uri(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// The name under which the state knows it.
    pub fn source_id(&self) -> SourceId {
        SourceId::new(&format!("{}={}", self.runtime, self.uri()))
    }
}

/// Who answers at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Where.
    pub endpoint: Endpoint,
    /// `docker`, `podman`, `containerd`, `cri-o`, …; for cri-dockerd, as it says itself, `docker`.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// The user that serves the socket (SO_PEERCRED).
    pub peer_uid: u32,
    /// Device and inode of the socket: the same socket reached by two paths counts once.
    pub socket: (u64, u64),
}

/// A whole list, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// What was understood.
    pub rows: Vec<ListRow>,
    /// Rows that could not be understood. A list with such rows is partial: it deletes nothing.
    pub skipped: usize,
}

/// The answer to an inspect.
#[derive(Clone, Debug)]
pub enum Inspection {
    /// It is there.
    Found(Box<Container>),
    /// The runtime does not know it.
    Gone,
}

/// How a command in a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecStatus {
    /// The command's exit code.
    pub exit_code: i32,
}

/// Where a command's output goes while it runs (CRI gives it only at the end).
pub trait ExecOutput: Send {
    /// Takes a piece of stdout.
    ///
    /// # Errors
    /// When it cannot be written on.
    fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    /// Takes a piece of stderr.
    ///
    /// # Errors
    /// When it cannot be written on.
    fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()>;
}

/// The events of one runtime, in the order of their arrival. It ends when the runtime ends it.
///
/// [`RuntimeError::Malformed`] stands in the place of an event that could not be understood: it is lost, a
/// resync is due, and the stream goes on. Any other error is the last item.
pub type EventStream = BoxStream<'static, Result<RuntimeEvent, RuntimeError>>;

/// A connection to one runtime. All calls may be made at once; each may be dropped midway.
#[async_trait]
pub trait RuntimeClient: Send + Sync + 'static {
    /// Who answers.
    fn info(&self) -> &RuntimeInfo;

    /// Asks for the smallest sign of life.
    ///
    /// # Errors
    /// When the runtime does not answer within [`CONNECT_TIMEOUT`].
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// Lists every container and sandbox, running or not.
    ///
    /// # Errors
    /// When the runtime does not answer, or not in its protocol; [`RuntimeError::TooLong`] says nothing against it.
    async fn list(&self) -> Result<Listing, RuntimeError>;

    /// Asks for everything about one container.
    ///
    /// # Errors
    /// When the runtime does not answer; that it does not know the container is no error.
    async fn inspect(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError>;

    /// Tells of containers that run what the rows of the first list say, without asking anything: state, names,
    /// image, pod, labels, but neither a pid, nor when it started, nor its PID mode. What is not in the answer is to
    /// be inspected; there is one answer for each connection.
    fn sketch(&self, _ids: &BTreeSet<ContainerId>) -> Vec<Container> {
        Vec::new()
    }

    /// Subscribes to the runtime's events. When this returns, what happens from now on is in the stream.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] where the runtime has no such stream.
    async fn subscribe(&self) -> Result<EventStream, RuntimeError>;

    /// Runs a command in a container and waits for its end.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] when `timeout` passes; else what the runtime says.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
        output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError>;

    /// Lets the connection go.
    async fn close(&self);
}

/// What went wrong with a runtime. `Display` leaves the source out.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The socket is not there.
    #[error("no socket at `{endpoint}`")]
    NotThere {
        /// Its URI.
        endpoint: String,
    },
    /// The path is something else than a unix socket.
    #[error("`{endpoint}` is not a unix socket")]
    NotASocket {
        /// Its URI.
        endpoint: String,
    },
    /// We may not connect.
    #[error(
        "no permission to connect to `{endpoint}`: run as root or as a member of the socket's group"
    )]
    NoPermission {
        /// Its URI.
        endpoint: String,
    },
    /// Connecting or asking for the version failed.
    #[error("failed to connect to `{endpoint}`")]
    Connect {
        /// Its URI.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something answers that is not such a runtime.
    #[error("`{endpoint}` does not answer as a {expected} runtime")]
    NotARuntime {
        /// Its URI.
        endpoint: String,
        /// `docker`, `cri` or `containerd`.
        expected: RuntimeType,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A request took too long.
    #[error("`{endpoint}` did not answer `{request}` within {} ms", timeout.as_millis())]
    Timeout {
        /// Its URI.
        endpoint: String,
        /// What was asked.
        request: &'static str,
        /// How long we waited.
        timeout: Duration,
    },
    /// A request failed.
    #[error("`{endpoint}` failed to answer `{request}`")]
    Request {
        /// Its URI.
        endpoint: String,
        /// What was asked.
        request: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer is longer than what we take, or than what the runtime itself may send. The connection is well.
    #[error(
        "the answer of `{endpoint}` to `{request}` is too long to be taken: remove containers that have ended, or labels"
    )]
    TooLong {
        /// Its URI.
        endpoint: String,
        /// What was asked.
        request: &'static str,
        /// How long it is, and what the limit is.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of an answer could not be understood; the rest goes on.
    #[error("`{endpoint}` sent something malformed in `{request}`")]
    Malformed {
        /// Its URI.
        endpoint: String,
        /// What was asked.
        request: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime has no such feature.
    #[error("`{endpoint}` does not support `{request}`")]
    Unsupported {
        /// Its URI.
        endpoint: String,
        /// What was asked.
        request: &'static str,
    },
    /// There is no such container.
    #[error("`{endpoint}` knows no container `{id}`")]
    NoSuchContainer {
        /// Its URI.
        endpoint: String,
        /// Which.
        id: String,
    },
}

/// When the newest run that has ended ended, in unix nanoseconds.
///
/// Runtimes take the start's time after the process has started, and the end's from the event of its exit: what
/// lives for less than that ends before it starts (by up to 3 ms, seen in Docker 20.10 and containerd 2.1). Of a
/// container that does not run, the end is that of its newest run, so it cannot lie before its start. One that
/// runs may have ended before: that time stays.
fn run_end(state: State, started_at_ns: Option<u64>, finished_at_ns: Option<u64>) -> Option<u64> {
    match state {
        State::Exited | State::Dead | State::Removing | State::Restarting => {
            finished_at_ns.map(|end| end.max(started_at_ns.unwrap_or(0)))
        }
        State::Created | State::Running | State::Paused | State::Unknown => finished_at_ns,
    }
}
