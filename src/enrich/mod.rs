//! Joins process events with the table of mappings: whoever holds (host, PID namespace) gets the container.
//!
//! - The pure core: [`fields`] says where a format has what; [`event`] reads an event; [`table`] holds the mappings;
//!   `decide` says whose an event is; `waiting` keeps those that came before their mapping; `splice` adds the
//!   object to the event's own bytes; [`joiner`] puts these together. It has no clock, no I/O and no randomness.
//! - The shells: `kafka`, a member of a consumer group, and `nats`, a durable pull consumer. Both fill the whole table before the
//!   first event is taken, and tell the bus that an event is done only when the bus has its output.
//! - `stats` is what they tell of themselves.
//!
//! Invariants: an event is never given to a container that did not have its namespace at its time (give or take two
//! seconds, and never to a newer one what an older one had); no event makes the join stop; what waits is bounded.

pub mod clock;
mod decide;
pub mod event;
pub mod fields;
#[cfg(test)]
mod fuzz;
mod interner;
pub mod joiner;
pub mod kafka;
pub mod nats;
pub mod shell;
mod splice;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod waiting;

pub use splice::Spliced;

pub use decide::{HOST_PNS_INODE, TOLERANCE_MS};
