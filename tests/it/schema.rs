//! Every kind of message, as it is rendered, against the schemas in `schemas/`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use quaymaster::cli::schema::Schema;
use quaymaster::local::ports::{PortRow, Protocol};
use quaymaster::local::scan::ProcessRow;
use quaymaster::model::Topic;
use quaymaster::model::message::{Delta, Mapping, Member, Message, Op, Origin, RuntimeSource};
use quaymaster::model::record::{Fields, ProcessFacts};
use quaymaster::model::{Container, ContainerKind, Pod, RuntimeType, State};
use quaymaster::sink::Outgoing;
use quaymaster::wire::encoding::{self, Encoding};
use quaymaster::wire::local::Snapshot;
use quaymaster::wire::{
    Host, OutboxStatus, Refresh, Renderer, ResyncStatus, RuntimeStatus, Status,
};
use serde_json::{Value, json};

use crate::{ID, ID_B, id};

const NOW_MS: u64 = 1_700_000_000_000;

fn renderer() -> Renderer {
    let host = Host {
        host_id: "4c0ffee".into(),
        host_name: "quay-1".into(),
        boot_id: "b007".into(),
        epoch: "e90c".into(),
    };
    let refresh = Refresh {
        records_ms: 300_000,
        pns_ms: 3_600_000,
        status_ms: 30_000,
    };
    Renderer::new(host, refresh)
}

/// A container of which nothing is known that need not be.
fn bare_container() -> Container {
    Container {
        runtime_name: "docker".into(),
        runtime_version: "28.5.2".into(),
        ..Container::bare(id(ID), ContainerKind::Container, RuntimeType::Docker)
    }
}

/// A container of which everything is known.
fn full_container() -> Container {
    Container {
        name: "web".to_owned(),
        kind: ContainerKind::Sandbox,
        runtime: RuntimeType::Cri,
        state: State::Exited,
        image_id: ID_B.to_owned(),
        image_name: "nginx:1.21".to_owned(),
        image_digest: format!("nginx@sha256:{ID_B}"),
        pid: Some(4_711),
        created_at_ns: NOW_MS * 1_000_000,
        started_at_ns: Some(NOW_MS * 1_000_000),
        finished_at_ns: Some(NOW_MS * 1_000_000),
        exit_code: Some(-1),
        oom_killed: Some(true),
        restart_count: Some(3),
        pod: Some(Pod {
            name: "web-0".to_owned(),
            namespace: "default".to_owned(),
            uid: "u1d".to_owned(),
            sandbox_id: ID_B.to_owned(),
        }),
        pid_mode: "pod".to_owned(),
        privileged: Some(false),
        reason: "OOMKilled".to_owned(),
        labels: BTreeMap::from([("a\"b".to_owned(), "c\nd".to_owned())]),
        ..bare_container()
    }
}

fn all_fields() -> [Fields; 2] {
    let facts = ProcessFacts {
        pid: Some(4_711),
        pns_inode: Some(4_026_532_448),
        pns_id: Some(u64::MAX),
    };
    [
        Fields::of(&bare_container(), ProcessFacts::default()),
        Fields::of(&full_container(), facts),
    ]
}

fn delta(op: Op, fields: Option<Fields>, changed: Vec<(&'static str, Box<str>)>) -> Message {
    let source = RuntimeSource {
        uid: 0,
        runtime: RuntimeType::Cri,
        name: "containerd".into(),
        version: "2.1.4".into(),
        endpoint: "unix:///run/containerd/containerd.sock".into(),
    };
    Message::Delta(Box::new(Delta {
        seq: u64::from(u32::MAX),
        op,
        ts_ms: NOW_MS,
        source: fields.is_some().then(|| Arc::new(source)),
        origin: Origin::Event,
        event_ts_ns: NOW_MS * 1_000_000,
        fields,
        changed,
        reason: "oom".into(),
        package_seq: 17,
        previous_epoch: (op == Op::Epoch).then(|| Arc::from("e90b")),
    }))
}

fn member(container: &Container, is_init: bool) -> Member {
    Member {
        container_id: container.id.clone(),
        container_name: container.name.as_str().into(),
        kind: container.kind,
        runtime: container.runtime,
        image_name: container.image_name.as_str().into(),
        pod: container.pod.clone(),
        pid: 4_711,
        start_ticks: 17,
        started_at_ms: NOW_MS,
        mnt_ns: 0,
        cgroup: "/kubepods/web".into(),
        is_init,
    }
}

fn mappings() -> Vec<Message> {
    let (bare, full) = (
        member(&bare_container(), true),
        member(&full_container(), false),
    );
    let alone = Mapping {
        pns_inode: 4_026_532_448,
        pns_id: None,
        generation: 1,
        boot_id: "b007".into(),
        valid_from_ms: NOW_MS,
        valid_to_ms: None,
        owner: bare.clone(),
        members: vec![bare.clone()],
        nested: false,
        seq: 0,
    };
    let shared = Mapping {
        pns_id: Some(u64::MAX),
        valid_to_ms: Some(NOW_MS),
        owner: full.clone(),
        members: vec![bare, full],
        ..alone.clone()
    };
    let nested = Mapping {
        nested: true,
        ..alone.clone()
    };
    [alone, shared, nested]
        .into_iter()
        .map(|mapping| Message::Mapping {
            mapping: Box::new(mapping),
            refresh: false,
        })
        .collect()
}

fn statuses() -> [Status; 2] {
    let runtime = RuntimeStatus {
        name: "docker".to_owned(),
        version: "28.5.2".to_owned(),
        endpoint: "unix:///run/docker.sock".to_owned(),
        stream: "live",
        ..RuntimeStatus::default()
    };
    let starting = Status {
        state: "starting",
        ..Status::default()
    };
    let live = Status {
        state: "live",
        seq: 42,
        runtimes: vec![
            runtime.clone(),
            RuntimeStatus {
                stream: "down",
                ..runtime
            },
        ],
        containers: BTreeMap::from([("running", 3)]),
        resync: ResyncStatus {
            package_seq: 17,
            state: "end",
            ..ResyncStatus::default()
        },
        outbox: OutboxStatus {
            messages: 1,
            bytes: 512,
            oldest_ms: NOW_MS,
            quarantined: 1,
        },
    };
    [starting, live]
}

fn value_of(outgoing: &Outgoing) -> anyhow::Result<Value> {
    let bytes = outgoing.value.as_deref().context("it has a value")?;
    Ok(serde_json::from_slice(bytes)?)
}

/// Each kind of message once at least, with what it is called and its schema.
fn messages() -> anyhow::Result<Vec<(String, Schema, Value)>> {
    let renderer = renderer();
    let [bare, full] = all_fields();
    let mut all = Vec::new();
    let changed: Vec<(&'static str, Box<str>)> = vec![("state", "created".into())];
    for (op, fields, changed) in [
        (Op::Create, Some(bare.clone()), Vec::new()),
        (Op::Start, Some(full.clone()), changed.clone()),
        (Op::Stop, Some(full.clone()), changed.clone()),
        (Op::Update, Some(bare.clone()), changed),
        (Op::Delete, Some(full.clone()), Vec::new()),
        (Op::Snapshot, Some(full.clone()), Vec::new()),
        (Op::Epoch, None, Vec::new()),
        (Op::SnapshotEnd, None, Vec::new()),
    ] {
        let message = delta(op, fields, changed);
        let value = value_of(&renderer.render(&message, 1, NOW_MS))?;
        all.push((format!("delta {}", op.as_str()), Schema::Delta, value));
    }
    let gap = renderer.render_gap(
        &quaymaster::outbox::Gap {
            seq_from: 4,
            seq: 7,
            row: 1,
            reason: "overflow",
        },
        NOW_MS,
    );
    all.push(("delta gap".to_owned(), Schema::Delta, value_of(&gap)?));
    for fields in [bare, full] {
        let message = Message::Record {
            id: id(ID),
            fields,
            package_seq: 17,
            seq: 42,
        };
        let value = value_of(&renderer.render(&message, 1, NOW_MS))?;
        all.push(("record".to_owned(), Schema::Record, value));
    }
    for message in mappings() {
        let value = value_of(&renderer.render(&message, 1, NOW_MS))?;
        all.push(("mapping".to_owned(), Schema::Mapping, value));
    }
    for status in statuses() {
        let value = value_of(&renderer.render_status(&status, 1, NOW_MS))?;
        all.push(("status".to_owned(), Schema::Status, value));
    }
    for (what, schema, value) in snapshots() {
        all.push((what.to_owned(), schema, serde_json::from_slice(&value)?));
    }
    Ok(all)
}

/// Processes and sockets of which everything is known, and nothing that need not be.
fn snapshots() -> [(&'static str, Schema, Bytes); 4] {
    let snapshot = Snapshot::new(renderer().host().clone(), NOW_MS);
    let process = ProcessRow {
        pid: 4_711,
        ppid: 1,
        ns_pid: Some(1),
        exe: "/usr/bin/a\nb".to_owned(),
        cmdline: "a \u{1b}[2J \u{fffd}".to_owned(),
        uid: Some(0),
        gid: Some(u32::MAX),
        comm: ")".to_owned(),
        state: 'S',
        session: 4_711,
        tty: "pts/1".to_owned(),
        start_ticks: 17,
        started_at_ms: NOW_MS,
        pns_inode: Some(4_026_532_448),
        mnt_ns: Some(4_026_532_449),
        net_ns: None,
    };
    let zombie = ProcessRow {
        pid: 7,
        state: 'Z',
        ..ProcessRow::default()
    };
    let port = PortRow {
        protocol: Protocol::Udp6,
        address: std::net::Ipv6Addr::LOCALHOST.into(),
        port: 53,
        uid: 0,
        inode: u64::MAX,
        net_ns: 4_026_531_840,
        pid: None,
    };
    let container = full_container();
    [
        (
            "process",
            Schema::Process,
            snapshot.process(&process, Some(&container)),
        ),
        ("zombie", Schema::Process, snapshot.process(&zombie, None)),
        (
            "port",
            Schema::Port,
            snapshot.port(&port, Some(&process), Some(&container)),
        ),
        ("bare port", Schema::Port, snapshot.port(&port, None, None)),
    ]
}

fn validator(schema: Schema) -> anyhow::Result<jsonschema::Validator> {
    let schema: Value = serde_json::from_str(schema.text())?;
    jsonschema::draft202012::meta::validate(&schema)
        .map_err(|error| anyhow::anyhow!("the schema itself: {error}"))?;
    jsonschema::draft202012::new(&schema).map_err(|error| anyhow::anyhow!("{error}"))
}

fn errors(schema: Schema, value: &Value) -> anyhow::Result<Vec<String>> {
    let validator = validator(schema)?;
    let errors = validator.iter_errors(value);
    Ok(errors
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect())
}

/// What the schema of the status has against a value.
pub(crate) fn errors_of_status(value: &Value) -> anyhow::Result<Vec<String>> {
    errors(Schema::Status, value)
}

#[test]
fn every_message_is_as_its_schema_says() -> anyhow::Result<()> {
    for (what, schema, value) in messages()? {
        let errors = errors(schema, &value)?;
        assert!(errors.is_empty(), "{what}: {errors:?}\n{value:#}");
    }
    Ok(())
}

#[test]
fn every_key_of_a_message_is_required_and_described() -> anyhow::Result<()> {
    for (what, schema, value) in messages()? {
        for key in value.as_object().context("a message is an object")?.keys() {
            let mut lacking = value.clone();
            lacking.as_object_mut().map(|object| object.remove(key));
            let is_optional = matches!(key.as_str(), "source" | "previous_epoch" | "nested");
            let found = errors(schema, &lacking)?;
            assert_eq!(found.is_empty(), is_optional, "{what} without {key}");
            let text: Value = serde_json::from_str(schema.text())?;
            assert!(
                !text["properties"][key].is_null(),
                "{what}: {key} is in the schema"
            );
        }
    }
    Ok(())
}

#[test]
fn the_fields_of_a_record_and_of_a_delta_are_the_same() -> anyhow::Result<()> {
    let record: Value = serde_json::from_str(Schema::Record.text())?;
    let delta: Value = serde_json::from_str(Schema::Delta.text())?;
    assert_eq!(record["$defs"]["fields"], delta["$defs"]["fields"]);
    let (_, _, rendered) = messages()?
        .into_iter()
        .find(|(what, ..)| what == "record")
        .context("there is a record")?;
    let keys = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .map(|object| object.keys().cloned().collect())
            .unwrap_or_default()
    };
    let mut described = keys(&record["$defs"]["fields"]["properties"]);
    let mut published = keys(&rendered["fields"]);
    described.sort();
    published.sort();
    assert_eq!(described, published);
    Ok(())
}

#[test]
fn the_fields_of_snapshots_are_all_described_and_required() -> anyhow::Result<()> {
    let snapshots = messages()?;
    let of_snapshots = snapshots
        .iter()
        .filter(|(_, schema, _)| matches!(schema, Schema::Process | Schema::Port));
    let mut count = 0;
    for (what, schema, value) in of_snapshots {
        let fields = value["fields"]
            .as_object()
            .context("fields are an object")?;
        let text: Value = serde_json::from_str(schema.text())?;
        let described = text["properties"]["fields"]["properties"].as_object();
        assert_eq!(
            Some(fields.len()),
            described.map(serde_json::Map::len),
            "{what}"
        );
        for (key, field) in fields {
            assert!(field.is_string(), "{what}: {key} is text");
            let mut lacking = value.clone();
            lacking["fields"].as_object_mut().map(|it| it.remove(key));
            assert!(
                !errors(*schema, &lacking)?.is_empty(),
                "{what} without {key}"
            );
            count += 1;
        }
    }
    assert!(count > 80, "{count} fields were looked at");
    Ok(())
}

#[test]
fn what_breaks_the_contract_is_found() -> anyhow::Result<()> {
    let all = messages()?;
    let of = |name: &str| {
        let found = all.iter().find(|(what, ..)| what == name);
        found.map(|(_, schema, value)| (*schema, value.clone()))
    };
    for (name, pointer, wrong) in [
        ("record", "/fields/pid", json!(7)),
        ("record", "/fields/pid", json!("seven")),
        ("record", "/fields/state", json!("happy")),
        ("record", "/fields/pns", json!("mnt:[1]")),
        ("record", "/data_type", json!(5_057)),
        ("mapping", "/members", json!([])),
        ("mapping", "/pns_inode", json!("4026532448")),
        ("mapping", "/shared", json!(true)),
        ("status", "/state", json!("well")),
        ("delta start", "/container", json!({})),
        ("delta start", "/seq", json!("42")),
        ("delta start", "/source/origin", json!("rumour")),
        ("delta gap", "/reason", json!("")),
        ("process", "/fields/pid", json!(4_711)),
        ("process", "/fields/pid_ns", json!("net:[1]")),
        ("process", "/data_type", json!(5_056)),
        ("port", "/fields/proto", json!("sctp")),
        ("port", "/fields/port", json!("")),
    ] {
        let (schema, mut value) = of(name).context("it is one of the messages")?;
        let target = value.pointer_mut(pointer).context("the field is there")?;
        *target = wrong;
        assert!(!errors(schema, &value)?.is_empty(), "{name} {pointer}");
    }
    // What a later release may add is none of it.
    let (schema, mut value) = of("delta start").context("there is a start")?;
    value["op"] = json!("migrate");
    value["later"] = json!({"than": "this"});
    assert_eq!(errors(schema, &value)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn every_message_has_the_same_protobuf_and_comes_back_from_it() -> anyhow::Result<()> {
    for (what, schema, value) in messages()? {
        let topic = match schema {
            Schema::Delta => Topic::Deltas,
            Schema::Record => Topic::Records,
            Schema::Mapping => Topic::Pns,
            Schema::Status => Topic::Status,
            Schema::Process => Topic::Processes,
            Schema::Port => Topic::Ports,
            Schema::Asyncapi | Schema::Protobuf => anyhow::bail!("no message"),
        };
        let json = serde_json::to_vec(&value)?;
        // Each field of the JSON has one in proto/quaymaster.proto.
        let protobuf = encoding::strictly(topic, &json).with_context(|| what.clone())?;
        anyhow::ensure!(
            protobuf == *Encoding::Protobuf.encode(topic, &json)?,
            "{what}"
        );
        let back: Value = serde_json::from_slice(&encoding::to_json(topic, &protobuf)?)?;
        assert_eq!(without_defaults(back), without_defaults(value), "{what}");
    }
    Ok(())
}

/// A value as protobuf sees it, where what has its type's default is the same as what is not there.
fn without_defaults(value: Value) -> Value {
    let is_default = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    match value {
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, without_defaults(value)));
            Value::Object(fields.filter(|(_, value)| !is_default(value)).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_defaults).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

#[test]
fn what_is_no_message_is_an_error_in_either_form() {
    assert!(
        Encoding::Protobuf
            .encode(Topic::Deltas, b"{\"seq\":\"x\"}")
            .is_err()
    );
    assert!(Encoding::Protobuf.encode(Topic::Deltas, b"{} {}").is_err());
    assert!(encoding::to_json(Topic::Pns, b"\xff\xff\xff").is_err());
    let json = encoding::to_json(Topic::Pns, b"{ not looked at");
    assert_eq!(json.ok().as_deref(), Some(&b"{ not looked at"[..]));
}
