//! The configuration file as it is written, before its values are checked. Each key has a line in `keys.rs` too.

use std::path::PathBuf;

use serde::Deserialize;

use super::access::{RawNats, RawSasl, RawTls};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) bus: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) endpoints: Vec<String>,
    pub(super) resync_interval: Option<String>,
    pub(super) host_id: Option<String>,
    pub(super) host_name: Option<String>,
    pub(super) procfs: Option<PathBuf>,
    pub(super) keep_privileges: bool,
    pub(super) topics: RawTopics,
    pub(super) records: RawRecords,
    pub(super) pns: RawPns,
    pub(super) outbox: RawOutbox,
    pub(super) processes: RawProcesses,
    pub(super) http: RawHttp,
    pub(super) log: RawLog,
    pub(super) enrich: super::enrich::RawEnrich,
    pub(super) tls: RawTls,
    pub(super) sasl: RawSasl,
    pub(super) nats: RawNats,
    pub(super) librdkafka: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTopics {
    pub(super) prefix: Option<String>,
    pub(super) partitions: Option<i32>,
    pub(super) replication: Option<i32>,
    pub(super) manage: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) read_back: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRecords {
    pub(super) refresh: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPns {
    pub(super) linger: Option<String>,
    pub(super) refresh: Option<String>,
    pub(super) held_max: Option<usize>,
    pub(super) nested: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOutbox {
    pub(super) max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProcesses {
    pub(super) interval: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    pub(super) listen: Option<String>,
    pub(super) listen_anywhere: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) filter: Option<String>,
    pub(super) format: Option<String>,
}
