//! Messages for the tests of this module.

/// When the mappings of [`mapping_text`] expire.
pub(super) const EXPIRES_AT_MS: u64 = 10_000_000_000_000;

/// The key of a mapping.
pub(super) fn key_text(host: &str, inode: u64) -> String {
    format!("{host}/{inode}")
}

/// A mapping as a collector puts it, without a kernel's id of its namespace.
pub(super) fn mapping_text(
    host: &str,
    inode: u64,
    id: &str,
    from_ms: u64,
    to_ms: Option<u64>,
) -> String {
    let to = to_ms.map_or("null".to_owned(), |ms| ms.to_string());
    format!(
        r#"{{"schema_version":1,"host_id":"{host}","boot_id":"b","pns":"pid:[{inode}]","pns_inode":{inode},"pns_id":"","container_id":"{id}","container_name":"name-{id}","runtime":"docker","image_name":"image","pod_name":"","pod_namespace":"","pod_uid":"","pid":7,"valid_from_ms":{from_ms},"valid_to_ms":{to},"expires_at_ms":{EXPIRES_AT_MS},"shared":false,"members":[],"epoch":"e","seq":1}}"#
    )
}
