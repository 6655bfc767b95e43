//! `quaymaster enrich`: joins process events with the mappings, until SIGTERM.
//!
//! At the end no more events are taken, those that wait and those under way are ended for as long as the grace allows, and
//! what is done is committed. What is not, is the next one's.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use super::run::{bind, give_up_privileges, listening, on_signal};
use super::{EXIT_CONFIG, EXIT_FAILURE, Failure, chain, sink_failure};
use crate::backoff::Backoff;
use crate::config::enrich::EnrichOverrides;
use crate::config::{Config, Overrides};
use crate::enrich::joiner::{JoinSettings, OnInvalid};
use crate::enrich::shell::Setup;
use crate::enrich::shell::page::EnrichPage;
use crate::enrich::shell::stats::Stats;
use crate::enrich::{kafka, nats};
use crate::http;
use crate::model::Topic;
use crate::notify::Notifier;
use crate::sink::access::KafkaAccess;
use crate::sink::kafka::topics::Admin;
use crate::sink::{Bus, TopicSettings};
use crate::telemetry;

/// The first wait for a bus that is away, and the longest.
const BUS_WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How often the watchdog hears of us.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);

/// The arguments of `quaymaster enrich`.
#[derive(clap::Args, Clone, Debug)]
pub struct EnrichArgs {
    /// The settings that it shares with the daemon.
    #[command(flatten)]
    pub overrides: Overrides,
    /// Its own.
    #[command(flatten)]
    pub enrich: EnrichOverrides,
}

/// What needs more power than the joiner keeps: done before it is given up.
#[derive(Debug)]
pub struct Ready {
    config: Config,
    listener: Option<std::net::TcpListener>,
}

/// Gets what the joiner needs, and gives up its privileges. Threads that there are already keep theirs: call it first.
///
/// # Errors
/// With the exit code for what is wrong.
pub fn ready(args: &EnrichArgs) -> Result<Ready, Failure> {
    let (config, _) = Config::load_with_file(&args.overrides, &args.enrich)?;
    telemetry::start(&config.log_filter, config.log_format)
        .map_err(|error| Failure::new(EXIT_CONFIG, error))?;
    config.bus.check().map_err(sink_failure)?;
    setup(&config)?;
    let listener = config.http_listen.map(bind).transpose()?;
    give_up_privileges(&config, args.overrides.config.as_deref());
    Ok(Ready { config, listener })
}

/// Joins until SIGTERM or SIGINT.
///
/// # Errors
/// With the exit code for what is wrong.
pub async fn run(ready: Ready) -> Result<(), Failure> {
    let Ready { config, listener } = ready;
    let setup = setup(&config)?;
    let listener = listener.map(listening).transpose()?;
    let stats = Arc::new(Stats::default());
    let stop = stopped_by_signal()?;
    let http_stop = CancellationToken::new();
    let http = listener.map(|listener| {
        let page = EnrichPage(Arc::clone(&stats));
        tokio::spawn(http::serve(listener, page, http_stop.clone()))
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        bus = %config.bus.url(),
        input = setup.input,
        output = setup.output,
        group = setup.group,
        "starting"
    );
    let notifier = Notifier::of_environment();
    let result = tokio::select! {
        result = join(&config, setup, &stats, &stop) => result,
        () = watch(&notifier, &stats) => Ok(()),
    };
    notifier.stopping();
    http_stop.cancel();
    if let Some(http) = http {
        // It ends at once; what went wrong in it ends here too.
        let _ = http.await;
    }
    result
}

async fn join(
    config: &Config,
    setup: Setup,
    stats: &Arc<Stats>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    match &config.bus {
        Bus::Stdout => Err(no_bus()),
        Bus::Kafka(access) => {
            if !prepare_kafka(&setup, access, stats, stop).await? {
                return Ok(());
            }
            let (access, stats, stop) = (access.clone(), Arc::clone(stats), stop.clone());
            let joined =
                tokio::task::spawn_blocking(move || kafka::run(&setup, &access, &stats, &stop))
                    .await;
            match joined {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failure::new(EXIT_CONFIG, error)),
                Err(error) => Err(Failure::new(
                    EXIT_FAILURE,
                    format!("the enricher ended abnormally: {error}"),
                )),
            }
        }
        Bus::Nats(access) => nats::run(&setup, access, stats, stop)
            .await
            .map_err(|error| Failure::new(EXIT_CONFIG, error)),
    }
}

/// Creates or checks the topics, for as long as the bus is away. Whether it was done before it was stopped.
async fn prepare_kafka(
    setup: &Setup,
    access: &KafkaAccess,
    stats: &Stats,
    stop: &CancellationToken,
) -> Result<bool, Failure> {
    let mut backoff = Backoff::new(BUS_WAIT.0, BUS_WAIT.1);
    loop {
        let attempt = async {
            let admin = Admin::new(access, &setup.client_id)?;
            admin.prepare(&setup.topics).await?;
            let mut names = vec![setup.output.as_str()];
            if setup.join.on_invalid == OnInvalid::Topic {
                names.push(&setup.invalid);
            }
            admin.ensure_like(&setup.input, &names, &setup.topics).await
        };
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(false),
            result = attempt => match result {
                Ok(()) => return Ok(true),
                Err(error) if error.may_heal() => chain(&error),
                Err(error) => return Err(sink_failure(error)),
            },
        };
        tracing::warn!(error, "the bus is away");
        stats.heartbeat.beat();
        stats.tell(|figures| figures.error = error);
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// Tells systemd that we live, for as long as the enricher goes round; never ends.
async fn watch(notifier: &Notifier, stats: &Stats) {
    notifier.ready();
    let mut tick = tokio::time::interval(WATCHDOG_INTERVAL);
    loop {
        tick.tick().await;
        if let Some(patience) = notifier.watchdog()
            && stats.heartbeat.age() < patience / 2
        {
            notifier.alive();
        }
    }
}

fn stopped_by_signal() -> Result<CancellationToken, Failure> {
    let mut terminate = on_signal(SignalKind::terminate())?;
    let mut interrupt = on_signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    // It ends with the process at the latest.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(stop)
}

fn setup(config: &Config) -> Result<Setup, Failure> {
    let missing = |flag: &str| {
        Failure::new(
            EXIT_CONFIG,
            format!("no {flag} topic: set `--{flag}` (`enrich.{flag}`)"),
        )
    };
    let enrich = &config.enrich;
    let input = enrich.input.clone().ok_or_else(|| missing("input"))?;
    let output = enrich.output.clone().ok_or_else(|| missing("output"))?;
    let invalid = enrich.invalid_topic.clone();
    Ok(Setup {
        // Of the collectors' topics only the mappings matter to it: no right is needed on the others.
        topics: TopicSettings {
            used: vec![Topic::Pns],
            ..config.topics.clone()
        },
        client_id: enrich.group.clone(),
        input,
        invalid: invalid.unwrap_or_else(|| format!("{output}.invalid")),
        output,
        group: enrich.group.clone(),
        fields: enrich.fields.clone(),
        join: JoinSettings {
            added_field: enrich.added_field.clone(),
            grace_ms: u64::try_from(enrich.grace.as_millis()).unwrap_or(u64::MAX),
            waiting_max: enrich.waiting_max,
            waiting_bytes_max: usize::try_from(enrich.waiting_max_bytes).unwrap_or(usize::MAX),
            on_invalid: enrich.on_invalid,
        },
    })
}

fn no_bus() -> Failure {
    Failure::new(
        EXIT_CONFIG,
        "nothing to join on stdout: give a kafka:// or nats:// bus",
    )
}
