//! The JSON Schemas of `schemas/`, generated from the types that are rendered, and held equal to the files.
//!
//! The types derive [`JsonSchema`]; their doc comments are the descriptions. What a text may look like is told by the
//! types of this module, which stand in for `&str` and `String`. Where a type was changed on purpose,
//! `QUAYMASTER_SCHEMAS_WRITE=1 cargo test --lib schemas_are` writes the files anew.

use std::fmt::Write as _;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use super::{SCHEMA_VERSION, json as messages, local, status};
use crate::local::ports::Protocol;
use crate::model::message::{Op, Origin};
use crate::model::{ContainerKind, RuntimeType, State};

/// With this variable the files are written instead of compared.
const WRITE: &str = "QUAYMASTER_SCHEMAS_WRITE";

const RUNTIMES: [RuntimeType; 3] = [
    RuntimeType::Docker,
    RuntimeType::Cri,
    RuntimeType::Containerd,
];
const ORIGINS: [Origin; 2] = [Origin::Event, Origin::Resync];
const KINDS: [ContainerKind; 2] = [ContainerKind::Container, ContainerKind::Sandbox];
const STATES: [State; 8] = [
    State::Created,
    State::Running,
    State::Paused,
    State::Restarting,
    State::Removing,
    State::Exited,
    State::Dead,
    State::Unknown,
];

/// Types that stand for a text or a number of which more is known than that.
macro_rules! stand_ins {
    ($($name:ident => $schema:tt)*) => {$(
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

stand_ins! {
    Version => {
        "description": "Changes within a version are additive: ignore what you do not know",
        "const": SCHEMA_VERSION
    }
    HostId => {
        "description": "The host", "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[^/:\\s]+$"
    }
    HostName => { "description": "The host's name", "type": "string" }
    BootId => { "description": "The boot", "type": "string" }
    Epoch => { "description": "The life of the collector's state", "type": "string", "minLength": 1 }
    Expiry => { "description": "Ignore it after this, in unix milliseconds", "type": "integer", "minimum": 0 }
    NonEmpty => { "type": "string", "minLength": 1 }
    Positive => { "type": "integer", "minimum": 1 }
    Socket => { "description": "Its socket", "type": "string", "pattern": "^unix://" }
    Digits => { "type": "string", "pattern": "^[0-9]+$" }
    DigitsIfKnown => { "type": "string", "pattern": "^[0-9]*$" }
    SignedIfKnown => { "type": "string", "pattern": "^(-?[0-9]+)?$" }
    TruthIfKnown => { "description": "Where the runtime tells", "type": "string", "enum": ["", "true", "false"] }
    Pns => { "type": "string", "pattern": "^pid:\\[[0-9]+\\]$" }
    PnsIfKnown => { "type": "string", "pattern": "^(pid:\\[[0-9]+\\])?$" }
    Letter => { "type": "string", "pattern": "^.$" }
    Labels => { "type": "string", "contentMediaType": "application/json", "pattern": "^\\{" }
    OpWord => {
        "type": "string", "pattern": "^[a-z]+(_[a-z]+)*$",
        "examples": Op::ALL.map(Op::as_str).into_iter().chain(["gap"]).collect::<Vec<_>>()
    }
    OriginWord => { "type": "string", "enum": (ORIGINS.map(Origin::as_str)) }
    Runtime => {
        "description": "The type of runtime", "type": "string", "enum": RUNTIMES.map(RuntimeType::as_str)
    }
    RuntimeIfAny => { "type": "string", "enum": (with_none(&RUNTIMES.map(RuntimeType::as_str))) }
    KindWord => { "type": "string", "enum": (KINDS.map(ContainerKind::as_str)) }
    StateWord => { "type": "string", "enum": STATES.map(State::as_str) }
    ProtocolWord => { "type": "string", "enum": Protocol::ALL.map(Protocol::as_str) }
    StreamWord => { "type": "string", "enum": ["live", "polling", "down"] }
    CollectorState => { "type": "string", "enum": ["starting", "live", "stopping"] }
    ResyncState => { "type": "string", "enum": ["", "begin", "end", "aborted"] }
    Changed => { "type": "array", "items": { "type": "string", "minLength": 1 }, "uniqueItems": true }
    Before => { "type": "object", "additionalProperties": { "type": "string" } }
}

/// The words, and no word.
fn with_none(words: &[&'static str]) -> Vec<&'static str> {
    [&[""], words].concat()
}

/// All values are text; an unknown one is "", never absent.
#[derive(JsonSchema)]
#[schemars(rename = "fields", extend("additionalProperties" = { "type": "string" }))]
#[expect(dead_code, reason = "it is looked at by its derive alone")]
pub(super) struct RecordFields {
    /// The whole id; of containerd's own containers `<namespace>:<id>`.
    #[schemars(with = "NonEmpty")]
    id: (),
    /// Without a leading `/`.
    name: String,
    /// Docker's own word; of CRI's, `created`, `running`, `exited` and `unknown`.
    #[schemars(with = "StateWord")]
    state: (),
    /// The bare digest, without `sha256:`.
    image_id: String,
    /// The name that a person gave.
    image_name: String,
    /// Of the init process, in the host's PID namespace, while it lives.
    #[schemars(with = "DigitsIfKnown")]
    pid: (),
    /// The link of its PID namespace.
    #[schemars(with = "PnsIfKnown")]
    pns: (),
    #[schemars(with = "Runtime")]
    runtime: (),
    /// Unix seconds.
    #[schemars(with = "Digits")]
    create_time: (),
    /// The number of the resync that the record belongs to.
    #[schemars(with = "Digits")]
    package_seq: (),
    #[schemars(with = "HostId")]
    host_id: (),
    #[schemars(with = "HostName")]
    host_name: (),
    #[schemars(with = "BootId")]
    boot_id: (),
    /// The number in `pns`.
    #[schemars(with = "DigitsIfKnown")]
    pns_inode: (),
    /// The kernel's 64-bit id of the namespace, never reused, where it has one.
    #[schemars(with = "DigitsIfKnown")]
    pns_id: (),
    /// A pod's infrastructure container is a `sandbox`.
    #[schemars(with = "KindWord")]
    kind: (),
    /// docker, podman, containerd, cri-o.
    runtime_name: String,
    /// The runtime's own text.
    runtime_version: String,
    pod_name: String,
    pod_namespace: String,
    pod_uid: String,
    pod_sandbox_id: String,
    /// `repo@sha256:…` where the runtime tells it.
    image_digest: String,
    /// Of the newest run.
    #[schemars(with = "DigitsIfKnown")]
    started_at_ms: (),
    /// Of the newest run, once it has ended.
    #[schemars(with = "DigitsIfKnown")]
    finished_at_ms: (),
    /// Of the newest run, once it has ended.
    #[schemars(with = "SignedIfKnown")]
    exit_code: (),
    #[schemars(with = "TruthIfKnown")]
    oom_killed: (),
    #[schemars(with = "DigitsIfKnown")]
    restart_count: (),
    /// `""` (its own), `host`, `container:<id>`; CRI: `pod`, `node`, `target`.
    pid_mode: String,
    #[schemars(with = "TruthIfKnown")]
    privileged: (),
    /// Why it ended or waits, in the runtime's words.
    reason: String,
    /// JSON text, at most 32 KiB, cut at whole labels.
    #[schemars(with = "Labels")]
    labels: (),
    #[schemars(with = "Epoch")]
    epoch: (),
    /// The newest delta when this was put.
    #[schemars(with = "Digits")]
    seq: (),
}

/// Which op has what.
pub(super) fn rules_of_deltas() -> Value {
    let none_of = |names: &[&str]| -> Value {
        json!({ "anyOf": names.iter().map(|name| json!({ "required": [name] })).collect::<Vec<_>>() })
    };
    let with_container = Op::ALL.into_iter().filter(|op| !super::is_bare(*op));
    let of = |ops: &[&str], then: Value| json!({ "if": { "properties": { "op": { "enum": ops } }, "required": ["op"] }, "then": then });
    let with_container: Vec<_> = with_container.map(Op::as_str).collect();
    let nothing_changed =
        json!({ "properties": { "before": { "maxProperties": 0 }, "changed": { "maxItems": 0 } } });
    let gap = json!({
        "required": ["seq_from"],
        "properties": { "reason": { "minLength": 1 }, "changed": { "maxItems": 0 } },
        "not": none_of(&["container", "source", "previous_epoch"])
    });
    let whole =
        json!({ "required": ["container"], "not": none_of(&["seq_from", "previous_epoch"]) });
    let bare = ["container", "source", "seq_from"];
    let end = ["container", "source", "seq_from", "previous_epoch"];
    json!([
        of(&with_container, whole),
        of(&["epoch"], json!({ "not": none_of(&bare) })),
        of(&["snapshot_end"], json!({ "not": none_of(&end) })),
        of(&["gap"], gap),
        of(&["create", "snapshot"], nothing_changed),
    ])
}

/// `shared` says whether there are several members.
pub(super) fn rules_of_mappings() -> Value {
    json!([{
        "if": { "properties": { "shared": { "const": true } }, "required": ["shared"] },
        "then": { "properties": { "members": { "minItems": 2 } } },
        "else": { "properties": { "members": { "maxItems": 1 } } }
    }])
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    settle(&mut schema);
    schema
}

/// Says of every object of ours that it may have more, and takes away what only Rust means.
fn settle(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.remove("format");
            if let Some(Value::String(text)) = keywords.get_mut("description") {
                *text = text.trim_end_matches('.').replace('\n', " ");
            }
            if keywords.get("type") == Some(&json!("object")) && keywords.contains_key("properties")
            {
                keywords
                    .entry("additionalProperties")
                    .or_insert(json!(true));
            }
            for (_, value) in keywords.iter_mut() {
                settle(value);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(settle),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The keywords of a schema in the order in which a person reads them; others follow by their names.
const READING_ORDER: [&str; 9] = [
    "$schema",
    "$id",
    "title",
    "description",
    "type",
    "required",
    "properties",
    "additionalProperties",
    "items",
];

/// A schema as text: properties in the order of the message.
fn text_of(schema: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, schema, &[], 0);
    text.push('\n');
    text
}

fn write_value(text: &mut String, value: &Value, order: &[&str], depth: usize) {
    let (open, close, count) = match value {
        Value::Object(map) => ('{', '}', map.len()),
        Value::Array(values) => ('[', ']', values.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => ('\0', '\0', 0),
    };
    if count == 0 {
        let _ = write!(text, "{value}");
        return;
    }
    text.push(open);
    let mut is_first = true;
    let mut begin_line = |text: &mut String| {
        let comma = if std::mem::take(&mut is_first) {
            ""
        } else {
            ","
        };
        let _ = write!(text, "{comma}\n{}", "  ".repeat(depth + 1));
    };
    if let Value::Array(values) = value {
        for value in values {
            begin_line(text);
            write_value(text, value, &READING_ORDER, depth + 1);
        }
    } else if let Value::Object(map) = value {
        for key in ordered(map, if depth == 0 { &READING_ORDER } else { order }) {
            begin_line(text);
            let _ = write!(text, "{}: ", Value::from(key));
            let below = if key == "properties" {
                required(map)
            } else {
                READING_ORDER.to_vec()
            };
            write_value(text, &map[key], &below, depth + 1);
        }
    }
    let _ = write!(text, "\n{}{close}", "  ".repeat(depth));
}

fn ordered<'a>(map: &'a Map<String, Value>, order: &[&str]) -> Vec<&'a str> {
    let mut keys: Vec<_> = map.keys().map(String::as_str).collect();
    keys.sort_by_key(|key| {
        order
            .iter()
            .position(|known| known == key)
            .unwrap_or(order.len())
    });
    keys
}

fn required(schema: &Map<String, Value>) -> Vec<&str> {
    let names = schema.get("required").and_then(Value::as_array);
    names
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn the_schemas_are_those_of_the_types() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for (name, schema) in [
        ("delta", schema_of::<messages::DeltaJson<'_>>()),
        ("record", schema_of::<messages::RecordJson<'_>>()),
        ("mapping", schema_of::<messages::MappingJson<'_>>()),
        ("status", schema_of::<status::StatusJson<'_>>()),
        ("process", schema_of::<local::ProcessJson<'_>>()),
        ("port", schema_of::<local::PortJson<'_>>()),
    ] {
        let file = folder.join(format!("{name}.schema.json"));
        let generated = text_of(&schema);
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&file, &generated)?;
        }
        let kept = std::fs::read_to_string(&file)?;
        assert!(
            kept == generated,
            "`{}` is not what the types say: {WRITE}=1 writes it",
            file.display()
        );
    }
    Ok(())
}
