//! Opening the state: as it was left, or set aside where it is damaged, or new.

use std::io::ErrorKind;

use redb::Builder;

use super::Stage;
use super::{
    Arc, BTreeMap, BTreeSet, CACHE_BYTES, CONTAINERS, Database, FORMAT, File, HashMap, MESSAGES,
    META, Meta, Mutex, NAMESPACES, Opened, Options, Outbox, OutboxError, Path, PathBuf,
    PoisonError, QUARANTINE, RESERVE_BYTES, RESERVE_FILE, ROWS_SKIPPED_AT_START, Restored, RwLock,
    SOURCES, STATE_FILE, StoredMessage, Totals,
};
use crate::model::{ContainerId, SourceId};
use redb::{ReadableDatabase as _, ReadableTable as _};

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
                    "the state was damaged ({}) and is set aside as `{}`",
                    crate::telemetry::chain(&error),
                    aside.display()
                ));
                Self::try_open(directory, owner, options)?
            }
            Err(error) => return Err(error),
        };
        make_reserve(directory);
        Ok(Opened {
            set_aside,
            ..opened
        })
    }

    fn try_open(directory: &Path, owner: &Owner, options: Options) -> Result<Opened, OutboxError> {
        let database = open_database(directory)?;
        let loaded = Loaded::read(&database, directory)?;
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
        let restored = Restored {
            containers: loaded.containers,
            namespaces: loaded.namespaces,
            sources: loaded.sources,
            seq: meta.seq,
            package_seq: meta.package_seq,
            generation: meta.generation,
            opened: meta.opened,
        };
        let mut outbox = Self {
            directory: directory.to_owned(),
            database: Arc::new(RwLock::new(None)),
            meta,
            options,
            known: BTreeMap::new(),
            latest: HashMap::new(),
            totals: Totals::default(),
            handed: Arc::new(Mutex::new(0)),
            has_unsynced_acks: false,
            quarantined: 0,
            revived: BTreeSet::new(),
            newest_row: 0,
            mark: super::mark::Mark::open(directory),
        };
        let owed = outbox.know_stored(&database, 0)?;
        *outbox
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok(Opened {
            outbox,
            restored,
            owed,
            last_alive_ms,
            set_aside: None,
        })
    }

    /// Reads the stored messages from a row on, to know what is owed.
    fn know_stored(
        &mut self,
        database: &Database,
        from_row: u64,
    ) -> Result<BTreeSet<(u64, u64)>, OutboxError> {
        let failed = |source: redb::Error| database_error("read", &self.directory, source);
        let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
        let table = match transaction.open_table(MESSAGES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed(error.into())),
        };
        let host_id: Arc<str> = self.meta.host_id.as_str().into();
        let ce_source = crate::wire::ce_source(&host_id);
        let mut stored_messages = Vec::new();
        for entry in table.range(from_row..).map_err(|e| failed(e.into()))? {
            let (row, value) = entry.map_err(|e| failed(e.into()))?;
            let stored: StoredMessage =
                postcard::from_bytes(value.value()).map_err(|source| OutboxError::Encoding {
                    table: "messages",
                    source,
                })?;
            let mut owed = stored.into_owed(row.value(), &host_id, &ce_source);
            owed.outgoing.value = owed.outgoing.value.map(|value| Arc::from(&value[..0]));
            stored_messages.push((owed, value.value().len()));
        }
        let mut mappings = BTreeSet::new();
        for (owed, bytes) in stored_messages {
            let row = owed.outgoing.row;
            if owed.stage != Stage::None
                && let Ok(inode) = owed.outgoing.item.parse()
            {
                mappings.insert((inode, owed.generation));
            }
            self.know_message(&owed);
            if let Some(known) = self.known.get_mut(&row) {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                self.totals.bytes += u64::from(bytes) - u64::from(known.bytes.min(bytes));
                known.bytes = known.bytes.max(bytes);
            }
        }
        Ok(mappings)
    }

    /// After a commit failed: gives up the reserved file where that helps, opens the database again, and gives
    /// the state as it was last committed.
    ///
    /// # Errors
    /// When the database cannot be opened; the caller tries again later.
    pub fn recover(&mut self) -> Result<Restored, OutboxError> {
        let _ = std::fs::remove_file(self.directory.join(RESERVE_FILE));
        let shared = Arc::clone(&self.database);
        let mut guard = shared.write().unwrap_or_else(PoisonError::into_inner);
        *guard = None;
        let database = open_database(&self.directory)?;
        let loaded = Loaded::read(&database, &self.directory)?;
        self.agree_with(&database)?;
        *guard = Some(database);
        drop(guard);
        if !loaded.meta.epoch.is_empty() {
            self.meta.seq = loaded.meta.seq;
            self.meta.package_seq = loaded.meta.package_seq;
            self.meta.generation = loaded.meta.generation;
            self.meta.opened = loaded.meta.opened;
            self.meta.snapshot_owed = loaded.meta.snapshot_owed;
        } else {
            self.meta.seq = 0;
            self.meta.package_seq = 0;
            self.meta.generation = 0;
            self.meta.opened = false;
        }
        Ok(Restored {
            containers: loaded.containers,
            namespaces: loaded.namespaces,
            sources: loaded.sources,
            seq: self.meta.seq,
            package_seq: self.meta.package_seq,
            generation: self.meta.generation,
            opened: self.meta.opened,
        })
    }

    /// Brings what is known in line with the file after a commit failed. An earlier commit without a sync may
    /// have gone with it, and the failed one may be in the file all the same.
    fn agree_with(&mut self, database: &Database) -> Result<(), OutboxError> {
        let failed = |source: redb::Error| database_error("read", &self.directory, source);
        let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
        let table = transaction
            .open_table(MESSAGES)
            .map_err(|e| failed(e.into()))?;
        let mut stored = BTreeSet::new();
        for entry in table.iter().map_err(|e| failed(e.into()))? {
            let (row, _) = entry.map_err(|e| failed(e.into()))?;
            stored.insert(row.value());
        }
        let newest_row = self.newest_row;
        let is_revived = |row: &u64| *row <= newest_row && !self.known.contains_key(row);
        self.revived = stored.iter().copied().filter(is_revived).collect();
        self.has_unsynced_acks |= !self.revived.is_empty();
        let taken: Vec<u64> = self.known.keys().copied().collect();
        for row in taken.into_iter().filter(|row| !stored.contains(row)) {
            self.forget_message(row);
        }
        self.know_stored(database, newest_row + 1)?;
        Ok(())
    }

    /// Makes the reserved file again, where there is room.
    pub fn restore_reserve(&self) {
        make_reserve(&self.directory);
    }
}

/// The state as a database holds it.
struct Loaded {
    meta: Meta,
    containers: BTreeMap<ContainerId, crate::reconcile::Tracked>,
    namespaces: BTreeMap<u64, crate::reconcile::NamespaceRow>,
    sources: BTreeMap<SourceId, crate::reconcile::Source>,
}

impl Loaded {
    fn read(database: &Database, directory: &Path) -> Result<Self, OutboxError> {
        let failed = |source: redb::Error| database_error("read", directory, source);
        let transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        let mut loaded = Self {
            meta: Meta::default(),
            containers: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            sources: BTreeMap::new(),
        };
        {
            let meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            if let Some(bytes) = meta.get("meta").map_err(|e| failed(e.into()))? {
                loaded.meta = decode("meta", bytes.value())?;
            }
            let table = transaction
                .open_table(CONTAINERS)
                .map_err(|e| failed(e.into()))?;
            for entry in table.iter().map_err(|e| failed(e.into()))? {
                let (key, value) = entry.map_err(|e| failed(e.into()))?;
                if let Some(id) = ContainerId::parse(key.value()) {
                    loaded
                        .containers
                        .insert(id, decode("containers", value.value())?);
                }
            }
            let table = transaction
                .open_table(NAMESPACES)
                .map_err(|e| failed(e.into()))?;
            for entry in table.iter().map_err(|e| failed(e.into()))? {
                let (key, value) = entry.map_err(|e| failed(e.into()))?;
                loaded
                    .namespaces
                    .insert(key.value(), decode("namespaces", value.value())?);
            }
            let table = transaction
                .open_table(SOURCES)
                .map_err(|e| failed(e.into()))?;
            for entry in table.iter().map_err(|e| failed(e.into()))? {
                let (key, value) = entry.map_err(|e| failed(e.into()))?;
                loaded.sources.insert(
                    SourceId::new(key.value()),
                    decode("sources", value.value())?,
                );
            }
            transaction
                .open_table(MESSAGES)
                .map_err(|e| failed(e.into()))?;
            transaction
                .open_table(QUARANTINE)
                .map_err(|e| failed(e.into()))?;
        }
        transaction.commit().map_err(|e| failed(e.into()))?;
        Ok(loaded)
    }
}

fn decode<T: serde::de::DeserializeOwned>(
    table: &'static str,
    bytes: &[u8],
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

/// Opens or makes the database. A panic of redb over a torn file counts as damage.
fn open_database(directory: &Path) -> Result<Database, OutboxError> {
    let file = directory.join(STATE_FILE);
    let opened =
        std::panic::catch_unwind(|| Builder::new().set_cache_size(CACHE_BYTES).create(&file));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err(OutboxError::Locked {
            path: directory.to_owned(),
        }),
        Ok(Err(error)) => Err(database_error("open", directory, error.into())),
        Err(_) => Err(database_error(
            "open",
            directory,
            redb::Error::Corrupted("the database library panicked over it".to_owned()),
        )),
    }
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
