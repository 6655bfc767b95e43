//! One transaction: the tables, and the books that say what they hold.

use redb::{ReadableTable as _, ReadableTableMetadata as _, Table, WriteTransaction};
use serde::Serialize;

use super::chunk::{self, StoredDelta};
use super::prepared::StoredRows;
use super::states::StoredState;
use super::{
    Books, CONTAINERS, DELTAS, Gap, LATEST, META, NAMESPACES, QUARANTINE, QUARANTINE_MAX,
    ROOM_BYTES, ROW_BYTES, SOURCES, STATES, StageDone, StoredMessage,
};
use crate::model::Topic;
use crate::reconcile::RowKey;
use crate::sink::{Outcome, Outgoing, Position, Report};
use crate::wire;

/// What went wrong within a transaction.
#[derive(Debug)]
pub(super) enum Fault {
    Database(redb::Error),
    Encoding {
        table: &'static str,
        source: postcard::Error,
    },
    /// The file is of another format.
    Format(u32),
}

macro_rules! faults_of_the_database {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
faults_of_the_database!(
    redb::TransactionError,
    redb::SetDurabilityError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl From<postcard::Error> for Fault {
    fn from(source: postcard::Error) -> Self {
        Self::Encoding {
            table: "deltas",
            source,
        }
    }
}

/// Renders the `gap` that stands for deltas which were lost.
pub(super) type RenderGap<'g> = dyn Fn(&Gap) -> Outgoing + Sync + 'g;

/// The tables of one write transaction, and the books that are written with them.
pub(super) struct Ledger<'t> {
    transaction: &'t WriteTransaction,
    pub(super) deltas: Table<'t, u64, &'static [u8]>,
    pub(super) states: Table<'t, u64, &'static [u8]>,
    pub(super) latest: Table<'t, &'static [u8], u64>,
    pub(super) books: &'t mut Books,
    pub(super) buffer: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl<'t> Ledger<'t> {
    pub(super) fn open(
        transaction: &'t WriteTransaction,
        books: &'t mut Books,
    ) -> Result<Self, Fault> {
        Ok(Self {
            transaction,
            deltas: transaction.open_table(DELTAS)?,
            states: transaction.open_table(STATES)?,
            latest: transaction.open_table(LATEST)?,
            books,
            buffer: Vec::with_capacity(ROW_BYTES),
            key: Vec::new(),
        })
    }

    /// Makes room in the file for what is to be written: by itself it grows by doubling, and waits for the disk each time.
    pub(super) fn make_room(&mut self) -> Result<(), Fault> {
        drop(self.deltas.insert_reserve(u64::MAX, ROOM_BYTES)?);
        self.deltas.remove(u64::MAX)?;
        Ok(())
    }

    /// Takes a report into account; the stage that it ended.
    pub(super) fn report(
        &mut self,
        report: &Report,
        gap: &RenderGap<'_>,
    ) -> Result<Option<StageDone>, Fault> {
        match &report.outcome {
            Outcome::Acked(position) => self.settle(report.row, Some(*position)),
            Outcome::Rejected(reason) => self.refuse(report.row, reason, None, gap),
            Outcome::Replaced { reason, position } => {
                self.refuse(report.row, reason, Some(*position), gap)
            }
        }
    }

    /// A row is no longer owed; the stage that it ended. A row that is not there, or not any more, says nothing.
    pub(super) fn settle(
        &mut self,
        row: u64,
        position: Option<Position>,
    ) -> Result<Option<StageDone>, Fault> {
        if self.settle_front(row, position)? {
            return Ok(None);
        }
        if let Some(done) = self.settle_state(row)? {
            return Ok(done);
        }
        self.settle_ahead(row, position)?;
        Ok(None)
    }

    /// A row that the bus refused goes to the quarantine. `position` is where the bus has a `gap` in a delta's
    /// place; where it has none, one is owed.
    fn refuse(
        &mut self,
        row: u64,
        reason: &str,
        position: Option<Position>,
        gap: &RenderGap<'_>,
    ) -> Result<Option<StageDone>, Fault> {
        let Some((seq, message)) = self.stored(row)? else {
            return Ok(None);
        };
        {
            let mut quarantine = self.transaction.open_table(QUARANTINE)?;
            let entry = encode("quarantine", &(reason, &message), &mut self.buffer)?;
            quarantine.insert(row, entry)?;
            while quarantine.len()? > QUARANTINE_MAX {
                quarantine.pop_first()?;
            }
        }
        self.books.quarantined += 1;
        let done = self.settle(row, position)?;
        if message.topic == Topic::Deltas {
            // A snapshot that is refused would be refused again by the one that follows it.
            self.books.meta.snapshot_owed |= &*message.op != "snapshot";
            if position.is_none() && &*message.op != "gap" {
                let row = self.books.take_row();
                self.append_gap(
                    &Gap {
                        seq_from: seq,
                        seq,
                        row,
                        reason: "quarantine",
                    },
                    gap,
                )?;
            }
        }
        Ok(done)
    }

    /// The message of a row, with a delta's seq.
    fn stored(&mut self, row: u64) -> Result<Option<(u64, StoredMessage)>, Fault> {
        let meta = &self.books.meta;
        if let Some(stored) = self.states.get(row)? {
            let state: StoredState<'_> =
                postcard::from_bytes(stored.value()).map_err(|source| Fault::Encoding {
                    table: "states",
                    source,
                })?;
            let ce_id = wire::state_id(&meta.host_id, &meta.epoch, row);
            return Ok(Some((0, StoredMessage::of_state(&state, ce_id))));
        }
        let Some(chunk) = self.deltas.range(..=row)?.next_back() else {
            return Ok(None);
        };
        let (_, chunk) = chunk?;
        for delta in chunk::decode(chunk.value())?.1 {
            let delta = delta?;
            if delta.row == row {
                let ce_id = wire::delta_id(&meta.host_id, &meta.epoch, delta.seq);
                return Ok(Some((delta.seq, StoredMessage::of_delta(&delta, ce_id))));
            }
        }
        Ok(None)
    }

    /// Puts a `gap` at its row.
    pub(super) fn append_gap(&mut self, gap: &Gap, render: &RenderGap<'_>) -> Result<(), Fault> {
        let outgoing = render(gap);
        self.append(&[StoredDelta {
            row: gap.row,
            seq_from: gap.seq_from,
            seq: gap.seq,
            time_ms: outgoing.time_ms,
            op: &outgoing.op,
            value: outgoing.value.as_deref().unwrap_or_default(),
        }])
    }

    /// Writes the reconciler's rows that changed.
    pub(super) fn write_rows(&mut self, rows: &StoredRows) -> Result<(), Fault> {
        let mut containers = self.transaction.open_table(CONTAINERS)?;
        let mut namespaces = self.transaction.open_table(NAMESPACES)?;
        let mut sources = self.transaction.open_table(SOURCES)?;
        for row in rows.iter() {
            match row {
                (RowKey::Container(id), Some(row)) => drop(containers.insert(id.as_str(), row)?),
                (RowKey::Namespace(inode), Some(row)) => drop(namespaces.insert(inode, row)?),
                (RowKey::Source(id), Some(row)) => drop(sources.insert(id.as_str(), row)?),
                (RowKey::Container(id), None) => drop(containers.remove(id.as_str())?),
                (RowKey::Namespace(inode), None) => drop(namespaces.remove(inode)?),
                (RowKey::Source(id), None) => drop(sources.remove(id.as_str())?),
            }
        }
        Ok(())
    }

    /// Writes what the books say of the whole; the last step of a transaction.
    pub(super) fn write_meta(&mut self) -> Result<(), Fault> {
        let mut meta = self.transaction.open_table(META)?;
        let bytes = encode("meta", &self.books.meta, &mut self.buffer)?;
        meta.insert("meta", bytes)?;
        Ok(())
    }
}

/// Encodes a value into a buffer that is used for one row after another.
pub(super) fn encode<'b, T: Serialize>(
    table: &'static str,
    value: &T,
    buffer: &'b mut Vec<u8>,
) -> Result<&'b [u8], Fault> {
    buffer.clear();
    *buffer = postcard::to_extend(value, std::mem::take(buffer))
        .map_err(|source| Fault::Encoding { table, source })?;
    Ok(buffer)
}
