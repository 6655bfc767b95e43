//! CRI v1: containerd, CRI-O, cri-dockerd, over gRPC on a unix socket.
//!
//! The `.proto` is the subset that is used; foreign text is bytes in it (see its head).

mod client;
mod events;
#[cfg(test)]
mod fuzz;
mod info;
mod normalise;
mod pods;

pub(super) use client::{ServerSaid, connect};

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
