//! The process of a container, as an inspect finds it: the runtime names a pid, and the process's cgroup says whether it
//! is that container's, another's, or neither.
//!
//! A pid may have been given away before the runtime notices, or be read before its process has entered its cgroup: then
//! the runtime is asked again. What is read of a process holds its namespace by an fd, which is closed wherever nobody
//! takes it over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::job::Job;
use crate::model::{Container, ContainerId, ContainerKind, State};
use crate::procfs::ProcessTable;
use crate::reconcile::{FdToken, InspectOutcome, ProcessReading};
use crate::runtime::{Inspection, RuntimeError};

/// Waits between looks at a container whose process is another's by its cgroup. dockerd and containerd notice the end of a
/// process within some 10 ms, and later on a machine that is busy.
const NOTICING_WAITS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(750),
];
/// Hex digits in an id of Docker and CRI.
const ID_DIGITS: usize = 64;

impl Job {
    /// Inspects a container and reads its process, as often as it takes to know whose that is.
    ///
    /// # Errors
    /// Where the runtime does not answer an inspect.
    pub(super) async fn look(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
    ) -> Result<InspectOutcome, RuntimeError> {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let container = match self.client.inspect(id, kind).await? {
            Inspection::Found(container) => container,
            Inspection::Gone => return Ok(InspectOutcome::Gone),
        };
        let Some(pid) = live_pid(&container) else {
            return Ok(InspectOutcome::Found {
                container,
                process: None,
            });
        };
        let reading = self.read(pid);
        if names_container(&reading, id) {
            return Ok(InspectOutcome::Found {
                container,
                process: Some(reading),
            });
        }
        if names_other(&reading, id) {
            drop(self.unowned(Some(&reading)));
            return self.look_until_noticed(id, kind, pid).await;
        }
        self.look_again(id, kind, pid, reading).await
    }

    /// Reads a process. What a runtime of another user names must be a process of that user's: it could name any.
    fn read(&self, pid: u32) -> ProcessReading {
        let uid = self.client.info().peer_uid;
        self.context.processes.read_of_user(pid, uid)
    }

    /// The process is another container's by its cgroup: the pid was given away, and the runtime has not noticed yet; or
    /// several containers do have one process (gVisor), and then it still says so after all waits.
    async fn look_until_noticed(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
        pid: u32,
    ) -> Result<InspectOutcome, RuntimeError> {
        for wait in NOTICING_WAITS {
            tokio::time::sleep(wait).await;
            self.figures.calls.fetch_add(1, Ordering::Relaxed);
            let container = match self.client.inspect(id, kind).await? {
                Inspection::Found(container) => container,
                Inspection::Gone => return Ok(InspectOutcome::Gone),
            };
            let found = live_pid(&container);
            if found != Some(pid) || wait == NOTICING_WAITS[NOTICING_WAITS.len() - 1] {
                let process = found.map(|pid| self.read(pid));
                return Ok(InspectOutcome::Found { container, process });
            }
        }
        Ok(InspectOutcome::Failed)
    }

    /// The fd in a reading, to be let go where this task ends midway.
    pub(super) fn unowned(&self, reading: Option<&ProcessReading>) -> Unowned<'_> {
        let fd = match reading {
            Some(ProcessReading::Alive(process)) => process.fd,
            Some(ProcessReading::Dead | ProcessReading::Denied) | None => None,
        };
        Unowned(&self.context.processes, fd)
    }

    /// The process's cgroup does not name the container: a second inspect must agree on the pid.
    async fn look_again(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
        pid: u32,
        reading: ProcessReading,
    ) -> Result<InspectOutcome, RuntimeError> {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let fd = self.unowned(Some(&reading));
        let second = self.client.inspect(id, kind).await;
        let agreed = match &second {
            Ok(Inspection::Found(container)) => live_pid(container) == Some(pid),
            Ok(Inspection::Gone) | Err(_) => false,
        };
        let process = if agreed {
            fd.hand_over();
            Some(reading)
        } else {
            drop(fd);
            None
        };
        match second? {
            Inspection::Found(container) => Ok(InspectOutcome::Found {
                process: process.or_else(|| live_pid(&container).map(|pid| self.read(pid))),
                container,
            }),
            Inspection::Gone => Ok(InspectOutcome::Gone),
        }
    }
}

/// The fd on a namespace that a task has read and nobody owns yet: dropped, it is closed. A session's tasks end with it
/// wherever they wait.
pub(super) struct Unowned<'a>(pub(super) &'a ProcessTable, pub(super) Option<FdToken>);

impl Unowned<'_> {
    /// The collector has it now, or whoever the reading goes to.
    pub(super) fn hand_over(mut self) {
        self.1 = None;
    }
}

impl Drop for Unowned<'_> {
    fn drop(&mut self) {
        if let Some(fd) = self.1 {
            self.0.fds().release(fd);
        }
    }
}

/// The pid, where the state says that such a process lives. One that is created and has a pid is about to start: CRI-O
/// and Podman have made its process by then, and it waits.
fn live_pid(container: &Container) -> Option<u32> {
    match container.state {
        State::Created | State::Running | State::Paused | State::Unknown => container.pid,
        State::Restarting | State::Removing | State::Exited | State::Dead => None,
    }
}

fn names_container(reading: &ProcessReading, id: &ContainerId) -> bool {
    match reading {
        ProcessReading::Alive(process) => process.cgroup.contains(id_within(id)),
        ProcessReading::Dead | ProcessReading::Denied => true,
    }
}

/// A container's id within its runtime: without the namespace of containerd that a key may begin with.
fn id_within(id: &ContainerId) -> &str {
    let key = id.as_str();
    key.split_once(':').map_or(key, |(_, id)| id)
}

/// Whether the cgroup names some other container: a runtime's ids are 64 hex digits.
pub(in crate::runtime) fn names_other(reading: &ProcessReading, id: &ContainerId) -> bool {
    let is_id = |word: &str| word.len() == ID_DIGITS && word != id_within(id);
    match reading {
        ProcessReading::Alive(process) => process
            .cgroup
            .split(|c: char| !c.is_ascii_hexdigit())
            .any(is_id),
        ProcessReading::Dead | ProcessReading::Denied => false,
    }
}
