//! Logs: set up once, and the text of an error with all its causes.

use std::error::Error;
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Writes logs to stderr. `filter` is a directive such as `info` or `quaymaster=debug`.
///
/// # Errors
/// When the directive cannot be understood.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first one's settings.
    let _ = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    Ok(())
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
