//! The collector without its I/O: it answers the reconciler's effects from the world, late and in any order,
//! keeps its rows as the outbox does, and acknowledges as the bus does.

use std::collections::{BTreeMap, BTreeSet};

use quaymaster::local::nested::{Seen, Sight, look};
use quaymaster::local::nsfs::Namespace;
use quaymaster::model::message::{Message, RuntimeSource};
use quaymaster::model::{Container, ContainerId, ContainerKind, RuntimeEvent, SourceId, State};
use quaymaster::reconcile::{
    Effect, FdToken, Identity, InspectOutcome, ListOutcome, NestedQuery, Observation, Process,
    ProcessReading, Reconciler, Restored, Row, RowKey, Settings,
};

use crate::check::{Check, Checker, ensure};
use crate::world::{HOST_PNS, Runtime, World};

/// How long a mapping lingers here.
pub(crate) const LINGER_MS: u64 = 20_000;
/// How often a tick comes.
const TICK_MS: u64 = 500;
/// The longest that an answer, an event or an acknowledgement takes.
const DELAY_MS: u64 = 60;
/// The longest that it may take until nothing is awaited.
const SETTLE_MS: u64 = 400_000;

/// What is to happen at a time.
#[derive(Debug)]
enum Due {
    /// The reconciler is told something, unless it is of an earlier connection or life.
    Observe(Observation),
    TakeList {
        runtime: Runtime,
    },
    TakeInspect {
        runtime: Runtime,
        id: ContainerId,
    },
    /// An inspect was answered; its process is read a little later.
    ReadInspected {
        runtime: Runtime,
        container: Box<Container>,
    },
    Read {
        id: ContainerId,
        pid: u32,
    },
    /// Someone looks for nested namespaces.
    Look {
        query: Box<NestedQuery>,
    },
    /// The bus has a message of a mapping.
    Ack {
        key: (u64, u64),
        number: u64,
    },
}

/// To which connection, or which life of the collector, something belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Connection(Runtime, u32),
    Life(u32),
    Outbox,
}

/// A connection to a runtime and the faults that await it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) is_up: bool,
    pub(crate) is_streaming: bool,
    connection: u32,
    /// Docker's events come in order: none before this.
    floor_ms: u64,
    pub(crate) lose_events: usize,
    has_lost: bool,
    /// It was listed whole since it came up or lost something: from then on its stories are whole.
    is_listed: bool,
    pub(crate) double_events: usize,
    pub(crate) fail_lists: usize,
    pub(crate) partial_lists: usize,
    pub(crate) fail_inspects: usize,
}

/// What the outbox holds of the mappings.
#[derive(Clone, Copy, Debug)]
struct Owed {
    number: u64,
    is_tombstone: bool,
    is_acked: bool,
}

/// The collector without its I/O.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) world: World,
    pub(crate) reconciler: Option<Reconciler>,
    pub(crate) check: Checker,
    pub(crate) links: BTreeMap<Runtime, Link>,
    pub(crate) settings: Settings,
    queue: BTreeMap<(u64, u64), (Scope, Due)>,
    next_number: u64,
    random: u64,
    life: u32,
    next_tick_ms: u64,
    rows: BTreeMap<RowKey, Vec<u8>>,
    meta: (u64, u64, u64, bool),
    stopped_ms: u64,
    tokens: BTreeMap<u64, u64>,
    next_token: u64,
    owed: BTreeMap<(u64, u64), Owed>,
    /// Inspects that a sketch will answer.
    sketches: BTreeSet<ContainerId>,
    pub(crate) is_bus_away: bool,
    pub(crate) holds_fds: bool,
    pub(crate) gives_hints: bool,
    pub(crate) deny_reads: usize,
    /// Whether everything that happened was also told.
    pub(crate) is_lossless: bool,
    pub(crate) log: Vec<String>,
}

impl Shell {
    pub(crate) fn new(seed: u64, has_ns_ids: bool) -> Self {
        let link = |is_streaming| Link {
            is_up: false,
            is_streaming,
            connection: 0,
            floor_ms: 0,
            lose_events: 0,
            has_lost: false,
            is_listed: false,
            double_events: 0,
            fail_lists: 0,
            partial_lists: 0,
            fail_inspects: 0,
        };
        Self {
            world: World::new(has_ns_ids),
            reconciler: None,
            check: Checker::default(),
            links: Runtime::ALL
                .into_iter()
                .map(|runtime| (runtime, link(runtime != Runtime::Overlay)))
                .collect(),
            settings: Settings {
                linger_ms: LINGER_MS,
                pns_refresh_ms: 60_000,
                ..Settings::default()
            },
            queue: BTreeMap::new(),
            next_number: 0,
            random: seed | 1,
            life: 0,
            next_tick_ms: 0,
            rows: BTreeMap::new(),
            meta: (0, 0, 0, false),
            stopped_ms: 0,
            tokens: BTreeMap::new(),
            next_token: 0,
            sketches: BTreeSet::new(),
            owed: BTreeMap::new(),
            is_bus_away: false,
            holds_fds: true,
            gives_hints: false,
            deny_reads: 0,
            is_lossless: true,
            log: Vec::new(),
        }
    }

    /// A number below `limit`.
    pub(crate) fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit.max(1)
    }

    pub(crate) fn source_id(runtime: Runtime) -> SourceId {
        SourceId::new(match runtime {
            Runtime::Docker => "docker=unix:///run/docker.sock",
            Runtime::Cri => "cri=unix:///run/containerd/containerd.sock",
            Runtime::Overlay => "cri=unix:///run/cri-dockerd.sock",
        })
    }

    /// Starts the collector with the rows that it left.
    pub(crate) fn begin(&mut self) -> Check {
        if self.reconciler.is_some() {
            return Ok(());
        }
        self.life += 1;
        let identity = Identity {
            boot_id: self.world.boot_id.clone(),
            host_pns_inode: HOST_PNS,
            previous_epoch: None,
        };
        let restored = self.restored()?;
        let reconciler = Reconciler::new(identity, self.settings.clone(), restored);
        self.reconciler = Some(reconciler);
        let owed = self.owed.iter().filter(|(_, owed)| !owed.is_acked);
        let owed: BTreeSet<_> = owed.map(|(key, _)| *key).collect();
        for key in &owed {
            let number = self.owed.get(key).map_or(0, |owed| owed.number);
            self.schedule(DELAY_MS, Scope::Outbox, Due::Ack { key: *key, number });
        }
        self.observe(Observation::Began {
            last_alive_ms: self.stopped_ms,
            owed,
        })?;
        let up: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.is_up)
            .map(|(runtime, _)| *runtime)
            .collect();
        for runtime in &up {
            let source = Self::source_id(*runtime);
            self.observe(Observation::SourceExpected { source })?;
        }
        for runtime in up {
            self.connect(runtime)?;
        }
        Ok(())
    }

    /// Kills the collector: what was not saved is gone, and every fd is closed.
    pub(crate) fn kill(&mut self) {
        let Some(reconciler) = self.reconciler.take() else {
            return;
        };
        self.meta = (
            reconciler.seq(),
            reconciler.package_seq(),
            reconciler.generation(),
            reconciler.opened(),
        );
        self.stopped_ms = self.world.wall_ms().saturating_sub(self.random(300));
        let namespaces: Vec<u64> = self.tokens.values().copied().collect();
        self.tokens.clear();
        for namespace in namespaces {
            self.world.let_go(namespace);
        }
        self.queue.clear();
        for runtime in Runtime::ALL {
            self.taint(runtime);
        }
    }

    fn restored(&self) -> Result<Restored, String> {
        let mut restored = Restored {
            seq: self.meta.0,
            package_seq: self.meta.1,
            generation: self.meta.2,
            opened: self.meta.3,
            ..Restored::default()
        };
        let broken = |error| format!("a row does not come back: {error}");
        for (key, bytes) in &self.rows {
            match key {
                RowKey::Container(id) => {
                    let row = postcard::from_bytes(bytes).map_err(broken)?;
                    restored.containers.insert(id.clone(), row);
                }
                RowKey::Namespace(inode) => {
                    let row = postcard::from_bytes(bytes).map_err(broken)?;
                    restored.namespaces.insert(*inode, row);
                }
                RowKey::Source(id) => {
                    let row = postcard::from_bytes(bytes).map_err(broken)?;
                    restored.sources.insert(id.clone(), row);
                }
            }
        }
        Ok(restored)
    }

    /// A runtime answers from now on.
    pub(crate) fn up(&mut self, runtime: Runtime) -> Check {
        let Some(link) = self.links.get_mut(&runtime).filter(|link| !link.is_up) else {
            return Ok(());
        };
        link.is_up = true;
        if self.reconciler.is_some() {
            self.connect(runtime)?;
        }
        Ok(())
    }

    fn connect(&mut self, runtime: Runtime) -> Check {
        let Some(link) = self.links.get_mut(&runtime) else {
            return Ok(());
        };
        link.connection += 1;
        link.has_lost = false;
        link.is_listed = false;
        link.lose_events = 0;
        let streaming = link.is_streaming;
        // Both are to be right: a list that comes by itself, and one that is asked for.
        let is_listing = link.connection % 2 == 1;
        self.observe(Observation::SourceUp {
            source: Self::source_id(runtime),
            runtime: RuntimeSource {
                uid: 0,
                runtime: runtime.runtime_type(),
                name: runtime.name().into(),
                version: "1".into(),
                endpoint: "unix:///run/x.sock".into(),
            },
            streaming,
            is_listing,
        })?;
        if is_listing {
            self.begin_list(runtime);
        }
        Ok(())
    }

    fn begin_list(&mut self, runtime: Runtime) {
        let source = Self::source_id(runtime);
        let scope = self.scope(runtime);
        let began = Observation::ListBegan { source };
        self.schedule(0, scope, Due::Observe(began));
        let delay_ms = 1 + self.random(DELAY_MS);
        self.schedule(delay_ms, scope, Due::TakeList { runtime });
    }

    /// A runtime answers no more. Its containers may go on.
    pub(crate) fn down(&mut self, runtime: Runtime) -> Check {
        self.taint(runtime);
        let Some(link) = self.links.get_mut(&runtime).filter(|link| link.is_up) else {
            return Ok(());
        };
        link.is_up = false;
        link.connection += 1;
        self.drop_outdated();
        self.observe(Observation::SourceDown {
            source: Self::source_id(runtime),
        })
    }

    /// The stories of a runtime's containers need not be whole any more.
    pub(crate) fn taint(&mut self, runtime: Runtime) {
        self.is_lossless = false;
        for container in self.world.containers.values_mut() {
            if container.runtime == runtime {
                container.is_clean = false;
            }
        }
    }

    /// Answers that were under way of a connection that is gone: their fds are closed.
    fn drop_outdated(&mut self) {
        let outdated: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, (scope, _))| !self.is_current(*scope))
            .map(|(key, _)| *key)
            .collect();
        for key in outdated {
            if let Some((_, Due::Observe(observation))) = self.queue.remove(&key) {
                for token in tokens_in(&observation) {
                    self.close(token);
                }
            }
        }
    }

    fn is_current(&self, scope: Scope) -> bool {
        match scope {
            Scope::Connection(runtime, connection) => self
                .links
                .get(&runtime)
                .is_some_and(|link| link.is_up && link.connection == connection),
            Scope::Life(life) => self.life == life,
            Scope::Outbox => true,
        }
    }

    fn scope(&self, runtime: Runtime) -> Scope {
        let connection = self.links.get(&runtime).map_or(0, |link| link.connection);
        Scope::Connection(runtime, connection)
    }

    fn schedule(&mut self, delay_ms: u64, scope: Scope, due: Due) {
        self.next_number += 1;
        let at_ms = self.world.mono_ms + delay_ms;
        self.queue.insert((at_ms, self.next_number), (scope, due));
    }

    fn schedule_soon(&mut self, scope: Scope, due: Due) {
        let delay_ms = self.random(DELAY_MS);
        self.schedule(delay_ms, scope, due);
    }

    /// Lets the events of what happened go their way.
    pub(crate) fn send_events(&mut self) {
        for (runtime, event) in std::mem::take(&mut self.world.events) {
            self.send_event(runtime, event);
        }
    }

    fn send_event(&mut self, runtime: Runtime, event: RuntimeEvent) {
        let now_ms = self.world.mono_ms;
        let is_opened = self.reconciler.as_ref().is_some_and(Reconciler::opened);
        let is_listed = self.links.get(&runtime).is_some_and(|link| link.is_listed);
        if !(is_opened && is_listed)
            && let Some(container) = self.world.containers.get_mut(&event.id)
        {
            container.is_clean = false;
        }
        let delay_ms = self.random(DELAY_MS);
        let again_ms = self.random(DELAY_MS * 4);
        let Some(link) = self.links.get_mut(&runtime) else {
            return;
        };
        let is_heard = link.is_up && link.is_streaming && self.reconciler.is_some();
        if !is_heard || link.lose_events > 0 {
            link.lose_events = link.lose_events.saturating_sub(1);
            link.has_lost |= is_heard;
            let is_told_now = is_heard && link.lose_events == 0;
            self.taint(runtime);
            if is_told_now {
                self.tell_gap(runtime);
            }
            return;
        }
        let at_ms = match runtime {
            Runtime::Docker => (now_ms + delay_ms).max(link.floor_ms),
            Runtime::Cri | Runtime::Overlay => now_ms + delay_ms,
        };
        link.floor_ms = at_ms;
        let is_doubled = link.double_events > 0;
        link.double_events = link.double_events.saturating_sub(1);
        let source = Self::source_id(runtime);
        let scope = self.scope(runtime);
        let observation = Observation::Event { source, event };
        if is_doubled {
            let double = Due::Observe(observation.clone());
            self.schedule(at_ms - now_ms + again_ms, scope, double);
        }
        self.schedule(at_ms - now_ms, scope, Due::Observe(observation));
    }

    /// The stream says that it lost something, after what it did not lose.
    pub(crate) fn tell_gap(&mut self, runtime: Runtime) {
        let now_ms = self.world.mono_ms;
        let Some(link) = self.links.get_mut(&runtime).filter(|link| link.has_lost) else {
            return;
        };
        link.has_lost = false;
        link.is_listed = false;
        link.lose_events = 0;
        let delay_ms = link.floor_ms.saturating_sub(now_ms) + 1;
        let source = Self::source_id(runtime);
        let scope = self.scope(runtime);
        let gap = Due::Observe(Observation::StreamGap { source });
        self.schedule(delay_ms, scope, gap);
    }

    /// containerd tells the pid of a container that is about to start.
    pub(crate) fn hint(&mut self, id: &ContainerId) {
        if self.gives_hints
            && self.reconciler.is_some()
            && let Some((pid, _)) = self.world.process_of(id)
        {
            let scope = Scope::Life(self.life);
            let id = id.clone();
            self.schedule(0, scope, Due::Read { id, pid });
        }
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, by_ms: u64) -> Check {
        let until_ms = self.world.mono_ms + by_ms;
        loop {
            let next = self.queue.keys().next().copied();
            let next_ms = next.map_or(u64::MAX, |(at_ms, _)| at_ms);
            if next_ms.min(self.next_tick_ms) > until_ms {
                break;
            }
            if self.next_tick_ms <= next_ms {
                self.world.mono_ms = self.world.mono_ms.max(self.next_tick_ms);
                self.next_tick_ms += TICK_MS;
                self.observe(Observation::Tick)?;
            } else if let Some(((at_ms, _), (scope, due))) = self.queue.pop_first() {
                self.world.mono_ms = self.world.mono_ms.max(at_ms);
                if self.is_current(scope) {
                    self.happen(scope, due)?;
                }
            }
        }
        self.world.mono_ms = until_ms;
        self.next_tick_ms = self.next_tick_ms.max(until_ms);
        Ok(())
    }

    /// Lets time pass until nothing is awaited.
    pub(crate) fn settle(&mut self) -> Check {
        for _ in 0..SETTLE_MS / TICK_MS {
            let is_settled = self.reconciler.as_ref().is_some_and(|reconciler| {
                reconciler.is_settled() && reconciler.opened() && !reconciler.is_look_due()
            });
            if is_settled && self.queue.is_empty() {
                return Ok(());
            }
            self.advance(TICK_MS)?;
        }
        Err(format!(
            "everything_settles: {:?} {:?}",
            self.queue, self.reconciler
        ))
    }

    fn happen(&mut self, scope: Scope, due: Due) -> Check {
        match due {
            Due::Observe(observation) => return self.observe(observation),
            Due::TakeList { runtime } => {
                let outcome = self.take_list(runtime);
                let source = Self::source_id(runtime);
                let done = Observation::ListDone { source, outcome };
                self.schedule_soon(scope, Due::Observe(done));
            }
            Due::TakeInspect { runtime, id } => self.take_inspect(scope, runtime, id),
            Due::ReadInspected { runtime, container } => {
                let process = container
                    .pid
                    .filter(|_| runtime != Runtime::Overlay)
                    .map(|pid| self.read(&container.id, pid));
                let id = container.id.clone();
                let outcome = self.outcome_of(container, process);
                self.answer_inspect(scope, runtime, id, outcome);
            }
            Due::Read { id, pid } => {
                let reading = self.read(&id, pid);
                let read = Observation::Process { id, pid, reading };
                self.schedule_soon(scope, Due::Observe(read));
            }
            Due::Look { query } => {
                let look = Box::new(look(&query, HOST_PNS, &mut WorldSight(self)));
                let looked = Observation::NestedLooked { look };
                self.schedule_soon(scope, Due::Observe(looked));
            }
            Due::Ack { key, number } => return self.ack(key, number),
        }
        Ok(())
    }

    /// A sketch where one will do, of every other container.
    fn outcome_of(
        &mut self,
        mut container: Box<Container>,
        process: Option<ProcessReading>,
    ) -> InspectOutcome {
        let may_sketch = self.sketches.remove(&container.id)
            && container.state == State::Running
            && container.kind == ContainerKind::Container;
        match process {
            Some(process @ ProcessReading::Alive(_)) if may_sketch => {
                container.started_at_ns = None;
                InspectOutcome::Sketched { container, process }
            }
            process => InspectOutcome::Found { container, process },
        }
    }

    fn take_list(&mut self, runtime: Runtime) -> ListOutcome {
        let mut rows = self.world.list(runtime);
        let drop = self.random(rows.len() as u64 + 1);
        let Some(link) = self.links.get_mut(&runtime) else {
            return ListOutcome::Failed;
        };
        if link.fail_lists > 0 {
            link.fail_lists -= 1;
            self.is_lossless = false;
            return ListOutcome::Failed;
        }
        if link.partial_lists > 0 {
            link.partial_lists -= 1;
            rows.drain(..usize::try_from(drop).unwrap_or(0));
            self.is_lossless = false;
            return ListOutcome::Partial(rows);
        }
        ListOutcome::Complete(rows)
    }

    fn take_inspect(&mut self, scope: Scope, runtime: Runtime, id: ContainerId) {
        let fails = self.links.get_mut(&runtime).is_some_and(|link| {
            let fails = link.fail_inspects > 0;
            link.fail_inspects = link.fail_inspects.saturating_sub(1);
            fails
        });
        if fails {
            self.is_lossless &= runtime != Runtime::Overlay;
            self.answer_inspect(scope, runtime, id, InspectOutcome::Failed);
            return;
        }
        match self.world.inspect(runtime, &id) {
            Some(container) => {
                let container = Box::new(container);
                let delay_ms = self.random(3);
                let read = Due::ReadInspected { runtime, container };
                self.schedule(delay_ms, scope, read);
            }
            None => self.answer_inspect(scope, runtime, id, InspectOutcome::Gone),
        }
    }

    fn answer_inspect(
        &mut self,
        scope: Scope,
        runtime: Runtime,
        id: ContainerId,
        outcome: InspectOutcome,
    ) {
        let source = Self::source_id(runtime);
        let answer = Observation::Inspected {
            source,
            id,
            outcome,
        };
        self.schedule_soon(scope, Due::Observe(answer));
    }

    /// Reads a process, and opens its namespace. Its cgroup must name the container.
    fn read(&mut self, id: &ContainerId, pid: u32) -> ProcessReading {
        let found = self.world.procs.get(&pid);
        match found.filter(|process| process.container == *id) {
            Some(_) => self.read_any(pid),
            None => ProcessReading::Dead,
        }
    }

    fn read_any(&mut self, pid: u32) -> ProcessReading {
        let Some(process) = self.world.process(pid) else {
            return ProcessReading::Dead;
        };
        if self.deny_reads > 0 {
            self.deny_reads -= 1;
            self.is_lossless = false;
            return ProcessReading::Denied;
        }
        let fd = self.holds_fds.then(|| {
            self.next_token += 1;
            self.tokens.insert(self.next_token, process.namespace);
            self.world.hold(process.namespace, process.inode);
            FdToken(self.next_token)
        });
        ProcessReading::Alive(Box::new(Process {
            pid,
            start_ticks: process.start_ticks,
            started_at_ms: self.world.wall_offset_ms
                + self.world.booted_ms
                + process.start_ticks * 10
                - 10,
            pns_inode: process.inode,
            pns_id: self.world.has_ns_ids.then_some(process.namespace),
            mnt_ns: u64::from(pid),
            cgroup: process.cgroup.into(),
            is_init: process.is_init,
            fd,
        }))
    }

    fn close(&mut self, token: FdToken) {
        if let Some(namespace) = self.tokens.remove(&token.0) {
            self.world.let_go(namespace);
        }
    }

    fn ack(&mut self, key: (u64, u64), number: u64) -> Check {
        let Some(owed) = self
            .owed
            .get_mut(&key)
            .filter(|owed| owed.number == number && !owed.is_acked)
        else {
            return Ok(());
        };
        if self.is_bus_away || self.reconciler.is_none() {
            let again = Due::Ack { key, number };
            self.schedule(1_000, Scope::Outbox, again);
            return Ok(());
        }
        owed.is_acked = true;
        let (pns_inode, generation) = key;
        let observation = if owed.is_tombstone {
            Observation::TombstoneAcked {
                pns_inode,
                generation,
            }
        } else {
            Observation::MappingAcked {
                pns_inode,
                generation,
            }
        };
        self.observe(observation)
    }

    /// Tells the reconciler something, does what it says, and checks all that must hold after every step.
    pub(crate) fn observe(&mut self, observation: Observation) -> Check {
        let Some(mut reconciler) = self.reconciler.take() else {
            for token in tokens_in(&observation) {
                self.close(token);
            }
            return Ok(());
        };
        self.note_listed(&observation);
        if matches!(observation, Observation::SnapshotDue) {
            self.check.lose_all();
        }
        if !matches!(observation, Observation::Tick) {
            self.log
                .push(format!("{} <- {observation:?}", self.world.mono_ms));
        }
        let evicted = reconciler.counters().evicted;
        let held = Checker::tokens_of(&reconciler)?;
        let is_tombstone_acked = matches!(observation, Observation::TombstoneAcked { .. });
        let effects = reconciler.handle(observation, self.world.wall_ms());
        for effect in &effects {
            if !matches!(effect, Effect::SaveRow(_)) {
                self.log
                    .push(format!("{}   -> {effect:?}", self.world.mono_ms));
            }
        }
        let may_let_go = is_tombstone_acked || reconciler.counters().evicted > evicted;
        self.check.take(&effects, &self.world)?;
        self.check.after_step(&reconciler)?;
        for effect in effects {
            if let Effect::ReleaseNamespace(token) = effect {
                ensure!(
                    self.tokens.contains_key(&token.0),
                    "no_token_is_released_twice",
                    "{token:?}"
                );
                ensure!(
                    may_let_go || !held.contains(&token),
                    "a_number_is_kept_until_its_tombstone_is_acknowledged",
                    "{token:?}"
                );
                self.close(token);
            } else {
                self.act(&reconciler, effect)?;
            }
        }
        // Those of processes that wait for their container too.
        let kept: BTreeSet<_> = reconciler.held_fds().collect();
        let under_way: BTreeSet<_> = self
            .queue
            .values()
            .filter_map(|(_, due)| match due {
                Due::Observe(observation) => Some(tokens_in(observation)),
                Due::TakeList { .. }
                | Due::TakeInspect { .. }
                | Due::ReadInspected { .. }
                | Due::Read { .. }
                | Due::Look { .. }
                | Due::Ack { .. } => None,
            })
            .flatten()
            .collect();
        let expected: BTreeSet<_> = kept.union(&under_way).map(|token| token.0).collect();
        let open: BTreeSet<_> = self.tokens.keys().copied().collect();
        ensure!(
            open == expected,
            "every_token_is_held_by_one_mapping_or_released",
            "open {open:?}, held {expected:?}"
        );
        self.reconciler = Some(reconciler);
        Ok(())
    }

    fn note_listed(&mut self, observation: &Observation) {
        if let Observation::ListDone {
            source,
            outcome: ListOutcome::Complete(_),
        } = observation
            && let Ok(runtime) = runtime_of(source)
            && let Some(link) = self.links.get_mut(&runtime)
        {
            link.is_listed = true;
        }
    }

    fn act(&mut self, reconciler: &Reconciler, effect: Effect) -> Check {
        match effect {
            Effect::Publish(Message::Mapping { mapping, .. }) => {
                self.owe((mapping.pns_inode, mapping.generation), false);
            }
            Effect::Publish(Message::MappingTombstone {
                pns_inode,
                generation,
            }) => self.owe((pns_inode, generation), true),
            Effect::Publish(
                Message::Delta(_) | Message::Record { .. } | Message::RecordTombstone { .. },
            )
            | Effect::ReleaseNamespace(_) => {}
            Effect::SaveRow(key) => self.save(reconciler, key)?,
            Effect::List { source } => self.begin_list(runtime_of(&source)?),
            Effect::Inspect {
                source,
                id,
                may_sketch,
                ..
            } => {
                if may_sketch && id.as_str().bytes().last().is_some_and(|last| last % 2 == 0) {
                    self.sketches.insert(id.clone());
                }
                let runtime = runtime_of(&source)?;
                let scope = self.scope(runtime);
                self.schedule_soon(scope, Due::TakeInspect { runtime, id });
            }
            Effect::FindNested(query) => {
                let scope = Scope::Life(self.life);
                self.schedule_soon(scope, Due::Look { query });
            }
            Effect::ReadProcess { id, pid } => {
                let scope = Scope::Life(self.life);
                self.schedule_soon(scope, Due::Read { id, pid });
            }
        }
        Ok(())
    }

    fn owe(&mut self, key: (u64, u64), is_tombstone: bool) {
        self.next_number += 1;
        let number = self.next_number;
        self.owed.insert(
            key,
            Owed {
                number,
                is_tombstone,
                is_acked: false,
            },
        );
        self.schedule_soon(Scope::Outbox, Due::Ack { key, number });
    }

    fn save(&mut self, reconciler: &Reconciler, key: RowKey) -> Check {
        let bytes = match reconciler.row(&key) {
            Some(Row::Container(row)) => postcard::to_stdvec(row),
            Some(Row::Namespace(row)) => postcard::to_stdvec(row),
            Some(Row::Source(row)) => postcard::to_stdvec(row),
            None => {
                self.rows.remove(&key);
                return Ok(());
            }
        };
        let bytes = bytes.map_err(|error| format!("a row is not written: {error}"))?;
        self.rows.insert(key, bytes);
        Ok(())
    }
}

fn runtime_of(source: &SourceId) -> Result<Runtime, String> {
    Runtime::ALL
        .into_iter()
        .find(|runtime| Shell::source_id(*runtime) == *source)
        .ok_or_else(|| format!("only what is there is asked: {source}"))
}

/// The world as a look for nested namespaces sees it.
struct WorldSight<'a>(&'a mut Shell);

impl Sight for WorldSight<'_> {
    fn pids(&mut self) -> Vec<u32> {
        let world = &self.0.world;
        world
            .procs
            .keys()
            .chain(world.nests.keys())
            .copied()
            .collect()
    }

    fn pns_inode(&mut self, pid: u32) -> Seen {
        let process = self.0.world.process(pid);
        process.map_or(Seen::Gone, |process| Seen::In(process.inode))
    }

    fn read(&mut self, pid: u32) -> ProcessReading {
        self.0.read_any(pid)
    }

    fn chain(&mut self, pid: u32) -> Vec<Namespace> {
        let world = &self.0.world;
        let Some(process) = world.process(pid) else {
            return Vec::new();
        };
        let own = std::iter::once(process.namespace);
        let all = own.chain(world.above(process.namespace));
        let mut chain: Vec<_> = all
            .filter_map(|namespace| {
                let (_, inode) = world.spaces.get(&namespace)?;
                let id = world.has_ns_ids.then_some(namespace);
                Some(Namespace { inode: *inode, id })
            })
            .collect();
        chain.push(Namespace {
            inode: HOST_PNS,
            id: world.has_ns_ids.then_some(0),
        });
        chain
    }

    fn start_ticks(&mut self, pid: u32) -> Option<u64> {
        Some(self.0.world.process(pid)?.start_ticks)
    }

    fn release(&mut self, fd: FdToken) {
        self.0.close(fd);
    }
}

fn tokens_in(observation: &Observation) -> Vec<FdToken> {
    if let Observation::NestedLooked { look } = observation {
        let found = look.found.iter();
        return found.filter_map(|(_, process)| process.fd).collect();
    }
    let reading = match observation {
        Observation::Inspected {
            outcome: InspectOutcome::Found { process, .. },
            ..
        } => process.as_ref(),
        Observation::Inspected {
            outcome: InspectOutcome::Sketched {
                process: reading, ..
            },
            ..
        } => Some(reading),
        Observation::Process { reading, .. } | Observation::ProcessOf { reading, .. } => {
            Some(reading)
        }
        Observation::Inspected { .. }
        | Observation::NestedLooked { .. }
        | Observation::Began { .. }
        | Observation::SourceExpected { .. }
        | Observation::SourceUp { .. }
        | Observation::SourceDown { .. }
        | Observation::SourceForgotten { .. }
        | Observation::StreamGap { .. }
        | Observation::ListBegan { .. }
        | Observation::ListDone { .. }
        | Observation::Event { .. }
        | Observation::MappingAcked { .. }
        | Observation::TombstoneAcked { .. }
        | Observation::SnapshotDue
        | Observation::StateDue
        | Observation::ResyncDue
        | Observation::ListDue { .. }
        | Observation::Tick => None,
    };
    match reading {
        Some(ProcessReading::Alive(process)) => process.fd.into_iter().collect(),
        Some(ProcessReading::Dead | ProcessReading::Denied) | None => Vec::new(),
    }
}
