//! The JSON in a verbose status' `info["info"]`. It is no contract: each runtime writes its own, and versions
//! differ (containerd 2.3 left parts out). So everything in it is optional.

use serde::Deserialize;

use super::proto::{Entry, NamespaceMode};
use crate::runtime::lenient::{Lenient, object_shape};

/// Longest JSON that is looked at, in bytes.
const INFO_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is taken of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// The init process; 0 after the exit in containerd, never cleared in CRI-O.
    pub(super) pid: Option<u32>,
    /// The sandbox of a container.
    pub(super) sandbox_id: Option<String>,
    /// A sandbox's image (containerd).
    pub(super) image: Option<String>,
    /// Whether it is privileged.
    pub(super) privileged: Option<bool>,
    /// In the words of [`crate::model::Container::pid_mode`].
    pub(super) pid_mode: Option<&'static str>,
}

/// Reads it; what is not there or not understood is `None`.
pub(super) fn parse(entries: &[Entry]) -> Info {
    let raw: Raw = entries
        .iter()
        .find(|entry| entry.key == b"info" && entry.value.len() <= INFO_BYTES_MAX)
        .and_then(|entry| serde_json::from_str(&String::from_utf8_lossy(&entry.value)).ok())
        .unwrap_or_default();

    let security = raw
        .config
        .or_default()
        .linux
        .or_default()
        .security_context
        .0;
    let mode_of_config = security
        .as_ref()
        .and_then(|security| security.namespace_options.0.as_ref())
        .map(|options| pid_mode(options.pid.0.unwrap_or(0)));
    let mode_of_spec = raw
        .runtime_spec
        .or_default()
        .linux
        .or_default()
        .namespaces
        .0
        .map(|namespaces| pid_mode_of_spec(&namespaces));

    Info {
        pid: raw
            .pid
            .0
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0),
        sandbox_id: raw.sandbox_id.0,
        image: raw.image.0,
        privileged: raw
            .privileged
            .0
            .or_else(|| security.map(|security| security.privileged.0.unwrap_or(false))),
        pid_mode: mode_of_config.or(mode_of_spec),
    }
}

/// The word for a mode; POD is 0, which Go's JSON leaves out.
pub(super) fn pid_mode(mode: i64) -> &'static str {
    let mode = i32::try_from(mode).map(NamespaceMode::try_from);
    match mode {
        Ok(Ok(NamespaceMode::Pod)) => "pod",
        Ok(Ok(NamespaceMode::Container)) => "",
        Ok(Ok(NamespaceMode::Node)) => "node",
        Ok(Ok(NamespaceMode::Target)) => "target",
        Ok(Err(_)) | Err(_) => "",
    }
}

/// The OCI runtime spec (CRI-O gives no more): no PID namespace of its own is the host's; one with a path is
/// another's.
fn pid_mode_of_spec(namespaces: &[RawNamespace]) -> &'static str {
    let own = namespaces
        .iter()
        .find(|namespace| namespace.kind.text() == "pid");
    match own {
        None => "node",
        Some(namespace) if namespace.path.text().is_empty() => "",
        Some(_) => "pod",
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    pid: Lenient<i64>,
    #[serde(rename = "sandboxID")]
    sandbox_id: Lenient<String>,
    image: Lenient<String>,
    privileged: Lenient<bool>,
    config: Lenient<RawConfig>,
    #[serde(rename = "runtimeSpec")]
    runtime_spec: Lenient<RawSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConfig {
    linux: Lenient<RawConfigLinux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConfigLinux {
    security_context: Lenient<RawSecurity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSecurity {
    privileged: Lenient<bool>,
    namespace_options: Lenient<RawOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawOptions {
    pid: Lenient<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSpec {
    linux: Lenient<RawSpecLinux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSpecLinux {
    namespaces: Lenient<Vec<RawNamespace>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawNamespace {
    #[serde(rename = "type")]
    kind: Lenient<String>,
    path: Lenient<String>,
}

object_shape!(
    RawConfig,
    RawConfigLinux,
    RawSecurity,
    RawOptions,
    RawSpec,
    RawSpecLinux,
    RawNamespace,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str) -> Vec<Entry> {
        vec![Entry {
            key: b"info".to_vec(),
            value: json.as_bytes().to_vec(),
        }]
    }

    #[test]
    fn each_runtime_s_info_is_understood() {
        let containerd = r#"{"sandboxID":"5b","pid":4242,"removing":false,
            "config":{"linux":{"security_context":{"privileged":true,"namespace_options":{"network":2,"pid":1}}}},
            "runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/proc/1/ns/ipc"}]}}}"#;
        let info = parse(&entry(containerd));
        assert_eq!(info.pid, Some(4242));
        assert_eq!(info.sandbox_id.as_deref(), Some("5b"));
        assert_eq!(info.privileged, Some(true));
        assert_eq!(info.pid_mode, Some(""));

        let shared =
            r#"{"config":{"linux":{"security_context":{"namespace_options":{"network":2}}}}}"#;
        assert_eq!(parse(&entry(shared)).pid_mode, Some("pod"));
        assert_eq!(parse(&entry(shared)).privileged, Some(false));

        let crio = r#"{"sandboxID":"5b","pid":77,"privileged":false,
            "runtimeSpec":{"linux":{"namespaces":[{"type":"ipc"}]}}}"#;
        let info = parse(&entry(crio));
        assert_eq!(info.pid, Some(77));
        assert_eq!(info.privileged, Some(false));
        assert_eq!(info.pid_mode, Some("node"));

        let cri_dockerd = r#"{"sandboxID":"5b","pid":77}"#;
        let info = parse(&entry(cri_dockerd));
        assert_eq!(info.privileged, None);
        assert_eq!(info.pid_mode, None);
    }

    #[test]
    fn an_info_that_is_no_json_tells_nothing() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"pid":"7"}"#,
            r#"{"pid":-1}"#,
            r#"{"pid":0}"#,
        ] {
            assert_eq!(parse(&entry(text)).pid, None, "{text}");
        }
        assert_eq!(parse(&[]), Info::default());
    }
}
