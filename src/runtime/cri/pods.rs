//! What a list said, kept for inspects: a ContainerStatus names neither its sandbox nor its pod.

use std::collections::{BTreeSet, HashMap};
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
    /// The sandboxes that are stopped, and not known to be removed.
    pub(super) stopped: BTreeSet<ContainerId>,
    /// Those of them that an event told since the newest list.
    stopped_since: BTreeSet<ContainerId>,
}

/// [`Known`], shared by the calls of one client. Its lock is never held over an await.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: Mutex<Known>,
}

impl Pods {
    /// A sandbox that stopped since the list was asked for stays stopped, and one that the list does not have, with its
    /// containers, too: it may have been made after the list.
    pub(super) fn replace(&self, mut listed: Known) {
        let mut known = self.lock();
        let earlier = std::mem::take(&mut *known);
        let stopped = earlier.stopped.into_iter();
        listed
            .stopped
            .extend(stopped.filter(|id| listed.sandboxes.contains_key(id)));
        for (id, facts) in earlier.containers {
            let sandbox_id = facts.sandbox_id.as_ref();
            if sandbox_id.is_some_and(|id| earlier.stopped_since.contains(id)) {
                listed.containers.entry(id).or_insert(facts);
            }
        }
        listed.stopped.extend(earlier.stopped_since);
        *known = listed;
    }

    pub(super) fn remember_stopped(&self, id: ContainerId) {
        let mut known = self.lock();
        if known.stopped.len() < ENTRIES_MAX {
            known.stopped.insert(id.clone());
            known.stopped_since.insert(id);
        }
    }

    pub(super) fn stopped(&self) -> BTreeSet<ContainerId> {
        self.lock().stopped.clone()
    }

    /// Notes whose a container is that was not listed yet.
    pub(super) fn remember_member(&self, id: ContainerId, sandbox_id: ContainerId) {
        let mut known = self.lock();
        if known.containers.len() < ENTRIES_MAX || known.containers.contains_key(&id) {
            let facts = known.containers.entry(id).or_default();
            facts.sandbox_id.get_or_insert(sandbox_id);
        }
    }

    pub(super) fn forget_container(&self, id: &ContainerId) {
        self.lock().containers.remove(id);
    }

    /// Sandboxes are removed; gives the containers that were still in them.
    pub(super) fn forget_sandboxes(&self, removed: &BTreeSet<ContainerId>) -> Vec<ContainerId> {
        let mut known = self.lock();
        known.stopped.retain(|id| !removed.contains(id));
        known.stopped_since.retain(|id| !removed.contains(id));
        let members = known.containers.extract_if(|_, facts| {
            let sandbox_id = facts.sandbox_id.as_ref();
            sandbox_id.is_some_and(|sandbox_id| removed.contains(sandbox_id))
        });
        members.map(|(id, _)| id).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).expect("letters are an id")
    }

    fn listed(sandboxes: &[&str]) -> Known {
        let pods = sandboxes
            .iter()
            .map(|sandbox| (id(sandbox), Arc::default()));
        Known {
            sandboxes: pods.collect(),
            ..Known::default()
        }
    }

    #[test]
    fn a_sandbox_that_was_made_and_stopped_while_a_list_was_under_way_is_still_looked_for() {
        let pods = Pods::default();
        pods.replace(listed(&["old"]));
        pods.remember_member(id("in-brief"), id("brief"));
        pods.remember_stopped(id("brief"));
        pods.remember_stopped(id("old"));
        // That list was made before there was `brief`.
        pods.replace(listed(&["old"]));
        assert_eq!(pods.stopped(), BTreeSet::from([id("brief"), id("old")]));
        let members = pods.forget_sandboxes(&BTreeSet::from([id("brief")]));
        assert_eq!(members, [id("in-brief")]);
        assert_eq!(pods.stopped(), BTreeSet::from([id("old")]));
    }

    #[test]
    fn a_sandbox_that_stopped_before_a_list_which_does_not_have_it_is_gone() {
        let pods = Pods::default();
        pods.remember_stopped(id("old"));
        pods.replace(listed(&["old"]));
        assert_eq!(pods.stopped(), BTreeSet::from([id("old")]));
        pods.replace(listed(&[]));
        assert!(pods.stopped().is_empty(), "nothing is kept for ever");
    }
}
