//! The truth: containers, their processes and namespaces, on one host.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use quaymaster::model::record::{Fields, ProcessFacts};
use quaymaster::model::{
    Container, ContainerId, ContainerKind, EventKind, ListRow, Pod, RuntimeEvent, RuntimeType,
    State,
};

/// The number of the host's own PID namespace.
pub(crate) const HOST_PNS: u64 = 4_026_531_836;
/// The first number that the kernel hands out.
const FIRST_PNS: u64 = 4_026_532_000;
/// Pids go round below this, so that they are used again soon.
const PID_MAX: u32 = 160;

/// One of the runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Runtime {
    /// Docker, with a stream in order.
    Docker,
    /// containerd's CRI, with a stream in any order.
    Cri,
    /// cri-dockerd: some of Docker's containers, no stream.
    Overlay,
}

impl Runtime {
    pub(crate) const ALL: [Self; 3] = [Self::Docker, Self::Cri, Self::Overlay];

    pub(crate) fn runtime_type(self) -> RuntimeType {
        match self {
            Self::Docker => RuntimeType::Docker,
            Self::Cri | Self::Overlay => RuntimeType::Cri,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker | Self::Overlay => "docker",
            Self::Cri => "containerd",
        }
    }
}

/// Which PID namespace a container's process is put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// Its own.
    Own,
    /// The host's.
    Host,
    /// That of another container.
    Shared(ContainerId),
    /// Its own, below that of another container.
    Below(ContainerId),
}

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) container: ContainerId,
    pub(crate) start_ticks: u64,
    /// Tells namespaces apart for ever.
    pub(crate) namespace: u64,
    pub(crate) inode: u64,
    pub(crate) is_init: bool,
}

/// Pid 1 of a namespace below a container's, of which no runtime tells.
#[derive(Clone, Debug)]
pub(crate) struct Nest {
    /// In whose cgroup it is.
    pub(crate) container: ContainerId,
    pub(crate) start_ticks: u64,
    pub(crate) namespace: u64,
    pub(crate) inode: u64,
}

/// What the process table shows of a process.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) start_ticks: u64,
    pub(crate) namespace: u64,
    pub(crate) inode: u64,
    pub(crate) is_init: bool,
    pub(crate) cgroup: String,
}

/// One life of a process, kept for ever.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) boot_id: Arc<str>,
    /// Of a nested namespace's pid 1: in whose cgroup it is.
    pub(crate) container: ContainerId,
    pub(crate) is_nest: bool,
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
    pub(crate) namespace: u64,
    pub(crate) inode: u64,
}

/// One run of a container.
#[derive(Clone, Debug)]
pub(crate) struct WorldRun {
    pub(crate) exit_code: Option<i32>,
}

/// One container.
#[derive(Clone, Debug)]
pub(crate) struct WorldContainer {
    pub(crate) runtime: Runtime,
    pub(crate) facts: Container,
    pub(crate) pid_mode: PidMode,
    pub(crate) is_kubernetes: bool,
    pub(crate) runs: Vec<WorldRun>,
    pub(crate) is_removed: bool,
    /// Its runtime's stream was whole from its creation on.
    pub(crate) is_clean: bool,
}

impl WorldContainer {
    pub(crate) fn is_live(&self) -> bool {
        !self.is_removed && self.facts.state.is_live()
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct World {
    /// Milliseconds since the first boot; never steps.
    pub(crate) mono_ms: u64,
    /// What unix time is ahead of it.
    pub(crate) wall_offset_ms: u64,
    last_ns: u64,
    pub(crate) boot_id: Arc<str>,
    boots: u32,
    /// When the newest boot was; start ticks count from it.
    pub(crate) booted_ms: u64,
    next_pid: u32,
    next_namespace: u64,
    pub(crate) has_ns_ids: bool,
    pub(crate) procs: BTreeMap<u32, Proc>,
    /// Pid 1 of each nested namespace.
    pub(crate) nests: BTreeMap<u32, Nest>,
    /// Of each namespace, kept for ever: the one above it (0 is the host's), and its number.
    pub(crate) spaces: BTreeMap<u64, (u64, u64)>,
    pub(crate) lives: Vec<Life>,
    /// Namespaces that an fd is held on, with the number of fds.
    held: BTreeMap<u64, (u64, usize)>,
    pub(crate) containers: BTreeMap<ContainerId, WorldContainer>,
    /// In the order of their creation.
    pub(crate) order: Vec<ContainerId>,
    /// Events that happened and were not taken by the shell.
    pub(crate) events: Vec<(Runtime, RuntimeEvent)>,
}

impl World {
    pub(crate) fn new(has_ns_ids: bool) -> Self {
        Self {
            mono_ms: 100_000,
            wall_offset_ms: 1_700_000_000_000,
            last_ns: 0,
            boot_id: "boot-1".into(),
            boots: 1,
            booted_ms: 0,
            next_pid: 100,
            next_namespace: 1,
            has_ns_ids,
            procs: BTreeMap::new(),
            nests: BTreeMap::new(),
            spaces: BTreeMap::new(),
            lives: Vec::new(),
            held: BTreeMap::new(),
            containers: BTreeMap::new(),
            order: Vec::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.mono_ms + self.wall_offset_ms
    }

    /// Sets the clock back.
    pub(crate) fn step_back(&mut self, by_ms: u64) {
        self.wall_offset_ms -= by_ms;
        self.last_ns = 0;
    }

    /// The runtime's clock: no two things happen in the same nanosecond.
    fn now_ns(&mut self) -> u64 {
        self.last_ns = (self.wall_ms() * 1_000_000).max(self.last_ns + 1_000);
        self.last_ns
    }

    pub(crate) fn create(
        &mut self,
        runtime: Runtime,
        kind: ContainerKind,
        pid_mode: PidMode,
        pod: Option<Pod>,
    ) -> ContainerId {
        let number = self.order.len();
        let id = ContainerId::parse(&format!("{number:064x}")).expect("hex digits are an id");
        let is_kubernetes = pod.is_some() && runtime == Runtime::Docker;
        let created_at_ns = self.now_ns();
        let mut labels = BTreeMap::new();
        if is_kubernetes {
            labels.insert("io.kubernetes.pod.uid".to_owned(), "u".to_owned());
        }
        let facts = Container {
            name: format!("name-{number}"),
            runtime_name: runtime.name().into(),
            runtime_version: "1".into(),
            image_id: "f".repeat(64),
            image_name: "busybox:latest".to_owned(),
            created_at_ns,
            oom_killed: (runtime == Runtime::Docker).then_some(false),
            pod: pod.filter(|_| runtime == Runtime::Cri),
            labels,
            ..Container::bare(id.clone(), kind, runtime.runtime_type())
        };
        let container = WorldContainer {
            runtime,
            facts,
            pid_mode,
            is_kubernetes,
            runs: Vec::new(),
            is_removed: false,
            is_clean: true,
        };
        self.containers.insert(id.clone(), container);
        self.order.push(id.clone());
        self.tell(&id, EventKind::Created);
        id
    }

    /// Starts a container; nothing happens where that cannot be.
    pub(crate) fn start(&mut self, id: &ContainerId) {
        if let Some(event) = self.spawn(id) {
            self.events.push(event);
        }
    }

    /// A start whose process ends before its event is told.
    pub(crate) fn start_and_die(&mut self, id: &ContainerId, exit_code: i32) {
        let Some((runtime, mut event)) = self.spawn(id) else {
            return;
        };
        let die = self.end(id, exit_code);
        event.at_ns = self.now_ns();
        self.events.push((runtime, event));
        if let Some((runtime, mut die)) = die {
            die.at_ns = self.now_ns();
            self.events.push((runtime, die));
        }
    }

    fn spawn(&mut self, id: &ContainerId) -> Option<(Runtime, RuntimeEvent)> {
        let container = self.containers.get(id)?;
        let runs_once = container.runtime == Runtime::Cri;
        let cannot = container.is_removed
            || container.is_live()
            || (runs_once && !container.runs.is_empty());
        if cannot {
            return None;
        }
        let (namespace, inode, is_init) = match container.pid_mode.clone() {
            PidMode::Own => {
                let (namespace, inode) = self.new_namespace(0);
                (namespace, inode, true)
            }
            PidMode::Below(other) => {
                let above = self.process_of(&other)?.1.namespace;
                let (namespace, inode) = self.new_namespace(above);
                (namespace, inode, true)
            }
            PidMode::Host => (0, HOST_PNS, false),
            PidMode::Shared(other) => {
                let other = self.process_of(&other)?;
                (other.1.namespace, other.1.inode, false)
            }
        };
        let pid = self.free_pid();
        let start_ticks = (self.mono_ms - self.booted_ms) / 10;
        self.procs.insert(
            pid,
            Proc {
                container: id.clone(),
                start_ticks,
                namespace,
                inode,
                is_init,
            },
        );
        self.lives.push(Life {
            boot_id: Arc::clone(&self.boot_id),
            container: id.clone(),
            is_nest: false,
            pid,
            start_ticks,
            namespace,
            inode,
        });
        let started_at_ns = self.now_ns();
        let container = self.containers.get_mut(id)?;
        container.runs.push(WorldRun { exit_code: None });
        container.facts.state = State::Running;
        container.facts.pid = Some(pid);
        container.facts.started_at_ns = Some(started_at_ns);
        container.facts.exit_code = None;
        if runs_once {
            container.facts.finished_at_ns = None;
        }
        self.event(id, EventKind::Started, None)
    }

    /// Ends a container's process, and with a namespace's pid 1 all others in it.
    pub(crate) fn die(&mut self, id: &ContainerId, exit_code: i32) {
        if let Some(event) = self.end(id, exit_code) {
            self.events.push(event);
        }
    }

    fn end(&mut self, id: &ContainerId, exit_code: i32) -> Option<(Runtime, RuntimeEvent)> {
        let (pid, process) = self.process_of(id)?;
        self.procs.remove(&pid);
        let finished_at_ns = self.now_ns();
        let container = self.containers.get_mut(id)?;
        container.facts.state = State::Exited;
        container.facts.pid = None;
        container.facts.finished_at_ns = Some(finished_at_ns);
        container.facts.exit_code = Some(exit_code);
        if let Some(run) = container.runs.last_mut() {
            run.exit_code = Some(exit_code);
        }
        let event = self.event(id, EventKind::Died, Some(exit_code));
        if process.is_init {
            self.end_within(process.namespace);
        }
        event
    }

    /// Pid 1 of a namespace has ended: so does all that is in it or below it.
    fn end_within(&mut self, namespace: u64) {
        let is_within = |inner: u64| inner == namespace || self.is_below(inner, namespace);
        let others = self.procs.values();
        let others = others.filter(|other| is_within(other.namespace));
        let others: Vec<_> = others.map(|other| other.container.clone()).collect();
        let nests = self.nests.iter();
        let nests = nests.filter(|(_, nest)| is_within(nest.namespace));
        let nests: Vec<u32> = nests.map(|(pid, _)| *pid).collect();
        for pid in nests {
            self.nests.remove(&pid);
        }
        for other in others {
            self.die(&other, 137);
        }
    }

    /// Whether a namespace lies below another one.
    pub(crate) fn is_below(&self, inner: u64, outer: u64) -> bool {
        self.above(inner).any(|above| above == outer)
    }

    /// The namespaces above one, the nearest first, without the host's.
    pub(crate) fn above(&self, namespace: u64) -> impl Iterator<Item = u64> {
        let parent = |inner: &u64| {
            let (above, _) = self.spaces.get(inner)?;
            (*above != 0).then_some(*above)
        };
        std::iter::successors(parent(&namespace), parent)
    }

    fn new_namespace(&mut self, above: u64) -> (u64, u64) {
        let inode = self.free_inode();
        self.next_namespace += 1;
        self.spaces.insert(self.next_namespace, (above, inode));
        (self.next_namespace, inode)
    }

    /// A container's process makes a PID namespace: below its own, or below the newest one that it made.
    pub(crate) fn nest(&mut self, id: &ContainerId, is_deep: bool) {
        let Some((_, process)) = self.process_of(id) else {
            return;
        };
        let of_it = |nest: &&Nest| nest.container == *id && is_deep;
        let newest = self.nests.values().filter(of_it).map(|nest| nest.namespace);
        let above = newest.max().unwrap_or(process.namespace);
        let (namespace, inode) = self.new_namespace(above);
        let pid = self.free_pid();
        let start_ticks = (self.mono_ms - self.booted_ms) / 10;
        self.lives.push(Life {
            boot_id: Arc::clone(&self.boot_id),
            container: id.clone(),
            is_nest: true,
            pid,
            start_ticks,
            namespace,
            inode,
        });
        let container = id.clone();
        let nest = Nest {
            container,
            start_ticks,
            namespace,
            inode,
        };
        self.nests.insert(pid, nest);
    }

    /// Pid 1 of one of the nested namespaces ends.
    pub(crate) fn end_nest(&mut self, index: u8) {
        let Some(index) = usize::from(index).checked_rem(self.nests.len()) else {
            return;
        };
        let namespace = self.nests.values().nth(index).map(|nest| nest.namespace);
        if let Some(namespace) = namespace {
            self.end_within(namespace);
        }
    }

    /// What the process table shows of a process.
    pub(crate) fn process(&self, pid: u32) -> Option<Shown> {
        let container = self.procs.get(&pid).map(|process| Shown {
            start_ticks: process.start_ticks,
            namespace: process.namespace,
            inode: process.inode,
            is_init: process.is_init,
            cgroup: format!("/{}", process.container),
        });
        container.or_else(|| {
            self.nests.get(&pid).map(|nest| Shown {
                start_ticks: nest.start_ticks,
                namespace: nest.namespace,
                inode: nest.inode,
                is_init: true,
                cgroup: format!("/{}/nested", nest.container),
            })
        })
    }

    pub(crate) fn remove(&mut self, id: &ContainerId) {
        self.die(id, 137);
        let is_there = self
            .containers
            .get(id)
            .is_some_and(|container| !container.is_removed);
        if is_there {
            self.tell(id, EventKind::Deleted);
            if let Some(container) = self.containers.get_mut(id) {
                container.is_removed = true;
            }
        }
    }

    pub(crate) fn rename(&mut self, id: &ContainerId, name: &str) {
        let renamed = self
            .containers
            .get_mut(id)
            .filter(|container| !container.is_removed && container.runtime == Runtime::Docker);
        if let Some(container) = renamed {
            container.facts.name = name.to_owned();
            self.tell(id, EventKind::Renamed);
        }
    }

    pub(crate) fn pause(&mut self, id: &ContainerId, pause: bool) {
        let (from, to, what) = if pause {
            (State::Running, State::Paused, EventKind::Paused)
        } else {
            (State::Paused, State::Running, EventKind::Unpaused)
        };
        let paused = self.containers.get_mut(id).filter(|container| {
            container.is_live()
                && container.facts.state == from
                && container.runtime == Runtime::Docker
        });
        if let Some(container) = paused {
            container.facts.state = to;
            self.tell(id, what);
        }
    }

    /// Everything stops, numbers and pids begin anew; the runtimes will find their containers exited.
    pub(crate) fn reboot(&mut self) {
        self.boots += 1;
        self.mono_ms += 5_000;
        self.booted_ms = self.mono_ms - 1_000;
        self.boot_id = format!("boot-{}", self.boots).into();
        self.procs.clear();
        self.nests.clear();
        self.held.clear();
        self.next_pid = 100;
        let finished_at_ns = self.now_ns();
        for container in self.containers.values_mut() {
            if container.is_live() {
                container.facts.state = State::Exited;
                container.facts.pid = None;
                container.facts.finished_at_ns = Some(finished_at_ns);
                container.facts.exit_code = Some(255);
                if let Some(run) = container.runs.last_mut() {
                    run.exit_code = Some(255);
                }
            }
        }
        self.events.clear();
    }

    /// What the runtime answers to an inspect; `None` where it knows no such container.
    pub(crate) fn inspect(&self, runtime: Runtime, id: &ContainerId) -> Option<Container> {
        let container = self.containers.get(id).filter(|known| !known.is_removed)?;
        let is_known = match runtime {
            Runtime::Docker | Runtime::Cri => container.runtime == runtime,
            Runtime::Overlay => container.is_kubernetes,
        };
        is_known.then(|| match runtime {
            Runtime::Docker | Runtime::Cri => as_told(&container.facts),
            Runtime::Overlay => overlay_view(&container.facts),
        })
    }

    pub(crate) fn list(&self, runtime: Runtime) -> Vec<ListRow> {
        self.containers
            .keys()
            .filter_map(|id| self.inspect(runtime, id))
            .map(|container| {
                let mut hasher = DefaultHasher::new();
                (
                    &container.name,
                    container.state,
                    container.created_at_ns,
                    &container.image_name,
                )
                    .hash(&mut hasher);
                ListRow {
                    id: container.id.clone(),
                    kind: container.kind,
                    state: container.state,
                    fingerprint: hasher.finish(),
                }
            })
            .collect()
    }

    /// The process that lives for a container now.
    pub(crate) fn process_of(&self, id: &ContainerId) -> Option<(u32, Proc)> {
        let found = self.procs.iter().find(|(_, proc)| proc.container == *id);
        found.map(|(pid, proc)| (*pid, proc.clone()))
    }

    /// The fields that a complete resync must come to.
    pub(crate) fn truth(&self, has_overlay: &dyn Fn(&ContainerId) -> bool) -> Truth {
        self.containers
            .iter()
            .filter(|(_, container)| !container.is_removed)
            .map(|(id, container)| {
                let process = self.process_of(id);
                let process =
                    process.map_or_else(ProcessFacts::default, |(pid, proc)| ProcessFacts {
                        pid: Some(pid),
                        pns_inode: Some(proc.inode),
                        pns_id: self.has_ns_ids.then_some(proc.namespace),
                    });
                let mut facts = container.facts.clone();
                if has_overlay(id) {
                    let over = overlay_view(&facts);
                    facts = Container {
                        name: over.name,
                        kind: over.kind,
                        pod: over.pod,
                        restart_count: over.restart_count,
                        runtime: RuntimeType::Cri,
                        ..facts
                    };
                }
                (id.clone(), Fields::of(&facts, process))
            })
            .collect()
    }

    /// Holds an fd on a namespace.
    pub(crate) fn hold(&mut self, namespace: u64, inode: u64) {
        self.held.entry(namespace).or_insert((inode, 0)).1 += 1;
    }

    /// Lets one fd on a namespace go.
    pub(crate) fn let_go(&mut self, namespace: u64) {
        if let Some((_, count)) = self.held.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&namespace);
            }
        }
    }

    pub(crate) fn tell(&mut self, id: &ContainerId, what: EventKind) {
        if let Some(event) = self.event(id, what, None) {
            self.events.push(event);
        }
    }

    fn event(
        &mut self,
        id: &ContainerId,
        what: EventKind,
        exit_code: Option<i32>,
    ) -> Option<(Runtime, RuntimeEvent)> {
        let at_ns = self.now_ns();
        let container = self.containers.get(id)?;
        let facts = (container.runtime == Runtime::Cri).then(|| {
            Box::new(Container {
                pid: None,
                ..as_told(&container.facts)
            })
        });
        let exit_code = exit_code.filter(|_| container.facts.kind == ContainerKind::Container);
        let event = RuntimeEvent {
            id: id.clone(),
            kind: container.facts.kind,
            what,
            at_ns,
            exit_code,
            facts,
        };
        Some((container.runtime, event))
    }

    fn free_inode(&self) -> u64 {
        let used: BTreeSet<u64> = self
            .procs
            .values()
            .map(|proc| proc.inode)
            .chain(self.nests.values().map(|nest| nest.inode))
            .chain(self.held.values().map(|(inode, _)| *inode))
            .collect();
        (FIRST_PNS..)
            .find(|inode| !used.contains(inode))
            .unwrap_or(FIRST_PNS)
    }

    fn free_pid(&mut self) -> u32 {
        loop {
            self.next_pid += 1;
            if self.next_pid >= PID_MAX {
                self.next_pid = 101;
            }
            if self.process(self.next_pid).is_none() {
                return self.next_pid;
            }
        }
    }
}

/// What a runtime tells of a container: a sandbox's status has no times of its run.
fn as_told(facts: &Container) -> Container {
    let mut told = facts.clone();
    if told.kind == ContainerKind::Sandbox {
        told.started_at_ns = None;
        told.finished_at_ns = None;
        told.exit_code = None;
    }
    told
}

/// What is true of each container that is there.
pub(crate) type Truth = BTreeMap<ContainerId, Fields>;

fn overlay_view(facts: &Container) -> Container {
    Container {
        name: format!("k8s-{}", facts.id.as_str().trim_start_matches('0')),
        runtime: RuntimeType::Cri,
        pod: Some(Pod {
            name: "pod".to_owned(),
            namespace: "default".to_owned(),
            uid: "u".to_owned(),
            sandbox_id: String::new(),
        }),
        restart_count: Some(1),
        ..facts.clone()
    }
}
