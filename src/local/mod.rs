//! What is on this host besides containers, and whose it is: processes, listening sockets, PID namespaces.
//!
//! - [`scan`] reads the process table, [`ports`] the sockets, [`nsfs`] the parents of namespaces: I/O, bounded, and
//!   blocking. What asks them from a task uses a blocking thread.
//! - [`nested`] finds the PID namespaces below those of containers, for the collector.
//! - [`tenants`] says which container something belongs to: pure.
//! - [`periodic`] sends the processes again and again.
//!
//! Absences: no environment of a process is ever read; nothing here is stored, and nothing of it passes through the
//! outbox. A snapshot that cannot be sent is counted and forgotten: the next one says it all again.

pub mod nested;
pub mod nsfs;
pub mod periodic;
pub mod ports;
pub mod scan;
pub mod tenants;
