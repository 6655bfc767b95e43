//! The subcommands, one file each, and what they share: exit codes, and how an error is told to a person.
//!
//! A subcommand writes to the writers it is given and returns its exit code; only `main.rs` touches the process.

mod choose;
pub mod config;
pub mod doctor;
pub mod enrich;
pub mod exec;
mod gather;
pub mod list;
pub mod local;
pub mod manual;
pub mod outbox;
pub mod ports;
pub mod processes;
pub mod run;
pub mod schema;
mod table;
pub mod top;
pub mod topics;
pub mod whois;

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use crate::config::{Config, ConfigError, Overrides};
use crate::outbox::OutboxError;
use crate::runtime::text;
use crate::sink::SinkError;
use crate::{privileges, telemetry};

/// All went well.
pub const EXIT_OK: u8 = 0;
/// Something failed that has no code of its own.
pub const EXIT_FAILURE: u8 = 1;
/// A setting is wrong.
pub const EXIT_CONFIG: u8 = 64;
/// No runtime answers, or no bus (`EX_UNAVAILABLE` of sysexits.h).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// There is no permission: for runtimes that are there, for a file, or at the bus (`EX_NOPERM`).
pub const EXIT_NO_PERMISSION: u8 = 77;

/// Why a subcommand ends: the exit code, and one line for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    message: String,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Read { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                EXIT_NO_PERMISSION
            }
            ConfigError::Read { .. }
            | ConfigError::Parse { .. }
            | ConfigError::UnknownKey { .. }
            | ConfigError::Value { .. } => EXIT_CONFIG,
        };
        Self::new(code, chain(&error))
    }
}

/// The configuration, with the files of certificates and secrets that it names looked at: what every subcommand that
/// goes to a bus begins with.
///
/// # Errors
/// [`EXIT_CONFIG`] for a setting or a file that is wrong, [`EXIT_NO_PERMISSION`] for a file that this user may not read.
pub fn load(overrides: &Overrides) -> Result<Config, Failure> {
    let config = Config::load(overrides)?;
    if !config.keep_privileges {
        privileges::leave_no_core();
    }
    config.bus.check().map_err(sink_failure)?;
    Ok(config)
}

/// What a bus has against us, with its exit code.
pub fn sink_failure(error: SinkError) -> Failure {
    let code = match &error {
        SinkError::Misconfigured { .. } | SinkError::Untrusted { .. } => EXIT_CONFIG,
        SinkError::Unavailable { .. } => EXIT_UNAVAILABLE,
        SinkError::Denied { .. } => EXIT_NO_PERMISSION,
        SinkError::File(error) if error.is_denied() => EXIT_NO_PERMISSION,
        SinkError::File(_) => EXIT_CONFIG,
    };
    Failure::new(code, chain(&error))
}

/// A state that this user may not use.
pub(crate) fn state_denied(error: &OutboxError) -> Failure {
    let uid = rustix::process::geteuid().as_raw();
    let remedy = format!(
        "let the user of this process (uid {uid}) write it (in a systemd unit `ReadWritePaths=` too), or choose another with \
         `--state-dir`"
    );
    Failure::new(EXIT_NO_PERMISSION, format!("{}: {remedy}", chain(error)))
}

/// An error with all its causes, on one line, without control characters.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    text::escaped(&telemetry::chain(error))
}

/// The exit code after the output was written, or was not.
fn written(result: io::Result<()>, err: &mut dyn Write) -> u8 {
    match result {
        Ok(()) => EXIT_OK,
        // The reader has seen enough, as in `quaymaster list | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
        Err(error) => {
            // When even stderr is closed there is nobody left to tell.
            let _ = writeln!(err, "quaymaster: failed to write the output: {error}");
            EXIT_FAILURE
        }
    }
}

/// Reads a time: `10` and `10s` are seconds, `500ms`, `2m`, `1h`.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => {
            return Err(format!(
                "`{unit}` is no unit: write ms, s, m or h, as in `30s`"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number and a unit, as in `30s`".to_owned())?;
    match number.checked_mul(unit_ms) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        Some(_) => Err("the time must be longer than 0".to_owned()),
        None => Err("the time is too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, expected) in [
            ("10", Some(10_000)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", None),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("-1", None),
            ("10d", None),
            ("99999999999999999999", None),
            ("9999999999999999999h", None),
        ] {
            let read = parse_duration(text).ok();
            assert_eq!(read, expected.map(Duration::from_millis), "{text}");
        }
    }
}
