//! `quaymaster outbox`: what the state directory owes to the bus, and what the bus refused.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Subcommand;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, Failure, chain};
use crate::config::{Config, Overrides};
use crate::model::Topic;
use crate::outbox::{Figures, Holdings, OutboxError, Quarantined};

/// What to do with the outbox, while no collector runs.
#[derive(Clone, Debug, Subcommand)]
pub enum OutboxCommand {
    /// Count what is owed to the bus and what it refused, by topic
    Show(Box<Overrides>),
    /// Print the messages that the bus refused, as JSON lines
    Export(Box<Overrides>),
    /// Forget the messages that the bus refused; what is owed stays
    Drop {
        /// The settings.
        #[command(flatten)]
        overrides: Box<Overrides>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// Runs a command on the configured state directory, at the present time.
///
/// # Errors
/// 64 for a setting that is wrong, [`EXIT_UNAVAILABLE`] where there is no state or a collector has it,
/// [`EXIT_FAILURE`] where it cannot be read or the output cannot be written.
pub fn run(command: &OutboxCommand, out: &mut dyn Write) -> Result<(), Failure> {
    let (OutboxCommand::Show(overrides)
    | OutboxCommand::Export(overrides)
    | OutboxCommand::Drop { overrides, .. }) = command;
    let config = Config::load(overrides)?;
    let holdings = Holdings::open(&config.state_dir).map_err(|error| failure(&error))?;
    match command {
        OutboxCommand::Show(_) => {
            let now_ms = i64::try_from(crate::runtime::watch::now_ms()).unwrap_or(i64::MAX);
            show(&holdings, now_ms, out)
        }
        OutboxCommand::Export(_) => export(&holdings, out),
        OutboxCommand::Drop { yes, .. } => drop_quarantined(&holdings, *yes, out),
    }
}

fn show(holdings: &Holdings, now_ms: i64, out: &mut dyn Write) -> Result<(), Failure> {
    let meta = holdings.meta();
    let mut text = format!(
        "host {}, epoch {}, newest delta {}\n\n{:<12} {:<8} {:>10} {:>12}  OLDEST\n",
        meta.host_id, meta.epoch, meta.seq, "WHERE", "TOPIC", "MESSAGES", "BYTES"
    );
    let owed = holdings.owed().map_err(|error| failure(&error))?;
    let quarantined = holdings.quarantined().map_err(|error| failure(&error))?;
    for (place, figures) in [("owed", &owed), ("quarantine", &quarantined)] {
        text.push_str(&rows(place, figures, now_ms));
    }
    write(out, &text)
}

fn rows(place: &str, figures: &BTreeMap<Topic, Figures>, now_ms: i64) -> String {
    let mut text = String::new();
    for topic in Topic::ALL {
        let figures = figures.get(&topic).copied().unwrap_or_default();
        let oldest = figures.oldest_ms.map_or("-".to_owned(), |oldest_ms| {
            let seconds = now_ms.saturating_sub(oldest_ms).max(0) / 1_000;
            let age = std::time::Duration::from_secs(seconds.unsigned_abs());
            format!("{} ago", humantime::format_duration(age))
        });
        // The status is never stored.
        if topic != Topic::Status {
            text.push_str(&format!(
                "{place:<12} {:<8} {:>10} {:>12}  {oldest}\n",
                topic.as_str(),
                figures.messages,
                figures.bytes
            ));
        }
    }
    text
}

/// One line of the export.
#[derive(Serialize)]
struct Line<'a> {
    row: u64,
    reason: &'a str,
    topic: &'a str,
    key: String,
    ce_id: &'a str,
    time_ms: i64,
    value: Option<&'a RawValue>,
}

fn export(holdings: &Holdings, out: &mut dyn Write) -> Result<(), Failure> {
    let mut written = Ok(());
    holdings
        .each_quarantined(&mut |one| {
            written = export_one(&one, out);
            written.is_ok()
        })
        .map_err(|error| failure(&error))?;
    written
}

fn export_one(one: &Quarantined, out: &mut dyn Write) -> Result<(), Failure> {
    let message = &one.message;
    let value = message
        .value
        .as_deref()
        .map(serde_json::from_slice)
        .transpose();
    let line = value.and_then(|value| {
        serde_json::to_string(&Line {
            row: message.row,
            reason: &one.reason,
            topic: message.topic.as_str(),
            key: message.key(),
            ce_id: &message.ce_id,
            time_ms: message.time_ms,
            value,
        })
    });
    let line = line.map_err(|error| {
        let row = message.row;
        Failure::new(EXIT_FAILURE, format!("row {row} is no JSON: {error}"))
    })?;
    write(out, &format!("{line}\n"))
}

fn drop_quarantined(holdings: &Holdings, yes: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if yes {
        let dropped = holdings
            .drop_quarantined()
            .map_err(|error| failure(&error))?;
        return write(out, &format!("{dropped} messages dropped\n"));
    }
    let figures = holdings.quarantined().map_err(|error| failure(&error))?;
    let messages: u64 = figures.values().map(|figures| figures.messages).sum();
    Err(Failure::new(
        EXIT_FAILURE,
        format!(
            "{messages} messages would be lost for good: `quaymaster outbox export` saves them, `--yes` drops them"
        ),
    ))
}

fn write(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes())
        .map_err(|error| Failure::new(EXIT_FAILURE, format!("failed to write the output: {error}")))
}

fn failure(error: &OutboxError) -> Failure {
    if error.is_denied() {
        return super::state_denied(error);
    }
    match error {
        OutboxError::Locked { path } => Failure::new(
            EXIT_UNAVAILABLE,
            format!(
                "a collector uses the state directory `{}`: stop it first, or see its status",
                path.display()
            ),
        ),
        OutboxError::Directory { path, source }
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            let path = path.display();
            let message =
                format!("there is no state in `{path}`: name its directory with `--state-dir`");
            Failure::new(EXIT_UNAVAILABLE, message)
        }
        OutboxError::Directory { .. }
        | OutboxError::OtherHost { .. }
        | OutboxError::Database { .. }
        | OutboxError::Format { .. }
        | OutboxError::Encoding { .. } => Failure::new(EXIT_FAILURE, chain(error)),
    }
}
