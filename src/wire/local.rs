//! Processes (data type 5050) and listening sockets (5051) as JSON, in the envelope of the records.

use std::sync::Arc;

use serde::Serialize;

use super::json::{self, Text, TextIfKnown};
#[cfg(test)]
use super::schema;
use super::{Host, SCHEMA_VERSION, ce_source, ce_type, signed};
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
    pub fn process(&self, row: &ProcessRow, container: Option<&Container>) -> Arc<[u8]> {
        json::text(&ProcessJson {
            schema_version: SCHEMA_VERSION,
            data_type: PROCESS_DATA_TYPE,
            timestamp: self.taken_ms / 1_000,
            fields: ProcessFields {
                pid: Text(row.pid.into()),
                ppid: Text(row.ppid.into()),
                ns_pid: TextIfKnown(row.ns_pid.map(u64::from)),
                exe: &row.exe,
                cmdline: &row.cmdline,
                uid: TextIfKnown(row.uid.map(u64::from)),
                gid: TextIfKnown(row.gid.map(u64::from)),
                comm: &row.comm,
                state: row.state,
                start_time: Text(row.started_at_ms / 1_000),
                started_at_ms: Text(row.started_at_ms),
                session: Text(row.session.into()),
                tty: &row.tty,
                whereabouts: self.whereabouts(Some(row), container),
            },
        })
    }

    /// The JSON text of a listening socket, the process that has it open, and the container of that.
    pub fn port(
        &self,
        row: &PortRow,
        process: Option<&ProcessRow>,
        container: Option<&Container>,
    ) -> Arc<[u8]> {
        json::text(&PortJson {
            schema_version: SCHEMA_VERSION,
            data_type: PORT_DATA_TYPE,
            timestamp: self.taken_ms / 1_000,
            fields: PortFields {
                proto: row.protocol.as_str(),
                address: row.address.to_string(),
                port: Text(row.port.into()),
                pid: TextIfKnown(row.pid.map(u64::from)),
                exe: process.map_or("", |process| &process.exe),
                uid: Text(row.uid.into()),
                inode: Text(row.inode),
                net_ns: Text(row.net_ns),
                whereabouts: self.whereabouts(process, container),
            },
        })
    }

    fn whereabouts<'a>(
        &'a self,
        process: Option<&ProcessRow>,
        container: Option<&'a Container>,
    ) -> Whereabouts<'a> {
        let pns_inode = process.and_then(|process| process.pns_inode);
        let pod = container.and_then(|container| container.pod.as_ref());
        Whereabouts {
            pid_ns: pns_inode.map(pns_text).unwrap_or_default(),
            pns_inode: TextIfKnown(pns_inode),
            mnt_ns: TextIfKnown(process.and_then(|process| process.mnt_ns)),
            host_id: &self.host.host_id,
            host_name: &self.host.host_name,
            boot_id: &self.host.boot_id,
            container_id: container.map_or("", |it| it.id.as_str()),
            container_name: container.map_or("", |it| &it.name),
            runtime: container.map_or("", |it| it.runtime.as_str()),
            image_name: container.map_or("", |it| &it.image_name),
            pod_name: pod.map_or("", |pod| &pod.name),
            pod_namespace: pod.map_or("", |pod| &pod.namespace),
            pod_uid: pod.map_or("", |pod| &pod.uid),
            package_seq: Text(self.taken_ms),
        }
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

    fn message(&self, topic: Topic, item: u64, value: Arc<[u8]>) -> Outgoing {
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

/// One process of a snapshot of a host, with its container (Elkeid's data type 5050). Key: host id and pid. Topic:
/// quaymaster.processes.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "Process", extend("$id" = "urn:quaymaster:schema:process:v1")))]
pub(super) struct ProcessJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    #[cfg_attr(test, schemars(extend("const" = PROCESS_DATA_TYPE)))]
    data_type: u32,
    /// When the snapshot was taken, in unix seconds.
    timestamp: u64,
    fields: ProcessFields<'a>,
}

/// All values are text; an unknown one is "", never absent.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
struct ProcessFields<'a> {
    /// In the host's PID namespace.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    pid: Text,
    /// Its parent's pid; 0 for none.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    ppid: Text,
    /// Its pid in its own PID namespace.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    ns_pid: TextIfKnown,
    /// The program's path; "" of the kernel's own threads.
    exe: &'a str,
    /// Its arguments with blanks between, at most 4 KiB; what is not UTF-8 is U+FFFD.
    cmdline: &'a str,
    /// Its effective user.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    uid: TextIfKnown,
    /// Its effective group.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    gid: TextIfKnown,
    /// The name that it gives itself.
    comm: &'a str,
    /// The kernel's letter: R, S, D, T, Z, ….
    #[cfg_attr(test, schemars(with = "schema::Letter"))]
    state: char,
    /// Its start in unix seconds.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    start_time: Text,
    /// Its start in unix milliseconds.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    started_at_ms: Text,
    /// The pid of its session's leader.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    session: Text,
    /// Its terminal as `ps` writes it; "" for none.
    tty: &'a str,
    #[serde(flatten)]
    whereabouts: Whereabouts<'a>,
}

/// One listening socket of a snapshot of a host, with its process and container (Elkeid's data type 5051). Key: host id
/// and socket number. Topic: quaymaster.ports.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "Port", extend("$id" = "urn:quaymaster:schema:port:v1")))]
pub(super) struct PortJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    #[cfg_attr(test, schemars(extend("const" = PORT_DATA_TYPE)))]
    data_type: u32,
    /// When the snapshot was taken, in unix seconds.
    timestamp: u64,
    fields: PortFields<'a>,
}

/// All values are text; an unknown one is "", never absent.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
struct PortFields<'a> {
    /// The kernel's table.
    #[cfg_attr(test, schemars(with = "schema::ProtocolWord"))]
    proto: &'a str,
    /// The address that it is bound to.
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    address: String,
    /// The port.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    port: Text,
    /// The process that has it open, of several the one with the smallest pid; "" where that cannot be seen.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    pid: TextIfKnown,
    /// That process's program.
    exe: &'a str,
    /// The user that made the socket.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    uid: Text,
    /// The socket's number.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    inode: Text,
    /// The number of its network namespace.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    net_ns: Text,
    #[serde(flatten)]
    whereabouts: Whereabouts<'a>,
}

/// Where a process is: host, boot, namespaces, container.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Whereabouts<'a> {
    /// The link of its PID namespace; "" of a zombie, and where it may not be read.
    #[cfg_attr(test, schemars(with = "schema::PnsIfKnown"))]
    pid_ns: String,
    /// The number in that link.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    pns_inode: TextIfKnown,
    /// The number of its mount namespace.
    #[cfg_attr(test, schemars(with = "schema::DigitsIfKnown"))]
    mnt_ns: TextIfKnown,
    #[cfg_attr(test, schemars(with = "schema::HostId"))]
    host_id: &'a str,
    #[cfg_attr(test, schemars(with = "schema::HostName"))]
    host_name: &'a str,
    /// The boot.
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    boot_id: &'a str,
    /// The whole id of the container that it belongs to; "" for none.
    container_id: &'a str,
    /// The container's name.
    container_name: &'a str,
    /// The type of its runtime.
    #[cfg_attr(test, schemars(with = "schema::RuntimeIfAny"))]
    runtime: &'a str,
    /// The name of its image.
    image_name: &'a str,
    /// The container's pod.
    pod_name: &'a str,
    /// That pod's namespace.
    pod_namespace: &'a str,
    /// That pod's uid.
    pod_uid: &'a str,
    /// The same for all of one snapshot: when it was taken, in unix milliseconds.
    #[cfg_attr(test, schemars(with = "schema::Digits"))]
    package_seq: Text,
}
