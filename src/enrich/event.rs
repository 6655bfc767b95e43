//! Reads from a process event what the join asks for, and nothing else: everything besides is skipped unread.
//!
//! What an event holds is foreign: whatever is wrong with it is a [`Defect`], never a panic. No nesting is too deep: what is
//! skipped is skipped without recursion, and a path has few steps.

use std::borrow::Cow;
use std::fmt;
use std::str;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::clock::{EventTime, read_time};
use super::fields::{EventFields, HostSource, POINTERS_MAX, Pointer, TimeUnit};

/// What follows the name of the added object where the event has that name itself.
pub(super) const TAKEN_SUFFIX: &str = "_quaymaster";

/// Longest host, in bytes; longer ones are no collector's.
const HOST_BYTES_MAX: usize = 256;

/// What the table is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The host's id.
    pub host: Cow<'a, str>,
    /// The number of the PID namespace.
    pub pns_inode: u64,
    /// When.
    pub time: EventTime,
    /// The number of the mount namespace; 0 where the event has none.
    pub mnt_ns: u64,
    /// The cgroup's path, where the event has it.
    pub cgroup: Option<Cow<'a, str>>,
    /// Whether the event itself says that this is the host's own namespace.
    pub is_root: bool,
}

impl Question<'_> {
    /// One that borrows nothing.
    pub fn into_owned(self) -> Question<'static> {
        Question {
            host: Cow::Owned(self.host.into_owned()),
            pns_inode: self.pns_inode,
            time: self.time,
            mnt_ns: self.mnt_ns,
            cgroup: self.cgroup.map(|path| Cow::Owned(path.into_owned())),
            is_root: self.is_root,
        }
    }
}

/// Why an event cannot be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// Not JSON.
    NotJson,
    /// JSON, and no object.
    NotAnObject,
    /// No host.
    NoHost,
    /// A host that is no text, empty or too long.
    BadHost,
    /// No PID namespace.
    NoPns,
    /// A PID namespace that is no number.
    BadPns,
    /// A time that is none.
    BadTime,
    /// The names for the added object are both taken.
    FieldTaken,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NotJson,
        Self::NotAnObject,
        Self::NoHost,
        Self::BadHost,
        Self::NoPns,
        Self::BadPns,
        Self::BadTime,
        Self::FieldTaken,
    ];

    /// Its word in events, headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::NoHost => "no_host",
            Self::BadHost => "bad_host",
            Self::NoPns => "no_pns",
            Self::BadPns => "bad_pns",
            Self::BadTime => "bad_time",
            Self::FieldTaken => "field_taken",
        }
    }

    /// Whether something can be added to the event all the same.
    pub(super) fn has_object(self) -> bool {
        match self {
            Self::NoHost | Self::BadHost | Self::NoPns | Self::BadPns | Self::BadTime => true,
            Self::NotJson | Self::NotAnObject | Self::FieldTaken => false,
        }
    }
}

/// How the event is shaped, which decides where the added object goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// It has no field at all.
    pub is_empty: bool,
    /// It has a field of the added object's name.
    pub is_taken: bool,
}

/// An event, read.
#[derive(Debug)]
pub struct Event<'a> {
    /// How it is shaped.
    pub shape: Shape,
    /// What to ask, or why it cannot be asked.
    pub question: Result<Question<'a>, Defect>,
}

/// Reads events of one format.
#[derive(Debug)]
pub struct EventReader {
    root: Node,
    host: HostRange,
    pns: Slots,
    time: Slots,
    time_unit: TimeUnit,
    mnt_ns: Slots,
    cgroup: Slots,
    root_pns: Slots,
    taken: Slots,
}

/// The slots of a field's pointers, the first of them first.
#[derive(Clone, Copy, Debug)]
struct Slots {
    from: usize,
    to: usize,
}

#[derive(Debug)]
enum HostRange {
    Slots(Slots),
    Key,
    Constant(Box<str>),
}

/// One step of all pointers.
#[derive(Debug, Default)]
struct Node {
    children: Vec<(Box<str>, Node)>,
    /// Pointers that end here: two fields may be one.
    slots: Vec<usize>,
}

impl Node {
    fn insert(&mut self, steps: &[Box<str>], slot: usize) {
        let Some((step, rest)) = steps.split_first() else {
            self.slots.push(slot);
            return;
        };
        let at = self.children.iter().position(|(name, _)| name == step);
        let at = at.unwrap_or_else(|| {
            self.children.push((step.clone(), Self::default()));
            self.children.len() - 1
        });
        self.children[at].1.insert(rest, slot);
    }

    fn child(&self, name: &str) -> Option<&Self> {
        let found = self.children.iter().find(|(child, _)| **child == *name);
        found.map(|(_, node)| node)
    }
}

impl EventReader {
    /// A reader for these fields. `added` is the name of the object that will be added.
    ///
    /// # Errors
    /// When there is no namespace among them, or more than [`POINTERS_MAX`] pointers.
    pub fn new(fields: EventFields, added: &str) -> Result<Self, String> {
        if fields.pns.is_empty() {
            return Err("no field for the PID namespace: set `--field-pns`".to_owned());
        }
        let mut root = Node::default();
        let mut next = 0;
        let mut place = |pointers: &[Pointer]| {
            let from = next;
            for pointer in pointers {
                root.insert(pointer.steps(), next);
                next += 1;
            }
            Slots { from, to: next }
        };
        let host = match &fields.host {
            HostSource::Fields(pointers) if pointers.is_empty() => {
                return Err("no field for the host: set `--field-host`".to_owned());
            }
            HostSource::Fields(pointers) => HostRange::Slots(place(pointers)),
            HostSource::Key => HostRange::Key,
            HostSource::Constant(host) => HostRange::Constant(host.clone()),
        };
        let pns = place(&fields.pns);
        let time = place(&fields.time);
        let mnt_ns = place(&fields.mnt_ns);
        let cgroup = place(&fields.cgroup);
        let root_pns = place(&fields.root_pns);
        let taken = Slots {
            from: next,
            to: next + 2,
        };
        let names = [added.to_owned(), format!("{added}{TAKEN_SUFFIX}")];
        for (slot, name) in (taken.from..).zip(names) {
            root.insert(&[name.into()], slot);
        }
        if taken.to > POINTERS_MAX {
            return Err(format!("more than {} paths", POINTERS_MAX - 2));
        }
        Ok(Self {
            root,
            host,
            pns,
            time,
            time_unit: fields.time_unit,
            mnt_ns,
            cgroup,
            root_pns,
            taken,
        })
    }

    /// Reads an event. `key` is its message's, `message_ms` the message's own time in unix milliseconds, which counts where
    /// the event has none.
    pub fn read<'a>(&'a self, payload: &'a [u8], key: &'a [u8], message_ms: u64) -> Event<'a> {
        let mut found = [const { Scalar::Absent }; POINTERS_MAX];
        let mut json = serde_json::Deserializer::from_slice(payload);
        let read = At {
            node: &self.root,
            found: &mut found,
        }
        .deserialize(&mut json);
        let count = match read.and_then(|seen| json.end().map(|()| seen)) {
            Ok(Seen::Object(count)) => count,
            Ok(Seen::Other) => return Event::defect(Defect::NotAnObject),
            Err(_) => return Event::defect(Defect::NotJson),
        };
        let is_there = |slot: usize| !matches!(found[slot], Scalar::Absent);
        let shape = Shape {
            is_empty: count == 0,
            is_taken: is_there(self.taken.from),
        };
        let question = if shape.is_taken && is_there(self.taken.from + 1) {
            Err(Defect::FieldTaken)
        } else {
            self.question(&mut found, key, message_ms)
        };
        Event { shape, question }
    }

    fn question<'a>(
        &'a self,
        found: &mut [Scalar<'a>],
        key: &'a [u8],
        message_ms: u64,
    ) -> Result<Question<'a>, Defect> {
        let host = match &self.host {
            HostRange::Slots(slots) => match first(found, *slots) {
                None => return Err(Defect::NoHost),
                Some(Scalar::Text(text)) => text,
                Some(_) => return Err(Defect::BadHost),
            },
            HostRange::Constant(host) => Cow::Borrowed(&**host),
            HostRange::Key => {
                let end = key.iter().position(|byte| *byte == b'/');
                let host = key.get(..end.unwrap_or(key.len())).unwrap_or_default();
                if host.is_empty() {
                    return Err(Defect::NoHost);
                }
                Cow::Borrowed(str::from_utf8(host).map_err(|_| Defect::BadHost)?)
            }
        };
        if host.len() > HOST_BYTES_MAX {
            return Err(Defect::BadHost);
        }
        let pns = first(found, self.pns).ok_or(Defect::NoPns)?;
        let pns_inode = namespace(&pns).ok_or(Defect::BadPns)?;
        let time = match first(found, self.time) {
            None => EventTime::at(message_ms),
            Some(scalar) => read_time(&scalar, self.time_unit).ok_or(Defect::BadTime)?,
        };
        let mnt_ns = first(found, self.mnt_ns).and_then(|scalar| namespace(&scalar));
        let cgroup = match first(found, self.cgroup) {
            Some(Scalar::Text(path)) => Some(path),
            Some(_) | None => None,
        };
        let root = first(found, self.root_pns).and_then(|scalar| namespace(&scalar));
        Ok(Question {
            host,
            pns_inode,
            time,
            mnt_ns: mnt_ns.unwrap_or(0),
            cgroup,
            is_root: root == Some(pns_inode),
        })
    }
}

impl Event<'_> {
    fn defect(defect: Defect) -> Self {
        Self {
            shape: Shape::default(),
            question: Err(defect),
        }
    }
}

/// The first pointer's value that says something: an empty text and `null` say nothing.
fn first<'a>(found: &mut [Scalar<'a>], slots: Slots) -> Option<Scalar<'a>> {
    let says = |scalar: &&mut Scalar<'_>| match scalar {
        Scalar::Absent | Scalar::Null => false,
        Scalar::Text(text) => !text.is_empty(),
        Scalar::Unsigned(_) | Scalar::Signed(_) | Scalar::Float(_) | Scalar::Other => true,
    };
    let mut slots = found.get_mut(slots.from..slots.to)?.iter_mut();
    slots.find(says).map(std::mem::take)
}

/// The number of a namespace: a number above 0, its decimal text, or the link's text such as `pid:[4026532448]`.
fn namespace(scalar: &Scalar<'_>) -> Option<u64> {
    let number = match scalar {
        Scalar::Unsigned(number) => *number,
        Scalar::Text(text) => {
            let inner = match text.split_once(":[") {
                Some((_, rest)) => rest.strip_suffix(']')?,
                None => text,
            };
            let is_decimal = !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_digit());
            is_decimal.then(|| inner.parse().ok()).flatten()?
        }
        Scalar::Absent | Scalar::Null | Scalar::Signed(_) | Scalar::Float(_) | Scalar::Other => {
            return None;
        }
    };
    (number > 0).then_some(number)
}

/// A value that was looked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Scalar<'a> {
    #[default]
    Absent,
    Null,
    Text(Cow<'a, str>),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// A list, an object, true or false.
    Other,
}

/// What stood at the top.
enum Seen {
    /// An object with so many fields.
    Object(usize),
    Other,
}

/// Reads the value that belongs to a node.
struct At<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f mut [Scalar<'a>; POINTERS_MAX],
}

impl<'a> At<'_, '_, 'a> {
    fn put(self, scalar: Scalar<'a>) -> Seen {
        if let Some((last, others)) = self.node.slots.split_last() {
            for slot in others {
                self.found[*slot] = scalar.clone();
            }
            self.found[*last] = scalar;
        }
        Seen::Other
    }
}

impl<'a> DeserializeSeed<'a> for At<'_, '_, 'a> {
    type Value = Seen;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for At<'_, '_, 'a> {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
        Ok(self.put(Scalar::Other))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Seen, E> {
        Ok(self.put(Scalar::Unsigned(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Seen, E> {
        Ok(self.put(Scalar::Signed(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Seen, E> {
        Ok(self.put(Scalar::Float(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<Seen, E> {
        Ok(self.put(Scalar::Text(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Seen, E> {
        Ok(self.put(Scalar::Text(Cow::Owned(value.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(self.put(Scalar::Null))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Seen, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.put(Scalar::Other))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Seen, A::Error> {
        let mut count = 0;
        while let Some(child) = map.next_key_seed(KeyIn(self.node))? {
            count += 1;
            match child {
                Some(node) => {
                    map.next_value_seed(At {
                        node,
                        found: &mut *self.found,
                    })?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.put(Scalar::Other);
        Ok(Seen::Object(count))
    }
}

/// Reads a key, and finds the node below it.
struct KeyIn<'n>(&'n Node);

impl<'a, 'n> DeserializeSeed<'a> for KeyIn<'n> {
    type Value = Option<&'n Node>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for KeyIn<'n> {
    type Value = Option<&'n Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.0.child(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::fields::Preset;

    fn reader(preset: Preset) -> EventReader {
        EventReader::new(preset.fields(), preset.added_field()).expect("presets are valid")
    }

    /// Host, namespace, from and to in milliseconds, mount namespace.
    fn told(preset: Preset, key: &str, text: &str) -> Result<(String, u64, u64, u64, u64), Defect> {
        let reader = reader(preset);
        let event = reader.read(text.as_bytes(), key.as_bytes(), 7_000);
        let question = event.question?;
        let (from, to) = (question.time.from_ms, question.time.to_ms);
        Ok((
            question.host.into_owned(),
            question.pns_inode,
            from,
            to,
            question.mnt_ns,
        ))
    }

    #[test]
    fn each_presets_events_are_understood() {
        let ours = r#"{"schema_version":1,"data_type":5050,"timestamp":1640000000,"fields":{"pid":"7","pns_inode":"4026532448","pid_ns":"pid:[4026532448]","mnt_ns":"4026532449","host_id":"h1"}}"#;
        let elkeid = r#"{"data_type":5050,"timestamp":1640000000,"agent_id":"a1","fields":{"pid":"7","pns":"pid:[4026532448]"}}"#;
        let driver = r#"{"data_type":"59","time":"1640000000","agent_id":"a1","pid":"7","pns":"4026532448","root_pns":"4026531836"}"#;
        let hub = r#"{"@timestamp":"2021-12-20T11:33:27Z","agent_id":"a1","agent_time":"1640000000","body":{"fields":{"nodename":"pod","pid":"7","pns":"4026532448","root_pns":"4026531836"}},"data_type":"82","hostname":"n","svr_time":"1640000006"}"#;
        let tetragon = r#"{"process_kprobe":{"process":{"pid":7,"ns":{"uts":{"inum":1},"mnt":{"inum":4026532449},"pid":{"inum":4026532448},"pid_for_children":{"inum":9}}}},"node_name":"n1","time":"2021-12-20T11:33:20.123456789Z"}"#;
        let tracee = r#"{"timestamp":1640000000123456789,"mountNamespace":4026532449,"pidNamespace":4026532448,"hostName":"95e88e281c4b","container":{"id":"95"}}"#;
        let osquery = r#"{"name":"p","hostIdentifier":"o1","unixTime":1640000000,"columns":{"pid":"7","pid_namespace":"4026532448","mnt_namespace":"4026532449"},"action":"added"}"#;
        // As an older osquery writes it, and with `--logger_snapshot_event_type`.
        let snapshot = r#"{"name":"p","hostIdentifier":"o1","unixTime":"1640000000","columns":{"pid_namespace":"4026532448","mnt_namespace":"4026532449"},"action":"snapshot"}"#;
        let (second, last) = (1_640_000_000_000, 1_640_000_000_999);
        let exact = 1_640_000_000_123;
        for (preset, text, host, from, to, mnt_ns) in [
            (Preset::Quaymaster, ours, "h1", second, last, 4_026_532_449),
            (Preset::Elkeid, elkeid, "a1", second, last, 0),
            (Preset::Elkeid, driver, "a1", second, last, 0),
            (Preset::Elkeid, hub, "a1", second, last, 0),
            (
                Preset::Tetragon,
                tetragon,
                "n1",
                exact,
                exact,
                4_026_532_449,
            ),
            (Preset::Tracee, tracee, "k1", exact, exact, 4_026_532_449),
            (Preset::Osquery, osquery, "o1", second, last, 4_026_532_449),
            (Preset::Osquery, snapshot, "o1", second, last, 4_026_532_449),
        ] {
            let expected = (host.to_owned(), 4_026_532_448, from, to, mnt_ns);
            assert_eq!(told(preset, "k1/7", text), Ok(expected), "{preset:?}");
        }
    }

    #[test]
    fn what_carries_no_namespace_or_no_host_of_its_own_is_told_so() {
        let newer_tracee = r#"{"timestamp":"2025-11-24T11:33:20.123Z","id":1014,"name":"sched_process_exec","workload":{"process":{"host_pid":7,"pid":1},"container":{"id":"95"}}}"#;
        let osquery_snapshot = r#"{"snapshot":[{"pid_namespace":"4026532448"}],"action":"snapshot","hostIdentifier":"o1","unixTime":1640000000}"#;
        let bare_tetragon = r#"{"process_exec":{"process":{"pid":7}},"node_name":"n1","time":"2021-12-20T11:33:20Z"}"#;
        // Its nodename is the container's own.
        let bare_driver = r#"{"data_type":"59","nodename":"pod","pns":"4026532448"}"#;
        for (preset, text, defect) in [
            (Preset::Tracee, newer_tracee, Defect::NoPns),
            (Preset::Osquery, osquery_snapshot, Defect::NoPns),
            (Preset::Tetragon, bare_tetragon, Defect::NoPns),
            (Preset::Elkeid, bare_driver, Defect::NoHost),
        ] {
            assert_eq!(told(preset, "k1", text), Err(defect), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_event_is_named() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let long = format!(
            r#"{{"host_id":"{}","pns":1}}"#,
            "h".repeat(HOST_BYTES_MAX + 1)
        );
        for (text, defect) in [
            ("", Defect::NotJson),
            ("not json", Defect::NotJson),
            (r#"{"host_id":"h","pns":1"#, Defect::NotJson),
            (r#"{"host_id":"h","pns":1} x"#, Defect::NotJson),
            ("{\"host_id\":\"\u{1}\",\"pns\":1}", Defect::NotJson),
            (deep.as_str(), Defect::NotAnObject),
            ("[]", Defect::NotAnObject),
            ("7", Defect::NotAnObject),
            ("null", Defect::NotAnObject),
            ("{}", Defect::NoHost),
            (r#"{"host_id":null,"pns":1}"#, Defect::NoHost),
            (r#"{"host_id":"","pns":1}"#, Defect::NoHost),
            (r#"{"host_id":7,"pns":1}"#, Defect::BadHost),
            (long.as_str(), Defect::BadHost),
            (r#"{"host_id":"h"}"#, Defect::NoPns),
            (r#"{"host_id":"h","pns":""}"#, Defect::NoPns),
            (r#"{"host_id":"h","pns":"soon"}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":"pid:[x]"}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":"+7"}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":0}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":-1}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":1.5}"#, Defect::BadPns),
            (r#"{"host_id":"h","pns":{"a":1}}"#, Defect::BadPns),
            (
                r#"{"host_id":"h","pns":99999999999999999999}"#,
                Defect::BadPns,
            ),
            (
                r#"{"host_id":"h","pns":1,"timestamp":"soon"}"#,
                Defect::BadTime,
            ),
            (r#"{"host_id":"h","pns":1,"timestamp":-1}"#, Defect::BadTime),
            (r#"{"host_id":"h","pns":1,"timestamp":[]}"#, Defect::BadTime),
            (
                r#"{"container":1,"container_quaymaster":2}"#,
                Defect::FieldTaken,
            ),
        ] {
            let shown = text.get(..80).unwrap_or(text);
            assert_eq!(told(Preset::Quaymaster, "", text), Err(defect), "{shown}");
        }
    }

    #[test]
    fn without_a_time_the_messages_own_counts() {
        let text = r#"{"host_id":"h","pns":5}"#;
        let expected = ("h".to_owned(), 5, 7_000, 7_000, 0);
        assert_eq!(told(Preset::Quaymaster, "", text), Ok(expected));
    }

    #[test]
    fn bytes_that_are_no_utf_8_beside_the_fields_do_no_harm() {
        let mut text = br#"{"host_id":"h","cmdline":"x"#.to_vec();
        text.extend([0xff, 0xfe]);
        text.extend(br#"","pns":5}"#);
        let reader = reader(Preset::Quaymaster);
        assert!(reader.read(&text, b"", 0).question.is_ok());
    }

    #[test]
    fn the_hosts_own_namespace_is_known_by_the_event_itself() {
        let reader = reader(Preset::Elkeid);
        for (root, expected) in [("5", true), ("6", false)] {
            let text = format!(r#"{{"agent_id":"a","fields":{{"pns":"5","root_pns":"{root}"}}}}"#);
            let event = reader.read(text.as_bytes(), b"", 0);
            assert_eq!(
                event.question.map(|question| question.is_root),
                Ok(expected)
            );
        }
    }
}
