//! A collector with its watches and a sink, in this process, for the benchmarks on real runtimes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use quaymaster::collector::{Input, ObservationSender, Parts, Running, Snapshot};
use quaymaster::fdstore::FdStore;
use quaymaster::model::{RuntimeType, Topic};
use quaymaster::outbox::{self, Outbox, Owner};
use quaymaster::procfs::{FirstLook, ProcessTable};
use quaymaster::reconcile::{Identity, Observation, Settings};
use quaymaster::runtime::watch::{EndpointFigures, WatchContext, watch as watch_endpoint};
use quaymaster::runtime::{Endpoint, Options, containerd};
use quaymaster::sink::publisher::Publisher;
use quaymaster::sink::{Ended, Outgoing, Report, Sink, SinkError, SinkHealth};
use quaymaster::wire::{Host, Refresh, Renderer};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Messages between a sink and one around it.
const QUEUE: usize = 256;
/// How long a benchmark waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many records and mappings a bus has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    records: usize,
    mappings: usize,
}

/// What a bus was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// How much by now.
    pub(crate) keys: Keys,
    /// When it was all.
    pub(crate) all_at: Option<Instant>,
}

/// A bus that has everything at once, and counts the keys.
pub(crate) struct Counting {
    told: watch::Sender<Told>,
    all: Keys,
}

impl Counting {
    /// Whoever has the receiver is woken once, when it is `all`: the counting is to cost nothing.
    pub(crate) fn new(all: Keys) -> (Self, watch::Receiver<Told>) {
        let (told, counted) = watch::channel(Told::default());
        (Self { told, all }, counted)
    }
}

#[async_trait]
impl Sink for Counting {
    async fn prepare(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn run(
        &mut self,
        requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        let (passed, nowhere) = mpsc::channel(QUEUE);
        let acking = tokio::spawn(async move {
            let mut sink = crate::latency::Nowhere;
            sink.run(nowhere, reports, health, stop).await
        });
        let mut requests = requests;
        let (mut records, mut mappings) = (BTreeSet::new(), BTreeSet::new());
        while let Some(message) = requests.recv().await {
            match message.topic {
                Topic::Records => _ = records.insert(message.item.clone()),
                Topic::Pns => _ = mappings.insert(message.item.clone()),
                Topic::Deltas | Topic::Status | Topic::Processes | Topic::Ports => {}
            }
            let keys = Keys {
                records: records.len(),
                mappings: mappings.len(),
            };
            self.told.send_if_modified(|told| {
                told.keys = keys;
                let is_all = keys == self.all && told.all_at.is_none();
                if is_all {
                    told.all_at = Some(Instant::now());
                }
                is_all
            });
            if passed.send(message).await.is_err() {
                break;
            }
        }
        drop(passed);
        let _ = acking.await;
        Ok(Ended::Finished)
    }
}

pub(crate) struct Daemon {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    figures: BTreeMap<String, Arc<EndpointFigures>>,
    running: Running,
    context: WatchContext,
    watches: JoinSet<()>,
    publisher: tokio::task::JoinHandle<Result<(), quaymaster::sink::SinkError>>,
    stop: CancellationToken,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// A collector without a state.
    pub(crate) async fn start(endpoints: &[Endpoint], sink: Box<dyn Sink>) -> anyhow::Result<Self> {
        Self::restart(endpoints, sink, new_folder()?).await
    }

    /// A collector with the state that another left.
    pub(crate) async fn restart(
        endpoints: &[Endpoint],
        sink: Box<dyn Sink>,
        directory: tempfile::TempDir,
    ) -> anyhow::Result<Self> {
        let processes = Arc::new(ProcessTable::open(std::path::Path::new("/proc"))?);
        let host_id: Arc<str> = "bench".into();
        let owner = Owner {
            host_id: Arc::clone(&host_id),
            boot_id: "boot".into(),
            new_epoch: std::fs::read_to_string("/proc/sys/kernel/random/uuid")?
                .trim()
                .to_owned(),
        };
        // As in `run`.
        let first_look = (!Outbox::exists(directory.path())).then(|| FirstLook::begin(&processes));
        let opened = Outbox::open(directory.path(), &owner, outbox::Options::default())?;
        let reader = opened.outbox.reader();
        let host = Host {
            host_id: Arc::clone(&host_id),
            host_name: "bench".into(),
            boot_id: "boot".into(),
            epoch: opened.outbox.meta().epoch.as_str().into(),
        };
        let refresh = Refresh {
            records_ms: 300_000,
            pns_ms: 3_600_000,
            status_ms: 30_000,
        };
        let committed = Arc::new(Notify::new());
        let (status_tx, status) = mpsc::channel(16);
        let (snapshot_tx, snapshot) = watch::channel(Snapshot::default());
        let running = Running::start(Parts {
            outbox: opened.outbox,
            restored: opened.restored,
            owed: opened.owed,
            last_alive_ms: opened.last_alive_ms,
            identity: Identity {
                boot_id: "boot".into(),
                host_pns_inode: processes.host_pns_inode(),
                previous_epoch: None,
            },
            settings: Settings::default(),
            renderer: Renderer::new(host, refresh),
            processes: Arc::clone(&processes),
            first_look,
            fd_store: FdStore::default(),
            committed: Arc::clone(&committed),
            status: status_tx,
            snapshot: snapshot_tx,
            nested: mpsc::channel(1).0,
        })?;
        let stop = CancellationToken::new();
        let (health, _) = watch::channel(SinkHealth::default());
        let publisher = Publisher {
            reader,
            host_id,
            ce_source: "/quaymaster/bench".into(),
            committed,
            lost: Arc::new(tokio::sync::Notify::new()),
            status,
            reports: running.inputs.clone(),
            health,
            finish: CancellationToken::new(),
            stop: stop.clone(),
        };
        let context = WatchContext {
            observations: ObservationSender::new(running.inputs.clone()),
            options: Options::default(),
            processes,
            stop: stop.clone(),
        };
        let mut daemon = Self {
            inputs: running.inputs.clone(),
            snapshot,
            figures: BTreeMap::new(),
            running,
            context,
            watches: JoinSet::new(),
            publisher: tokio::spawn(publisher.run(sink)),
            stop,
            directory,
        };
        for endpoint in endpoints {
            daemon.context.options.claims.add(endpoint.runtime);
            if endpoint.runtime == RuntimeType::Cri {
                let (socket, cri) = (endpoint.path.clone(), endpoint.source_id());
                let hints = containerd::hints(socket, Some(cri), daemon.context.clone());
                daemon.watches.spawn(hints);
            }
            let (watched, task) = watch_endpoint(endpoint.clone(), daemon.context.clone());
            daemon
                .figures
                .insert(endpoint.uri(), Arc::clone(&watched.figures));
            daemon
                .inputs
                .send(Input::Watching(endpoint.source_id(), watched))
                .await?;
            daemon.watches.spawn(task);
        }
        Ok(daemon)
    }

    /// Waits until everything is listed and inspected.
    pub(crate) async fn settled(&mut self) -> anyhow::Result<()> {
        let settled = self
            .snapshot
            .wait_for(|snapshot| snapshot.is_settled && snapshot.status.state == "live");
        tokio::time::timeout(PATIENCE, settled)
            .await
            .context("not settled in time")??;
        Ok(())
    }

    /// Waits until so many runtimes are listed whole, and everything is inspected that has to be.
    pub(crate) async fn listed(&mut self, runtimes: usize) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.listed_runtimes() < runtimes {
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "not listed in time");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.settled().await
    }

    fn listed_runtimes(&self) -> usize {
        let listed =
            |figures: &&Arc<EndpointFigures>| figures.last_resync_ms.load(Ordering::Relaxed) != 0;
        self.figures.values().filter(listed).count()
    }

    /// One full resync, from its start to its end.
    pub(crate) async fn resync(&mut self) -> anyhow::Result<()> {
        let before = self.snapshot.borrow().status.resync.package_seq;
        self.inputs
            .send(Input::Observed(Observation::ResyncDue))
            .await?;
        let done = self.snapshot.wait_for(|snapshot| {
            snapshot.status.resync.package_seq > before && snapshot.status.resync.state == "end"
        });
        tokio::time::timeout(PATIENCE, done)
            .await
            .context("no resync in time")??;
        Ok(())
    }

    /// Calls that were made to the runtimes.
    pub(crate) fn calls(&self) -> u64 {
        self.figures
            .values()
            .map(|figures| figures.calls.load(Ordering::Relaxed))
            .sum()
    }

    /// What told of processes ahead of their containers' starts.
    pub(crate) fn print_hints(&self) {
        let pids = &self.context.options.pids;
        println!(
            "first told of: {} processes by bundles, {} by events",
            pids.of_bundles(),
            pids.of_events()
        );
    }

    /// Ends it, and gives its state.
    pub(crate) async fn end(mut self) -> anyhow::Result<tempfile::TempDir> {
        self.stop.cancel();
        while self.watches.join_next().await.is_some() {}
        let _ = self.publisher.await;
        drop(self.inputs);
        drop(self.context);
        let running = self.running;
        tokio::task::spawn_blocking(move || running.join()).await?;
        Ok(self.directory)
    }
}

/// A folder for a state, on a disk.
pub(crate) fn new_folder() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in("/var/tmp")?)
}

/// The endpoints that `benches/run` names.
pub(crate) fn endpoints() -> anyhow::Result<Vec<Endpoint>> {
    let docker =
        std::env::var("LAB_DOCKER_SOCKET").context("LAB_DOCKER_SOCKET: use `make bench`")?;
    let cri = std::env::var("LAB_CRI_SOCKET").context("LAB_CRI_SOCKET: use `make bench`")?;
    let docker: Endpoint = format!("docker=unix://{docker}").parse()?;
    let cri: Endpoint = format!("cri=unix://{cri}").parse()?;
    Ok(vec![docker, cri])
}

/// CPU seconds that some processes have used.
pub(crate) fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a stat has a name")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    }
    Ok(ticks / 100.0)
}

/// The runtimes' processes that `benches/run` names.
pub(crate) fn runtime_pids() -> anyhow::Result<Vec<u32>> {
    ["LAB_DOCKER_PID", "LAB_CONTAINERD2_PID"]
        .iter()
        .map(|name| {
            Ok(std::env::var(name)
                .with_context(|| format!("{name}: use `make bench`"))?
                .parse()?)
        })
        .collect()
}
