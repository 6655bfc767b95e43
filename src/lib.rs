//! Quaymaster keeps the tally of every container on a Linux host and streams it to Kafka or NATS.

pub mod backoff;
pub mod cli;
pub mod model;
pub mod runtime;
pub mod sink;
