//! Opening the state: as it was left, or set aside where it is damaged or of another format, or new.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Builder, Database, Durability, ReadableDatabase as _, ReadableTable as _};

use super::chunk;
use super::ledger::Fault;
use super::reader::{Flow, read_meta};
use super::states::StoredState;
use super::{
    Books, CACHE_BYTES, CONTAINERS, DELTAS, FORMAT, LATEST, META, Meta, NAMESPACES, Opened,
    Options, Outbox, OutboxError, QUARANTINE, RESERVE_BYTES, RESERVE_FILE, ROWS_SKIPPED_AT_START,
    SOURCES, STATE_FILE, STATES, states,
};
use crate::model::{ContainerId, SourceId, Topic};
use crate::reconcile::{NamespaceRow, Restored, Source, Tracked};

/// Who opens the state.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The host.
    pub host_id: Arc<str>,
    /// The boot.
    pub boot_id: Arc<str>,
    /// The epoch that begins where there is no state.
    pub new_epoch: String,
}

impl Outbox {
    /// Whether a directory has a state, in whatever condition.
    pub fn exists(directory: &Path) -> bool {
        directory.join(STATE_FILE).exists()
    }

    /// Opens the state in a directory, which is made if it is missing (mode 0700). A file that is damaged is
    /// set aside under another name, and a new epoch begins.
    ///
    /// # Errors
    /// When the directory cannot be used, another process has it, or it is of another host.
    pub fn open(directory: &Path, owner: &Owner, options: Options) -> Result<Opened, OutboxError> {
        make_directory(directory)?;
        let file = directory.join(STATE_FILE);
        let mut set_aside = None;
        let opened = match Self::try_open(directory, owner, options.clone()) {
            Ok(opened) => opened,
            Err(error) if is_damage(&error) => {
                let aside = directory.join(format!("{STATE_FILE}.damaged-{}", owner.new_epoch));
                std::fs::rename(&file, &aside).map_err(|source| OutboxError::Directory {
                    path: directory.to_owned(),
                    source,
                })?;
                set_aside = Some(format!(
                    "the state cannot be used ({}) and is set aside as `{}`",
                    crate::telemetry::chain(&error),
                    aside.display()
                ));
                Self::try_open(directory, owner, options)?
            }
            Err(error) => return Err(error),
        };
        make_reserve(directory);
        make_private(&file);
        Ok(Opened {
            set_aside,
            ..opened
        })
    }

    fn try_open(directory: &Path, owner: &Owner, options: Options) -> Result<Opened, OutboxError> {
        let is_made = !Self::exists(directory);
        let mut database = open_database(directory)?;
        if !is_made {
            database = or_damage(directory, || checked(database, directory))?;
        }
        let loaded = or_damage(directory, || {
            let loaded = Loaded::read(&database, directory)?;
            look_through(&database).map_err(|fault| OutboxError::of("read", directory, fault))?;
            Ok(loaded)
        })?;
        let is_new = loaded.meta.epoch.is_empty();
        let mut meta = loaded.meta;
        if !is_new && meta.host_id != *owner.host_id {
            return Err(OutboxError::OtherHost {
                path: directory.to_owned(),
                found: meta.host_id,
                wanted: owner.host_id.to_string(),
            });
        }
        let marked = super::mark::read(directory);
        if let Some((_, seq)) = marked.as_ref().filter(|(epoch, _)| *epoch == meta.epoch)
            && *seq > meta.seq
        {
            let found = meta.seq;
            let gone_back = format!("it has gone back from delta {seq} to {found}");
            let source = redb::Error::Corrupted(gone_back);
            return Err(database_error("read", directory, source));
        }
        if is_new {
            meta.previous_epoch = marked.map(|(epoch, _)| epoch);
            meta.epoch.clone_from(&owner.new_epoch);
            meta.host_id = owner.host_id.to_string();
            meta.format = FORMAT;
            meta.next_row = 1;
            super::read_back::owe(directory);
        } else {
            meta.next_row += ROWS_SKIPPED_AT_START;
        }
        meta.boot_id = owner.boot_id.to_string();
        let last_alive_ms = meta.last_alive_ms;
        let owed = loaded.owed;
        let restored = restored(&meta, loaded.rows);
        let flow = Flow {
            handed: 0,
            last_acked: meta.last_acked(),
        };
        let outbox = Self {
            directory: directory.to_owned(),
            database: Arc::new(RwLock::new(Some(database))),
            options,
            books: Books {
                meta,
                ..Books::default()
            },
            flow: Arc::new(Mutex::new(flow)),
            unsynced: Vec::new(),
            revived: Vec::new(),
            mark: super::mark::Mark::open(directory),
            ages: super::ages::Ages::since(last_alive_ms),
        };
        Ok(Opened {
            outbox,
            restored,
            owed,
            last_alive_ms,
            set_aside: None,
        })
    }

    /// After a commit failed: gives up the reserved file where that helps, opens the database again, and gives
    /// the state as it was last committed. An earlier commit without a sync may have gone with the failed one,
    /// and that one may be in the file all the same: the file is right, and acknowledgements that were not
    /// synced are committed again with what comes next.
    ///
    /// # Errors
    /// When the database cannot be opened; the caller tries again later.
    pub fn recover(&mut self) -> Result<Recovered, OutboxError> {
        let _ = std::fs::remove_file(self.directory.join(RESERVE_FILE));
        let shared = Arc::clone(&self.database);
        let mut guard = shared.write().unwrap_or_else(PoisonError::into_inner);
        *guard = None;
        let database = open_database(&self.directory)?;
        let loaded = Loaded::read(&database, &self.directory)?;
        *guard = Some(database);
        drop(guard);
        self.revived.append(&mut self.unsynced);
        self.books.tail.find_anew();
        let known = std::mem::take(&mut self.books.meta);
        self.books.meta = if loaded.meta.epoch.is_empty() {
            Meta {
                format: FORMAT,
                host_id: known.host_id,
                epoch: known.epoch,
                boot_id: known.boot_id,
                previous_epoch: known.previous_epoch,
                ..Meta::default()
            }
        } else {
            loaded.meta
        };
        self.books.meta.bus = known.bus;
        self.books.meta.next_row = known.next_row.max(self.books.meta.next_row);
        Ok(Recovered {
            restored: restored(&self.books.meta, loaded.rows),
            owed: loaded.owed,
        })
    }

    /// Makes the reserved file again, where there is room.
    pub fn restore_reserve(&self) {
        make_reserve(&self.directory);
    }
}

/// The state as it was last committed.
pub struct Recovered {
    /// The reconciler's.
    pub restored: Restored,
    /// Mappings whose newest put or tombstone is owed, as far as the file knows: number and generation.
    pub owed: BTreeSet<(u64, u64)>,
}

/// The reconciler's rows.
#[derive(Default)]
struct Rows {
    containers: BTreeMap<ContainerId, Tracked>,
    namespaces: BTreeMap<u64, NamespaceRow>,
    sources: BTreeMap<SourceId, Source>,
}

fn restored(meta: &Meta, rows: Rows) -> Restored {
    Restored {
        containers: rows.containers,
        namespaces: rows.namespaces,
        sources: rows.sources,
        seq: meta.seq,
        package_seq: meta.package_seq,
        generation: meta.generation,
        opened: meta.opened,
    }
}

/// The state as a database holds it.
struct Loaded {
    meta: Meta,
    rows: Rows,
    owed: BTreeSet<(u64, u64)>,
}

impl Loaded {
    fn read(database: &Database, directory: &Path) -> Result<Self, OutboxError> {
        Self::read_all(database).map_err(|fault| OutboxError::of("read", directory, fault))
    }

    /// Reads the rows, and makes the tables that are missing. Those are on disk with the first commit: nothing is said of
    /// them before.
    fn read_all(database: &Database) -> Result<Self, Fault> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        let mut rows = Rows::default();
        let mut owed = BTreeSet::new();
        let meta = read_meta(&transaction.open_table(META)?)?;
        {
            for entry in transaction.open_table(CONTAINERS)?.iter()? {
                let (key, value) = entry?;
                if let Some(id) = ContainerId::parse(key.value()) {
                    let row = decode("containers", value.value())?;
                    rows.containers.insert(id, row);
                }
            }
            let latest = transaction.open_table(LATEST)?;
            let mut key_of_state = Vec::new();
            for entry in transaction.open_table(NAMESPACES)?.iter()? {
                let (key, value) = entry?;
                let inode = key.value();
                let row: NamespaceRow = decode("namespaces", value.value())?;
                let generation = row.mapping().generation;
                states::key(
                    Topic::Pns,
                    generation,
                    &inode.to_string(),
                    &mut key_of_state,
                );
                if latest.get(key_of_state.as_slice())?.is_some() {
                    owed.insert((inode, generation));
                }
                rows.namespaces.insert(inode, row);
            }
            for entry in transaction.open_table(SOURCES)?.iter()? {
                let (key, value) = entry?;
                let row = decode("sources", value.value())?;
                rows.sources.insert(SourceId::new(key.value()), row);
            }
            transaction.open_table(DELTAS)?;
            transaction.open_table(STATES)?;
            transaction.open_table(QUARANTINE)?;
        }
        transaction.commit()?;
        Ok(Self { meta, rows, owed })
    }
}

/// Reads every message once, one after another, so that damage is found here, where the file can be set aside.
fn look_through(database: &Database) -> Result<(), Fault> {
    let transaction = database.begin_read()?;
    for entry in transaction.open_table(DELTAS)?.iter()? {
        for delta in chunk::decode(entry?.1.value())?.1 {
            delta?;
        }
    }
    for entry in transaction.open_table(STATES)?.iter()? {
        postcard::from_bytes::<StoredState<'_>>(entry?.1.value()).map_err(|source| {
            Fault::Encoding {
                table: "states",
                source,
            }
        })?;
    }
    Ok(())
}

/// Runs a step over the file; a panic of redb over a torn one counts as damage.
fn or_damage<T>(
    directory: &Path,
    step: impl FnOnce() -> Result<T, OutboxError>,
) -> Result<T, OutboxError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).unwrap_or_else(|_| {
        let panicked = "the database library panicked over it".to_owned();
        let source = redb::Error::Corrupted(panicked);
        Err(database_error("read", directory, source))
    })
}

fn decode<T: serde::de::DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<T, Fault> {
    postcard::from_bytes(bytes).map_err(|source| Fault::Encoding { table, source })
}

fn database_error(action: &'static str, directory: &Path, source: redb::Error) -> OutboxError {
    OutboxError::Database {
        action,
        path: directory.to_owned(),
        source: Box::new(source),
    }
}

/// Looks at the checksum of every page. redb does so by itself only after a crash: what was closed well would be believed,
/// and a byte that flipped since would be sent as it is.
fn checked(mut database: Database, directory: &Path) -> Result<Database, OutboxError> {
    let checked = database.check_integrity();
    checked.map_err(|error| database_error("check", directory, error.into()))?;
    Ok(database)
}

/// Opens or makes the database.
fn open_database(directory: &Path) -> Result<Database, OutboxError> {
    let file = directory.join(STATE_FILE);
    or_damage(directory, || {
        match Builder::new().set_cache_size(CACHE_BYTES).create(&file) {
            Ok(database) => Ok(database),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(OutboxError::Locked {
                path: directory.to_owned(),
            }),
            Err(error) => Err(database_error("open", directory, error.into())),
        }
    })
}

/// Whether an error says that the file itself is bad, so that nothing but another file helps.
fn is_damage(error: &OutboxError) -> bool {
    match error {
        OutboxError::Database { source, .. } => {
            let is_bad_io = |error: &std::io::Error| {
                matches!(
                    error.kind(),
                    ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                )
            };
            matches!(
                &**source,
                redb::Error::Corrupted(_)
                    | redb::Error::UpgradeRequired(_)
                    | redb::Error::RepairAborted
                    | redb::Error::TableTypeMismatch { .. }
            ) || matches!(&**source, redb::Error::Io(error) if is_bad_io(error))
        }
        OutboxError::Encoding { .. } => true,
        // A newer version's is whole, and that version is to send what it owes.
        OutboxError::Format { found, .. } => *found < FORMAT,
        OutboxError::Directory { .. }
        | OutboxError::Locked { .. }
        | OutboxError::OtherHost { .. } => false,
    }
}

fn make_directory(directory: &Path) -> Result<(), OutboxError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| OutboxError::Directory {
            path: directory.to_owned(),
            source,
        })
}

/// Takes a file from everybody else: it tells of every container, and the directory may be one that others can enter.
fn make_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let private = std::fs::Permissions::from_mode(0o600);
    if let Err(error) = std::fs::set_permissions(path, private) {
        tracing::warn!(path = %path.display(), %error, "others may be able to read the state");
    }
}

/// Writes the reserved file, best effort: without room for it there is nothing to reserve.
fn make_reserve(directory: &Path) {
    let path: PathBuf = directory.join(RESERVE_FILE);
    if std::fs::metadata(&path).is_ok_and(|found| found.len() == RESERVE_BYTES) {
        return;
    }
    let made = File::create(&path).and_then(|file| {
        let flags = rustix::fs::FallocateFlags::empty();
        Ok(rustix::fs::fallocate(&file, flags, 0, RESERVE_BYTES)?)
    });
    if let Err(error) = made {
        let _ = std::fs::remove_file(&path);
        tracing::warn!(%error, "no room for the reserved file");
    }
}
