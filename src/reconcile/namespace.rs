//! PID namespaces and the containers in them: put, end, linger, tombstone.
//!
//! While an fd on a namespace is held, the kernel cannot give its number to another. A mapping therefore holds
//! one from its first reading until the bus has its tombstone. Without an fd (after a restart) the number may
//! have been given out again: a reading that shows another namespace under it ends the old mapping and puts the
//! new one, in that order, under another generation, so that the two are never coalesced.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::{Run, Tracked};
use super::nested::{MappingKey, or_none};
use super::{Effect, FdToken, Process, Reconciler, RowKey};
use crate::model::message::{Mapping, Member, Message};
use crate::model::{Container, ContainerId, ContainerKind};

/// Where a mapping stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its namespace lives.
    Live,
    /// Its namespace has ended; the put that says so is owed.
    Ended,
    /// The bus has that put, since this unix millisecond.
    Lingering(u64),
    /// Its tombstone is owed.
    Buried,
}

/// What is kept of one namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamespaceRow {
    pub(super) mapping: Mapping,
    pub(super) phase: Phase,
    #[serde(skip)]
    pub(super) fd: Option<FdToken>,
    #[serde(skip)]
    put_ms: u64,
    /// When it was last seen alive in this life of the collector, where it is nested; 0 for not yet.
    #[serde(skip)]
    pub(super) seen_ms: u64,
    /// The container's namespace that it lies below; `None` of a container's own. Rows of before it was there end here.
    #[serde(deserialize_with = "or_none")]
    pub(super) above: Option<MappingKey>,
}

impl NamespaceRow {
    /// As it was put last.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The fd that keeps its number.
    pub fn fd(&self) -> Option<FdToken> {
        self.fd
    }

    /// The container's namespace that it lies below; `None` of a container's own.
    pub fn above(&self) -> Option<MappingKey> {
        self.above
    }

    /// Which namespace it is of.
    pub fn key(&self) -> MappingKey {
        MappingKey {
            pns_inode: self.mapping.pns_inode,
            generation: self.mapping.generation,
        }
    }

    /// Whether a process is in this very namespace, as far as can be known.
    pub(super) fn is_of(&self, process: &Process, boot_id: &str) -> bool {
        if &*self.mapping.boot_id != boot_id {
            return false;
        }
        match (self.mapping.pns_id, process.pns_id) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (Some(_) | None, Some(_) | None) => {
                let is_member = self.mapping.members.iter().any(|member| {
                    member.pid == process.pid && member.start_ticks == process.start_ticks
                });
                self.fd.is_some() || (self.phase == Phase::Live && is_member)
            }
        }
    }
}

impl Reconciler {
    pub(super) fn release_fd(&mut self, fd: Option<FdToken>) {
        if let Some(fd) = fd {
            self.effects.push(Effect::ReleaseNamespace(fd));
        }
    }

    /// Adds a container's init process to its namespace; takes over or releases the reading's fd.
    pub(super) fn join_namespace(&mut self, container: &Container, process: &Process) {
        let inode = process.pns_inode;
        if inode == self.identity.host_pns_inode || inode == 0 {
            self.release_fd(process.fd);
            return;
        }
        let boot_id = Arc::clone(&self.identity.boot_id);
        let member = member_of(container, process);
        let row = self.namespaces.get(&inode);
        let is_known = row.map(|row| row.is_of(process, &boot_id));
        match is_known {
            // The tombstone is on its way, and its acknowledgement is not to be taken for that of another message.
            Some(true) if row.is_some_and(|row| row.phase == Phase::Buried) => {
                self.supersede(inode, process.started_at_ms);
                self.found_namespace(member, process, None);
            }
            Some(true) => self.join_known(inode, member, process),
            Some(false) if self.is_outlived(inode, process) => self.release_fd(process.fd),
            Some(false) if self.is_elder(inode, process) => {
                self.join_known(inode, member, process);
            }
            Some(false) => {
                self.supersede(inode, process.started_at_ms);
                self.found_namespace(member, process, None);
            }
            None => self.found_namespace(member, process, None),
        }
    }

    /// Whether the number belongs to a namespace with a process that is younger than one which was read in another
    /// namespace of that number: that one is dead by now. Without ids only a pid 1 says that it is another one.
    pub(super) fn is_outlived(&self, inode: u64, process: &Process) -> bool {
        self.namespaces.get(&inode).is_some_and(|row| {
            let is_other_by_id = row.mapping.pns_id.is_some() && process.pns_id.is_some();
            let mut members = row.mapping.members.iter();
            row.phase == Phase::Live
                && row.mapping.boot_id == self.identity.boot_id
                && members.any(|member| {
                    (member.is_init || is_other_by_id) && member.start_ticks > process.start_ticks
                })
        })
    }

    /// Whether a process is pid 1 of the namespace which others have joined that were seen before it: it lives, and has
    /// done so for longer than they, so that the number was nobody else's meanwhile.
    pub(super) fn is_elder(&self, inode: u64, process: &Process) -> bool {
        self.namespaces.get(&inode).is_some_and(|row| {
            let is_other_by_id = row.mapping.pns_id.is_some() && process.pns_id.is_some();
            let mut members = row.mapping.members.iter();
            process.is_init
                && !is_other_by_id
                && row.mapping.boot_id == self.identity.boot_id
                && members
                    .all(|member| !member.is_init && member.start_ticks >= process.start_ticks)
        })
    }

    fn join_known(&mut self, inode: u64, member: Member, process: &Process) {
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        let spare = if row.fd.is_none() {
            row.fd = process.fd;
            if row.fd.is_some() {
                // Whoever keeps fds over a restart, and over a commit that fails, is to have this one too.
                self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
            }
            None
        } else {
            process.fd
        };
        let is_same = row.phase == Phase::Live && row.mapping.members.contains(&member);
        if is_same {
            self.release_fd(spare);
            return;
        }
        if row.above.take().is_some() {
            // It was taken for one below another container's: now it is known whose own it is.
            row.mapping.nested = false;
            row.mapping.members.clear();
            self.nested.forget(inode);
        }
        if row.phase != Phase::Live {
            // It had not ended after all; who else is still in it is to be seen.
            row.phase = Phase::Live;
            row.mapping.valid_to_ms = None;
            for known in row.mapping.members.drain(..) {
                if known.container_id != member.container_id {
                    let (id, pid) = (known.container_id, known.pid);
                    self.effects.push(Effect::ReadProcess { id, pid });
                }
            }
        }
        row.mapping
            .members
            .retain(|known| known.container_id != member.container_id);
        row.mapping.members.push(member);
        row.mapping
            .members
            .sort_by(|a, b| a.container_id.cmp(&b.container_id));
        row.mapping.valid_from_ms = row.mapping.valid_from_ms.min(process.started_at_ms);
        self.release_fd(spare);
        self.put(inode, false);
    }

    pub(super) fn found_namespace(
        &mut self,
        member: Member,
        process: &Process,
        above: Option<MappingKey>,
    ) {
        self.generation += 1;
        let mapping = Mapping {
            pns_inode: process.pns_inode,
            pns_id: process.pns_id,
            generation: self.generation,
            boot_id: Arc::clone(&self.identity.boot_id),
            valid_from_ms: process.started_at_ms,
            valid_to_ms: None,
            owner: member.clone(),
            members: vec![member],
            nested: above.is_some(),
            seq: self.seq,
        };
        let row = NamespaceRow {
            mapping,
            phase: Phase::Live,
            fd: process.fd,
            put_ms: 0,
            seen_ms: self.now_ms,
            above,
        };
        self.namespaces.insert(process.pns_inode, row);
        self.put(process.pns_inode, false);
    }

    /// Another namespace has the number: the old mapping has ended by then, and gets no tombstone.
    pub(super) fn supersede(&mut self, inode: u64, began_ms: u64) {
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        let ended_ms = began_ms.max(row.mapping.valid_from_ms);
        let is_ended = row
            .mapping
            .valid_to_ms
            .is_some_and(|to_ms| to_ms <= ended_ms);
        if row.phase != Phase::Buried && !is_ended {
            self.end_namespace(inode, ended_ms);
        }
        if let Some(row) = self.namespaces.remove(&inode) {
            self.nested.forget(inode);
            self.release_fd(row.fd);
        }
    }

    /// Takes a container's process out of its namespace; the last one, and pid 1 of it, ends the mapping.
    pub(super) fn leave_namespace(&mut self, id: &ContainerId, run: &Run, ended_ms: u64) {
        let (Some(inode), Some(key)) = (run.pns_inode, run.process_key()) else {
            return;
        };
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        let is_of_run =
            |member: &Member| member.container_id == *id && (member.pid, member.start_ticks) == key;
        let left = row.mapping.members.iter().find(|member| is_of_run(member));
        let (Some(was_init), Phase::Live) = (left.map(|member| member.is_init), row.phase) else {
            return;
        };
        if was_init || row.mapping.members.len() == 1 {
            self.end_namespace(inode, ended_ms);
        } else {
            row.mapping.members.retain(|member| !is_of_run(member));
            self.put(inode, false);
        }
    }

    /// Ends a mapping, and with a container's own all of those below it: the kernel kills what is in them.
    pub(super) fn end_namespace(&mut self, inode: u64, ended_ms: u64) {
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        row.phase = Phase::Ended;
        row.mapping.valid_to_ms = Some(ended_ms.max(row.mapping.valid_from_ms));
        let key = row.key();
        self.put(inode, false);
        self.end_nested_below(key, ended_ms);
    }

    /// Publishes a mapping as it now is.
    pub(super) fn put(&mut self, inode: u64, refresh: bool) {
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        if let Some(owner) = owner_of(&row.mapping.members) {
            row.mapping.owner = owner.clone();
        }
        row.mapping.seq = self.seq;
        row.put_ms = self.now_ms;
        let mapping = Box::new(row.mapping.clone());
        self.effects
            .push(Effect::Publish(Message::Mapping { mapping, refresh }));
        self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
    }

    /// Publishes every mapping as it stands; those whose tombstone is owed have that again.
    pub(super) fn put_all_namespaces(&mut self) {
        let all: Vec<_> = self
            .namespaces
            .iter()
            .map(|(inode, row)| (*inode, row.phase))
            .collect();
        for (inode, phase) in all {
            match phase {
                Phase::Live | Phase::Ended | Phase::Lingering(_) => self.put(inode, false),
                Phase::Buried => self.bury(inode),
            }
        }
    }

    /// A container in a namespace has another name or image.
    pub(super) fn rename_member(&mut self, tracked: &Tracked) {
        let Some(told) = tracked.container() else {
            return;
        };
        let runs = [&tracked.run, &tracked.hint];
        let inodes: BTreeSet<u64> = runs
            .into_iter()
            .filter_map(|run| run.as_ref()?.pns_inode)
            .chain(self.nested.inodes())
            .collect();
        for inode in inodes {
            let Some(row) = self.namespaces.get_mut(&inode) else {
                continue;
            };
            let is_live = row.phase == Phase::Live;
            let members = row.mapping.members.iter_mut();
            let mut is_changed = false;
            for member in members.filter(|member| is_live && member.container_id == told.id) {
                member.container_name = told.name.as_str().into();
                member.image_name = told.image_name.as_str().into();
                member.kind = told.kind;
                member.runtime = told.runtime;
                member.pod.clone_from(&told.pod);
                is_changed = true;
            }
            if is_changed {
                self.put(inode, false);
            }
        }
    }

    /// Ends the mappings of an earlier boot: their namespaces died with it.
    pub(super) fn end_earlier_namespaces(&mut self, last_alive_ms: u64) {
        let boot_id = Arc::clone(&self.identity.boot_id);
        let earlier: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(_, row)| row.mapping.boot_id != boot_id && row.phase == Phase::Live)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in earlier {
            // One that is nested may have ended with the one above it.
            let row = self.namespaces.get(&inode);
            if row.is_some_and(|row| row.phase == Phase::Live) {
                self.end_namespace(inode, last_alive_ms);
            }
        }
    }

    /// At the start: what is neither live nor owed to the bus was acknowledged before.
    pub(super) fn settle_owed(&mut self, owed: &BTreeSet<(u64, u64)>) {
        let settled: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(inode, row)| !owed.contains(&(**inode, row.mapping.generation)))
            .map(|(inode, row)| (*inode, row.mapping.generation, row.phase))
            .collect();
        for (inode, generation, phase) in settled {
            match phase {
                Phase::Ended => self.mapping_acked(inode, generation),
                Phase::Buried => self.tombstone_acked(inode, generation),
                Phase::Live | Phase::Lingering(_) => {}
            }
        }
    }

    pub(super) fn mapping_acked(&mut self, inode: u64, generation: u64) {
        let now_ms = self.now_ms;
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        if row.mapping.generation == generation && row.phase == Phase::Ended {
            row.phase = Phase::Lingering(now_ms);
            self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
        }
    }

    pub(super) fn tombstone_acked(&mut self, inode: u64, generation: u64) {
        let is_this = self
            .namespaces
            .get(&inode)
            .is_some_and(|row| row.mapping.generation == generation && row.phase == Phase::Buried);
        if is_this && let Some(row) = self.namespaces.remove(&inode) {
            self.nested.forget(inode);
            self.release_fd(row.fd);
            self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
        }
    }

    pub(super) fn tick_namespaces(&mut self) {
        let over: Vec<u64> = self
            .namespaces
            .iter_mut()
            .filter_map(|(inode, row)| {
                let Phase::Lingering(since_ms) = &mut row.phase else {
                    return None;
                };
                // A clock that was set back makes no mapping linger longer.
                *since_ms = (*since_ms).min(self.now_ms);
                let until_ms = since_ms.saturating_add(self.settings.linger_ms);
                (self.now_ms >= until_ms).then_some(*inode)
            })
            .collect();
        for inode in over {
            self.bury(inode);
        }
        self.evict();
        self.refresh_namespaces();
    }

    /// Lets the oldest namespaces go where too many that have ended are held.
    fn evict(&mut self) {
        let mut held: Vec<(u64, u64)> = self
            .namespaces
            .iter()
            .filter(|(_, row)| row.phase != Phase::Live)
            .filter(|(_, row)| row.fd.is_some() || row.phase != Phase::Buried)
            .map(|(inode, row)| (row.mapping.valid_to_ms.unwrap_or(0), *inode))
            .collect();
        let surplus = held.len().saturating_sub(self.settings.held_max);
        if surplus == 0 {
            return;
        }
        held.sort_unstable();
        for (_, inode) in held.into_iter().take(surplus) {
            let Some(row) = self.namespaces.get_mut(&inode) else {
                continue;
            };
            let fd = row.fd.take();
            let is_buried = row.phase == Phase::Buried;
            self.counters.evicted += 1;
            self.release_fd(fd);
            if !is_buried {
                self.bury(inode);
            }
        }
    }

    fn bury(&mut self, inode: u64) {
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        row.phase = Phase::Buried;
        let generation = row.mapping.generation;
        self.effects
            .push(Effect::Publish(Message::MappingTombstone {
                pns_inode: inode,
                generation,
            }));
        self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
    }

    fn refresh_namespaces(&mut self) {
        let refresh_ms = self.settings.pns_refresh_ms.max(1);
        let now_ms = self.now_ms;
        let due: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(inode, row)| {
                let slot_ms = inode.wrapping_mul(0x9E37_79B9_7F4A_7C15) % refresh_ms;
                let newest_slot_ms =
                    now_ms.saturating_sub(slot_ms) / refresh_ms * refresh_ms + slot_ms;
                let is_settled = match row.phase {
                    Phase::Live | Phase::Lingering(_) => true,
                    Phase::Ended | Phase::Buried => false,
                };
                let is_due = row.put_ms < newest_slot_ms && newest_slot_ms <= now_ms;
                // A put in the future is one from before the clock was set back.
                is_settled && (is_due || row.put_ms > now_ms)
            })
            .map(|(inode, row)| (*inode, row.put_ms))
            .collect();
        for (inode, put_ms) in due {
            if put_ms == 0 {
                if let Some(row) = self.namespaces.get_mut(&inode) {
                    row.put_ms = now_ms;
                }
            } else {
                self.put(inode, true);
            }
        }
    }
}

pub(crate) fn member_of(container: &Container, process: &Process) -> Member {
    Member {
        container_id: container.id.clone(),
        container_name: container.name.as_str().into(),
        kind: container.kind,
        runtime: container.runtime,
        image_name: container.image_name.as_str().into(),
        pod: container.pod.clone(),
        pid: process.pid,
        start_ticks: process.start_ticks,
        started_at_ms: process.started_at_ms,
        mnt_ns: process.mnt_ns,
        cgroup: process.cgroup.clone(),
        is_init: process.is_init,
    }
}

/// The container whose init is pid 1 inside; only if that is a sandbox, or nobody's is, the container that
/// started first, then the smallest id.
pub(crate) fn owner_of<'a>(
    members: impl IntoIterator<Item = &'a Member, IntoIter: Clone>,
) -> Option<&'a Member> {
    let members = members.into_iter();
    let is_container = |member: &&Member| member.kind == ContainerKind::Container;
    let mut containers = members.clone().filter(is_container);
    let init = containers.clone().find(|member| member.is_init);
    let first = || {
        containers.by_ref().min_by(|a, b| {
            (a.started_at_ms, &a.container_id).cmp(&(b.started_at_ms, &b.container_id))
        })
    };
    init.or_else(first).or_else(|| members.clone().next())
}
