//! The formats of what is published: the only place that knows them.
//!
//! A [`Message`] goes in, an [`Outgoing`] with its JSON text comes out. `schema_version` stands in every value;
//! changes are additive.

pub mod encoding;
pub mod json;
pub mod local;
#[cfg(test)]
mod schema;
mod status;

use std::fmt::Write as _;
use std::sync::Arc;

pub use status::{OutboxStatus, ResyncStatus, RuntimeStatus, Status};

use crate::model::Topic;
use crate::model::message::{Message, Op};
use crate::outbox::Gap;
use crate::sink::Outgoing;

/// The version of every value's schema.
pub const SCHEMA_VERSION: u32 = 1;
/// Elkeid's data type of a container's record.
pub const RECORD_DATA_TYPE: u32 = 5056;
/// A reader ignores a state message after so many of its refreshes have been missed.
const EXPIRY_REFRESHES: u64 = 3;

/// Who publishes.
#[derive(Clone, Debug)]
pub struct Host {
    /// The host's id, first part of every key.
    pub host_id: Arc<str>,
    /// The host's name.
    pub host_name: Arc<str>,
    /// The boot.
    pub boot_id: Arc<str>,
    /// The epoch.
    pub epoch: Arc<str>,
}

/// How often unchanged state is put again, from which its expiry follows.
#[derive(Clone, Copy, Debug)]
pub struct Refresh {
    /// Records, in milliseconds.
    pub records_ms: u64,
    /// Mappings, in milliseconds.
    pub pns_ms: u64,
    /// The status, in milliseconds.
    pub status_ms: u64,
}

/// Renders messages for one host and one epoch.
#[derive(Clone, Debug)]
pub struct Renderer {
    host: Host,
    refresh: Refresh,
    ce_source: Arc<str>,
    no_text: Arc<str>,
    op_texts: [Arc<str>; Op::ALL.len()],
}

impl Renderer {
    /// A renderer for one host and one epoch.
    pub fn new(host: Host, refresh: Refresh) -> Self {
        let ce_source = format!("/quaymaster/{}", host.host_id).into();
        Self {
            host,
            refresh,
            ce_source,
            no_text: "".into(),
            op_texts: Op::ALL.map(|op| op.as_str().into()),
        }
    }

    /// The host that is spoken of.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Renders one message. `row` is the outbox row that it will have; `now_ms` is unix time.
    pub fn render(&self, message: &Message, row: u64, now_ms: u64) -> Outgoing {
        match message {
            Message::Delta(delta) => Outgoing {
                row,
                topic: Topic::Deltas,
                host_id: Arc::clone(&self.host.host_id),
                item: Arc::clone(&self.no_text),
                op: self.op_text(delta.op),
                value: Some(json::delta(&self.host, delta)),
                ce_id: self.delta_id(delta.seq),
                ce_type: "io.quaymaster.delta.v1",
                ce_source: Arc::clone(&self.ce_source),
                time_ms: signed(delta.ts_ms),
            },
            Message::Record {
                id,
                fields,
                package_seq,
                seq,
            } => {
                let expires_at_ms = now_ms + EXPIRY_REFRESHES * self.refresh.records_ms;
                let value = json::record(
                    &self.host,
                    fields,
                    *package_seq,
                    *seq,
                    now_ms,
                    expires_at_ms,
                );
                self.state(Topic::Records, id.shared(), Some(value), row, now_ms)
            }
            Message::RecordTombstone { id } => {
                self.state(Topic::Records, id.shared(), None, row, now_ms)
            }
            Message::Mapping { mapping, refresh } => {
                let expires_at_ms = now_ms + EXPIRY_REFRESHES * self.refresh.pns_ms;
                let item = mapping.pns_inode.to_string().into();
                let value = json::mapping(&self.host, mapping, expires_at_ms);
                let is_first = !refresh && mapping.valid_to_ms.is_none();
                let time_ms = if is_first {
                    mapping.valid_from_ms
                } else {
                    now_ms
                };
                self.state(Topic::Pns, item, Some(value), row, time_ms)
            }
            Message::MappingTombstone { pns_inode, .. } => {
                self.state(Topic::Pns, pns_inode.to_string().into(), None, row, now_ms)
            }
        }
    }

    /// Renders the `gap` that stands for deltas which were lost.
    pub fn render_gap(&self, gap: &Gap, now_ms: u64) -> Outgoing {
        Outgoing {
            row: gap.row,
            topic: Topic::Deltas,
            host_id: Arc::clone(&self.host.host_id),
            item: Arc::clone(&self.no_text),
            op: "gap".into(),
            value: Some(json::gap(&self.host, gap, now_ms)),
            ce_id: self.delta_id(gap.seq),
            ce_type: "io.quaymaster.delta.v1",
            ce_source: Arc::clone(&self.ce_source),
            time_ms: signed(now_ms),
        }
    }

    /// Renders the collector's own state.
    pub fn render_status(&self, status: &Status, row: u64, now_ms: u64) -> Outgoing {
        let expires_at_ms = now_ms + EXPIRY_REFRESHES * self.refresh.status_ms;
        let value = status::render(&self.host, status, expires_at_ms);
        let message = self.state(
            Topic::Status,
            Arc::clone(&self.no_text),
            Some(value),
            row,
            now_ms,
        );
        Outgoing { row: 0, ..message }
    }

    fn state(
        &self,
        topic: Topic,
        item: Arc<str>,
        value: Option<Arc<[u8]>>,
        row: u64,
        time_ms: u64,
    ) -> Outgoing {
        Outgoing {
            row,
            topic,
            host_id: Arc::clone(&self.host.host_id),
            item,
            op: Arc::clone(&self.no_text),
            value,
            ce_id: state_id(&self.host.host_id, &self.host.epoch, row),
            ce_type: ce_type(topic),
            ce_source: Arc::clone(&self.ce_source),
            time_ms: signed(time_ms),
        }
    }

    fn op_text(&self, op: Op) -> Arc<str> {
        Arc::clone(&self.op_texts[op as usize])
    }

    fn delta_id(&self, seq: u64) -> Arc<str> {
        delta_id(&self.host.host_id, &self.host.epoch, seq)
    }
}

/// The `gap` that is sent in the place of a delta which the bus refuses for what it is: same row, same number,
/// some hundred bytes. `None` for what is no delta, and for a gap.
pub fn quarantine_gap(refused: &Outgoing, now_ms: u64) -> Option<Outgoing> {
    if refused.topic != Topic::Deltas || &*refused.op == "gap" {
        return None;
    }
    let teller = json::teller(refused.value.as_deref()?)?;
    let host = Host {
        host_id: Arc::clone(&refused.host_id),
        host_name: teller.host_name.into(),
        boot_id: teller.boot_id.into(),
        epoch: teller.epoch.into(),
    };
    let gap = Gap {
        seq_from: teller.seq,
        seq: teller.seq,
        row: refused.row,
        reason: "quarantine",
    };
    Some(Outgoing {
        op: "gap".into(),
        value: Some(json::gap(&host, &gap, now_ms)),
        ..refused.clone()
    })
}

/// The CloudEvents id of a delta.
pub fn delta_id(host_id: &str, epoch: &str, seq: u64) -> Arc<str> {
    id_of(host_id, epoch, ":", seq)
}

/// The CloudEvents id of a state message, by its row in the outbox.
pub fn state_id(host_id: &str, epoch: &str, row: u64) -> Arc<str> {
    id_of(host_id, epoch, ":r", row)
}

/// Every message has one: room for it is taken once.
fn id_of(host_id: &str, epoch: &str, mark: &str, number: u64) -> Arc<str> {
    const DIGITS_MAX: usize = 20;
    let bytes = host_id.len() + 1 + epoch.len() + mark.len() + DIGITS_MAX;
    let mut id = String::with_capacity(bytes);
    id.extend([host_id, ":", epoch, mark]);
    write!(id, "{number}").expect("writing to a string does not fail");
    id.into()
}

/// The CloudEvents type of a topic's messages.
pub fn ce_type(topic: Topic) -> &'static str {
    match topic {
        Topic::Deltas => "io.quaymaster.delta.v1",
        Topic::Records => "io.quaymaster.record.v1",
        Topic::Pns => "io.quaymaster.mapping.v1",
        Topic::Status => "io.quaymaster.status.v1",
        Topic::Processes => "io.quaymaster.process.v1",
        Topic::Ports => "io.quaymaster.port.v1",
    }
}

/// The CloudEvents source of a host's messages.
pub fn ce_source(host_id: &str) -> Arc<str> {
    format!("/quaymaster/{host_id}").into()
}

/// Whether a delta's op is about the epoch itself, with no container in it.
pub fn is_bare(op: Op) -> bool {
    matches!(op, Op::Epoch | Op::SnapshotEnd)
}

fn signed(time_ms: u64) -> i64 {
    i64::try_from(time_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_that_is_refused_has_a_small_gap_of_its_own_number_in_its_place() {
        let labels = "x".repeat(100_000);
        let value = format!(
            r#"{{"schema_version":1,"op":"create","host_id":"h","host_name":"n\u00e9","boot_id":"b","epoch":"e","seq":42,
            "container":{{"labels":"{labels}"}}}}"#
        );
        let refused = Outgoing {
            row: 7,
            topic: Topic::Deltas,
            host_id: "h".into(),
            item: "".into(),
            op: "create".into(),
            value: Some(value.into_bytes().into()),
            ce_id: delta_id("h", "e", 42),
            ce_type: ce_type(Topic::Deltas),
            ce_source: ce_source("h"),
            time_ms: 5,
        };
        let gap = quarantine_gap(&refused, 9).expect("a delta has one");
        assert_eq!((gap.row, &*gap.op, &gap.ce_id), (7, "gap", &refused.ce_id));
        let value = gap.value.as_deref().unwrap_or_default();
        assert!(value.len() < 500);
        let read: serde_json::Value = serde_json::from_slice(value).expect("it is JSON");
        assert_eq!((&read["seq_from"], &read["seq"]), (&42.into(), &42.into()));
        assert_eq!(read["reason"], "quarantine");
        assert_eq!(read["host_name"], "né");
        assert_eq!(quarantine_gap(&gap, 9), None);
        let state = Outgoing {
            topic: Topic::Records,
            ..refused
        };
        assert_eq!(quarantine_gap(&state, 9), None);
    }
}
