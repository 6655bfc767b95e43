//! Namespace fds that outlive the process: systemd's file descriptor store (systemd.service(5), `FileDescriptorStoreMax`).
//!
//! While an fd on a PID namespace is open anywhere, the kernel does not give the namespace's number out again. Each fd
//! that a mapping holds is therefore also given to the service manager, which keeps it over a restart of the service and
//! hands it to the next process. Its name says which mapping it belongs to: `pns-<inode>-<generation>`.
//!
//! What is not there costs nothing but the guarantee: without a store a number may be given to another namespace
//! while no collector runs, which the next one tells as the end of the old mapping.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::notify::Notifier;
use crate::procfs::ProcessTable;
use crate::reconcile::{FdToken, Restored};

/// What the names of our fds begin with.
const NAME_PREFIX: &str = "pns-";

/// The fds that the service manager keeps for us.
#[derive(Debug, Default)]
pub struct FdStore {
    notifier: Arc<Notifier>,
    names: BTreeMap<FdToken, String>,
}

impl FdStore {
    /// Gives the fds that were handed over back to the mappings of the state. What belongs to none is let go.
    pub fn take_back(
        notifier: Arc<Notifier>,
        handed: Vec<(String, OwnedFd)>,
        restored: &mut Restored,
        boot_id: &str,
        processes: &ProcessTable,
    ) -> Self {
        let mut names = BTreeMap::new();
        for (name, fd) in handed {
            let is_ours = name.starts_with(NAME_PREFIX);
            let token = mapping_of(&name)
                .filter(|(inode, _)| is_namespace(&fd, *inode))
                .filter(|(inode, generation)| restored.lacks_fd(*inode, *generation, boot_id))
                .map(|(inode, generation)| {
                    let token = processes.fds().hold(fd);
                    restored.give_fd(inode, generation, token);
                    token
                });
            match token {
                Some(token) => _ = names.insert(token, name),
                None if is_ours => notifier.remove_fd(&name),
                None => {}
            }
        }
        tracing::debug!(count = names.len(), "namespaces were held over the restart");
        Self { notifier, names }
    }

    /// Whether there is a service manager.
    pub fn is_there(&self) -> bool {
        self.notifier.is_there()
    }

    /// Gives the fd of a mapping to the service manager, once.
    pub fn keep(&mut self, inode: u64, generation: u64, token: FdToken, processes: &ProcessTable) {
        if self.names.contains_key(&token) {
            return;
        }
        let name = format!("{NAME_PREFIX}{inode}-{generation}");
        let is_kept = processes
            .fds()
            .with(token, |fd| self.notifier.store_fd(&name, fd));
        if is_kept == Some(true) {
            self.names.insert(token, name);
        }
    }

    /// Lets an fd go there too.
    pub fn release(&mut self, token: FdToken) {
        if let Some(name) = self.names.remove(&token) {
            self.notifier.remove_fd(&name);
        }
    }
}

fn mapping_of(name: &str) -> Option<(u64, u64)> {
    let (inode, generation) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
    Some((inode.parse().ok()?, generation.parse().ok()?))
}

/// Whether an fd is of the file with this number: a foreign fd under such a name keeps nothing.
fn is_namespace(fd: &OwnedFd, inode: u64) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_ino == inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_mapping_it_is_of() {
        assert_eq!(mapping_of("pns-4026532448-7"), Some((4_026_532_448, 7)));
        for name in ["", "pns-", "pns-7", "pns-7-", "pns--7", "stored", "pns-a-b"] {
            assert_eq!(mapping_of(name), None, "{name}");
        }
    }
}
