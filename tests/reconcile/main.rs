//! The reconciler against a model of the world: containers with real lives, processes, namespaces whose numbers
//! are handed out again, runtimes that answer late, lose events and fail, and a bus that acknowledges later.
//!
//! `world.rs` is the truth, `shell.rs` answers effects as the collector does, `check.rs` holds the invariants by
//! name, `histories.rs` generates, `cases.rs`, `lists.rs`, `mappings.rs`, `nested.rs` and `sketches.rs` are the cases of the
//! contract written out, `speed.rs` measures, `purity.rs` reads the source.

mod cases;
mod check;
mod histories;
mod lists;
mod mappings;
mod nested;
mod purity;
mod script;
mod shell;
mod sketches;
mod speed;
mod world;
