//! `quaymaster run`: the daemon.
//!
//! Everything starts here and is joined here: watches, discovery, the clock, the collector's thread, the
//! publisher. At the end nothing more is observed, what is decided is committed, and what is in the outbox is
//! sent for as long as the grace allows; the rest waits on disk for the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{EXIT_CONFIG, EXIT_FAILURE, EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, Failure};
use crate::collector::{Input, ObservationSender, Parts, Running, STATUS_INTERVAL, Snapshot};
use crate::config::{Config, Overrides, keys};
use crate::fdstore::FdStore;
use crate::local::nested;
use crate::local::periodic::{Figures, Periodic};
use crate::model::{RuntimeType, SourceId};
use crate::notify::{self, Notifier};
use crate::outbox::{self, Outbox, OutboxError};
use crate::procfs::{FirstLook, ProcessTable};
use crate::reconcile::{Identity, NestedQuery, Observation, Settings};
use crate::runtime::discover::{Host as DiscoverHost, denied_text, discover};
use crate::runtime::watch::{WatchContext, watch as watch_endpoint};
use crate::runtime::{Endpoint, Options, RuntimeError, containerd};
use crate::sink::publisher::Publisher;
use crate::sink::read_back::read_back;
use crate::sink::twin::{self, Own};
use crate::sink::{Sink, SinkError, SinkHealth};
use crate::telemetry;
use crate::wire::{Host, Refresh, Renderer};
use crate::{host, http, memory, privileges};

/// How often sockets are looked for.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(30);
/// The clock's tick: lingers, repeated inspects, refreshes.
const TICK: Duration = Duration::from_secs(1);
/// How long what is in the outbox may still be sent at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How far a resync's time varies, as a part of the interval, so that a fleet does not resync at once.
const JITTER: f64 = 0.05;
/// How long `--once` waits for runtimes to answer and for the bus.
const ONCE_GRACE: Duration = Duration::from_secs(60);
/// Status messages between the collector and the publisher.
const STATUS_QUEUE_MAX: usize = 16;
/// Looks for nested namespaces that wait behind the one under way: the next one says it all.
const NESTED_QUERIES_MAX: usize = 1;

/// The arguments of `quaymaster run`.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// The settings.
    #[command(flatten)]
    pub overrides: Overrides,
    /// List everything once, publish it, and end
    #[arg(long)]
    pub once: bool,
}

/// What needs more power than the daemon keeps: done before it is given up.
#[derive(Debug)]
pub struct Ready {
    args: RunArgs,
    config: Config,
    listener: Option<std::net::TcpListener>,
}

/// Gets what the daemon needs, and gives up its privileges. Threads that there are already keep theirs: call it first.
///
/// # Errors
/// With the exit code for what is wrong.
pub fn ready(args: &RunArgs) -> Result<Ready, Failure> {
    let config = super::load(&args.overrides)?;
    telemetry::start(&config.log_filter, config.log_format)
        .map_err(|error| Failure::new(EXIT_CONFIG, error))?;
    raise_open_files();
    // What is written tells of every container, and is for nobody else to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let listener = config.http_listen.map(bind).transpose()?;
    give_up_privileges(&config, args.overrides.config.as_deref());
    Ok(Ready {
        args: args.clone(),
        config,
        listener,
    })
}

/// Gives up what is not needed for the paths of the settings, unless a person wants it kept. `file` is the configuration's.
pub(super) fn give_up_privileges(config: &Config, file: Option<&Path>) {
    if config.keep_privileges {
        tracing::warn!(
            "all privileges are kept: take `keep_privileges` away where the kernel allows"
        );
        return;
    }
    let endpoints = config.endpoints.iter().map(|endpoint| &*endpoint.path);
    let files = config.bus.files().into_iter().map(|file| &*file.path);
    let own = [config.state_dir.as_path()].into_iter().chain(file);
    privileges::give_up(endpoints.chain(files).chain(own));
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// With the exit code for what is wrong.
pub async fn run(ready: Ready) -> Result<(), Failure> {
    let Ready {
        args,
        config,
        listener,
    } = ready;
    // What the service manager kept for us.
    let handed = notify::take_handed_fds();
    // First of all: a process that does not expect SIGUSR1 or SIGHUP is ended by it.
    let asked = Asked {
        resync: on_signal(SignalKind::user_defined1())?,
        reload: on_signal(SignalKind::hangup())?,
    };
    let listener = listener.map(listening).transpose()?;
    let mut daemon = Daemon::start(&config, handed)?;
    let http_stop = CancellationToken::new();
    let http = listener.map(|listener| {
        let serving = http::serve(listener, daemon.view.clone(), http_stop.clone());
        tokio::spawn(serving)
    });
    let result = daemon.serve(config, &args, asked).await;
    let stopped = daemon.stop().await;
    http_stop.cancel();
    if let Some(http) = http {
        // It ends at once; what went wrong in it ends here too.
        let _ = http.await;
    }
    result.and(stopped)
}

/// Everything that runs.
struct Daemon {
    collector: Option<Running>,
    context: WatchContext,
    watches: JoinSet<()>,
    /// What reads back from the bus, and what looks for nested namespaces.
    readers: JoinSet<()>,
    watched: BTreeMap<SourceId, Endpoint>,
    /// Places where no runtime can be looked for, each told once.
    denied: BTreeSet<PathBuf>,
    /// Whether it was told that there is nothing to watch.
    told_idle: bool,
    /// Sockets whose events of containerd are read.
    hinting: BTreeSet<PathBuf>,
    publisher: tokio::task::JoinHandle<Result<(), SinkError>>,
    publisher_finish: CancellationToken,
    publisher_stop: CancellationToken,
    snapshot: watch::Receiver<Snapshot>,
    health: watch::Receiver<SinkHealth>,
    view: http::View,
    notifier: Arc<Notifier>,
    /// Sends the processes, where that is asked for.
    periodic: Option<tokio::task::JoinHandle<()>>,
}

impl Daemon {
    fn start(config: &Config, handed: Vec<(String, OwnedFd)>) -> Result<Self, Failure> {
        let processes = ProcessTable::open(&config.procfs).map_err(|error| {
            let path = config.procfs.display();
            Failure::new(
                EXIT_UNAVAILABLE,
                format!("no process table at `{path}`: {error}"),
            )
        })?;
        let processes = Arc::new(processes);
        let host_id: Arc<str> = host::host_id(config.host_id.as_deref())
            .map_err(|error| Failure::new(EXIT_CONFIG, error))?
            .into();
        let client_id = format!("quaymaster-{host_id}");
        let open = || {
            crate::sink::open(&config.bus, &config.topics, &client_id)
                .map_err(|error| Failure::new(EXIT_CONFIG, telemetry::chain(&error)))
        };
        let (sink, keys_reader, status_reader) = (open()?, open()?, open()?);
        let notifier = Arc::new(Notifier::of_environment());
        let (mut parts, channels) = parts(config, &host_id, &processes)?;
        parts.fd_store = FdStore::take_back(
            Arc::clone(&notifier),
            handed,
            &mut parts.restored,
            &parts.identity.boot_id,
            &processes,
        );
        let reader = parts.outbox.reader();
        let owes_read_back = parts.outbox.owes_read_back();
        let lost = Arc::new(Notify::new());
        let renderer = parts.renderer.clone();
        let ce_source = crate::wire::ce_source(&host_id);
        let forgotten = unconfigured(config, &parts.restored);
        let running = Running::start(parts)
            .map_err(|error| Failure::new(EXIT_FAILURE, format!("no thread to be had: {error}")))?;
        let (health_tx, health) = watch::channel(SinkHealth::default());
        let publisher_finish = CancellationToken::new();
        let publisher_stop = CancellationToken::new();
        let own = Own {
            host_id: host_id.to_string(),
            boot_id: renderer.host().boot_id.to_string(),
        };
        let publisher = Publisher {
            reader,
            lost: Arc::clone(&lost),
            host_id,
            ce_source,
            committed: channels.committed,
            status: channels.status,
            reports: running.inputs.clone(),
            health: health_tx,
            finish: publisher_finish.clone(),
            stop: publisher_stop.clone(),
        };
        let publisher = spawn_publisher(publisher, sink);
        let context = WatchContext {
            observations: ObservationSender::new(running.inputs.clone()),
            options: Options::default(),
            processes,
            stop: CancellationToken::new(),
        };
        let figures = config.processes_interval.map(|interval| {
            let figures = Arc::new(Figures::default());
            let periodic = Periodic {
                interval,
                bus: config.bus.clone(),
                topics: config.topics.clone(),
                client_id: format!("{client_id}-processes"),
                host: renderer.host().clone(),
                table: Arc::clone(&context.processes),
                collector: running.inputs.clone(),
                figures: Arc::clone(&figures),
                stop: context.stop.clone(),
            };
            (figures, tokio::spawn(periodic.run()))
        });
        let (figures, periodic) = figures.unzip();
        for source in forgotten {
            // The queue is new and has room.
            let _ = running
                .inputs
                .try_send(Input::Observed(Observation::SourceForgotten { source }));
        }
        let mut readers = JoinSet::new();
        let stop = context.stop.clone();
        if config.read_back {
            readers.spawn(read_back(
                keys_reader,
                own.host_id.clone(),
                channels.snapshot.clone(),
                running.inputs.clone(),
                owes_read_back,
                lost,
                stop.clone(),
            ));
        }
        readers.spawn(nested::watch(
            channels.nested,
            Arc::clone(&context.processes),
            context.observations.clone(),
            stop.clone(),
        ));
        readers.spawn(memory::give_back(stop.clone()));
        readers.spawn(twin::watch(status_reader, config.bus.clone(), own, stop));
        let view = http::View {
            snapshot: channels.snapshot.clone(),
            health: health.clone(),
            heartbeat: Arc::clone(&running.heartbeat),
            renderer,
            processes: figures,
            pids: Arc::clone(&context.options.pids),
        };
        Ok(Self {
            collector: Some(running),
            context,
            watches: JoinSet::new(),
            readers,
            watched: BTreeMap::new(),
            denied: BTreeSet::new(),
            told_idle: false,
            hinting: BTreeSet::new(),
            publisher,
            publisher_finish,
            publisher_stop,
            snapshot: channels.snapshot,
            health,
            view,
            notifier,
            periodic,
        })
    }

    /// Watches, ticks and resyncs until a signal, the publisher's end, or `--once` is done.
    async fn serve(
        &mut self,
        mut config: Config,
        args: &RunArgs,
        mut asked: Asked,
    ) -> Result<(), Failure> {
        let once = args.once;
        let mut terminate = on_signal(SignalKind::terminate())?;
        let mut interrupt = on_signal(SignalKind::interrupt())?;
        let mut discovery = tokio::time::interval(DISCOVERY_INTERVAL);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        self.tell(Observation::ResyncDue).await;
        let resync = tokio::time::sleep(with_jitter(config.resync_interval));
        tokio::pin!(resync);
        let once_done = once_done(once, self.snapshot.clone());
        tokio::pin!(once_done);
        self.notifier.ready();
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = asked.resync.recv() => self.tell(Observation::ResyncDue).await,
                _ = asked.reload.recv() => {
                    if reload(&mut config, &args.overrides) {
                        let next = tokio::time::Instant::now() + with_jitter(config.resync_interval);
                        resync.as_mut().reset(next);
                    }
                }
                () = &mut resync => {
                    self.tell(Observation::ResyncDue).await;
                    let next = tokio::time::Instant::now() + with_jitter(config.resync_interval);
                    resync.as_mut().reset(next);
                }
                _ = tick.tick() => {
                    self.tell(Observation::Tick).await;
                    self.tell_watchdog();
                }
                _ = discovery.tick() => self.discover(&config, once).await?,
                ended = &mut self.publisher => return publisher_ended(ended),
                done = &mut once_done => return done,
            }
        }
    }

    /// The watchdog hears of us for as long as the collector goes round.
    fn tell_watchdog(&self) {
        if let Some(patience) = self.notifier.watchdog()
            && self.view.heartbeat.age() < patience / 2
        {
            self.notifier.alive();
        }
    }

    async fn tell(&self, observation: Observation) {
        if !self.context.observations.send(observation).await {
            tracing::error!("the collector has ended");
        }
    }

    /// Watches the endpoints that are configured, or those that are found and answer.
    async fn discover(&mut self, config: &Config, once: bool) -> Result<(), Failure> {
        let found = config.endpoints.is_empty();
        let endpoints = if found {
            let mut answering = Vec::new();
            let discovered = discover(&DiscoverHost::here());
            for path in discovered.denied {
                let text = denied_text(&path);
                if self.denied.insert(path) {
                    tracing::warn!("{text}: if there is one, it is not watched");
                }
            }
            for endpoint in discovered.endpoints {
                if !self.watched.contains_key(&endpoint.source_id()) && answers(&endpoint).await {
                    answering.push(endpoint);
                }
            }
            answering
        } else {
            config.endpoints.clone()
        };
        for endpoint in endpoints {
            self.watch(endpoint, found).await;
        }
        if !self.watched.is_empty() {
            return Ok(());
        }
        let message = "no container runtime found: start one, or name its socket with `--endpoint`";
        if once {
            return Err(Failure::new(EXIT_UNAVAILABLE, message));
        }
        if !self.told_idle {
            self.told_idle = true;
            let seconds = DISCOVERY_INTERVAL.as_secs();
            tracing::warn!("{message}; it is looked for every {seconds} s");
        }
        Ok(())
    }

    async fn watch(&mut self, endpoint: Endpoint, found: bool) {
        let source = endpoint.source_id();
        if self.watched.contains_key(&source) {
            return;
        }
        self.context.options.claims.add(endpoint.runtime);
        let (watched, task) = watch_endpoint(endpoint.clone(), self.context.clone());
        self.watched.insert(source.clone(), endpoint.clone());
        if let Some(collector) = &self.collector {
            // A collector that has ended is told of by `tell`.
            let _ = collector
                .inputs
                .send(Input::Watching(source, watched))
                .await;
        }
        self.watches.spawn(task);
        self.watch_hints(&endpoint, found);
    }

    /// Reads containerd's own hints at the socket of a CRI or containerd endpoint; beside a Docker that was found, at the
    /// sockets where its containerd may be.
    fn watch_hints(&mut self, endpoint: &Endpoint, found: bool) {
        let cri = (endpoint.runtime == RuntimeType::Cri).then(|| endpoint.source_id());
        for socket in containerd::hint_sockets(endpoint, found) {
            let name = socket.canonicalize().unwrap_or_else(|_| socket.clone());
            // CRI's own comes with its source, and is the one to keep; a second reader would only tell the same.
            if self.hinting.insert(name) || cri.is_some() {
                self.watches
                    .spawn(containerd::hints(socket, cri.clone(), self.context.clone()));
            }
        }
    }

    /// Ends everything in the order in which things flow.
    async fn stop(mut self) -> Result<(), Failure> {
        self.notifier.stopping();
        self.context.stop.cancel();
        while self.watches.join_next().await.is_some() {}
        while self.readers.join_next().await.is_some() {}
        if let Some(periodic) = self.periodic.take() {
            // It ends at once; what went wrong in it ends here too.
            let _ = periodic.await;
        }
        if let Some(collector) = &self.collector {
            let _ = collector.inputs.send(Input::Stopping).await;
        }
        self.drain().await;
        self.publisher_finish.cancel();
        let mut result = Ok(());
        if !self.publisher.is_finished() {
            match tokio::time::timeout(SHUTDOWN_GRACE, &mut self.publisher).await {
                Ok(ended) => result = publisher_stopped(ended),
                Err(_) => {
                    self.publisher_stop.cancel();
                    let _ = (&mut self.publisher).await;
                }
            }
        }
        let left = self.snapshot.borrow().totals.messages;
        drop(self.context);
        if let Some(collector) = self.collector.take() {
            let joined = tokio::task::spawn_blocking(move || collector.join()).await;
            if joined.is_err() {
                tracing::error!("the collector could not be joined");
            }
        }
        tracing::info!(messages_left = left, "stopped");
        result
    }

    /// Waits until the bus has everything, the last status too, if it is there and for as long as the grace allows.
    async fn drain(&mut self) {
        let deadline = tokio::time::sleep(SHUTDOWN_GRACE);
        tokio::pin!(deadline);
        loop {
            let is_empty = {
                let snapshot = self.snapshot.borrow_and_update();
                snapshot.totals.messages == 0 && snapshot.status.state == "stopping"
            };
            let is_down = !self.health.borrow().up;
            if is_empty || is_down || self.publisher.is_finished() {
                return;
            }
            tokio::select! {
                () = &mut deadline => return,
                changed = self.snapshot.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What a person asks for by signals.
struct Asked {
    resync: Signal,
    reload: Signal,
}

/// Takes what can be taken of the configuration as it is now, and says which of it cannot. Whether the interval of resyncs
/// is another one.
fn reload(config: &mut Config, overrides: &Overrides) -> bool {
    let fresh = match super::load(overrides) {
        Ok(fresh) => fresh,
        Err(error) => {
            tracing::error!(%error, "the configuration is left as it was");
            return false;
        }
    };
    let changed = keys::changed(config, &fresh);
    let (taken, left): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|key| keys::RELOADED.contains(key));
    if !left.is_empty() {
        tracing::warn!(
            keys = left.join(", "),
            "these settings have changed and need a restart"
        );
    }
    let is_rescheduled = fresh.resync_interval != config.resync_interval;
    config.resync_interval = fresh.resync_interval;
    if fresh.log_filter != config.log_filter {
        match telemetry::set_filter(&fresh.log_filter) {
            Ok(()) => config.log_filter = fresh.log_filter,
            Err(error) => tracing::error!(error, "the log filter is left as it was"),
        }
    }
    tracing::info!(taken = taken.join(", "), "the configuration is read again");
    is_rescheduled
}

/// Gives the HTTP listener to the threads that serve it.
pub(super) fn listening(
    listener: std::net::TcpListener,
) -> Result<tokio::net::TcpListener, Failure> {
    let given = listener.set_nonblocking(true).and_then(|()| {
        let address = listener.local_addr()?;
        Ok((address, tokio::net::TcpListener::from_std(listener)?))
    });
    let (address, listener) =
        given.map_err(|error| Failure::new(EXIT_FAILURE, format!("failed to listen: {error}")))?;
    tracing::info!(%address, "listening");
    Ok(listener)
}

/// Takes the HTTP listener's place before anything else is begun.
pub(super) fn bind(address: std::net::SocketAddr) -> Result<std::net::TcpListener, Failure> {
    std::net::TcpListener::bind(address).map_err(|error| {
        let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let code = if is_denied {
            EXIT_NO_PERMISSION
        } else {
            EXIT_UNAVAILABLE
        };
        let remedy = "choose another with `--listen`";
        Failure::new(
            code,
            format!("failed to listen on `{address}`: {error}: {remedy}"),
        )
    })
}

/// What the collector and the publisher share.
struct Channels {
    committed: Arc<Notify>,
    status: mpsc::Receiver<crate::sink::Outgoing>,
    snapshot: watch::Receiver<Snapshot>,
    nested: mpsc::Receiver<Box<NestedQuery>>,
}

fn parts(
    config: &Config,
    host_id: &Arc<str>,
    processes: &Arc<ProcessTable>,
) -> Result<(Parts, Channels), Failure> {
    let unreadable = |error: std::io::Error| {
        let path = config.procfs.display();
        Failure::new(
            EXIT_UNAVAILABLE,
            format!("the process table at `{path}` cannot be read: {error}"),
        )
    };
    let boot_id: Arc<str> = processes.boot_id().map_err(unreadable)?.into();
    let owner = outbox::Owner {
        host_id: Arc::clone(host_id),
        boot_id: Arc::clone(&boot_id),
        new_epoch: host::random_id(&config.procfs).map_err(unreadable)?,
    };
    let options = outbox::Options {
        bytes_max: config.outbox_max_bytes,
    };
    // Making a state waits for the disk, several times.
    let first_look = (!Outbox::exists(&config.state_dir)).then(|| FirstLook::begin(processes));
    let opened =
        Outbox::open(&config.state_dir, &owner, options).map_err(|error| state_failure(&error))?;
    if let Some(set_aside) = &opened.set_aside {
        tracing::error!("{set_aside}; a new epoch begins");
    }
    let meta = opened.outbox.meta();
    let epoch: Arc<str> = meta.epoch.as_str().into();
    if let Some(why) = config.bus.in_the_clear() {
        tracing::warn!("{why}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        host_id = &**host_id,
        %epoch,
        state_dir = %config.state_dir.display(),
        bus = %config.bus,
        owed = opened.outbox.totals().messages,
        "starting"
    );
    let refresh = Refresh {
        records_ms: millis(config.records_refresh.unwrap_or(config.resync_interval)),
        pns_ms: millis(config.pns_refresh),
        status_ms: millis(STATUS_INTERVAL),
    };
    let host_name = config.host_name.clone().unwrap_or_else(host::host_name);
    let previous_epoch = meta.previous_epoch.as_deref().map(Arc::from);
    let committed = Arc::new(Notify::new());
    let (status_tx, status) = mpsc::channel(STATUS_QUEUE_MAX);
    let (snapshot_tx, snapshot) = watch::channel(Snapshot::default());
    let (queries, nested) = mpsc::channel(NESTED_QUERIES_MAX);
    let parts = Parts {
        outbox: opened.outbox,
        restored: opened.restored,
        owed: opened.owed,
        last_alive_ms: opened.last_alive_ms,
        identity: Identity {
            boot_id: Arc::clone(&boot_id),
            host_pns_inode: processes.host_pns_inode(),
            previous_epoch,
        },
        settings: Settings {
            linger_ms: millis(config.pns_linger),
            held_max: config.pns_held_max,
            pns_refresh_ms: millis(config.pns_refresh),
            records_refresh_ms: config.records_refresh.map(millis),
            nested: config.pns_nested,
            ..Settings::default()
        },
        renderer: Renderer::new(
            Host {
                host_id: Arc::clone(host_id),
                host_name: host_name.into(),
                boot_id,
                epoch,
            },
            refresh,
        ),
        processes: Arc::clone(processes),
        first_look,
        fd_store: FdStore::default(),
        committed: Arc::clone(&committed),
        status: status_tx,
        snapshot: snapshot_tx,
        nested: queries,
    };
    let channels = Channels {
        committed,
        status,
        snapshot,
        nested,
    };
    Ok((parts, channels))
}

/// The sources of the state that are configured no longer. What was discovered is given its 24 hours.
fn unconfigured(config: &Config, restored: &crate::reconcile::Restored) -> Vec<SourceId> {
    if config.endpoints.is_empty() {
        return Vec::new();
    }
    let configured: Vec<_> = config.endpoints.iter().map(Endpoint::source_id).collect();
    restored
        .sources
        .keys()
        .filter(|source| !configured.contains(source))
        .cloned()
        .collect()
}

fn spawn_publisher(
    publisher: Publisher,
    sink: Box<dyn Sink>,
) -> tokio::task::JoinHandle<Result<(), SinkError>> {
    tokio::spawn(publisher.run(sink))
}

type PublisherEnd = Result<Result<(), SinkError>, tokio::task::JoinError>;

/// The publisher ended while it should run.
fn publisher_ended(ended: PublisherEnd) -> Result<(), Failure> {
    publisher_stopped(ended)?;
    Err(Failure::new(EXIT_FAILURE, "the publisher ended by itself"))
}

fn publisher_stopped(ended: PublisherEnd) -> Result<(), Failure> {
    match ended {
        Ok(Ok(())) => Ok(()),
        // Not a bus that is away, which is waited for: stdout was closed.
        Ok(Err(error @ SinkError::Unavailable { .. })) => {
            Err(Failure::new(EXIT_FAILURE, telemetry::chain(&error)))
        }
        Ok(Err(error)) => Err(super::sink_failure(error)),
        Err(error) => Err(Failure::new(
            EXIT_FAILURE,
            format!("the publisher ended abnormally: {error}"),
        )),
    }
}

fn state_failure(error: &OutboxError) -> Failure {
    if error.is_denied() {
        return super::state_denied(error);
    }
    let code = match error {
        // Neither passes by itself: the unit is not to start it again.
        OutboxError::OtherHost { .. } | OutboxError::Format { .. } => EXIT_CONFIG,
        OutboxError::Directory { .. }
        | OutboxError::Locked { .. }
        | OutboxError::Database { .. }
        | OutboxError::Encoding { .. } => EXIT_FAILURE,
    };
    Failure::new(code, telemetry::chain(error))
}

/// Whether a runtime answers at a socket that was found. What is there and is none is no news.
async fn answers(endpoint: &Endpoint) -> bool {
    match crate::runtime::connect(endpoint).await {
        Ok(client) => {
            client.close().await;
            true
        }
        Err(error @ RuntimeError::NoPermission { .. }) => {
            tracing::warn!(
                error = telemetry::chain(&error),
                "a runtime was found that may not be watched"
            );
            false
        }
        Err(error) => {
            tracing::debug!(
                error = telemetry::chain(&error),
                "a socket was found that is no runtime's"
            );
            false
        }
    }
}

/// Ends when everything is listed and the bus has it; never where `--once` is not asked for.
async fn once_done(once: bool, mut snapshot: watch::Receiver<Snapshot>) -> Result<(), Failure> {
    if !once {
        return std::future::pending().await;
    }
    let wanted = snapshot.wait_for(|snapshot| {
        snapshot.status.state == "live" && snapshot.is_settled && snapshot.totals.messages == 0
    });
    match tokio::time::timeout(ONCE_GRACE, wanted).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Failure::new(EXIT_FAILURE, "the collector has ended")),
        Err(_) => Err(Failure::new(
            EXIT_UNAVAILABLE,
            format!(
                "not everything was listed and sent within {} s",
                ONCE_GRACE.as_secs()
            ),
        )),
    }
}

pub(super) fn on_signal(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind)
        .map_err(|error| Failure::new(EXIT_FAILURE, format!("no signals to be had: {error}")))
}

/// The interval, a little longer or shorter by the clock's lowest digits, which differ from host to host.
fn with_jitter(interval: Duration) -> Duration {
    let nanos = crate::runtime::watch::now_ms().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let part = f64::from(u32::try_from(nanos).unwrap_or(0)) / f64::from(1_u32 << 24);
    interval.mul_f64(1.0 + JITTER * (2.0 * part - 1.0))
}

/// Raises the soft limit of open files to the hard one: each lingering mapping holds one, each living container two.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
