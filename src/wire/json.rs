//! Deltas, records and mappings as JSON. Numbers that may pass 2^53 are strings.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

#[cfg(test)]
use super::schema;
use super::{Host, RECORD_DATA_TYPE, SCHEMA_VERSION};
use crate::model::message::{Delta, Mapping, Member};
use crate::model::record::{Fields, pns_text};
use crate::outbox::Gap;

/// A container's fields with those of the host and the message, all of them text.
pub(super) struct RecordFields<'a> {
    host: &'a Host,
    fields: &'a Fields,
    package_seq: u64,
    seq: u64,
}

impl Serialize for RecordFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.fields.values() {
            map.serialize_entry(name, value)?;
            if name == "create_time" {
                map.serialize_entry("package_seq", &Text(self.package_seq))?;
                map.serialize_entry("host_id", &*self.host.host_id)?;
                map.serialize_entry("host_name", &*self.host.host_name)?;
                map.serialize_entry("boot_id", &*self.host.boot_id)?;
            }
        }
        map.serialize_entry("epoch", &*self.host.epoch)?;
        map.serialize_entry("seq", &Text(self.seq))?;
        map.end()
    }
}

#[cfg(test)]
impl schemars::JsonSchema for RecordFields<'_> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        schema::RecordFields::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schema::RecordFields::json_schema(generator)
    }
}

/// A number as text.
pub(super) struct Text(pub(super) u64);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A number as text, `""` where it is not known.
pub(super) struct TextIfKnown(pub(super) Option<u64>);

impl Serialize for TextIfKnown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(number) => Text(number).serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}

struct Before<'a>(&'a [(&'static str, Box<str>)]);

impl Serialize for Before<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

struct Changed<'a>(&'a [(&'static str, Box<str>)]);

impl Serialize for Changed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(name, _)| name))
    }
}

/// Who told it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(inline))]
struct SourceJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Runtime"))]
    runtime: &'a str,
    /// docker, podman, containerd, cri-o.
    runtime_name: &'a str,
    #[cfg_attr(test, schemars(with = "schema::Socket"))]
    endpoint: &'a str,
    /// Whether an event told it, or comparing lists.
    #[cfg_attr(test, schemars(with = "schema::OriginWord"))]
    origin: &'a str,
    /// The runtime's own time, in unix nanoseconds; 0 where there is none.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    event_ts_ns: Text,
}

/// One change of one host's containers. Key: the host id. Topic: quaymaster.deltas.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(
    title = "Delta",
    extend("$id" = "urn:quaymaster:schema:delta:v1", "allOf" = schema::rules_of_deltas())
))]
pub(super) struct DeltaJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    /// What happened; a later release may have others: ignore them.
    #[cfg_attr(test, schemars(with = "schema::OpWord"))]
    op: &'a str,
    #[cfg_attr(test, schemars(with = "schema::HostId"))]
    host_id: &'a str,
    #[cfg_attr(test, schemars(with = "schema::HostName"))]
    host_name: &'a str,
    #[cfg_attr(test, schemars(with = "schema::BootId"))]
    boot_id: &'a str,
    #[cfg_attr(test, schemars(with = "schema::Epoch"))]
    epoch: &'a str,
    /// The epoch before, of an `epoch`, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    previous_epoch: Option<&'a str>,
    /// The first of the deltas that are lost, of a `gap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "schema::Positive"))]
    seq_from: Option<u64>,
    /// The delta's number in its epoch; of a `gap` the last that is lost.
    #[cfg_attr(test, schemars(with = "schema::Positive"))]
    seq: u64,
    /// When, in unix milliseconds.
    ts_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "SourceJson<'_>"))]
    source: Option<SourceJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "RecordFields<'_>"))]
    container: Option<RecordFields<'a>>,
    /// The names of the fields that changed.
    #[cfg_attr(test, schemars(with = "schema::Changed"))]
    changed: Changed<'a>,
    /// Their earlier values.
    #[cfg_attr(test, schemars(with = "schema::Before"))]
    before: Before<'a>,
    /// Why, where the runtime tells; of a `gap`: overflow, quarantine, bus_lost_data.
    reason: &'a str,
}

/// The full state of one container (Elkeid's data type 5056). Key: host id and container id. Topic: quaymaster.records;
/// a tombstone follows the container's delete.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "Record", extend("$id" = "urn:quaymaster:schema:record:v1")))]
pub(super) struct RecordJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    #[cfg_attr(test, schemars(extend("const" = RECORD_DATA_TYPE)))]
    data_type: u32,
    /// When it was put, in unix seconds.
    timestamp: u64,
    #[cfg_attr(test, schemars(with = "schema::Expiry"))]
    expires_at_ms: u64,
    fields: RecordFields<'a>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(inline))]
struct MemberJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    container_id: &'a str,
    container_name: &'a str,
    /// Its image's name.
    // Mappings of before it was there are on the bus still.
    #[cfg_attr(test, schemars(skip_serializing_if = "str::is_empty"))]
    image_name: &'a str,
    #[cfg_attr(test, schemars(with = "schema::KindWord"))]
    kind: &'a str,
    /// Its init process, in the host's PID namespace.
    #[cfg_attr(test, schemars(with = "schema::Positive"))]
    pid: u32,
    /// The number of its mount namespace; 0 where it could not be read.
    mnt_ns: u64,
    /// The path of its cgroup.
    cgroup: &'a str,
}

/// One PID namespace and its containers. Key: host id and namespace number. Topic: quaymaster.pns; a tombstone follows
/// some minutes after the namespace's end.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(
    title = "Mapping",
    extend("$id" = "urn:quaymaster:schema:mapping:v1", "allOf" = schema::rules_of_mappings())
))]
pub(super) struct MappingJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    #[cfg_attr(test, schemars(with = "schema::HostId"))]
    host_id: &'a str,
    #[cfg_attr(test, schemars(with = "schema::BootId"))]
    boot_id: &'a str,
    /// The namespace's link.
    #[cfg_attr(test, schemars(with = "schema::Pns"))]
    pns: String,
    /// The number in it.
    #[cfg_attr(test, schemars(with = "schema::Positive"))]
    pns_inode: u64,
    /// The kernel's 64-bit id of it, never reused, where it has one.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    pns_id: String,
    /// The container whose init process is pid 1 inside.
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    container_id: &'a str,
    container_name: &'a str,
    #[cfg_attr(test, schemars(with = "schema::Runtime"))]
    runtime: &'a str,
    image_name: &'a str,
    pod_name: &'a str,
    pod_namespace: &'a str,
    pod_uid: &'a str,
    /// Its init process, in the host's PID namespace.
    #[cfg_attr(test, schemars(with = "schema::Positive"))]
    pid: u32,
    /// When the namespace began, in unix milliseconds.
    valid_from_ms: u64,
    /// When it ended, in unix milliseconds; null while it lives.
    valid_to_ms: Option<u64>,
    #[cfg_attr(test, schemars(with = "schema::Expiry"))]
    expires_at_ms: u64,
    /// Whether it has more than one member.
    shared: bool,
    #[cfg_attr(test, schemars(length(min = 1)))]
    members: Vec<MemberJson<'a>>,
    /// Whether it is a namespace below the container's own, made by what runs in the container; pid and members have
    /// its own pid 1 then.
    // Mappings of before it was there are on the bus still.
    #[cfg_attr(test, schemars(skip_serializing_if = "std::ops::Not::not"))]
    nested: bool,
    #[cfg_attr(test, schemars(with = "schema::Epoch"))]
    epoch: &'a str,
    /// The newest delta when this was put.
    seq: u64,
}

pub(super) fn delta(host: &Host, delta: &Delta) -> Bytes {
    let source = delta.source.as_ref().map(|source| SourceJson {
        runtime: source.runtime.as_str(),
        runtime_name: &source.name,
        endpoint: &source.endpoint,
        origin: delta.origin.as_str(),
        event_ts_ns: Text(delta.event_ts_ns),
    });
    let container = delta.fields.as_ref().map(|fields| RecordFields {
        host,
        fields,
        package_seq: delta.package_seq,
        seq: delta.seq,
    });
    text(&DeltaJson {
        schema_version: SCHEMA_VERSION,
        op: delta.op.as_str(),
        host_id: &host.host_id,
        host_name: &host.host_name,
        boot_id: &host.boot_id,
        epoch: &host.epoch,
        previous_epoch: delta.previous_epoch.as_deref(),
        seq_from: None,
        seq: delta.seq,
        ts_ms: delta.ts_ms,
        source,
        container,
        changed: Changed(&delta.changed),
        before: Before(&delta.changed),
        reason: &delta.reason,
    })
}

/// What a delta says of whoever tells it.
#[derive(Deserialize)]
pub(super) struct Teller {
    pub(super) host_name: String,
    pub(super) boot_id: String,
    pub(super) epoch: String,
    pub(super) seq: u64,
}

/// Reads it from a delta's text; `None` where that is none of ours.
pub(super) fn teller(delta: &[u8]) -> Option<Teller> {
    serde_json::from_slice(delta).ok()
}

pub(super) fn gap(host: &Host, gap: &Gap, now_ms: u64) -> Bytes {
    text(&DeltaJson {
        schema_version: SCHEMA_VERSION,
        op: "gap",
        host_id: &host.host_id,
        host_name: &host.host_name,
        boot_id: &host.boot_id,
        epoch: &host.epoch,
        previous_epoch: None,
        seq_from: Some(gap.seq_from),
        seq: gap.seq,
        ts_ms: now_ms,
        source: None,
        container: None,
        changed: Changed(&[]),
        before: Before(&[]),
        reason: gap.reason,
    })
}

pub(super) fn record(
    host: &Host,
    fields: &Fields,
    package_seq: u64,
    seq: u64,
    now_ms: u64,
    expires_at_ms: u64,
) -> Bytes {
    text(&RecordJson {
        schema_version: SCHEMA_VERSION,
        data_type: RECORD_DATA_TYPE,
        timestamp: now_ms / 1_000,
        expires_at_ms,
        fields: RecordFields {
            host,
            fields,
            package_seq,
            seq,
        },
    })
}

pub(super) fn mapping(host: &Host, mapping: &Mapping, expires_at_ms: u64) -> Bytes {
    let owner = &mapping.owner;
    let pod = owner.pod.as_ref();
    text(&MappingJson {
        schema_version: SCHEMA_VERSION,
        host_id: &host.host_id,
        boot_id: &mapping.boot_id,
        pns: pns_text(mapping.pns_inode),
        pns_inode: mapping.pns_inode,
        pns_id: mapping.pns_id.map(|id| id.to_string()).unwrap_or_default(),
        container_id: owner.container_id.as_str(),
        container_name: &owner.container_name,
        runtime: owner.runtime.as_str(),
        image_name: &owner.image_name,
        pod_name: pod.map_or("", |pod| &pod.name),
        pod_namespace: pod.map_or("", |pod| &pod.namespace),
        pod_uid: pod.map_or("", |pod| &pod.uid),
        pid: owner.pid,
        valid_from_ms: mapping.valid_from_ms,
        valid_to_ms: mapping.valid_to_ms,
        expires_at_ms,
        shared: mapping.members.len() > 1,
        members: mapping.members.iter().map(member).collect(),
        nested: mapping.nested,
        epoch: &host.epoch,
        seq: mapping.seq,
    })
}

fn member(member: &Member) -> MemberJson<'_> {
    MemberJson {
        container_id: member.container_id.as_str(),
        container_name: &member.container_name,
        image_name: &member.image_name,
        kind: member.kind.as_str(),
        pid: member.pid,
        mnt_ns: member.mnt_ns,
        cgroup: &member.cgroup,
    }
}

/// The text of a record as `quaymaster list --format json` prints it: its fields alone.
pub fn fields_value(fields: &Fields) -> serde_json::Value {
    let map: BTreeMap<_, _> = fields.values().collect();
    serde_json::json!(map)
}

/// Texts are cut from blocks of this size, which go when the last text of theirs does: one by one, texts of more than
/// a KiB cost the allocator more than they cost to write. So much a small message that is kept may keep.
const BLOCK_BYTES: usize = 64 * 1024;
/// What is left of a block and is too little for most texts.
const REST_BYTES: usize = 2 * 1024;

thread_local! {
    /// The rest of the block that texts are cut from.
    static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Renders a value whose parts are all text, numbers and lists, which cannot fail.
pub(super) fn text<T: Serialize>(value: &T) -> Bytes {
    ROOM.with_borrow_mut(|room| {
        if room.capacity() < REST_BYTES {
            room.reserve(BLOCK_BYTES);
        }
        serde_json::to_writer(room.writer(), value)
            .expect("our own messages have text keys and no foreign Serialize");
        room.split().freeze()
    })
}
