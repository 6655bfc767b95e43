//! The collector: owns the reconciler, the outbox and the namespace fds, on a thread of its own.
//!
//! It takes what comes (observations, the bus's reports, the clock), as much of it as is there, lets the
//! reconciler decide, and commits the new state with every message that it owes in one transaction. Only then
//! the publisher is told, requests go to the runtimes, and fds are closed. A large group is committed by a thread of its
//! own, while the next one is decided; that one is committed, and acted on, after it ([`Decided`]).
//!
//! When a commit fails, what was decided counts as not observed, also what was decided while it failed: the reconciler
//! goes back to the state on disk, every runtime counts as having a gap, and it is tried again.

mod decided;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decided::Decided;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::fdstore::FdStore;
use crate::halves::in_halves;
use crate::heartbeat::Heartbeat;
use crate::local::tenants::Tenant;
use crate::model::message::Message;
use crate::model::{ContainerId, ContainerKind, SourceId, Topic};
use crate::outbox::{Batch, Committed, Gap, Outbox, OutboxError, Stage, StageDone, Totals};
use crate::procfs::{FirstLook, ProcessTable};
use crate::reconcile::{
    Effect, FdToken, Identity, ListOutcome, NestedQuery, Observation, Phase, Pinned, Reconciler,
    Restored, Row, RowKey, Settings, Tracked,
};
use crate::runtime::watch::{Request, Watched, now_ms};
use crate::sink::{Outcome, Outgoing, OwnKey, Report};
use crate::telemetry;
use crate::wire::{OutboxStatus, Renderer, ResyncStatus, RuntimeStatus, Status};

/// Observations that wait. A reader of a stream that finds it full drops, counts, and asks for a resync.
pub const OBSERVATIONS_MAX: usize = 65_536;
/// Observations that are decided in one transaction: few of them where few are there, so that the disk has work early, and
/// twice as many each time that more wait than were taken.
const GROUP: (usize, usize) = (256, 2_048);
/// From how many processes on a second thread reads half of them: a millisecond of work, against some ten microseconds for
/// the thread. So many come when a collector begins anew with its state.
const HALVED_MIN: usize = 64;
/// How often the status is sent when nothing changes.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// The first and the longest rest after a commit has failed. Each attempt lists every runtime, which is not to
/// be done all the time while a disk is full.
const COMMIT_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// Something was observed.
    Observed(Observation),
    /// The bus has messages, or refused them.
    Reported(Vec<Report>),
    /// An endpoint is watched from now on.
    Watching(SourceId, Watched),
    /// The keys of this host that the bus has values for, as a new epoch reads them back.
    ReadBack(Vec<OwnKey>),
    /// The bus that reports from now on, as it names itself.
    BusIs(Arc<str>),
    /// The bus lost what it had acknowledged. Nothing may be in flight: what is owed is read again from the
    /// first row on, once `done` is answered.
    BusLostData {
        /// The oldest delta of this epoch that it is known to lack; `None` where that is not known.
        lost_from: Option<u64>,
        /// Answered when what was lost is owed again, durably.
        done: oneshot::Sender<()>,
    },
    /// The end is near: the status says so.
    Stopping,
    /// Someone wants to know which containers live.
    Tenants(oneshot::Sender<Vec<Tenant>>),
}

/// The way in for observations.
#[derive(Clone, Debug)]
pub struct ObservationSender(mpsc::Sender<Input>);

impl ObservationSender {
    /// Observations go to a collector's inputs.
    pub fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self(inputs)
    }

    /// Waits for room. `false` when the collector has ended. It may be dropped midway; then nothing was sent.
    pub async fn send(&self, observation: Observation) -> bool {
        self.0.send(Input::Observed(observation)).await.is_ok()
    }

    /// Sends if there is room. `false` when there is none, or when the collector has ended.
    pub fn try_send(&self, observation: Observation) -> bool {
        self.0.try_send(Input::Observed(observation)).is_ok()
    }
}

/// What others may know of the collector.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The status, as it would be sent now.
    pub status: Status,
    /// What is owed.
    pub totals: Totals,
    /// Whether every runtime that answers has been listed and nothing is awaited.
    pub is_settled: bool,
    /// Namespace fds that are held.
    pub namespace_fds: usize,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Nested PID namespaces that are mapped, lingering ones too.
    pub nested: usize,
    /// Nested PID namespaces that were left out, because too many were mapped.
    pub nested_skipped: u64,
    /// Processes that might not be read when nested namespaces were looked for.
    pub nested_denied: u64,
}

/// What the collector works with.
pub struct Parts {
    /// The outbox.
    pub outbox: Outbox,
    /// The state as it was left.
    pub restored: Restored,
    /// Mappings whose newest put is still owed.
    pub owed: BTreeSet<(u64, u64)>,
    /// The last moment of the earlier life.
    pub last_alive_ms: u64,
    /// Who we are.
    pub identity: Identity,
    /// What can be set.
    pub settings: Settings,
    /// How messages are written.
    pub renderer: Renderer,
    /// Where processes are looked up.
    pub processes: Arc<ProcessTable>,
    /// A look at them that was begun while the state was opened; without one it begins behind that, where one is worth it.
    pub first_look: Option<FirstLook>,
    /// Keeps namespace fds over a restart.
    pub fd_store: FdStore,
    /// Tells the publisher of new messages.
    pub committed: Arc<Notify>,
    /// Takes the status to the publisher.
    pub status: mpsc::Sender<Outgoing>,
    /// Takes what others may know.
    pub snapshot: watch::Sender<Snapshot>,
    /// Takes queries for nested namespaces. One that finds no room is dropped: a look is under way then.
    pub nested: mpsc::Sender<Box<NestedQuery>>,
}

/// The collector's state, but for the outbox: what decides needs none.
struct Collector {
    reconciler: Reconciler,
    parts: Tools,
    watched: BTreeMap<SourceId, Watched>,
    batch: Batch,
    messages: Vec<Message>,
    released: Vec<FdToken>,
    requests: Vec<(SourceId, Request)>,
    query: Option<Box<NestedQuery>>,
    /// Inspects for which a sketch will do, in one request for each runtime.
    sketches: BTreeMap<SourceId, Vec<(ContainerId, ContainerKind)>>,
    /// The look at the process table for sketches, while an epoch opens.
    first_look: Option<Arc<FirstLook>>,
    lost: Vec<(Option<u64>, oneshot::Sender<()>)>,
    phase: &'static str,
    resync: ResyncStatus,
    /// Something was asked of a runtime in the newest resync and will not be answered.
    is_resync_cut: bool,
    next_status_ms: u64,
    status_due: bool,
    /// The clock's tick was among what came since the last commit.
    has_ticked: bool,
    /// So much is taken at once next time.
    group: usize,
    failed_commits: u64,
    failures_in_a_row: u32,
    /// Keys that were read back, until what follows from them is committed.
    read_back: Option<Vec<OwnKey>>,
    /// The bus that reports from now on, until the outbox knows it.
    bus: Option<Arc<str>>,
    /// More was decided than is committed.
    is_ahead: bool,
    /// A commit has failed, and the state could not be opened since: the reconciler is ahead of what is on disk.
    has_no_state: bool,
}

/// A container's process that is to be looked at.
struct Look {
    id: ContainerId,
    pid: u32,
    /// What is known of it, where it only has to be the same still.
    pinned: Option<Pinned>,
}

impl Look {
    fn is_same(&self, processes: &ProcessTable) -> bool {
        self.pinned
            .is_some_and(|known| processes.is_same(self.pid, known.start_ticks, known.fd))
    }

    fn read(&self, processes: &ProcessTable) -> Observation {
        Observation::Process {
            id: self.id.clone(),
            pid: self.pid,
            reading: processes.read(self.pid),
        }
    }
}

/// The parts that outlive a failed commit.
struct Tools {
    identity: Identity,
    settings: Settings,
    renderer: Renderer,
    processes: Arc<ProcessTable>,
    fd_store: FdStore,
    committed: Arc<Notify>,
    status: mpsc::Sender<Outgoing>,
    snapshot: watch::Sender<Snapshot>,
    nested: mpsc::Sender<Box<NestedQuery>>,
}

impl Collector {
    /// A collector that has taken up the state as it was left, and committed what follows from that; its outbox.
    fn new(parts: Parts) -> (Self, Outbox) {
        let mut outbox = parts.outbox;
        let reconciler = Reconciler::new(
            parts.identity.clone(),
            parts.settings.clone(),
            parts.restored,
        );
        let mut collector = Self {
            reconciler,
            parts: Tools {
                identity: parts.identity,
                settings: parts.settings,
                renderer: parts.renderer,
                processes: parts.processes,
                fd_store: parts.fd_store,
                committed: parts.committed,
                status: parts.status,
                snapshot: parts.snapshot,
                nested: parts.nested,
            },
            watched: BTreeMap::new(),
            batch: Batch::default(),
            messages: Vec::new(),
            released: Vec::new(),
            requests: Vec::new(),
            query: None,
            sketches: BTreeMap::new(),
            first_look: None,
            lost: Vec::new(),
            phase: "starting",
            resync: ResyncStatus::default(),
            is_resync_cut: false,
            next_status_ms: 0,
            status_due: true,
            has_ticked: false,
            group: GROUP.0,
            failed_commits: 0,
            failures_in_a_row: 0,
            read_back: None,
            bus: None,
            is_ahead: false,
            has_no_state: false,
        };
        if !collector.reconciler.opened() {
            let begin = || FirstLook::begin(&collector.parts.processes);
            let look = parts.first_look.unwrap_or_else(begin);
            collector.first_look = Some(Arc::new(look));
        }
        collector.observe(Observation::Began {
            last_alive_ms: parts.last_alive_ms,
            owed: parts.owed,
        });
        collector.commit(&mut outbox);
        (collector, outbox)
    }

    /// Runs until all senders of `inputs` are gone, and beats each time round. Blocks; it is to have a thread of
    /// its own.
    fn run(mut self, mut outbox: Outbox, mut inputs: mpsc::Receiver<Input>, heartbeat: &Heartbeat) {
        while let Some(input) = inputs.blocking_recv() {
            self.take(input);
            self.take_waiting(&mut inputs);
            loop {
                heartbeat.beat();
                if outbox.take_snapshot_due() {
                    self.observe(Observation::SnapshotDue);
                }
                self.commit_and_take(&mut outbox, &mut inputs);
                if !self.is_ahead {
                    break;
                }
            }
            // What the bus lost is owed again behind all that it reported before, and that is still to be committed then.
            if self.failures_in_a_row == 0 {
                self.owe_again(&mut outbox);
            }
        }
        // What the last reports ended, and then their acknowledgements.
        self.commit(&mut outbox);
        self.commit(&mut outbox);
    }

    /// Takes what waits, as much of it as makes a group; how much it was.
    fn take_waiting(&mut self, inputs: &mut mpsc::Receiver<Input>) -> usize {
        for taken in 0..self.group {
            match inputs.try_recv() {
                Ok(input) => self.take(input),
                Err(_) => {
                    self.group = GROUP.0;
                    return taken;
                }
            }
        }
        let taken = self.group;
        self.group = GROUP.1.min(taken * 2);
        taken
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Observed(observation) => {
                self.note(&observation);
                self.has_ticked |= matches!(observation, Observation::Tick);
                self.observe(observation);
            }
            Input::Reported(reports) => self.reported(reports),
            Input::Watching(source, watched) => {
                self.watched.insert(source.clone(), watched);
                self.observe(Observation::SourceExpected { source });
            }
            Input::ReadBack(keys) => self.read_back = Some(keys),
            Input::BusIs(bus) => self.bus = Some(bus),
            Input::BusLostData { lost_from, done } => self.lost.push((lost_from, done)),
            Input::Stopping => {
                self.phase = "stopping";
                self.is_resync_cut |= !self.reconciler.is_settled();
                self.end_resync(now_ms());
                self.status_due = true;
            }
            Input::Tenants(answer) => {
                let tenants = self.reconciler.containers();
                // Who asked may have gone meanwhile.
                let _ = answer.send(tenants.filter_map(tenant).collect());
            }
        }
    }

    /// Keeps what the status says of resyncs and runtimes.
    fn note(&mut self, observation: &Observation) {
        match observation {
            Observation::ResyncDue => {
                self.resync.state = "begin";
                self.resync.started_ms = now_ms();
                self.resync.finished_ms = 0;
                self.is_resync_cut = false;
                self.status_due = true;
            }
            Observation::SourceUp { .. } => self.status_due = true,
            Observation::SourceDown { source } | Observation::SourceForgotten { source } => {
                self.is_resync_cut |= self.reconciler.is_awaiting(source);
                self.status_due = true;
            }
            Observation::ListDone {
                outcome: ListOutcome::Failed,
                ..
            } => {
                self.is_resync_cut = true;
                self.status_due = true;
            }
            Observation::Began { .. }
            | Observation::SourceExpected { .. }
            | Observation::StreamGap { .. }
            | Observation::ListBegan { .. }
            | Observation::ListDone { .. }
            | Observation::Event { .. }
            | Observation::Inspected { .. }
            | Observation::Process { .. }
            | Observation::ProcessOf { .. }
            | Observation::NestedLooked { .. }
            | Observation::MappingAcked { .. }
            | Observation::TombstoneAcked { .. }
            | Observation::SnapshotDue
            | Observation::StateDue
            | Observation::ListDue { .. }
            | Observation::Tick => {}
        }
    }

    /// Lets the reconciler decide, and collects what is to be done.
    fn observe(&mut self, observation: Observation) {
        let now_ms = now_ms();
        let mut queue = VecDeque::from([observation]);
        while let Some(observation) = queue.pop_front() {
            let mut looks = Vec::new();
            for effect in self.reconciler.handle(observation, now_ms) {
                match effect {
                    Effect::Publish(message) => {
                        self.messages.push(message);
                    }
                    Effect::SaveRow(key) => {
                        self.batch.rows.insert(key);
                    }
                    Effect::List { source } => self.requests.push((source, Request::List)),
                    Effect::Inspect {
                        source,
                        id,
                        kind,
                        may_sketch: true,
                    } => self.sketches.entry(source).or_default().push((id, kind)),
                    Effect::Inspect {
                        source,
                        id,
                        kind,
                        may_sketch: false,
                    } => self.requests.push((source, Request::Inspect { id, kind })),
                    Effect::ReadProcess { id, pid } => {
                        let pinned = self.reconciler.pinned(&id, pid);
                        looks.push(Look { id, pid, pinned });
                    }
                    Effect::FindNested(query) => self.query = Some(query),
                    Effect::ReleaseNamespace(fd) => self.released.push(fd),
                }
            }
            queue.extend(self.look_at(looks));
        }
    }

    /// What some processes are, but for those that are still the same.
    fn look_at(&self, mut looks: Vec<Look>) -> Vec<Observation> {
        let processes = &self.parts.processes;
        looks.retain(|look| !look.is_same(processes));
        let read = |looks: &[Look]| looks.iter().map(|look| look.read(processes)).collect();
        if looks.len() < HALVED_MIN {
            read(&looks)
        } else {
            in_halves("looks", &looks, read)
        }
    }

    fn reported(&mut self, reports: Vec<Report>) {
        for report in &reports {
            match &report.outcome {
                Outcome::Acked(_) => {}
                Outcome::Rejected(reason) | Outcome::Replaced { reason, .. } => {
                    tracing::error!(row = report.row, %reason, "the bus refuses a message; it is in quarantine");
                }
            }
        }
        self.batch.reports.extend(reports);
    }

    /// Tells the reconciler of mappings and tombstones that are no longer owed. Where another message of the same namespace
    /// was decided meanwhile, the bus has an earlier one, and that says nothing of the newest.
    fn settle(&mut self, settled: Vec<StageDone>) {
        if settled.is_empty() {
            return;
        }
        let owed_anew: BTreeSet<_> = self.messages.iter().filter_map(namespace_of).collect();
        for done in settled {
            let (pns_inode, generation) = (done.pns_inode, done.generation);
            if owed_anew.contains(&(pns_inode, generation)) {
                continue;
            }
            match done.stage {
                Stage::None => {}
                Stage::Mapping => self.observe(Observation::MappingAcked {
                    pns_inode,
                    generation,
                }),
                Stage::Tombstone => self.observe(Observation::TombstoneAcked {
                    pns_inode,
                    generation,
                }),
            }
        }
    }

    /// Makes what was decided durable, then acts on it.
    fn commit(&mut self, outbox: &mut Outbox) {
        let mut decided = self.hand_over(outbox);
        let result = decided.commit(outbox, &self.parts.renderer);
        self.finish(outbox, decided, result);
    }

    /// The same; where that is much, what waits meanwhile is taken and decided, and is still to be committed.
    fn commit_and_take(&mut self, outbox: &mut Outbox, inputs: &mut mpsc::Receiver<Input>) {
        let mut decided = self.hand_over(outbox);
        let renderer = self.parts.renderer.clone();
        let result = if decided.is_large() && self.lost.is_empty() {
            let deciding = || self.take_waiting(inputs);
            let (result, taken) = decided.commit_while(outbox, &renderer, deciding);
            self.is_ahead = taken > 0;
            result
        } else {
            decided.commit(outbox, &renderer)
        };
        self.finish(outbox, decided, result);
    }

    /// Acts on what is durable now, or goes back.
    fn finish(
        &mut self,
        outbox: &mut Outbox,
        decided: Decided,
        result: Result<Committed, OutboxError>,
    ) {
        match result {
            Ok(committed) => {
                if let Some((seq_from, seq)) = committed.dropped {
                    tracing::error!(
                        seq_from,
                        seq,
                        "the outbox is full; the oldest deltas are lost"
                    );
                }
                if let Some(last_row) = decided.last_row {
                    tracing::trace!(last_row, "committed");
                    self.parts.committed.notify_one();
                }
                self.failures_in_a_row = 0;
                self.keep_fds(&decided.saved);
                if decided.read_back.is_some() {
                    outbox.read_back_is_done();
                }
                self.act(decided.requests, decided.query);
                self.release(decided.released);
                self.settle(committed.settled);
                self.publish_status(outbox, decided.now_ms);
            }
            Err(error) => self.recover(outbox, decided, &telemetry::chain(&error)),
        }
    }

    /// Tombstones for keys on the bus that the state does not hold. They stand behind what was put before, and before
    /// what will be put: a key that is taken again is right in the end.
    fn bury_what_no_longer_holds(&mut self) {
        let Some(keys) = &self.read_back else {
            return;
        };
        let mut buried = 0_u64;
        for key in keys {
            let Some((row, message)) = tombstone(key) else {
                continue;
            };
            if self.reconciler.row(&row).is_none() {
                self.messages.push(message);
                buried += 1;
            }
        }
        tracing::info!(
            buried,
            keys = keys.len(),
            "what no longer holds is on the bus, and gets its tombstone"
        );
    }

    /// Owes what the bus lost anew. What cannot be committed is tried again with the next input.
    fn owe_again(&mut self, outbox: &mut Outbox) {
        while let Some((lost_from, done)) = self.lost.pop() {
            let now = now_ms();
            let gap = gap_renderer(&self.parts.renderer, now);
            if let Err(error) = outbox.owe_again(lost_from, now, &gap) {
                self.lost.push((lost_from, done));
                let decided = Decided::nothing(now);
                self.recover(outbox, decided, &telemetry::chain(&error));
                return;
            }
            tracing::error!(
                lost_from,
                owed = outbox.totals().messages,
                "the bus lost what it had acknowledged; it is sent again"
            );
            outbox.owe_read_back();
            // Those that a failed commit has left are of before the loss too.
            self.batch.reports.clear();
            self.observe(Observation::StateDue);
            self.commit(outbox);
            self.parts.committed.notify_one();
            // Whoever asked may have ended meanwhile.
            let _ = done.send(());
        }
    }

    fn act(&mut self, requests: Vec<(SourceId, Request)>, query: Option<Box<NestedQuery>>) {
        for (source, request) in requests {
            if let Some(watched) = self.watched.get(&source) {
                // A watch that has ended takes no requests; SourceDown or the end of all is on its way.
                let _ = watched.requests.send(request);
            }
        }
        if let Some(query) = query {
            // Whoever looks may be at it still, or have ended.
            let _ = self.parts.nested.try_send(query);
        }
    }

    /// Closes the fds that nobody needs.
    fn release(&mut self, released: impl IntoIterator<Item = FdToken>) {
        for fd in released {
            self.parts.fd_store.release(fd);
            self.parts.processes.fds().release(fd);
        }
    }

    /// Notes the fds of mappings that were saved, for a commit that fails later, and for whoever keeps them over a restart.
    fn keep_fds(&mut self, saved: &[u64]) {
        for inode in saved {
            if let Some(Row::Namespace(row)) = self.reconciler.row(&RowKey::Namespace(*inode))
                && let Some(fd) = row.fd()
            {
                let processes = &self.parts.processes;
                self.parts.fd_store.keep(row.key(), fd, processes);
                if row.phase() != Phase::Live {
                    processes.fds().forget_processes(fd);
                }
            }
        }
    }

    /// Goes back to the state on disk; what was decided since counts as not observed. The mappings on disk keep their fds,
    /// those too that had let go of them since: their numbers must be nobody else's before the bus has their tombstones.
    fn recover(&mut self, outbox: &mut Outbox, decided: Decided, error: &str) {
        self.failed_commits += 1;
        tracing::error!(
            error,
            "the state cannot be written; what was seen since counts as not seen, and everything is listed again"
        );
        // What was asked so far is not heard of any more.
        self.is_resync_cut = true;
        self.requests.clear();
        self.query = None;
        self.sketches.clear();
        self.messages.clear();
        self.is_ahead = false;
        // What the bus has it says once.
        let mut reports = decided.reports;
        reports.append(&mut self.batch.reports);
        self.batch = Batch {
            reports,
            ..Batch::default()
        };
        self.read_back = self.read_back.take().or(decided.read_back);
        self.released.extend(decided.released);
        let wait = COMMIT_RETRY.0 * 2_u32.saturating_pow(self.failures_in_a_row);
        self.failures_in_a_row += 1;
        std::thread::sleep(wait.min(COMMIT_RETRY.1));
        let recovered = match outbox.recover() {
            Ok(recovered) => recovered,
            Err(error) => {
                tracing::error!(
                    error = telemetry::chain(&error),
                    "the state cannot be opened"
                );
                self.has_no_state = true;
                return;
            }
        };
        self.has_no_state = false;
        let mut restored = recovered.restored;
        let boot_id = &self.parts.identity.boot_id;
        let kept = self.parts.fd_store.give_back(&mut restored, boot_id);
        let ups: Vec<_> = self
            .reconciler
            .sources()
            .filter(|(_, _, up, _)| *up)
            .map(|(id, runtime, _, streaming)| (id.clone(), runtime.clone(), streaming))
            .collect();
        // What waits in the queue brings fds of its own, which must stay.
        let mut released = std::mem::take(&mut self.released);
        released.extend(self.reconciler.held_fds());
        released.retain(|fd| !kept.contains(fd));
        self.release(released);
        self.reconciler = Reconciler::new(
            self.parts.identity.clone(),
            self.parts.settings.clone(),
            restored,
        );
        self.observe(Observation::Began {
            last_alive_ms: now_ms(),
            owed: recovered.owed,
        });
        for (source, runtime, streaming) in ups {
            self.observe(Observation::SourceUp {
                source,
                runtime,
                streaming,
                is_listing: false,
            });
        }
    }

    fn publish_status(&mut self, outbox: &mut Outbox, now: u64) {
        let is_settled = self.reconciler.is_settled() && !self.is_ahead;
        if self.phase == "starting" && self.reconciler.opened() && !self.is_ahead {
            self.phase = "live";
            self.status_due = true;
        }
        if is_settled {
            self.end_resync(now);
        }
        let status_interval_ms = u64::try_from(STATUS_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        // A clock that was stepped back makes it due, or readers would take us for dead until it has caught up.
        let is_stepped_back = self.next_status_ms > now + status_interval_ms;
        let is_due = self.status_due || now >= self.next_status_ms || is_stepped_back;
        let was_settled = self.parts.snapshot.borrow().is_settled;
        let status = is_due.then(|| self.status(outbox));
        if let Some(status) = &status {
            let row = outbox.take_row();
            let message = self.parts.renderer.render_status(status, row, now);
            // A bus that is away has the next one; the status is worth nothing when it is old.
            let _ = self.parts.status.try_send(message);
            self.next_status_ms = now + status_interval_ms;
            self.status_due = false;
            outbox.restore_reserve();
        }
        let totals = outbox.totals();
        let totals_changed = self.parts.snapshot.borrow().totals != totals;
        if is_due || was_settled != is_settled || totals_changed {
            let snapshot = Snapshot {
                status: match status {
                    Some(status) => status,
                    None => self.parts.snapshot.borrow().status.clone(),
                },
                totals,
                is_settled,
                namespace_fds: self.parts.processes.fds().count(),
                failed_commits: self.failed_commits,
                nested: self.reconciler.nested_count(),
                nested_skipped: self.reconciler.counters().nested_skipped,
                nested_denied: self.reconciler.counters().nested_denied,
            };
            self.parts.snapshot.send_replace(snapshot);
        }
    }

    /// Ends the resync that is under way, if one is.
    fn end_resync(&mut self, now: u64) {
        if self.resync.state == "begin" {
            self.resync.state = if self.is_resync_cut { "aborted" } else { "end" };
            self.resync.finished_ms = now;
            self.status_due = true;
        }
    }

    fn status(&mut self, outbox: &mut Outbox) -> Status {
        let mut containers: BTreeMap<&'static str, u64> = BTreeMap::new();
        for container in self
            .reconciler
            .containers()
            .filter_map(|tracked| tracked.container())
        {
            *containers.entry(container.state.as_str()).or_default() += 1;
        }
        let totals = outbox.totals();
        Status {
            state: self.phase,
            // The reconciler may be ahead of what is committed.
            seq: outbox.meta().seq,
            runtimes: self.runtimes(),
            resync: ResyncStatus {
                package_seq: self.reconciler.package_seq(),
                count: containers.values().sum(),
                missed: self.reconciler.counters().missed,
                ..self.resync.clone()
            },
            containers,
            outbox: OutboxStatus {
                messages: totals.messages,
                bytes: totals.bytes,
                oldest_ms: outbox.oldest_ms(),
                quarantined: outbox.quarantined(),
            },
        }
    }

    fn runtimes(&self) -> Vec<RuntimeStatus> {
        let known: BTreeMap<_, _> = self
            .reconciler
            .sources()
            .map(|(id, runtime, up, streaming)| (id.clone(), (runtime.clone(), up, streaming)))
            .collect();
        self.watched
            .iter()
            .map(|(source, watched)| {
                let (name, version, stream) = match known.get(source) {
                    Some((runtime, up, streaming)) => (
                        runtime.name.to_string(),
                        runtime.version.to_string(),
                        match (up, streaming) {
                            (false, _) => "down",
                            (true, true) => "live",
                            (true, false) => "polling",
                        },
                    ),
                    None => (String::new(), String::new(), "down"),
                };
                let figures = &watched.figures;
                RuntimeStatus {
                    name,
                    version,
                    endpoint: watched.endpoint.uri(),
                    stream,
                    events: figures.events.load(Ordering::Relaxed),
                    dropped: figures.dropped.load(Ordering::Relaxed),
                    failed_lists: figures.failed_lists.load(Ordering::Relaxed),
                    last_event_ms: figures.last_event_ms.load(Ordering::Relaxed),
                    last_resync_ms: figures.last_resync_ms.load(Ordering::Relaxed),
                    error: watched.error.borrow().clone(),
                }
            })
            .collect()
    }
}

/// Number and generation of the namespace that a message is of.
fn namespace_of(message: &Message) -> Option<(u64, u64)> {
    match message {
        Message::Mapping { mapping, .. } => Some((mapping.pns_inode, mapping.generation)),
        Message::MappingTombstone {
            pns_inode,
            generation,
        } => Some((*pns_inode, *generation)),
        Message::Delta(_) | Message::Record { .. } | Message::RecordTombstone { .. } => None,
    }
}

/// The row that would hold a key, and the key's tombstone; `None` for what is no key of ours.
fn tombstone(key: &OwnKey) -> Option<(RowKey, Message)> {
    match key.topic {
        Topic::Records => {
            let id = ContainerId::parse(&key.item)?;
            Some((
                RowKey::Container(id.clone()),
                Message::RecordTombstone { id },
            ))
        }
        Topic::Pns => {
            let pns_inode = key.item.parse().ok()?;
            // Generations of this epoch begin at 1: no mapping of it waits for this one's acknowledgement.
            let message = Message::MappingTombstone {
                pns_inode,
                generation: 0,
            };
            Some((RowKey::Namespace(pns_inode), message))
        }
        Topic::Deltas | Topic::Status | Topic::Processes | Topic::Ports => None,
    }
}

/// Renders gaps at a time.
fn gap_renderer(renderer: &Renderer, now_ms: u64) -> impl Fn(&Gap) -> Outgoing + use<> {
    let renderer = renderer.clone();
    move |gap| renderer.render_gap(gap, now_ms)
}

/// A container as it was told last, where its init process lives.
fn tenant(tracked: &Tracked) -> Option<Tenant> {
    let (pid, start_ticks) = tracked.open_process()?;
    Some(Tenant {
        container: tracked.shared()?,
        pid,
        start_ticks: (start_ticks > 0).then_some(start_ticks),
    })
}

/// A collector on its thread, and the way in.
pub struct Running {
    /// Inputs go in here; the collector ends when all senders are gone.
    pub inputs: mpsc::Sender<Input>,
    /// Beats with each round of the collector, once a second at least when it is told the time.
    pub heartbeat: Arc<Heartbeat>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Running {
    /// Starts the collector's thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let (inputs, incoming) = mpsc::channel(OBSERVATIONS_MAX);
        let heartbeat = Arc::new(Heartbeat::new());
        let beats = Arc::clone(&heartbeat);
        let thread = std::thread::Builder::new()
            .name("collector".to_owned())
            .spawn(move || {
                let (collector, outbox) = Collector::new(parts);
                collector.run(outbox, incoming, &beats);
            })?;
        Ok(Self {
            inputs,
            heartbeat,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Waits until the collector has committed everything and ended. All other senders must be gone.
    pub fn join(self) {
        drop(self.inputs);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the collector's thread ended abnormally");
        }
    }
}
