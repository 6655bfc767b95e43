//! The fields of a record: what is published of one container, as text, in a fixed order.
//!
//! Comparing two of them gives a delta's `changed` and `before`. What belongs to the host and to the message
//! (host, boot, epoch, seq, package_seq) is added by `wire/` and never makes a change.

use std::fmt::{self, Write as _};
use std::sync::Arc;

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

/// The published text of one container. An unknown value is `""`. Clones share the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Fields(Arc<Text>);

/// The values one after another, and where each ends.
#[derive(PartialEq, Eq)]
struct Text {
    text: String,
    ends: [u32; FIELD_NAMES.len()],
}

impl Fields {
    /// Renders what is known of a container and of its process.
    pub fn of(container: &Container, process: ProcessFacts) -> Self {
        let pod = container.pod.as_ref();
        let of_pod = |pick: fn(&super::Pod) -> &String| pod.map_or("", |pod| pick(pod).as_str());
        let sandbox_id = match (pod, container.kind) {
            (Some(pod), _) => pod.sandbox_id.as_str(),
            (None, ContainerKind::Sandbox) => container.id.as_str(),
            (None, ContainerKind::Container) => "",
        };
        let millis = |value: Option<u64>| value.map(|ns| ns / 1_000_000);
        let mut to = Writer::new();
        to.text(container.id.as_str());
        to.text(&container.name);
        to.text(container.state.as_str());
        to.text(&container.image_id);
        to.text(&container.image_name);
        to.number(process.pid);
        to.show(process.pns_inode.map(PnsText));
        to.text(container.runtime.as_str());
        to.number(Some(container.created_at_ns / 1_000_000_000));
        to.number(process.pns_inode);
        to.number(process.pns_id);
        to.text(container.kind.as_str());
        to.text(&container.runtime_name);
        to.text(&container.runtime_version);
        to.text(of_pod(|pod| &pod.name));
        to.text(of_pod(|pod| &pod.namespace));
        to.text(of_pod(|pod| &pod.uid));
        to.text(sandbox_id);
        to.text(&container.image_digest);
        to.number(millis(container.started_at_ns));
        to.number(millis(container.finished_at_ns));
        to.show(container.exit_code);
        to.show(container.oom_killed);
        to.number(container.restart_count);
        to.text(&container.pid_mode);
        to.show(container.privileged);
        to.text(&container.reason);
        to.labels(container);
        to.done()
    }

    /// The values, in the order of [`FIELD_NAMES`].
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        FIELD_NAMES
            .iter()
            .enumerate()
            .map(|(index, name)| (*name, self.value(index)))
    }

    /// The value of one field; `""` for a name that is none.
    pub fn get(&self, name: &str) -> &str {
        FIELD_NAMES
            .iter()
            .position(|known| *known == name)
            .map_or("", |index| self.value(index))
    }

    /// The names of the fields that differ from `before`, with their values there.
    pub fn changes_since(&self, before: &Self) -> Vec<(&'static str, Box<str>)> {
        FIELD_NAMES
            .iter()
            .enumerate()
            .filter(|(index, _)| self.value(*index) != before.value(*index))
            .map(|(index, name)| (*name, before.value(index).into()))
            .collect()
    }

    fn value(&self, index: usize) -> &str {
        let Text { text, ends } = &*self.0;
        let start = index.checked_sub(1).map_or(0, |before| ends[before]);
        &text[start as usize..ends[index] as usize]
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.values().filter(|(_, value)| !value.is_empty());
        f.debug_map().entries(known).finish()
    }
}

/// Writes one value after another.
struct Writer {
    text: String,
    ends: [u32; FIELD_NAMES.len()],
    count: usize,
}

impl Writer {
    /// Room for the values of an ordinary container without many labels.
    const BYTES: usize = 512;

    fn new() -> Self {
        Self {
            text: String::with_capacity(Self::BYTES),
            ends: [0; FIELD_NAMES.len()],
            count: 0,
        }
    }

    fn text(&mut self, value: &str) {
        self.text.push_str(value);
        self.end();
    }

    fn number(&mut self, value: Option<impl Into<u64>>) {
        self.show(value.map(Into::into));
    }

    fn show(&mut self, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            write!(self.text, "{value}").expect("writing to a string does not fail");
        }
        self.end();
    }

    /// The labels as JSON, as many whole ones as there is room for.
    fn labels(&mut self, container: &Container) {
        let mut bytes = 2;
        let fitting = container.labels.iter().take_while(|(key, value)| {
            bytes += key.len() + value.len() + 6;
            bytes <= LABELS_BYTES_MAX
        });
        self.text.push('{');
        for (index, (key, value)) in fitting.enumerate() {
            if index != 0 {
                self.text.push(',');
            }
            self.json(key);
            self.text.push(':');
            self.json(value);
        }
        self.text.push('}');
        self.end();
    }

    /// A text as JSON; most need no escape.
    fn json(&mut self, text: &str) {
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.text.push('"');
            self.text.push_str(text);
            self.text.push('"');
        } else {
            let escaped = serde_json::to_string(text);
            self.text.push_str(&escaped.expect("a string has its JSON"));
        }
    }

    fn end(&mut self) {
        let end = u32::try_from(self.text.len()).expect("a container's text is below 4 GiB");
        self.ends[self.count] = end;
        self.count += 1;
    }

    fn done(mut self) -> Fields {
        debug_assert_eq!(self.count, FIELD_NAMES.len(), "each field has a value");
        self.text.shrink_to_fit();
        Fields(Arc::new(Text {
            text: self.text,
            ends: self.ends,
        }))
    }
}

/// A PID namespace's link.
struct PnsText(u64);

impl fmt::Display for PnsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid:[{}]", self.0)
    }
}

/// The text of a PID namespace's link: `pid:[4026532448]`.
pub fn pns_text(inode: u64) -> String {
    PnsText(inode).to_string()
}
