//! The configuration: defaults, then the TOML file, then the environment, then flags; checked before anything starts.
//!
//! A raw form is read (serde; unknown keys are refused), and made into a [`Config`] whose every value is valid.

pub mod access;
pub mod enrich;
#[cfg(test)]
mod fuzz;
pub mod keys;
mod raw;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use access::{Access, AccessOverrides, RawAccess, Secrets};
use enrich::{EnrichOverrides, EnrichSettings};
use raw::{Raw, RawTopics};

use crate::model::Topic;
use crate::runtime::Endpoint;
use crate::sink::{Bus, BusUrl, ManageTopics, TopicSettings};
use crate::telemetry::LogFormat;
use crate::wire::encoding::Encoding;

/// The shortest and the longest time between two resyncs, or two snapshots.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3_600));
/// The least that the outbox may hold.
const OUTBOX_BYTES_MIN: u64 = 1024 * 1024;
/// Longest host id.
const HOST_ID_BYTES_MAX: usize = 128;

/// What can be set by flag or by environment; it wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where messages go: stdout:, kafka://HOST:PORT[,HOST:PORT…] or nats://HOST:PORT
    // A password that stands here by mistake is not for `--help` to show.
    #[arg(
        long,
        value_name = "URL",
        env = "QUAYMASTER_BUS",
        hide_env_values = true
    )]
    pub bus: Option<String>,
    /// Where the state and the outbox live
    #[arg(long, value_name = "DIR", env = "QUAYMASTER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// A runtime's socket: docker=, cri= or containerd=, then unix:///PATH; repeatable; instead of discovery
    #[arg(
        long = "endpoint",
        value_name = "ENDPOINT",
        env = "QUAYMASTER_ENDPOINT",
        value_delimiter = ','
    )]
    pub endpoints: Vec<String>,
    /// Time between two full resyncs, such as 5m
    #[arg(long, value_name = "TIME", env = "QUAYMASTER_RESYNC_INTERVAL")]
    pub resync_interval: Option<String>,
    /// The host's id in every key, instead of the text of /etc/machine-id
    #[arg(long, value_name = "ID", env = "QUAYMASTER_HOST_ID")]
    pub host_id: Option<String>,
    /// The host's name, instead of the kernel's
    #[arg(long, value_name = "NAME", env = "QUAYMASTER_HOST_NAME")]
    pub host_name: Option<String>,
    /// Where the host's /proc is mounted
    #[arg(long, value_name = "DIR", env = "QUAYMASTER_PROCFS")]
    pub procfs: Option<PathBuf>,
    /// The first word of all topics' names
    #[arg(long, value_name = "WORD", env = "QUAYMASTER_TOPICS_PREFIX")]
    pub topics_prefix: Option<String>,
    /// Kafka partitions of each topic that is created
    #[arg(long, value_name = "N", env = "QUAYMASTER_TOPICS_PARTITIONS")]
    pub topics_partitions: Option<i32>,
    /// Who makes topics, streams and buckets: create, verify or off
    #[arg(long, value_name = "HOW", env = "QUAYMASTER_TOPICS_MANAGE")]
    pub topics_manage: Option<String>,
    /// How values are written on Kafka and NATS: json or protobuf
    #[arg(long, value_name = "FORM", env = "QUAYMASTER_TOPICS_ENCODING")]
    pub topics_encoding: Option<String>,
    /// Whether a new state reads this host's keys back from the bus: true or false
    #[arg(long, value_name = "true|false", env = "QUAYMASTER_TOPICS_READ_BACK")]
    pub topics_read_back: Option<bool>,
    /// How long a mapping stays after its namespace has ended, such as 10m
    #[arg(long, value_name = "TIME", env = "QUAYMASTER_PNS_LINGER")]
    pub pns_linger: Option<String>,
    /// Bytes of messages that wait for the bus, beyond which the oldest deltas go, such as 1GiB
    #[arg(long, value_name = "BYTES", env = "QUAYMASTER_OUTBOX_MAX_BYTES")]
    pub outbox_max_bytes: Option<String>,
    /// Time between two snapshots of the host's processes that are published, such as 1m; none without it
    #[arg(long, value_name = "TIME", env = "QUAYMASTER_PROCESSES_INTERVAL")]
    pub processes_interval: Option<String>,
    /// ADDRESS:PORT of /metrics, /livez, /readyz and /status; nothing listens without it
    #[arg(
        long = "listen",
        value_name = "ADDRESS",
        env = "QUAYMASTER_HTTP_LISTEN"
    )]
    pub http_listen: Option<String>,
    /// Let --listen be another address than loopback; there is no password
    #[arg(long = "listen-anywhere", env = "QUAYMASTER_HTTP_LISTEN_ANYWHERE")]
    pub http_listen_anywhere: bool,
    /// What is logged to stderr: error, warn, info, debug, or a tracing directive
    #[arg(long, value_name = "FILTER", env = "QUAYMASTER_LOG")]
    pub log: Option<String>,
    /// How logs are written: text or json
    #[arg(long, value_name = "FORMAT", env = "QUAYMASTER_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// Keep all powers that the daemon was started with, for kernels where giving them up fails
    #[arg(long, env = "QUAYMASTER_KEEP_PRIVILEGES")]
    pub keep_privileges: bool,
    /// How the bus is entered.
    #[command(flatten)]
    pub access: AccessOverrides,
}

/// A configuration that is valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where messages go, with what is needed to enter it.
    pub bus: Bus,
    /// How a bus is entered, as it is set; of what concerns the other bus too.
    pub access: Access,
    /// Where the state lives.
    pub state_dir: PathBuf,
    /// The runtimes' sockets; empty for discovery.
    pub endpoints: Vec<Endpoint>,
    /// Time between two full resyncs.
    pub resync_interval: Duration,
    /// The host's id, where it is set.
    pub host_id: Option<String>,
    /// The host's name, where it is set.
    pub host_name: Option<String>,
    /// Where the host's process table is.
    pub procfs: PathBuf,
    /// The topics.
    pub topics: TopicSettings,
    /// Whether a new epoch reads its keys back.
    pub read_back: bool,
    /// How often records are put again; `None` at every resync.
    pub records_refresh: Option<Duration>,
    /// How long mappings linger.
    pub pns_linger: Duration,
    /// How often mappings are put again.
    pub pns_refresh: Duration,
    /// Most mappings that linger at once.
    pub pns_held_max: usize,
    /// Whether PID namespaces below those of containers are mapped.
    pub pns_nested: bool,
    /// Bytes of messages that may wait.
    pub outbox_max_bytes: u64,
    /// Time between two snapshots of the processes, where they are sent.
    pub processes_interval: Option<Duration>,
    /// Where the HTTP listener is, where there is one.
    pub http_listen: Option<SocketAddr>,
    /// Whether it may be another address than loopback.
    pub http_listen_anywhere: bool,
    /// What is logged.
    pub log_filter: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Whether the daemon keeps the powers that it was started with.
    pub keep_privileges: bool,
    /// The joiner's own settings.
    pub enrich: EnrichSettings,
}

/// A setting that is wrong. One line that names it and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration file `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that is not known.
    #[error("the configuration file `{}` is not valid: {message}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// The file has a key that is not known.
    #[error("the configuration file `{}` is not valid: unknown key `{key}`{}", path.display(), meant(*nearest))]
    UnknownKey {
        /// Which.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was meant.
        nearest: Option<&'static str>,
    },
    /// A value is wrong.
    #[error("`{key}` is not valid: {message}")]
    Value {
        /// The key in the file; the flag has the same name.
        key: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// Puts the configuration together and checks it.
    ///
    /// # Errors
    /// For the first setting that is wrong.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        Ok(Self::load_with_file(overrides, &EnrichOverrides::default())?.0)
    }

    /// The configuration, and the file as it is written, to tell what comes from there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_file(
        overrides: &Overrides,
        enrich: &EnrichOverrides,
    ) -> Result<(Self, toml::Table), ConfigError> {
        let (raw, file) = match &overrides.config {
            Some(path) => read_file(path)?,
            None => Default::default(),
        };
        let config = Self::check_with(overrides, enrich, raw, &Secrets::of_environment()?)?;
        Ok((config, file))
    }

    /// The configuration of an empty file, without flags and environment.
    ///
    /// # Errors
    /// None that is known: defaults are valid.
    pub fn defaults() -> Result<Self, ConfigError> {
        Self::check(
            &Overrides::default(),
            &EnrichOverrides::default(),
            Raw::default(),
        )
    }

    fn check(
        flags: &Overrides,
        enrich_flags: &EnrichOverrides,
        raw: Raw,
    ) -> Result<Self, ConfigError> {
        Self::check_with(flags, enrich_flags, raw, &Secrets::default())
    }

    fn check_with(
        flags: &Overrides,
        enrich_flags: &EnrichOverrides,
        raw: Raw,
        secrets: &Secrets,
    ) -> Result<Self, ConfigError> {
        let bus = flags
            .bus
            .clone()
            .or(raw.bus)
            .unwrap_or_else(|| "stdout:".to_owned());
        let bus = bus.parse::<BusUrl>().map_err(|error| value("bus", error))?;
        let access = RawAccess {
            tls: raw.tls,
            sasl: raw.sasl,
            nats: raw.nats,
            librdkafka: raw.librdkafka,
        };
        let access = Access::check(&flags.access, access, secrets)?;
        let bus = access.to(&bus)?;
        let processes_interval = flags.processes_interval.clone();
        let processes_interval = processes_interval
            .or(raw.processes.interval)
            .map(|text| between("processes.interval", &text))
            .transpose()?;
        let endpoints = if flags.endpoints.is_empty() {
            raw.endpoints
        } else {
            flags.endpoints.clone()
        };
        let endpoints = endpoints
            .iter()
            .map(|text| {
                text.parse::<Endpoint>()
                    .map_err(|error| value("endpoint", error))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let read_back = flags.topics_read_back.or(raw.topics.read_back);
        let mut topics = topics(flags, raw.topics)?;
        if matches!(bus, Bus::Stdout) && topics.encoding != Encoding::Json {
            let message = "stdout has lines of JSON: set `bus` to a kafka:// or nats:// address";
            return Err(value("topics.encoding", message));
        }
        if processes_interval.is_some() {
            topics.used.push(Topic::Processes);
        }
        let records_refresh = match raw.records.refresh.as_deref() {
            None | Some("resync") => None,
            Some(text) => Some(duration("records.refresh", text)?),
        };
        let resync_interval = flags.resync_interval.clone().or(raw.resync_interval);
        let resync_interval = between(
            "resync_interval",
            resync_interval.as_deref().unwrap_or("5m"),
        )?;
        let host_id = flags.host_id.clone().or(raw.host_id);
        if let Some(host_id) = &host_id {
            check_host_id(host_id).map_err(|error| value("host_id", error))?;
        }
        let linger = flags.pns_linger.clone().or(raw.pns.linger);
        let max_bytes = flags.outbox_max_bytes.clone().or(raw.outbox.max_bytes);
        let outbox_max_bytes = bytes("outbox.max_bytes", max_bytes.as_deref().unwrap_or("1GiB"))?;
        if outbox_max_bytes < OUTBOX_BYTES_MIN {
            return Err(value("outbox.max_bytes", "it must be 1MiB at least"));
        }
        let http_listen_anywhere = flags.http_listen_anywhere || raw.http.listen_anywhere;
        let http_listen = flags.http_listen.clone().or(raw.http.listen);
        let http_listen = http_listen
            .map(|text| listen(&text, http_listen_anywhere))
            .transpose()?;
        let log_format = flags.log_format.clone().or(raw.log.format);
        Ok(Self {
            bus,
            access,
            state_dir: flags
                .state_dir
                .clone()
                .or(raw.state_dir)
                .unwrap_or_else(|| default_state_dir(&|name| std::env::var_os(name))),
            endpoints,
            resync_interval,
            host_id,
            host_name: flags.host_name.clone().or(raw.host_name),
            procfs: flags
                .procfs
                .clone()
                .or(raw.procfs)
                .unwrap_or_else(|| "/proc".into()),
            topics,
            read_back: read_back.unwrap_or(true),
            records_refresh,
            pns_linger: duration("pns.linger", linger.as_deref().unwrap_or("10m"))?,
            pns_refresh: duration("pns.refresh", raw.pns.refresh.as_deref().unwrap_or("1h"))?,
            pns_held_max: raw.pns.held_max.unwrap_or(4_096),
            pns_nested: raw.pns.nested.unwrap_or(true),
            outbox_max_bytes,
            processes_interval,
            keep_privileges: flags.keep_privileges || raw.keep_privileges,
            http_listen,
            http_listen_anywhere,
            log_filter: flags
                .log
                .clone()
                .or(raw.log.filter)
                .unwrap_or_else(|| "info".to_owned()),
            log_format: match log_format.as_deref() {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(other) => {
                    return Err(value(
                        "log.format",
                        format!("`{other}` is neither `text` nor `json`"),
                    ));
                }
            },
            enrich: enrich::settings(enrich_flags, raw.enrich)?,
        })
    }
}

fn topics(flags: &Overrides, raw: RawTopics) -> Result<TopicSettings, ConfigError> {
    let defaults = TopicSettings::default();
    let manage = flags.topics_manage.clone().or(raw.manage);
    let settings = TopicSettings {
        prefix: flags
            .topics_prefix
            .clone()
            .or(raw.prefix)
            .unwrap_or(defaults.prefix),
        partitions: flags
            .topics_partitions
            .or(raw.partitions)
            .unwrap_or(defaults.partitions),
        replication: raw.replication.unwrap_or(defaults.replication),
        manage: match manage.as_deref() {
            None | Some("create") => ManageTopics::Create,
            Some("verify") => ManageTopics::Verify,
            Some("off") => ManageTopics::Off,
            Some(other) => {
                let message = format!("`{other}` is none of `create`, `verify`, `off`");
                return Err(value("topics.manage", message));
            }
        },
        encoding: match flags.topics_encoding.clone().or(raw.encoding) {
            None => defaults.encoding,
            Some(text) => text
                .parse()
                .map_err(|error: String| value("topics.encoding", error))?,
        },
        used: defaults.used,
    };
    settings.check().map_err(|error| value("topics", error))?;
    Ok(settings)
}

fn listen(text: &str, anywhere: bool) -> Result<SocketAddr, ConfigError> {
    let key = "http.listen";
    let address: SocketAddr = text.parse().map_err(|_| {
        let message = format!("`{text}` is no ADDRESS:PORT such as `127.0.0.1:9464`");
        value(key, message)
    })?;
    if address.ip().is_loopback() || anywhere {
        return Ok(address);
    }
    let message = format!(
        "`{text}` is not on loopback: others on the network could read it; if that is wanted, set \
         `http.listen_anywhere` (`--listen-anywhere`)"
    );
    Err(value(key, message))
}

fn read_file(path: &Path) -> Result<(Raw, toml::Table), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|wrong| match wrong {
        WrongFile::Toml(message) => ConfigError::Parse {
            path: path.to_owned(),
            message,
        },
        WrongFile::Key(keys::Unknown { key, nearest }) => ConfigError::UnknownKey {
            path: path.to_owned(),
            key,
            nearest,
        },
    })
}

/// What is wrong with a file's text.
#[derive(Debug)]
enum WrongFile {
    Toml(String),
    Key(keys::Unknown),
}

fn parse(text: &str) -> Result<(Raw, toml::Table), WrongFile> {
    let toml = |error: toml::de::Error| WrongFile::Toml(place_and_fault(text, &error));
    let table: toml::Table = text.parse().map_err(toml)?;
    if let Some(unknown) = keys::unknown(&table) {
        return Err(WrongFile::Key(unknown));
    }
    Ok((toml::from_str(text).map_err(toml)?, table))
}

/// Where the text is wrong, and how, without the text itself: the line may hold a password.
fn place_and_fault(text: &str, error: &toml::de::Error) -> String {
    let fault = error.message().trim().replace('\n', " ");
    let Some((span, before)) = error
        .span()
        .and_then(|span| Some((span.clone(), text.get(..span.start)?)))
    else {
        return fault;
    };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let wrong = text.get(span).unwrap_or_default();
    let wrong = wrong.trim_matches(['"', '\'']);
    let fault = if wrong.is_empty() {
        fault
    } else {
        fault.replace(wrong, "…")
    };
    let current = text.lines().nth(line - 1).unwrap_or_default();
    match current.split_once('=') {
        Some((key, _)) => format!("line {line}, column {column}, `{}`: {fault}", key.trim()),
        None => format!("line {line}, column {column}: {fault}"),
    }
}

/// The end of the line about an unknown key.
fn meant(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => "; `quaymaster config example` shows all keys".to_owned(),
    }
}

fn value(key: &'static str, message: impl ToString) -> ConfigError {
    ConfigError::Value {
        key,
        message: message.to_string(),
    }
}

fn duration(key: &'static str, text: &str) -> Result<Duration, ConfigError> {
    humantime::parse_duration(text).map_err(|error| {
        value(
            key,
            format!("`{text}` is no time such as `5m` or `90s`: {error}"),
        )
    })
}

/// A time between two of what is done again and again.
fn between(key: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let interval = duration(key, text)?;
    if interval < INTERVAL.0 || interval > INTERVAL.1 {
        return Err(value(key, "it must be between 1s and 24h"));
    }
    Ok(interval)
}

fn bytes(key: &'static str, text: &str) -> Result<u64, ConfigError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let number = digits.trim().parse::<u64>().ok();
    number
        .zip(unit)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .ok_or_else(|| {
            value(
                key,
                format!("`{text}` is no size such as `512MiB` or `1GiB`"),
            )
        })
}

/// Where root and users without a home keep the state.
const SYSTEM_STATE_DIR: &str = "/var/lib/quaymaster";

/// The directory that systemd made for the unit (`StateDirectory=`), root's, or the user's own (XDG Base Directory
/// Specification, which ignores relative paths).
fn default_state_dir(variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    // systemd writes all of a unit's directories there, with colons between.
    let of_unit = variable("STATE_DIRECTORY").and_then(|all| {
        let first = all.as_bytes().split(|byte| *byte == b':').next()?;
        absolute(OsStr::from_bytes(first).to_owned())
    });
    if let Some(directory) = of_unit {
        return directory;
    }
    if rustix::process::geteuid().is_root() {
        return SYSTEM_STATE_DIR.into();
    }
    let of_user = variable("XDG_STATE_HOME").and_then(absolute).or_else(|| {
        let home = variable("HOME").and_then(absolute)?;
        Some(home.join(".local/state"))
    });
    of_user.map_or_else(|| SYSTEM_STATE_DIR.into(), |base| base.join("quaymaster"))
}

/// Says why a text is no host id.
///
/// # Errors
/// When it is empty, too long, a placeholder, or holds what would break keys.
pub fn check_host_id(text: &str) -> Result<(), String> {
    let remedy = "set one with `--host-id`";
    if text.is_empty() {
        return Err(format!("the host id is empty: {remedy}"));
    }
    if text == "uninitialized" {
        return Err(format!(
            "the host id is `uninitialized`, a placeholder of systemd: {remedy}"
        ));
    }
    if text.bytes().all(|byte| byte == b'0') {
        return Err(format!("the host id is all zeros: {remedy}"));
    }
    if text.len() > HOST_ID_BYTES_MAX {
        return Err(format!(
            "the host id has more than {HOST_ID_BYTES_MAX} bytes: {remedy}"
        ));
    }
    let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.contains(is_bad) {
        return Err(format!(
            "the host id `{}` holds `/`, `:` or blanks: {remedy}",
            text.escape_default()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let (raw, _) = parse(text).map_err(|wrong| format!("{wrong:?}"))?;
        Config::check(&Overrides::default(), &EnrichOverrides::default(), raw)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").expect("defaults are valid");
        assert_eq!(config.resync_interval, Duration::from_secs(300));
        assert_eq!(config.outbox_max_bytes, 1 << 30);
        assert_eq!(config.pns_linger, Duration::from_secs(600));
        assert!(config.endpoints.is_empty());
    }

    #[test]
    fn wrong_values_are_named_with_what_would_be_right() {
        let cases = [
            ("resync_interval = \"soon\"", "resync_interval"),
            ("resync_interval = \"1ms\"", "between 1s and 24h"),
            ("processes.interval = \"0s\"", "between 1s and 24h"),
            ("bus = \"amqp://x\"", "bus"),
            ("endpoints = [\"podman=unix:///x\"]", "endpoint"),
            ("host_id = \"a/b\"", "host_id"),
            ("host_id = \"0000\"", "all zeros"),
            ("outbox.max_bytes = \"many\"", "outbox.max_bytes"),
            ("outbox.max_bytes = \"1KiB\"", "1MiB"),
            ("topics.manage = \"maybe\"", "topics.manage"),
            ("topics.encoding = \"xml\"", "topics.encoding"),
            ("topics.encoding = \"protobuf\"", "topics.encoding"),
            ("log.format = \"xml\"", "log.format"),
            ("busses = \"stdout:\"", "\"busses\""),
            ("http.listen = \"localhost\"", "http.listen"),
            ("http.listen = \"0.0.0.0:9464\"", "http.listen_anywhere"),
            ("bus = 7", "invalid type"),
            ("enrich.preset = \"falco\"", "no PID namespace"),
            ("enrich.field_pns = [\"a..b\"]", "enrich.field_pns"),
            ("enrich.time_unit = \"h\"", "enrich.time_unit"),
            ("enrich.on_invalid = \"stop\"", "enrich.on_invalid"),
            ("enrich.grace = \"1h\"", "5m at most"),
            ("enrich.input = \"a b\"", "enrich.input"),
            ("enrich.input = \"a\"\nenrich.output = \"a\"", "go round"),
        ];
        for (text, expected) in cases {
            let error = load(text).err().unwrap_or_default();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_by_its_place_and_not_repeated() {
        for (text, place) in [
            (
                "log.level = \"info\"\nsasl.password = \"hunter2\n",
                "line 2, column ",
            ),
            ("sasl.password = hunter2\n", "line 1, column "),
            ("\nhost_id = 54321\n", "line 2, column 11, `host_id`: "),
            (
                "host_id = [\"hunter2\"]\n",
                "line 1, column 11, `host_id`: ",
            ),
        ] {
            let error = load(text).err().unwrap_or_default();
            assert!(error.contains(place), "{text}: {error}");
            for secret in ["hunter2", "54321"] {
                assert!(!error.contains(secret), "{text}: {error}");
            }
        }
    }

    #[test]
    fn the_state_is_where_the_unit_or_the_user_has_its_own() {
        let with = |set: &'static [(&str, &str)]| {
            default_state_dir(&move |name| {
                let (_, value) = set.iter().find(|(known, _)| *known == name)?;
                Some(OsString::from(value))
            })
        };
        let unit = with(&[
            ("STATE_DIRECTORY", "/srv/quaymaster:/srv/other"),
            ("HOME", "/h"),
        ]);
        assert_eq!(unit, PathBuf::from("/srv/quaymaster"));
        let user = with(&[("XDG_STATE_HOME", "relative"), ("HOME", "/h")]);
        if rustix::process::geteuid().is_root() {
            assert_eq!(user, PathBuf::from(SYSTEM_STATE_DIR));
        } else {
            assert_eq!(user, PathBuf::from("/h/.local/state/quaymaster"));
        }
        assert_eq!(with(&[]), PathBuf::from(SYSTEM_STATE_DIR));
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Overrides {
            resync_interval: Some("9s".to_owned()),
            ..Overrides::default()
        };
        let raw = toml::from_str("resync_interval = \"7s\"").expect("valid TOML");
        let config =
            Config::check(&flags, &EnrichOverrides::default(), raw).expect("valid settings");
        assert_eq!(config.resync_interval, Duration::from_secs(9));
    }
}
