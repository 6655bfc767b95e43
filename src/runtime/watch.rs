//! Watches one endpoint: connects, subscribes, then lists; hands the reconciler's requests to tasks; reconnects.
//!
//! A session goes `connect → subscribe → SourceUp → (a list; then events, lists, inspects) → SourceDown`, and starts
//! again after a wait that grows. The stream is read at all times: what does not fit into the collector's queue is
//! dropped, counted, and told as a [`Observation::StreamGap`] as soon as there is room.
//!
//! Here are the session and its stream; [`job`] answers one request, and [`init_process`] finds out whether a process is
//! the container's.

mod init_process;
mod job;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(super) use self::init_process::names_other;
use self::job::Job;
use super::{Endpoint, EventStream, Options, RuntimeClient, RuntimeError, RuntimeInfo};
use crate::backoff::Backoff;
use crate::collector::ObservationSender;
use crate::model::message::RuntimeSource;
use crate::model::{ContainerId, ContainerKind, RuntimeEvent, SourceId};
use crate::procfs::{FirstLook, ProcessTable};
use crate::reconcile::Observation;
use crate::telemetry;

/// Inspects that are under way at one runtime at once: never one after another, never all at once.
const INSPECTS_MAX: usize = 8;
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
