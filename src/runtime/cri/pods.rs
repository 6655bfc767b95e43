//! What a list said, kept for inspects: a ContainerStatus names neither its sandbox nor its pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{ContainerId, Pod};

/// Most sandboxes and most containers that are kept; a host has at most some thousand. Beyond it nothing is
/// added: the runtime is asked instead.
const ENTRIES_MAX: usize = 16 * 1024;

/// What a list row of a container says that its status may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListFacts {
    pub(super) sandbox_id: Option<ContainerId>,
    pub(super) image_name: String,
    pub(super) image_id: String,
}

/// Replaced by each list, grown by events and inspects in between.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) sandboxes: HashMap<ContainerId, Arc<Pod>>,
    pub(super) containers: HashMap<ContainerId, ListFacts>,
}

/// [`Known`], shared by the calls of one client. Its lock is never held over an await.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: Mutex<Known>,
}

impl Pods {
    pub(super) fn replace(&self, known: Known) {
        *self.lock() = known;
    }

    pub(super) fn remember_sandbox(&self, id: ContainerId, pod: Pod) {
        let mut known = self.lock();
        if known.sandboxes.len() < ENTRIES_MAX || known.sandboxes.contains_key(&id) {
            known.sandboxes.insert(id, Arc::new(pod));
        }
    }

    pub(super) fn pod_of_sandbox(&self, id: &ContainerId) -> Option<Arc<Pod>> {
        self.lock().sandboxes.get(id).cloned()
    }

    pub(super) fn is_sandbox(&self, id: &ContainerId) -> bool {
        self.lock().sandboxes.contains_key(id)
    }

    pub(super) fn facts_of(&self, id: &ContainerId) -> ListFacts {
        self.lock().containers.get(id).cloned().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
