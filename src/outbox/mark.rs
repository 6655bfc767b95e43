//! The mark: the newest delta that was committed, in a small file beside the database.
//!
//! A database whose newest pages are damaged opens with those of an earlier commit. Then numbers that the bus
//! has would be given to other deltas, and readers would drop them as doubles. The mark tells: it is written
//! after each commit that adds deltas, without a sync. A killed process loses none of it; after a power loss it
//! may be behind, which says nothing.
//!
//! One line, `epoch seq` with the number padded to 20 digits, so that each write is of one length and one block.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const MARK_FILE: &str = "newest";

/// The file, where it could be opened: without it nothing is noticed, and nothing else is lost.
#[derive(Debug)]
pub(super) struct Mark(Option<File>);

impl Mark {
    /// Opens or makes it.
    pub(super) fn open(directory: &Path) -> Self {
        let path = directory.join(MARK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        if let Err(error) = &file {
            tracing::warn!(%error, "a state that goes back would not be noticed");
        }
        Self(file.ok())
    }

    /// Notes the newest delta of an epoch. A disk that is full keeps the older one.
    pub(super) fn note(&self, epoch: &str, seq: u64) {
        if let Some(file) = &self.0 {
            let _ = file.write_all_at(format!("{epoch} {seq:020}\n").as_bytes(), 0);
        }
    }
}

/// The epoch and its newest delta, as they were noted; `None` where nothing can be understood.
pub(super) fn read(directory: &Path) -> Option<(String, u64)> {
    let text = std::fs::read_to_string(directory.join(MARK_FILE)).ok()?;
    let (epoch, seq) = text.lines().next()?.split_once(' ')?;
    Some((epoch.to_owned(), seq.parse().ok()?))
}
