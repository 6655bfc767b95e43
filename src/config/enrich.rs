//! The settings of `quaymaster enrich`, the table `[enrich]` of the file.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, bytes, duration, value};
use crate::enrich::event::EventReader;
use crate::enrich::fields::{EventFields, HostSource, Pointer, Preset, TimeUnit};
use crate::enrich::joiner::OnInvalid;

/// The longest grace: beyond it a rebalance of the group would take too long.
const GRACE_MAX: Duration = Duration::from_secs(300);

/// What can be set by flag or by environment; it wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EnrichOverrides {
    /// The topic, or NATS subject, of the process events
    #[arg(long, value_name = "TOPIC", env = "QUAYMASTER_ENRICH_INPUT")]
    pub input: Option<String>,
    /// The topic, or NATS subject, of the enriched events
    #[arg(long, value_name = "TOPIC", env = "QUAYMASTER_ENRICH_OUTPUT")]
    pub output: Option<String>,
    /// The consumer group, or the durable consumer: members of one group share the input
    #[arg(long, value_name = "NAME", env = "QUAYMASTER_ENRICH_GROUP")]
    pub group: Option<String>,
    /// The events' format: quaymaster, elkeid, tetragon, tracee or osquery
    #[arg(long, value_name = "FORMAT", env = "QUAYMASTER_ENRICH_PRESET")]
    pub preset: Option<String>,
    /// Where the host's id is: a path such as /fields/host_id, `key` for the message's key, or =ID for all; repeatable
    #[arg(
        long,
        value_name = "PATH",
        env = "QUAYMASTER_ENRICH_FIELD_HOST",
        value_delimiter = ','
    )]
    pub field_host: Vec<String>,
    /// Where the PID namespace is, its number or the text of its link; repeatable, the first that is there counts
    #[arg(
        long,
        value_name = "PATH",
        env = "QUAYMASTER_ENRICH_FIELD_PNS",
        value_delimiter = ','
    )]
    pub field_pns: Vec<String>,
    /// Where the event's time is; repeatable; without one the message's own time counts
    #[arg(
        long,
        value_name = "PATH",
        env = "QUAYMASTER_ENRICH_FIELD_TIME",
        value_delimiter = ','
    )]
    pub field_time: Vec<String>,
    /// What the time's numbers are: auto, s, ms, us or ns
    #[arg(long, value_name = "UNIT", env = "QUAYMASTER_ENRICH_TIME_UNIT")]
    pub time_unit: Option<String>,
    /// Where the mount namespace is, for PID namespaces that containers share; repeatable
    #[arg(
        long,
        value_name = "PATH",
        env = "QUAYMASTER_ENRICH_FIELD_MNT_NS",
        value_delimiter = ','
    )]
    pub field_mnt_ns: Vec<String>,
    /// Where the cgroup's path is, for the same; repeatable
    #[arg(
        long,
        value_name = "PATH",
        env = "QUAYMASTER_ENRICH_FIELD_CGROUP",
        value_delimiter = ','
    )]
    pub field_cgroup: Vec<String>,
    /// The name of the object that is added to each event
    #[arg(long, value_name = "NAME", env = "QUAYMASTER_ENRICH_ADDED_FIELD")]
    pub added_field: Option<String>,
    /// How long an event waits for its mapping, such as 5s
    #[arg(long, value_name = "TIME", env = "QUAYMASTER_ENRICH_GRACE")]
    pub grace: Option<String>,
    /// Most events that wait; beyond it the oldest go unenriched
    #[arg(long, value_name = "N", env = "QUAYMASTER_ENRICH_WAITING_MAX")]
    pub waiting_max: Option<usize>,
    /// Most bytes of events that wait, such as 64MiB
    #[arg(
        long,
        value_name = "BYTES",
        env = "QUAYMASTER_ENRICH_WAITING_MAX_BYTES"
    )]
    pub waiting_max_bytes: Option<String>,
    /// What becomes of events that cannot be joined: pass, drop or topic
    #[arg(long, value_name = "HOW", env = "QUAYMASTER_ENRICH_ON_INVALID")]
    pub on_invalid: Option<String>,
    /// The topic for them, by default the output's name and .invalid
    #[arg(long, value_name = "TOPIC", env = "QUAYMASTER_ENRICH_INVALID_TOPIC")]
    pub invalid_topic: Option<String>,
}

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEnrich {
    input: Option<String>,
    output: Option<String>,
    group: Option<String>,
    preset: Option<String>,
    field_host: Vec<String>,
    field_pns: Vec<String>,
    field_time: Vec<String>,
    time_unit: Option<String>,
    field_mnt_ns: Vec<String>,
    field_cgroup: Vec<String>,
    added_field: Option<String>,
    grace: Option<String>,
    waiting_max: Option<usize>,
    waiting_max_bytes: Option<String>,
    on_invalid: Option<String>,
    invalid_topic: Option<String>,
}

/// Settings that are valid, as far as they are set.
#[derive(Clone, Debug)]
pub struct EnrichSettings {
    /// Where events come from; has to be set to enrich.
    pub input: Option<String>,
    /// Where they go; has to be set to enrich.
    pub output: Option<String>,
    /// The group.
    pub group: String,
    /// The format that the fields come from, where they are not set one by one.
    pub preset: Preset,
    /// The fields.
    pub fields: EventFields,
    /// The name of the added object.
    pub added_field: String,
    /// How long events wait.
    pub grace: Duration,
    /// Most events that wait.
    pub waiting_max: usize,
    /// Most bytes that wait.
    pub waiting_max_bytes: u64,
    /// What becomes of invalid ones.
    pub on_invalid: OnInvalid,
    /// Their topic, where it is set.
    pub invalid_topic: Option<String>,
}

pub(super) fn settings(
    flags: &EnrichOverrides,
    raw: RawEnrich,
) -> Result<EnrichSettings, ConfigError> {
    let preset = flags.preset.clone().or(raw.preset);
    let preset: Preset = parsed("enrich.preset", preset.as_deref())?.unwrap_or_default();
    let mut fields = preset.fields();
    if let Some(host) = host(list(&flags.field_host, raw.field_host))? {
        fields.host = host;
    }
    let lists = [
        (
            "enrich.field_pns",
            &flags.field_pns,
            raw.field_pns,
            &mut fields.pns,
        ),
        (
            "enrich.field_time",
            &flags.field_time,
            raw.field_time,
            &mut fields.time,
        ),
        (
            "enrich.field_mnt_ns",
            &flags.field_mnt_ns,
            raw.field_mnt_ns,
            &mut fields.mnt_ns,
        ),
        (
            "enrich.field_cgroup",
            &flags.field_cgroup,
            raw.field_cgroup,
            &mut fields.cgroup,
        ),
    ];
    for (key, flag, raw, field) in lists {
        let texts = list(flag, raw);
        if !texts.is_empty() {
            *field = pointers(key, &texts)?;
        }
    }
    let unit = flags.time_unit.clone().or(raw.time_unit);
    if let Some(unit) = parsed::<TimeUnit>("enrich.time_unit", unit.as_deref())? {
        fields.time_unit = unit;
    }
    let added_field = flags.added_field.clone().or(raw.added_field);
    let added_field = added_field.unwrap_or_else(|| preset.added_field().to_owned());
    if added_field.is_empty() {
        return Err(value("enrich.added_field", "it must not be empty"));
    }
    EventReader::new(fields.clone(), &added_field).map_err(|error| value("enrich", error))?;
    let grace = flags.grace.clone().or(raw.grace);
    let grace = duration("enrich.grace", grace.as_deref().unwrap_or("5s"))?;
    if grace > GRACE_MAX {
        return Err(value("enrich.grace", "it must be 5m at most"));
    }
    let waiting = flags.waiting_max_bytes.clone().or(raw.waiting_max_bytes);
    let on_invalid = flags.on_invalid.clone().or(raw.on_invalid);
    let input = input(flags.input.clone().or(raw.input))?;
    let output = name("enrich.output", flags.output.clone().or(raw.output))?;
    let invalid_topic = flags.invalid_topic.clone().or(raw.invalid_topic);
    let invalid_topic = name("enrich.invalid_topic", invalid_topic)?;
    if input.is_some() && (input == output || input == invalid_topic) {
        return Err(value(
            "enrich.output",
            "it must not be the input: events would go round",
        ));
    }
    let group = name("enrich.group", flags.group.clone().or(raw.group))?;
    Ok(EnrichSettings {
        input,
        output,
        group: group.unwrap_or_else(|| "quaymaster-enrich".to_owned()),
        preset,
        fields,
        added_field,
        grace,
        waiting_max: flags.waiting_max.or(raw.waiting_max).unwrap_or(100_000),
        waiting_max_bytes: bytes(
            "enrich.waiting_max_bytes",
            waiting.as_deref().unwrap_or("64MiB"),
        )?,
        on_invalid: parsed("enrich.on_invalid", on_invalid.as_deref())?.unwrap_or_default(),
        invalid_topic,
    })
}

/// The input's name; on NATS it may be a subject with wildcards.
fn input(text: Option<String>) -> Result<Option<String>, ConfigError> {
    let bare = |text: &str| text.replace(".*", "").replace(".>", "");
    name("enrich.input", text.as_deref().map(bare))?;
    Ok(text)
}

/// A name that both buses take.
fn name(key: &'static str, text: Option<String>) -> Result<Option<String>, ConfigError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text {
        Some(text) if text.is_empty() || text.len() > 249 || !text.bytes().all(is_legal) => {
            Err(value(
                key,
                format!(
                    "`{text}` must be 1 to 249 characters of letters, digits, `-`, `_` and `.`"
                ),
            ))
        }
        other => Ok(other),
    }
}

fn list(flag: &[String], raw: Vec<String>) -> Vec<String> {
    if flag.is_empty() { raw } else { flag.to_vec() }
}

fn host(texts: Vec<String>) -> Result<Option<HostSource>, ConfigError> {
    let key = "enrich.field_host";
    Ok(match texts.as_slice() {
        [] => None,
        [one] if one == "key" => Some(HostSource::Key),
        [one] if one.starts_with('=') && one.len() > 1 => {
            Some(HostSource::Constant(one[1..].into()))
        }
        texts => Some(HostSource::Fields(pointers(key, texts)?)),
    })
}

fn pointers(key: &'static str, texts: &[String]) -> Result<Vec<Pointer>, ConfigError> {
    let pointers = texts.iter().map(|text| text.parse());
    pointers
        .collect::<Result<_, String>>()
        .map_err(|error| value(key, error))
}

fn parsed<T: std::str::FromStr<Err = String>>(
    key: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, ConfigError> {
    text.map(str::parse)
        .transpose()
        .map_err(|error| value(key, error))
}
