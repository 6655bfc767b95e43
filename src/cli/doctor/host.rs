//! What the host and its kernel let us do.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, access};
use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::cli::chain;
use crate::config::Config;
use crate::host;
use crate::outbox::{Holdings, OutboxError};
use crate::procfs::{HOST_PNS_INODE, ProcessTable};
use crate::reconcile::{NESTED_MAX, ProcessReading};

/// Before this (2020) no clock that is set stands, in unix seconds.
const CLOCK_MIN_S: u64 = 1_577_836_800;
/// Files that are open besides those of mappings.
const OTHER_FILES: u64 = 256;
/// Living containers that there is to be room for; each holds its namespace and its process.
const CONTAINERS: u64 = 1_024;
const FILES_EACH: u64 = 2;
/// Room on the disk below which it is worth a word, in bytes.
const DISK_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// The bit of CAP_SYS_PTRACE (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![host_id(config), clock()];
    findings.extend(processes(config));
    findings.push(open_files(config));
    findings.push(state(config));
    findings.extend(disk(config));
    findings
}

fn host_id(config: &Config) -> Finding {
    match host::host_id(config.host_id.as_deref()) {
        Ok(id) => Finding::well("host", id),
        Err(error) => Finding::unwell("host", error, "`systemd-machine-id-setup` makes one"),
    }
}

fn clock() -> Finding {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.as_ref().map_or(0, Duration::as_secs);
    if seconds < CLOCK_MIN_S {
        let remedy = "set it, and keep it with NTP: events are joined by their times";
        return Finding::unwell("clock", "it stands before 2020", remedy);
    }
    let now = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
    Finding::well("clock", now.to_string())
}

fn processes(config: &Config) -> Vec<Finding> {
    let path = config.procfs.display();
    let table = match ProcessTable::open(&config.procfs) {
        Ok(table) => table,
        Err(error) => {
            let found = format!("no process table at `{path}`: {error}");
            let remedy = "name where the host's /proc is mounted with `--procfs`";
            return vec![Finding::unwell("processes", found, remedy)];
        }
    };
    let mut findings = vec![namespaces(&config.procfs)];
    if table.host_pns_inode() != HOST_PNS_INODE {
        findings.push(Finding::limited(
            "processes",
            format!("`{path}` is that of a PID namespace, not the host's"),
            "runtimes tell the host's pids: run on the host, or with hostPID, unless they run in here too",
        ));
    }
    findings.push(match table.read(std::process::id()) {
        ProcessReading::Alive(process) if process.pns_id.is_some() => {
            Finding::well("pns_id", "the kernel tells ids of namespaces (NS_GET_ID)")
        }
        ProcessReading::Alive(_) | ProcessReading::Dead | ProcessReading::Denied => {
            Finding::limited(
                "pns_id",
                "the kernel tells no ids of namespaces: `pns_id` stays empty",
                "Linux 6.18 has them; nothing else needs them",
            )
        }
    });
    findings
}

/// Whether namespaces of other users' processes can be read.
fn namespaces(procfs: &Path) -> Finding {
    let (mut read, mut denied) = (0_usize, 0_usize);
    for entry in fs::read_dir(procfs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_pid = name.to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        if is_pid {
            match fs::read_link(entry.path().join("ns/pid")) {
                Ok(_) => read += 1,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => denied += 1,
                // It has ended meanwhile, or is a zombie.
                Err(_) => {}
            }
        }
    }
    let found = format!("the namespaces of {read} processes can be read, of {denied} not");
    let is_capable = has_capability(CAP_SYS_PTRACE);
    match (is_capable, denied) {
        (true, 0) => Finding::well("namespaces", found),
        (true, denied) if denied < read => Finding::limited(
            "namespaces",
            found,
            "a security module may guard those; containers among them have no `pns`",
        ),
        (true, _) => Finding::unwell(
            "namespaces",
            found,
            "a security module forbids it: run without Docker's AppArmor profile (apparmor:unconfined)",
        ),
        (false, _) => Finding::unwell(
            "namespaces",
            found,
            "run as root or with CAP_SYS_PTRACE: without it there is no `pns` and no mapping",
        ),
    }
}

/// Whether this process has a capability in effect.
fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    capabilities(&status).is_some_and(|set| set & (1 << bit) != 0)
}

fn capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn open_files(config: &Config) -> Finding {
    let nested = if config.pns_nested {
        NESTED_MAX as u64
    } else {
        0
    };
    let living = CONTAINERS * FILES_EACH;
    let needed = config.pns_held_max as u64 + living + nested + OTHER_FILES;
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < needed => Finding::unwell(
            "open files",
            format!("at most {limit}, and up to {needed} are needed"),
            "raise it (LimitNOFILE=), or lower `pns.held_max`",
        ),
        Some(limit) => Finding::well("open files", format!("at most {limit}")),
        None => Finding::well("open files", "no limit"),
    }
}

fn state(config: &Config) -> Finding {
    let path = config.state_dir.display();
    let remedy = "let this user write there, or choose another with `--state-dir`";
    let existing = config.state_dir.ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(Path::new("."));
    if !existing.is_dir() {
        let found = format!("`{}` is no directory", existing.display());
        return Finding::unwell("state", found, remedy);
    }
    if let Err(error) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        let found = format!("`{}` cannot be written: {error}", existing.display());
        return Finding::unwell("state", found, remedy);
    }
    match Holdings::open(&config.state_dir) {
        Ok(holdings) => {
            let meta = holdings.meta();
            let found = format!("`{path}`: epoch {}, delta {}", meta.epoch, meta.seq);
            Finding::well("state", found)
        }
        Err(OutboxError::Locked { .. }) => {
            Finding::well("state", format!("`{path}` is in use by a collector"))
        }
        Err(OutboxError::Directory { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Finding::well("state", format!("`{path}` can be made; there is none yet"))
        }
        Err(error) => Finding::unwell(
            "state",
            chain(&error),
            "a damaged state is set aside at the next start, and a new epoch begins",
        ),
    }
}

fn disk(config: &Config) -> Option<Finding> {
    let existing = config.state_dir.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} MiB are free for the state", free >> 20);
    Some(if free < DISK_BYTES_MIN {
        let remedy = "make room: what cannot be written counts as not seen";
        Finding::unwell("disk", text, remedy)
    } else if free < config.outbox_max_bytes {
        let remedy = "the outbox may hold more: make room, or lower `outbox.max_bytes`";
        Finding::limited("disk", text, remedy)
    } else {
        Finding::well("disk", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\ta\nCapPrm:\t0\nCapEff:\t0000000000080000\nCapBnd:\tffff\n";
        assert_eq!(capabilities(status), Some(1 << CAP_SYS_PTRACE));
        assert_eq!(capabilities("CapEff:\tmany\n"), None);
        assert_eq!(capabilities(""), None);
    }
}
