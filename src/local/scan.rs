//! All processes of the host, read from the process table.
//!
//! Each `/proc/PID` is opened once, as a directory, and everything is read through that fd, so that two processes
//! are never mixed. A process that ends midway is left out. Reading another process's command line takes its memory
//! lock, which can hang with it: this blocks, and has no place on a thread that others wait for.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::tenants::{Look, Tenant, Tenants};
use super::{nsfs, ports};
use crate::procfs::{ProcessTable, cgroup_path, link_inode};
use crate::runtime::text;

/// Most processes of one snapshot; the kernel's own default is 32,768.
pub const PROCESSES_MAX: usize = 262_144;
/// Longest command line that is told, in bytes; the kernel allows megabytes.
pub const CMDLINE_BYTES_MAX: usize = 4 * 1024;
/// Longest of the other files that are read of a process.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessRow {
    /// Its pid in the host's PID namespace.
    pub pid: u32,
    /// Its parent's; 0 for none.
    pub ppid: u32,
    /// Its pid in its own PID namespace.
    pub ns_pid: Option<u32>,
    /// The program's path as it was; `""` for the kernel's own threads.
    pub exe: String,
    /// Its arguments with blanks between, bounded; `""` for the kernel's own threads.
    pub cmdline: String,
    /// Its effective user.
    pub uid: Option<u32>,
    /// Its effective group.
    pub gid: Option<u32>,
    /// The name that it gives itself, 15 bytes at most.
    pub comm: String,
    /// The kernel's letter: R, S, D, T, Z, …
    pub state: char,
    /// Its session's leader.
    pub session: u32,
    /// Its terminal, as `ps` writes it; `""` for none.
    pub tty: String,
    /// Its start in clock ticks since boot.
    pub start_ticks: u64,
    /// The same in unix milliseconds.
    pub started_at_ms: u64,
    /// The number of its PID namespace; `None` where it has none any more or may not be read.
    pub pns_inode: Option<u64>,
    /// The number of its mount namespace.
    pub mnt_ns: Option<u64>,
    /// The number of its network namespace.
    pub net_ns: Option<u64>,
}

/// What is on the host at one moment, and how to tell whose it is.
#[derive(Debug)]
pub struct Scene {
    /// All processes, by pid.
    pub processes: Vec<ProcessRow>,
    /// The containers that live among them.
    pub tenants: Tenants,
}

impl Scene {
    /// Reads all processes, and finds the containers among them.
    ///
    /// # Errors
    /// Where the process table cannot be listed.
    pub fn read(table: &ProcessTable, tenants: Vec<Tenant>) -> std::io::Result<Self> {
        let processes = processes(table)?;
        let cgroup = |pid| cgroup(table, pid);
        let tenants = Tenants::new(tenants, &processes, table.host_pns_inode(), &cgroup);
        Ok(Self { processes, tenants })
    }

    /// The listening sockets of all network namespaces.
    pub fn ports(&self, table: &ProcessTable) -> Vec<ports::PortRow> {
        ports::listening(table, &self.processes)
    }

    /// A process by its pid.
    pub fn process(&self, pid: u32) -> Option<&ProcessRow> {
        let index = self.processes.binary_search_by_key(&pid, |row| row.pid);
        self.processes.get(index.ok()?)
    }
}

/// What only some questions need to know of a process.
pub fn look(table: &ProcessTable) -> Look<'_> {
    Look {
        ancestors: Box::new(|pid| {
            let chain = nsfs::chain(table, pid).unwrap_or_default();
            chain.iter().skip(1).map(|above| above.inode).collect()
        }),
        cgroup: Box::new(|pid| cgroup(table, pid)),
    }
}

/// All processes, by pid.
///
/// # Errors
/// Where the process table cannot be listed.
pub fn processes(table: &ProcessTable) -> std::io::Result<Vec<ProcessRow>> {
    let mut reader = Reader::new(table);
    let mut rows = Vec::new();
    for pid in pids(table)? {
        if rows.len() >= PROCESSES_MAX {
            break;
        }
        if let Ok(row) = reader.read(pid) {
            rows.push(row);
        }
    }
    rows.sort_unstable_by_key(|row| row.pid);
    Ok(rows)
}

pub(super) fn pids(table: &ProcessTable) -> std::io::Result<impl Iterator<Item = u32> + use<>> {
    let entries = std::fs::read_dir(table.root())?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The cgroup's path of a process; `""` where it is gone.
fn cgroup(table: &ProcessTable, pid: u32) -> String {
    let path = table.root().join(format!("{pid}/cgroup"));
    let text = std::fs::read(path).unwrap_or_default();
    cgroup_path(&String::from_utf8_lossy(&text)).to_owned()
}

/// Reads one process after another into the same room.
struct Reader<'a> {
    table: &'a ProcessTable,
    room: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(table: &'a ProcessTable) -> Self {
        Self {
            table,
            room: vec![0; FILE_BYTES_MAX],
        }
    }

    fn read(&mut self, pid: u32) -> Result<ProcessRow, Errno> {
        let directory = rustix::fs::open(
            self.table.root().join(pid.to_string()),
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        let mut row = ProcessRow {
            pid,
            ..ProcessRow::default()
        };
        take_stat(&mut row, &self.file(&directory, "stat", FILE_BYTES_MAX)?).ok_or(Errno::SRCH)?;
        row.started_at_ms = self.table.start_ms(row.start_ticks);
        take_status(&mut row, &self.file(&directory, "status", FILE_BYTES_MAX)?);
        // A zombie has none of these any more, the kernel's own threads no program.
        row.pns_inode = namespace(&directory, "ns/pid");
        row.mnt_ns = namespace(&directory, "ns/mnt");
        row.net_ns = namespace(&directory, "ns/net");
        if let Ok(exe) = rustix::fs::readlinkat(&directory, "exe", Vec::new()) {
            row.exe = text::lossy(exe.as_bytes());
        }
        if let Ok(arguments) = self.file(&directory, "cmdline", CMDLINE_BYTES_MAX) {
            row.cmdline = blanks_for_nuls(&arguments);
        }
        Ok(row)
    }

    /// A file's beginning as text.
    fn file(&mut self, directory: &OwnedFd, name: &str, max: usize) -> Result<String, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let room = self.room.get_mut(..max).unwrap_or_default();
        let mut filled = 0;
        while let Some(rest) = room.get_mut(filled..)
            && !rest.is_empty()
        {
            match rustix::io::read(&fd, rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(text::lossy(room.get(..filled).unwrap_or_default()))
    }
}

fn namespace(directory: &OwnedFd, name: &str) -> Option<u64> {
    let link = rustix::fs::readlinkat(directory, name, Vec::new()).ok()?;
    link_inode(&link.to_string_lossy())
}

/// Arguments end with NUL each; a process may also write what it likes there.
fn blanks_for_nuls(arguments: &str) -> String {
    arguments.trim_end_matches('\0').replace('\0', " ")
}

/// Takes what `stat` says (proc_pid_stat(5)). The name in field 2 may hold anything, `)` too.
fn take_stat(row: &mut ProcessRow, stat: &str) -> Option<()> {
    let (head, rest) = stat.rsplit_once(')')?;
    row.comm = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split_ascii_whitespace();
    row.state = fields.next()?.chars().next()?;
    row.ppid = fields.next()?.parse().ok()?;
    row.session = fields.nth(1)?.parse().unwrap_or(0);
    row.tty = tty(fields.next()?.parse().unwrap_or(0));
    // Field 22, of which field 7 was the last one taken.
    row.start_ticks = fields.nth(14)?.parse().ok()?;
    Some(())
}

/// Takes what `status` says: effective ids and the pid in the innermost namespace.
fn take_status(row: &mut ProcessRow, status: &str) {
    let effective = |text: &str| text.split_ascii_whitespace().nth(1)?.parse().ok();
    for line in status.lines() {
        match line.split_once(':') {
            Some(("Uid", ids)) => row.uid = effective(ids),
            Some(("Gid", ids)) => row.gid = effective(ids),
            Some(("NSpid", pids)) => {
                let innermost = pids.split_ascii_whitespace().last();
                row.ns_pid = innermost.and_then(|pid| pid.parse().ok());
            }
            Some(_) | None => {}
        }
    }
}

/// A terminal's name by its device number: major 136 to 143 are pseudo terminals, 4 the consoles
/// (Documentation/admin-guide/devices.txt).
fn tty(device: i64) -> String {
    let Ok(device @ 1..) = u32::try_from(device) else {
        return String::new();
    };
    let major = device >> 8 & 0xfff;
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields_of_stat() {
        let rest = "S 7 8 9 34817 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        for name in ["sh", "a) R 1 (b", ") S 1 1", "a b\u{fffd}"] {
            let mut row = ProcessRow::default();
            let stat = format!("17 ({name}) {rest}");
            assert_eq!(take_stat(&mut row, &stat), Some(()), "{stat}");
            assert_eq!((row.comm.as_str(), row.state, row.ppid), (name, 'S', 7));
            assert_eq!(
                (row.session, row.tty.as_str(), row.start_ticks),
                (9, "pts/1", 123_456)
            );
        }
        for stat in ["", "17", "17 (a)", "17 (a) S", "17 (a) S x 1 1", "17 a S 1"] {
            let mut row = ProcessRow::default();
            assert_eq!(take_stat(&mut row, stat), None, "{stat}");
        }
    }

    #[test]
    fn ids_are_the_effective_ones_and_the_pid_the_innermost() {
        let mut row = ProcessRow::default();
        let status = "Name:\tUid: 5\nUid:\t0\t1000\t0\t0\nGid:\t0\t100\t0\t0\nNSpid:\t17\t3\t1\n";
        take_status(&mut row, status);
        assert_eq!(
            (row.uid, row.gid, row.ns_pid),
            (Some(1000), Some(100), Some(1))
        );
        let mut row = ProcessRow::default();
        take_status(&mut row, "Uid:\tx\nNSpid:\n");
        assert_eq!((row.uid, row.ns_pid), (None, None));
    }

    #[test]
    fn terminals_have_the_names_that_ps_writes() {
        for (device, name) in [
            (0, ""),
            (-1, ""),
            (34_816, "pts/0"),
            (34_816 + 255, "pts/255"),
            (35_072, "pts/256"),
            (1_025, "tty1"),
            (1_088, "ttyS0"),
            (1_281, "5:1"),
        ] {
            assert_eq!(tty(device), name, "{device}");
        }
    }

    #[test]
    fn arguments_have_blanks_between() {
        assert_eq!(blanks_for_nuls("a\0b c\0\0d\0\0"), "a b c  d");
        assert_eq!(blanks_for_nuls(""), "");
    }

    #[test]
    fn our_own_process_is_among_all() {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let scene = Scene::read(&table, Vec::new()).expect("it can be listed");
        let ours = scene
            .process(std::process::id())
            .expect("this process lives");
        assert_eq!(ours.pns_inode, table.pns_inode(ours.pid));
        assert_eq!(Some(ours.start_ticks), table.start_ticks(ours.pid));
        assert_eq!(ours.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(!ours.exe.is_empty() && !ours.cmdline.is_empty());
        assert!(ours.cmdline.len() <= CMDLINE_BYTES_MAX);
    }
}
