//! The reconciler driven by hand: one observation after another, and what came of it as short text.

use std::collections::{BTreeMap, BTreeSet};

use quaymaster::model::message::{Delta, Mapping, Message, Op, RuntimeSource};
use quaymaster::model::{
    Container, ContainerId, ContainerKind, EventKind, ListRow, RuntimeEvent, RuntimeType, SourceId,
    State,
};
use quaymaster::reconcile::{
    Effect, FdToken, Identity, InspectOutcome, ListOutcome, Observation, Process, ProcessReading,
    Reconciler, Restored, Row, RowKey, Settings,
};

use crate::world::HOST_PNS;

/// A moment from which the cases count, in unix milliseconds.
pub(crate) const T0_MS: u64 = 1_700_000_000_000;

/// A reconciler and all that it said.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) reconciler: Reconciler,
    /// Milliseconds since [`T0_MS`].
    pub(crate) at_ms: u64,
    pub(crate) said: Vec<Effect>,
    rows: BTreeMap<RowKey, Vec<u8>>,
}

pub(crate) fn id(number: u8) -> ContainerId {
    ContainerId::parse(&format!("{number:064x}")).expect("hex digits are an id")
}

pub(crate) fn docker() -> SourceId {
    SourceId::new("docker=unix:///run/docker.sock")
}

pub(crate) fn cri() -> SourceId {
    SourceId::new("cri=unix:///run/containerd/containerd.sock")
}

pub(crate) fn cri_dockerd() -> SourceId {
    SourceId::new("cri=unix:///run/cri-dockerd.sock")
}

/// Nanoseconds of a moment in milliseconds since [`T0_MS`].
pub(crate) fn ns(at_ms: u64) -> u64 {
    (T0_MS + at_ms) * 1_000_000
}

/// A container that was created at 0.
pub(crate) fn created(number: u8, runtime: RuntimeType) -> Container {
    Container {
        name: format!("name-{number}"),
        runtime_name: runtime.as_str().into(),
        runtime_version: "1".into(),
        image_name: "busybox".to_owned(),
        created_at_ns: ns(0),
        ..Container::bare(id(number), ContainerKind::Container, runtime)
    }
}

/// One of Docker's that runs since a moment.
pub(crate) fn running(number: u8, pid: u32, since_ms: u64) -> Container {
    Container {
        state: State::Running,
        pid: Some(pid),
        started_at_ns: Some(ns(since_ms)),
        ..created(number, RuntimeType::Docker)
    }
}

/// One of Docker's that ran from one moment to another.
pub(crate) fn exited(number: u8, since_ms: u64, until_ms: u64, code: i32) -> Container {
    Container {
        state: State::Exited,
        pid: None,
        started_at_ns: Some(ns(since_ms)),
        finished_at_ns: Some(ns(until_ms)),
        exit_code: Some(code),
        ..created(number, RuntimeType::Docker)
    }
}

/// The same, of a CRI server.
pub(crate) fn of_cri(container: Container) -> Container {
    Container {
        runtime: RuntimeType::Cri,
        runtime_name: "containerd".into(),
        ..container
    }
}

/// A process of its own namespace, whose fd has the number of its pid.
pub(crate) fn process(pid: u32, inode: u64) -> Process {
    Process {
        pid,
        start_ticks: u64::from(pid) * 10,
        started_at_ms: T0_MS,
        pns_inode: inode,
        pns_id: None,
        mnt_ns: u64::from(pid),
        cgroup: "/".into(),
        is_init: true,
        fd: Some(FdToken(u64::from(pid))),
    }
}

pub(crate) fn alive(process: Process) -> Option<ProcessReading> {
    Some(ProcessReading::Alive(Box::new(process)))
}

pub(crate) fn row_of(container: &Container, fingerprint: u64) -> ListRow {
    ListRow {
        id: container.id.clone(),
        kind: container.kind,
        state: container.state,
        fingerprint,
    }
}

impl Script {
    /// A collector that begins with nothing.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let mut script = Self {
            reconciler: Reconciler::new(identity("boot-1"), settings, Restored::default()),
            at_ms: 1_000,
            said: Vec::new(),
            rows: BTreeMap::new(),
        };
        script.begin();
        script
    }

    /// A collector that watches Docker, whose list is empty, and whose epoch is open.
    pub(crate) fn watching_docker() -> Self {
        let mut script = Self::new();
        script.up(&docker());
        script.list(&docker(), Vec::new());
        script.said.clear();
        script
    }

    /// The same of a CRI server.
    pub(crate) fn watching_cri() -> Self {
        let mut script = Self::new();
        script.up(&cri());
        script.list(&cri(), Vec::new());
        script.said.clear();
        script
    }

    fn begin(&mut self) {
        self.tell(Observation::Began {
            last_alive_ms: T0_MS + self.at_ms,
            owed: BTreeSet::new(),
        });
    }

    /// The collector is killed and begins again with its rows; `boot` may be another one.
    pub(crate) fn restart(&mut self, boot: &str) {
        let mut restored = Restored {
            seq: self.reconciler.seq(),
            package_seq: self.reconciler.package_seq(),
            generation: self.reconciler.generation(),
            opened: self.reconciler.opened(),
            ..Restored::default()
        };
        for (key, bytes) in &self.rows {
            let why = "a row that was written can be read";
            match key {
                RowKey::Container(id) => {
                    let row = postcard::from_bytes(bytes).expect(why);
                    restored.containers.insert(id.clone(), row);
                }
                RowKey::Namespace(inode) => {
                    let row = postcard::from_bytes(bytes).expect(why);
                    restored.namespaces.insert(*inode, row);
                }
                RowKey::Source(id) => {
                    let row = postcard::from_bytes(bytes).expect(why);
                    restored.sources.insert(id.clone(), row);
                }
            }
        }
        self.reconciler = Reconciler::new(identity(boot), Settings::default(), restored);
        self.said.clear();
        self.begin();
    }

    /// Tells the reconciler something; gives what it said to that.
    pub(crate) fn tell(&mut self, observation: Observation) -> Vec<Effect> {
        let effects = self.reconciler.handle(observation, T0_MS + self.at_ms);
        for effect in &effects {
            if let Effect::SaveRow(key) = effect {
                let why = "a row can be written";
                let bytes = match self.reconciler.row(key) {
                    Some(Row::Container(row)) => Some(postcard::to_stdvec(row).expect(why)),
                    Some(Row::Namespace(row)) => Some(postcard::to_stdvec(row).expect(why)),
                    Some(Row::Source(row)) => Some(postcard::to_stdvec(row).expect(why)),
                    None => None,
                };
                match bytes {
                    Some(bytes) => self.rows.insert(key.clone(), bytes),
                    None => self.rows.remove(key),
                };
            }
        }
        self.said.extend(effects.iter().cloned());
        effects
    }

    /// Now, as events are given their time.
    pub(crate) fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Time passes, a second at a time.
    pub(crate) fn wait(&mut self, ms: u64) {
        let until_ms = self.at_ms + ms;
        while self.at_ms < until_ms {
            self.at_ms = (self.at_ms + 1_000).min(until_ms);
            self.tell(Observation::Tick);
        }
    }

    pub(crate) fn up(&mut self, source: &SourceId) {
        self.up_with(source, false);
    }

    pub(crate) fn up_with(&mut self, source: &SourceId, is_listing: bool) -> Vec<Effect> {
        let is_docker = *source == docker();
        let is_overlay = *source == cri_dockerd();
        let runtime = RuntimeSource {
            uid: 0,
            runtime: if is_docker {
                RuntimeType::Docker
            } else {
                RuntimeType::Cri
            },
            name: if is_docker || is_overlay {
                "docker".into()
            } else {
                "containerd".into()
            },
            version: "1".into(),
            endpoint: "unix:///run/x.sock".into(),
        };
        self.tell(Observation::SourceUp {
            source: source.clone(),
            runtime,
            streaming: !is_overlay,
            is_listing,
        })
    }

    pub(crate) fn down(&mut self, source: &SourceId) {
        let source = source.clone();
        self.tell(Observation::SourceDown { source });
    }

    /// A complete list is answered.
    pub(crate) fn list(&mut self, source: &SourceId, rows: Vec<ListRow>) -> Vec<Effect> {
        self.list_with(source, ListOutcome::Complete(rows))
    }

    pub(crate) fn list_with(&mut self, source: &SourceId, outcome: ListOutcome) -> Vec<Effect> {
        self.tell(Observation::ListBegan {
            source: source.clone(),
        });
        self.tell(Observation::ListDone {
            source: source.clone(),
            outcome,
        })
    }

    /// A full resync in which a source answers with these rows.
    pub(crate) fn resync(&mut self, source: &SourceId, rows: Vec<ListRow>) -> Vec<Effect> {
        self.tell(Observation::ResyncDue);
        self.list(source, rows)
    }

    pub(crate) fn event(&mut self, source: &SourceId, number: u8, what: EventKind, at_ms: u64) {
        self.event_with(source, number, what, at_ms, None);
    }

    pub(crate) fn died(&mut self, source: &SourceId, number: u8, at_ms: u64, code: i32) {
        self.event_with(source, number, EventKind::Died, at_ms, Some(code));
    }

    fn event_with(
        &mut self,
        source: &SourceId,
        number: u8,
        what: EventKind,
        at_ms: u64,
        exit_code: Option<i32>,
    ) {
        self.tell(Observation::Event {
            source: source.clone(),
            event: RuntimeEvent {
                id: id(number),
                kind: ContainerKind::Container,
                what,
                at_ns: ns(at_ms),
                exit_code,
                facts: None,
            },
        });
    }

    pub(crate) fn found(
        &mut self,
        source: &SourceId,
        container: Container,
        process: Option<ProcessReading>,
    ) -> Vec<Effect> {
        self.tell(Observation::Inspected {
            source: source.clone(),
            id: container.id.clone(),
            outcome: InspectOutcome::Found {
                container: Box::new(container),
                process,
            },
        })
    }

    pub(crate) fn not_found(&mut self, source: &SourceId, number: u8) -> Vec<Effect> {
        self.tell(Observation::Inspected {
            source: source.clone(),
            id: id(number),
            outcome: InspectOutcome::Gone,
        })
    }

    /// One of Docker's containers is created, starts and is told.
    pub(crate) fn run_docker(&mut self, number: u8, pid: u32, inode: u64) {
        self.run_docker_with(running(number, pid, 10), process(pid, inode));
    }

    pub(crate) fn run_docker_with(&mut self, container: Container, process: Process) {
        let number = container.id.as_str().bytes().last().unwrap_or(b'0') - b'0';
        self.event(&docker(), number, EventKind::Created, 1);
        self.event(&docker(), number, EventKind::Started, 11);
        self.found(&docker(), container.clone(), alive(process.clone()));
        self.found(
            &docker(),
            container,
            alive(Process {
                fd: None,
                ..process
            }),
        );
        self.said.clear();
    }

    /// All deltas so far, each as its op.
    pub(crate) fn ops(&self) -> Vec<&'static str> {
        self.deltas().map(|delta| delta.op.as_str()).collect()
    }

    pub(crate) fn deltas(&self) -> impl Iterator<Item = &Delta> {
        self.said.iter().filter_map(|effect| match effect {
            Effect::Publish(Message::Delta(delta)) => Some(&**delta),
            Effect::Publish(
                Message::Record { .. }
                | Message::RecordTombstone { .. }
                | Message::Mapping { .. }
                | Message::MappingTombstone { .. },
            )
            | Effect::SaveRow(_)
            | Effect::List { .. }
            | Effect::Inspect { .. }
            | Effect::ReadProcess { .. }
            | Effect::FindNested(_)
            | Effect::ReleaseNamespace(_) => None,
        })
    }

    /// The one delta of an op.
    pub(crate) fn delta(&self, op: Op) -> &Delta {
        let mut found = self.deltas().filter(|delta| delta.op == op);
        found.next().expect("such a delta was told")
    }

    /// A field of the one delta of an op.
    pub(crate) fn field(&self, op: Op, name: &str) -> &str {
        let fields = self.delta(op).fields.as_ref();
        fields.expect("it is about a container").get(name)
    }

    /// A value of a delta's `before`.
    pub(crate) fn before(&self, op: Op, name: &str) -> &str {
        let changed = &self.delta(op).changed;
        let found = changed.iter().find(|(changed, _)| *changed == name);
        &found.expect("the field changed").1
    }

    pub(crate) fn mappings(&self) -> Vec<&Mapping> {
        let found = self.said.iter().filter_map(|effect| match effect {
            Effect::Publish(Message::Mapping { mapping, .. }) => Some(&**mapping),
            Effect::Publish(
                Message::Delta(_)
                | Message::Record { .. }
                | Message::RecordTombstone { .. }
                | Message::MappingTombstone { .. },
            )
            | Effect::SaveRow(_)
            | Effect::List { .. }
            | Effect::Inspect { .. }
            | Effect::ReadProcess { .. }
            | Effect::FindNested(_)
            | Effect::ReleaseNamespace(_) => None,
        });
        found.collect()
    }

    pub(crate) fn position(&self, is_it: impl Fn(&Effect) -> bool) -> usize {
        let found = self.said.iter().position(is_it);
        found.expect("it was said")
    }
}

fn identity(boot: &str) -> Identity {
    Identity {
        boot_id: boot.into(),
        host_pns_inode: HOST_PNS,
        previous_epoch: None,
    }
}

/// The ids that are asked about.
pub(crate) fn inspected(effects: &[Effect]) -> Vec<ContainerId> {
    let mut ids = Vec::new();
    for effect in effects {
        if let Effect::Inspect { id, .. } = effect {
            ids.push(id.clone());
        }
    }
    ids
}

pub(crate) fn is_op(effect: &Effect, op: Op) -> bool {
    matches!(effect, Effect::Publish(Message::Delta(delta)) if delta.op == op)
}

pub(crate) fn is_mapping(effect: &Effect) -> bool {
    matches!(effect, Effect::Publish(Message::Mapping { .. }))
}

pub(crate) fn is_tombstone(effect: &Effect) -> bool {
    matches!(effect, Effect::Publish(Message::MappingTombstone { .. }))
}
