//! A watch whose collector takes nothing.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::stream;

use super::*;
use crate::collector::Input;
use crate::model::{EventKind, RuntimeType};
use crate::runtime::{ExecOutput, ExecStatus, Listing};

/// More events than anything between a runtime and the collector holds.
const EVENTS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime of which nobody wants anything but its stream.
struct Quiet(RuntimeInfo);

#[async_trait]
impl RuntimeClient for Quiet {
    fn info(&self) -> &RuntimeInfo {
        &self.0
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        Ok(Listing::default())
    }

    async fn inspect(
        &self,
        _id: &ContainerId,
        _kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError> {
        Ok(Inspection::Gone)
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
    let client: Arc<dyn RuntimeClient> = Arc::new(Quiet(RuntimeInfo {
        endpoint: watcher.endpoint.clone(),
        name: "docker".into(),
        version: "1".into(),
        peer_uid: 0,
        socket: (0, 0),
    }));
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
