//! CRI v1: containerd, CRI-O, cri-dockerd, over gRPC on a unix socket.
//!
//! The `.proto` is the subset that is used; foreign text is bytes in it (see its head).
//!
//! Seen of the real CRI-O 1.34.0 (`tests/e2e/crio.rs`), where it differs from containerd:
//!
//! - a created container's status has its pid, so that an inspect at CREATED maps it before it starts; the pid stays after the
//!   exit;
//! - STOPPED may precede STARTED, and a container that never started has one too, with exit code 2 and a start before 1970 (Go's
//!   zero time);
//! - a sandbox has STARTED and STOPPED, no CREATED and no DELETED (`removals.rs`), and a process of its own only where its
//!   containers share a PID namespace; else its verbose info has a `runtimeSpec` and nothing more;
//! - without `enable_pod_events` the event stream ends at once, and with it begins with old events (`events.rs`).
//!
//! Of cri-dockerd 0.4.0 (`tests/e2e/cri_dockerd.rs`): it has no events; a container's info is `sandboxID` and `pid`, a sandbox's is
//! empty; times that are not set are before 1970 as well; it calls itself `docker`, with dockerd's version.

mod client;
mod events;
#[cfg(test)]
mod fuzz;
mod info;
mod normalise;
mod pods;
mod removals;

pub(super) use client::{ServerSaid, connect, failed};

/// The messages and services of `proto/cri.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("runtime.v1");
}
