//! `quaymaster doctor`: looks at what the daemon needs, one thing after another, and says what to do about each
//! that is not well. It changes nothing, on the host or on the bus.

mod bus;
mod host;
mod runtimes;

use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

use super::{EXIT_FAILURE, EXIT_OK, Failure};
use crate::config::{Config, Overrides};

/// The arguments of `quaymaster doctor`.
#[derive(clap::Args, Clone, Debug)]
pub struct DoctorArgs {
    /// The settings.
    #[command(flatten)]
    pub overrides: Overrides,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// How the findings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: a line each, and one for what to do.
    Text,
    /// For programs: an object with the findings.
    Json,
}

/// How well one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// As it should be.
    Well,
    /// It works, with less than could be had.
    Limited,
    /// A person has to act.
    Unwell,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Limited => "limited",
            Self::Unwell => "unwell",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// Which thing.
    check: &'static str,
    health: Health,
    found: String,
    /// What to do; empty where there is nothing.
    remedy: String,
    /// The exit code of a command for which this is the first that does not work.
    #[serde(skip)]
    code: u8,
}

impl Finding {
    fn well(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            health: Health::Well,
            found: found.into(),
            remedy: String::new(),
            code: EXIT_OK,
        }
    }

    fn limited(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            health: Health::Limited,
            found: found.into(),
            remedy: remedy.into(),
            code: EXIT_OK,
        }
    }

    fn unwell(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            health: Health::Unwell,
            code: EXIT_FAILURE,
            ..Self::limited(check, found, remedy)
        }
    }

    /// The same, for a command that ends with this code.
    fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    well: bool,
    findings: &'a [Finding],
}

/// Looks at everything and prints what was found.
///
/// # Errors
/// As [`super::load`], and [`EXIT_FAILURE`] where something is not well, or the output cannot
/// be written.
pub async fn run(args: &DoctorArgs, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let config = super::load(&args.overrides)?;
    let mut findings = host::look(&config);
    findings.extend(runtimes::look(&config).await);
    findings.extend(bus::look(&config).await);
    let text = match args.format {
        Format::Text => text(&findings),
        Format::Json => json(&findings)?,
    };
    out.write_all(text.as_bytes()).map_err(|error| {
        Failure::new(EXIT_FAILURE, format!("failed to write the output: {error}"))
    })?;
    match count(&findings, Health::Unwell) {
        0 => Ok(()),
        unwell => Err(Failure::new(
            EXIT_FAILURE,
            format!("{unwell} of {} checks need attention", findings.len()),
        )),
    }
}

/// What the runtimes and the bus say, a line each.
///
/// # Errors
/// The first that does not work, with what to do, and its exit code.
pub async fn live(config: &Config) -> Result<String, Failure> {
    let mut findings = runtimes::look(config).await;
    findings.extend(bus::look(config).await);
    let unwell = findings
        .iter()
        .find(|finding| finding.health == Health::Unwell);
    match unwell {
        None => Ok(text(&findings)),
        Some(Finding {
            check,
            found,
            remedy,
            code,
            ..
        }) => Err(Failure::new(*code, format!("{check}: {found}: {remedy}"))),
    }
}

fn count(findings: &[Finding], health: Health) -> usize {
    let of = |finding: &&Finding| finding.health == health;
    findings.iter().filter(of).count()
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding {
            check,
            health,
            found,
            remedy,
            code: _,
        } = finding;
        text.push_str(&format!("{:<8} {check:<12} {found}\n", health.as_str()));
        if !remedy.is_empty() {
            text.push_str(&format!("{:<21} -> {remedy}\n", ""));
        }
    }
    text
}

fn json(findings: &[Finding]) -> Result<String, Failure> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        well: count(findings, Health::Unwell) == 0,
        findings,
    };
    let text = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::new(EXIT_FAILURE, format!("failed to write JSON: {error}")))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_is_followed_by_what_to_do() {
        let findings = [
            Finding::well("clock", "2026"),
            Finding::unwell("bus", "away", "start it"),
        ];
        let text = text(&findings);
        assert_eq!(
            text,
            "well     clock        2026\nunwell   bus          away\n                      -> start it\n"
        );
        let json = json(&findings).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
        assert_eq!(json["well"], false);
        assert_eq!(json["findings"][1]["health"], "unwell");
    }
}
