//! The reconciler: from what the runtimes and the process table say to what the bus is owed.
//!
//! It is pure: no I/O, no clock, no randomness. `now` is an argument, identity and settings are given once, and
//! [`Reconciler::handle`] answers an [`Observation`] with [`Effect`]s. Observations may be lost, doubled, late
//! or out of order; what is published is a whole story for each container all the same.
//!
//! # Invariants
//!
//! 1. `seq` is contiguous within an epoch; folding all deltas from the epoch's opening gives [`Reconciler::tally`].
//! 2. No `start`, `stop`, `update` or `delete` of a container that was not told by `create` or `snapshot`; no
//!    `start` while a run is open, no `stop` while none is, no `delete` while one is.
//! 3. A complete list, once its inspects are answered, gives the truth; the same list again gives no delta.
//! 4. A partial or failed list deletes nothing, nor does a list that began before the event that it contradicts.
//! 5. A mapping names only containers whose process was seen alive in that namespace. Each mapping that ends is
//!    put with its `valid_to_ms`, and after the linger gets its tombstone, unless its number has gone to another
//!    namespace by then.
//! 6. Every namespace token that comes in with a [`Process`] is held by one mapping, waits some seconds for its
//!    container to be known, or is released.
//! 7. A nested namespace is mapped to a container of the namespace above it, and ends with that one at the latest. One that
//!    is a watched container's own is that container's.
//!
//! Where to look: `grammar.rs` says what comes in and what is to be done; this file dispatches, opens an epoch and
//! keeps the time; `container.rs` is what is known of one container, `inspect.rs` what is asked about it,
//! `fills.rs` what sketches lack; `runs.rs` (a function of what was said) puts its runs in order, `story.rs` tells
//! them, `process.rs` takes what is read of its processes, `early.rs` those of containers that are not known yet;
//! `overlay.rs` is cri-dockerd; `listing.rs` compares lists; `namespace.rs` maps, `nested.rs` what lies below.

mod container;
mod early;
mod fills;
mod grammar;
mod inspect;
mod listing;
mod namespace;
mod nested;
mod overlay;
mod process;
mod runs;
mod story;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use container::Tracked;
pub use grammar::{
    Counters, Effect, FdToken, Identity, InspectOutcome, ListOutcome, Observation, Pinned, Process,
    ProcessReading, Restored, Row, RowKey, Settings,
};
pub use listing::Source;
pub(crate) use namespace::member_of;
pub use namespace::{NamespaceRow, Phase};
pub use nested::{MappingKey, NESTED_MAX, NestedKnown, NestedLook, NestedOwner, NestedQuery};
pub(crate) use nested::{closest_member, in_cgroup};

use crate::model::message::{Delta, Message, Op, Origin, RuntimeSource};
use crate::model::record::Fields;
use crate::model::{ContainerId, SourceId};
use fills::Fills;
use runs::End;
use story::Round;

/// How long the id of a deleted container is remembered, so that nothing late revives it.
const DELETED_REMEMBERED_MS: u64 = 10 * 60 * 1_000;
/// Most ids of deleted containers that are remembered.
const DELETED_REMEMBERED_MAX: usize = 65_536;
/// How long the opening of an epoch waits for the first lists.
const OPENING_MS_MAX: u64 = 30_000;
/// How often the processes of a runtime that is away are looked at. That is how late the end of one is seen, and those
/// who join by time allow for 2 s.
const AWAY_CHECK_MS: u64 = 2_000;
/// The most that counts as passed between two observations: more is a clock that was set.
const STEP_MS_MAX: u64 = 60_000;

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Reconciler {
    identity: Identity,
    settings: Settings,
    sources: BTreeMap<SourceId, Source>,
    /// Runtimes that were never listed nor found away since they are watched.
    expected: BTreeSet<SourceId>,
    containers: BTreeMap<ContainerId, Tracked>,
    namespaces: BTreeMap<u64, NamespaceRow>,
    early: early::Early,
    nested: nested::Nested,
    deleted: BTreeMap<ContainerId, Deletion>,
    deleted_order: VecDeque<(ContainerId, u64)>,
    /// Containers that wait for time to pass, until this moment of [`uptime_ms`](Self::uptime_ms).
    waiting: BTreeMap<ContainerId, u64>,
    fills: Fills,
    seq: u64,
    package_seq: u64,
    generation: u64,
    opening: Opening,
    away_checked_ms: u64,
    counters: Counters,
    effects: Vec<Effect>,
    now_ms: u64,
    /// How long this life has lasted: it goes on with `now_ms`, but steps neither back nor far ahead.
    uptime_ms: u64,
}

/// What is remembered of a container whose deletion was told.
#[derive(Clone, Debug)]
struct Deletion {
    /// When it was told, by [`Reconciler::uptime_ms`].
    at_ms: u64,
    /// The time of the event that told it; `None` where it was found by comparing, and a list may revive it.
    told_at_ns: Option<u64>,
}

/// Whether the epoch's opening has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// `epoch` is still to be sent.
    Unopened,
    /// `epoch` is sent; containers that are found are snapshots, until this uptime at the latest.
    Until(u64),
    /// `snapshot_end` is sent.
    Done,
}

impl Reconciler {
    /// A reconciler with the state that was left.
    pub fn new(identity: Identity, settings: Settings, mut restored: Restored) -> Self {
        for tracked in restored.containers.values_mut() {
            tracked.restore_fields();
        }
        let nested = nested::Nested::restore(&mut restored.namespaces);
        Self {
            identity,
            settings,
            sources: restored.sources,
            expected: BTreeSet::new(),
            containers: restored.containers,
            namespaces: restored.namespaces,
            early: early::Early::default(),
            nested,
            deleted: BTreeMap::new(),
            deleted_order: VecDeque::new(),
            waiting: BTreeMap::new(),
            fills: Fills::default(),
            seq: restored.seq,
            package_seq: restored.package_seq,
            generation: restored.generation,
            opening: if restored.opened {
                Opening::Done
            } else {
                Opening::Unopened
            },
            away_checked_ms: 0,
            counters: Counters::default(),
            effects: Vec::new(),
            now_ms: 0,
            uptime_ms: 0,
        }
    }

    /// Takes one observation and says what is to be done, in order. `now_ms` is unix time; it may step.
    pub fn handle(&mut self, observation: Observation, now_ms: u64) -> Vec<Effect> {
        if self.now_ms != 0 {
            self.uptime_ms += now_ms.saturating_sub(self.now_ms).min(STEP_MS_MAX);
        }
        self.now_ms = now_ms;
        match observation {
            Observation::Began {
                last_alive_ms,
                owed,
            } => self.begin(last_alive_ms, &owed),
            Observation::SourceExpected { source } => {
                self.expected.insert(source);
            }
            Observation::SourceUp {
                source,
                runtime,
                streaming,
                is_listing,
            } => {
                self.source_up(source, runtime, streaming, is_listing);
                self.want_nested();
            }
            Observation::SourceDown { source } => self.source_down(&source),
            Observation::SourceForgotten { source } => self.forget_source(&source),
            Observation::StreamGap { source } => self.stream_gap(&source),
            Observation::ListBegan { source } => self.list_began(&source),
            Observation::ListDone { source, outcome } => self.list_done(&source, outcome),
            Observation::Event { source, event } => self.event(&source, event),
            Observation::Inspected {
                source,
                id,
                outcome,
            } => self.inspected(&source, &id, outcome),
            Observation::Process { id, pid, reading } => self.process_read(&id, pid, reading),
            Observation::ProcessOf {
                uid,
                id,
                pid,
                reading,
            } => self.process_named(uid, &id, pid, reading),
            Observation::NestedLooked { look } => self.nested_looked(*look),
            Observation::MappingAcked {
                pns_inode,
                generation,
            } => self.mapping_acked(pns_inode, generation),
            Observation::TombstoneAcked {
                pns_inode,
                generation,
            } => self.tombstone_acked(pns_inode, generation),
            Observation::SnapshotDue => self.snapshot_all(),
            Observation::StateDue => self.put_all(),
            Observation::ResyncDue => {
                self.resync_due();
                self.want_nested();
            }
            Observation::ListDue { source } => self.list_due(&source),
            Observation::Tick => self.tick(),
        }
        self.ask_fills();
        self.close_opening();
        std::mem::take(&mut self.effects)
    }

    /// The newest delta's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The newest resync's number.
    pub fn package_seq(&self) -> u64 {
        self.package_seq
    }

    /// The newest generation of a mapping.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the epoch's opening has been told to its end.
    pub fn opened(&self) -> bool {
        self.opening == Opening::Done
    }

    /// The figures so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What has been told of each container, in the order of ids.
    pub fn tally(&self) -> impl Iterator<Item = (&ContainerId, Fields)> {
        self.containers
            .iter()
            .filter(|(_, tracked)| tracked.is_told())
            .map(|(id, tracked)| (id, tracked.fields()))
    }

    /// The containers that are tracked, told or not.
    pub fn containers(&self) -> impl Iterator<Item = &Tracked> {
        self.containers.values()
    }

    /// The mappings that stand, lingering ones too.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceRow> {
        self.namespaces.values()
    }

    /// The tokens of the namespaces that are held: by mappings, and by processes that wait for their container.
    pub fn held_fds(&self) -> impl Iterator<Item = FdToken> {
        let mapped = self.namespaces.values().filter_map(NamespaceRow::fd);
        mapped.chain(self.early.fds())
    }

    /// The runtimes: id, who, whether it is up, whether it streams.
    pub fn sources(&self) -> impl Iterator<Item = (&SourceId, &RuntimeSource, bool, bool)> {
        self.sources
            .iter()
            .map(|(id, source)| (id, &*source.runtime, source.up, source.streaming))
    }

    /// Whether no list and no inspect is awaited.
    pub fn is_settled(&self) -> bool {
        self.sources.values().all(|source| source.list.is_idle())
            && self
                .containers
                .values()
                .all(|tracked| !tracked.is_awaited())
            && self.waiting.is_empty()
            && self.fills.is_empty()
    }

    /// Whether a list of this runtime, or an inspect of one of its containers, is awaited.
    pub fn is_awaiting(&self, source: &SourceId) -> bool {
        let known = self.sources.get(source);
        known.is_some_and(|known| !known.list.is_idle())
            || self
                .containers
                .values()
                .any(|tracked| tracked.owner == *source && tracked.is_awaited())
    }

    /// What is known of the process of a container's open run with this pid, where its namespace is held: then a look at
    /// the process needs to tell only whether it is still the same.
    pub fn pinned(&self, id: &ContainerId, pid: u32) -> Option<Pinned> {
        let tracked = self.containers.get(id)?;
        let mut runs = [&tracked.run, &tracked.hint].into_iter().flatten();
        runs.find_map(|run| {
            let row = self.namespaces.get(&run.pns_inode?)?;
            let fd = row.fd.filter(|_| row.phase == Phase::Live)?;
            (run.pid == Some(pid)).then_some(Pinned {
                start_ticks: run.start_ticks,
                fd,
            })
        })
    }

    /// The content of a row; `None` where it is gone.
    pub fn row(&self, key: &RowKey) -> Option<Row<'_>> {
        match key {
            RowKey::Container(id) => self.containers.get(id).map(Row::Container),
            RowKey::Namespace(inode) => self.namespaces.get(inode).map(Row::Namespace),
            RowKey::Source(id) => self.sources.get(id).map(Row::Source),
        }
    }

    fn begin(&mut self, last_alive_ms: u64, owed: &BTreeSet<(u64, u64)>) {
        self.settle_owed(owed);
        self.end_earlier_namespaces(last_alive_ms);
        self.begin_nested(last_alive_ms);
        if self.opening == Opening::Unopened {
            let previous_epoch = self.identity.previous_epoch.clone();
            self.opening = Opening::Until(self.uptime_ms + OPENING_MS_MAX);
            let delta = self.bare_delta(Op::Epoch);
            self.publish_delta(Delta {
                previous_epoch,
                ..delta
            });
            self.snapshot_told();
        }
        self.end_earlier_runs(last_alive_ms);
        self.count_away(last_alive_ms);
        for tracked in self.containers.values_mut() {
            tracked.life.last_alive_ms = last_alive_ms;
            let is_open = tracked.run.is_some();
            if let Some(newest) = tracked
                .newest
                .as_mut()
                .filter(|newest| is_open && !newest.is_exact)
            {
                // What is known of it may be by a sketch of the earlier life.
                newest.sketched_at_ns = Some(story::end_of_ms_ns(last_alive_ms));
            }
        }
        for (id, tracked) in &self.containers {
            for pid in tracked.pids() {
                let id = id.clone();
                self.effects.push(Effect::ReadProcess { id, pid });
            }
        }
    }

    /// Ends every run of an earlier boot.
    fn end_earlier_runs(&mut self, last_alive_ms: u64) {
        let boot_id = Arc::clone(&self.identity.boot_id);
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(mut tracked) = self.containers.remove(&id) else {
                continue;
            };
            tracked.hint.take_if(|hint| hint.boot_id != boot_id);
            let is_earlier = |run: &container::Run| run.boot_id != boot_id;
            let base = tracked
                .told
                .as_ref()
                .map(|told| Arc::clone(&told.container));
            if let Some(mut base) = base
                && tracked.run.as_ref().is_some_and(is_earlier)
            {
                tracked.fingerprint = None;
                if let Some(newest) = &mut tracked.newest {
                    newest.process = None;
                }
                let end = End {
                    at_ns: last_alive_ms * 1_000_000,
                    exit_code: None,
                    event_ns: None,
                };
                let round = Round::of_resync("reboot");
                self.tell_stop(&mut tracked, &mut base, &end, false, &round);
                self.effects
                    .push(Effect::SaveRow(RowKey::Container(id.clone())));
                self.containers.insert(id.clone(), tracked);
                self.publish_record(&id);
            } else {
                self.containers.insert(id, tracked);
            }
        }
    }

    fn close_opening(&mut self) {
        let Opening::Until(deadline_ms) = self.opening else {
            return;
        };
        let is_whole = self.fills.is_empty() && self.is_all_told();
        if is_whole || self.uptime_ms >= deadline_ms {
            self.opening = Opening::Done;
            let delta = self.bare_delta(Op::SnapshotEnd);
            self.publish_delta(delta);
        }
    }

    /// Whether each runtime that is there was listed, and each container that it has told, by a sketch at least.
    fn is_all_told(&self) -> bool {
        self.expected.is_empty()
            && self.sources.values().any(|source| source.listed_once)
            && self
                .sources
                .values()
                .all(|source| source.listed_once || !source.up)
            && self
                .containers
                .iter()
                .all(|(id, tracked)| !tracked.is_awaited() || self.fills.is_under_way(id))
    }

    fn snapshot_all(&mut self) {
        self.snapshot_told();
        let delta = self.bare_delta(Op::SnapshotEnd);
        self.publish_delta(delta);
    }

    fn snapshot_told(&mut self) {
        let containers = std::mem::take(&mut self.containers);
        for tracked in containers.values().filter(|tracked| tracked.is_told()) {
            self.publish_snapshot(tracked);
        }
        self.containers = containers;
    }

    fn bare_delta(&self, op: Op) -> Delta {
        Delta {
            seq: 0,
            op,
            ts_ms: self.now_ms,
            source: None,
            origin: Origin::Resync,
            event_ts_ns: 0,
            fields: None,
            changed: Vec::new(),
            reason: "".into(),
            package_seq: self.package_seq,
            previous_epoch: None,
        }
    }

    fn publish_delta(&mut self, delta: Delta) {
        self.seq += 1;
        let delta = Delta {
            seq: self.seq,
            ..delta
        };
        self.effects
            .push(Effect::Publish(Message::Delta(Box::new(delta))));
    }

    fn publish_record(&mut self, id: &ContainerId) {
        let Some(tracked) = self.containers.get_mut(id) else {
            return;
        };
        if !tracked.is_told() {
            return;
        }
        tracked.life.record_put_ms = self.now_ms;
        let message = Message::Record {
            id: id.clone(),
            fields: tracked.fields(),
            package_seq: self.package_seq,
            seq: self.seq,
        };
        self.effects.push(Effect::Publish(message));
    }

    /// Puts every record and mapping as it stands.
    fn put_all(&mut self) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.publish_record(&id);
        }
        self.put_all_namespaces();
    }

    fn tick(&mut self) {
        let due: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, at_ms)| **at_ms <= self.uptime_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.waiting.remove(&id);
            self.wake(&id);
        }
        self.forget_deleted();
        self.tick_early();
        let elapsed_ms = self.uptime_ms - self.away_checked_ms;
        if elapsed_ms >= AWAY_CHECK_MS {
            self.away_checked_ms = self.uptime_ms;
            self.check_away(elapsed_ms);
            self.check_hints();
        }
        self.refresh_records();
        self.tick_namespaces();
        self.ask_nested();
    }

    fn refresh_records(&mut self) {
        let Some(refresh_ms) = self.settings.records_refresh_ms else {
            return;
        };
        let due: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, tracked)| {
                // A put in the future is one from before the clock was set back.
                let put_ms = tracked.life.record_put_ms;
                put_ms > self.now_ms || self.now_ms >= put_ms.saturating_add(refresh_ms)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.publish_record(&id);
        }
    }

    fn remember_deleted(&mut self, id: &ContainerId, told_at_ns: Option<u64>) {
        let at_ms = self.uptime_ms;
        self.deleted
            .insert(id.clone(), Deletion { at_ms, told_at_ns });
        self.deleted_order.push_back((id.clone(), at_ms));
    }

    fn forget_deleted(&mut self) {
        while let Some((_, at_ms)) = self.deleted_order.front() {
            let is_kept = self.uptime_ms < at_ms + DELETED_REMEMBERED_MS
                && self.deleted_order.len() <= DELETED_REMEMBERED_MAX;
            if is_kept {
                break;
            }
            if let Some((oldest, at_ms)) = self.deleted_order.pop_front()
                && self
                    .deleted
                    .get(&oldest)
                    .is_some_and(|deletion| deletion.at_ms == at_ms)
            {
                self.deleted.remove(&oldest);
            }
        }
    }
}
