//! The process table: from a pid to its namespaces, start, cgroup, and whether it is pid 1 inside.
//!
//! `/proc/PID` is opened once, as a directory, and everything is read through that fd: when the process dies
//! midway the reads fail, and a pid that is given to another process meanwhile is never mixed in.

#[cfg(test)]
mod fuzz;
mod inits;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::local::nsfs;
use crate::reconcile::{FdToken, Process, ProcessReading};

pub use inits::FirstLook;

/// Longest file that is read of a process. `status` and `cgroup` have some KiB.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// What is read at once.
const READ_BYTES: usize = 4_096;

/// A clock that is so far from where it should be has been stepped, by a person or by a time server; slewing moves it by
/// at most 0.5 ms a second (adjtimex(2)), and two readings are not made at one instant.
const CLOCK_STEP_MS: u64 = 1_000;

/// The fds on namespaces that mappings hold, by token.
#[derive(Debug, Default)]
pub struct NamespaceFds {
    next: AtomicU64,
    held: Mutex<HashMap<FdToken, Held>>,
}

/// A namespace that is held.
#[derive(Debug)]
struct Held {
    namespace: OwnedFd,
    /// Processes in it that are asked for again and again: several where containers share it.
    processes: Vec<Kept>,
}

/// A process that began at some time, and its pidfd, which is of no other one.
#[derive(Debug)]
struct Kept {
    pid: u32,
    start_ticks: u64,
    pidfd: OwnedFd,
}

impl Kept {
    /// Whether it has not ended; a zombie has.
    fn lives(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let polled = rustix::event::poll(&mut ended, Some(&Timespec::default()));
        polled == Ok(0)
    }
}

impl NamespaceFds {
    /// Takes an fd over.
    pub(crate) fn hold(&self, namespace: OwnedFd) -> FdToken {
        let token = FdToken(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let held = Held {
            namespace,
            processes: Vec::new(),
        };
        self.all().insert(token, held);
        token
    }

    /// Looks at an fd that is held; `None` where it is not.
    pub(crate) fn with<T>(
        &self,
        token: FdToken,
        look: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> T,
    ) -> Option<T> {
        self.all()
            .get(&token)
            .map(|held| look(held.namespace.as_fd()))
    }

    /// Closes an fd.
    pub fn release(&self, token: FdToken) {
        self.all().remove(&token);
    }

    /// Closes all fds but those of some tokens.
    pub fn retain(&self, tokens: &std::collections::BTreeSet<FdToken>) {
        self.all().retain(|token, _| tokens.contains(token));
    }

    /// How many namespaces are held.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Lets go of the pidfds of a namespace's processes: nobody asks for them any more.
    pub fn forget_processes(&self, token: FdToken) {
        if let Some(held) = self.all().get_mut(&token) {
            held.processes = Vec::new();
        }
    }

    /// Keeps a process's pidfd beside its namespace, and lets go of those that have ended.
    fn keep_process(&self, token: FdToken, kept: Kept) {
        if let Some(held) = self.all().get_mut(&token) {
            held.processes.retain(Kept::lives);
            held.processes.push(kept);
        }
    }

    /// Whether the process that began then has not ended; `None` where its pidfd is not kept.
    fn lives(&self, token: FdToken, pid: u32, start_ticks: u64) -> Option<bool> {
        let all = self.all();
        let mut kept = all.get(&token)?.processes.iter();
        let kept = kept.find(|kept| (kept.pid, kept.start_ticks) == (pid, start_ticks))?;
        Some(kept.lives())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<FdToken, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process table.
#[derive(Debug)]
pub struct ProcessTable {
    root: PathBuf,
    ticks_per_second: u64,
    /// REALTIME − BOOTTIME in milliseconds: computed anew only when the clock has been stepped, so that slewing does
    /// not give one process two starts.
    boot_time_ms: AtomicU64,
    host_pns_inode: u64,
    /// Its pids are those of our own PID namespace.
    has_our_pids: bool,
    /// It was told that processes cannot be read for want of something.
    is_shortage_told: AtomicBool,
    fds: NamespaceFds,
}

impl ProcessTable {
    /// Opens the process table at a root, `/proc` or where the host's is mounted.
    ///
    /// # Errors
    /// When the root is no process table.
    pub fn open(root: &Path) -> std::io::Result<Self> {
        let host_pns_inode = match rustix::fs::readlink(root.join("1/ns/pid"), Vec::new()) {
            Ok(link) => link_inode(&link.to_string_lossy()).unwrap_or(HOST_PNS_INODE),
            Err(Errno::ACCESS | Errno::PERM) => HOST_PNS_INODE,
            Err(error) => return Err(error.into()),
        };
        let ours = pns_inode_at(Path::new("/proc/self/ns/pid"));
        Ok(Self {
            root: root.to_owned(),
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            boot_time_ms: AtomicU64::new(boot_time_ms()),
            host_pns_inode,
            has_our_pids: ours == Some(host_pns_inode),
            is_shortage_told: AtomicBool::new(false),
            fds: NamespaceFds::default(),
        })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The number of the host's own PID namespace.
    pub fn host_pns_inode(&self) -> u64 {
        self.host_pns_inode
    }

    /// The fds that are held.
    pub fn fds(&self) -> &NamespaceFds {
        &self.fds
    }

    /// The text of `sys/kernel/random/boot_id`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn boot_id(&self) -> std::io::Result<String> {
        let text = std::fs::read_to_string(self.root.join("sys/kernel/random/boot_id"))?;
        Ok(text.trim().to_owned())
    }

    /// Reads a process, and holds an fd on its PID namespace. The caller releases the fd of the answer.
    ///
    /// A zombie counts as dead: it has no namespaces any more. One that cannot be read for want of files or memory does not.
    pub fn read(&self, pid: u32) -> ProcessReading {
        match self.try_read(pid) {
            Ok(process) => ProcessReading::Alive(Box::new(process)),
            Err(error) => {
                self.tell_unread(pid, error);
                unread(error)
            }
        }
    }

    /// Where the system is short of something, so it will be for the next process: that is worth one warning.
    fn tell_unread(&self, pid: u32, error: Errno) {
        match error {
            Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM => {}
            _ if self.is_shortage_told.swap(true, Ordering::Relaxed) => {
                tracing::debug!(pid, %error, "a process cannot be read");
            }
            _ => tracing::warn!(
                pid,
                %error,
                "a process cannot be read; `quaymaster doctor` says how many open files are needed"
            ),
        }
    }

    /// The same of a process that a runtime of this user names. Unless that is root or ourselves, the process's user
    /// namespace must have been made by that user, else it counts as one that may not be read: such a runtime could
    /// name any process as its container's.
    pub fn read_of_user(&self, pid: u32, uid: u32) -> ProcessReading {
        let reading = self.read(pid);
        match reading {
            ProcessReading::Alive(process) if !Self::is_trusted(uid) => {
                let owner = self.user_namespace_owner(pid);
                // What was looked at is still the process that was read.
                let is_same = self.start_ticks(pid) == Some(process.start_ticks);
                if owner == Some(uid) && is_same {
                    return ProcessReading::Alive(process);
                }
                if let Some(fd) = process.fd {
                    self.fds.release(fd);
                }
                ProcessReading::Denied
            }
            ProcessReading::Alive(_) | ProcessReading::Dead | ProcessReading::Denied => reading,
        }
    }

    /// Whether a runtime that this user serves may name any process.
    pub(crate) fn is_trusted(uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw()
    }

    /// The user that made a process's user namespace (`NS_GET_OWNER_UID`, ioctl_nsfs(2)).
    #[expect(
        unsafe_code,
        reason = "an ioctl has no safe form; this one writes one u32"
    )]
    fn user_namespace_owner(&self, pid: u32) -> Option<u32> {
        const NS_GET_OWNER_UID: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0xb7, 4);
        let path = self.root.join(format!("{pid}/ns/user"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        // SAFETY: NS_GET_OWNER_UID is _IO(0xb7, 4): the kernel writes one uid_t and reads nothing.
        let uid: u32 = unsafe {
            let get = rustix::ioctl::Getter::<NS_GET_OWNER_UID, u32>::new();
            rustix::ioctl::ioctl(namespace, get).ok()?
        };
        Some(uid)
    }

    /// The PID namespace's number of a process; `None` where it is gone or may not be read.
    pub fn pns_inode(&self, pid: u32) -> Option<u64> {
        pns_inode_at(&self.root.join(format!("{pid}/ns/pid")))
    }

    /// The start of a living process in clock ticks since boot; `None` where it is gone or a zombie.
    pub fn start_ticks(&self, pid: u32) -> Option<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = self.root.join(format!("{pid}/stat"));
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        stat_start_ticks(&read_whole(&file).ok()?)
    }

    /// Whether a process that started then, and whose namespace is held, still lives. A zombie does not. From the second
    /// time on that costs a twentieth of a look at its `stat`: its pidfd is kept beside the namespace.
    pub fn is_same(&self, pid: u32, start_ticks: u64, namespace: FdToken) -> bool {
        if let Some(lives) = self.fds.lives(namespace, pid, start_ticks) {
            return lives;
        }
        // Before its start is looked at: then it is that process's.
        let pidfd = self.pidfd(pid);
        let is_same = self.start_ticks(pid) == Some(start_ticks);
        if is_same && let Some(pidfd) = pidfd {
            let kept = Kept {
                pid,
                start_ticks,
                pidfd,
            };
            self.fds.keep_process(namespace, kept);
        }
        is_same
    }

    /// pidfd_open(2), Linux 5.3; `None` where our own pids are not this table's.
    fn pidfd(&self, pid: u32) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?).filter(|_| self.has_our_pids)?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    fn try_read(&self, pid: u32) -> Result<Process, Errno> {
        let directory = self.open_process(pid)?;
        // First of all: a process that lives some ms has no namespace any more when it has died.
        let namespace = open_namespace(&directory)?;
        let cgroup = read_at(&directory, "cgroup")?;
        let is_init = match self.first_of(&namespace) {
            Some(first) => first == pid,
            None => status_is_init(&read_at(&directory, "status")?),
        };
        let mnt_ns = live_mount_namespace(&directory).unwrap_or(0);
        let process = self.pinned(&directory, namespace, pid, &cgroup)?;
        Ok(Process {
            mnt_ns,
            is_init,
            ..process
        })
    }

    /// The pid of a namespace's first process, by a question that costs a tenth of a look at its status. `None` where the
    /// kernel does not tell, and where our own pids are not this table's.
    fn first_of(&self, namespace: &OwnedFd) -> Option<u32> {
        self.has_our_pids
            .then(|| nsfs::first_pid(namespace))
            .flatten()
    }

    /// The directory of a process: what is read through it is of one process.
    fn open_process(&self, pid: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        rustix::fs::open(self.root.join(pid.to_string()), flags, Mode::empty())
    }

    /// What is known of a process without its status: whether it is pid 1 inside and its mount namespace are not in it.
    fn pinned(
        &self,
        directory: &OwnedFd,
        namespace: OwnedFd,
        pid: u32,
        cgroup: &str,
    ) -> Result<Process, Errno> {
        let pns_inode = rustix::fs::fstat(&namespace)?.st_ino;
        let stat = read_at(directory, "stat")?;
        let start_ticks = stat_start_ticks(&stat).ok_or(Errno::SRCH)?;
        Ok(Process {
            pid,
            start_ticks,
            started_at_ms: self.start_ms(start_ticks),
            pns_inode,
            pns_id: namespace_id(&namespace),
            mnt_ns: 0,
            cgroup: cgroup_path(cgroup).into(),
            is_init: false,
            fd: Some(self.fds.hold(namespace)),
        })
    }

    fn boot_time_ms(&self) -> u64 {
        let (known, now) = (self.boot_time_ms.load(Ordering::Relaxed), boot_time_ms());
        if known.abs_diff(now) < CLOCK_STEP_MS {
            return known;
        }
        self.boot_time_ms.store(now, Ordering::Relaxed);
        now
    }

    /// A process's start in unix milliseconds, less one tick.
    pub(crate) fn start_ms(&self, start_ticks: u64) -> u64 {
        self.boot_time_ms() + start_ticks.saturating_sub(1) * 1_000 / self.ticks_per_second
    }
}

/// The kernel's constant (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
pub const HOST_PNS_INODE: u64 = 4_026_531_836;

/// What is known of a process that could not be read. Only what the kernel says of none is the end of one: where files or
/// memory have run out, it may well live.
fn unread(error: Errno) -> ProcessReading {
    match error {
        Errno::NOENT | Errno::SRCH => ProcessReading::Dead,
        _ => ProcessReading::Denied,
    }
}

/// Opens a process's PID namespace, which is held by that.
fn open_namespace(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, "ns/pid", flags, Mode::empty())
}

/// The number of a process's mount namespace; `None` where it may not be read. A process that has ended has none, be it
/// reaped or a zombie, and its directory is nobody else's: what this gives, it gives of a process that lives.
fn live_mount_namespace(directory: &OwnedFd) -> Option<u64> {
    let link = rustix::fs::readlinkat(directory, "ns/mnt", Vec::new()).ok()?;
    link_inode(&link.to_string_lossy())
}

fn read_at(directory: &OwnedFd, name: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    read_whole(&rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// Reads a file of a process. What a read gives of it is whole but where the buffer is full (`single_open`,
/// fs/seq_file.c): there is no need to ask whether more comes.
fn read_whole(file: &OwnedFd) -> Result<String, Errno> {
    let mut buffer = [0; READ_BYTES];
    let mut bytes = Vec::new();
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut buffer))?;
        bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if length < buffer.len() || bytes.len() >= FILE_BYTES_MAX {
            break;
        }
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn pns_inode_at(path: &Path) -> Option<u64> {
    let link = rustix::fs::readlink(path, Vec::new()).ok()?;
    link_inode(&link.to_string_lossy())
}

fn boot_time_ms() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let boot = clock_gettime(ClockId::Boottime);
    let boot_ms = boot.tv_sec * 1_000 + boot.tv_nsec / 1_000_000;
    crate::runtime::watch::now_ms().saturating_sub(u64::try_from(boot_ms).unwrap_or(0))
}

/// The kernel's 64-bit id of a namespace (`NS_GET_ID`, Linux 6.18); `None` on kernels without it.
#[expect(
    unsafe_code,
    reason = "an ioctl has no safe form; this one writes one u64"
)]
pub(crate) fn namespace_id<Fd: AsFd>(namespace: Fd) -> Option<u64> {
    const NS_GET_ID: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u64>(0xb7, 13);
    // SAFETY: NS_GET_ID is _IOR(0xb7, 13, u64): the kernel writes one u64 and reads nothing.
    let id: u64 = unsafe {
        let get = rustix::ioctl::Getter::<NS_GET_ID, u64>::new();
        rustix::ioctl::ioctl(namespace, get).ok()?
    };
    Some(id)
}

/// The number in a namespace's link: `pid:[4026532448]`.
pub(crate) fn link_inode(link: &str) -> Option<u64> {
    link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// Field 22 of `stat`; `None` for a zombie. The name in field 2 may hold anything, `)` too.
fn stat_start_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether the last of `NSpid` is 1.
fn status_is_init(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|pids| pids.split_ascii_whitespace().last())
        == Some("1")
}

/// The path of the unified hierarchy, else of the first one that is not the root.
pub(crate) fn cgroup_path(cgroup: &str) -> &str {
    let path_of = |line: &'_ str| line.splitn(3, ':').nth(2).map_or(0, str::len);
    let unified = cgroup
        .lines()
        .find(|line| line.starts_with("0::") && path_of(line) > 1);
    let deepest = || cgroup.lines().max_by_key(|line| path_of(line));
    unified
        .or_else(deepest)
        .and_then(|line| line.splitn(3, ':').nth(2))
        .unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) 9) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        assert_eq!(stat_start_ticks(stat), Some(123_456));
        let zombie = "7 (a) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        assert_eq!(stat_start_ticks(zombie), None);
        assert_eq!(stat_start_ticks("7 (a) S 1"), None);
        assert_eq!(stat_start_ticks(""), None);
    }

    #[test]
    fn a_process_ends_by_the_kernel_s_word_and_not_by_a_want_of_files() {
        for ended in [Errno::NOENT, Errno::SRCH] {
            assert_eq!(unread(ended), ProcessReading::Dead, "{ended}");
        }
        for unknown in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::INTR,
            Errno::ACCESS,
            Errno::PERM,
        ] {
            assert_eq!(unread(unknown), ProcessReading::Denied, "{unknown}");
        }
    }

    #[test]
    fn pid_one_inside_is_the_last_nspid() {
        assert!(status_is_init("Name:\ta\nNSpid:\t4711\t1\n"));
        assert!(!status_is_init("Name:\ta\nNSpid:\t4711\t17\n"));
        assert!(!status_is_init(""));
    }

    #[test]
    fn the_unified_cgroup_is_preferred() {
        assert_eq!(cgroup_path("0::/docker/abc\n"), "/docker/abc");
        assert_eq!(cgroup_path("12:pids:/docker/abc\n0::/\n"), "/docker/abc");
        assert_eq!(cgroup_path(""), "");
    }

    #[test]
    fn a_process_of_another_user_than_the_runtime_s_is_not_read() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let ours = std::process::id();
        assert!(matches!(
            table.read_of_user(ours, 0),
            ProcessReading::Alive(_)
        ));
        assert_eq!(table.read_of_user(ours, 65_533), ProcessReading::Denied);
        assert_eq!(
            table.fds().count(),
            1,
            "the fd of what was refused is let go"
        );
        let owner = table.user_namespace_owner(ours);
        assert_eq!(owner, Some(0), "the host's is root's");
    }

    #[test]
    fn a_process_is_the_same_until_it_ends_whoever_has_its_pid_then() {
        use rustix::process::{WaitId, WaitIdOptions};
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let mut sleep = std::process::Command::new("sleep");
        let mut sleep = sleep.arg("60").spawn().expect("there is `sleep`");
        let pid = sleep.id();
        let ticks = table.start_ticks(pid).expect("it lives");
        let ours = std::fs::File::open("/proc/self/ns/pid").expect("we live");
        let fd = table.fds().hold(ours.into());
        assert!(!table.is_same(pid, ticks + 1, fd), "another one's start");
        assert_eq!(table.fds().lives(fd, pid, ticks + 1), None);
        assert!(table.is_same(pid, ticks, fd));
        let is_kept = table.has_our_pids.then_some(true);
        assert_eq!(table.fds().lives(fd, pid, ticks), is_kept);
        assert!(table.is_same(pid, ticks, fd), "asked again");
        let us = std::process::id();
        let our_ticks = table.start_ticks(us).expect("we live");
        assert!(table.is_same(us, our_ticks, fd), "another one beside it");
        // Its pid is given to us, as it were: what has ended stays so.
        let pidfd = table.pidfd(pid);
        if let Some(pidfd) = pidfd {
            let kept = Kept {
                pid: us,
                start_ticks: ticks,
                pidfd,
            };
            table.fds().keep_process(fd, kept);
            assert_eq!(table.fds().lives(fd, us, ticks), Some(true));
        }

        sleep.kill().expect("it is ours");
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(Pid::from_child(&sleep)), ended).expect("it ends");
        assert!(!table.is_same(pid, ticks, fd), "a zombie");
        assert!(!table.is_same(us, ticks, fd), "whoever has its pid");
        sleep.wait().expect("it is ours");
        assert!(!table.is_same(pid, ticks, fd));
        assert!(table.is_same(us, our_ticks, fd));
        table.fds().forget_processes(fd);
        assert_eq!(table.fds().lives(fd, us, our_ticks), None);
        table.fds().release(fd);
        assert_eq!(table.fds().count(), 0);
    }

    #[test]
    fn our_own_process_can_be_read_and_a_missing_one_is_dead() {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let reading = table.read(std::process::id());
        let process = match reading {
            ProcessReading::Alive(process) => Some(process),
            ProcessReading::Dead | ProcessReading::Denied => None,
        }
        .expect("this process lives");
        assert_eq!(Some(process.pns_inode), table.pns_inode(std::process::id()));
        let ticks = table.start_ticks(std::process::id());
        assert_eq!(Some(process.start_ticks), ticks);
        assert_eq!(table.start_ticks(u32::MAX / 2), None);
        assert_eq!(table.fds().count(), 1);
        table.fds().release(process.fd.expect("an fd is held"));
        assert_eq!(table.fds().count(), 0);
        assert_eq!(table.read(u32::MAX / 2), ProcessReading::Dead);
    }
}
