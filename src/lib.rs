//! Quaymaster keeps the tally of every container on a Linux host and streams it to Kafka or NATS.

pub mod backoff;
pub mod cli;
pub mod collector;
pub mod config;
pub mod enrich;
pub mod fdstore;
#[cfg(test)]
mod fuzzing;
mod halves;
pub mod heartbeat;
pub mod host;
pub mod http;
pub mod local;
pub mod memory;
pub mod model;
pub mod notify;
pub mod outbox;
pub mod privileges;
pub mod procfs;
pub mod reconcile;
pub mod runtime;
pub mod sink;
pub mod telemetry;
pub mod wire;
