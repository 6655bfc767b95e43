//! PID namespaces below a container's (Docker in Docker, a sandbox, `unshare`), of which no runtime tells.
//!
//! When a resync is over the reconciler asks which there are ([`NestedQuery`]), never on the way of an event, and a look at the
//! process table answers ([`NestedLook`], by `local/nested.rs`). Such a namespace is mapped to the nearest container above it, with its
//! own pid 1 for a process, and holds an fd, lingers and is buried as the others. It ends when a look no longer finds it, or
//! with the namespace above it. When it turns out to be a watched container's own, it is that container's from then on.
//!
//! A look takes time, in which numbers may go to other namespaces. What it says is therefore said of [`MappingKey`]s: those in the
//! query are of namespaces that are held, or that have an id, so that the look saw these very ones.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use super::namespace::{NamespaceRow, Phase, owner_of};
use super::{Effect, Process, Reconciler, RowKey};
use crate::model::message::Member;

/// Most nested namespaces that are mapped, lingering ones too: each holds an fd, and a container can make thousands.
pub const NESTED_MAX: usize = 1_024;
/// Most of them below one container's namespace, so that one container does not take the place of all others.
const NESTED_PER_CONTAINER_MAX: usize = 256;
/// How long a look waits for the resync's end. A runtime that hangs is not to keep it away.
const PATIENCE_MS: u64 = 30_000;

/// A mapping's namespace: the number alone may be another's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MappingKey {
    /// Its number.
    pub pns_inode: u64,
    /// Which namespace of that number.
    pub generation: u64,
}

/// What a look at the process table is to find out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NestedQuery {
    /// The containers' namespaces, by number.
    pub owners: BTreeMap<u64, NestedOwner>,
    /// Nested namespaces that are mapped and were alive, by number.
    pub nested: BTreeMap<u64, NestedKnown>,
    /// Numbers that are held and need no look.
    pub reserved: BTreeSet<u64>,
    /// How many more may be found.
    pub room: usize,
}

/// A container's namespace, as far as a look must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedOwner {
    /// Which namespace of its number.
    pub generation: u64,
    /// The kernel's id of it.
    pub pns_id: Option<u64>,
    /// Whether its number is held.
    pub is_held: bool,
    /// How many more may be found below it.
    pub room: usize,
}

/// A nested namespace that is mapped, as far as a look must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedKnown {
    /// Which namespace of its number.
    pub generation: u64,
    /// The container's namespace that it is mapped by.
    pub above: MappingKey,
    /// Whether its number is held.
    pub is_held: bool,
    /// Its pid 1, in the host's PID namespace.
    pub pid: u32,
    /// The start of that process in clock ticks since boot.
    pub start_ticks: u64,
}

/// What a look at the process table found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NestedLook {
    /// Nested namespaces that are new, were not held, or have another container's above them by now: the nearest of these, and
    /// the pid 1 of the nested one.
    pub found: Vec<(MappingKey, Process)>,
    /// Known ones that live below the namespace that they are mapped by.
    pub kept: Vec<MappingKey>,
    /// Known ones that are there no more.
    pub gone: Vec<MappingKey>,
    /// How many were left out for want of room.
    pub skipped: u64,
    /// Processes that might not be read.
    pub denied: u64,
}

/// What is kept of them beside their mappings.
#[derive(Debug, Default)]
pub(super) struct Nested {
    inodes: BTreeSet<u64>,
    /// Since when a look is due, by [`Reconciler::uptime_ms`].
    due_since_ms: Option<u64>,
    /// The last moment of the earlier life.
    last_alive_ms: u64,
}

impl Nested {
    /// Those among the mappings that were kept.
    pub(super) fn restore(rows: &mut BTreeMap<u64, NamespaceRow>) -> Self {
        let mut nested = Self::default();
        for (inode, row) in rows {
            row.mapping.nested = row.above.is_some();
            if row.mapping.nested {
                nested.inodes.insert(*inode);
            }
        }
        nested
    }

    /// The numbers of those that are mapped, lingering ones too.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u64> {
        self.inodes.iter().copied()
    }

    /// A number is no nested namespace's any more.
    pub(super) fn forget(&mut self, inode: u64) {
        self.inodes.remove(&inode);
    }
}

impl Reconciler {
    /// How many nested namespaces are mapped, lingering ones too.
    pub fn nested_count(&self) -> usize {
        self.nested.inodes.len()
    }

    /// Whether a look for nested namespaces is to be asked for.
    pub fn is_look_due(&self) -> bool {
        self.nested.due_since_ms.is_some()
    }

    /// At the start: those of the state end where nobody will look for them.
    pub(super) fn begin_nested(&mut self, last_alive_ms: u64) {
        self.nested.last_alive_ms = last_alive_ms;
        if self.settings.nested {
            return;
        }
        for inode in self.live_nested() {
            self.end_namespace(inode, last_alive_ms);
        }
    }

    /// A look is due, when nothing else is awaited.
    pub(super) fn want_nested(&mut self) {
        if self.settings.nested {
            let uptime_ms = self.uptime_ms;
            self.nested.due_since_ms.get_or_insert(uptime_ms);
        }
    }

    /// Asks for the look that is due, with the clock's tick.
    pub(super) fn ask_nested(&mut self) {
        let Some(since_ms) = self.nested.due_since_ms else {
            return;
        };
        let is_waiting = !self.is_settled() && self.uptime_ms < since_ms + PATIENCE_MS;
        if !self.opened() || is_waiting {
            return;
        }
        self.nested.due_since_ms = None;
        let query = self.nested_query();
        if !query.owners.is_empty() || !query.nested.is_empty() {
            self.effects.push(Effect::FindNested(Box::new(query)));
        }
    }

    fn nested_query(&self) -> NestedQuery {
        let mut query = NestedQuery {
            reserved: self.early.inodes().collect(),
            room: NESTED_MAX.saturating_sub(self.nested.inodes.len()),
            ..NestedQuery::default()
        };
        for (inode, row) in &self.namespaces {
            let is_live = row.phase == Phase::Live;
            match row.above {
                None => {
                    if row.fd.is_some() {
                        query.reserved.insert(*inode);
                    }
                    if is_live && (row.fd.is_some() || row.mapping.pns_id.is_some()) {
                        query.owners.insert(*inode, self.nested_owner(row));
                    }
                }
                Some(above) if is_live => {
                    let known = NestedKnown {
                        generation: row.mapping.generation,
                        above,
                        is_held: row.fd.is_some(),
                        pid: row.mapping.owner.pid,
                        start_ticks: row.mapping.owner.start_ticks,
                    };
                    query.nested.insert(*inode, known);
                }
                // What still lives of these is found anew.
                Some(_) => {}
            }
        }
        query
    }

    fn nested_owner(&self, row: &NamespaceRow) -> NestedOwner {
        NestedOwner {
            generation: row.mapping.generation,
            pns_id: row.mapping.pns_id,
            is_held: row.fd.is_some(),
            room: NESTED_PER_CONTAINER_MAX.saturating_sub(self.count_below(row.key())),
        }
    }

    /// How many are mapped below a container's namespace, lingering ones too.
    fn count_below(&self, above: MappingKey) -> usize {
        let rows = self.nested.inodes.iter();
        let rows = rows.filter_map(|inode| self.namespaces.get(inode));
        rows.filter(|row| row.above == Some(above)).count()
    }

    fn live_nested(&self) -> Vec<u64> {
        let is_live = |inode: &u64| {
            let row = self.namespaces.get(inode);
            row.is_some_and(|row| row.phase == Phase::Live)
        };
        self.nested.inodes().filter(is_live).collect()
    }

    /// A container's namespace has ended, and with it those below.
    pub(super) fn end_nested_below(&mut self, above: MappingKey, ended_ms: u64) {
        if self.nested.inodes.is_empty() {
            return;
        }
        for inode in self.live_nested() {
            let row = self.namespaces.get(&inode);
            if row.is_some_and(|row| row.above == Some(above)) {
                self.end_namespace(inode, ended_ms);
            }
        }
    }

    /// Takes what a look found. Much of it may be outdated: what was asked about may have ended or changed hands since.
    pub(super) fn nested_looked(&mut self, look: NestedLook) {
        self.counters.nested_skipped += look.skipped;
        self.counters.nested_denied += look.denied;
        for key in look.gone {
            self.nested_gone(key);
        }
        for key in look.kept {
            self.nested_kept(key);
        }
        for (above, process) in look.found {
            self.nested_found(above, &process);
        }
    }

    fn nested_gone(&mut self, key: MappingKey) {
        let Some(row) = self.namespaces.get(&key.pns_inode) else {
            return;
        };
        if row.key() != key || row.above.is_none() || row.phase != Phase::Live {
            return;
        }
        let ended_ms = match (row.fd, row.seen_ms) {
            // Nobody else can have had its number until now.
            (Some(_), _) => self.now_ms,
            (None, 0) => self.nested.last_alive_ms,
            (None, seen_ms) => seen_ms,
        };
        self.end_namespace(key.pns_inode, ended_ms);
    }

    fn nested_kept(&mut self, key: MappingKey) {
        let row = self.namespaces.get_mut(&key.pns_inode);
        if let Some(row) = row.filter(|row| row.key() == key) {
            row.seen_ms = self.now_ms;
        }
    }

    fn nested_found(&mut self, above: MappingKey, process: &Process) {
        let inode = process.pns_inode;
        let member = self.nested_member(above, process);
        let is_nested = process.is_init && inode != self.identity.host_pns_inode;
        let Some(member) = member.filter(|_| is_nested) else {
            self.release_fd(process.fd);
            return;
        };
        let boot_id = &self.identity.boot_id;
        let known = self.namespaces.get(&inode);
        match known.map(|row| row.is_of(process, boot_id)) {
            Some(true) => self.nested_found_again(above, member, process),
            Some(false) if self.is_outlived(inode, process) || self.is_elder(inode, process) => {
                self.release_fd(process.fd);
            }
            Some(false) => {
                self.supersede(inode, process.started_at_ms);
                self.map_nested(above, member, process);
            }
            None => self.map_nested(above, member, process),
        }
    }

    fn map_nested(&mut self, above: MappingKey, member: Member, process: &Process) {
        let is_full = self.nested.inodes.len() >= NESTED_MAX
            || self.count_below(above) >= NESTED_PER_CONTAINER_MAX;
        if is_full {
            self.counters.nested_skipped += 1;
            self.release_fd(process.fd);
            return;
        }
        self.nested.inodes.insert(process.pns_inode);
        self.found_namespace(member, process, Some(above));
    }

    /// One that is mapped: it takes the fd where it has none. A container's own is that container's, and one that has ended is
    /// told anew only as the same container's.
    fn nested_found_again(&mut self, above: MappingKey, member: Member, process: &Process) {
        let (inode, now_ms) = (process.pns_inode, self.now_ms);
        let Some(row) = self.namespaces.get_mut(&inode) else {
            return;
        };
        let is_same = row.mapping.owner.container_id == member.container_id;
        if row.above.is_none() || (row.phase != Phase::Live && !is_same) {
            self.release_fd(process.fd);
            return;
        }
        if row.phase == Phase::Buried {
            // As with a container's own: what comes after a tombstone is another generation.
            self.supersede(inode, process.started_at_ms);
            self.map_nested(above, member, process);
            return;
        }
        let spare = match row.fd {
            Some(_) => process.fd,
            None => {
                row.fd = process.fd;
                if row.fd.is_some() {
                    // Whoever keeps fds is to have this one too.
                    self.effects.push(Effect::SaveRow(RowKey::Namespace(inode)));
                }
                None
            }
        };
        row.seen_ms = now_ms;
        let is_told = row.phase == Phase::Live
            && row.above == Some(above)
            && row.mapping.members == [member.clone()];
        if !is_told {
            row.phase = Phase::Live;
            row.above = Some(above);
            row.mapping.valid_to_ms = None;
            row.mapping.members = vec![member];
            self.put(inode, false);
        }
        self.release_fd(spare);
    }

    /// The container above to which a nested namespace's pid 1 belongs, with that process for its own; `None` where the
    /// namespace above has ended or changed hands since the look was asked for.
    fn nested_member(&self, above: MappingKey, process: &Process) -> Option<Member> {
        let row = self.namespaces.get(&above.pns_inode)?;
        let is_there = row.key() == above && row.above.is_none() && row.phase == Phase::Live;
        let members = row.mapping.members.iter();
        let cgroup = || process.cgroup.to_string();
        let owner = closest_member(members, Some(process.mnt_ns), &cgroup).filter(|_| is_there)?;
        Some(Member {
            pid: process.pid,
            start_ticks: process.start_ticks,
            started_at_ms: process.started_at_ms,
            mnt_ns: process.mnt_ns,
            cgroup: process.cgroup.clone(),
            is_init: process.is_init,
            ..owner.clone()
        })
    }
}

/// The one of the containers of a namespace to which a process belongs: with its mounts, else with its cgroup, else the one
/// that the mapping names.
pub(crate) fn closest_member<'a>(
    members: impl Iterator<Item = &'a Member> + Clone,
    mnt_ns: Option<u64>,
    cgroup: &dyn Fn() -> String,
) -> Option<&'a Member> {
    let mut all = members.clone();
    if let (Some(only), None) = (all.next(), all.next()) {
        return Some(only);
    }
    let mut same_mounts = members
        .clone()
        .filter(|member| Some(member.mnt_ns) == mnt_ns);
    if let (Some(member), None) = (same_mounts.next(), same_mounts.next()) {
        return Some(member);
    }
    in_cgroup(members.clone(), &cgroup()).or_else(|| owner_of(members))
}

/// The one whose cgroup is this one, or the nearest above it. The root is nobody's.
pub(crate) fn in_cgroup<'a>(
    members: impl Iterator<Item = &'a Member>,
    cgroup: &str,
) -> Option<&'a Member> {
    let holds = |member: &&Member| {
        let own = &*member.cgroup;
        own.len() > 1
            && cgroup
                .strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    members
        .filter(holds)
        .max_by_key(|member| member.cgroup.len())
}

/// What stands at the end of a row; rows of before it was there end before it.
pub(super) fn or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<MappingKey>, D::Error> {
    Ok(Option::deserialize(deserializer).unwrap_or_default())
}
