//! The truth: containers with real processes, behind a fake Docker and a fake CRI server that tell of them.
//!
//! Every change is made first (the process starts or is gone), then the server's answers change, then the event
//! is sent, as the runtimes do. A fault makes unsure what is heard of a runtime until the next checkpoint has proved
//! that all is well again: only a container whose whole life was sure must have been told to the last step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quaymaster::runtime::cri::proto::{
    ContainerEventResponse, ContainerEventType, ContainerState, ContainerStatus,
    PodSandboxMetadata, PodSandboxStatus,
};
use serde_json::{Value, json};

use crate::fake_cri::{self, FakeCri};
use crate::fake_docker::{FakeContainer, FakeDocker, ZERO_TIME};
use crate::life::{Life, now_ms, now_ns};
use crate::prng::Prng;

/// How long before a fault a change must have been for it to be owed for sure: until then it is surely heard.
const CALM: Duration = Duration::from_secs(4);
/// Most containers that are there at once.
const POPULATION_MAX: usize = 14;

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Docker,
    Cri,
}

/// What a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Sandbox,
    /// In which sandbox.
    Cri(String),
}

impl Kind {
    pub(crate) fn side(&self) -> Side {
        match self {
            Self::Docker => Side::Docker,
            Self::Sandbox | Self::Cri(_) => Side::Cri,
        }
    }
}

/// A change that is told as a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    /// With the pid; 0 where it was gone before anyone could look.
    Start(u32),
    Stop,
    Delete,
}

/// One container as it truly is.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// `created`, `running`, `paused` or `exited`.
    pub(crate) state: &'static str,
    pub(crate) life: Option<Life>,
    pub(crate) exit_code: Option<i32>,
    /// All that has happened to it.
    pub(crate) story: Vec<Step>,
    started_ns: u64,
    finished_ns: u64,
    changed: Instant,
    attached: bool,
    /// A fault that is past may have hidden some of its life.
    is_hidden: bool,
}

/// Who was in which namespace, and when.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) inode: u64,
    pub(crate) container: String,
    pub(crate) pid: u32,
    pub(crate) from_ms: u64,
    /// `None` while it lives.
    pub(crate) to_ms: Option<u64>,
    /// The host's clock was stepped while it lived: its times are of two clocks.
    pub(crate) is_of_two_clocks: bool,
}

/// All of it.
pub(crate) struct World {
    pub(crate) rng: Prng,
    pub(crate) docker: FakeDocker,
    pub(crate) cri: FakeCri,
    folder: PathBuf,
    /// What is there.
    pub(crate) items: BTreeMap<String, Item>,
    /// What has been deleted since the last checkpoint.
    pub(crate) gone: Vec<Item>,
    pub(crate) owned: Vec<Owned>,
    /// Every id there ever was.
    pub(crate) ids: BTreeSet<String>,
    /// The last checkpoint.
    settled: Instant,
    /// The first fault of each runtime since the last checkpoint.
    disturbed: BTreeMap<Side, Instant>,
    /// Events are made but not sent.
    pub(crate) loses_events: bool,
    /// How often an event is sent twice.
    pub(crate) double_percent: u64,
    /// How often an event is overtaken by the next one.
    pub(crate) late_percent: u64,
    /// One that is late, and whether another step has been done since.
    late: Option<(Late, bool)>,
    pub(crate) events: u64,
    pub(crate) overtaken: u64,
    pub(crate) changes: u64,
}

/// An event that comes after a later one.
enum Late {
    Docker {
        id: String,
        action: String,
        at_ns: u64,
        attributes: Value,
    },
    Cri(Box<ContainerEventResponse>),
}

impl World {
    pub(crate) fn start(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            rng: Prng::new(seed),
            docker: FakeDocker::start(folder)?,
            cri: FakeCri::start(folder)?,
            folder: folder.to_owned(),
            items: BTreeMap::new(),
            gone: Vec::new(),
            owned: Vec::new(),
            ids: BTreeSet::new(),
            settled: Instant::now(),
            disturbed: BTreeMap::new(),
            loses_events: false,
            double_percent: 5,
            late_percent: 5,
            late: None,
            events: 0,
            overtaken: 0,
            changes: 0,
        })
    }

    /// From now on, until the next checkpoint, nothing of this runtime is owed for sure. To be called before the fault.
    pub(crate) fn disturb(&mut self, side: Side) {
        self.disturbed.entry(side).or_insert_with(Instant::now);
    }

    /// The same of all runtimes.
    pub(crate) fn disturb_all(&mut self) {
        self.disturb(Side::Docker);
        self.disturb(Side::Cri);
    }

    /// What the collector had decided is gone. What has changed since the last checkpoint may have stood only there.
    pub(crate) fn lose_state(&mut self) {
        let items = self.items.values_mut().chain(&mut self.gone);
        for item in items.filter(|item| item.changed > self.settled) {
            item.is_hidden = true;
        }
    }

    /// The host's clock is stepped.
    pub(crate) fn step_clock(&mut self, offset_s: i64) {
        self.disturb_all();
        let living = self.owned.iter_mut().filter(|owned| owned.to_ms.is_none());
        living.for_each(|owned| owned.is_of_two_clocks = true);
        crate::life::step_clock(offset_s);
    }

    /// Whether all of a container's story was to be seen.
    pub(crate) fn is_owed_whole(&self, item: &Item) -> bool {
        let disturbed = self.disturbed.get(&item.kind.side());
        item.attached
            && !item.is_hidden
            && disturbed.is_none_or(|fault| *fault > item.changed + CALM)
    }

    /// A checkpoint: the collector has subscribed and listed, and all is told. Faults are over; what they may have hidden
    /// of those that live on stays hidden.
    pub(crate) fn settled(&mut self) {
        self.gone.clear();
        self.settled = Instant::now();
        self.cri.state().calls.clear();
        for item in self.items.values_mut() {
            item.is_hidden |= self.disturbed.contains_key(&item.kind.side());
        }
        self.disturbed.clear();
    }

    /// Does one thing, by chance.
    pub(crate) fn step(&mut self) -> anyhow::Result<()> {
        self.changes += 1;
        match &mut self.late {
            Some((_, true)) => self.send_late(),
            Some((_, has_waited)) => *has_waited = true,
            None => {}
        }
        let has_room = self.items.len() < POPULATION_MAX;
        match self.rng.below(12) {
            0 | 1 if has_room => self.docker_create().map(drop),
            2 if has_room => self.sandbox_create(),
            3 if has_room => self.blink(),
            _ => {
                let ids: Vec<String> = self.items.keys().cloned().collect();
                match self.rng.pick(&ids) {
                    Some(id) => self.act(&id),
                    None => self.docker_create().map(drop),
                }
            }
        }
    }

    /// Whatever can happen to a container in its state.
    fn act(&mut self, id: &str) -> anyhow::Result<()> {
        let Some(item) = self.items.get(id) else {
            return Ok(());
        };
        let (kind, state, chance) = (item.kind.clone(), item.state, self.rng.below(100));
        match (kind, state) {
            (Kind::Docker, "created") if chance < 80 => self.begin(id),
            (Kind::Docker, "running") => match chance {
                0..35 => self.end(id),
                35..60 => {
                    self.end(id)?;
                    self.begin(id)
                }
                60..75 => {
                    self.set_state(id, "paused", "pause");
                    Ok(())
                }
                75..88 => {
                    self.rename(id);
                    Ok(())
                }
                _ => {
                    self.end(id)?;
                    self.remove(id);
                    Ok(())
                }
            },
            (Kind::Docker, "paused") if chance < 80 => {
                self.set_state(id, "running", "unpause");
                Ok(())
            }
            (Kind::Docker, "paused") => self.end(id),
            (Kind::Docker, _) if chance < 40 => self.begin(id),
            (Kind::Cri(_), "created") if chance < 85 => self.begin(id),
            (Kind::Cri(_), "running") => self.end(id),
            (Kind::Sandbox, "running") if chance < 65 => self.cri_create(id),
            (Kind::Sandbox, _) => self.end_pod(id),
            (Kind::Docker | Kind::Cri(_), _) => {
                self.remove(id);
                Ok(())
            }
        }
    }

    /// `docker run --rm true`: gone before anyone can look.
    fn blink(&mut self) -> anyhow::Result<()> {
        let id = self.docker_create()?;
        self.begin(&id)?;
        self.end(&id)?;
        self.remove(&id);
        Ok(())
    }

    /// A storm of containers that never were there for long: four events each, of which none gives a process.
    pub(crate) fn burst(&mut self, containers: usize) {
        self.send_late();
        let mut lines = String::new();
        let start_ns = now_ns();
        for n in 0..containers {
            let (id, name) = self.fresh_id("burst");
            self.ids.insert(id.clone());
            let mut story = Vec::new();
            let steps = [
                ("create", Step::Create),
                ("start", Step::Start(0)),
                ("die", Step::Stop),
                ("destroy", Step::Delete),
            ];
            for (offset, (action, step)) in steps.into_iter().enumerate() {
                let at_ns = start_ns + (n * 4 + offset) as u64 * 1_000;
                let line = docker_event(&id, action, at_ns, &attributes(&name, 0));
                lines.push_str(&line.to_string());
                lines.push('\n');
                story.push(step);
            }
            self.events += 4;
            if lines.len() > 64 * 1024 {
                self.docker.push(lines.trim_end());
                lines.clear();
            }
            let now = Instant::now();
            self.gone.push(Item {
                id,
                name,
                kind: Kind::Docker,
                state: "exited",
                life: None,
                exit_code: None,
                story,
                started_ns: 0,
                finished_ns: 0,
                changed: now,
                attached: self.docker.is_followed(),
                is_hidden: false,
            });
        }
        self.docker.push(lines.trim_end());
    }

    pub(crate) fn docker_create(&mut self) -> anyhow::Result<String> {
        let (id, name) = self.fresh_id("web");
        let attached = self.docker.is_followed();
        self.insert(&id, &name, Kind::Docker, attached);
        self.show(&id);
        self.emit_docker(&id, "create");
        Ok(id)
    }

    fn sandbox_create(&mut self) -> anyhow::Result<()> {
        let (id, name) = self.fresh_id("pod");
        let attached = self.cri.is_followed();
        self.insert(&id, &name, Kind::Sandbox, attached);
        self.enter(&id)?;
        self.show(&id);
        self.emit_cri(&id, ContainerEventType::ContainerCreatedEvent);
        self.emit_cri(&id, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    fn cri_create(&mut self, sandbox: &str) -> anyhow::Result<()> {
        let (id, name) = self.fresh_id("app");
        let attached = self.cri.is_followed();
        self.insert(&id, &name, Kind::Cri(sandbox.to_owned()), attached);
        self.show(&id);
        self.emit_cri(&id, ContainerEventType::ContainerCreatedEvent);
        Ok(())
    }

    /// Its process starts.
    pub(crate) fn begin(&mut self, id: &str) -> anyhow::Result<()> {
        self.enter(id)?;
        self.show(id);
        match self.side(id) {
            Some(Side::Docker) => self.emit_docker(id, "start"),
            Some(Side::Cri) => self.emit_cri(id, ContainerEventType::ContainerStartedEvent),
            None => {}
        }
        Ok(())
    }

    /// Its process is killed, and its runtime tells of it.
    pub(crate) fn end(&mut self, id: &str) -> anyhow::Result<()> {
        if self.vanish(id) {
            self.notice_end(id);
        }
        Ok(())
    }

    /// Its process is killed, and its runtime has not noticed. `false` where none runs.
    fn vanish(&mut self, id: &str) -> bool {
        let Some((life, item)) = self
            .items
            .get_mut(id)
            .and_then(|item| Some((item.life.take()?, item)))
        else {
            return false;
        };
        let pid = life.pid;
        let to_ms = life.end();
        item.finished_ns = now_ns();
        item.changed = Instant::now();
        item.story.push(Step::Stop);
        let mut owned = self.owned.iter_mut().rev();
        if let Some(owned) = owned.find(|owned| owned.container == id && owned.pid == pid) {
            owned.to_ms = Some(to_ms);
        }
        true
    }

    /// The runtime tells of an end.
    fn notice_end(&mut self, id: &str) {
        let exit_code = self.rng.pick(&[0, 1, 137]);
        if let Some(item) = self.items.get_mut(id) {
            item.state = "exited";
            item.exit_code = exit_code;
        }
        self.show(id);
        match self.side(id) {
            Some(Side::Docker) => self.emit_docker(id, "die"),
            Some(Side::Cri) => self.emit_cri(id, ContainerEventType::ContainerStoppedEvent),
            None => {}
        }
    }

    /// A container's process is gone before anyone has looked, its runtime has not noticed, and its pid is already
    /// another container's. The two, or `None` where the pid was not to be had.
    pub(crate) fn begin_reuse(&mut self) -> anyhow::Result<Option<(String, String)>> {
        let (first, other) = (self.docker_create()?, self.docker_create()?);
        self.send_late();
        self.enter(&first)?;
        self.show(&first);
        let pid = self
            .items
            .get(&first)
            .and_then(|item| Some(item.life.as_ref()?.pid));
        self.vanish(&first);
        let reused = match pid {
            Some(pid) => Life::begin_as(pid, &other)?,
            None => None,
        };
        self.emit_docker(&first, "start");
        match reused {
            Some(life) => {
                self.lives(&other, life);
                Ok(Some((first, other)))
            }
            None => {
                self.notice_end(&first);
                Ok(None)
            }
        }
    }

    /// The runtime notices the end of the first one, and tells of the other.
    pub(crate) fn end_reuse(&mut self, first: &str, other: &str) {
        self.notice_end(first);
        self.show(other);
        self.emit_docker(other, "start");
    }

    fn end_pod(&mut self, sandbox: &str) -> anyhow::Result<()> {
        let inside: Vec<String> = self
            .items
            .values()
            .filter(|item| item.kind == Kind::Cri(sandbox.to_owned()))
            .map(|item| item.id.clone())
            .collect();
        for id in inside {
            self.end(&id)?;
            self.remove(&id);
        }
        self.end(sandbox)?;
        self.remove(sandbox);
        Ok(())
    }

    fn remove(&mut self, id: &str) {
        let Some(mut item) = self.items.remove(id) else {
            return;
        };
        item.story.push(Step::Delete);
        item.changed = Instant::now();
        let event = match item.kind.side() {
            Side::Docker => {
                self.docker.remove(id);
                None
            }
            Side::Cri => {
                let event = cri_event(&item, ContainerEventType::ContainerDeletedEvent);
                self.cri.remove(id);
                Some(event)
            }
        };
        let name = item.name.clone();
        self.gone.push(item);
        match event {
            Some(event) => self.push_cri(event),
            None => self.push_docker(id, "destroy", &attributes(&name, 0)),
        }
    }

    fn rename(&mut self, id: &str) {
        let (_, name) = self.fresh_id("new");
        if let Some(item) = self.items.get_mut(id) {
            item.name = name;
            item.changed = Instant::now();
        }
        self.show(id);
        self.emit_docker(id, "rename");
    }

    fn set_state(&mut self, id: &str, state: &'static str, action: &str) {
        if let Some(item) = self.items.get_mut(id) {
            item.state = state;
            item.changed = Instant::now();
        }
        self.show(id);
        self.emit_docker(id, action);
    }

    fn fresh_id(&mut self, word: &str) -> (String, String) {
        let number = self.ids.len();
        let id = format!("{:016x}{:048x}", self.rng.next(), number);
        (id, format!("{word}-{number}"))
    }

    fn insert(&mut self, id: &str, name: &str, kind: Kind, attached: bool) {
        self.ids.insert(id.to_owned());
        let now = Instant::now();
        let item = Item {
            id: id.to_owned(),
            name: name.to_owned(),
            kind,
            state: "created",
            life: None,
            exit_code: None,
            story: vec![Step::Create],
            started_ns: 0,
            finished_ns: 0,
            changed: now,
            attached,
            is_hidden: false,
        };
        self.items.insert(id.to_owned(), item);
    }

    fn enter(&mut self, id: &str) -> anyhow::Result<()> {
        let life = Life::begin(id)?;
        self.lives(id, life);
        Ok(())
    }

    /// A container runs from now on.
    fn lives(&mut self, id: &str, life: Life) {
        if let Some(item) = self.items.get_mut(id) {
            self.owned.push(Owned {
                inode: life.inode,
                container: id.to_owned(),
                pid: life.pid,
                from_ms: life.from_ms,
                to_ms: None,
                is_of_two_clocks: false,
            });
            item.story.push(Step::Start(life.pid));
            item.life = Some(life);
            item.state = "running";
            item.exit_code = None;
            item.started_ns = now_ns();
            item.changed = Instant::now();
        }
    }

    fn side(&self, id: &str) -> Option<Side> {
        self.items.get(id).map(|item| item.kind.side())
    }

    /// The server's answers are as the container is. It also heals what a fault made of them.
    fn show(&self, id: &str) {
        let Some(item) = self.items.get(id) else {
            return;
        };
        let pid = item.life.as_ref().map_or(0, |life| life.pid);
        match &item.kind {
            Kind::Docker => self.docker.put(&docker_container(item, pid)),
            Kind::Sandbox => self.cri.put_sandbox(id, &item.name, "shop", pid),
            Kind::Cri(sandbox) => self.cri.put_container(cri_status(item), sandbox, pid),
        }
    }

    /// All answers are right again.
    pub(crate) fn heal(&mut self) {
        self.loses_events = false;
        self.send_late();
        {
            let mut said = self.cri.state();
            said.list_error = None;
            said.inspect_error = None;
            said.delay = Duration::ZERO;
        }
        // A list of Docker's is made anew by each change.
        self.docker.remove("none");
        let ids: Vec<String> = self.items.keys().cloned().collect();
        for id in ids {
            self.show(&id);
        }
    }

    /// The runtime is away for a moment: its socket is another one afterwards.
    pub(crate) fn restart(&mut self, side: Side) -> anyhow::Result<()> {
        self.disturb(side);
        match side {
            Side::Docker => self.docker = FakeDocker::start(&self.folder)?,
            Side::Cri => self.cri = FakeCri::start(&self.folder)?,
        }
        self.heal();
        Ok(())
    }

    fn emit_docker(&mut self, id: &str, action: &str) {
        let Some(item) = self.items.get(id) else {
            return;
        };
        let attributes = attributes(&item.name, item.exit_code.unwrap_or(0));
        self.push_docker(id, action, &attributes);
    }

    fn push_docker(&mut self, id: &str, action: &str, attributes: &Value) {
        self.events += 1;
        if self.loses_events {
            self.disturb(Side::Docker);
            return;
        }
        let at_ns = now_ns();
        // dockerd tells of one container in order.
        let is_of_late =
            matches!(&self.late, Some((Late::Docker { id: late, .. }, _)) if late == id);
        if is_of_late {
            self.send_late();
        }
        if self.late.is_none() && self.rng.percent(self.late_percent) {
            let (id, action, attributes) = (id.to_owned(), action.to_owned(), attributes.clone());
            self.late = Some((
                Late::Docker {
                    id,
                    action,
                    at_ns,
                    attributes,
                },
                false,
            ));
            return;
        }
        self.docker.push_event(id, action, at_ns, attributes);
        if self.rng.percent(self.double_percent) {
            self.docker.push_event(id, action, at_ns, attributes);
        }
    }

    /// What is late comes now.
    fn send_late(&mut self) {
        let Some((late, _)) = self.late.take() else {
            return;
        };
        self.overtaken += 1;
        match late {
            Late::Docker {
                id,
                action,
                at_ns,
                attributes,
            } => drop(self.docker.push_event(&id, &action, at_ns, &attributes)),
            Late::Cri(event) => drop(self.cri.push(*event)),
        }
    }

    fn emit_cri(&mut self, id: &str, kind: ContainerEventType) {
        if let Some(item) = self.items.get(id) {
            let event = cri_event(item, kind);
            self.push_cri(event);
        }
    }

    fn push_cri(&mut self, event: ContainerEventResponse) {
        self.events += 1;
        if self.loses_events {
            self.disturb(Side::Cri);
            return;
        }
        if self.late.is_none() && self.rng.percent(self.late_percent) {
            self.late = Some((Late::Cri(Box::new(event)), false));
            return;
        }
        if self.rng.percent(self.double_percent) {
            self.cri.push(event.clone());
        }
        self.cri.push(event);
    }
}

impl Item {
    /// The record's `state`.
    pub(crate) fn word(&self) -> &'static str {
        self.state
    }

    pub(crate) fn last_change_ms_ago(&self) -> u128 {
        self.changed.elapsed().as_millis()
    }
}

fn attributes(name: &str, exit_code: i32) -> Value {
    json!({"name": name, "image": "nginx:1.21", "exitCode": exit_code.to_string()})
}

fn docker_event(id: &str, action: &str, at_ns: u64, attributes: &Value) -> Value {
    json!({
        "status": action, "id": id, "Type": "container", "Action": action,
        "Actor": {"ID": id, "Attributes": attributes},
        "scope": "local", "time": at_ns / 1_000_000_000, "timeNano": at_ns,
    })
}

fn docker_container(item: &Item, pid: u32) -> FakeContainer {
    FakeContainer {
        state: item.state.to_owned(),
        started_at: rfc3339(item.started_ns),
        finished_at: rfc3339(item.finished_ns),
        exit_code: i64::from(item.exit_code.unwrap_or(0)),
        ..FakeContainer::running(&item.id, &item.name, pid)
    }
}

fn cri_status(item: &Item) -> ContainerStatus {
    let signed = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    let state = match item.state {
        "created" => ContainerState::ContainerCreated,
        "running" => ContainerState::ContainerRunning,
        _ => ContainerState::ContainerExited,
    };
    ContainerStatus {
        state: state.into(),
        started_at: signed(item.started_ns),
        finished_at: signed(item.finished_ns),
        exit_code: item.exit_code.unwrap_or(0),
        ..fake_cri::running(&item.id, &item.name)
    }
}

/// With what containerd 2 puts into it.
fn cri_event(item: &Item, kind: ContainerEventType) -> ContainerEventResponse {
    let signed = i64::try_from(now_ns()).unwrap_or(i64::MAX);
    let mut event = fake_cri::event(&item.id, kind, signed);
    match &item.kind {
        Kind::Docker => {}
        Kind::Sandbox => {
            event.pod_sandbox_status = Some(PodSandboxStatus {
                id: item.id.as_str().into(),
                metadata: Some(PodSandboxMetadata {
                    name: item.name.as_str().into(),
                    uid: format!("uid-{}", item.name).into(),
                    namespace: "shop".into(),
                    attempt: 0,
                }),
                state: i32::from(item.life.is_none()),
                created_at: 10,
                ..PodSandboxStatus::default()
            });
        }
        Kind::Cri(sandbox) => {
            event.pod_sandbox_status = Some(PodSandboxStatus {
                id: sandbox.as_str().into(),
                created_at: 10,
                ..PodSandboxStatus::default()
            });
            event.containers_statuses = vec![cri_status(item)];
        }
    }
    event
}

/// As Go writes it; 0 is its zero time.
fn rfc3339(unix_ns: u64) -> String {
    if unix_ns == 0 {
        return ZERO_TIME.to_owned();
    }
    let seconds = unix_ns / 1_000_000_000;
    let of_day = seconds % 86_400;
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", for days that are not negative.
    let shifted = seconds / 86_400 + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
        unix_ns % 1_000_000_000
    )
}

/// Whether a mapping's time is one in which its number was this owner's, or nobody's: an end that was found late,
/// when a runtime came back, is no other's time while the number is kept.
pub(crate) fn owns(
    owned: &Owned,
    all: &[Owned],
    valid_from_ms: u64,
    valid_to_ms: Option<u64>,
) -> bool {
    const START_SLACK_MS: u64 = 500;
    const END_SLACK_MS: u64 = 2_000;
    let to_ms = owned.to_ms.unwrap_or_else(now_ms);
    let is_next_before = |at_ms: u64| {
        let mut others = all.iter().filter(|other| other.inode == owned.inode);
        others.any(|other| other.from_ms >= to_ms && other.from_ms < at_ms)
    };
    let has_end = |at_ms: u64| at_ms <= to_ms + END_SLACK_MS || !is_next_before(at_ms);
    if owned.is_of_two_clocks {
        return true;
    }
    valid_from_ms + START_SLACK_MS >= owned.from_ms
        && valid_from_ms <= to_ms + START_SLACK_MS
        && valid_to_ms.is_none_or(has_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if all of it had been so long ago.
    fn let_pass(world: &mut World, time: Duration) {
        let faults = world.disturbed.values_mut();
        let changes = world.items.values_mut().map(|item| &mut item.changed);
        faults.chain(changes).for_each(|at| *at -= time);
    }

    fn create(world: &mut World) -> anyhow::Result<String> {
        let id = world.docker_create()?;
        if let Some(item) = world.items.get_mut(&id) {
            item.attached = true;
        }
        Ok(id)
    }

    #[tokio::test]
    async fn what_a_fault_may_have_hidden_is_owed_at_no_later_checkpoint() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut world = World::start(folder.path(), 1)?;
        world.late_percent = 0;
        let older = create(&mut world)?;
        let is_owed = |world: &World, id: &String| world.is_owed_whole(&world.items[id]);
        assert!(is_owed(&world, &older));
        let_pass(&mut world, CALM * 2);

        world.disturb(Side::Docker);
        let within = create(&mut world)?;
        assert!(is_owed(&world, &older), "it was over long before");
        assert!(!is_owed(&world, &within));
        // A reconnect may take so long.
        let_pass(&mut world, CALM * 10);
        let late = create(&mut world)?;
        assert!(!is_owed(&world, &late), "no checkpoint was yet");
        world.settled();

        let_pass(&mut world, CALM * 10);
        world.settled();
        let after = create(&mut world)?;
        world.rename(&older);
        for id in [&older, &within, &late] {
            assert!(!is_owed(&world, id));
        }
        assert!(is_owed(&world, &after));
        Ok(())
    }
}
