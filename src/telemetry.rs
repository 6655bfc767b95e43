//! Logs: set up once, and the text of an error with all its causes.

use std::error::Error;
use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the filter of the logs that were started.
static FILTER: OnceLock<FilterHandle> = OnceLock::new();

type FilterHandle = Handle<EnvFilter, Registry>;

/// Writes logs to stderr. `filter` is a directive such as `info` or `quaymaster=debug`.
///
/// # Errors
/// When the directive cannot be understood.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let logs = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => logs.with(lines).try_init(),
        LogFormat::Json => logs.with(lines.json()).try_init(),
    };
    // A second start in one process (tests) keeps the first one's settings.
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Logs by another filter from now on.
///
/// # Errors
/// When the directive cannot be understood, or no logs were started.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    let handle = FILTER.get().ok_or("no logs were started")?;
    handle.reload(filter).map_err(|error| error.to_string())
}

/// Says what is wrong with a log filter.
///
/// # Errors
/// When the directive cannot be understood.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse_filter(filter).map(drop)
}

/// The NATS client logs each attempt that fails, once a second: what it has to say is in the bus's health.
fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("async_nats=off,{filter}"))
        .map_err(|error| format!("the log filter `{filter}` is not valid: {error}"))
}

/// The text of an error and of all its causes: `a: b: c`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
