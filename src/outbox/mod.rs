//! The transactional outbox: the reconciler's state and the messages that it owes, in one file, committed together.
//!
//! # On disk
//!
//! `state.redb` in the state directory, a redb database (format version at the beginning of `meta`; a file of
//! another format is set aside):
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `"meta"` | [`Meta`], postcard |
//! | `containers` | container id | the reconciler's row, postcard |
//! | `namespaces` | namespace number | the reconciler's row, postcard |
//! | `sources` | source id | the reconciler's row, postcard |
//! | `deltas` | row of the first one, u64 | the deltas of one commit (`chunk.rs`): owed ones, and those kept for a while |
//! | `states` | row, u64, ascending | a state message that the bus does not have yet, postcard |
//! | `latest` | topic, generation, item | the row in `states` |
//! | `quarantine` | row | a message that the bus refused for what it is, with the reason |
//!
//! Beside it `newest` marks how far the deltas have come (`mark.rs`), and `read-back` that a new epoch has not yet
//! read its host's keys back from the bus (`read_back.rs`).
//!
//! What is owed is counted in `meta`, in the same transaction: opening reads the reconciler's rows and not the
//! messages, and no memory is taken for a message that waits.
//!
//! # Invariants
//!
//! 1. A commit holds the new state and every message that it owes, or nothing.
//! 2. Rows ascend, and are never used again; a message keeps its row until the bus has it.
//! 3. Of a state topic's key and generation only the newest message is kept; deltas are kept in order.
//! 4. Only deltas are ever dropped, the oldest first, when the limit is passed; a `gap` stands in their place.
//! 5. One process has the file; a second one is refused.
//! 6. A delta that the bus has stays for [`KEPT_MS`] (within [`KEPT_BYTES_MAX`]), outside of what counts as owed.
//!
//! Where to look: `render.rs` makes what is owed of the reconciler's messages; `ledger.rs` is one transaction, `deltas.rs` the line of deltas in it, `states.rs` the state messages,
//! `prepared.rs` what goes into it; `limits.rs` what goes when it is full, `ages.rs` since when what is owed waits; `reader.rs` reads for the publisher, `recover.rs` opens.

mod ages;
mod chunk;
mod coalesce;
mod deltas;
#[cfg(test)]
mod fuzz;
mod holdings;
mod ledger;
mod limits;
mod mark;
mod prepared;
mod read_back;
mod reader;
mod recover;
mod render;
mod states;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, Durability, TableDefinition};
use serde::{Deserialize, Serialize};

use chunk::StoredDelta;
use coalesce::coalesce;
pub use deltas::{KEPT_BYTES_MAX, KEPT_MS};
pub use holdings::{Figures, Holdings, Quarantined};
use ledger::{Fault, Ledger, RenderGap};
pub use prepared::Prepared;
use reader::Flow;
pub use reader::{OutboxReader, StoredMessage};
pub use recover::{Owner, Recovered};
pub use render::render;

use crate::model::Topic;
use crate::model::message::Message;
use crate::reconcile::{Reconciler, Restored, RowKey};
use crate::sink::{Outcome, Outgoing, Position, Report};
use crate::wire;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CONTAINERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("containers");
const NAMESPACES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("namespaces");
const SOURCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sources");
const DELTAS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("deltas");
const STATES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("states");
const LATEST: TableDefinition<'_, &[u8], u64> = TableDefinition::new("latest");
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");

/// The version of the file's content.
const FORMAT: u32 = 2;
/// redb's cache. Its default of 1 GiB would break the memory promise.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Rows that are skipped at each start: status messages take row numbers that no commit records.
const ROWS_SKIPPED_AT_START: u64 = 1 << 20;
/// The file that is given up when the disk is full, so that what is owed can still go out.
const RESERVE_FILE: &str = "reserve";
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
/// What a commit of [`ROOM_FROM`] bytes or more makes room for, in a file that is smaller than twice as much.
const ROOM_BYTES: usize = 1024 * 1024;
const ROOM_FROM: u64 = 256 * 1024;
const STATE_FILE: &str = "state.redb";
/// Room for an ordinary row, so that it is not moved while it grows.
const ROW_BYTES: usize = 2_048;
/// Acknowledgements after which a commit is durable whatever is in it: a bound on memory, on what a crash sends
/// twice, and on what is kept until a durable commit trims it.
const UNSYNCED_MAX: usize = 4_096;
/// Most messages that are kept in quarantine; beyond it the oldest go.
const QUARANTINE_MAX: u64 = 10_000;

/// What is known of the state as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    format: u32,
    /// The host that the state is of.
    pub host_id: String,
    /// The life of this state.
    pub epoch: String,
    /// The boot in which it was last written.
    pub boot_id: String,
    /// The epoch before, where it is known.
    pub previous_epoch: Option<String>,
    /// The newest delta.
    pub seq: u64,
    /// The newest resync.
    pub package_seq: u64,
    /// The newest generation of a mapping.
    pub generation: u64,
    /// Whether the epoch's opening has been told to its end.
    pub opened: bool,
    /// The last commit, in unix milliseconds.
    pub last_alive_ms: u64,
    /// Deltas were dropped for room, and the snapshot that follows is still to be told.
    pub snapshot_owed: bool,
    next_row: u64,
    totals: Totals,
    /// Every delta up to this row is acknowledged.
    acked_row: u64,
    /// Acknowledged deltas up to this row are to go.
    trim_to_row: u64,
    /// The last row and the newest seq that went.
    trimmed: Option<(u64, u64)>,
    /// Bytes of acknowledged deltas.
    kept_bytes: u64,
    /// The bus, as it names itself; empty where it has not.
    bus: Arc<str>,
    newest_acked: Option<NewestAcked>,
}

/// Where the newest acknowledged delta is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NewestAcked {
    bus: Arc<str>,
    partition: i32,
    offset: i64,
    seq: u64,
    row: u64,
}

impl Meta {
    /// Decodes it, if it is of this format.
    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let fault = |source| Fault::Encoding {
            table: "meta",
            source,
        };
        let (format, _) = postcard::take_from_bytes::<u32>(bytes).map_err(fault)?;
        if format != FORMAT {
            return Err(Fault::Format(format));
        }
        postcard::from_bytes(bytes).map_err(fault)
    }

    fn last_acked(&self) -> Option<LastAcked> {
        self.newest_acked.as_ref().map(|newest| LastAcked {
            bus: Arc::clone(&newest.bus),
            position: Position {
                partition: newest.partition,
                offset: newest.offset,
            },
            ce_id: wire::delta_id(&self.host_id, &self.epoch, newest.seq),
            seq: newest.seq,
            row: newest.row,
        })
    }
}

/// The newest delta that the bus has, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAcked {
    /// The bus that has it, as it named itself; empty where it had not.
    pub bus: Arc<str>,
    /// Where.
    pub position: Position,
    /// Its CloudEvents id.
    pub ce_id: Arc<str>,
    /// Its number.
    pub seq: u64,
    /// Its row.
    pub row: u64,
}

/// How the outbox is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of messages beyond which the oldest deltas go.
    pub bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes_max: 1024 * 1024 * 1024,
        }
    }
}

/// What went wrong with the state. `Display` leaves the source out.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The directory cannot be used.
    #[error("failed to use the state directory `{}`", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "another quaymaster uses the state directory `{}`: stop it, or choose another with `--state-dir`",
        path.display()
    )]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// It is of another host.
    #[error(
        "the state directory `{}` belongs to host `{found}`, not `{wanted}`: choose another with `--state-dir`, or remove it",
        path.display()
    )]
    OtherHost {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        wanted: String,
    },
    /// The database failed.
    #[error("failed to {action} the state in `{}`", path.display())]
    Database {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// It is of another format.
    #[error(
        "the state in `{}` is of format {found}, and this version reads format {FORMAT}: start the newer version that \
         wrote it, or give another `--state-dir`", path.display()
    )]
    Format {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A row cannot be encoded or decoded.
    #[error("failed to encode a row of `{table}`")]
    Encoding {
        /// Of which table.
        table: &'static str,
        /// Why.
        #[source]
        source: postcard::Error,
    },
}

impl OutboxError {
    /// Whether this user may not use the directory, or what is in it.
    pub fn is_denied(&self) -> bool {
        let is_denied = |error: &std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            )
        };
        match self {
            Self::Directory { source, .. } => is_denied(source),
            Self::Database { source, .. } => {
                matches!(&**source, redb::Error::Io(error) if is_denied(error))
            }
            Self::Locked { .. }
            | Self::OtherHost { .. }
            | Self::Format { .. }
            | Self::Encoding { .. } => false,
        }
    }
}

/// What is committed at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows of the reconciler that changed.
    pub rows: BTreeSet<RowKey>,
    /// Messages in order, with the generation of a mapping (0 elsewhere) and the seq of a delta (0 elsewhere).
    pub messages: Vec<Owed>,
    /// What became of rows, in the order in which the bus said so.
    pub reports: Vec<Report>,
}

/// What a commit did besides storing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The first and the last seq of the deltas that were dropped for room.
    pub dropped: Option<(u64, u64)>,
    /// The stages that reports ended. The reconciler is to hear of them.
    pub settled: Vec<StageDone>,
}

/// Deltas that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub seq_from: u64,
    /// The last of them.
    pub seq: u64,
    /// The row that the gap has.
    pub row: u64,
    /// Why: `overflow`, `quarantine` or `bus_lost_data`.
    pub reason: &'static str,
}

/// A message on its way into the outbox.
#[derive(Clone, Debug)]
pub struct Owed {
    /// What is sent.
    pub outgoing: Outgoing,
    /// Which namespace of its number, of a mapping; 0 elsewhere.
    pub generation: u64,
    /// The delta's number; 0 elsewhere.
    pub seq: u64,
    /// Whether it is a mapping's tombstone or its end, whose acknowledgement the reconciler waits for.
    pub stage: Stage,
}

/// What the reconciler wants to hear of when the bus has a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Nothing.
    None,
    /// A mapping was put.
    Mapping,
    /// A mapping's tombstone.
    Tombstone,
}

impl OutboxError {
    fn of(action: &'static str, path: &Path, fault: Fault) -> Self {
        match fault {
            Fault::Database(source) => Self::Database {
                action,
                path: path.to_owned(),
                source: Box::new(source),
            },
            Fault::Encoding { table, source } => Self::Encoding { table, source },
            Fault::Format(found) => Self::Format {
                path: path.to_owned(),
                found,
            },
        }
    }
}

impl Batch {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.messages.is_empty() && self.reports.is_empty()
    }
}

impl Owed {
    /// Names what the outbox needs to know of a message.
    pub fn new(message: &Message, outgoing: Outgoing) -> Self {
        let (generation, seq, stage) = match message {
            Message::Delta(delta) => (0, delta.seq, Stage::None),
            Message::Record { .. } | Message::RecordTombstone { .. } => (0, 0, Stage::None),
            Message::Mapping { mapping, .. } => (mapping.generation, 0, Stage::Mapping),
            Message::MappingTombstone { generation, .. } => (*generation, 0, Stage::Tombstone),
        };
        Self {
            outgoing,
            generation,
            seq,
            stage,
        }
    }
}

/// What the outbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Messages that the bus does not have.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Deltas among them.
    pub deltas: u64,
}

/// The end of a stage, for the reconciler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageDone {
    /// The namespace's number.
    pub pns_inode: u64,
    /// Which namespace of that number.
    pub generation: u64,
    /// Which stage.
    pub stage: Stage,
}

/// The database, where it can be opened anew under its users.
type Shared = Arc<RwLock<Option<Database>>>;

/// A row that the bus has, and where.
type Settled = (u64, Option<Position>);

/// What a commit changes, beside the tables: what is written of it, and what is only remembered.
#[derive(Clone, Debug, Default)]
struct Books {
    meta: Meta,
    tail: deltas::Tail,
    /// Messages that were put in quarantine since the start.
    quarantined: u64,
}

impl Books {
    fn take_row(&mut self) -> u64 {
        let row = self.meta.next_row;
        self.meta.next_row += 1;
        row
    }

    /// Takes over what the reconciler counts.
    fn keep_pace(&mut self, pace: prepared::Pace, now_ms: u64) {
        self.meta.seq = pace.seq;
        self.meta.package_seq = pace.package_seq;
        self.meta.generation = pace.generation;
        self.meta.opened = pace.opened;
        self.meta.last_alive_ms = now_ms;
    }
}

/// The outbox of one collector, owned by the one that commits.
pub struct Outbox {
    directory: PathBuf,
    database: Shared,
    options: Options,
    books: Books,
    flow: Arc<Mutex<Flow>>,
    /// Acknowledgements that were committed without a sync. A commit that fails takes them with it.
    unsynced: Vec<Settled>,
    /// Such acknowledgements, to be committed again.
    revived: Vec<Settled>,
    mark: mark::Mark,
    ages: ages::Ages,
}

/// An outbox that was opened, with the state that it held.
pub struct Opened {
    /// The outbox.
    pub outbox: Outbox,
    /// The reconciler's state.
    pub restored: Restored,
    /// Mappings whose newest put or tombstone the bus does not have: number and generation.
    pub owed: BTreeSet<(u64, u64)>,
    /// The last moment of the earlier life.
    pub last_alive_ms: u64,
    /// Why the earlier state was set aside, where it was.
    pub set_aside: Option<String>,
}

impl Outbox {
    /// The state as a whole.
    pub fn meta(&self) -> &Meta {
        &self.books.meta
    }

    /// What is owed.
    pub fn totals(&self) -> Totals {
        self.books.meta.totals
    }

    /// Messages in quarantine that were put there since the start.
    pub fn quarantined(&self) -> u64 {
        self.books.quarantined
    }

    /// The newest delta that the bus acknowledged.
    pub fn last_acked(&self) -> Option<LastAcked> {
        self.books.meta.last_acked()
    }

    /// Names the bus that reports from now on; kept with the next commit.
    pub fn set_bus(&mut self, bus: Arc<str>) {
        self.books.meta.bus = bus;
    }

    /// Whether the snapshot that follows dropped deltas is to be told now: once, when half of the room is free.
    pub fn take_snapshot_due(&mut self) -> bool {
        let meta = &mut self.books.meta;
        let is_due = meta.snapshot_owed && meta.totals.bytes < self.options.bytes_max / 2;
        if is_due {
            meta.snapshot_owed = false;
        }
        is_due
    }

    /// Whether acknowledgements wait for the next durable commit.
    pub fn has_unsynced_acks(&self) -> bool {
        !(self.unsynced.is_empty() && self.revived.is_empty())
    }

    /// When the oldest message that is owed was stored, in unix milliseconds and to the second; 0 where none is, or the
    /// file cannot be read. Of one that an earlier life stored, the last moment of that life.
    pub fn oldest_ms(&mut self) -> u64 {
        if self.books.meta.totals.messages == 0 {
            return 0;
        }
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = guard
            .as_ref()
            .map(|database| ages::oldest_row(database, &self.books.meta));
        match oldest {
            Some(Ok(Some(row))) => self.ages.of(row),
            // What cannot be read fails the next commit, and is told there.
            Some(Ok(None) | Err(_)) | None => 0,
        }
    }

    /// The row that the next message will have; it is then taken.
    pub fn take_row(&mut self) -> u64 {
        self.books.take_row()
    }

    /// A reader for the publisher.
    pub fn reader(&self) -> OutboxReader {
        OutboxReader::new(Arc::clone(&self.database), Arc::clone(&self.flow))
    }

    /// Commits state, messages and reports together. Durable when it returns, but for a batch of
    /// acknowledgements alone: the next commit, be it of an empty batch, makes those durable (a crash before it
    /// sends them twice), and so does every [`UNSYNCED_MAX`]th.
    ///
    /// # Errors
    /// When nothing was committed: the caller goes back to [`Outbox::recover`].
    pub fn commit(
        &mut self,
        batch: Batch,
        reconciler: &Reconciler,
        now_ms: u64,
        gap: &RenderGap<'_>,
    ) -> Result<Committed, OutboxError> {
        self.commit_prepared(Prepared::new(batch, reconciler)?, now_ms, gap)
    }

    /// [Commits](Self::commit) what was prepared for it.
    ///
    /// # Errors
    /// When nothing was committed: the caller goes back to [`Outbox::recover`].
    pub fn commit_prepared(
        &mut self,
        batch: Prepared,
        now_ms: u64,
        gap: &RenderGap<'_>,
    ) -> Result<Committed, OutboxError> {
        let mut books = self.books.clone();
        books.keep_pace(batch.pace, now_ms);
        let is_durable = batch.is_empty()
            || !batch.is_only_acks()
            || self.unsynced.len() + self.revived.len() >= UNSYNCED_MAX;
        let deltas: Vec<_> = batch
            .messages
            .iter()
            .filter(|owed| owed.outgoing.topic == Topic::Deltas)
            .map(StoredDelta::of)
            .collect();
        let flow = Arc::clone(&self.flow);
        let mut flow = flow.lock().unwrap_or_else(PoisonError::into_inner);
        let added: u64 = batch.messages.iter().map(most_bytes).sum();
        let may_drop =
            !batch.messages.is_empty() && books.meta.totals.bytes + added > self.options.bytes_max;
        let handed = flow.handed;
        // What is dropped must not be handed out meanwhile.
        let held = if may_drop {
            Some(flow)
        } else {
            drop(flow);
            None
        };
        let bytes_max = self.options.bytes_max;
        let revived = &self.revived;
        let needs_room = added >= ROOM_FROM && self.file_bytes() < 2 * ROOM_BYTES as u64;
        let write = |ledger: &mut Ledger<'_>| {
            if needs_room {
                ledger.make_room()?;
            }
            if !batch.rows.is_empty() {
                ledger.write_rows(&batch.rows)?;
            }
            ledger.append(&deltas)?;
            for owed in &batch.messages {
                if owed.outgoing.topic != Topic::Deltas {
                    ledger.put_state(owed)?;
                }
            }
            let mut committed = Committed::default();
            for (row, position) in revived {
                committed.settled.extend(ledger.settle(*row, *position)?);
            }
            for report in &batch.reports {
                committed.settled.extend(ledger.report(report, gap)?);
            }
            if may_drop {
                committed.dropped = ledger.drop_oldest(handed, bytes_max, gap)?;
            }
            if is_durable {
                ledger.trim(now_ms)?;
            }
            Ok(committed)
        };
        let committed = self.write(&mut books, is_durable, write)?;
        drop(held);
        flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        if books.meta.newest_acked != self.books.meta.newest_acked {
            flow.last_acked = books.meta.last_acked();
        }
        drop(flow);
        self.books = books;
        if let Some(first) = batch.messages.first() {
            self.ages.note(first.outgoing.row, now_ms);
        }
        self.note_reports(batch.reports, is_durable);
        if !deltas.is_empty() {
            self.mark.note(&self.books.meta.epoch, self.books.meta.seq);
        }
        Ok(committed)
    }

    /// Keeps the acknowledgements that a commit which fails would take with it.
    fn note_reports(&mut self, reports: Vec<Report>, is_durable: bool) {
        let revived = std::mem::take(&mut self.revived);
        let passed = std::mem::take(&mut self.books.tail.passed);
        if is_durable {
            self.unsynced.clear();
            return;
        }
        let acked = reports.into_iter().map(|report| match report.outcome {
            Outcome::Acked(position) | Outcome::Replaced { position, .. } => {
                (report.row, Some(position))
            }
            Outcome::Rejected(_) => (report.row, None),
        });
        self.unsynced
            .extend(revived.into_iter().chain(acked).chain(passed));
    }

    /// Loses the file, as a disk that fails takes it away: every commit fails until [`Outbox::recover`] opens it again.
    #[cfg(test)]
    pub(crate) fn lose_file(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
    }

    /// Makes what the bus lost owed again, in one durable commit: the acknowledged deltas from `lost_from` on
    /// (`None`: all), with their rows, numbers and bytes. Where the kept ones do not reach back so far, a `gap`
    /// stands before them, and a snapshot is owed. Nothing may be in flight.
    ///
    /// # Errors
    /// When nothing was committed: the caller goes back to [`Outbox::recover`].
    pub fn owe_again(
        &mut self,
        lost_from: Option<u64>,
        now_ms: u64,
        gap: &RenderGap<'_>,
    ) -> Result<(), OutboxError> {
        let mut books = self.books.clone();
        books.meta.last_alive_ms = now_ms;
        self.write(&mut books, true, |ledger| ledger.rewind(lost_from, gap))?;
        self.books = books;
        self.ages = ages::Ages::since(now_ms);
        // What it had acknowledged it may have lost: all of it is sent once more.
        self.unsynced.clear();
        self.revived.clear();
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        *flow = Flow::default();
        Ok(())
    }

    /// What the state's file takes; all that can be where it cannot be told.
    fn file_bytes(&self) -> u64 {
        std::fs::metadata(self.directory.join(STATE_FILE)).map_or(u64::MAX, |file| file.len())
    }

    /// One transaction: what `step` does, and the books.
    fn write<T>(
        &self,
        books: &mut Books,
        is_durable: bool,
        step: impl FnOnce(&mut Ledger<'_>) -> Result<T, Fault>,
    ) -> Result<T, OutboxError> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let written = || -> Result<T, Fault> {
            let database = guard
                .as_ref()
                .ok_or(Fault::Database(redb::Error::DatabaseClosed))?;
            let mut transaction = database.begin_write()?;
            transaction.set_durability(if is_durable {
                Durability::Immediate
            } else {
                Durability::None
            })?;
            let mut ledger = Ledger::open(&transaction, books)?;
            let done = step(&mut ledger)?;
            ledger.write_meta()?;
            drop(ledger);
            transaction.commit()?;
            Ok(done)
        };
        written().map_err(|fault| OutboxError::of("commit", &self.directory, fault))
    }
}

/// More bytes than a message counts for, whatever it is.
fn most_bytes(owed: &Owed) -> u64 {
    let value = owed.outgoing.value.as_ref().map_or(0, |value| value.len());
    (value + owed.outgoing.item.len() + 128) as u64
}
