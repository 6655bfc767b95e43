//! The table of all settings: their names, what they mean, and how to read them from a [`Config`].
//!
//! The file is checked against it, so a setting that is not here cannot be set; the example and `config show` are
//! printed from it. Defaults are not repeated here: they are read from the configuration of an empty file.

use std::fmt::Write as _;
use std::time::Duration;

use toml::{Table, Value};

use super::Config;
use crate::enrich::fields::{HostSource, Pointer};
use crate::sink::ManageTopics;
use crate::sink::access::{NamedFile, NatsLogin, Secret, TlsIdentity};
use crate::telemetry::LogFormat;

/// A key that is further from every known one than this is not a mistyped one, in edits.
const TYPING_ERRORS_MAX: usize = 4;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in the file, with its table: `topics.prefix`.
    pub name: &'static str,
    /// The name of its flag in [`super::Overrides`], where it has one.
    pub flag: Option<&'static str>,
    /// What it means.
    pub about: &'static str,
    /// What it may be, as TOML, where it has no default.
    sample: &'static str,
    /// Its value; `None` where it is not set.
    pub value: fn(&Config) -> Option<Value>,
}

/// The keys that a running daemon takes anew at SIGHUP. Files of certificates and secrets are read anew by themselves.
pub const RELOADED: [&str; 2] = ["resync_interval", "log.filter"];

/// The names of the keys whose values differ.
pub fn changed(before: &Config, after: &Config) -> Vec<&'static str> {
    let differs = |key: &&Key| (key.value)(before) != (key.value)(after);
    KEYS.iter().filter(differs).map(|key| key.name).collect()
}

/// All settings, in the order in which they stand in the example; those without a table first.
pub const KEYS: &[Key] = &[
    Key {
        name: "bus",
        flag: Some("bus"),
        about: "Where messages go: stdout:, kafka://HOST:PORT[,HOST:PORT] or nats://HOST:PORT[,HOST:PORT].",
        sample: "",
        value: |config| text(&config.bus),
    },
    Key {
        name: "state_dir",
        flag: Some("state_dir"),
        about: "Where the state and the outbox live; one collector each. By default what the service manager made for it (STATE_DIRECTORY), root's /var/lib/quaymaster, or quaymaster in the user's XDG_STATE_HOME.",
        sample: "",
        value: |config| text(config.state_dir.display()),
    },
    Key {
        name: "endpoints",
        flag: Some("endpoints"),
        about: "The runtimes' sockets, such as \"docker=unix:///run/docker.sock\" or \"cri=unix:///run/crio/crio.sock\"; none: those that are found.",
        sample: "",
        value: |config| {
            let endpoints = config.endpoints.iter();
            let named = endpoints.map(|one| Value::String(one.source_id().to_string()));
            Some(Value::Array(named.collect()))
        },
    },
    Key {
        name: "resync_interval",
        flag: Some("resync_interval"),
        about: "Time between two full resyncs, from 1s to 24h.",
        sample: "",
        value: |config| time(config.resync_interval),
    },
    Key {
        name: "host_id",
        flag: Some("host_id"),
        about: "The host's id in every key, instead of the text of /etc/machine-id.",
        sample: "\"4c0ffee4c0ffee4c0ffee4c0ffee4c0f\"",
        value: |config| config.host_id.as_ref().and_then(text),
    },
    Key {
        name: "host_name",
        flag: Some("host_name"),
        about: "The host's name, instead of the kernel's.",
        sample: "\"quay-1\"",
        value: |config| config.host_name.as_ref().and_then(text),
    },
    Key {
        name: "procfs",
        flag: Some("procfs"),
        about: "Where the host's /proc is mounted.",
        sample: "",
        value: |config| text(config.procfs.display()),
    },
    Key {
        name: "keep_privileges",
        flag: Some("keep_privileges"),
        about: "Keep all powers that the daemon was started with, for kernels where giving them up fails.",
        sample: "",
        value: |config| Some(Value::Boolean(config.keep_privileges)),
    },
    Key {
        name: "librdkafka",
        flag: Some("librdkafka"),
        about: "Further settings of librdkafka, such as { \"linger.ms\" = 5 }, or as a table [librdkafka]; those on which Quaymaster's promises rest are refused.",
        sample: "",
        value: |config| {
            let settings = config.access.librdkafka.iter();
            let texts = settings.map(|(name, text)| (name.clone(), Value::String(text.clone())));
            Some(Value::Table(texts.collect()))
        },
    },
    Key {
        name: "tls.enabled",
        flag: Some("tls"),
        about: "Speak TLS to the bus; on by itself where another key of [tls] is set. Its certificate is always checked.",
        sample: "true",
        value: |config| config.access.tls.as_ref().map(|_| Value::Boolean(true)),
    },
    Key {
        name: "tls.ca_file",
        flag: Some("tls_ca_file"),
        about: "PEM file with the authorities that may vouch for the bus, instead of the system's. Files of certificates and secrets are read anew for each connection that is made.",
        sample: "\"/etc/quaymaster/ca.pem\"",
        value: |config| path(config.access.tls.as_ref()?.ca.as_ref()),
    },
    Key {
        name: "tls.cert_file",
        flag: Some("tls_cert_file"),
        about: "PEM file with our certificate, for a bus that asks for one.",
        sample: "\"/etc/quaymaster/client.pem\"",
        value: |config| path(identity(config).map(|identity| &identity.cert)),
    },
    Key {
        name: "tls.key_file",
        flag: Some("tls_key_file"),
        about: "PEM file with its key.",
        sample: "\"/etc/quaymaster/client.key\"",
        value: |config| path(identity(config).map(|identity| &identity.key)),
    },
    Key {
        name: "tls.key_password_file",
        flag: Some("tls_key_password_file"),
        about: "File with what that key is encrypted with, for Kafka; or the variable QUAYMASTER_TLS_KEY_PASSWORD.",
        sample: "\"/etc/quaymaster/key-password\"",
        value: |config| secret(identity(config)?.key_password.as_ref()),
    },
    Key {
        name: "sasl.mechanism",
        flag: Some("sasl_mechanism"),
        about: "How Kafka is shown the password: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
        sample: "\"SCRAM-SHA-512\"",
        value: |config| text(config.access.sasl.as_ref()?.mechanism.as_str()),
    },
    Key {
        name: "sasl.username",
        flag: Some("sasl_username"),
        about: "The user at Kafka.",
        sample: "\"quaymaster\"",
        value: |config| text(&config.access.sasl.as_ref()?.username),
    },
    Key {
        name: "sasl.password_file",
        flag: Some("sasl_password_file"),
        about: "File with its password; or the variable QUAYMASTER_SASL_PASSWORD.",
        sample: "\"/etc/quaymaster/password\"",
        value: |config| secret(config.access.sasl.as_ref().map(|sasl| &sasl.password)),
    },
    Key {
        name: "nats.username",
        flag: Some("nats_username"),
        about: "The user at NATS, where it has a password; give this, or one of the three below.",
        sample: "\"quaymaster\"",
        value: |config| match config.access.nats.as_ref()? {
            NatsLogin::User { username, .. } => text(username),
            NatsLogin::Token(_) | NatsLogin::Nkey(_) | NatsLogin::Credentials(_) => None,
        },
    },
    Key {
        name: "nats.password_file",
        flag: Some("nats_password_file"),
        about: "File with its password; or the variable QUAYMASTER_NATS_PASSWORD.",
        sample: "\"/etc/quaymaster/password\"",
        value: |config| match config.access.nats.as_ref()? {
            NatsLogin::User { password, .. } => secret(Some(password)),
            NatsLogin::Token(_) | NatsLogin::Nkey(_) | NatsLogin::Credentials(_) => None,
        },
    },
    Key {
        name: "nats.token_file",
        flag: Some("nats_token_file"),
        about: "File with a token for NATS; or the variable QUAYMASTER_NATS_TOKEN.",
        sample: "\"/etc/quaymaster/token\"",
        value: |config| match config.access.nats.as_ref()? {
            NatsLogin::Token(token) => secret(Some(token)),
            NatsLogin::User { .. } | NatsLogin::Nkey(_) | NatsLogin::Credentials(_) => None,
        },
    },
    Key {
        name: "nats.nkey_file",
        flag: Some("nats_nkey_file"),
        about: "File with the seed of an nkey for NATS; or the variable QUAYMASTER_NATS_NKEY.",
        sample: "\"/etc/quaymaster/quaymaster.nk\"",
        value: |config| match config.access.nats.as_ref()? {
            NatsLogin::Nkey(seed) => secret(Some(seed)),
            NatsLogin::User { .. } | NatsLogin::Token(_) | NatsLogin::Credentials(_) => None,
        },
    },
    Key {
        name: "nats.credentials_file",
        flag: Some("nats_credentials_file"),
        about: "Credentials file for NATS; or the variable QUAYMASTER_NATS_CREDENTIALS with its text.",
        sample: "\"/etc/quaymaster/quaymaster.creds\"",
        value: |config| match config.access.nats.as_ref()? {
            NatsLogin::Credentials(credentials) => secret(Some(credentials)),
            NatsLogin::User { .. } | NatsLogin::Token(_) | NatsLogin::Nkey(_) => None,
        },
    },
    Key {
        name: "topics.prefix",
        flag: Some("topics_prefix"),
        about: "The first word of all topics' names.",
        sample: "",
        value: |config| text(&config.topics.prefix),
    },
    Key {
        name: "topics.partitions",
        flag: Some("topics_partitions"),
        about: "Kafka partitions of each topic that is created; more cannot be added later.",
        sample: "",
        value: |config| number(config.topics.partitions),
    },
    Key {
        name: "topics.replication",
        flag: None,
        about: "Kafka's replication factor or NATS's replicas of what is created; -1: the broker's default.",
        sample: "",
        value: |config| number(config.topics.replication),
    },
    Key {
        name: "topics.manage",
        flag: Some("topics_manage"),
        about: "Who makes topics, streams and buckets: create (what is missing, and check the others), verify (only check) or off.",
        sample: "",
        value: |config| {
            text(match config.topics.manage {
                ManageTopics::Create => "create",
                ManageTopics::Verify => "verify",
                ManageTopics::Off => "off",
            })
        },
    },
    Key {
        name: "topics.encoding",
        flag: Some("topics_encoding"),
        about: "How values are written on Kafka and NATS: json, or protobuf (the messages of `quaymaster schema protobuf`).",
        sample: "",
        value: |config| text(config.topics.encoding.as_str()),
    },
    Key {
        name: "topics.read_back",
        flag: Some("topics_read_back"),
        about: "Whether a new state reads this host's keys back from the bus and tombstones those that no longer hold.",
        sample: "",
        value: |config| Some(Value::Boolean(config.read_back)),
    },
    Key {
        name: "records.refresh",
        flag: None,
        about: "How often unchanged records are put again: resync (at each), or a time.",
        sample: "",
        value: |config| config.records_refresh.map_or_else(|| text("resync"), time),
    },
    Key {
        name: "pns.linger",
        flag: Some("pns_linger"),
        about: "How long a mapping stays after its namespace has ended.",
        sample: "",
        value: |config| time(config.pns_linger),
    },
    Key {
        name: "pns.refresh",
        flag: None,
        about: "How often unchanged mappings are put again.",
        sample: "",
        value: |config| time(config.pns_refresh),
    },
    Key {
        name: "pns.held_max",
        flag: None,
        about: "Most mappings that linger at once; each holds a file open.",
        sample: "",
        value: |config| number(i64::try_from(config.pns_held_max).unwrap_or(i64::MAX)),
    },
    Key {
        name: "pns.nested",
        flag: None,
        about: "Map PID namespaces below those of containers (Docker in Docker, sandboxes): one look at all processes at each resync.",
        sample: "",
        value: |config| Some(Value::Boolean(config.pns_nested)),
    },
    Key {
        name: "outbox.max_bytes",
        flag: Some("outbox_max_bytes"),
        about: "Bytes of messages that wait for the bus, beyond which the oldest deltas go.",
        sample: "",
        value: |config| text(size(config.outbox_max_bytes)),
    },
    Key {
        name: "processes.interval",
        flag: Some("processes_interval"),
        about: "Time between two snapshots of the host's processes that are published, from 1s to 24h; none where it is not set.",
        sample: "\"1m\"",
        value: |config| config.processes_interval.and_then(time),
    },
    Key {
        name: "http.listen",
        flag: Some("http_listen"),
        about: "ADDRESS:PORT of /metrics, /livez, /readyz and /status; nothing listens where it is not set.",
        sample: "\"127.0.0.1:9464\"",
        value: |config| config.http_listen.as_ref().and_then(text),
    },
    Key {
        name: "http.listen_anywhere",
        flag: Some("http_listen_anywhere"),
        about: "Allow another address than loopback; there is no password.",
        sample: "",
        value: |config| Some(Value::Boolean(config.http_listen_anywhere)),
    },
    Key {
        name: "log.filter",
        flag: Some("log"),
        about: "What is logged to stderr: error, warn, info, debug, or a tracing directive.",
        sample: "",
        value: |config| text(&config.log_filter),
    },
    Key {
        name: "log.format",
        flag: Some("log_format"),
        about: "How logs are written: text or json.",
        sample: "",
        value: |config| {
            text(match config.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            })
        },
    },
    Key {
        name: "enrich.input",
        flag: Some("input"),
        about: "The topic, or NATS subject, of the process events that `quaymaster enrich` reads.",
        sample: "\"quaymaster.processes\"",
        value: |config| config.enrich.input.as_ref().and_then(text),
    },
    Key {
        name: "enrich.output",
        flag: Some("output"),
        about: "The topic, or NATS subject, of the enriched events.",
        sample: "\"quaymaster.processes.enriched\"",
        value: |config| config.enrich.output.as_ref().and_then(text),
    },
    Key {
        name: "enrich.group",
        flag: Some("group"),
        about: "The consumer group, or the durable consumer: members of one group share the input.",
        sample: "",
        value: |config| text(&config.enrich.group),
    },
    Key {
        name: "enrich.preset",
        flag: Some("preset"),
        about: "The events' format: quaymaster, elkeid, tetragon, tracee or osquery.",
        sample: "",
        value: |config| text(config.enrich.preset.as_str()),
    },
    Key {
        name: "enrich.field_host",
        flag: Some("field_host"),
        about: "Where the host's id is: paths such as \"/fields/host_id\", \"key\" for the message's key, or \"=ID\" for all; from the preset.",
        sample: "",
        value: |config| host(&config.enrich.fields.host),
    },
    Key {
        name: "enrich.field_pns",
        flag: Some("field_pns"),
        about: "Where the PID namespace is: a number, or pid:[NUMBER]; the first that is there counts; from the preset.",
        sample: "",
        value: |config| pointers(&config.enrich.fields.pns),
    },
    Key {
        name: "enrich.field_time",
        flag: Some("field_time"),
        about: "Where the event's time is; none: the message's own time; from the preset.",
        sample: "",
        value: |config| pointers(&config.enrich.fields.time),
    },
    Key {
        name: "enrich.time_unit",
        flag: Some("time_unit"),
        about: "What the time's numbers are: auto, s, ms, us or ns.",
        sample: "",
        value: |config| text(config.enrich.fields.time_unit.as_str()),
    },
    Key {
        name: "enrich.field_mnt_ns",
        flag: Some("field_mnt_ns"),
        about: "Where the mount namespace is, for PID namespaces that containers share; from the preset.",
        sample: "",
        value: |config| pointers(&config.enrich.fields.mnt_ns),
    },
    Key {
        name: "enrich.field_cgroup",
        flag: Some("field_cgroup"),
        about: "Where the cgroup's path is, for the same; from the preset.",
        sample: "",
        value: |config| pointers(&config.enrich.fields.cgroup),
    },
    Key {
        name: "enrich.added_field",
        flag: Some("added_field"),
        about: "The name of the object that is added to each event; from the preset.",
        sample: "",
        value: |config| text(&config.enrich.added_field),
    },
    Key {
        name: "enrich.grace",
        flag: Some("grace"),
        about: "How long an event waits for its mapping, 5m at most.",
        sample: "",
        value: |config| time(config.enrich.grace),
    },
    Key {
        name: "enrich.waiting_max",
        flag: Some("waiting_max"),
        about: "Most events that wait; beyond it the oldest go unenriched.",
        sample: "",
        value: |config| number(i64::try_from(config.enrich.waiting_max).unwrap_or(i64::MAX)),
    },
    Key {
        name: "enrich.waiting_max_bytes",
        flag: Some("waiting_max_bytes"),
        about: "Most bytes of events that wait.",
        sample: "",
        value: |config| text(size(config.enrich.waiting_max_bytes)),
    },
    Key {
        name: "enrich.on_invalid",
        flag: Some("on_invalid"),
        about: "What becomes of events that cannot be joined: pass, drop or topic.",
        sample: "",
        value: |config| text(config.enrich.on_invalid.as_str()),
    },
    Key {
        name: "enrich.invalid_topic",
        flag: Some("invalid_topic"),
        about: "The topic for them; by default the output's name and .invalid.",
        sample: "\"quaymaster.processes.invalid\"",
        value: |config| config.enrich.invalid_topic.as_ref().and_then(text),
    },
];

/// A key that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) key: String,
    pub(super) nearest: Option<&'static str>,
}

/// The first key of a file that is in no line of the table.
pub(super) fn unknown(file: &Table) -> Option<Unknown> {
    file.iter().find_map(|(name, value)| {
        let is_table = KEYS.iter().any(|key| table_of(key.name) == Some(name));
        match value {
            Value::Table(inner) if is_table => inner
                .keys()
                .map(|key| format!("{name}.{key}"))
                .find(|path| !is_known(path)),
            // Its keys are librdkafka's.
            Value::Table(_) if is_known(name) => None,
            Value::Table(inner) => inner.keys().next().map(|key| format!("{name}.{key}")),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => (!is_table && !is_known(name)).then(|| name.clone()),
        }
        .map(|key| Unknown {
            nearest: nearest(&key),
            key,
        })
    })
}

/// Whether a file sets a key.
pub fn is_set_in(file: &Table, key: &Key) -> bool {
    match key.name.split_once('.') {
        None => file.contains_key(key.name),
        Some((table, name)) => file
            .get(table)
            .and_then(Value::as_table)
            .is_some_and(|table| table.contains_key(name)),
    }
}

/// A TOML file with all keys and defaults, as comments.
pub fn example(defaults: &Config) -> String {
    let mut text = "# All settings of Quaymaster with their defaults. Flags win over the environment, and it over this file.\n"
        .to_owned();
    let mut table = None;
    for key in KEYS {
        let (of, name) = match key.name.split_once('.') {
            Some((of, name)) => (Some(of), name),
            None => (None, key.name),
        };
        text.push('\n');
        if of != table {
            let header = of.unwrap_or_default();
            let _ = writeln!(text, "[{header}]");
            table = of;
        }
        let _ = writeln!(text, "# {}", key.about);
        let _ = match (key.value)(defaults) {
            Some(value) => writeln!(text, "#{name} = {value}"),
            None => writeln!(text, "# Not set by default.\n#{name} = {}", key.sample),
        };
    }
    text
}

fn table_of(name: &str) -> Option<&str> {
    name.split_once('.').map(|(table, _)| table)
}

fn is_known(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name)
}

/// The known key that a mistyped one was meant to be: also one that lacks its table, or is in a wrong one.
fn nearest(unknown: &str) -> Option<&'static str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &Key| {
        let whole = strsim::damerau_levenshtein(key.name, unknown);
        let of_last = strsim::damerau_levenshtein(&last(key.name), &last(unknown)) + 1;
        whole.min(of_last)
    };
    KEYS.iter()
        .map(|key| (distance(key), key.name))
        .min()
        .filter(|(distance, _)| *distance <= TYPING_ERRORS_MAX.min(unknown.len() / 2))
        .map(|(_, name)| name)
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the table's functions give an option"
)]
fn text(value: impl ToString) -> Option<Value> {
    Some(Value::String(value.to_string()))
}

fn path(file: Option<&NamedFile>) -> Option<Value> {
    text(file?.path.display())
}

/// Where a secret is; never what it is.
fn secret(secret: Option<&Secret>) -> Option<Value> {
    path(secret?.file())
}

fn identity(config: &Config) -> Option<&TlsIdentity> {
    config.access.tls.as_ref()?.identity.as_ref()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the table's functions give an option"
)]
fn number(value: impl Into<i64>) -> Option<Value> {
    Some(Value::Integer(value.into()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the table's functions give an option"
)]
fn pointers(pointers: &[Pointer]) -> Option<Value> {
    let texts = pointers.iter().map(ToString::to_string);
    Some(Value::Array(texts.map(Value::String).collect()))
}

fn host(host: &HostSource) -> Option<Value> {
    let one = |text: String| Some(Value::Array(vec![Value::String(text)]));
    match host {
        HostSource::Fields(fields) => pointers(fields),
        HostSource::Key => one("key".to_owned()),
        HostSource::Constant(host) => one(format!("={host}")),
    }
}

fn time(value: Duration) -> Option<Value> {
    text(humantime::format_duration(value))
}

/// A size as the parser reads it, in the largest unit that fits.
fn size(bytes: u64) -> String {
    [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, bits)| bytes > 0 && bytes.trailing_zeros() >= *bits)
        .map_or_else(
            || bytes.to_string(),
            |(unit, bits)| format!("{}{unit}", bytes >> bits),
        )
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::config::Overrides;
    use crate::config::enrich::EnrichOverrides;

    fn load(text: &str) -> Config {
        let raw = super::super::parse(text).expect("the text is valid");
        Config::check(&Overrides::default(), &EnrichOverrides::default(), raw.0)
            .expect("its values are valid")
    }

    #[test]
    fn the_example_says_what_an_empty_file_gives() {
        let defaults = load("");
        let example = example(&defaults);
        load(&example);
        // There is one login at NATS: the others are tried one by one.
        let others = ["token_file", "nkey_file", "credentials_file"];
        check_lines(&example, &defaults, &|name| !others.contains(&name));
        for other in others {
            check_lines(&example, &defaults, &|name| name == other);
        }
    }

    /// Takes the comment from the lines of the keys that are wanted, and looks at what the file gives then.
    fn check_lines(example: &str, defaults: &Config, wanted: &dyn Fn(&str) -> bool) {
        let name_of = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
        let uncommented: Vec<&str> = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest)
                    if rest.starts_with(|c: char| c.is_ascii_lowercase())
                        && wanted(&name_of(rest)) =>
                {
                    rest
                }
                Some(_) | None => line,
            })
            .collect();
        let config = load(&uncommented.join("\n"));
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or_default();
        for key in KEYS.iter().filter(|key| wanted(last(key.name))) {
            let (by_example, by_default) = ((key.value)(&config), (key.value)(defaults));
            let sample = || {
                let line: Table = format!("sample = {}", key.sample).parse().expect(key.name);
                line.get("sample").cloned()
            };
            assert_eq!(by_example, by_default.or_else(sample), "{}", key.name);
        }
    }

    #[test]
    fn each_flag_belongs_to_a_key() {
        let command = Overrides::augment_args(clap::Command::new("test"));
        let command = EnrichOverrides::augment_args(command);
        let flags: Vec<_> = command
            .get_arguments()
            .map(|argument| argument.get_id().as_str())
            .filter(|id| *id != "config")
            .collect();
        for flag in &flags {
            assert!(KEYS.iter().any(|key| key.flag == Some(*flag)), "{flag}");
        }
        for key in KEYS {
            assert!(
                key.flag.is_none_or(|flag| flags.contains(&flag)),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_the_one_that_was_meant() {
        for (file, key, meant) in [
            (
                "resync_intervall = \"5m\"",
                "resync_intervall",
                Some("resync_interval"),
            ),
            (
                "[topics]\nprefx = \"a\"",
                "topics.prefx",
                Some("topics.prefix"),
            ),
            (
                "[topic]\nprefix = \"a\"",
                "topic.prefix",
                Some("topics.prefix"),
            ),
            ("partitions = 3", "partitions", Some("topics.partitions")),
            ("busses = \"stdout:\"", "busses", Some("bus")),
            ("colour_of_the_ship = 1", "colour_of_the_ship", None),
        ] {
            let table: Table = file.parse().expect("valid TOML");
            let found = unknown(&table).expect("it is unknown");
            assert_eq!((found.key.as_str(), found.nearest), (key, meant));
        }
    }
}
