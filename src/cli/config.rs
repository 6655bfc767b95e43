//! `quaymaster config`: what is in force and where it comes from, whether it is valid, and an example.

use std::io::Write;

use clap::parser::ValueSource;
use clap::{ArgMatches, Subcommand};

use super::{EXIT_CONFIG, EXIT_FAILURE, Failure, doctor, sink_failure};
use crate::config::access::SECRET_VARIABLES;
use crate::config::enrich::EnrichOverrides;
use crate::config::keys::{self, KEYS, Key};
use crate::config::{Config, Overrides};
use crate::{host, telemetry};

/// The flags and variables of every command.
#[derive(Clone, Debug, clap::Args)]
pub struct AllOverrides {
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    enrich: EnrichOverrides,
}

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what is in force, and where each value comes from: default, file, environment or flag
    Show(Box<AllOverrides>),
    /// Say whether the configuration is valid
    Check(Box<CheckArgs>),
    /// Print a file with every key and its default, as comments
    Example,
}

/// The arguments of `quaymaster config check`.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {
    /// The settings.
    #[command(flatten)]
    pub all: AllOverrides,
    /// Also ask the runtimes and the bus
    #[arg(long)]
    pub live: bool,
}

/// Runs a command. `matches` are the arguments of `config`, which know what came from a flag and what from the
/// environment.
///
/// # Errors
/// [`EXIT_CONFIG`] for the first setting that is wrong, [`EXIT_FAILURE`] where the output cannot be written.
pub async fn run(
    command: &ConfigCommand,
    matches: Option<&ArgMatches>,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let text = match command {
        ConfigCommand::Show(all) => {
            let (config, file) = Config::load_with_file(&all.overrides, &all.enrich)?;
            let matches = matches.and_then(|matches| matches.subcommand_matches("show"));
            let origin = |key: &Key| origin(key, matches, &file);
            show(&config, &origin)
        }
        ConfigCommand::Check(args) => check(args).await?,
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

/// All that can be said of a configuration without the runtimes and the bus, and, where it is asked for, what these say:
/// the first that does not work is told, with its exit code.
async fn check(args: &CheckArgs) -> Result<String, Failure> {
    let (config, _) = Config::load_with_file(&args.all.overrides, &args.all.enrich)?;
    config.bus.check().map_err(sink_failure)?;
    let failure = |error: String| Failure::new(EXIT_CONFIG, error);
    telemetry::check_filter(&config.log_filter).map_err(failure)?;
    let host_id = host::host_id(config.host_id.as_deref()).map_err(failure)?;
    let live = if args.live {
        doctor::live(&config).await?
    } else {
        String::new()
    };
    Ok(format!(
        "{live}the configuration is valid: host {host_id}, bus {}\n",
        config.bus
    ))
}
