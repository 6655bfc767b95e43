//! Processes that were read before anything else is known of their containers.
//!
//! containerd tells a pid as soon as there is one; what CRI says of the container comes by another way, and behind an
//! inspect. Such a process is kept, and its namespace held, until the container is known well enough to be named in
//! a mapping: it may be dead by then, and its number still is nobody else's.

use std::collections::BTreeMap;

use super::container::Tracked;
use super::{FdToken, Process, ProcessReading, Reconciler};
use crate::model::{Container, ContainerId};

/// How long a process waits for its container to be known. An inspect of a runtime that starts as many containers as
/// the machine can takes some seconds.
const EARLY_MS: u64 = 10_000;
/// Most processes that wait: each holds an fd. Beyond it the one that came first is let go.
const EARLY_MAX: usize = 256;

/// The processes that wait, by container.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: BTreeMap<ContainerId, Waiting>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiting {
    process: Process,
    /// Its place in the order in which they came.
    arrival: u64,
    /// Until when, by [`Reconciler::uptime_ms`].
    until_ms: u64,
}

impl Early {
    /// The numbers of the namespaces that they hold.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u64> {
        self.waiting
            .values()
            .map(|waiting| waiting.process.pns_inode)
    }

    /// The tokens of the fds that they hold.
    pub(super) fn fds(&self) -> impl Iterator<Item = FdToken> {
        self.waiting
            .values()
            .filter_map(|waiting| waiting.process.fd)
    }
}

impl Reconciler {
    /// Keeps a process of a container that is not known yet. Of one that was deleted it is let go, and so is one whose
    /// namespace is not held: its number may be another's by the time that the container is known.
    pub(super) fn keep_early(&mut self, id: &ContainerId, process: Process) {
        if process.fd.is_none() || self.deleted.contains_key(id) {
            self.release_fd(process.fd);
            return;
        }
        self.drop_early(id);
        let mut oldest = None;
        if self.early.waiting.len() >= EARLY_MAX {
            let in_order = self.early.waiting.iter();
            let first = in_order.min_by_key(|(_, waiting)| waiting.arrival);
            oldest = first.map(|(id, _)| id.clone());
        }
        if let Some(oldest) = oldest {
            self.drop_early(&oldest);
        }
        self.early.arrivals += 1;
        let waiting = Waiting {
            process,
            arrival: self.early.arrivals,
            until_ms: self.uptime_ms + EARLY_MS,
        };
        self.early.waiting.insert(id.clone(), waiting);
    }

    /// Maps the process that waited for a container, which is known by what an event said.
    pub(super) fn take_early(&mut self, id: &ContainerId) {
        let is_known = |tracked: &Tracked| tracked.best_known().is_some();
        if self.containers.get(id).is_some_and(is_known)
            && let Some(waiting) = self.early.waiting.remove(id)
        {
            self.hinted(id, &waiting.process);
        }
    }

    /// The same of a container that an inspect found, before that is told. One that is newer than the process which the
    /// inspect named waits on: the inspect speaks of an earlier run.
    pub(super) fn take_early_found(
        &mut self,
        tracked: &mut Tracked,
        id: &ContainerId,
        found: &Container,
        reading: Option<&ProcessReading>,
    ) {
        let is_earlier_run = |waiting: &Waiting| match reading {
            Some(ProcessReading::Alive(process)) => {
                process.start_ticks < waiting.process.start_ticks
            }
            Some(ProcessReading::Dead | ProcessReading::Denied) | None => false,
        };
        if self.early.waiting.get(id).is_some_and(is_earlier_run) {
            return;
        }
        if let Some(waiting) = self.early.waiting.remove(id) {
            tracked.take_facts(Some(found));
            self.take_hint(tracked, id, &waiting.process);
        }
    }

    /// Lets go of the process that waits for a container.
    pub(super) fn drop_early(&mut self, id: &ContainerId) {
        if let Some(waiting) = self.early.waiting.remove(id) {
            self.release_fd(waiting.process.fd);
        }
    }

    /// Lets go of those that have waited long enough.
    pub(super) fn tick_early(&mut self) {
        let now_ms = self.uptime_ms;
        let is_over = |waiting: &Waiting| waiting.until_ms <= now_ms;
        let over = self.early.waiting.iter().filter(|(_, one)| is_over(one));
        let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
        for id in over {
            self.drop_early(&id);
        }
    }
}
