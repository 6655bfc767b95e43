//! Reconciler and outbox with a synthetic feed: deltas that are committed durably in groups, per second.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use quaymaster::model::message::{Message, RuntimeSource};
use quaymaster::model::{
    Container, ContainerId, ContainerKind, EventKind, RuntimeEvent, RuntimeType, SourceId, State,
};
use quaymaster::outbox::{Batch, Gap, Options, Outbox, Owner, Prepared, render};
use quaymaster::reconcile::{
    Effect, Identity, InspectOutcome, ListOutcome, Observation, Process, ProcessReading,
    Reconciler, RowKey, Settings,
};
use quaymaster::sink::{Outcome, Position, Report};
use quaymaster::wire::{Host, Refresh, Renderer};

const CONTAINERS: u64 = 20_000;
/// As many as the collector takes at once at the most.
pub(crate) const GROUP: usize = 2_048;
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;

pub(crate) fn run() -> anyhow::Result<()> {
    println!(
        "== synthetic: {CONTAINERS} containers that are created, started, stopped and deleted"
    );
    let reconciled = reconcile_only()?;
    println!(
        "reconciler alone: {:.0} deltas/s ({:.2} µs a delta)",
        reconciled.0 / reconciled.1,
        reconciled.1 * 1e6 / reconciled.0
    );
    let committed = with_outbox()?;
    println!(
        "reconciler, JSON and outbox, durable in groups of {GROUP} observations, each decided while the one before is committed: {:.0} deltas/s ({:.0} messages/s, {} commits)",
        committed.deltas / committed.seconds,
        committed.messages / committed.seconds,
        committed.commits
    );
    println!(
        "without waiting for the disk or for a core, by its CPU time: {:.0} deltas/s",
        committed.deltas / committed.cpu_seconds
    );
    println!(
        "ratio to the goal of 100,000 deltas/s: {:.2}",
        committed.deltas / committed.seconds / 100_000.0
    );
    Ok(())
}

#[derive(Default)]
struct Committed {
    deltas: f64,
    messages: f64,
    commits: usize,
    seconds: f64,
    cpu_seconds: f64,
}

fn source() -> SourceId {
    SourceId::new("docker=unix:///synthetic.sock")
}

fn id(number: u64) -> anyhow::Result<ContainerId> {
    ContainerId::parse(&format!("{number:064x}")).ok_or_else(|| anyhow::anyhow!("an id fits"))
}

/// What is observed, in groups as the collector takes them. A group is made when it is asked for, off the clock: other
/// threads do that, and what they have made is still at hand when it is taken.
struct Groups {
    next: u64,
    made: VecDeque<Observation>,
}

impl Groups {
    fn new() -> Self {
        Self {
            next: 0,
            made: opening().into(),
        }
    }

    /// The next group; an empty one at the end.
    fn next(&mut self) -> anyhow::Result<Vec<Observation>> {
        while self.made.len() < GROUP && self.next < CONTAINERS {
            self.made.extend(life(self.next, self.next)?);
            self.next += 1;
        }
        let count = self.made.len().min(GROUP);
        Ok(self.made.drain(..count).collect())
    }
}

/// Adds up time on and off the CPU, but for what is off the clock.
#[derive(Default)]
struct Clock {
    seconds: f64,
    cpu_seconds: f64,
}

impl Clock {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (began, cpu_before) = (Instant::now(), cpu_seconds());
        let done = work();
        self.seconds += began.elapsed().as_secs_f64();
        self.cpu_seconds += cpu_seconds() - cpu_before;
        done
    }
}

/// All that is seen of a container, from its creation to its deletion, in the PID namespace of a number.
pub(crate) fn life(number: u64, namespace: u64) -> anyhow::Result<Vec<Observation>> {
    let at_ns = (NOW_MS + number) * 1_000_000;
    let mut feed = Vec::new();
    let mut container = container(number, at_ns)?;
    feed.push(event(&container, EventKind::Created, at_ns, None));
    feed.push(found(&container, None));
    container.state = State::Running;
    container.started_at_ns = Some(at_ns + 10);
    container.pid = Some(1);
    feed.push(event(&container, EventKind::Started, at_ns + 20, None));
    feed.push(found(&container, Some(process(number, namespace))));
    container.state = State::Exited;
    container.finished_at_ns = Some(at_ns + 30);
    container.exit_code = Some(0);
    container.pid = None;
    feed.push(event(&container, EventKind::Died, at_ns + 40, Some(0)));
    feed.push(found(&container, None));
    feed.push(event(&container, EventKind::Deleted, at_ns + 50, None));
    Ok(feed)
}

fn container(number: u64, at_ns: u64) -> anyhow::Result<Container> {
    Ok(Container {
        id: id(number)?,
        name: format!("synthetic-{number}"),
        kind: ContainerKind::Container,
        runtime: RuntimeType::Docker,
        runtime_name: "docker".into(),
        runtime_version: "28.5.2".into(),
        state: State::Created,
        image_id: "b".repeat(64),
        image_name: "registry.local/team/service:1.21".to_owned(),
        image_digest: String::new(),
        pid: None,
        created_at_ns: at_ns,
        started_at_ns: None,
        finished_at_ns: None,
        exit_code: None,
        oom_killed: Some(false),
        restart_count: Some(0),
        pod: None,
        pid_mode: String::new(),
        privileged: Some(false),
        reason: String::new(),
        labels: (0..4)
            .map(|n| (format!("label-{n}"), format!("value-{n}")))
            .collect(),
    })
}

fn process(number: u64, namespace: u64) -> ProcessReading {
    ProcessReading::Alive(Box::new(Process {
        pid: u32::try_from(number + 2).unwrap_or(2),
        start_ticks: number + 1,
        started_at_ms: NOW_MS,
        pns_inode: 4_026_540_000 + namespace,
        pns_id: Some(number + 100),
        mnt_ns: 4_026_532_449,
        cgroup: "/docker/synthetic".into(),
        is_init: true,
        fd: None,
    }))
}

fn event(
    container: &Container,
    what: EventKind,
    at_ns: u64,
    exit_code: Option<i32>,
) -> Observation {
    Observation::Event {
        source: source(),
        event: RuntimeEvent {
            id: container.id.clone(),
            kind: container.kind,
            what,
            at_ns,
            exit_code,
            facts: None,
        },
    }
}

fn found(container: &Container, process: Option<ProcessReading>) -> Observation {
    Observation::Inspected {
        source: source(),
        id: container.id.clone(),
        outcome: InspectOutcome::Found {
            container: Box::new(container.clone()),
            process,
        },
    }
}

pub(crate) fn opening() -> Vec<Observation> {
    let runtime = RuntimeSource {
        uid: 0,
        runtime: RuntimeType::Docker,
        name: "docker".into(),
        version: "28.5.2".into(),
        endpoint: "unix:///synthetic.sock".into(),
    };
    vec![
        Observation::Began {
            last_alive_ms: 0,
            owed: BTreeSet::new(),
        },
        Observation::SourceUp {
            source: source(),
            runtime,
            streaming: true,
            is_listing: true,
        },
        Observation::ListBegan { source: source() },
        Observation::ListDone {
            source: source(),
            outcome: ListOutcome::Complete(Vec::new()),
        },
    ]
}

pub(crate) fn reconciler(restored: quaymaster::reconcile::Restored) -> Reconciler {
    let identity = Identity {
        boot_id: "boot".into(),
        host_pns_inode: 4_026_531_836,
        previous_epoch: None,
    };
    Reconciler::new(identity, Settings::default(), restored)
}

fn reconcile_only() -> anyhow::Result<(f64, f64)> {
    let mut reconciler = reconciler(quaymaster::reconcile::Restored::default());
    let (mut groups, mut clock) = (Groups::new(), Clock::default());
    let mut deltas = 0_u32;
    loop {
        let group = groups.next()?;
        if group.is_empty() {
            return Ok((f64::from(deltas), clock.seconds));
        }
        clock.time(|| {
            for observation in group {
                for effect in reconciler.handle(observation, NOW_MS) {
                    if matches!(effect, Effect::Publish(Message::Delta(_))) {
                        deltas += 1;
                    }
                }
            }
        });
    }
}

fn with_outbox() -> anyhow::Result<Committed> {
    let directory = tempfile::tempdir_in(
        std::env::var("QUAYMASTER_BENCH_DIR").unwrap_or_else(|_| "/var/tmp".to_owned()),
    )?;
    let owner = Owner {
        host_id: "synthetic".into(),
        boot_id: "boot".into(),
        new_epoch: "epoch".to_owned(),
    };
    let options = Options {
        bytes_max: 16 << 30,
    };
    let mut opened = Outbox::open(directory.path(), &owner, options)?;
    let renderer = renderer("synthetic");
    let reconciler = reconciler(std::mem::take(&mut opened.restored));
    let mut store = Store {
        reconciler,
        outbox: opened.outbox,
        renderer,
        unacked: Vec::new(),
        decided: Decided::default(),
        committed: Committed::default(),
    };
    let (mut groups, mut clock) = (Groups::new(), Clock::default());
    loop {
        let group = groups.next()?;
        let is_last = group.is_empty();
        clock.time(|| store.take(group))?;
        if is_last {
            break;
        }
    }
    store.committed.seconds = clock.seconds;
    store.committed.cpu_seconds = clock.cpu_seconds;
    Ok(store.committed)
}

/// What the collector does with large groups, without anyone to ask or to tell.
struct Store {
    reconciler: Reconciler,
    outbox: Outbox,
    renderer: Renderer,
    /// The bus has them all by the next group: what is acknowledged leaves with it.
    unacked: Vec<Report>,
    decided: Decided,
    committed: Committed,
}

/// A group that is decided and is to be committed.
#[derive(Default)]
struct Decided {
    rows: BTreeSet<RowKey>,
    messages: Vec<Message>,
}

impl Store {
    /// Commits what was decided before, and decides a group meanwhile.
    fn take(&mut self, group: Vec<Observation>) -> anyhow::Result<()> {
        let decided = std::mem::take(&mut self.decided);
        let is_first = decided.messages.is_empty();
        let outbox = &mut self.outbox;
        let messages = decided.messages.into_iter();
        let messages: Vec<_> = messages
            .map(|message| (outbox.take_row(), message))
            .collect();
        for (_, message) in &messages {
            self.committed.messages += 1.0;
            if matches!(message, Message::Delta(_)) {
                self.committed.deltas += 1.0;
            }
        }
        let batch = Batch {
            rows: decided.rows,
            messages: render(messages, &self.renderer, NOW_MS),
            reports: std::mem::take(&mut self.unacked),
        };
        // What coalescing left out never goes to the bus.
        let sent = batch.messages.iter().map(|owed| acked(owed.outgoing.row));
        self.unacked.extend(sent);
        let prepared = Prepared::new(batch, &self.reconciler)?;
        let gap = |gap: &Gap| self.renderer.render_gap(gap, NOW_MS);
        let reconciler = &mut self.reconciler;
        if is_first {
            self.decided = decide(reconciler, group);
            return Ok(());
        }
        let (committed, decided) =
            outbox.commit_while(prepared, NOW_MS, &gap, || decide(reconciler, group));
        committed?;
        self.decided = decided;
        self.committed.commits += 1;
        Ok(())
    }
}

fn decide(reconciler: &mut Reconciler, group: Vec<Observation>) -> Decided {
    let mut decided = Decided::default();
    for observation in group {
        for effect in reconciler.handle(observation, NOW_MS) {
            match effect {
                Effect::Publish(message) => decided.messages.push(message),
                Effect::SaveRow(key) => {
                    decided.rows.insert(key);
                }
                Effect::List { .. }
                | Effect::Inspect { .. }
                | Effect::ReadProcess { .. }
                | Effect::FindNested(_)
                | Effect::ReleaseNamespace(_) => {}
            }
        }
    }
    decided
}

/// The CPU time of this process.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
    let seconds = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
    seconds
}

fn acked(row: u64) -> Report {
    let position = Position {
        partition: 0,
        offset: i64::try_from(row).unwrap_or(0),
    };
    Report {
        row,
        outcome: Outcome::Acked(position),
    }
}

pub(crate) fn renderer(host_id: &str) -> Renderer {
    let host = Host {
        host_id: Arc::from(host_id),
        host_name: "synthetic".into(),
        boot_id: "boot".into(),
        epoch: "epoch".into(),
    };
    let refresh = Refresh {
        records_ms: 300_000,
        pns_ms: 3_600_000,
        status_ms: 30_000,
    };
    Renderer::new(host, refresh)
}
