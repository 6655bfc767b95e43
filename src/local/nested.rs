//! Finds PID namespaces below those of containers: the look that [`Effect::FindNested`](crate::reconcile::Effect) asks for.
//!
//! [`look`] is pure but for what [`Sight`] shows. Of most processes it takes one link, and compares a number: they are the host's, or a
//! container's. Only of the others is anything else read, until the pid 1 of their namespace is found; its namespace is then held
//! before its ancestors are asked for (`NS_GET_PARENT`), so that the number cannot change hands meanwhile.
//!
//! [`watch`] does that on a blocking thread, one look at a time: while one hangs, no other is begun.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::nsfs::{self, Namespace};
use super::scan;
use crate::collector::ObservationSender;
use crate::procfs::{ProcessTable, link_inode};
use crate::reconcile::{
    FdToken, MappingKey, NestedKnown, NestedLook, NestedQuery, Observation, Process, ProcessReading,
};

/// Room for a namespace's link, `pid:[4026532448]`; 20 digits are the most that there can be.
const LINK_BYTES_MAX: usize = 32;

/// What a look sees of the processes.
pub trait Sight {
    /// All pids, in any order.
    fn pids(&mut self) -> Vec<u32>;
    /// The number of a process's PID namespace.
    fn pns_inode(&mut self, pid: u32) -> Seen;
    /// Reads a process, and holds its PID namespace.
    fn read(&mut self, pid: u32) -> ProcessReading;
    /// The PID namespace of a process and those above it, the nearest first.
    fn chain(&mut self, pid: u32) -> Vec<Namespace>;
    /// The start of a living process in clock ticks since boot; `None` where it is gone.
    fn start_ticks(&mut self, pid: u32) -> Option<u64>;
    /// Lets go of a namespace that [`read`](Self::read) held.
    fn release(&mut self, fd: FdToken);
}

/// The PID namespace of a process, at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its number.
    In(u64),
    /// It is gone.
    Gone,
    /// It may not be read.
    Denied,
}

/// Looks at all processes, and answers a query. `host_pns_inode` is the number of the host's own namespace.
///
/// The fds of what it found are the caller's to hold or to release.
pub fn look(query: &NestedQuery, host_pns_inode: u64, sight: &mut impl Sight) -> NestedLook {
    let mut looking = Looking {
        query,
        sight,
        found: NestedLook::default(),
        done: BTreeSet::from([host_pns_inode]),
        alive: BTreeSet::new(),
        taken: BTreeMap::new(),
    };
    for pid in looking.sight.pids() {
        looking.process(pid);
    }
    looking.finish()
}

struct Looking<'a, S> {
    query: &'a NestedQuery,
    sight: &'a mut S,
    found: NestedLook,
    /// Numbers of which no more need be known.
    done: BTreeSet<u64>,
    /// Numbers of known ones that were seen to live.
    alive: BTreeSet<u64>,
    /// How many were found below each container's namespace.
    taken: BTreeMap<u64, usize>,
}

impl<S: Sight> Looking<'_, S> {
    fn process(&mut self, pid: u32) {
        let inode = match self.sight.pns_inode(pid) {
            Seen::In(inode) => inode,
            Seen::Gone => return,
            Seen::Denied => {
                self.found.denied += 1;
                return;
            }
        };
        if self.query.reserved.contains(&inode) || self.done.contains(&inode) {
            return;
        }
        match self.query.nested.get(&inode) {
            // Its number is held: whoever has it is in it.
            Some(known) if known.is_held => {
                self.alive.insert(inode);
                let chain = self.sight.chain(pid);
                if self.nearest(&chain, inode) == Some(known.above) {
                    self.found.kept.push(key(inode, known));
                    self.done.insert(inode);
                } else {
                    self.candidate(pid, inode);
                }
            }
            Some(_) | None => self.candidate(pid, inode),
        }
    }

    /// A process of a namespace that is not known, not held, or below another container's than it was.
    fn candidate(&mut self, pid: u32, inode: u64) {
        let process = match self.sight.read(pid) {
            ProcessReading::Alive(process) => *process,
            ProcessReading::Dead => return,
            ProcessReading::Denied => {
                self.found.denied += 1;
                return;
            }
        };
        if !process.is_init || process.pns_inode != inode {
            self.release(&process);
            return;
        }
        self.done.insert(inode);
        let known = self.query.nested.get(&inode);
        let is_known = known.is_some_and(|known| {
            known.is_held || (known.pid, known.start_ticks) == (pid, process.start_ticks)
        });
        if is_known {
            self.alive.insert(inode);
        }
        let chain = self.sight.chain(pid);
        let above = self.nearest(&chain, inode);
        match above {
            Some(above) if is_known || self.has_room(above) => {
                if !is_known {
                    *self.taken.entry(above.pns_inode).or_default() += 1;
                }
                self.alive.insert(inode);
                self.found.found.push((above, process));
            }
            Some(_) => {
                self.found.skipped += 1;
                self.release(&process);
            }
            None => self.release(&process),
        }
    }

    /// The nearest container's namespace above one, by its chain.
    fn nearest(&self, chain: &[Namespace], inode: u64) -> Option<MappingKey> {
        let (own, above) = chain.split_first()?;
        if own.inode != inode {
            return None;
        }
        above.iter().find_map(|namespace| {
            let owner = self.query.owners.get(&namespace.inode)?;
            let is_it = match (owner.pns_id, namespace.id) {
                (Some(ours), Some(theirs)) => ours == theirs,
                (Some(_) | None, Some(_) | None) => owner.is_held,
            };
            is_it.then_some(MappingKey {
                pns_inode: namespace.inode,
                generation: owner.generation,
            })
        })
    }

    fn has_room(&self, above: MappingKey) -> bool {
        let of_owner = self.query.owners.get(&above.pns_inode);
        let taken = self.taken.get(&above.pns_inode).copied().unwrap_or(0);
        of_owner.is_some_and(|owner| taken < owner.room)
            && self.taken.values().sum::<usize>() < self.query.room
    }

    fn release(&mut self, process: &Process) {
        if let Some(fd) = process.fd {
            self.sight.release(fd);
        }
    }

    /// What was not seen is gone, unless its pid 1 is there and may not be read any more.
    fn finish(mut self) -> NestedLook {
        for (inode, known) in &self.query.nested {
            if !self.alive.contains(inode)
                && self.sight.start_ticks(known.pid) != Some(known.start_ticks)
            {
                self.found.gone.push(key(*inode, known));
            }
        }
        self.found
    }
}

fn key(pns_inode: u64, known: &NestedKnown) -> MappingKey {
    MappingKey {
        pns_inode,
        generation: known.generation,
    }
}

/// The process table as a look sees it.
struct Table<'a> {
    table: &'a ProcessTable,
    root: OwnedFd,
}

impl<'a> Table<'a> {
    fn open(table: &'a ProcessTable) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let root = rustix::fs::open(table.root(), flags, Mode::empty())?;
        Ok(Self { table, root })
    }
}

impl Sight for Table<'_> {
    fn pids(&mut self) -> Vec<u32> {
        let pids = scan::pids(self.table);
        pids.map_or_else(
            |_| Vec::new(),
            |pids| pids.take(scan::PROCESSES_MAX).collect(),
        )
    }

    fn pns_inode(&mut self, pid: u32) -> Seen {
        let room = Vec::with_capacity(LINK_BYTES_MAX);
        match rustix::fs::readlinkat(&self.root, format!("{pid}/ns/pid"), room) {
            Ok(link) => link_inode(&link.to_string_lossy()).map_or(Seen::Gone, Seen::In),
            Err(Errno::ACCESS | Errno::PERM) => Seen::Denied,
            Err(_) => Seen::Gone,
        }
    }

    fn read(&mut self, pid: u32) -> ProcessReading {
        self.table.read(pid)
    }

    fn chain(&mut self, pid: u32) -> Vec<Namespace> {
        nsfs::chain(self.table, pid).unwrap_or_default()
    }

    fn start_ticks(&mut self, pid: u32) -> Option<u64> {
        self.table.start_ticks(pid)
    }

    fn release(&mut self, fd: FdToken) {
        self.table.fds().release(fd);
    }
}

/// Looks at the process table. It blocks for some µs a process.
///
/// # Errors
/// Where the process table cannot be opened.
pub fn look_at(table: &ProcessTable, query: &NestedQuery) -> Result<NestedLook, Errno> {
    let mut sight = Table::open(table)?;
    Ok(look(query, table.host_pns_inode(), &mut sight))
}

/// Answers queries until `stop`, or until nobody asks any more. A look that is under way at the end is not waited for.
pub async fn watch(
    mut queries: mpsc::Receiver<Box<NestedQuery>>,
    table: Arc<ProcessTable>,
    observations: ObservationSender,
    stop: CancellationToken,
) {
    let mut was_full = false;
    loop {
        let query = tokio::select! {
            () = stop.cancelled() => return,
            query = queries.recv() => query,
        };
        let Some(query) = query else { return };
        let table = Arc::clone(&table);
        let looking = tokio::task::spawn_blocking(move || look_at(&table, &query));
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = looking => looked,
        };
        let look = match looked {
            Ok(Ok(look)) => look,
            Ok(Err(error)) => {
                tracing::warn!(%error, "nested namespaces were not looked for");
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "the look for nested namespaces ended abnormally");
                continue;
            }
        };
        let (found, gone, skipped) = (look.found.len(), look.gone.len(), look.skipped);
        tracing::debug!(
            found,
            gone,
            skipped,
            denied = look.denied,
            "looked for nested namespaces"
        );
        let is_full = skipped > 0;
        if is_full && !was_full {
            tracing::warn!(
                skipped,
                "there are more nested PID namespaces than are mapped; their processes have no container on the bus"
            );
        }
        was_full = is_full;
        let look = Box::new(look);
        let observation = Observation::NestedLooked { look };
        if !observations.send(observation).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::reconcile::NestedOwner;

    const HOST: u64 = 1;

    /// Processes by pid: their namespace, and whether they are its pid 1. Namespace 30 is below 20, and that below 10.
    #[derive(Default)]
    struct Fake {
        processes: BTreeMap<u32, (u64, bool)>,
        denied: BTreeSet<u32>,
        held: BTreeSet<FdToken>,
        reads: usize,
    }

    impl Sight for Fake {
        fn pids(&mut self) -> Vec<u32> {
            self.processes.keys().copied().collect()
        }

        fn pns_inode(&mut self, pid: u32) -> Seen {
            match self.processes.get(&pid) {
                Some(_) if self.denied.contains(&pid) => Seen::Denied,
                Some((inode, _)) => Seen::In(*inode),
                None => Seen::Gone,
            }
        }

        fn read(&mut self, pid: u32) -> ProcessReading {
            self.reads += 1;
            let Some((pns_inode, is_init)) = self.processes.get(&pid).copied() else {
                return ProcessReading::Dead;
            };
            let fd = FdToken(u64::from(pid));
            self.held.insert(fd);
            ProcessReading::Alive(Box::new(Process {
                pid,
                start_ticks: u64::from(pid),
                started_at_ms: 0,
                pns_inode,
                pns_id: None,
                mnt_ns: 0,
                cgroup: "/".into(),
                is_init,
                fd: Some(fd),
            }))
        }

        fn chain(&mut self, pid: u32) -> Vec<Namespace> {
            let own = self.processes.get(&pid).map_or(0, |(inode, _)| *inode);
            let above: &[u64] = match own {
                20 => &[10],
                30 => &[20, 10],
                40..50 => &[10],
                _ => &[],
            };
            let all = [own].into_iter().chain(above.iter().copied()).chain([HOST]);
            all.map(|inode| Namespace { inode, id: None }).collect()
        }

        fn start_ticks(&mut self, pid: u32) -> Option<u64> {
            self.processes.get(&pid).map(|_| u64::from(pid))
        }

        fn release(&mut self, fd: FdToken) {
            assert!(self.held.remove(&fd), "{fd:?} is held");
        }
    }

    fn fake(processes: &[(u32, u64, bool)]) -> Fake {
        let processes = processes.iter();
        Fake {
            processes: processes
                .map(|(pid, ns, init)| (*pid, (*ns, *init)))
                .collect(),
            ..Fake::default()
        }
    }

    /// A container in namespace 10.
    fn query(room: usize) -> NestedQuery {
        let owner = NestedOwner {
            generation: 1,
            pns_id: None,
            is_held: true,
            room,
        };
        NestedQuery {
            owners: BTreeMap::from([(10, owner)]),
            reserved: BTreeSet::from([10]),
            room: 100,
            ..NestedQuery::default()
        }
    }

    fn known(pid: u32, is_held: bool) -> NestedKnown {
        NestedKnown {
            generation: 7,
            above: MappingKey {
                pns_inode: 10,
                generation: 1,
            },
            is_held,
            pid,
            start_ticks: u64::from(pid),
        }
    }

    fn pids(look: &NestedLook) -> Vec<u32> {
        look.found.iter().map(|(_, process)| process.pid).collect()
    }

    #[test]
    fn only_pid_1_of_what_lies_below_a_container_is_found_and_held() {
        let mut sight = fake(&[
            (1, HOST, true),
            (2, 10, true),
            (3, 10, false),
            // Another user's machine, of which nobody knows.
            (4, 90, true),
            (5, 90, false),
            (6, 20, false),
            (7, 20, true),
            (8, 20, false),
            (9, 30, true),
        ]);
        let found = look(&query(10), HOST, &mut sight);
        assert_eq!(pids(&found), [7, 9]);
        assert_eq!(sight.held, BTreeSet::from([FdToken(7), FdToken(9)]));
        assert_eq!(
            sight.reads, 4,
            "the host's and the container's are not read"
        );
        let above = MappingKey {
            pns_inode: 10,
            generation: 1,
        };
        assert!(found.found.iter().all(|(it, _)| *it == above));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_let_go() {
        let mut sight = fake(&[(2, 40, true), (3, 41, true), (4, 42, true)]);
        let found = look(&query(2), HOST, &mut sight);
        assert_eq!((pids(&found), found.skipped), (vec![2, 3], 1));
        let mut asked = query(2);
        asked.room = 1;
        let found = look(&asked, HOST, &mut fake(&[(2, 40, true), (3, 41, true)]));
        assert_eq!((pids(&found), found.skipped), (vec![2], 1));
        assert_eq!(sight.held.len(), 2);
    }

    #[test]
    fn known_ones_live_while_any_process_of_theirs_or_their_pid_1_does() {
        let mut sight = fake(&[(2, 40, true), (3, 41, false), (5, 43, true)]);
        sight.denied = BTreeSet::from([5]);
        let mut asked = query(10);
        asked.nested = BTreeMap::from([
            (41, known(9, true)),
            (42, known(4, true)),
            (43, known(5, true)),
            (40, known(2, false)),
        ]);
        let found = look(&asked, HOST, &mut sight);
        let key = |pns_inode| MappingKey {
            pns_inode,
            generation: 7,
        };
        assert_eq!(found.kept, [key(41)]);
        assert_eq!(found.gone, [key(42)]);
        assert_eq!(pids(&found), [2], "its number was not held");
        assert_eq!(found.denied, 1);
    }

    #[test]
    fn a_number_that_went_to_another_namespace_is_told_as_found_or_as_gone() {
        let mut asked = query(10);
        asked.nested = BTreeMap::from([(40, known(2, false)), (90, known(3, false))]);
        let mut sight = fake(&[(8, 40, true), (9, 90, true)]);
        let found = look(&asked, HOST, &mut sight);
        assert_eq!(pids(&found), [8]);
        let gone: Vec<_> = found.gone.iter().map(|key| key.pns_inode).collect();
        assert_eq!(gone, [90]);
        assert_eq!(sight.held.len(), 1);
    }

    #[test]
    fn on_this_host_nothing_lies_below_what_is_nobody_s() {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let found = look_at(&table, &NestedQuery::default()).expect("it can be opened");
        assert!(found.found.is_empty() && found.skipped == 0);
        assert_eq!(table.fds().count(), 0);
    }
}
