//! What a reader makes of the messages, and what has to hold of them whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::collector::HOST_ID;
use crate::consume::Message;

/// The containers of a host as the deltas tell them, each with its newest record's fields.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    /// By container id.
    pub(crate) containers: BTreeMap<String, Value>,
    /// Whether its current run was started and not stopped.
    running: BTreeSet<String>,
    /// All ops of each container, in order, over all epochs.
    pub(crate) stories: BTreeMap<String, Vec<String>>,
    /// How many epochs were opened.
    pub(crate) epochs: u64,
    epoch: String,
    seq: u64,
}

/// Folds all deltas, and checks the order that they promise: contiguous numbers, and a whole story of each container.
pub(crate) fn fold(messages: &[Message]) -> Result<Folded> {
    let mut folded = Folded::default();
    for message in of_topic(messages, "deltas") {
        let delta = message.value.as_ref().context("a delta without a value")?;
        folded
            .take(delta)
            .with_context(|| format!("delta {delta}"))?;
    }
    Ok(folded)
}

impl Folded {
    /// Whether a container that came and went was told so: each step once, and nothing else but updates.
    pub(crate) fn check_whole_life(&self, id: &str) -> Result<()> {
        let story = self.stories.get(id);
        let story = story.with_context(|| format!("nothing is told of {id}"))?;
        let steps: Vec<_> = story.iter().filter(|op| *op != "update").collect();
        ensure!(
            steps == ["create", "start", "stop", "delete"],
            "{id} is told as {story:?}"
        );
        Ok(())
    }

    fn take(&mut self, delta: &Value) -> Result<()> {
        ensure!(delta["schema_version"] == 1, "another schema_version");
        ensure!(delta["host_id"] == HOST_ID, "another host_id");
        let op = delta["op"].as_str().context("no op")?;
        let epoch = delta["epoch"].as_str().context("no epoch")?;
        let seq = delta["seq"].as_u64().context("no seq")?;
        if op == "epoch" {
            ensure!(seq == 1, "an epoch that does not begin with 1");
            self.epochs += 1;
            epoch.clone_into(&mut self.epoch);
            self.seq = 0;
            self.containers.clear();
            self.running.clear();
        }
        ensure!(epoch == self.epoch, "of an epoch that was not opened");
        if seq <= self.seq {
            // Told twice, after a crash: allowed.
            return Ok(());
        }
        let first = if op == "gap" {
            delta["seq_from"].as_u64().context("no seq_from")?
        } else {
            seq
        };
        ensure!(first == self.seq + 1, "follows {}", self.seq);
        self.seq = seq;
        if delta["container"].is_object() {
            self.change(op, &delta["container"])?;
        }
        Ok(())
    }

    fn change(&mut self, op: &str, fields: &Value) -> Result<()> {
        let id = fields["id"]
            .as_str()
            .context("a container without id")?
            .to_owned();
        let is_known = self.containers.contains_key(&id);
        let is_running = self.running.contains(&id);
        match op {
            "create" => ensure!(!is_known, "a create of a container that is there"),
            "start" => ensure!(
                is_known && !is_running,
                "a start without create, or of one that runs"
            ),
            "stop" => ensure!(is_running, "a stop of one that does not run"),
            "delete" => ensure!(
                is_known && !is_running,
                "a delete before its stop, or of one never created"
            ),
            "update" => ensure!(is_known, "an update of a container that is not there"),
            "snapshot" => {}
            other => bail!("the op `{other}` is not known"),
        }
        self.stories
            .entry(id.clone())
            .or_default()
            .push(op.to_owned());
        let runs = match op {
            "start" => true,
            "stop" | "delete" | "create" => false,
            // CRI-O's sandboxes have no process of their own by default.
            "snapshot" => {
                let is_ready =
                    field(fields, "kind") == "sandbox" && field(fields, "state") == "running";
                is_ready || !field(fields, "pid").is_empty()
            }
            _ => is_running,
        };
        if runs {
            self.running.insert(id.clone());
        } else {
            self.running.remove(&id);
        }
        if op == "delete" {
            self.containers.remove(&id);
        } else {
            self.containers.insert(id, fields.clone());
        }
        Ok(())
    }
}

/// The newest value of each key of a compacted topic; keys whose newest is a tombstone are not there.
pub(crate) fn table(messages: &[Message], topic: &str) -> BTreeMap<String, Value> {
    let mut table = BTreeMap::new();
    for message in of_topic(messages, topic) {
        match &message.value {
            Some(value) => table.insert(message.key.clone(), value.clone()),
            None => table.remove(&message.key),
        };
    }
    table
}

/// The records, by container id. Each stands under its key, with all its fields as texts.
pub(crate) fn records(messages: &[Message]) -> Result<BTreeMap<String, Value>> {
    let mut records = BTreeMap::new();
    for (key, record) in table(messages, "records") {
        ensure!(record["data_type"] == 5056, "another data_type: {record}");
        let fields = record["fields"]
            .as_object()
            .context("a record without fields")?;
        for (name, value) in fields {
            ensure!(value.is_string(), "the field {name} is {value}");
        }
        let id = field(&record["fields"], "id");
        ensure!(
            key == format!("{HOST_ID}/{id}"),
            "the key `{key}` for the container {id}"
        );
        records.insert(id.to_owned(), record["fields"].clone());
    }
    Ok(records)
}

/// The mappings, by the namespace's text. Each stands under its key.
pub(crate) fn mappings(messages: &[Message]) -> Result<BTreeMap<String, Value>> {
    let mut mappings = BTreeMap::new();
    for (key, mapping) in table(messages, "pns") {
        let pns = mapping["pns"].as_str().context("a mapping without pns")?;
        let inode = mapping["pns_inode"]
            .as_u64()
            .context("a mapping without pns_inode")?;
        ensure!(
            key == format!("{HOST_ID}/{inode}"),
            "the key `{key}` for {pns}"
        );
        ensure!(
            pns == format!("pid:[{inode}]"),
            "{pns} has the inode {inode}"
        );
        mappings.insert(pns.to_owned(), mapping.clone());
    }
    Ok(mappings)
}

/// Headers beside those of CloudEvents, by NATS and for it.
const OF_NATS: [&str; 4] = [
    "nats-msg-id",
    "kv-operation",
    "nats-expected-last-subject-sequence",
    "nats-expected-stream",
];

/// Checks what every message says of itself outside its value, as the AsyncAPI document has it.
pub(crate) fn check_envelopes(messages: &[Message]) -> Result<()> {
    let mut seen: BTreeMap<&str, (&str, &Option<Value>)> = BTreeMap::new();
    for message in messages {
        check_envelope(message).with_context(|| format!("{message:?}"))?;
        let said = (message.topic.as_str(), &message.value);
        let first = seen.entry(&message.headers["id"]).or_insert(said);
        ensure!(*first == said, "one ce id for {first:?} and {said:?}");
    }
    Ok(())
}

/// A part of a key as it stands in a subject.
fn token(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
        _ => format!("={byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

fn check_envelope(message: &Message) -> Result<()> {
    let topic = message.topic.as_str();
    let header = |name: &str| message.headers.get(name).map_or("", String::as_str);
    let (kind, id_of_key) = match topic {
        "deltas" => ("delta", None),
        "records" => ("record", Some("id")),
        "pns" => ("mapping", Some("pns_inode")),
        "status" => ("status", None),
        "processes" => ("process", Some("pid")),
        "ports" => ("port", Some("inode")),
        other => bail!("the topic `{other}` is not known"),
    };
    ensure!(header("type") == format!("io.quaymaster.{kind}.v1"), "type");
    ensure!(
        header("source") == format!("/quaymaster/{HOST_ID}"),
        "source"
    );
    ensure!(header("specversion") == "1.0", "specversion");
    let time = humantime::parse_rfc3339(header("time")).context("time")?;
    let known = [
        "id",
        "source",
        "type",
        "specversion",
        "time",
        "content-type",
    ];
    for name in message.headers.keys() {
        let is_known = known.contains(&name.as_str())
            || message.subject.is_some() && OF_NATS.contains(&name.as_str());
        ensure!(is_known, "the header {name} is told nowhere");
    }
    ensure!(
        message.headers.contains_key("nats-msg-id")
            == (message.subject.is_some() && matches!(topic, "deltas" | "processes" | "ports")),
        "Nats-Msg-Id"
    );
    if message.subject.is_some() && message.headers.contains_key("nats-msg-id") {
        ensure!(header("nats-msg-id") == header("id"), "Nats-Msg-Id");
    }
    let Some(value) = &message.value else {
        ensure!(matches!(topic, "records" | "pns"), "a tombstone");
        ensure!(
            !message.headers.contains_key("content-type"),
            "a content type of a tombstone"
        );
        let rest = message.key.strip_prefix(&format!("{HOST_ID}/"));
        ensure!(rest.is_some_and(|id| !id.is_empty()), "key");
        return Ok(());
    };
    ensure!(header("content-type") == "application/json", "content type");
    let fields = value.get("fields").unwrap_or(value);
    let text = |name: &str| {
        let value = &fields[name];
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let key = match id_of_key {
        Some(name) if message.subject.is_some() => format!("{HOST_ID}/{}", token(&text(name))),
        Some(name) => format!("{HOST_ID}/{}", text(name)),
        None => HOST_ID.to_owned(),
    };
    ensure!(message.key == key, "the key is not {key}");
    match topic {
        "deltas" => {
            let id = format!("{HOST_ID}:{}:{}", text("epoch"), text("seq"));
            ensure!(header("id") == id, "id, and not {id}");
            let since_epoch = time.duration_since(std::time::UNIX_EPOCH)?;
            ensure!(
                text("ts_ms") == since_epoch.as_millis().to_string(),
                "time is not ts_ms"
            );
            if let Some(subject) = &message.subject {
                let expected = format!("quaymaster.deltas.{HOST_ID}.{}", text("op"));
                ensure!(*subject == expected, "subject");
            }
        }
        "processes" | "ports" => {
            let (boot, taken) = (text("boot_id"), text("package_seq"));
            let id = format!("{HOST_ID}:{boot}:{topic}:{taken}:");
            ensure!(header("id").starts_with(&id), "id, and not {id}");
        }
        _ => {
            let row = header("id").strip_prefix(&format!("{HOST_ID}:{}:r", text("epoch")));
            let is_row = row.is_some_and(|row| row.parse::<u64>().is_ok());
            ensure!(is_row, "id");
            ensure!(value["expires_at_ms"].as_i64() > Some(0), "expires_at_ms");
        }
    }
    Ok(())
}

/// Kafka: a key has one partition, and the first appearances of its deltas there are in the order of their numbers.
/// What a killed collector had sent and not yet noted comes again after its restart.
pub(crate) fn check_partitions(messages: &[Message]) -> Result<()> {
    let mut partitions = BTreeMap::new();
    for message in messages {
        let partition = partitions
            .entry((&message.topic, &message.key))
            .or_insert(message.partition);
        ensure!(
            *partition == message.partition,
            "the key {} is in two partitions",
            message.key
        );
    }
    let deltas = of_topic(messages, "deltas");
    let mut places: Vec<_> = deltas
        .map(|message| (message.offset, seq(message)))
        .collect();
    places.sort_unstable();
    let mut newest = 0;
    for (_, seq) in &places {
        ensure!(
            *seq <= newest + 1,
            "deltas out of order: {seq} after {newest} in {places:?}"
        );
        newest = newest.max(*seq);
    }
    ensure!(
        partitions.keys().any(|(topic, _)| *topic == "deltas"),
        "no delta at all"
    );
    Ok(())
}

/// The number of the newest delta.
pub(crate) fn last_seq(messages: &[Message]) -> u64 {
    of_topic(messages, "deltas").map(seq).max().unwrap_or(0)
}

/// A field of a record.
pub(crate) fn field<'a>(fields: &'a Value, name: &str) -> &'a str {
    fields[name].as_str().unwrap_or_default()
}

fn seq(message: &Message) -> u64 {
    message
        .value
        .as_ref()
        .and_then(|value| value["seq"].as_u64())
        .unwrap_or(0)
}

fn of_topic<'a>(messages: &'a [Message], topic: &'a str) -> impl Iterator<Item = &'a Message> {
    messages
        .iter()
        .filter(move |message| message.topic == topic)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Deltas of one container, numbered from 2, after the epoch's opening.
    fn deltas(ops: &[(&str, u64)]) -> Vec<Message> {
        let opening = [("epoch", 1)];
        let delta = |(op, seq): &(&str, u64)| Message {
            topic: "deltas".to_owned(),
            key: HOST_ID.to_owned(),
            value: Some(json!({
                "schema_version": 1, "host_id": HOST_ID, "op": op, "epoch": "e", "seq": seq,
                "container": if *op == "epoch" { Value::Null } else { json!({"id": "c", "pid": "7"}) },
            })),
            headers: BTreeMap::new(),
            partition: Some(0),
            offset: None,
            subject: None,
        };
        opening.iter().chain(ops).map(delta).collect()
    }

    #[test]
    fn what_a_reader_must_not_meet_is_seen() {
        type Row = (&'static str, &'static [(&'static str, u64)], bool);
        let table: [Row; 8] = [
            (
                "a whole story",
                &[("create", 2), ("start", 3), ("stop", 4), ("delete", 5)],
                true,
            ),
            (
                "one told twice",
                &[("create", 2), ("start", 3), ("start", 3)],
                true,
            ),
            (
                "a snapshot that stops",
                &[("snapshot", 2), ("stop", 3), ("start", 4)],
                true,
            ),
            ("a hole", &[("create", 2), ("start", 4)], false),
            ("a start without create", &[("start", 2)], false),
            (
                "a delete without stop",
                &[("create", 2), ("start", 3), ("delete", 4)],
                false,
            ),
            (
                "a stop of one that never ran",
                &[("create", 2), ("stop", 3)],
                false,
            ),
            ("two creates", &[("create", 2), ("create", 3)], false),
        ];
        for (what, ops, is_right) in table {
            assert_eq!(fold(&deltas(ops)).is_ok(), is_right, "{what}");
        }
    }

    #[test]
    fn a_tombstone_takes_a_key_from_its_table() {
        let mut messages = deltas(&[]);
        messages[0].topic = "pns".to_owned();
        assert_eq!(table(&messages, "pns").len(), 1);
        messages.push(Message {
            value: None,
            ..messages[0].clone()
        });
        assert!(table(&messages, "pns").is_empty());
    }
}
