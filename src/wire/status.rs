//! The collector's own state, as the status topic and `/status` tell it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

#[cfg(test)]
use super::schema;
use super::{Host, SCHEMA_VERSION, json};

/// One runtime, as the status tells it.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct RuntimeStatus {
    /// docker, podman, containerd, cri-o; empty before it has answered.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The URI of its socket.
    #[cfg_attr(test, schemars(with = "schema::Socket"))]
    pub endpoint: String,
    /// `live`, `polling` where it has no stream of events, or `down`.
    #[cfg_attr(test, schemars(with = "schema::StreamWord"))]
    pub stream: &'static str,
    /// Events taken from its stream.
    pub events: u64,
    /// Events dropped because we were slow; each causes a resync.
    pub dropped: u64,
    /// Lists that failed.
    pub failed_lists: u64,
    /// When the newest event came, in unix milliseconds; 0 for never.
    pub last_event_ms: u64,
    /// When it was last listed whole, in unix milliseconds; 0 for never.
    pub last_resync_ms: u64,
    /// Why it is down, or why its newest list was not taken; else empty.
    pub error: String,
}

/// The newest resync.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct ResyncStatus {
    /// Its number.
    pub package_seq: u64,
    /// `begin`, `end`, or `aborted` where it was cut off; empty before the first.
    #[cfg_attr(test, schemars(with = "schema::ResyncState"))]
    pub state: &'static str,
    /// When it began, in unix milliseconds.
    pub started_ms: u64,
    /// When it ended, in unix milliseconds; 0 while it runs.
    pub finished_ms: u64,
    /// How many containers are there.
    pub count: u64,
    /// Changes that resyncs found and no event had told, since the start.
    pub missed: u64,
}

/// The outbox.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct OutboxStatus {
    /// Messages that the bus does not have yet.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was stored, in unix milliseconds; 0 when there is none.
    pub oldest_ms: u64,
    /// Messages that the bus refused for what they are, since the start.
    pub quarantined: u64,
}

/// The collector's own state.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct Status {
    /// `starting`, `live` or `stopping`.
    #[cfg_attr(test, schemars(with = "schema::CollectorState"))]
    pub state: &'static str,
    /// The newest delta.
    pub seq: u64,
    /// The runtimes.
    pub runtimes: Vec<RuntimeStatus>,
    /// How many containers are in each state.
    #[cfg_attr(test, schemars(with = "BTreeMap<String, u64>"))]
    pub containers: BTreeMap<&'static str, u64>,
    /// The newest resync.
    pub resync: ResyncStatus,
    /// The outbox.
    pub outbox: OutboxStatus,
}

/// The collector's own state. Key: the host id. Topic: quaymaster.status.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "Status", extend("$id" = "urn:quaymaster:schema:status:v1")))]
pub(super) struct StatusJson<'a> {
    #[cfg_attr(test, schemars(with = "schema::Version"))]
    schema_version: u32,
    #[cfg_attr(test, schemars(with = "schema::HostId"))]
    host_id: &'a str,
    #[cfg_attr(test, schemars(with = "schema::HostName"))]
    host_name: &'a str,
    #[cfg_attr(test, schemars(with = "schema::BootId"))]
    boot_id: &'a str,
    /// Quaymaster's.
    #[cfg_attr(test, schemars(with = "schema::NonEmpty"))]
    version: &'static str,
    #[cfg_attr(test, schemars(with = "schema::Epoch"))]
    epoch: &'a str,
    #[serde(flatten)]
    status: &'a Status,
    #[cfg_attr(test, schemars(with = "schema::Expiry"))]
    expires_at_ms: u64,
}

pub(super) fn render(host: &Host, status: &Status, expires_at_ms: u64) -> Bytes {
    json::text(&StatusJson {
        schema_version: SCHEMA_VERSION,
        host_id: &host.host_id,
        host_name: &host.host_name,
        boot_id: &host.boot_id,
        version: env!("CARGO_PKG_VERSION"),
        epoch: &host.epoch,
        status,
        expires_at_ms,
    })
}
