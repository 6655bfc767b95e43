//! The transactional outbox: the reconciler's state and the messages that it owes, in one file, committed together.
//!
//! # On disk
//!
//! `state.redb` in the state directory, a redb database (format version in `meta`):
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `"meta"` | [`Meta`], postcard |
//! | `containers` | container id | the reconciler's row, postcard |
//! | `namespaces` | namespace number | the reconciler's row, postcard |
//! | `sources` | source id | the reconciler's row, postcard |
//! | `messages` | row, u64, ascending | a message that the bus does not have yet, postcard |
//! | `quarantine` | row | a message that the bus refused for what it is, with the reason |
//!
//! Beside it `newest` marks how far the deltas have come (`mark.rs`), and `read-back` that a new epoch has not yet
//! read its host's keys back from the bus (`read_back.rs`).
//!
//! # Invariants
//!
//! 1. A commit holds the new state and every message that it owes, or nothing.
//! 2. Rows ascend, and are never used again; a message keeps its row until the bus has it.
//! 3. Of a state topic's key and generation only the newest message is kept; deltas are kept in order.
//! 4. Only deltas are ever dropped, the oldest first, when the limit is passed; a `gap` stands in their place.
//! 5. One process has the file; a second one is refused.

mod coalesce;
#[cfg(test)]
mod fuzz;
mod holdings;
mod limits;
mod mark;
mod read_back;
mod reader;
mod recover;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, Durability, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

pub use coalesce::coalesce;
pub use holdings::{Figures, Holdings, Quarantined};
use reader::MessageToStore;
pub use reader::{OutboxReader, StoredMessage};
pub use recover::Owner;

use crate::model::Topic;
use crate::model::message::Message;
use crate::reconcile::{Reconciler, Restored, Row, RowKey};
use crate::sink::Outgoing;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CONTAINERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("containers");
const NAMESPACES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("namespaces");
const SOURCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sources");
const MESSAGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("messages");
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");

/// The version of the file's content.
const FORMAT: u32 = 1;
/// redb's cache. Its default of 1 GiB would break the memory promise.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Rows that are skipped at each start: status messages take row numbers that no commit records.
const ROWS_SKIPPED_AT_START: u64 = 1 << 20;
/// The file that is given up when the disk is full, so that what is owed can still go out.
const RESERVE_FILE: &str = "reserve";
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
const STATE_FILE: &str = "state.redb";
/// Room for an ordinary row, so that it is not moved while it grows.
const ROW_BYTES: usize = 2_048;
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

/// What is committed at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows of the reconciler that changed.
    pub rows: BTreeSet<RowKey>,
    /// Messages in order, with the generation of a mapping (0 elsewhere) and the seq of a delta (0 elsewhere).
    pub messages: Vec<Owed>,
    /// Rows that the bus has.
    pub acked: Vec<u64>,
    /// Rows that the bus refused for what they are.
    pub rejected: Vec<(u64, String)>,
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

impl Batch {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.messages.is_empty()
            && self.acked.is_empty()
            && self.rejected.is_empty()
    }

    /// Whether it only takes messages away.
    fn is_only_acks(&self) -> bool {
        self.rows.is_empty() && self.messages.is_empty() && self.rejected.is_empty()
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages that the bus does not have.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Deltas among them.
    pub deltas: u64,
}

/// What is remembered of a stored message without reading it.
#[derive(Clone, Debug)]
struct Known {
    bytes: u32,
    seq: u64,
    state: Option<StateKey>,
    stage: Stage,
}

/// The key of a state message: topic, item, generation.
type StateKey = (Topic, Arc<str>, u64);

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

/// The outbox of one collector, owned by the one that commits.
pub struct Outbox {
    directory: PathBuf,
    database: Shared,
    meta: Meta,
    options: Options,
    known: BTreeMap<u64, Known>,
    latest: HashMap<StateKey, u64>,
    totals: Totals,
    /// The highest row that was handed to a reader: what is in flight is not dropped.
    handed: Arc<Mutex<u64>>,
    has_unsynced_acks: bool,
    quarantined: u64,
    /// Rows that the bus has, and that the file had again after a commit failed: acknowledgements that were
    /// never synced went with it. The next commit takes them away.
    revived: BTreeSet<u64>,
    /// The newest row that was ever known to be in the file.
    newest_row: u64,
    mark: mark::Mark,
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
        &self.meta
    }

    /// What is owed.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Messages in quarantine that were put there since the start.
    pub fn quarantined(&self) -> u64 {
        self.quarantined
    }

    /// Whether the snapshot that follows dropped deltas is to be told now: once, when half of the room is free.
    pub fn take_snapshot_due(&mut self) -> bool {
        let is_due = self.meta.snapshot_owed && self.totals.bytes < self.options.bytes_max / 2;
        if is_due {
            self.meta.snapshot_owed = false;
        }
        is_due
    }

    /// Whether acknowledgements wait for the next durable commit.
    pub fn has_unsynced_acks(&self) -> bool {
        self.has_unsynced_acks
    }

    /// The row that the next message will have; it is then taken.
    pub fn take_row(&mut self) -> u64 {
        let row = self.meta.next_row;
        self.meta.next_row += 1;
        row
    }

    /// The namespace whose stage a row ends, if it does.
    pub fn stage_of(&self, row: u64) -> Option<StageDone> {
        let known = self.known.get(&row)?;
        let (_, item, generation) = known.state.as_ref()?;
        match known.stage {
            Stage::None => None,
            Stage::Mapping | Stage::Tombstone => Some(StageDone {
                pns_inode: item.parse().ok()?,
                generation: *generation,
                stage: known.stage,
            }),
        }
    }

    /// The mappings whose newest put or tombstone the bus does not have: number and generation.
    pub fn owed_mappings(&self) -> BTreeSet<(u64, u64)> {
        let rows = self.known.keys().filter_map(|row| self.stage_of(*row));
        rows.map(|done| (done.pns_inode, done.generation)).collect()
    }

    /// A reader for the publisher.
    pub fn reader(&self) -> OutboxReader {
        OutboxReader::new(Arc::clone(&self.database), Arc::clone(&self.handed))
    }

    /// Commits state, messages and acknowledgements together. Durable when it returns, but for a batch of
    /// acknowledgements alone: the next commit makes those durable (a crash before it sends them twice).
    ///
    /// Returns the deltas that were dropped for room, if any: the first and the last seq.
    ///
    /// # Errors
    /// When nothing was committed: the caller goes back to [`Outbox::recover`].
    pub fn commit(
        &mut self,
        batch: Batch,
        reconciler: &Reconciler,
        now_ms: u64,
        gap: &dyn Fn(u64, u64, u64) -> Outgoing,
    ) -> Result<Option<(u64, u64)>, OutboxError> {
        self.meta.seq = reconciler.seq();
        self.meta.package_seq = reconciler.package_seq();
        self.meta.generation = reconciler.generation();
        self.meta.opened = reconciler.opened();
        self.meta.last_alive_ms = now_ms;
        let is_durable = !batch.is_only_acks();
        let has_deltas = batch.messages.iter().any(|owed| owed.seq != 0);
        let plan = self.plan(&batch);
        let drop = self.plan_drop(&batch, &plan);
        self.meta.snapshot_owed |= drop.is_some();
        self.write(&batch, &plan, drop.as_ref(), reconciler, gap, is_durable)?;
        self.has_unsynced_acks = !is_durable;
        self.revived.clear();
        if has_deltas {
            self.mark.note(&self.meta.epoch, self.meta.seq);
        }
        self.apply(batch, plan);
        Ok(drop.map(|drop| self.apply_drop(drop, gap)))
    }

    /// Makes acknowledgements durable that were committed without a sync.
    ///
    /// # Errors
    /// When it cannot be committed.
    pub fn sync(&mut self, reconciler: &Reconciler, now_ms: u64) -> Result<(), OutboxError> {
        self.meta.last_alive_ms = now_ms;
        let nothing = |_, _, _| unreachable_gap();
        self.write(
            &Batch::default(),
            &Plan::default(),
            None,
            reconciler,
            &nothing,
            true,
        )?;
        self.has_unsynced_acks = false;
        self.revived.clear();
        Ok(())
    }

    fn plan(&self, batch: &Batch) -> Plan {
        let mut plan = Plan::default();
        let mut newest: HashMap<StateKey, usize> = HashMap::new();
        for (index, owed) in batch.messages.iter().enumerate() {
            if let Some(key) = state_key(owed) {
                if let Some(earlier) = newest.insert(key.clone(), index) {
                    plan.skipped.insert(earlier);
                }
                if let Some(row) = self.latest.get(&key) {
                    plan.removed.insert(*row);
                }
            }
        }
        plan.removed.extend(batch.acked.iter().copied());
        plan.removed
            .extend(batch.rejected.iter().map(|(row, _)| *row));
        plan.removed.retain(|row| self.known.contains_key(row));
        plan
    }

    fn write(
        &self,
        batch: &Batch,
        plan: &Plan,
        drop: Option<&limits::Drop>,
        reconciler: &Reconciler,
        gap: &dyn Fn(u64, u64, u64) -> Outgoing,
        is_durable: bool,
    ) -> Result<(), OutboxError> {
        let failed = |source: redb::Error| OutboxError::Database {
            action: "commit",
            path: self.directory.clone(),
            source: Box::new(source),
        };
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            return Err(failed(redb::Error::DatabaseClosed));
        };
        let mut transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        let durability = if is_durable {
            Durability::Immediate
        } else {
            Durability::None
        };
        transaction
            .set_durability(durability)
            .map_err(|e| failed(e.into()))?;
        let mut buffer = Vec::with_capacity(ROW_BYTES);
        self.write_rows(&transaction, batch, reconciler, &failed, &mut buffer)?;
        {
            let mut messages = transaction
                .open_table(MESSAGES)
                .map_err(|e| failed(e.into()))?;
            if !batch.rejected.is_empty() {
                let mut quarantine = transaction
                    .open_table(QUARANTINE)
                    .map_err(|e| failed(e.into()))?;
                for (row, reason) in &batch.rejected {
                    let stored = messages.get(row).map_err(|e| failed(e.into()))?;
                    if let Some(stored) = stored {
                        let entry = encode("quarantine", &(reason, stored.value()), &mut buffer)?;
                        quarantine
                            .insert(row, entry)
                            .map_err(|e| failed(e.into()))?;
                    }
                }
                while redb::ReadableTableMetadata::len(&quarantine).map_err(|e| failed(e.into()))?
                    > QUARANTINE_MAX
                {
                    quarantine.pop_first().map_err(|e| failed(e.into()))?;
                }
            }
            for row in plan.removed.iter().chain(&self.revived) {
                messages.remove(row).map_err(|e| failed(e.into()))?;
            }
            for (index, owed) in batch.messages.iter().enumerate() {
                if !plan.skipped.contains(&index) {
                    let bytes = encode("messages", &MessageToStore::from(owed), &mut buffer)?;
                    messages
                        .insert(owed.outgoing.row, bytes)
                        .map_err(|e| failed(e.into()))?;
                }
            }
            if let Some(drop) = drop {
                for row in &drop.rows {
                    messages.remove(row).map_err(|e| failed(e.into()))?;
                }
                let owed = drop.gap(gap);
                let bytes = encode("messages", &MessageToStore::from(&owed), &mut buffer)?;
                messages
                    .insert(owed.outgoing.row, bytes)
                    .map_err(|e| failed(e.into()))?;
            }
        }
        transaction.commit().map_err(|e| failed(e.into()))
    }

    fn write_rows(
        &self,
        transaction: &redb::WriteTransaction,
        batch: &Batch,
        reconciler: &Reconciler,
        failed: &dyn Fn(redb::Error) -> OutboxError,
        buffer: &mut Vec<u8>,
    ) -> Result<(), OutboxError> {
        {
            let mut meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            let bytes = encode("meta", &self.meta, buffer)?;
            meta.insert("meta", bytes).map_err(|e| failed(e.into()))?;
        }
        if batch.rows.is_empty() {
            return Ok(());
        }
        let mut containers = transaction
            .open_table(CONTAINERS)
            .map_err(|e| failed(e.into()))?;
        let mut namespaces = transaction
            .open_table(NAMESPACES)
            .map_err(|e| failed(e.into()))?;
        let mut sources = transaction
            .open_table(SOURCES)
            .map_err(|e| failed(e.into()))?;
        for key in &batch.rows {
            match (key, reconciler.row(key)) {
                (RowKey::Container(id), Some(Row::Container(row))) if row.is_told() => {
                    let bytes = encode("containers", row, buffer)?;
                    containers.insert(id.as_str(), bytes).map(drop)
                }
                (RowKey::Namespace(inode), Some(Row::Namespace(row))) => {
                    let bytes = encode("namespaces", row, buffer)?;
                    namespaces.insert(inode, bytes).map(drop)
                }
                (RowKey::Source(id), Some(Row::Source(row))) => {
                    let bytes = encode("sources", row, buffer)?;
                    sources.insert(id.as_str(), bytes).map(drop)
                }
                (RowKey::Container(id), _) => containers.remove(id.as_str()).map(drop),
                (RowKey::Namespace(inode), _) => namespaces.remove(inode).map(drop),
                (RowKey::Source(id), _) => sources.remove(id.as_str()).map(drop),
            }
            .map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }

    fn apply(&mut self, batch: Batch, plan: Plan) {
        self.quarantined += batch.rejected.len() as u64;
        for row in &plan.removed {
            self.forget_message(*row);
        }
        for (index, owed) in batch.messages.iter().enumerate() {
            if !plan.skipped.contains(&index) {
                self.know_message(owed);
            }
        }
    }

    fn know_message(&mut self, owed: &Owed) {
        let known = Known {
            bytes: message_bytes(&owed.outgoing),
            seq: owed.seq,
            state: state_key(owed),
            stage: owed.stage,
        };
        self.totals.messages += 1;
        self.totals.bytes += u64::from(known.bytes);
        match &known.state {
            Some(key) => {
                self.latest.insert(key.clone(), owed.outgoing.row);
            }
            None => self.totals.deltas += 1,
        }
        self.newest_row = self.newest_row.max(owed.outgoing.row);
        self.known.insert(owed.outgoing.row, known);
    }

    fn forget_message(&mut self, row: u64) {
        let Some(known) = self.known.remove(&row) else {
            return;
        };
        self.totals.messages -= 1;
        self.totals.bytes -= u64::from(known.bytes);
        match known.state {
            Some(key) => {
                if self.latest.get(&key) == Some(&row) {
                    self.latest.remove(&key);
                }
            }
            None => self.totals.deltas -= 1,
        }
    }
}

/// What a commit takes away and leaves out.
#[derive(Debug, Default)]
struct Plan {
    removed: BTreeSet<u64>,
    skipped: BTreeSet<usize>,
}

fn state_key(owed: &Owed) -> Option<StateKey> {
    match owed.outgoing.topic {
        Topic::Deltas | Topic::Processes | Topic::Ports => None,
        Topic::Records | Topic::Pns | Topic::Status => Some((
            owed.outgoing.topic,
            Arc::clone(&owed.outgoing.item),
            owed.generation,
        )),
    }
}

fn message_bytes(outgoing: &Outgoing) -> u32 {
    let value = outgoing.value.as_ref().map_or(0, |value| value.len());
    u32::try_from(value + outgoing.item.len() + outgoing.ce_id.len() + 32).unwrap_or(u32::MAX)
}

/// Encodes a value into a buffer that is used for one row after another.
fn encode<'b, T: Serialize>(
    table: &'static str,
    value: &T,
    buffer: &'b mut Vec<u8>,
) -> Result<&'b [u8], OutboxError> {
    buffer.clear();
    *buffer = postcard::to_extend(value, std::mem::take(buffer))
        .map_err(|source| OutboxError::Encoding { table, source })?;
    Ok(buffer)
}

/// A gap is never rendered where nothing is dropped; this keeps `sync` total without a panic.
fn unreachable_gap() -> Outgoing {
    Outgoing {
        row: 0,
        topic: Topic::Deltas,
        host_id: "".into(),
        item: "".into(),
        op: "gap".into(),
        value: None,
        ce_id: "".into(),
        ce_type: "",
        ce_source: "".into(),
        time_ms: 0,
    }
}
