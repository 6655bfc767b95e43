//! `quaymaster config`: what is in force and where it comes from, whether it is valid, and an example.

use std::io::Write;

use clap::parser::ValueSource;
use clap::{ArgMatches, Subcommand};

use super::{EXIT_CONFIG, EXIT_FAILURE, Failure};
use crate::config::access::SECRET_VARIABLES;
use crate::config::keys::{self, KEYS, Key};
use crate::config::{Config, Overrides};
use crate::{host, telemetry};

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what is in force, and where each value comes from: default, file, environment or flag
    Show(Box<Overrides>),
    /// Say whether the configuration is valid
    Check(Box<Overrides>),
    /// Print a file with every key and its default, as comments
    Example,
}

/// Runs a command. `matches` are the arguments of `config`, which know what came from a flag and what from the
/// environment.
///
/// # Errors
/// [`EXIT_CONFIG`] for the first setting that is wrong, [`EXIT_FAILURE`] where the output cannot be written.
pub fn run(
    command: &ConfigCommand,
    matches: Option<&ArgMatches>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let text = match command {
        ConfigCommand::Show(overrides) => {
            let (config, file) = Config::load_with_file(overrides)?;
            let matches = matches.and_then(|matches| matches.subcommand_matches("show"));
            let origin = |key: &Key| origin(key, matches, &file);
            show(&config, &origin)
        }
        ConfigCommand::Check(overrides) => check(overrides)?,
        ConfigCommand::Example => {
            let defaults = Config::defaults()?;
            keys::example(&defaults)
        }
    };
    out.write_all(text.as_bytes())
        .map_err(|error| Failure::new(EXIT_FAILURE, format!("failed to write the output: {error}")))
}

/// The values in force, as TOML, each with where it comes from.
fn show(config: &Config, origin: &dyn Fn(&Key) -> &'static str) -> String {
    let lines: Vec<(String, &'static str)> = KEYS
        .iter()
        .map(|key| match (key.value)(config) {
            Some(value) => (format!("{} = {value}", key.name), origin(key)),
            None => (format!("# {} is not set{}", key.name, held(key)), ""),
        })
        .collect();
    let width = lines
        .iter()
        .filter(|(_, origin)| !origin.is_empty())
        .map(|(line, _)| line.chars().count())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (line, origin) in lines {
        if origin.is_empty() {
            text.push_str(&line);
        } else {
            text.push_str(&format!("{line:width$}  # {origin}"));
        }
        text.push('\n');
    }
    text
}

/// Says that a variable holds the secret of a key; never the secret.
fn held(key: &Key) -> String {
    SECRET_VARIABLES
        .iter()
        .filter(|(of, _)| *of == key.name)
        .filter(|(_, name)| std::env::var_os(name).is_some_and(|text| !text.is_empty()))
        .map(|(_, name)| format!(": {name} holds the secret"))
        .collect()
}

fn origin(key: &Key, matches: Option<&ArgMatches>, file: &toml::Table) -> &'static str {
    let source = key
        .flag
        .and_then(|flag| matches.and_then(|matches| matches.value_source(flag)));
    match source {
        Some(ValueSource::CommandLine) => "flag",
        Some(ValueSource::EnvVariable) => "environment",
        _ if keys::is_set_in(file, key) => "file",
        _ => "default",
    }
}

/// All that can be said of a configuration without the runtimes and the bus (for those there is `doctor`).
fn check(overrides: &Overrides) -> Result<String, Failure> {
    let config = super::load(overrides)?;
    let failure = |error: String| Failure::new(EXIT_CONFIG, error);
    telemetry::check_filter(&config.log_filter).map_err(failure)?;
    let host_id = host::host_id(config.host_id.as_deref()).map_err(failure)?;
    Ok(format!(
        "the configuration is valid: host {host_id}, bus {}\n",
        config.bus
    ))
}
