//! What `processes`, `ports` and `whois` share: the host's processes with the containers of all runtimes.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gather::{Gathered, gather};
use super::list::Format;
use super::{EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, Failure, sink_failure};
use crate::config::{Config, Overrides};
use crate::host;
use crate::local::scan::Scene;
use crate::local::tenants::Tenant;
use crate::model::Topic;
use crate::procfs::ProcessTable;
use crate::runtime::Options;
use crate::runtime::watch::now_ms;
use crate::sink::{Outgoing, SinkError, TopicSettings, snapshot};
use crate::wire::Host;
use crate::wire::local::Snapshot;

/// How long the bus has to take a snapshot that a person sends.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(60);

/// The arguments of `quaymaster processes` and `quaymaster ports`.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    /// The settings
    #[command(flatten)]
    pub overrides: Overrides,
    /// How to print
    #[arg(long, value_enum, default_value = "table", conflicts_with = "publish")]
    pub format: Format,
    /// Send them to the bus, once, instead of printing them
    #[arg(long)]
    pub publish: bool,
}

/// The host as it is now.
pub(super) struct Here {
    config: Config,
    pub(super) table: Arc<ProcessTable>,
    pub(super) scene: Scene,
    pub(super) gathered: Gathered,
}

impl Here {
    /// Asks the runtimes and reads the process table. What could not be had is told on `err`.
    ///
    /// # Errors
    /// With the exit code, once what is wrong was told on `err`.
    pub(super) async fn look(
        overrides: &Overrides,
        err: &mut (dyn Write + Send),
    ) -> Result<Self, u8> {
        match Self::try_look(overrides, err).await {
            Ok(here) => here,
            Err(failure) => Err(told(&failure, err)),
        }
    }

    async fn try_look(
        overrides: &Overrides,
        err: &mut (dyn Write + Send),
    ) -> Result<Result<Self, u8>, Failure> {
        let config = Config::load(overrides)?;
        let table =
            ProcessTable::open(&config.procfs).map_err(|error| no_table(&config, &error))?;
        let table = Arc::new(table);
        let gathered = gather(&config.endpoints, &Options::default()).await;
        for problem in &gathered.problems {
            // When even stderr is closed there is nobody left to tell.
            let _ = writeln!(err, "quaymaster: {problem}");
        }
        if let Some(code) = gathered.exit_code_if_unanswered() {
            return Ok(Err(code));
        }
        let tenants: Vec<Tenant> = gathered.found.iter().filter_map(tenant).collect();
        let reading = Arc::clone(&table);
        let scene = tokio::task::spawn_blocking(move || Scene::read(&reading, tenants)).await;
        let scene = scene
            .map_err(|error| Failure::new(EXIT_FAILURE, error.to_string()))?
            .map_err(|error| no_table(&config, &error))?;
        Ok(Ok(Self {
            config,
            table,
            scene,
            gathered,
        }))
    }

    /// What renders the messages of this moment.
    ///
    /// # Errors
    /// Where the host has no id that will do.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Failure> {
        let config = &self.config;
        let host_id = host::host_id(config.host_id.as_deref())
            .map_err(|error| Failure::new(EXIT_CONFIG, error))?;
        let boot_id = self
            .table
            .boot_id()
            .map_err(|error| no_table(config, &error))?;
        let host = Host {
            host_id: host_id.into(),
            host_name: config
                .host_name
                .clone()
                .unwrap_or_else(host::host_name)
                .into(),
            boot_id: boot_id.into(),
            epoch: "".into(),
        };
        Ok(Snapshot::new(host, now_ms()))
    }

    /// Sends messages to the bus, and says what became of them.
    ///
    /// Returns the exit code: 0 where the bus has them all, 1 where not, 64 or 69 where none was sent.
    pub(super) async fn publish(
        &self,
        topic: Topic,
        messages: Vec<Outgoing>,
        err: &mut (dyn Write + Send),
    ) -> u8 {
        let count = messages.len();
        let sent = match self.try_publish(topic, messages).await {
            Ok(sent) => sent,
            Err(error) => return told(&sink_failure(error), err),
        };
        let word = topic.as_str();
        if sent.lost() == 0 {
            let _ = writeln!(err, "quaymaster: the bus has {count} {word}");
            return EXIT_OK;
        }
        let message = format!(
            "the bus has {} of {count} {word}: {}",
            sent.acknowledged,
            crate::runtime::text::escaped(&sent.error)
        );
        told(&Failure::new(EXIT_FAILURE, message), err)
    }

    async fn try_publish(
        &self,
        topic: Topic,
        messages: Vec<Outgoing>,
    ) -> Result<snapshot::Sent, SinkError> {
        let topics = TopicSettings {
            used: vec![topic],
            ..self.config.topics.clone()
        };
        let client_id = format!("quaymaster-{}", topic.as_str());
        let sink = crate::sink::open(&self.config.bus, &topics, &client_id)?;
        let deadline = Instant::now() + PUBLISH_PATIENCE;
        snapshot::send(sink, messages, deadline, &CancellationToken::new()).await
    }
}

/// Tells on `err` what went wrong, and gives the exit code.
pub(super) fn told(failure: &Failure, err: &mut (dyn Write + Send)) -> u8 {
    let _ = writeln!(err, "quaymaster: {failure}");
    failure.code
}

fn tenant(found: &super::gather::Found) -> Option<Tenant> {
    let container = &found.container;
    let pid = container.pid.filter(|_| container.state.is_live())?;
    Some(Tenant {
        container: Arc::new(container.clone()),
        pid,
        start_ticks: None,
    })
}

fn no_table(config: &Config, error: &std::io::Error) -> Failure {
    let path = config.procfs.display();
    Failure::new(
        EXIT_UNAVAILABLE,
        format!("the process table at `{path}` cannot be read: {error}"),
    )
}
