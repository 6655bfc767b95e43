//! The subcommands, one file each, and what they share: exit codes, and how an error is told to a person.
//!
//! A subcommand writes to the writers it is given and returns its exit code; only `main.rs` touches the process.

pub mod config;
pub mod doctor;
pub mod enrich;
pub mod exec;
mod gather;
pub mod list;
pub mod outbox;
pub mod run;
pub mod schema;
pub mod topics;

use std::error::Error;
use std::time::Duration;

use crate::runtime::text;
use crate::telemetry;

/// All went well.
pub const EXIT_OK: u8 = 0;
/// Something failed that has no code of its own.
pub const EXIT_FAILURE: u8 = 1;
/// A setting is wrong.
pub const EXIT_CONFIG: u8 = 64;
/// No runtime answers (`EX_UNAVAILABLE` of sysexits.h).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Runtimes are there, and we may not connect to any (`EX_NOPERM`).
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

/// An error with all its causes, on one line, without control characters.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    text::escaped(&telemetry::chain(error))
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
