//! A watch whose collector takes nothing, and sessions that end midway.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::future::{self, BoxFuture};
use futures::{FutureExt as _, stream};

use super::*;
use crate::collector::Input;
use crate::model::{Container, EventKind, RuntimeType, State};
use crate::runtime::{ExecOutput, ExecStatus, Inspection, Listing};

/// More events than anything between a runtime and the collector holds.
const EVENTS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Sessions that end midway.
const SESSIONS: usize = 200;

type Inspecting = BoxFuture<'static, Result<Inspection, RuntimeError>>;

/// A runtime without containers and events of its own; what it says to an inspect is the test's.
struct Fake {
    info: RuntimeInfo,
    inspect: Box<dyn Fn(ContainerId) -> Inspecting + Send + Sync>,
}

impl Fake {
    fn at(
        endpoint: &Endpoint,
        inspect: impl Fn(ContainerId) -> Inspecting + Send + Sync + 'static,
    ) -> Arc<dyn RuntimeClient> {
        Arc::new(Self {
            info: RuntimeInfo {
                endpoint: endpoint.clone(),
                name: "docker".into(),
                version: "1".into(),
                peer_uid: 0,
                socket: (0, 0),
            },
            inspect: Box::new(inspect),
        })
    }
}

#[async_trait]
impl RuntimeClient for Fake {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        Ok(Listing::default())
    }

    async fn inspect(
        &self,
        id: &ContainerId,
        _kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError> {
        (self.inspect)(id.clone()).await
    }

    async fn subscribe(&self) -> Result<EventStream, RuntimeError> {
        Ok(stream::pending().boxed())
    }

    async fn exec(
        &self,
        _id: &ContainerId,
        _command: &[String],
        _timeout: Option<Duration>,
        _output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError> {
        Ok(ExecStatus { exit_code: 0 })
    }

    async fn close(&self) {}
}

/// A container that runs, with the one process that there is.
fn running(id: ContainerId) -> Container {
    Container {
        name: "a".to_owned(),
        runtime_name: "docker".into(),
        runtime_version: "1".into(),
        state: State::Running,
        pid: Some(FAKE_PID),
        created_at_ns: 1,
        started_at_ns: Some(1),
        ..Container::bare(id, ContainerKind::Container, RuntimeType::Docker)
    }
}

/// Answers so many inspects, and no further one; each is told before it is answered.
fn answering(
    answers: u64,
    asked: mpsc::UnboundedSender<()>,
) -> impl Fn(ContainerId) -> Inspecting + Send + Sync {
    let left = AtomicU64::new(answers);
    move |id| {
        asked.send(()).expect("the test waits for it");
        let left = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        match left {
            Ok(_) => future::ready(Ok(Inspection::Found(Box::new(running(id))))).boxed(),
            Err(_) => future::pending().boxed(),
        }
    }
}

/// The one process of [`fake_processes`].
const FAKE_PID: u32 = 4711;

/// A process table with one process, in this cgroup and in our own namespaces.
fn fake_processes(root: &Path, cgroup: &str) -> std::io::Result<ProcessTable> {
    let process = root.join(FAKE_PID.to_string());
    std::fs::create_dir_all(process.join("ns"))?;
    std::fs::create_dir_all(root.join("1/ns"))?;
    for (link, of) in [
        ("1/ns/pid", "pid"),
        ("4711/ns/pid", "pid"),
        ("4711/ns/mnt", "mnt"),
    ] {
        std::os::unix::fs::symlink(format!("/proc/self/ns/{of}"), root.join(link))?;
    }
    std::fs::write(process.join("cgroup"), format!("0::/{cgroup}\n"))?;
    std::fs::write(process.join("status"), "NSpid:\t4711\t1\n")?;
    let stat = "4711 (a) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
    std::fs::write(process.join("stat"), stat)?;
    ProcessTable::open(root)
}

fn event(number: u64) -> RuntimeEvent {
    RuntimeEvent {
        id: ContainerId::parse(&format!("{number:064x}")).expect("hex digits are an id"),
        kind: ContainerKind::Container,
        what: EventKind::Created,
        at_ns: number,
        exit_code: None,
        facts: None,
    }
}

fn watcher(inputs: mpsc::Sender<Input>) -> Watcher {
    let endpoint = Endpoint {
        runtime: RuntimeType::Docker,
        path: PathBuf::from("/nowhere.sock"),
    };
    let processes = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
    Watcher {
        source: endpoint.source_id(),
        endpoint,
        context: WatchContext {
            observations: ObservationSender::new(inputs),
            options: Options::default(),
            processes: Arc::new(processes),
            stop: CancellationToken::new(),
        },
        figures: Arc::default(),
        error: watch::channel(String::new()).0,
    }
}

#[tokio::test]
async fn a_stream_is_read_while_the_queue_has_no_room_even_for_its_beginning() {
    let (inputs, mut queue) = mpsc::channel(1);
    inputs
        .send(Input::Stopping)
        .await
        .expect("there is room for one");
    let watcher = watcher(inputs);
    let (stop, figures) = (watcher.context.stop.clone(), Arc::clone(&watcher.figures));
    let client = Fake::at(&watcher.endpoint, |_| {
        future::ready(Ok(Inspection::Gone)).boxed()
    });
    let up = Observation::SourceUp {
        source: watcher.source.clone(),
        runtime: RuntimeSource {
            runtime: RuntimeType::Docker,
            name: "docker".into(),
            version: "1".into(),
            endpoint: "unix:///nowhere.sock".into(),
            uid: 0,
        },
        streaming: true,
        is_listing: true,
    };
    let (all_read_tx, all_read) = tokio::sync::oneshot::channel();
    let end = stream::once(async move {
        // Nobody waits for it where the test has failed.
        let _ = all_read_tx.send(());
        std::future::pending().await
    });
    let events = stream::iter(0..EVENTS).map(|number| Ok(event(number)));
    let stream = events.chain(end).boxed();
    let serving = tokio::spawn(async move {
        let (_requests_tx, mut requests) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        watcher
            .serve(&client, Some(stream), up, &mut requests, &mut tasks)
            .await;
    });

    let read = tokio::time::timeout(PATIENCE, all_read).await;
    read.expect("the stream is read to its end")
        .expect("the stream is not dropped");
    assert_eq!(figures.dropped.load(Ordering::Relaxed), EVENTS);

    assert!(matches!(queue.recv().await, Some(Input::Stopping)));
    let told = tokio::time::timeout(PATIENCE, queue.recv()).await;
    let told = told.expect("it is told when there is room");
    let is_up = matches!(told, Some(Input::Observed(Observation::SourceUp { .. })));
    assert!(is_up, "what was dropped is told by no event: {told:?}");
    stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, serving).await;
    ended.expect("it ends").expect("it did not panic");
}

/// Ends sessions while an inspect is under way in each, once the runtime was asked `asks` times and has answered
/// `answers` times; gives how many fds are still held then.
async fn held_after_sessions(cgroup: &str, answers: u64, asks: usize) -> usize {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let processes = fake_processes(folder.path(), cgroup).expect("it can be written");
    let processes = Arc::new(processes);
    for _ in 0..SESSIONS {
        // Its one place is taken: whatever is told waits.
        let (inputs, _queue) = mpsc::channel(1);
        inputs.try_send(Input::Stopping).expect("there is room");
        let mut watcher = watcher(inputs);
        watcher.context.processes = Arc::clone(&processes);
        let (asked_tx, mut asked) = mpsc::unbounded_channel();
        let client = Fake::at(&watcher.endpoint, answering(answers, asked_tx));
        let (failed, _) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let request = Request::Inspect {
            id: ContainerId::parse(&"a".repeat(64)).expect("hex digits are an id"),
            kind: ContainerKind::Container,
        };
        let inspects = Arc::new(Semaphore::new(INSPECTS_MAX));
        watcher.answer(&client, request, &inspects, &failed, &mut tasks);
        for _ in 0..asks {
            let asked = tokio::time::timeout(PATIENCE, asked.recv()).await;
            asked.expect("it is asked").expect("the client lives");
        }
        // It goes on until it waits.
        let is_held = async {
            while processes.fds().count() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let is_held = tokio::time::timeout(PATIENCE, is_held).await;
        is_held.expect("the process is read");
        tasks.shutdown().await;
        if processes.fds().count() > 0 {
            break;
        }
    }
    processes.fds().count()
}

#[tokio::test]
async fn a_session_that_ends_while_an_inspect_waits_for_the_collector_leaves_no_fd() {
    let named = "a".repeat(64);
    assert_eq!(held_after_sessions(&named, 1, 1).await, 0);
}

#[tokio::test]
async fn a_session_that_ends_while_a_second_inspect_is_awaited_leaves_no_fd() {
    assert_eq!(held_after_sessions("no-id", 1, 2).await, 0);
}
