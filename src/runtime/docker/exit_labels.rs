//! Whose exit codes are not to be believed.
//!
//! dockerd copies a container's labels over the attributes of its events (moby, `LogContainerEventWithAttributes`,
//! `copyAttributes`; seen in 20.10 and 28.5): a label named `exitCode` replaces the exit code that `die` tells.
//! Such a container is recognised by its other events, which have no such attribute of their own, and by the list.
//! Its `die` is then passed on without an exit code; an inspect tells the true one. Podman writes the attribute
//! after the labels.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::{ContainerId, EventKind, RuntimeEvent};

/// The attribute of `die`, and the label that hides it.
pub(super) const EXIT_CODE_ATTRIBUTE: &str = "exitCode";

/// Most containers that are remembered. Nobody names a label so by accident; beyond it codes are believed.
const IDS_MAX: usize = 4 * 1024;

/// The containers with such a label, shared by the calls of one client.
#[derive(Debug, Default)]
pub(super) struct ExitLabels {
    ids: Mutex<BTreeSet<ContainerId>>,
}

impl ExitLabels {
    /// Adds those that a list names.
    pub(super) fn add(&self, ids: Vec<ContainerId>) {
        let mut known = self.lock();
        for id in ids {
            if known.len() < IDS_MAX {
                known.insert(id);
            }
        }
    }

    /// Takes the code from an event that only repeats a label, and learns from it.
    pub(super) fn screen(&self, mut event: RuntimeEvent) -> RuntimeEvent {
        match event.what {
            EventKind::Died => {
                if self.lock().contains(&event.id) {
                    event.exit_code = None;
                }
            }
            EventKind::Deleted => {
                self.lock().remove(&event.id);
                event.exit_code = None;
            }
            EventKind::Created
            | EventKind::Initialized
            | EventKind::Started
            | EventKind::Paused
            | EventKind::Unpaused
            | EventKind::Renamed => {
                if event.exit_code.take().is_some() {
                    self.add(vec![event.id.clone()]);
                }
            }
        }
        event
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
