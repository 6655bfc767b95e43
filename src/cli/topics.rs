//! `quaymaster topics`: makes, checks and shows the topics of the configured bus, and tidies them up.

use std::io::Write;

use clap::Subcommand;

use super::{EXIT_CONFIG, EXIT_FAILURE, Failure, sink_failure as failure};
use crate::config::Overrides;
use crate::sink::kafka::{self, topics::Admin};
use crate::sink::nats::NatsSink;
use crate::sink::{Bus, Reaped, TopicSettings};

/// The name under which the bus sees these commands.
const CLIENT_ID: &str = "quaymaster-topics";

/// What expired this long ago is reaped, in milliseconds (design §3).
const REAP_AFTER_MS: i64 = 24 * 3_600_000;

/// What to do with the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum TopicsCommand {
    /// Create the topics, streams and buckets that are missing, and check the others
    Create,
    /// Check that they are there and keep what their readers rely on
    Verify,
    /// Show them as they are
    List,
    /// Tombstone the rows of hosts that have been silent for a day after their rows expired
    Reap,
}

/// Runs a command against the configured bus, at the present time.
///
/// # Errors
/// As [`run`], and [`EXIT_CONFIG`] for a setting that is wrong.
pub async fn configured(
    overrides: &Overrides,
    command: TopicsCommand,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let config = super::load(overrides)?;
    let now_ms = i64::try_from(crate::runtime::watch::now_ms()).unwrap_or(i64::MAX);
    run(command, config.bus, &config.topics, now_ms, out).await
}

/// Runs a command against the bus and prints what came of it, a line each. `now_ms` is the present in unix
/// milliseconds.
///
/// # Errors
/// A [`Failure`] with [`EXIT_CONFIG`] for a topic or setting that a person must alter, [`super::EXIT_UNAVAILABLE`] for
/// a bus that does not answer, [`super::EXIT_NO_PERMISSION`] where a right is missing, [`EXIT_FAILURE`] where the output cannot be written.
pub async fn run(
    command: TopicsCommand,
    bus: impl Into<Bus>,
    settings: &TopicSettings,
    now_ms: i64,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    settings.check().map_err(failure)?;
    let bus = &bus.into();
    let lines = match command {
        TopicsCommand::Create => create(bus, settings).await?,
        TopicsCommand::Verify => verify(bus, settings).await?,
        TopicsCommand::List => list(bus, settings).await?,
        TopicsCommand::Reap => reap(bus, settings, now_ms).await?,
    };
    for line in lines {
        writeln!(out, "{line}").map_err(|error| {
            Failure::new(EXIT_FAILURE, format!("failed to write the output: {error}"))
        })?;
    }
    Ok(())
}

async fn create(bus: &Bus, settings: &TopicSettings) -> Result<Vec<String>, Failure> {
    let created = match bus {
        Bus::Stdout => return Err(no_topics()),
        Bus::Kafka(servers) => {
            let admin = Admin::new(servers, CLIENT_ID).map_err(failure)?;
            let created = admin.create(settings).await.map_err(failure)?;
            admin.verify(settings).await.map_err(failure)?;
            created
        }
        Bus::Nats(servers) => {
            let mut sink = NatsSink::new(servers, settings, CLIENT_ID);
            let created = sink.create_streams().await.map_err(failure)?;
            sink.verify_streams().await.map_err(failure)?;
            created
        }
    };
    let mut lines: Vec<_> = created
        .into_iter()
        .map(|name| format!("created {name}"))
        .collect();
    lines.push("all topics are there and as needed".to_owned());
    Ok(lines)
}

async fn verify(bus: &Bus, settings: &TopicSettings) -> Result<Vec<String>, Failure> {
    match bus {
        Bus::Stdout => return Err(no_topics()),
        Bus::Kafka(servers) => {
            let admin = Admin::new(servers, CLIENT_ID).map_err(failure)?;
            admin.verify(settings).await.map_err(failure)?;
        }
        Bus::Nats(servers) => {
            let mut sink = NatsSink::new(servers, settings, CLIENT_ID);
            sink.verify_streams().await.map_err(failure)?;
        }
    }
    Ok(vec!["all topics are there and as needed".to_owned()])
}

async fn list(bus: &Bus, settings: &TopicSettings) -> Result<Vec<String>, Failure> {
    match bus {
        Bus::Stdout => Err(no_topics()),
        Bus::Kafka(servers) => {
            let admin = Admin::new(servers, CLIENT_ID).map_err(failure)?;
            let infos = admin.list(settings).await.map_err(failure)?;
            Ok(infos.iter().map(ToString::to_string).collect())
        }
        Bus::Nats(servers) => {
            let mut sink = NatsSink::new(servers, settings, CLIENT_ID);
            let infos = sink.list_streams().await.map_err(failure)?;
            Ok(infos.iter().map(ToString::to_string).collect())
        }
    }
}

async fn reap(bus: &Bus, settings: &TopicSettings, now_ms: i64) -> Result<Vec<String>, Failure> {
    let before_ms = now_ms.saturating_sub(REAP_AFTER_MS);
    let reaped = match bus {
        Bus::Stdout => return Err(no_topics()),
        Bus::Kafka(servers) => kafka::reap(servers, settings, CLIENT_ID, before_ms).await,
        Bus::Nats(servers) => {
            NatsSink::new(servers, settings, CLIENT_ID)
                .reap(before_ms)
                .await
        }
    };
    let line = |one: &Reaped| {
        let Reaped {
            name,
            read,
            tombstoned,
        } = one;
        format!("{name}: {tombstoned} keys tombstoned, {read} messages read")
    };
    Ok(reaped.map_err(failure)?.iter().map(line).collect())
}

fn no_topics() -> Failure {
    Failure::new(
        EXIT_CONFIG,
        "the bus is stdout, which has no topics: give a kafka:// or nats:// bus",
    )
}
