//! A PID namespace's ancestors, by the kernel's `NS_GET_PARENT` (Linux 4.9, `ioctl_ns(2)`), and its first process.
//!
//! Docker in Docker, a build's sandbox, a browser's: each makes a PID namespace below its container's, of which no
//! runtime of this host knows. Its ancestors say whose it is.

use std::ffi::c_void;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use crate::procfs::{ProcessTable, namespace_id};

/// Deepest nesting of PID namespaces (`MAX_PID_NS_LEVEL`, include/linux/pid_namespace.h).
const DEPTH_MAX: usize = 32;

/// One PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number.
    pub inode: u64,
    /// The kernel's id of it, never reused; `None` on kernels without it.
    pub id: Option<u64>,
}

/// The PID namespace of a process, its parent, and so on, up to the host's own, which is the last where it may be
/// seen: a process may not ask beyond its own namespace.
///
/// # Errors
/// Where the process is gone or may not be read.
pub fn chain(table: &ProcessTable, pid: u32) -> Result<Vec<Namespace>, Errno> {
    let path = table.root().join(format!("{pid}/ns/pid"));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut namespace = rustix::fs::open(path, flags, Mode::empty())?;
    let mut chain = Vec::new();
    for _ in 0..=DEPTH_MAX {
        let inode = rustix::fs::fstat(&namespace)?.st_ino;
        let id = namespace_id(&namespace);
        chain.push(Namespace { inode, id });
        if inode == table.host_pns_inode() {
            break;
        }
        // EPERM: the parent is no descendant of our own namespace, or there is none.
        match parent(&namespace) {
            Ok(above) => namespace = above,
            Err(_) => break,
        }
    }
    Ok(chain)
}

/// `NS_GET_PARENT`: an fd on the namespace above.
#[expect(
    unsafe_code,
    reason = "an ioctl has no safe form; this one takes nothing and returns a new fd"
)]
pub(crate) fn parent(namespace: &OwnedFd) -> Result<OwnedFd, Errno> {
    struct GetParent;

    // SAFETY: NS_GET_PARENT is _IO(0xb7, 2): the kernel reads and writes no memory of ours, and what it returns is
    // either an error, which rustix has seen to, or an fd that it has just opened for us.
    unsafe impl Ioctl for GetParent {
        type Output = OwnedFd;

        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            opcode::none(0xb7, 2)
        }

        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::null_mut()
        }

        unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
            // SAFETY: the caller gives what the ioctl returned without an error: a new fd, nobody else's.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
    }

    // SAFETY: see above.
    unsafe { rustix::ioctl::ioctl(namespace, GetParent) }
}

/// The pid in our own PID namespace of another one's first process (`NS_GET_TGID_FROM_PIDNS`, Linux 6.11;
/// `include/uapi/linux/nsfs.h`); `None` where it has none, and on older kernels.
#[expect(
    unsafe_code,
    reason = "an ioctl has no safe form; this one takes a number and returns one"
)]
pub(crate) fn first_pid(namespace: &OwnedFd) -> Option<u32> {
    struct GetFirst;

    // SAFETY: NS_GET_TGID_FROM_PIDNS is _IOR(0xb7, 7, int): the kernel takes its argument as a pid, not as an address,
    // reads and writes no memory of ours, and returns a pid.
    unsafe impl Ioctl for GetFirst {
        type Output = u32;

        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            opcode::read::<i32>(0xb7, 7)
        }

        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::without_provenance_mut(1)
        }

        unsafe fn output_from_ptr(pid: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
            u32::try_from(pid).map_err(|_| Errno::SRCH)
        }
    }

    // SAFETY: see above.
    unsafe { rustix::ioctl::ioctl(namespace, GetFirst) }.ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn our_own_chain_begins_with_our_own_namespace() {
        let table = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let pid = std::process::id();
        let chain = chain(&table, pid).expect("this process lives");
        assert_eq!(
            chain.first().map(|first| first.inode),
            table.pns_inode(pid),
            "{chain:?}"
        );
        assert!(super::chain(&table, u32::MAX / 2).is_err());
    }
}
