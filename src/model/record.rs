//! The fields of a record: what is published of one container, as text, in a fixed order.
//!
//! Comparing two of them gives a delta's `changed` and `before`. What belongs to the host and to the message
//! (host, boot, epoch, seq, package_seq) is added by `wire/` and never makes a change.

use super::{Container, ContainerKind};

/// How many bytes of labels are published with a container. A longer set is cut at whole labels.
pub const LABELS_BYTES_MAX: usize = 32 * 1024;

/// The names of the fields, in the order of [`Fields::values`].
pub const FIELD_NAMES: [&str; 28] = [
    "id",
    "name",
    "state",
    "image_id",
    "image_name",
    "pid",
    "pns",
    "runtime",
    "create_time",
    "pns_inode",
    "pns_id",
    "kind",
    "runtime_name",
    "runtime_version",
    "pod_name",
    "pod_namespace",
    "pod_uid",
    "pod_sandbox_id",
    "image_digest",
    "started_at_ms",
    "finished_at_ms",
    "exit_code",
    "oom_killed",
    "restart_count",
    "pid_mode",
    "privileged",
    "reason",
    "labels",
];

/// What the process table says of a container's living init process, as far as it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessFacts {
    /// The pid in the host's PID namespace; `None` when no such process lives.
    pub pid: Option<u32>,
    /// The number of its PID namespace.
    pub pns_inode: Option<u64>,
    /// The kernel's id of that namespace.
    pub pns_id: Option<u64>,
}

/// The published text of one container. An unknown value is `""`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    values: [Box<str>; FIELD_NAMES.len()],
}

impl Fields {
    /// Renders what is known of a container and of its process.
    pub fn of(container: &Container, process: ProcessFacts) -> Self {
        let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        let millis = |value: Option<u64>| number(value.map(|ns| ns / 1_000_000));
        let truth = |value: Option<bool>| match value {
            Some(true) => "true".to_owned(),
            Some(false) => "false".to_owned(),
            None => String::new(),
        };
        let pod = container.pod.as_ref();
        let of_pod = |pick: fn(&super::Pod) -> &String| pod.map(pick).cloned().unwrap_or_default();
        let values: [String; FIELD_NAMES.len()] = [
            container.id.to_string(),
            container.name.clone(),
            container.state.as_str().to_owned(),
            container.image_id.clone(),
            container.image_name.clone(),
            number(process.pid.map(u64::from)),
            process.pns_inode.map(pns_text).unwrap_or_default(),
            container.runtime.as_str().to_owned(),
            (container.created_at_ns / 1_000_000_000).to_string(),
            number(process.pns_inode),
            number(process.pns_id),
            container.kind.as_str().to_owned(),
            container.runtime_name.to_string(),
            container.runtime_version.to_string(),
            of_pod(|pod| &pod.name),
            of_pod(|pod| &pod.namespace),
            of_pod(|pod| &pod.uid),
            match (pod, container.kind) {
                (Some(pod), _) => pod.sandbox_id.clone(),
                (None, ContainerKind::Sandbox) => container.id.to_string(),
                (None, ContainerKind::Container) => String::new(),
            },
            container.image_digest.clone(),
            millis(container.started_at_ns),
            millis(container.finished_at_ns),
            container
                .exit_code
                .map(|code| code.to_string())
                .unwrap_or_default(),
            truth(container.oom_killed),
            number(container.restart_count.map(u64::from)),
            container.pid_mode.clone(),
            truth(container.privileged),
            container.reason.clone(),
            labels_text(container),
        ];
        Self {
            values: values.map(String::into_boxed_str),
        }
    }

    /// The values, in the order of [`FIELD_NAMES`].
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        FIELD_NAMES
            .iter()
            .copied()
            .zip(self.values.iter().map(AsRef::as_ref))
    }

    /// The value of one field; `""` for a name that is none.
    pub fn get(&self, name: &str) -> &str {
        FIELD_NAMES
            .iter()
            .position(|known| *known == name)
            .map_or("", |index| &self.values[index])
    }

    /// The names of the fields that differ from `before`, with their values there.
    pub fn changes_since(&self, before: &Self) -> Vec<(&'static str, Box<str>)> {
        FIELD_NAMES
            .iter()
            .enumerate()
            .filter(|(index, _)| self.values[*index] != before.values[*index])
            .map(|(index, name)| (*name, before.values[index].clone()))
            .collect()
    }
}

/// The text of a PID namespace's link: `pid:[4026532448]`.
pub fn pns_text(inode: u64) -> String {
    format!("pid:[{inode}]")
}

fn labels_text(container: &Container) -> String {
    let mut bytes = 2;
    let mut kept = container.labels.iter();
    let kept = std::iter::from_fn(|| {
        let (key, value) = kept.next()?;
        bytes += key.len() + value.len() + 6;
        (bytes <= LABELS_BYTES_MAX).then_some((key, value))
    });
    let kept: std::collections::BTreeMap<_, _> = kept.collect();
    if kept.is_empty() {
        return "{}".to_owned();
    }
    serde_json::to_string(&kept).unwrap_or_default()
}
