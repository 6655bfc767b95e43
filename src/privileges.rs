//! What the daemon gives up when it has what it needs: powers of root, new privileges, system calls that it never makes,
//! and core dumps, in which secrets would stand.
//!
//! It happens before there is any other thread, so that all that come have no more. Reading `/proc/PID/ns` of others
//! needs CAP_SYS_PTRACE, which stays; a user of its own reads the bundles of root's containerd with CAP_DAC_READ_SEARCH,
//! which stays where it was given. Landlock is not used: a process under it may not look at the namespaces of one that
//! is not (`security/landlock/task.c`, `hook_ptrace_access_check`; seen on Linux 6.18), and that is our work.
//!
//! What a kernel does not have is warned of and done without: the unit and the manifests take the same away from outside.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// Capabilities have numbers below this: they are bits of 64.
const CAPABILITIES_MAX: u32 = 64;

/// System calls that the daemon never makes, and that are of use to whoever has taken it over: to run a program, to get at
/// another process's memory, into its namespaces or its files, to mount, or to change the kernel. They fail with EPERM.
const REFUSED_CALLS: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_personality,
];

/// Gives up what is not needed. `paths` are what is read, written or connected to: where one belongs to another user than
/// root, root keeps CAP_DAC_OVERRIDE for it. Every thread that there is keeps its capabilities: call it before there are.
pub fn give_up<'a>(paths: impl Iterator<Item = &'a Path>) {
    let kept = kept(paths);
    warn("new privileges", set_no_new_privs(true));
    give_up_capabilities(kept);
    leave_no_core();
    if let Err(error) = refuse_calls() {
        tracing::warn!(error, "system calls that are not needed cannot be given up");
    }
    tracing::debug!(?kept, "privileges are given up");
}

/// Leaves no core dump, in which secrets would stand, and lets no process of the same user look into this one's memory.
pub fn leave_no_core() {
    let left = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    warn("core dumps", left);
}

/// The capabilities that stay, of those that are there.
fn kept<'a>(paths: impl Iterator<Item = &'a Path>) -> CapabilitySet {
    let mut kept = CapabilitySet::SYS_PTRACE;
    if !rustix::process::geteuid().is_root() {
        // The bundles have mode 0700, and root owns them.
        kept |= CapabilitySet::DAC_READ_SEARCH;
    } else if paths.into_iter().any(is_of_another_user) {
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    kept
}

/// Whether a path, as far as it is there, leads through what is not root's.
fn is_of_another_user(path: &Path) -> bool {
    path.ancestors()
        .any(|part| std::fs::metadata(part).is_ok_and(|metadata| metadata.uid() != 0))
}

fn give_up_capabilities(kept: CapabilitySet) {
    for number in 0..CAPABILITIES_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // Numbers that the kernel does not have are an error.
        let is_bound = capability_is_in_bounding_set(one).unwrap_or(false);
        if kept.contains(one) || !is_bound {
            continue;
        }
        if let Err(error) = remove_capability_from_bounding_set(one) {
            // It takes CAP_SETPCAP. Without it there is not much to be bounded: no new privileges come.
            tracing::debug!(%error, "the capability bounding set cannot be made smaller");
            break;
        }
    }
    warn("ambient capabilities", clear_ambient_capability_set());
    let reduced = capabilities(None).and_then(|has| {
        let permitted = has.permitted & kept;
        let sets = CapabilitySets {
            effective: has.effective & permitted,
            permitted,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)
    });
    warn("capabilities", reduced);
}

fn refuse_calls() -> Result<(), String> {
    let rules: BTreeMap<i64, Vec<_>> = REFUSED_CALLS
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect();
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(|_| format!("no filter for {}", std::env::consts::ARCH))?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        architecture,
    )
    .map_err(|error| error.to_string())?;
    let program: BpfProgram = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| error.to_string())?;
    apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

fn warn(what: &str, result: rustix::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, what, "this cannot be given up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_the_power_over_files_only_for_what_is_not_roots() -> std::io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let directory = tempfile::tempdir()?;
        let theirs = directory.path().join("theirs");
        std::fs::create_dir(&theirs)?;
        std::os::unix::fs::chown(&theirs, Some(12_345), None)?;
        for (path, keeps) in [
            (directory.path().join("none.sock"), false),
            (theirs.join("podman.sock"), true),
        ] {
            let kept = kept([path.as_path()].into_iter());
            assert_eq!(kept.contains(CapabilitySet::DAC_OVERRIDE), keeps);
            assert!(kept.contains(CapabilitySet::SYS_PTRACE));
        }
        Ok(())
    }
}
