//! The init processes of many containers, found by one look at the process table instead of one question each.
//!
//! A process's cgroup names its container. Of those in one container's cgroup, the one that is pid 1 in a PID namespace
//! right below the host's is its init: its pid is what the runtime would say. Where that is not plain (a container in
//! the host's PID namespace or in another container's, two such processes, one that may not be read) nothing is said,
//! and the runtime is to be asked. Nothing here says that a container exists or runs.
//!
//! The look is made while the runtimes are still being listed, once for all of them. What it found is pinned: an fd on
//! its `/proc/PID`, by which it is known, when a list wants it, whether that very process lives, and one on its
//! namespace. A process that has ended by then is nobody's init, whoever has its pid.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;

use super::{ProcessTable, cgroup_path, live_mount_namespace, open_namespace, read_at};
use crate::halves::in_halves;
use crate::local::nsfs;
use crate::model::ContainerId;
use crate::reconcile::Process;

/// Most processes that are looked at; beyond it asking the runtimes is no dearer.
const PROCESSES_MAX: usize = 16_384;
/// Hex digits in an id of Docker and CRI.
const ID_DIGITS: usize = 64;
/// From how many containers on that an earlier look did not see another one is worth it.
const LOOK_AGAIN_MIN: usize = 8;

/// A look at the process table that is made beside the runtimes' first lists, on a thread of its own. What nobody took is
/// let go with it.
#[derive(Debug)]
pub struct FirstLook {
    table: Arc<ProcessTable>,
    seen: Arc<OnceLock<Mutex<Sight>>>,
    looking: Option<JoinHandle<()>>,
}

impl FirstLook {
    /// Begins to look.
    pub fn begin(table: &Arc<ProcessTable>) -> Self {
        let seen = Arc::new(OnceLock::new());
        let (slot, of) = (Arc::clone(&seen), Arc::clone(table));
        let looking = thread::Builder::new()
            .name("inits".to_owned())
            .spawn(move || _ = slot.get_or_init(|| Mutex::new(Sight::of(&of, |_| true))));
        Self {
            table: Arc::clone(table),
            seen,
            // Where the system has no thread left, whoever takes first looks.
            looking: looking.ok(),
        }
    }

    /// The inits of some containers, of a runtime that this user serves: as [`ProcessTable::read_of_user`], what is not
    /// root's or ours is not believed. It blocks until the look is made, and looks once more where many of the
    /// containers have begun since.
    pub fn take(&self, wanted: &BTreeSet<ContainerId>, uid: u32) -> Inits {
        let mut taken = Inits {
            table: Arc::clone(&self.table),
            found: BTreeMap::new(),
        };
        if !ProcessTable::is_trusted(uid) {
            return taken;
        }
        let first = self
            .seen
            .get_or_init(|| Mutex::new(Sight::of(&self.table, |_| true)));
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        let unseen = first.give(wanted, &mut taken);
        drop(first);
        if unseen.len() >= LOOK_AGAIN_MIN {
            let mut second = Sight::of(&self.table, |id| unseen.contains(id));
            second.give(&unseen, &mut taken);
        }
        taken
    }
}

impl Drop for FirstLook {
    fn drop(&mut self) {
        if let Some(looking) = self.looking.take() {
            // A look that ended abnormally has found nothing.
            let _ = looking.join();
        }
    }
}

/// Init processes by container, each with an fd on its namespace. Those that nobody takes are let go.
#[derive(Debug)]
pub struct Inits {
    table: Arc<ProcessTable>,
    found: BTreeMap<ContainerId, Process>,
}

impl Inits {
    /// Gives a container's init away; its fd is the caller's to release.
    pub fn take(&mut self, id: &ContainerId) -> Option<Process> {
        self.found.remove(id)
    }
}

impl Drop for Inits {
    fn drop(&mut self) {
        while let Some((_, process)) = self.found.pop_first() {
            release(&self.table, &process);
        }
    }
}

/// What one look at the process table saw.
#[derive(Debug)]
struct Sight {
    table: Arc<ProcessTable>,
    inits: BTreeMap<ContainerId, Pinned>,
    /// Containers whose init is not plain to see.
    unclear: BTreeSet<ContainerId>,
}

/// A process, and the directory through which it was read.
#[derive(Debug)]
struct Pinned {
    directory: OwnedFd,
    process: Process,
}

impl Sight {
    /// Looks at all processes for the inits of the containers that are wanted, with two threads: it blocks for some
    /// 20 µs a process.
    ///
    /// What cannot be read is left out.
    fn of(table: &Arc<ProcessTable>, is_wanted: impl Fn(&ContainerId) -> bool + Sync) -> Self {
        let mut sight = Self {
            table: Arc::clone(table),
            inits: BTreeMap::new(),
            unclear: BTreeSet::new(),
        };
        let Ok(entries) = std::fs::read_dir(table.root()) else {
            return sight;
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let pids: Vec<u32> = pids.collect();
        if pids.len() > PROCESSES_MAX {
            return sight;
        }
        // One that is gone by now is nobody's init.
        let look = |pid: &u32| look(table, *pid, &is_wanted).ok().flatten();
        let seen = in_halves("inits", &pids, |pids| {
            pids.iter().filter_map(look).collect()
        });
        for (id, seen) in seen {
            sight.add(id, seen);
        }
        sight
    }

    /// Gives the inits of some containers that live still, and says of which containers none was seen that does.
    fn give(&mut self, wanted: &BTreeSet<ContainerId>, to: &mut Inits) -> BTreeSet<ContainerId> {
        let mut unseen = BTreeSet::new();
        for id in wanted {
            match self.inits.remove(id).map(Pinned::still_alive) {
                Some(Ok(process)) => _ = to.found.insert(id.clone(), process),
                Some(Err(ended)) => {
                    release(&self.table, &ended);
                    unseen.insert(id.clone());
                }
                None if self.unclear.contains(id) => {}
                None => _ = unseen.insert(id.clone()),
            }
        }
        unseen
    }

    fn add(&mut self, id: ContainerId, seen: Seen) {
        match seen {
            Seen::Other => {}
            Seen::Unclear => {
                if let Some(known) = self.inits.remove(&id) {
                    release(&self.table, &known.process);
                }
                self.unclear.insert(id);
            }
            Seen::Init(init) if self.unclear.contains(&id) => release(&self.table, &init.process),
            Seen::Init(init) => match self.inits.entry(id) {
                Entry::Vacant(entry) => _ = entry.insert(*init),
                Entry::Occupied(entry) => {
                    let (id, known) = entry.remove_entry();
                    release(&self.table, &known.process);
                    release(&self.table, &init.process);
                    self.unclear.insert(id);
                }
            },
        }
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        while let Some((_, init)) = self.inits.pop_first() {
            release(&self.table, &init.process);
        }
    }
}

fn release(table: &ProcessTable, process: &Process) {
    if let Some(fd) = process.fd {
        table.fds().release(fd);
    }
}

impl Pinned {
    /// The process: whether it has not ended since it was read, the directory tells, which is of no other one.
    fn still_alive(self) -> Result<Process, Process> {
        match live_mount_namespace(&self.directory) {
            Some(mnt_ns) => Ok(Process {
                mnt_ns,
                is_init: true,
                ..self.process
            }),
            None => Err(self.process),
        }
    }
}

/// What a process in a container's cgroup is.
enum Seen {
    /// Pid 1 of a PID namespace right below the host's.
    Init(Box<Pinned>),
    /// Some other process of such a namespace.
    Other,
    /// One by which the container may have another namespace than its own.
    Unclear,
}

/// Whose a process is, and what it is there; `None` where its cgroup names no container that is wanted.
fn look(
    table: &ProcessTable,
    pid: u32,
    is_wanted: impl Fn(&ContainerId) -> bool,
) -> Result<Option<(ContainerId, Seen)>, Errno> {
    let directory = table.open_process(pid)?;
    let cgroup = read_at(&directory, "cgroup")?;
    let path = cgroup_path(&cgroup);
    let Some(id) = container_of(path).filter(is_wanted) else {
        return Ok(None);
    };
    let namespace = open_namespace(&directory)?;
    let place = match place_by_nsfs(table, &namespace, pid) {
        Some(place) => place,
        None => place_by_status(&read_at(&directory, "status")?),
    };
    let seen = match place {
        Place::Unclear => Seen::Unclear,
        Place::Inside => Seen::Other,
        Place::First if is_within_another(path, &id) => Seen::Unclear,
        Place::First => match table.pinned(&directory, namespace, pid, &cgroup) {
            Ok(process) => Seen::Init(Box::new(Pinned { directory, process })),
            Err(_) => Seen::Unclear,
        },
    };
    Ok(Some((id, seen)))
}

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Pid 1 of a PID namespace right below the host's.
    First,
    /// Not the first process of such a namespace, or deeper.
    Inside,
    /// In the host's PID namespace, or not to be seen.
    Unclear,
}

/// The place of a process, by two questions to its namespace, which cost a tenth of its status. `None` where they do
/// not tell: on kernels before 6.11, and where our own PID namespace is not the process table's.
fn place_by_nsfs(table: &ProcessTable, namespace: &OwnedFd, pid: u32) -> Option<Place> {
    let above = rustix::fs::fstat(nsfs::parent(namespace).ok()?).ok()?;
    if above.st_ino != table.host_pns_inode() {
        return None;
    }
    // Its first process has a pid here only if we see it from the host's namespace: what is right below that is right
    // below no other.
    Some(if nsfs::first_pid(namespace)? == pid {
        Place::First
    } else {
        Place::Inside
    })
}

fn place_by_status(status: &str) -> Place {
    match ns_pids(status).as_slice() {
        [] | [_] => Place::Unclear,
        [_, "1"] => Place::First,
        _ => Place::Inside,
    }
}

/// The container that a cgroup's path names last: what is inside of another one is the inner one's.
fn container_of(path: &str) -> Option<ContainerId> {
    let mut words = path.rsplit(|c: char| !c.is_ascii_hexdigit());
    ContainerId::parse(words.find(|word| word.len() == ID_DIGITS)?)
}

/// Whether a cgroup's path names another container above one. What is right below the host's namespace is then more likely the
/// outer one's: whoever may make cgroups inside of it may give them any name.
fn is_within_another(path: &str, id: &ContainerId) -> bool {
    let mut words = path.split(|c: char| !c.is_ascii_hexdigit());
    words.any(|word| word.len() == ID_DIGITS && word != id.as_str())
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

    use rustix::process::{WaitId, WaitIdOptions};

    use crate::reconcile::ProcessReading;

    use super::*;

    fn id(digit: char) -> ContainerId {
        let text = digit.to_string().repeat(ID_DIGITS);
        ContainerId::parse(&text).expect("hex digits are an id")
    }

    fn table() -> Arc<ProcessTable> {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        Arc::new(table)
    }

    fn nothing_seen() -> Sight {
        Sight {
            table: table(),
            inits: BTreeMap::new(),
            unclear: BTreeSet::new(),
        }
    }

    fn nobodys(table: &Arc<ProcessTable>) -> Inits {
        Inits {
            table: Arc::clone(table),
            found: BTreeMap::new(),
        }
    }

    /// What a look finds of a process, under another pid.
    fn pinned(table: &ProcessTable, process: u32, pid: u32) -> Pinned {
        let directory = table.open_process(process).expect("it lives");
        let namespace = open_namespace(&directory).expect("it may be read");
        let process = table.pinned(&directory, namespace, pid, "");
        let process = process.expect("it may be read");
        Pinned { directory, process }
    }

    fn init(table: &ProcessTable, pid: u32) -> Seen {
        Seen::Init(Box::new(pinned(table, std::process::id(), pid)))
    }

    fn sleeper() -> std::process::Child {
        let mut sleep = std::process::Command::new("sleep");
        sleep.arg("60").spawn().expect("there is `sleep`")
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
    fn a_container_that_names_its_own_cgroup_after_another_one_is_not_taken_for_that() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        for (path, is_unclear) in [
            (format!("/docker/{a}/{b}"), true),
            (format!("/docker/{a}/docker/{b}/init.scope"), true),
            (format!("/docker/{b}"), false),
            (format!("/docker/{b}/{b}"), false),
            (format!("/kubepods/pod1-2/{b}"), false),
        ] {
            let id = container_of(&path).expect("it names one");
            assert_eq!(id.as_str(), b);
            assert_eq!(is_within_another(&path, &id), is_unclear, "{path}");
        }
    }

    #[test]
    fn pids_are_those_of_each_namespace() {
        assert_eq!(ns_pids("Name:\ta\nNSpid:\t4711\t1\n"), ["4711", "1"]);
        assert!(ns_pids("Name:\ta\n").is_empty());
    }

    #[test]
    fn a_container_with_two_inits_or_a_process_of_the_host_s_namespace_is_unclear() {
        let mut sight = nothing_seen();
        let table = Arc::clone(&sight.table);
        sight.add(id('a'), init(&table, 1));
        sight.add(id('a'), Seen::Other);
        sight.add(id('b'), init(&table, 2));
        sight.add(id('b'), init(&table, 3));
        sight.add(id('b'), init(&table, 4));
        sight.add(id('c'), Seen::Unclear);
        sight.add(id('c'), init(&table, 5));
        sight.add(id('d'), init(&table, 6));
        sight.add(id('d'), Seen::Unclear);
        assert_eq!(table.fds().count(), 1, "the others' fds are let go");

        let wanted = ['a', 'b', 'c', 'd', 'e'].map(id);
        let mut taken = nobodys(&table);
        let unseen = sight.give(&BTreeSet::from(wanted), &mut taken);
        let pids = taken.found.values().map(|process| process.pid);
        assert!(pids.eq([1]) && taken.take(&id('a')).is_some());
        assert_eq!(unseen, BTreeSet::from([id('e')]), "another look may see it");
        drop((sight, taken));
        assert_eq!(table.fds().count(), 1, "what was taken is the taker's");
    }

    #[test]
    fn a_process_that_ended_after_the_look_is_not_taken_whoever_has_its_pid() {
        let mut sight = nothing_seen();
        let table = Arc::clone(&sight.table);
        let (mut zombie, mut gone) = (sleeper(), sleeper());
        // Both pids are those of a process that lives, as if they had been given out again.
        let alive = std::process::id();
        for (container, process) in [('a', alive), ('b', zombie.id()), ('c', gone.id())] {
            let seen = Seen::Init(Box::new(pinned(&table, process, alive)));
            sight.add(id(container), seen);
        }
        zombie.kill().expect("it is ours");
        gone.kill().expect("it is ours");
        gone.wait().expect("it is ours");
        let zombie_pid = rustix::process::Pid::from_child(&zombie);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(zombie_pid), options).expect("it ends");

        let wanted = BTreeSet::from(['a', 'b', 'c'].map(id));
        let mut taken = nobodys(&table);
        let unseen = sight.give(&wanted, &mut taken);
        assert!(taken.found.keys().eq([&id('a')]), "{taken:?}");
        assert_eq!(unseen, BTreeSet::from(['b', 'c'].map(id)));
        assert_eq!(table.fds().count(), 1, "the fds of what ended are let go");
        drop(taken);
        assert_eq!(table.fds().count(), 0, "nobody took the other one");
        zombie.wait().expect("it is ours");
    }

    #[test]
    fn the_first_process_of_a_namespace_is_the_same_by_nsfs_and_by_its_status() {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--pid", "--fork", "sh", "-c", "sleep 60 & echo ready; wait"]);
        unshare.stdout(std::process::Stdio::piped());
        unshare.stderr(std::process::Stdio::null());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut shell = unshare.spawn().expect("there is `unshare`");
        let mut ready = [0];
        let mut out = shell.stdout.take().expect("it is piped");
        std::io::Read::read_exact(&mut out, &mut ready).expect("it runs");
        let table = table();
        let children = |pid: u32| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let pids = std::fs::read_to_string(path).expect("it lives");
            let pids = pids.split_ascii_whitespace().map(str::parse);
            pids.collect::<Result<Vec<u32>, _>>()
                .expect("pids are numbers")
        };
        let first = children(shell.id())[0];
        let second = children(first)[0];

        let mut places = Vec::new();
        for pid in [shell.id(), first, second] {
            let directory = table.open_process(pid).expect("it lives");
            let namespace = open_namespace(&directory).expect("it may be read");
            let status = read_at(&directory, "status").expect("it may be read");
            let by_status = place_by_status(&status);
            // Older kernels do not tell.
            let by_nsfs = place_by_nsfs(&table, &namespace, pid);
            assert!(by_nsfs.is_none_or(|place| place == by_status), "{status}");
            places.push(by_status);
            // Nor is it told where our own pids are not the table's.
            let blind = ProcessTable {
                has_our_pids: false,
                ..ProcessTable::open(Path::new("/proc")).expect("it is mounted")
            };
            for table in [&*table, &blind] {
                let is_init = match table.read(pid) {
                    ProcessReading::Alive(process) => Some(process.is_init),
                    ProcessReading::Dead | ProcessReading::Denied => None,
                };
                assert_eq!(is_init, Some(super::super::status_is_init(&status)));
            }
        }
        assert_eq!(places, [Place::Unclear, Place::First, Place::Inside]);
        // What is in it dies with the first.
        let pid = rustix::process::Pid::from_raw(first.cast_signed()).expect("it is a pid");
        let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        killed.expect("it is ours");
        shell.wait().expect("it is ours");
    }

    #[test]
    fn nobody_s_inits_are_found_for_what_is_not_there_nor_for_a_foreign_user() {
        let look = FirstLook::begin(&table());
        let many = (b'0'..=b'9').map(|digit| id(char::from(digit)));
        let wanted: BTreeSet<_> = many.collect();
        assert!(wanted.len() > LOOK_AGAIN_MIN);
        for uid in [0, 65_533] {
            assert!(look.take(&wanted, uid).found.is_empty());
        }
    }
}
