//! Watches one endpoint: connects, subscribes, then lists; answers the reconciler's requests; reconnects.
//!
//! A session goes `connect → subscribe → SourceUp → (a list; then events, lists, inspects) → SourceDown`, and starts
//! again after a wait that grows. The stream is read at all times: what does not fit into the collector's queue is
//! dropped, counted, and told as a [`Observation::StreamGap`] as soon as there is room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, EventStream, Inspection, Options, RuntimeClient, RuntimeError, RuntimeInfo};
use crate::backoff::Backoff;
use crate::collector::ObservationSender;
use crate::model::message::RuntimeSource;
use crate::model::{Container, ContainerId, ContainerKind, RuntimeEvent, SourceId, State};
use crate::procfs::{FirstLook, ProcessTable};
use crate::reconcile::{FdToken, InspectOutcome, ListOutcome, Observation, ProcessReading};
use crate::telemetry;

/// Inspects that are under way at one runtime at once: never one after another, never all at once.
const INSPECTS_MAX: usize = 8;
/// From how many containers on sketches are worth a look at all processes.
const SKETCHES_MIN: usize = 8;
/// Waits between looks at a container whose process is another's by its cgroup. dockerd and containerd notice the end of a
/// process within some 10 ms, and later on a machine that is busy.
const NOTICING_WAITS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(750),
];
/// Hex digits in an id of Docker and CRI.
const ID_DIGITS: usize = 64;
/// How often a quiet connection is asked for a sign of life.
const IDLE_CHECK: Duration = Duration::from_secs(10);
/// How often a runtime without a stream is listed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Of so many polls one is made where the newest list was too long: it is long to make, and will hardly be shorter soon.
const LONG_LIST_POLLS: u32 = 60;
/// The first and the longest wait before a connection is made again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long a session must have lasted for the waits to start over.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// How often a runtime whose stream is off is asked for it again.
const STREAM_RETRY: Duration = Duration::from_secs(300);

/// What the reconciler asks of a runtime.
#[derive(Clone, Debug)]
pub enum Request {
    /// Everything that is there.
    List,
    /// One container.
    Inspect {
        /// Which.
        id: ContainerId,
        /// What it is.
        kind: ContainerKind,
    },
    /// Some containers, each by a sketch or by an inspect.
    Sketch {
        /// Which.
        wanted: Vec<(ContainerId, ContainerKind)>,
        /// Where their init processes are.
        look: Arc<FirstLook>,
    },
}

/// How an endpoint stands, for the status.
#[derive(Debug, Default)]
pub struct EndpointFigures {
    /// Events taken.
    pub events: AtomicU64,
    /// Events dropped.
    pub dropped: AtomicU64,
    /// Lists that failed.
    pub failed_lists: AtomicU64,
    /// When the newest came, in unix milliseconds.
    pub last_event_ms: AtomicU64,
    /// When it was last listed whole, in unix milliseconds.
    pub last_resync_ms: AtomicU64,
    /// Calls made to the runtime.
    pub calls: AtomicU64,
}

/// A watched endpoint.
#[derive(Debug)]
pub struct Watched {
    /// Where.
    pub endpoint: Endpoint,
    /// Requests go in here; there are never more than one list and one inspect for each container.
    pub requests: mpsc::UnboundedSender<Request>,
    /// Figures.
    pub figures: Arc<EndpointFigures>,
    /// The newest error: why it is away, or why its newest list was not taken; empty when all is well.
    pub error: watch::Receiver<String>,
}

/// What a watch needs.
#[derive(Clone)]
pub struct WatchContext {
    /// Observations go out here.
    pub observations: ObservationSender,
    /// How to talk to runtimes.
    pub options: Options,
    /// Where processes are looked up.
    pub processes: Arc<ProcessTable>,
    /// Ends the watch.
    pub stop: CancellationToken,
}

/// Prepares to watch an endpoint. The future is the watch: it is to be spawned once the collector knows where
/// requests go, and ends when `stop` is cancelled.
pub fn watch(
    endpoint: Endpoint,
    context: WatchContext,
) -> (Watched, impl Future<Output = ()> + Send + 'static) {
    let (requests, incoming) = mpsc::unbounded_channel();
    let (error_tx, error) = watch::channel(String::new());
    let figures = Arc::new(EndpointFigures::default());
    let watcher = Watcher {
        source: endpoint.source_id(),
        endpoint: endpoint.clone(),
        context,
        figures: Arc::clone(&figures),
        error: error_tx,
    };
    let watched = Watched {
        endpoint,
        requests,
        figures,
        error,
    };
    (watched, watcher.run(incoming))
}

/// Why a session ended.
enum SessionEnd {
    Stopped,
    Lost(String),
    /// The subscription was refused after all: the next session has to do without.
    Streamless,
}

struct Watcher {
    source: SourceId,
    endpoint: Endpoint,
    context: WatchContext,
    figures: Arc<EndpointFigures>,
    error: watch::Sender<String>,
}

impl Watcher {
    async fn run(self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut may_stream = true;
        loop {
            let began = tokio::time::Instant::now();
            match self.session(&mut requests, may_stream).await {
                SessionEnd::Stopped => return,
                SessionEnd::Streamless => {
                    may_stream = false;
                    continue;
                }
                SessionEnd::Lost(error) => {
                    if self.error.send_replace(error.clone()) == error {
                        tracing::debug!(source = %self.source, %error, "runtime is still away");
                    } else {
                        tracing::warn!(source = %self.source, %error, "runtime is away");
                    }
                }
            }
            may_stream = true;
            if began.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            let wait = tokio::time::sleep(backoff.next_wait());
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = self.context.stop.cancelled() => return,
                    () = &mut wait => break,
                    // What was asked of a runtime that is away is lost with SourceDown, which comes before.
                    request = requests.recv() => if request.is_none() { return },
                }
            }
        }
    }

    async fn session(
        &self,
        requests: &mut mpsc::UnboundedReceiver<Request>,
        may_stream: bool,
    ) -> SessionEnd {
        let stop = &self.context.stop;
        let connected = tokio::select! {
            () = stop.cancelled() => return SessionEnd::Stopped,
            connected = self.connect(may_stream) => connected,
        };
        let (client, stream) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.tell_down().await;
                return SessionEnd::Lost(telemetry::chain(&error));
            }
        };
        let info = client.info();
        tracing::info!(
            source = %self.source,
            runtime = %info.name,
            version = %info.version,
            stream = if stream.is_some() { "live" } else { "polling" },
            "runtime is up"
        );
        self.error.send_replace(String::new());
        let up = Observation::SourceUp {
            source: self.source.clone(),
            runtime: RuntimeSource {
                runtime: self.endpoint.runtime,
                name: Arc::clone(&info.name),
                version: Arc::clone(&info.version),
                endpoint: self.endpoint.uri().into(),
                uid: info.peer_uid,
            },
            streaming: stream.is_some(),
            is_listing: true,
        };
        let mut tasks = JoinSet::new();
        let end = self.serve(&client, stream, up, requests, &mut tasks).await;
        tasks.shutdown().await;
        client.close().await;
        self.tell_down().await;
        end
    }

    /// A collector that has ended needs not be told.
    async fn tell_down(&self) {
        let down = Observation::SourceDown {
            source: self.source.clone(),
        };
        self.context.observations.send(down).await;
    }

    async fn connect(
        &self,
        may_stream: bool,
    ) -> Result<(Arc<dyn RuntimeClient>, Option<EventStream>), RuntimeError> {
        let client = super::connect_with(&self.endpoint, &self.context.options).await?;
        if !may_stream {
            return Ok((client, None));
        }
        match client.subscribe().await {
            Ok(stream) => Ok((client, Some(stream))),
            Err(RuntimeError::Unsupported { .. }) => Ok((client, None)),
            Err(error) => Err(error),
        }
    }

    /// Tells that the runtime is `up`, lists it, tells what its stream says, and answers requests. Where the collector's
    /// queue has no room for `up`, the stream is read all the same: those events are dropped, and the list that follows
    /// `up` shows what they told.
    async fn serve(
        &self,
        client: &Arc<dyn RuntimeClient>,
        mut stream: Option<EventStream>,
        up: Observation,
        requests: &mut mpsc::UnboundedReceiver<Request>,
        tasks: &mut JoinSet<()>,
    ) -> SessionEnd {
        let inspects = Arc::new(Semaphore::new(INSPECTS_MAX));
        let (failed_tx, mut failed) = mpsc::channel::<String>(1);
        let mut idle = tokio::time::interval(IDLE_CHECK);
        idle.reset();
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stream_retry = tokio::time::sleep(STREAM_RETRY);
        tokio::pin!(stream_retry);
        let telling_up = self.context.observations.send(up);
        tokio::pin!(telling_up);
        let mut is_up_told = false;
        let is_polling = stream.is_none();
        let mut has_gap = false;
        let mut polls = 0_u32;
        loop {
            tokio::select! {
                biased;
                () = self.context.stop.cancelled() => return SessionEnd::Stopped,
                is_taken = &mut telling_up, if !is_up_told => {
                    if !is_taken {
                        return SessionEnd::Stopped;
                    }
                    is_up_told = true;
                    // Nobody asks for this one: what is decided of `up` waits for the disk, and the list need not.
                    self.answer(client, Request::List, &inspects, &failed_tx, tasks);
                }
                event = next_event(&mut stream) => match event {
                    Some(Ok(_) | Err(RuntimeError::Malformed { .. })) if !is_up_told => {
                        self.figures.events.fetch_add(1, Ordering::Relaxed);
                        self.figures.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(Ok(event)) => self.pass_on(named(event, client.info()), &mut has_gap),
                    Some(Err(error @ RuntimeError::Malformed { .. })) => {
                        tracing::warn!(
                            source = %self.source,
                            error = telemetry::chain(&error),
                            "an event cannot be understood; the runtime is listed instead"
                        );
                        self.figures.dropped.fetch_add(1, Ordering::Relaxed);
                        has_gap = true;
                        self.tell_gap(&mut has_gap);
                    }
                    Some(Err(RuntimeError::Unsupported { .. })) => return SessionEnd::Streamless,
                    Some(Err(error)) => return SessionEnd::Lost(telemetry::chain(&error)),
                    None => return SessionEnd::Lost("the runtime ended its event stream".to_owned()),
                },
                Some(error) = failed.recv() => return SessionEnd::Lost(error),
                request = requests.recv() => match request {
                    Some(request) => self.answer(client, request, &inspects, &failed_tx, tasks),
                    None => return SessionEnd::Stopped,
                },
                _ = idle.tick() => {
                    self.check_idle(client, &failed_tx, tasks);
                    self.tell_gap(&mut has_gap);
                }
                _ = poll.tick() => {
                    self.tell_gap(&mut has_gap);
                    polls = polls.wrapping_add(1);
                    let is_too_long = !self.error.borrow().is_empty();
                    if is_polling && (!is_too_long || polls.is_multiple_of(LONG_LIST_POLLS)) {
                        let due = Observation::ListDue { source: self.source.clone() };
                        // A queue that is full holds work enough; the next tick comes.
                        self.context.observations.try_send(due);
                    }
                }
                () = &mut stream_retry, if is_polling => {
                    if client.subscribe().await.is_ok() {
                        return SessionEnd::Lost("the runtime has an event stream now".to_owned());
                    }
                    stream_retry.as_mut().reset(tokio::time::Instant::now() + STREAM_RETRY);
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }

    /// Passes an event on without ever waiting.
    fn pass_on(&self, event: RuntimeEvent, has_gap: &mut bool) {
        self.figures.events.fetch_add(1, Ordering::Relaxed);
        self.figures
            .last_event_ms
            .store(now_ms(), Ordering::Relaxed);
        tracing::debug!(source = %self.source, id = %event.id, what = ?event.what, at_ns = event.at_ns, "event");
        let observation = Observation::Event {
            source: self.source.clone(),
            event,
        };
        if !self.context.observations.try_send(observation) {
            if !*has_gap {
                tracing::warn!(source = %self.source, "events are dropped: the collector is slow");
            }
            self.figures.dropped.fetch_add(1, Ordering::Relaxed);
            *has_gap = true;
        }
    }

    fn tell_gap(&self, has_gap: &mut bool) {
        let gap = Observation::StreamGap {
            source: self.source.clone(),
        };
        if *has_gap && self.context.observations.try_send(gap) {
            *has_gap = false;
        }
    }

    fn check_idle(
        &self,
        client: &Arc<dyn RuntimeClient>,
        failed: &mpsc::Sender<String>,
        tasks: &mut JoinSet<()>,
    ) {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let client = Arc::clone(client);
        let failed = failed.clone();
        tasks.spawn(async move {
            if let Err(error) = client.ping().await {
                let _ = failed.try_send(telemetry::chain(&error));
            }
        });
    }

    fn answer(
        &self,
        client: &Arc<dyn RuntimeClient>,
        request: Request,
        inspects: &Arc<Semaphore>,
        failed: &mpsc::Sender<String>,
        tasks: &mut JoinSet<()>,
    ) {
        let job = Job {
            source: self.source.clone(),
            client: Arc::clone(client),
            context: self.context.clone(),
            figures: Arc::clone(&self.figures),
            error: self.error.clone(),
        };
        match request {
            Request::List => {
                let failed = failed.clone();
                tasks.spawn(async move {
                    if let Err(error) = job.list().await {
                        let _ = failed.try_send(telemetry::chain(&error));
                    }
                });
            }
            Request::Inspect { id, kind } => {
                let inspects = Arc::clone(inspects);
                tasks.spawn(async move {
                    let _permit = inspects.acquire().await;
                    job.inspect(id, kind).await;
                });
            }
            Request::Sketch { wanted, look } => {
                tasks.spawn(job.sketch(wanted, look, Arc::clone(inspects)));
            }
        }
    }
}

/// One request that is under way.
#[derive(Clone)]
struct Job {
    source: SourceId,
    client: Arc<dyn RuntimeClient>,
    context: WatchContext,
    figures: Arc<EndpointFigures>,
    error: watch::Sender<String>,
}

impl Job {
    async fn list(self) -> Result<(), RuntimeError> {
        let began = Observation::ListBegan {
            source: self.source.clone(),
        };
        // A closed queue means that the collector ends, and this task with it.
        self.context.observations.send(began).await;
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let listed = self.client.list().await;
        let (outcome, result) = match listed {
            Ok(listing) if listing.skipped == 0 => {
                self.figures
                    .last_resync_ms
                    .store(now_ms(), Ordering::Relaxed);
                (ListOutcome::Complete(listing.rows), Ok(()))
            }
            Ok(listing) => {
                tracing::warn!(
                    source = %self.source,
                    skipped = listing.skipped,
                    "some rows of the list cannot be understood; nothing is deleted by it"
                );
                (ListOutcome::Partial(listing.rows), Ok(()))
            }
            Err(error) => {
                self.figures.failed_lists.fetch_add(1, Ordering::Relaxed);
                (ListOutcome::Failed, Err(error))
            }
        };
        let result = self.tell_too_long(result);
        let done = Observation::ListDone {
            source: self.source,
            outcome,
        };
        self.context.observations.send(done).await;
        result
    }

    /// A list that is too long is none, and nothing is wrong with the connection: the stream goes on. Any other error is the
    /// session's end.
    fn tell_too_long(&self, result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        let source = &self.source;
        match result {
            Err(error @ RuntimeError::TooLong { .. }) => {
                let error = telemetry::chain(&error);
                if self.error.send_replace(error.clone()) == error {
                    tracing::debug!(%source, %error, "the runtime's list is still too long");
                } else {
                    tracing::error!(
                        %source,
                        %error,
                        "the runtime's list is too long; only what its events tell is followed"
                    );
                }
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => {
                if !self.error.send_replace(String::new()).is_empty() {
                    tracing::info!(%source, "the runtime's list is taken again");
                }
                Ok(())
            }
        }
    }

    /// Sketches the containers whose list rows and processes tell enough, and inspects the others.
    async fn sketch(
        self,
        mut wanted: Vec<(ContainerId, ContainerKind)>,
        look: Arc<FirstLook>,
        inspects: Arc<Semaphore>,
    ) {
        if wanted.len() >= SKETCHES_MIN {
            let ids = wanted.iter().map(|(id, _)| id.clone()).collect();
            let told = self.tell_sketches(self.client.sketch(&ids), look).await;
            wanted.retain(|(id, _)| !told.contains(id));
        }
        let asking = wanted.into_iter().map(|(id, kind)| {
            let (job, inspects) = (self.clone(), Arc::clone(&inspects));
            async move {
                let _permit = inspects.acquire().await;
                job.inspect(id, kind).await;
            }
        });
        futures::stream::iter(asking)
            .buffer_unordered(INSPECTS_MAX)
            .collect::<()>()
            .await;
    }

    /// Tells the sketches whose init process is plain to see; gives the ids of those.
    async fn tell_sketches(
        &self,
        sketches: Vec<Container>,
        look: Arc<FirstLook>,
    ) -> BTreeSet<ContainerId> {
        let mut told = BTreeSet::new();
        let ids: BTreeSet<_> = sketches.iter().map(|sketch| sketch.id.clone()).collect();
        if ids.is_empty() {
            return told;
        }
        let uid = self.client.info().peer_uid;
        let finding = tokio::task::spawn_blocking(move || look.take(&ids, uid));
        let Ok(mut inits) = finding.await else {
            return told;
        };
        for mut container in sketches {
            let Some(process) = inits.take(&container.id) else {
                continue;
            };
            container.pid = Some(process.pid);
            let fd = Unowned(&self.context.processes, process.fd);
            let sketched = Observation::Inspected {
                source: self.source.clone(),
                id: container.id.clone(),
                outcome: InspectOutcome::Sketched {
                    process: ProcessReading::Alive(Box::new(process)),
                    container: Box::new(container),
                },
            };
            if let Observation::Inspected { id, .. } = &sketched {
                told.insert(id.clone());
            }
            if !self.context.observations.send(sketched).await {
                break;
            }
            fd.hand_over();
        }
        told
    }

    async fn inspect(self, id: ContainerId, kind: ContainerKind) {
        let outcome = match self.look(&id, kind).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(
                    source = %self.source,
                    %id,
                    error = telemetry::chain(&error),
                    "inspect failed; it is asked again"
                );
                InspectOutcome::Failed
            }
        };
        let fd = self.unowned(match &outcome {
            InspectOutcome::Found { process, .. } => process.as_ref(),
            InspectOutcome::Sketched { process, .. } => Some(process),
            InspectOutcome::Gone | InspectOutcome::Failed => None,
        });
        let inspected = Observation::Inspected {
            source: self.source.clone(),
            id,
            outcome,
        };
        if self.context.observations.send(inspected).await {
            fd.hand_over();
        }
    }

    async fn look(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
    ) -> Result<InspectOutcome, RuntimeError> {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let container = match self.client.inspect(id, kind).await? {
            Inspection::Found(container) => container,
            Inspection::Gone => return Ok(InspectOutcome::Gone),
        };
        let Some(pid) = live_pid(&container) else {
            return Ok(InspectOutcome::Found {
                container,
                process: None,
            });
        };
        let reading = self.read(pid);
        if names_container(&reading, id) {
            return Ok(InspectOutcome::Found {
                container,
                process: Some(reading),
            });
        }
        if names_other(&reading, id) {
            drop(self.unowned(Some(&reading)));
            return self.look_until_noticed(id, kind, pid).await;
        }
        self.look_again(id, kind, pid, reading).await
    }

    /// Reads a process. What a runtime of another user names must be a process of that user's: it could name any.
    fn read(&self, pid: u32) -> ProcessReading {
        let uid = self.client.info().peer_uid;
        self.context.processes.read_of_user(pid, uid)
    }

    /// The process is another container's by its cgroup: the pid was given away, and the runtime has not noticed yet; or
    /// several containers do have one process (gVisor), and then it still says so after all waits.
    async fn look_until_noticed(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
        pid: u32,
    ) -> Result<InspectOutcome, RuntimeError> {
        for wait in NOTICING_WAITS {
            tokio::time::sleep(wait).await;
            self.figures.calls.fetch_add(1, Ordering::Relaxed);
            let container = match self.client.inspect(id, kind).await? {
                Inspection::Found(container) => container,
                Inspection::Gone => return Ok(InspectOutcome::Gone),
            };
            let found = live_pid(&container);
            if found != Some(pid) || wait == NOTICING_WAITS[NOTICING_WAITS.len() - 1] {
                let process = found.map(|pid| self.read(pid));
                return Ok(InspectOutcome::Found { container, process });
            }
        }
        Ok(InspectOutcome::Failed)
    }

    /// The fd in a reading, to be let go where this task ends midway.
    fn unowned(&self, reading: Option<&ProcessReading>) -> Unowned<'_> {
        let fd = match reading {
            Some(ProcessReading::Alive(process)) => process.fd,
            Some(ProcessReading::Dead | ProcessReading::Denied) | None => None,
        };
        Unowned(&self.context.processes, fd)
    }

    /// The process's cgroup does not name the container: a second inspect must agree on the pid.
    async fn look_again(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
        pid: u32,
        reading: ProcessReading,
    ) -> Result<InspectOutcome, RuntimeError> {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let fd = self.unowned(Some(&reading));
        let second = self.client.inspect(id, kind).await;
        let agreed = match &second {
            Ok(Inspection::Found(container)) => live_pid(container) == Some(pid),
            Ok(Inspection::Gone) | Err(_) => false,
        };
        let process = if agreed {
            fd.hand_over();
            Some(reading)
        } else {
            drop(fd);
            None
        };
        match second? {
            Inspection::Found(container) => Ok(InspectOutcome::Found {
                process: process.or_else(|| live_pid(&container).map(|pid| self.read(pid))),
                container,
            }),
            Inspection::Gone => Ok(InspectOutcome::Gone),
        }
    }
}

/// The fd on a namespace that a task has read and nobody owns yet: dropped, it is closed. A session's tasks end with it
/// wherever they wait.
struct Unowned<'a>(&'a ProcessTable, Option<FdToken>);

impl Unowned<'_> {
    /// The collector has it now, or whoever the reading goes to.
    fn hand_over(mut self) {
        self.1 = None;
    }
}

impl Drop for Unowned<'_> {
    fn drop(&mut self) {
        if let Some(fd) = self.1 {
            self.0.fds().release(fd);
        }
    }
}

/// The pid, where the state says that such a process lives. One that is created and has a pid is about to start: CRI-O
/// and Podman have made its process by then, and it waits.
fn live_pid(container: &Container) -> Option<u32> {
    match container.state {
        State::Created | State::Running | State::Paused | State::Unknown => container.pid,
        State::Restarting | State::Removing | State::Exited | State::Dead => None,
    }
}

fn names_container(reading: &ProcessReading, id: &ContainerId) -> bool {
    match reading {
        ProcessReading::Alive(process) => process.cgroup.contains(id_within(id)),
        ProcessReading::Dead | ProcessReading::Denied => true,
    }
}

/// A container's id within its runtime: without the namespace of containerd that a key may begin with.
fn id_within(id: &ContainerId) -> &str {
    let key = id.as_str();
    key.split_once(':').map_or(key, |(_, id)| id)
}

/// Whether the cgroup names some other container: a runtime's ids are 64 hex digits.
pub(super) fn names_other(reading: &ProcessReading, id: &ContainerId) -> bool {
    let is_id = |word: &str| word.len() == ID_DIGITS && word != id_within(id);
    match reading {
        ProcessReading::Alive(process) => process
            .cgroup
            .split(|c: char| !c.is_ascii_hexdigit())
            .any(is_id),
        ProcessReading::Dead | ProcessReading::Denied => false,
    }
}

/// Docker's events do not say which runtime made a container.
fn named(mut event: RuntimeEvent, info: &RuntimeInfo) -> RuntimeEvent {
    if let Some(facts) = event.facts.as_deref_mut() {
        facts.runtime_name = Arc::clone(&info.name);
        facts.runtime_version = Arc::clone(&info.version);
    }
    event
}

async fn next_event(
    stream: &mut Option<EventStream>,
) -> Option<Result<RuntimeEvent, RuntimeError>> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
