//! What sketches lack: the whole of each container that was told by one is asked for when everything else is told.
//!
//! At an epoch's opening every mapping is wanted at once, and an inspect of each container costs its runtime more than
//! all else. So the containers that a sketch told are held here until no runtime has anything more to tell, or for some
//! seconds at most: one that hangs is not to keep the others' containers incomplete. A few are asked for at a time, so
//! that an event's inspect never waits behind hundreds of them.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::model::{ContainerId, SourceId};

/// Inspects of sketched containers that are under way at once.
const FILLS_MAX: usize = 4;
/// How long they wait for other runtimes to be listed.
const HELD_MS_MAX: u64 = 2_000;

/// The containers of which only a sketch was told.
#[derive(Debug, Default)]
pub(super) struct Fills {
    held: BTreeSet<ContainerId>,
    /// The whole of these was asked for.
    under_way: BTreeSet<ContainerId>,
    /// Until when they are held at most.
    until_ms: u64,
}

impl Fills {
    /// Whether none is known by a sketch alone.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.under_way.is_empty()
    }

    pub(super) fn is_under_way(&self, id: &ContainerId) -> bool {
        self.under_way.contains(id)
    }

    /// A container was told by a sketch.
    pub(super) fn hold(&mut self, id: &ContainerId, now_ms: u64) {
        if self.held.is_empty() {
            self.until_ms = now_ms + HELD_MS_MAX;
        }
        self.held.insert(id.clone());
    }

    /// A container is known whole, or not there any more.
    pub(super) fn forget(&mut self, id: &ContainerId) {
        self.held.remove(id);
        self.under_way.remove(id);
    }
}

impl Reconciler {
    /// Asks for the whole of a few sketched containers, once everything is told.
    pub(super) fn ask_fills(&mut self) {
        if self.fills.is_empty() {
            return;
        }
        let containers = &self.containers;
        let is_asked = |id: &ContainerId| {
            let tracked = containers.get(id);
            tracked.is_some_and(super::Tracked::is_awaited)
        };
        self.fills.under_way.retain(is_asked);
        let is_due = self.uptime_ms >= self.fills.until_ms || self.is_all_told();
        while is_due && self.fills.under_way.len() < FILLS_MAX {
            let Some(id) = self.fills.held.pop_first() else {
                return;
            };
            // An event may have asked already, or told its deletion.
            if !self.containers.contains_key(&id) {
                continue;
            }
            self.ask(&id);
            self.fills.under_way.insert(id);
        }
    }

    /// A runtime went away: the next list asks for what its sketches lack.
    pub(super) fn lose_fills(&mut self, source: &SourceId) {
        let containers = &self.containers;
        let is_kept = |id: &ContainerId| {
            let tracked = containers.get(id);
            tracked.is_some_and(|tracked| tracked.owner != *source)
        };
        self.fills.held.retain(is_kept);
        self.fills.under_way.retain(is_kept);
    }
}
