//! A collector whose commits fail, on a real file, with a service manager that keeps fds.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::model::message::RuntimeSource;
use crate::model::{Container, EventKind, ListRow, RuntimeEvent, RuntimeType, State};
use crate::notify::Notifier;
use crate::outbox::{Options, Owner};
use crate::reconcile::{InspectOutcome, ListOutcome, Process, ProcessReading};
use crate::sink::Position;
use crate::wire::{Host, Refresh};

const BOOT: &str = "boot";

/// A collector without its thread, and all that is around it.
struct Scene {
    collector: Collector,
    outbox: Outbox,
    processes: Arc<ProcessTable>,
    manager: UnixDatagram,
    source: SourceId,
    folder: TempDir,
}

impl Scene {
    /// With one runtime, whose list is empty. Mappings linger for `linger_ms`.
    fn new(linger_ms: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket).expect("a socket can be made");
        manager.set_nonblocking(true).expect("it does not wait");
        let notifier = Arc::new(Notifier::new(Some(socket.as_os_str()), None));
        let owner = Owner {
            host_id: "host".into(),
            boot_id: BOOT.into(),
            new_epoch: "epoch".to_owned(),
        };
        let opened = Outbox::open(&folder.path().join("state"), &owner, Options::default());
        let opened = opened.expect("the outbox opens");
        let mut restored = opened.restored;
        let processes = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        let processes = Arc::new(processes);
        let fd_store = FdStore::take_back(notifier, Vec::new(), &mut restored, BOOT, &processes);
        let host = Host {
            host_id: "host".into(),
            host_name: "name".into(),
            boot_id: BOOT.into(),
            epoch: "epoch".into(),
        };
        let refresh = Refresh {
            records_ms: 1,
            pns_ms: 1,
            status_ms: 1,
        };
        let (collector, outbox) = Collector::new(Parts {
            outbox: opened.outbox,
            restored,
            owed: opened.owed,
            last_alive_ms: opened.last_alive_ms,
            identity: Identity {
                boot_id: BOOT.into(),
                host_pns_inode: 1,
                previous_epoch: None,
            },
            settings: Settings {
                linger_ms,
                ..Settings::default()
            },
            renderer: Renderer::new(host, refresh),
            processes: Arc::clone(&processes),
            first_look: None,
            fd_store,
            committed: Arc::default(),
            status: mpsc::channel(1).0,
            snapshot: watch::channel(Snapshot::default()).0,
            nested: mpsc::channel(1).0,
        });
        let mut scene = Self {
            collector,
            outbox,
            processes,
            manager,
            source: SourceId::new("docker=unix:///docker.sock"),
            folder,
        };
        scene.come_up();
        scene.list(&[]);
        scene.commit();
        scene
    }

    fn come_up(&mut self) {
        self.tell(Observation::SourceUp {
            source: self.source.clone(),
            runtime: RuntimeSource {
                runtime: RuntimeType::Docker,
                name: "docker".into(),
                version: "1".into(),
                endpoint: "unix:///docker.sock".into(),
                uid: 0,
            },
            streaming: true,
            is_listing: true,
        });
    }

    fn go_down(&mut self) {
        let source = self.source.clone();
        self.tell(Observation::SourceDown { source });
    }

    fn list_failed(&mut self) {
        let source = self.source.clone();
        self.tell(Observation::ListDone {
            source,
            outcome: ListOutcome::Failed,
        });
    }

    fn tell(&mut self, observation: Observation) {
        self.collector.take(Input::Observed(observation));
    }

    fn list(&mut self, running: &[&str]) {
        let source = self.source.clone();
        self.tell(Observation::ListBegan {
            source: source.clone(),
        });
        let rows = running.iter().map(|name| ListRow {
            id: id(name),
            kind: ContainerKind::Container,
            state: State::Running,
            fingerprint: 1,
        });
        self.tell(Observation::ListDone {
            source,
            outcome: ListOutcome::Complete(rows.collect()),
        });
    }

    /// A container starts, with a namespace of this number.
    fn start(&mut self, name: &str, pns_inode: u64) -> FdToken {
        let fd = std::fs::File::open("/dev/null").expect("it is there");
        let fd = self.processes.fds().hold(OwnedFd::from(fd));
        self.event(name, EventKind::Started);
        // One that lives, as the collector sees when it looks for it.
        let pid = std::process::id();
        let start_ticks = self.processes.start_ticks(pid);
        let process = Process {
            pid,
            start_ticks: start_ticks.expect("this process lives"),
            started_at_ms: now_ms(),
            pns_inode,
            pns_id: None,
            mnt_ns: 1,
            cgroup: name.into(),
            is_init: true,
            fd: Some(fd),
        };
        let process = ProcessReading::Alive(Box::new(process));
        self.inspected(container(name, State::Running), Some(process));
        fd
    }

    fn stop(&mut self, name: &str) {
        self.event(name, EventKind::Died);
        self.inspected(container(name, State::Exited), None);
    }

    fn event(&mut self, name: &str, what: EventKind) {
        let event = RuntimeEvent {
            id: id(name),
            kind: ContainerKind::Container,
            what,
            at_ns: now_ms() * 1_000_000,
            exit_code: None,
            facts: None,
        };
        let source = self.source.clone();
        self.tell(Observation::Event { source, event });
    }

    fn inspected(&mut self, container: Container, process: Option<ProcessReading>) {
        self.tell(Observation::Inspected {
            source: self.source.clone(),
            id: container.id.clone(),
            outcome: InspectOutcome::Found {
                container: Box::new(container),
                process,
            },
        });
    }

    fn commit(&mut self) {
        self.collector.commit(&mut self.outbox);
    }

    /// The bus has all that is owed, and the collector what follows from that.
    fn ack_all(&mut self) {
        let owed = self.outbox.reader();
        let owed = owed.read(0, 1_000, usize::MAX, &"host".into(), &"source".into());
        let reports = owed.expect("it can be read").into_iter().map(|owed| {
            let position = Position {
                partition: 0,
                offset: 0,
            };
            Report {
                row: owed.row,
                outcome: Outcome::Acked(position),
            }
        });
        let reports = reports.collect();
        self.collector.take(Input::Reported(reports));
        self.commit();
    }

    /// The next commit fails, and the collector goes back.
    fn fail(&mut self) {
        let before = self.collector.failed_commits;
        self.outbox.lose_file();
        self.commit();
        assert_eq!(self.collector.failed_commits, before + 1);
    }

    fn row(&self, pns_inode: u64) -> Option<(Phase, Option<FdToken>)> {
        match self.collector.reconciler.row(&RowKey::Namespace(pns_inode)) {
            Some(Row::Namespace(row)) => Some((row.phase(), row.fd())),
            Some(Row::Container(_) | Row::Source(_)) | None => None,
        }
    }

    fn is_open(&self, fd: FdToken) -> bool {
        self.processes.fds().with(fd, |_| ()).is_some()
    }

    /// What the service manager was told since it was asked last.
    fn told(&self) -> Vec<String> {
        let mut told = Vec::new();
        let mut text = [0; 256];
        while let Ok(length) = self.manager.recv(&mut text) {
            told.push(String::from_utf8_lossy(&text[..length]).replace('\n', " "));
        }
        told
    }
}

fn id(name: &str) -> ContainerId {
    ContainerId::parse(name).expect("a name of letters is an id")
}

fn container(name: &str, state: State) -> Container {
    let now_ns = now_ms() * 1_000_000;
    Container {
        name: name.to_owned(),
        runtime_name: "docker".into(),
        runtime_version: "1".into(),
        state,
        pid: state.is_live().then(std::process::id),
        created_at_ns: 1,
        started_at_ns: Some(now_ns),
        finished_at_ns: (!state.is_live()).then_some(now_ns),
        exit_code: (!state.is_live()).then_some(0),
        ..Container::bare(id(name), ContainerKind::Container, RuntimeType::Docker)
    }
}

#[test]
fn a_namespace_that_lingers_stays_held_over_a_commit_that_fails() {
    let mut scene = Scene::new(60_000);
    let ended = scene.start("a", 11);
    let living = scene.start("b", 12);
    scene.commit();
    scene.stop("a");
    scene.commit();
    scene.ack_all();
    scene.commit();
    assert!(matches!(scene.row(11), Some((Phase::Lingering(_), Some(fd))) if fd == ended));
    assert_eq!(
        scene.told(),
        ["FDSTORE=1 FDNAME=pns-11-1", "FDSTORE=1 FDNAME=pns-12-2"]
    );

    let unsaved = scene.start("c", 13);
    scene.fail();

    assert!(matches!(scene.row(11), Some((Phase::Lingering(_), Some(fd))) if fd == ended));
    assert_eq!(scene.row(12), Some((Phase::Live, Some(living))));
    assert_eq!(scene.row(13), None, "that was not committed");
    assert!(scene.is_open(ended) && scene.is_open(living));
    assert!(!scene.is_open(unsaved), "no mapping has it");
    assert_eq!(scene.told(), [""; 0], "the manager keeps what it has");
}

#[test]
fn an_fd_that_a_failed_commit_would_have_let_go_is_let_go_by_the_one_that_succeeds() {
    let mut scene = Scene::new(0);
    let ended = scene.start("a", 11);
    scene.commit();
    scene.stop("a");
    scene.commit();
    scene.ack_all();
    scene.tell(Observation::Tick);
    scene.commit();
    assert_eq!(scene.row(11), Some((Phase::Buried, Some(ended))));
    // The tombstone's acknowledgement is committed, and what follows from it is not.
    scene.ack_all();
    assert_eq!(scene.row(11), None);
    scene.told();
    scene.fail();
    assert!(scene.is_open(ended), "its row is on disk");

    scene.commit();
    scene.commit();
    assert_eq!(scene.row(11), None);
    assert!(!scene.is_open(ended));
    assert_eq!(scene.told(), ["FDSTOREREMOVE=1 FDNAME=pns-11-1"]);
    assert_eq!(scene.processes.fds().count(), 0);
}

#[test]
fn nothing_counts_as_committed_while_the_state_cannot_be_opened() {
    let mut scene = Scene::new(60_000);
    let living = scene.start("a", 11);
    scene.commit();
    let state = scene.folder.path().join("state");
    let away = scene.folder.path().join("away");
    std::fs::rename(&state, &away).expect("it can be moved");
    scene.stop("a");
    scene.fail();
    assert!(scene.collector.has_no_state);

    // Nothing came since; the next round has nothing to commit, and must not take that for success.
    scene.commit();
    assert!(scene.collector.has_no_state);
    assert_eq!(scene.collector.failed_commits, 2);
    assert!(scene.is_open(living));

    std::fs::rename(&away, &state).expect("it can be moved");
    scene.commit();
    assert!(!scene.collector.has_no_state);
    assert_eq!(scene.row(11), Some((Phase::Live, Some(living))));
    scene.commit();
    assert_eq!(scene.collector.failed_commits, 3);
}

#[test]
fn a_resync_that_is_cut_off_is_told_as_aborted_and_the_next_one_is_not() {
    type Cut = fn(&mut Scene);
    let cuts: [(Cut, &str); 6] = [
        (|scene| scene.list(&[]), "end"),
        (Scene::go_down, "aborted"),
        (|scene| scene.list_failed(), "aborted"),
        (
            |scene| {
                // That is to be committed.
                scene.come_up();
                scene.fail();
            },
            "begin",
        ),
        (|scene| scene.collector.take(Input::Stopping), "aborted"),
        (
            |scene| {
                scene.list(&[]);
                scene.go_down();
            },
            "end",
        ),
    ];
    for (number, (cut, expected)) in cuts.into_iter().enumerate() {
        let mut scene = Scene::new(60_000);
        scene.tell(Observation::ResyncDue);
        scene.commit();
        assert_eq!(scene.collector.resync.state, "begin", "{number}");
        assert_eq!(scene.collector.resync.finished_ms, 0, "{number}");

        cut(&mut scene);
        scene.commit();
        assert_eq!(scene.collector.resync.state, expected, "{number}");

        // A failed commit has asked for a list, and what was compared before is not known any more.
        if expected == "begin" {
            scene.list(&[]);
            scene.commit();
            assert_eq!(scene.collector.resync.state, "aborted", "{number}");
        }
        assert!(scene.collector.resync.finished_ms > 0, "{number}");

        scene.come_up();
        scene.tell(Observation::ResyncDue);
        scene.list(&[]);
        scene.list(&[]);
        scene.commit();
        assert_eq!(scene.collector.resync.state, "end", "{number}");
    }
}

#[test]
fn a_group_grows_while_more_waits_than_it_takes_and_is_small_again_after() {
    let mut scene = Scene::new(0);
    let count = GROUP.0 + 2 * GROUP.0 + 1;
    let (sender, mut inputs) = mpsc::channel(count);
    for _ in 0..count {
        let tick = Input::Observed(Observation::Tick);
        sender.try_send(tick).expect("there is room");
    }
    for taken in [GROUP.0, 2 * GROUP.0, 1, 0] {
        assert_eq!(scene.collector.take_waiting(&mut inputs), taken);
    }
    assert_eq!(scene.collector.group, GROUP.0);
    scene.collector.group = GROUP.1;
    for _ in 0..count {
        let tick = Input::Observed(Observation::Tick);
        sender.try_send(tick).expect("there is room");
    }
    assert_eq!(scene.collector.take_waiting(&mut inputs), count);
    assert_eq!(scene.collector.group, GROUP.0);
}

#[test]
fn many_processes_are_read_in_their_order_and_those_that_are_the_same_are_not() {
    let scene = Scene::new(0);
    let fds = scene.processes.fds();
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let fd = fds.hold(OwnedFd::from(file));
    let (us, nobody) = (std::process::id(), u32::MAX / 2);
    let start_ticks = scene.processes.start_ticks(us).expect("we live");
    let known = Pinned { start_ticks, fd };
    let look = |number: usize| Look {
        id: id(&format!("c{number}")),
        pid: if number == 1 { nobody } else { us },
        pinned: (number == 0).then_some(known),
    };
    let looks: Vec<_> = (0..2 * HALVED_MIN + 1).map(look).collect();
    let ids: Vec<_> = looks.iter().skip(1).map(|look| look.id.clone()).collect();
    let looked = scene.collector.look_at(looks);
    let mut told = Vec::new();
    for observation in looked {
        if let Observation::Process { id, pid, reading } = observation {
            let is_alive = match reading {
                ProcessReading::Alive(process) => {
                    fds.release(process.fd.expect("it is held"));
                    true
                }
                ProcessReading::Dead | ProcessReading::Denied => false,
            };
            assert_eq!(is_alive, pid == us, "{id}");
            told.push(id);
        }
    }
    assert_eq!(told, ids);
}
