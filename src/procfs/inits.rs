//! The init processes of many containers, found by one look at the process table instead of one question each.
//!
//! A process's cgroup names its container. Of those in one container's cgroup, the one that is pid 1 in a PID namespace
//! right below the host's is its init: its pid is what the runtime would say. Where that is not plain (a container in
//! the host's PID namespace or in another container's, two such processes, one that may not be read) nothing is said,
//! and the runtime is to be asked. Nothing here says that a container exists or runs.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::io::Errno;

use super::{ProcessTable, cgroup_path, open_namespace, read_at};
use crate::model::ContainerId;
use crate::reconcile::Process;

/// Most processes that are looked at; beyond it asking the runtimes is no dearer.
const PROCESSES_MAX: usize = 16_384;
/// Hex digits in an id of Docker and CRI.
const ID_DIGITS: usize = 64;

/// Init processes by container, each with an fd on its namespace. Those that nobody takes are let go.
#[derive(Debug)]
pub struct Inits {
    table: Arc<ProcessTable>,
    found: BTreeMap<ContainerId, Process>,
}

impl Inits {
    /// Looks at all processes for the inits of some containers, of a runtime that this user serves: as
    /// [`ProcessTable::read_of_user`], what is not root's or ours is not believed. It blocks for some 10 µs a process.
    ///
    /// What cannot be read is left out.
    pub fn find(table: &Arc<ProcessTable>, wanted: &BTreeSet<ContainerId>, uid: u32) -> Self {
        let mut found = Self {
            table: Arc::clone(table),
            found: BTreeMap::new(),
        };
        let Ok(entries) = std::fs::read_dir(table.root()) else {
            return found;
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let pids: Vec<u32> = pids.collect();
        if !ProcessTable::is_trusted(uid) || pids.len() > PROCESSES_MAX {
            return found;
        }
        let mut unclear = BTreeSet::new();
        for pid in pids {
            // One that is gone by now is nobody's init.
            if let Ok(Some((id, seen))) = look(table, pid, wanted) {
                found.add(id, seen, &mut unclear);
            }
        }
        found
    }

    /// Gives a container's init away; its fd is the caller's to release.
    pub fn take(&mut self, id: &ContainerId) -> Option<Process> {
        self.found.remove(id)
    }

    fn add(&mut self, id: ContainerId, seen: Seen, unclear: &mut BTreeSet<ContainerId>) {
        match seen {
            Seen::Other => {}
            Seen::Unclear => {
                let known = self.found.remove(&id);
                self.release(known);
                unclear.insert(id);
            }
            Seen::Init(process) if unclear.contains(&id) => self.release(Some(*process)),
            Seen::Init(process) => match self.found.entry(id) {
                Entry::Vacant(entry) => _ = entry.insert(*process),
                Entry::Occupied(entry) => {
                    let (id, known) = entry.remove_entry();
                    self.release(Some(known));
                    self.release(Some(*process));
                    unclear.insert(id);
                }
            },
        }
    }

    fn release(&self, process: Option<Process>) {
        if let Some(fd) = process.and_then(|process| process.fd) {
            self.table.fds().release(fd);
        }
    }
}

impl Drop for Inits {
    fn drop(&mut self) {
        while let Some((_, process)) = self.found.pop_first() {
            self.release(Some(process));
        }
    }
}

/// What a process in a container's cgroup is.
enum Seen {
    /// Pid 1 of a PID namespace right below the host's.
    Init(Box<Process>),
    /// Some other process of such a namespace.
    Other,
    /// One by which the container may have another namespace than its own.
    Unclear,
}

/// Whose a process is, and what it is there; `None` where its cgroup names no container that is wanted.
fn look(
    table: &ProcessTable,
    pid: u32,
    wanted: &BTreeSet<ContainerId>,
) -> Result<Option<(ContainerId, Seen)>, Errno> {
    let directory = table.open_process(pid)?;
    let cgroup = read_at(&directory, "cgroup")?;
    let Some(id) = container_of(cgroup_path(&cgroup)).filter(|id| wanted.contains(id)) else {
        return Ok(None);
    };
    let status = read_at(&directory, "status")?;
    let seen = match ns_pids(&status).as_slice() {
        [] | [_] => Seen::Unclear,
        [_, "1"] => {
            let reading = open_namespace(&directory)
                .and_then(|namespace| table.read_in(&directory, namespace, pid, &cgroup, &status));
            reading.map_or(Seen::Unclear, |process| Seen::Init(Box::new(process)))
        }
        _ => Seen::Other,
    };
    Ok(Some((id, seen)))
}

/// The container that a cgroup's path names last: what is inside of another one is the inner one's.
fn container_of(path: &str) -> Option<ContainerId> {
    let mut words = path.rsplit(|c: char| !c.is_ascii_hexdigit());
    ContainerId::parse(words.find(|word| word.len() == ID_DIGITS)?)
}

/// The pids of a process in each PID namespace from the process table's own on.
fn ns_pids(status: &str) -> Vec<&str> {
    let mut lines = status.lines();
    let pids = lines.find_map(|line| line.strip_prefix("NSpid:"));
    pids.unwrap_or("").split_ascii_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn id(digit: char) -> ContainerId {
        let text = digit.to_string().repeat(ID_DIGITS);
        ContainerId::parse(&text).expect("hex digits are an id")
    }

    fn table() -> Arc<ProcessTable> {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        Arc::new(table)
    }

    /// A process with an fd on some namespace.
    fn process(table: &ProcessTable, pid: u32) -> Seen {
        let ours = table.open_process(std::process::id()).expect("we live");
        let namespace = open_namespace(&ours).expect("we may be read");
        let process = table.read_in(&ours, namespace, pid, "", "");
        let process = process.expect("we may be read");
        Seen::Init(Box::new(process))
    }

    #[test]
    fn the_innermost_container_of_a_cgroup_is_its_own() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        for (path, expected) in [
            (format!("/docker/{a}"), Some(id('a'))),
            (
                format!("/system.slice/docker-{a}.scope/init.scope"),
                Some(id('a')),
            ),
            (
                format!("/kubepods/burstable/pod1-2/cri-containerd-{a}.scope"),
                Some(id('a')),
            ),
            (format!("/docker/{a}/docker/{b}"), Some(id('b'))),
            (format!("/../../docker/{a}"), Some(id('a'))),
            (format!("/docker/{a}b"), None),
            ("/system.slice/ssh.service".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(container_of(&path), expected, "{path}");
        }
    }

    #[test]
    fn pids_are_those_of_each_namespace() {
        assert_eq!(ns_pids("Name:\ta\nNSpid:\t4711\t1\n"), ["4711", "1"]);
        assert!(ns_pids("Name:\ta\n").is_empty());
    }

    #[test]
    fn a_container_with_two_inits_or_a_process_of_the_host_s_namespace_is_unclear() {
        let table = table();
        let before = table.fds().count();
        let mut inits = Inits {
            table: Arc::clone(&table),
            found: BTreeMap::new(),
        };
        let mut unclear = BTreeSet::new();
        inits.add(id('a'), process(&table, 1), &mut unclear);
        inits.add(id('a'), Seen::Other, &mut unclear);
        inits.add(id('b'), process(&table, 2), &mut unclear);
        inits.add(id('b'), process(&table, 3), &mut unclear);
        inits.add(id('b'), process(&table, 4), &mut unclear);
        inits.add(id('c'), Seen::Unclear, &mut unclear);
        inits.add(id('c'), process(&table, 5), &mut unclear);
        inits.add(id('d'), process(&table, 6), &mut unclear);
        inits.add(id('d'), Seen::Unclear, &mut unclear);

        let found: Vec<_> = inits
            .found
            .iter()
            .map(|(id, found)| (id, found.pid))
            .collect();
        assert_eq!(found, [(&id('a'), 1)]);
        assert_eq!(
            table.fds().count(),
            before + 1,
            "the others' fds are let go"
        );
        drop(inits);
        assert_eq!(table.fds().count(), before);
    }

    #[test]
    fn nobody_s_inits_are_found_for_what_is_not_there_nor_for_a_foreign_user() {
        let table = table();
        let wanted = BTreeSet::from([id('e')]);
        for uid in [0, 65_533] {
            let mut inits = Inits::find(&table, &wanted, uid);
            assert!(inits.take(&id('e')).is_none());
        }
        assert_eq!(table.fds().count(), 0);
    }
}
