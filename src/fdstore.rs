//! Namespace fds that outlive the process: systemd's file descriptor store (systemd.service(5), `FileDescriptorStoreMax`).
//!
//! While an fd on a PID namespace is open anywhere, the kernel does not give the namespace's number out again. Each fd
//! that a mapping holds is therefore also given to the service manager, which keeps it over a restart of the service and
//! hands it to the next process. Its name says which mapping it belongs to: `pns-<inode>-<generation>`.
//!
//! What is not there costs nothing but the guarantee: without a store a number may be given to another namespace
//! while no collector runs, which the next one tells as the end of the old mapping.
//!
//! Which mapping on disk each fd is of is also what a collector needs to know that goes back to its state on disk, with or
//! without a service manager: a mapping that is there again has its fd again ([`FdStore::give_back`]).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::notify::Notifier;
use crate::procfs::ProcessTable;
use crate::reconcile::{FdToken, MappingKey, Restored};

/// What the names of our fds begin with.
const NAME_PREFIX: &str = "pns-";

/// The fds of the mappings on disk, and which of them the service manager keeps for us.
#[derive(Debug, Default)]
pub struct FdStore {
    notifier: Arc<Notifier>,
    kept: BTreeMap<FdToken, Kept>,
}

#[derive(Debug)]
struct Kept {
    mapping: MappingKey,
    /// The service manager has it too.
    is_stored: bool,
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
        let mut kept = BTreeMap::new();
        for (name, fd) in handed {
            let is_ours = name.starts_with(NAME_PREFIX);
            let mapping = mapping_of(&name)
                .filter(|mapping| is_namespace(&fd, mapping.pns_inode))
                .filter(|mapping| restored.lacks_fd(*mapping, boot_id));
            match mapping {
                Some(mapping) => {
                    let token = processes.fds().hold(fd);
                    restored.give_fd(mapping, token);
                    let is_stored = true;
                    kept.insert(token, Kept { mapping, is_stored });
                }
                None if is_ours => notifier.remove_fd(&name),
                None => {}
            }
        }
        tracing::debug!(count = kept.len(), "namespaces were held over the restart");
        Self { notifier, kept }
    }

    /// Notes that an fd is of this mapping on disk, and gives it to the service manager, once.
    pub fn keep(&mut self, mapping: MappingKey, token: FdToken, processes: &ProcessTable) {
        let kept = self.kept.entry(token).or_insert(Kept {
            mapping,
            is_stored: false,
        });
        if !kept.is_stored && self.notifier.is_there() {
            let name = name_of(kept.mapping);
            let store = |fd: BorrowedFd<'_>| self.notifier.store_fd(&name, fd);
            kept.is_stored = processes.fds().with(token, store) == Some(true);
        }
    }

    /// Gives the mappings of a state that was read from the disk again the fds that they had there; says which those are.
    pub fn give_back(&self, restored: &mut Restored, boot_id: &str) -> BTreeSet<FdToken> {
        let mut given = BTreeSet::new();
        for (token, kept) in &self.kept {
            if restored.lacks_fd(kept.mapping, boot_id) {
                restored.give_fd(kept.mapping, *token);
                given.insert(*token);
            }
        }
        given
    }

    /// Lets an fd go there too.
    pub fn release(&mut self, token: FdToken) {
        if let Some(kept) = self.kept.remove(&token)
            && kept.is_stored
        {
            self.notifier.remove_fd(&name_of(kept.mapping));
        }
    }
}

fn name_of(mapping: MappingKey) -> String {
    let MappingKey {
        pns_inode,
        generation,
    } = mapping;
    format!("{NAME_PREFIX}{pns_inode}-{generation}")
}

fn mapping_of(name: &str) -> Option<MappingKey> {
    let (inode, generation) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
    Some(MappingKey {
        pns_inode: inode.parse().ok()?,
        generation: generation.parse().ok()?,
    })
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
        let mapping = MappingKey {
            pns_inode: 4_026_532_448,
            generation: 7,
        };
        assert_eq!(mapping_of("pns-4026532448-7"), Some(mapping));
        assert_eq!(name_of(mapping), "pns-4026532448-7");
        for name in ["", "pns-", "pns-7", "pns-7-", "pns--7", "stored", "pns-a-b"] {
            assert_eq!(mapping_of(name), None, "{name}");
        }
    }
}
