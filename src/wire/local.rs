//! Processes (data type 5050) and listening sockets (5051) as JSON, in the envelope of the records.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Host, SCHEMA_VERSION, ce_source, ce_type, json, signed};
use crate::local::ports::PortRow;
use crate::local::scan::ProcessRow;
use crate::model::record::pns_text;
use crate::model::{Container, Topic};
use crate::sink::Outgoing;

/// Elkeid's data type of a process.
pub const PROCESS_DATA_TYPE: u32 = 5050;
/// Elkeid's data type of a listening socket.
pub const PORT_DATA_TYPE: u32 = 5051;

/// All processes or sockets of one moment; renders them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    host: Host,
    source: Arc<str>,
    taken_ms: u64,
}

impl Snapshot {
    /// A snapshot of a host, taken at a unix millisecond. The epoch of the host is not told.
    pub fn new(host: Host, taken_ms: u64) -> Self {
        Self {
            source: ce_source(&host.host_id),
            host,
            taken_ms,
        }
    }

    /// The JSON text of a process and the container that it belongs to.
    pub fn process(&self, row: &ProcessRow, container: Option<&Container>) -> Bytes {
        self.text(
            PROCESS_DATA_TYPE,
            Fields {
                snapshot: self,
                subject: &Subject::Process(row),
                process: Some(row),
                container,
            },
        )
    }

    /// The JSON text of a listening socket, the process that has it open, and the container of that.
    pub fn port(
        &self,
        row: &PortRow,
        process: Option<&ProcessRow>,
        container: Option<&Container>,
    ) -> Bytes {
        self.text(
            PORT_DATA_TYPE,
            Fields {
                snapshot: self,
                subject: &Subject::Port(row),
                process,
                container,
            },
        )
    }

    /// A process as a message.
    pub fn process_message(&self, row: &ProcessRow, container: Option<&Container>) -> Outgoing {
        self.message(
            Topic::Processes,
            u64::from(row.pid),
            self.process(row, container),
        )
    }

    /// A listening socket as a message.
    pub fn port_message(
        &self,
        row: &PortRow,
        process: Option<&ProcessRow>,
        container: Option<&Container>,
    ) -> Outgoing {
        self.message(Topic::Ports, row.inode, self.port(row, process, container))
    }

    fn text(&self, data_type: u32, fields: Fields<'_>) -> Bytes {
        json::text(&Envelope {
            schema_version: SCHEMA_VERSION,
            data_type,
            timestamp: self.taken_ms / 1_000,
            fields,
        })
    }

    fn message(&self, topic: Topic, item: u64, value: Bytes) -> Outgoing {
        let Host {
            host_id, boot_id, ..
        } = &self.host;
        let word = topic.as_str();
        Outgoing {
            row: 0,
            topic,
            host_id: Arc::clone(host_id),
            item: item.to_string().into(),
            op: "".into(),
            value: Some(value),
            ce_id: format!("{host_id}:{boot_id}:{word}:{}:{item}", self.taken_ms).into(),
            ce_type: ce_type(topic),
            ce_source: Arc::clone(&self.source),
            time_ms: signed(self.taken_ms),
        }
    }
}

#[derive(Serialize)]
struct Envelope<F> {
    schema_version: u32,
    data_type: u32,
    timestamp: u64,
    fields: F,
}

enum Subject<'a> {
    Process(&'a ProcessRow),
    Port(&'a PortRow),
}

/// All values are text; an unknown one is `""`.
struct Fields<'a> {
    snapshot: &'a Snapshot,
    subject: &'a Subject<'a>,
    process: Option<&'a ProcessRow>,
    container: Option<&'a Container>,
}

/// A map that takes text only.
struct TextMap<M>(M);

impl<M: SerializeMap> TextMap<M> {
    fn text(&mut self, key: &'static str, value: &str) -> Result<(), M::Error> {
        self.0.serialize_entry(key, value)
    }

    fn number(&mut self, key: &'static str, value: Option<impl Into<u64>>) -> Result<(), M::Error> {
        match value {
            Some(value) => self.0.serialize_entry(key, &json::Text(value.into())),
            None => self.text(key, ""),
        }
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = TextMap(serializer.serialize_map(None)?);
        match self.subject {
            Subject::Process(row) => process(&mut map, row)?,
            Subject::Port(row) => port(&mut map, row, self.process)?,
        }
        whereabouts(&mut map, self.process, self.snapshot)?;
        container(&mut map, self.container)?;
        map.number("package_seq", Some(self.snapshot.taken_ms))?;
        map.0.end()
    }
}

fn process<M: SerializeMap>(map: &mut TextMap<M>, row: &ProcessRow) -> Result<(), M::Error> {
    let mut letter = [0; 4];
    map.number("pid", Some(row.pid))?;
    map.number("ppid", Some(row.ppid))?;
    map.number("ns_pid", row.ns_pid)?;
    map.text("exe", &row.exe)?;
    map.text("cmdline", &row.cmdline)?;
    map.number("uid", row.uid)?;
    map.number("gid", row.gid)?;
    map.text("comm", &row.comm)?;
    map.text("state", row.state.encode_utf8(&mut letter))?;
    map.number("start_time", Some(row.started_at_ms / 1_000))?;
    map.number("started_at_ms", Some(row.started_at_ms))?;
    map.number("session", Some(row.session))?;
    map.text("tty", &row.tty)
}

fn port<M: SerializeMap>(
    map: &mut TextMap<M>,
    row: &PortRow,
    process: Option<&ProcessRow>,
) -> Result<(), M::Error> {
    map.text("proto", row.protocol.as_str())?;
    map.text("address", &row.address.to_string())?;
    map.number("port", Some(row.port))?;
    map.number("pid", row.pid)?;
    map.text("exe", process.map_or("", |process| &process.exe))?;
    map.number("uid", Some(row.uid))?;
    map.number("inode", Some(row.inode))?;
    map.number("net_ns", Some(row.net_ns))
}

/// Where a process is: host, boot, namespaces.
fn whereabouts<M: SerializeMap>(
    map: &mut TextMap<M>,
    process: Option<&ProcessRow>,
    snapshot: &Snapshot,
) -> Result<(), M::Error> {
    let pns_inode = process.and_then(|process| process.pns_inode);
    let pns = pns_inode.map(pns_text).unwrap_or_default();
    map.text("pid_ns", &pns)?;
    map.number("pns_inode", pns_inode)?;
    map.number("mnt_ns", process.and_then(|process| process.mnt_ns))?;
    map.text("host_id", &snapshot.host.host_id)?;
    map.text("host_name", &snapshot.host.host_name)?;
    map.text("boot_id", &snapshot.host.boot_id)
}

fn container<M: SerializeMap>(
    map: &mut TextMap<M>,
    container: Option<&Container>,
) -> Result<(), M::Error> {
    let pod = container.and_then(|container| container.pod.as_ref());
    map.text("container_id", container.map_or("", |it| it.id.as_str()))?;
    map.text("container_name", container.map_or("", |it| &it.name))?;
    map.text("runtime", container.map_or("", |it| it.runtime.as_str()))?;
    map.text("image_name", container.map_or("", |it| &it.image_name))?;
    map.text("pod_name", pod.map_or("", |pod| &pod.name))?;
    map.text("pod_namespace", pod.map_or("", |pod| &pod.namespace))?;
    map.text("pod_uid", pod.map_or("", |pod| &pod.uid))
}
