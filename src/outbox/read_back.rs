//! Whether the read-back of the host's keys is owed: a file of its own beside the database, made before the first commit
//! of an epoch and when the bus has lost data, and removed after the commit that has the tombstones.

use std::fs::File;
use std::path::Path;

use super::Outbox;

const OWED_FILE: &str = "read-back";

/// Notes that it is owed, best effort: without it, rows of the earlier epoch leave when they expire.
pub(super) fn owe(directory: &Path) {
    if let Err(error) = File::create(directory.join(OWED_FILE)) {
        tracing::warn!(%error, "that keys are to be read back from the bus cannot be noted");
    }
}

impl Outbox {
    /// Notes that they are to be read back: the bus has lost data, and perhaps tombstones.
    pub fn owe_read_back(&self) {
        owe(&self.directory);
    }

    /// Whether this host's keys are to be read back from the bus.
    pub fn owes_read_back(&self) -> bool {
        self.directory.join(OWED_FILE).exists()
    }

    /// They were, and what no longer holds has its tombstone in the outbox.
    pub fn read_back_is_done(&self) {
        // If it stays, the next start reads them back once more.
        let _ = std::fs::remove_file(self.directory.join(OWED_FILE));
    }
}
