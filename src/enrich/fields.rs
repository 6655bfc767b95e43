//! Which fields of a process event say what: JSON pointers, and presets for formats that people already have.
//!
//! A field may have several pointers; the first one that the event has counts. A pointer walks objects only, not
//! lists. Each preset's source stands with it.

use std::fmt;
use std::str::FromStr;

/// Most pointers of all fields together. The widest preset, Tetragon, has two dozen.
pub const POINTERS_MAX: usize = 48;

/// Longest pointer, in steps.
const STEPS_MAX: usize = 16;

/// A path into a JSON object: `/process/ns/pid/inum` (RFC 6901), or the same with dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<Box<str>>);

impl Pointer {
    /// The keys, outermost first; never empty.
    pub(super) fn steps(&self) -> &[Box<str>] {
        &self.0
    }
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unescaped = |step: &str| step.replace("~1", "/").replace("~0", "~");
        let steps: Vec<Box<str>> = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(|step| unescaped(step).into()).collect(),
            None => text.split('.').map(Into::into).collect(),
        };
        if text.is_empty() || steps.iter().any(|step| step.is_empty()) {
            return Err(format!(
                "`{text}` is no path such as `/fields/pns` or `fields.pns`"
            ));
        }
        if steps.len() > STEPS_MAX {
            return Err(format!("`{text}` has more than {STEPS_MAX} steps"));
        }
        Ok(Self(steps))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.0 {
            write!(f, "/{}", step.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

/// Where an event's host comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSource {
    /// One of these fields.
    Fields(Vec<Pointer>),
    /// The message's key, up to a `/`.
    Key,
    /// The same host for all events.
    Constant(Box<str>),
}

/// What a number in the field of the time means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeUnit {
    /// By its size; text with a `T` in it is RFC 3339.
    #[default]
    Auto,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

impl TimeUnit {
    /// The word of the setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "us",
            Self::Nanoseconds => "ns",
        }
    }
}

impl FromStr for TimeUnit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [
            Self::Auto,
            Self::Seconds,
            Self::Milliseconds,
            Self::Microseconds,
            Self::Nanoseconds,
        ];
        let found = all.into_iter().find(|unit| unit.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is none of `auto`, `s`, `ms`, `us`, `ns`"))
    }
}

/// The fields of one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFields {
    /// The host's id, as the collector has it.
    pub host: HostSource,
    /// The PID namespace: a number, or its link's text.
    pub pns: Vec<Pointer>,
    /// When the event happened; none: the time of the message.
    pub time: Vec<Pointer>,
    /// What its numbers mean.
    pub time_unit: TimeUnit,
    /// The mount namespace, which tells the containers of a shared PID namespace apart.
    pub mnt_ns: Vec<Pointer>,
    /// The cgroup's path, for the same.
    pub cgroup: Vec<Pointer>,
    /// The PID namespace of the host itself, where the format carries it.
    pub root_pns: Vec<Pointer>,
}

/// A format that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Data type 5050 of `quaymaster processes`.
    #[default]
    Quaymaster,
    /// Elkeid's agent and server.
    Elkeid,
    /// Cilium Tetragon with `enable-process-ns`.
    Tetragon,
    /// Aqua Tracee, events with `pidNamespace`.
    Tracee,
    /// osquery, a query that selects `pid_namespace`.
    Osquery,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Quaymaster,
        Self::Elkeid,
        Self::Tetragon,
        Self::Tracee,
        Self::Osquery,
    ];

    /// The word of the setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quaymaster => "quaymaster",
            Self::Elkeid => "elkeid",
            Self::Tetragon => "tetragon",
            Self::Tracee => "tracee",
            Self::Osquery => "osquery",
        }
    }

    /// The name of the object that is added. Tracee's events have a `container` of their own.
    pub fn added_field(self) -> &'static str {
        match self {
            Self::Tracee => "quaymaster",
            Self::Quaymaster | Self::Elkeid | Self::Tetragon | Self::Osquery => "container",
        }
    }

    /// Its fields.
    pub fn fields(self) -> EventFields {
        match self {
            Self::Quaymaster => EventFields {
                host: HostSource::Fields(pointers(&["/fields/host_id", "/host_id"])),
                pns: pointers(&["/fields/pns_inode", "/fields/pid_ns", "/pns_inode", "/pns"]),
                time: pointers(&["/timestamp", "/time_ms"]),
                time_unit: TimeUnit::Auto,
                mnt_ns: pointers(&["/fields/mnt_ns", "/mnt_ns"]),
                cgroup: pointers(&["/fields/cgroup", "/cgroup"]),
                root_pns: Vec::new(),
            },
            // plugins/driver of bytedance/Elkeid: each event has pns and root_pns; plugins/collector/process.go has pns as
            // link text. The server's topic is protobuf (MQData); what its HUB writes of it as JSON has the fields below
            // `body`, its own decoders have them flat (elkeidup/raw_data_usage_tutorial). A nodename is that of the event's
            // own UTS namespace, which in most containers is not the host's.
            Self::Elkeid => EventFields {
                host: HostSource::Fields(pointers(&[
                    "/agent_id",
                    "/fields/agent_id",
                    "/fields/host_id",
                    "/hostname",
                ])),
                pns: pointers(&["/fields/pns", "/body/fields/pns", "/pns"]),
                time: pointers(&["/timestamp", "/time", "/agent_time"]),
                time_unit: TimeUnit::Auto,
                mnt_ns: Vec::new(),
                cgroup: Vec::new(),
                root_pns: pointers(&["/fields/root_pns", "/body/fields/root_pns", "/root_pns"]),
            },
            // api/v1/tetragon/{events,tetragon}.proto of cilium/tetragon, as protojson writes it with names of the proto.
            Self::Tetragon => EventFields {
                host: HostSource::Fields(pointers(&["/node_name"])),
                pns: tetragon("pid"),
                time: pointers(&["/time"]),
                time_unit: TimeUnit::Auto,
                mnt_ns: tetragon("mnt"),
                cgroup: Vec::new(),
                root_pns: Vec::new(),
            },
            // types/trace of aquasecurity/tracee; its newer api/v1beta1/event.proto has no namespaces. hostName is that of
            // the event's own UTS namespace, which in most containers is not the host's, so that the host has to come from
            // the message's key or a constant.
            Self::Tracee => EventFields {
                host: HostSource::Key,
                pns: pointers(&["/pidNamespace"]),
                time: pointers(&["/timestamp"]),
                time_unit: TimeUnit::Auto,
                mnt_ns: pointers(&["/mountNamespace"]),
                cgroup: Vec::new(),
                root_pns: Vec::new(),
            },
            // specs/linux/process_namespaces.table of osquery/osquery, in a line of its differential log.
            Self::Osquery => EventFields {
                host: HostSource::Fields(pointers(&["/hostIdentifier"])),
                pns: pointers(&["/columns/pid_namespace"]),
                time: pointers(&["/unixTime"]),
                time_unit: TimeUnit::Auto,
                mnt_ns: pointers(&["/columns/mnt_namespace"]),
                cgroup: Vec::new(),
                root_pns: Vec::new(),
            },
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|preset| preset.as_str() == text);
        found.ok_or_else(|| {
            let remedy = "another format needs no preset: set `--field-host`, `--field-pns` and `--field-time`";
            match text {
                "falco" => format!("Falco's events carry no PID namespace, so that there is no preset for them; {remedy}"),
                _ => format!("`{text}` is none of `quaymaster`, `elkeid`, `tetragon`, `tracee`, `osquery`; {remedy}"),
            }
        })
    }
}

/// The wrappers of Tetragon's events that hold a process.
const TETRAGON_EVENTS: [&str; 9] = [
    "process_exec",
    "process_exit",
    "process_kprobe",
    "process_tracepoint",
    "process_lsm",
    "process_uprobe",
    "process_usdt",
    "process_loader",
    "process_throttle",
];

fn tetragon(namespace: &str) -> Vec<Pointer> {
    let pointer = |event: &&str| {
        let steps = [*event, "process", "ns", namespace, "inum"];
        Pointer(steps.map(Into::into).to_vec())
    };
    TETRAGON_EVENTS.iter().map(pointer).collect()
}

fn pointers(texts: &[&str]) -> Vec<Pointer> {
    let pointer = |text: &&str| {
        text.parse()
            .expect("the pointers of the presets are tested")
    };
    texts.iter().map(pointer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_read_with_slashes_and_with_dots() {
        for (text, shown) in [
            ("/fields/pns", "/fields/pns"),
            ("fields.pns", "/fields/pns"),
            ("pns", "/pns"),
            ("/a~1b/c~0d", "/a~1b/c~0d"),
            ("/a.b", "/a.b"),
        ] {
            let pointer: Pointer = text.parse().expect("a good pointer");
            assert_eq!(pointer.to_string(), shown);
        }
        let deep = "/a".repeat(STEPS_MAX + 1);
        for text in ["", "/", "a..b", "/a/", ".", deep.as_str()] {
            assert!(text.parse::<Pointer>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_preset_has_a_namespace_and_few_enough_pointers() {
        for preset in Preset::ALL {
            assert_eq!(preset.as_str().parse(), Ok(preset));
            let fields = preset.fields();
            assert!(!fields.pns.is_empty());
            assert!(super::super::event::EventReader::new(fields, "container").is_ok());
        }
        let error = "falco".parse::<Preset>().expect_err("it has none");
        assert!(error.contains("no PID namespace"), "{error}");
    }
}
