//! The sinks against real brokers, started by `tests/lab/lab` in a folder of their own.
//!
//! Without the lab's brokers the tests say what they skip; with `CI=true` they fail instead.

mod admin;
mod amnesia;
mod drive;
mod enrich;
mod enrich_faults;
mod kafka;
mod kafka_faults;
mod lab;
mod latency;
mod lost;
mod nats;
mod nats_faults;
mod secure;
mod topics;
