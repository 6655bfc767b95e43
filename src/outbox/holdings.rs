//! What the state directory holds, for a person who looks while no collector runs: what is owed, and the quarantine.
//!
//! Opens the file as a collector does, alone, and makes nothing that is not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _};

use super::ledger::Fault;
use super::reader::read_meta;
use super::states::StoredState;
use super::{
    CACHE_BYTES, DELTAS, META, Meta, OutboxError, QUARANTINE, STATE_FILE, STATES, StoredMessage,
    chunk,
};
use crate::model::Topic;
use crate::sink::Outgoing;
use crate::wire;

/// How much of one topic there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages.
    pub messages: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// The oldest message's time, in unix milliseconds.
    pub oldest_ms: Option<i64>,
}

/// A message that the bus refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Why.
    pub reason: String,
    /// What.
    pub message: Outgoing,
}

/// Takes the rows of a table with their bytes.
type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<(), OutboxError> + 'a;

/// A state directory that is looked at.
pub struct Holdings {
    database: Database,
    directory: std::path::PathBuf,
    meta: Meta,
}

impl Holdings {
    /// Opens the state in a directory.
    ///
    /// # Errors
    /// When there is none, a collector has it, or it is damaged.
    pub fn open(directory: &Path) -> Result<Self, OutboxError> {
        let file = directory.join(STATE_FILE);
        std::fs::metadata(&file).map_err(|source| OutboxError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let opened =
            std::panic::catch_unwind(|| Builder::new().set_cache_size(CACHE_BYTES).open(&file));
        let failed = |source| database_error("open", directory, source);
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(OutboxError::Locked {
                    path: directory.to_owned(),
                });
            }
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => {
                let panicked = "the database library panicked over it".to_owned();
                return Err(failed(redb::Error::Corrupted(panicked)));
            }
        };
        let meta = meta_of(&database).map_err(|fault| OutboxError::of("read", directory, fault))?;
        Ok(Self {
            database,
            directory: directory.to_owned(),
            meta,
        })
    }

    /// The state as a whole.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What the bus does not have yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn owed(&self) -> Result<BTreeMap<Topic, Figures>, OutboxError> {
        let mut figures = BTreeMap::new();
        self.each(DELTAS, &mut |_, bytes| {
            let broken = |source| OutboxError::Encoding {
                table: "deltas",
                source,
            };
            for delta in chunk::decode(bytes).map_err(broken)?.1 {
                let delta = delta.map_err(broken)?;
                if delta.row > self.meta.acked_row {
                    count(&mut figures, Topic::Deltas, delta.time_ms, delta.bytes());
                }
            }
            Ok(())
        })?;
        self.each(STATES, &mut |_, bytes| {
            let state: StoredState<'_> = decode("states", bytes)?;
            let (topic, length) = (state.head.topic, bytes.len() as u64);
            count(&mut figures, topic, state.time_ms, length);
            Ok(())
        })?;
        Ok(figures)
    }

    /// What the bus refused.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn quarantined(&self) -> Result<BTreeMap<Topic, Figures>, OutboxError> {
        let mut figures = BTreeMap::new();
        self.each(QUARANTINE, &mut |row, bytes| {
            let message = self.entry(row, bytes)?.message;
            let length = bytes.len() as u64;
            count(&mut figures, message.topic, message.time_ms, length);
            Ok(())
        })?;
        Ok(figures)
    }

    /// Gives every message in quarantine to `take`, the oldest row first, until that answers `false`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn each_quarantined(
        &self,
        take: &mut dyn FnMut(Quarantined) -> bool,
    ) -> Result<(), OutboxError> {
        let mut goes_on = true;
        self.each(QUARANTINE, &mut |row, bytes| {
            if goes_on {
                goes_on = take(self.entry(row, bytes)?);
            }
            Ok(())
        })
    }

    /// Drops all messages in quarantine, durably; how many there were.
    ///
    /// # Errors
    /// When nothing was dropped.
    pub fn drop_quarantined(&self) -> Result<u64, OutboxError> {
        let failed = |source| database_error("commit", &self.directory, source);
        let transaction = self.database.begin_write().map_err(|e| failed(e.into()))?;
        let dropped = {
            let mut table = transaction
                .open_table(QUARANTINE)
                .map_err(|e| failed(e.into()))?;
            let mut dropped = 0;
            while table.pop_first().map_err(|e| failed(e.into()))?.is_some() {
                dropped += 1;
            }
            dropped
        };
        transaction.commit().map_err(|e| failed(e.into()))?;
        Ok(dropped)
    }

    fn each(
        &self,
        table: redb::TableDefinition<'_, u64, &'static [u8]>,
        take: &mut Take<'_>,
    ) -> Result<(), OutboxError> {
        let failed = |source| database_error("read", &self.directory, source);
        let transaction = self.database.begin_read().map_err(|e| failed(e.into()))?;
        let table = match transaction.open_table(table) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(failed(error.into())),
        };
        for entry in table.iter().map_err(|e| failed(e.into()))? {
            let (row, value) = entry.map_err(|e| failed(e.into()))?;
            take(row.value(), value.value())?;
        }
        Ok(())
    }

    fn entry(&self, row: u64, bytes: &[u8]) -> Result<Quarantined, OutboxError> {
        let (reason, message): (String, StoredMessage) = decode("quarantine", bytes)?;
        Ok(Quarantined {
            reason,
            message: self.outgoing(row, message),
        })
    }

    fn outgoing(&self, row: u64, message: StoredMessage) -> Outgoing {
        let host_id: Arc<str> = self.meta.host_id.as_str().into();
        let ce_source = wire::ce_source(&host_id);
        message.into_outgoing(row, &host_id, &ce_source)
    }
}

fn count(figures: &mut BTreeMap<Topic, Figures>, topic: Topic, time_ms: i64, bytes: u64) {
    let figures = figures.entry(topic).or_default();
    figures.messages += 1;
    figures.bytes += bytes;
    let oldest_ms = figures.oldest_ms.unwrap_or(time_ms);
    figures.oldest_ms = Some(oldest_ms.min(time_ms));
}

fn meta_of(database: &Database) -> Result<Meta, Fault> {
    match database.begin_read()?.open_table(META) {
        Ok(table) => read_meta(&table),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(Meta::default()),
        Err(error) => Err(error.into()),
    }
}

fn decode<'b, T: serde::Deserialize<'b>>(
    table: &'static str,
    bytes: &'b [u8],
) -> Result<T, OutboxError> {
    postcard::from_bytes(bytes).map_err(|source| OutboxError::Encoding { table, source })
}

fn database_error(action: &'static str, directory: &Path, source: redb::Error) -> OutboxError {
    OutboxError::Database {
        action,
        path: directory.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Gap, Options, Outbox, Owed, Owner, Stage};
    use super::*;
    use crate::reconcile::{Identity, Reconciler, Restored, Settings};
    use crate::sink::{Outcome, Report};

    fn owed(outbox: &mut Outbox, topic: Topic, time_ms: i64) -> Owed {
        let row = outbox.take_row();
        Owed {
            outgoing: Outgoing {
                row,
                topic,
                host_id: "host".into(),
                item: if topic == Topic::Deltas {
                    "".into()
                } else {
                    row.to_string().into()
                },
                op: "".into(),
                value: Some(b"{\"a\":1}".as_slice().into()),
                ce_id: if topic == Topic::Deltas {
                    wire::delta_id("host", "epoch", row)
                } else {
                    wire::state_id("host", "epoch", row)
                },
                ce_type: wire::ce_type(topic),
                ce_source: wire::ce_source("host"),
                time_ms,
            },
            generation: 0,
            seq: if topic == Topic::Deltas { row } else { 0 },
            stage: Stage::None,
        }
    }

    #[test]
    fn what_is_owed_and_what_was_refused_is_counted_exported_and_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let owner = Owner {
            host_id: "host".into(),
            boot_id: "boot".into(),
            new_epoch: "epoch".to_owned(),
        };
        let opened = Outbox::open(directory.path(), &owner, Options::default());
        let mut outbox = opened.expect("the outbox opens").outbox;
        assert!(matches!(
            Holdings::open(directory.path()).err(),
            Some(OutboxError::Locked { .. })
        ));
        let messages = vec![
            owed(&mut outbox, Topic::Deltas, 9),
            owed(&mut outbox, Topic::Deltas, 7),
            owed(&mut outbox, Topic::Records, 8),
            owed(&mut outbox, Topic::Records, 6),
        ];
        let refused = messages[3].outgoing.clone();
        let identity = Identity {
            boot_id: "boot".into(),
            host_pns_inode: 1,
            previous_epoch: None,
        };
        let reconciler = Reconciler::new(identity, Settings::default(), Restored::default());
        let renderer = super::super::tests::renderer();
        let gap = |gap: &Gap| renderer.render_gap(gap, 1);
        let stored = Batch {
            messages,
            ..Batch::default()
        };
        let rejected = Batch {
            reports: vec![Report {
                row: refused.row,
                outcome: Outcome::Rejected("too large".to_owned()),
            }],
            ..Batch::default()
        };
        for batch in [stored, rejected] {
            let committed = outbox.commit(batch, &reconciler, 1, &gap);
            committed.expect("it can be committed");
        }
        drop(outbox);

        let holdings = Holdings::open(directory.path()).expect("no collector has it");
        assert_eq!(holdings.meta().host_id, "host");
        let owed = holdings.owed().expect("it can be read");
        let of = |topic| owed.get(&topic).map(|f| (f.messages, f.oldest_ms));
        assert_eq!(of(Topic::Deltas), Some((2, Some(7))));
        assert_eq!(of(Topic::Records), Some((1, Some(8))));
        let mut found = Vec::new();
        let read = holdings.each_quarantined(&mut |one| {
            found.push(one);
            true
        });
        read.expect("it can be read");
        let expected = Quarantined {
            reason: "too large".to_owned(),
            message: refused,
        };
        assert_eq!(found, [expected]);
        assert_eq!(holdings.drop_quarantined().ok(), Some(1));
        assert!(
            holdings
                .quarantined()
                .is_ok_and(|figures| figures.is_empty())
        );
        assert_eq!(holdings.owed().ok(), Some(owed));
    }

    #[test]
    fn a_directory_without_state_is_left_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Holdings::open(directory.path()).is_err());
        let left = std::fs::read_dir(directory.path()).map(Iterator::count);
        assert_eq!(left.ok(), Some(0));
    }
}
