//! Deltas, records and mappings as JSON. Numbers that may pass 2^53 are strings.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::{Host, RECORD_DATA_TYPE, SCHEMA_VERSION};
use crate::model::message::{Delta, Mapping, Member};
use crate::model::record::{Fields, pns_text};
use crate::outbox::Gap;

/// A container's fields with those of the host and the message, all of them text.
struct RecordFields<'a> {
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

/// A number as text.
pub(super) struct Text(pub(super) u64);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
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

#[derive(Serialize)]
struct SourceJson<'a> {
    runtime: &'a str,
    runtime_name: &'a str,
    endpoint: &'a str,
    origin: &'a str,
    event_ts_ns: Text,
}

#[derive(Serialize)]
struct DeltaJson<'a> {
    schema_version: u32,
    op: &'a str,
    host_id: &'a str,
    host_name: &'a str,
    boot_id: &'a str,
    epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_epoch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq_from: Option<u64>,
    seq: u64,
    ts_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<RecordFields<'a>>,
    changed: Changed<'a>,
    before: Before<'a>,
    reason: &'a str,
}

#[derive(Serialize)]
struct RecordJson<'a> {
    schema_version: u32,
    data_type: u32,
    timestamp: u64,
    expires_at_ms: u64,
    fields: RecordFields<'a>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    container_id: &'a str,
    container_name: &'a str,
    image_name: &'a str,
    kind: &'a str,
    pid: u32,
    mnt_ns: u64,
    cgroup: &'a str,
}

#[derive(Serialize)]
struct MappingJson<'a> {
    schema_version: u32,
    host_id: &'a str,
    boot_id: &'a str,
    pns: String,
    pns_inode: u64,
    pns_id: String,
    container_id: &'a str,
    container_name: &'a str,
    runtime: &'a str,
    image_name: &'a str,
    pod_name: &'a str,
    pod_namespace: &'a str,
    pod_uid: &'a str,
    pid: u32,
    valid_from_ms: u64,
    valid_to_ms: Option<u64>,
    expires_at_ms: u64,
    shared: bool,
    members: Vec<MemberJson<'a>>,
    epoch: &'a str,
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
