//! Docker Engine, and Podman through the same API.
//!
//! `bollard` runs commands (exec). Lists, inspects and events go over the same transport with our own wire
//! structs, for three reasons: bollard's typed models fail a whole list for one odd field of one row; its
//! event stream does not tell when the server has accepted it; and it has no limit on an answer's length.

mod client;
mod events;
mod exit_labels;
#[cfg(test)]
mod fuzz;
mod http;
mod normalise;
mod wire;

pub(super) use client::connect;
