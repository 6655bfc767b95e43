//! containerd's own API, of every version from 1.6, at the sockets of CRI's and of Docker's containerd.
//!
//! It serves three ends: `hints.rs` and `bundles.rs` learn the pid of a container before its first instruction runs, for
//! CRI and for Docker too; `tasks.rs` gives all pids of a namespace in one call; `client.rs` is the [`RuntimeClient`] for the
//! containers of namespaces that nobody else watches (nerdctl's `default`, those of `ctr`). [`Claims`] says which
//! those are.
//!
//! [`RuntimeClient`]: super::RuntimeClient

mod bundles;
mod client;
#[cfg(test)]
mod fuzz;
mod hints;
mod normalise;
mod pids;
mod state_dir;
mod tasks;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::model::{ContainerId, RuntimeType};
use crate::runtime::Endpoint;

pub use bundles::{BundlesError, folder as bundles_folder};
pub(super) use client::connect;
pub use hints::hints;
pub use pids::EarlyPids;

/// The messages and services of `proto/containerd*.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
pub mod proto {
    /// Events.
    pub mod events {
        tonic::include_proto!("containerd.services.events.v1");
    }
    /// Containers.
    pub mod containers {
        tonic::include_proto!("containerd.services.containers.v1");
    }
    /// Namespaces.
    pub mod namespaces {
        tonic::include_proto!("containerd.services.namespaces.v1");
    }
    /// Tasks.
    pub mod tasks {
        tonic::include_proto!("containerd.services.tasks.v1");
    }
    /// The version.
    pub mod version {
        tonic::include_proto!("containerd.services.version.v1");
    }
}

/// The namespace of CRI's containers.
pub const CRI_NAMESPACE: &str = "k8s.io";
/// The namespace of Docker's containers; with user namespaces, `moby-UID.GID` (moby, `daemon/daemon_unix.go`).
pub const DOCKER_NAMESPACE: &str = "moby";

/// Where Docker's containerd listens: its own, and the system's.
pub const DOCKER_SOCKETS: [&str; 2] = [
    "/run/docker/containerd/containerd.sock",
    "/run/containerd/containerd.sock",
];

/// The sockets of containerd by which the containers of an endpoint have hints. `is_found`: it was discovered, and not
/// named by a person.
pub fn hint_sockets(endpoint: &Endpoint, is_found: bool) -> Vec<PathBuf> {
    match endpoint.runtime {
        RuntimeType::Cri | RuntimeType::Containerd => vec![endpoint.path.clone()],
        RuntimeType::Docker if is_found => {
            let sockets = DOCKER_SOCKETS.map(PathBuf::from).into_iter();
            sockets.filter(|path| path.exists()).collect()
        }
        RuntimeType::Docker => Vec::new(),
    }
}

/// Which namespaces of containerd belong to runtimes that are watched themselves: there containerd only hints.
#[derive(Debug, Default)]
pub struct Claims {
    cri: AtomicBool,
    docker: AtomicBool,
}

impl Claims {
    /// A runtime of this type is watched from now on.
    pub fn add(&self, runtime: RuntimeType) {
        match runtime {
            RuntimeType::Docker => self.docker.store(true, Ordering::Relaxed),
            RuntimeType::Cri => self.cri.store(true, Ordering::Relaxed),
            RuntimeType::Containerd => {}
        }
    }

    /// Whether another runtime tells of a namespace's containers.
    pub fn is_claimed(&self, namespace: &str) -> bool {
        let is_docker = || {
            namespace
                .strip_prefix(DOCKER_NAMESPACE)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        (namespace == CRI_NAMESPACE && self.cri.load(Ordering::Relaxed))
            || (self.docker.load(Ordering::Relaxed) && is_docker())
    }

    /// The name under which a container of a namespace is told: its id alone where it is Docker's or CRI's, else
    /// `<namespace>:<id>`. `None` where that is none.
    fn key(&self, namespace: &[u8], id: &[u8]) -> Option<ContainerId> {
        let (namespace, id) = (utf8(namespace)?, utf8(id)?);
        if self.is_claimed(namespace) {
            ContainerId::parse(id)
        } else {
            own_key(namespace, id)
        }
    }
}

/// The key of a container that is containerd's own.
fn own_key(namespace: &str, id: &str) -> Option<ContainerId> {
    // A colon is the mark between the two, and neither can have one (containerd, `pkg/identifiers`).
    let is_whole = !namespace.is_empty() && !id.is_empty() && !namespace.contains(':');
    is_whole
        .then(|| ContainerId::parse(&format!("{namespace}:{id}")))
        .flatten()
}

/// Namespace and id of such a key.
fn split_key(key: &ContainerId) -> Option<(&str, &str)> {
    key.as_str().split_once(':')
}

fn utf8(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A request to one namespace.
fn in_namespace<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let value = MetadataValue::try_from(namespace)
        .map_err(|_| Status::invalid_argument("a namespace has such a name only by mistake"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}

/// Unix nanoseconds; `None` where there is no such time.
fn unix_ns(seconds: i64, nanos: i32) -> Option<u64> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    let nanos = u64::try_from(nanos).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_belongs_to_docker_or_cri_only_while_they_are_watched() {
        let claims = Claims::default();
        let key = |claims: &Claims, namespace: &[u8]| {
            claims
                .key(namespace, b"web")
                .map(|key| key.as_str().to_owned())
        };
        assert_eq!(key(&claims, b"k8s.io").as_deref(), Some("k8s.io:web"));
        claims.add(RuntimeType::Containerd);
        claims.add(RuntimeType::Docker);
        claims.add(RuntimeType::Cri);
        for (namespace, expected) in [
            (b"k8s.io".as_slice(), Some("web")),
            (b"moby", Some("web")),
            (b"moby-1000.1000", Some("web")),
            (b"mobydick", Some("mobydick:web")),
            (b"default", Some("default:web")),
            (b"a:b", None),
            (b"", None),
            (b"\xff", None),
        ] {
            assert_eq!(key(&claims, namespace).as_deref(), expected);
        }
    }

    #[test]
    fn a_time_before_1970_is_none() {
        assert_eq!(unix_ns(1, 5), Some(1_000_000_005));
        for (seconds, nanos) in [(0, 0), (-62_135_596_800, 0), (5, -1), (i64::MAX, 0)] {
            assert_eq!(unix_ns(seconds, nanos), None);
        }
    }
}
