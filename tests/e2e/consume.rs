//! What landed on the bus, read by consumers that are not Quaymaster's code: kcat, Kafka's console consumer, the NATS
//! client; and the lines on stdout.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;

/// The topics of the default prefix.
pub(crate) const TOPICS: [&str; 4] = ["deltas", "records", "pns", "status"];

/// One message as a consumer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The topic without its prefix: `deltas`, `records`, `pns`, `status`.
    pub(crate) topic: String,
    /// The key as on Kafka: `host_id`, or `host_id/…`.
    pub(crate) key: String,
    /// The JSON; `None` for a tombstone.
    pub(crate) value: Option<Value>,
    /// Headers by name in lower case, with `ce_` and `ce-` taken off.
    pub(crate) headers: BTreeMap<String, String>,
    /// Kafka's partition.
    pub(crate) partition: Option<i64>,
    /// Kafka's offset, or JetStream's sequence.
    pub(crate) offset: Option<i64>,
    /// NATS' subject.
    pub(crate) subject: Option<String>,
}

/// Where messages are read.
pub(crate) enum Bus {
    /// The lines that the collector wrote to this file.
    Stdout(PathBuf),
    /// Kafka at this address, by kcat.
    Kafka(String),
    /// NATS at this address, by its client.
    Nats(String),
}

impl Bus {
    /// The bus's address for `--bus`.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Stdout(_) => "stdout:".to_owned(),
            Self::Kafka(address) => format!("kafka://{address}"),
            Self::Nats(address) => format!("nats://{address}"),
        }
    }

    /// Everything that is there, in the order of each topic. On NATS of the state topics only the newest of a key.
    pub(crate) fn read(&self) -> Result<Vec<Message>> {
        match self {
            Self::Stdout(path) => read_lines(path),
            Self::Kafka(address) => read_kafka(address),
            Self::Nats(address) => read_nats(address, &TOPICS),
        }
    }

    /// Everything of one topic of snapshots.
    pub(crate) fn read_snapshots(&self, topic: &str) -> Result<Vec<Message>> {
        match self {
            Self::Stdout(path) => {
                let mut lines = read_lines(path)?;
                lines.retain(|message| message.topic == topic);
                Ok(lines)
            }
            Self::Kafka(address) => read_topic(address, &format!("quaymaster.{topic}")),
            Self::Nats(address) => read_nats(address, &[topic]),
        }
    }
}

fn read_lines(path: &PathBuf) -> Result<Vec<Message>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(read_line).collect()
}

fn read_line(line: &str) -> Result<Message> {
    let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"))?;
    Ok(Message {
        topic: without_prefix(text(&line["topic"])?),
        key: text(&line["key"])?.to_owned(),
        value: Some(line["value"].clone()).filter(|value| !value.is_null()),
        headers: BTreeMap::new(),
        partition: None,
        offset: None,
        subject: None,
    })
}

fn read_kafka(address: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for topic in TOPICS {
        messages.extend(read_topic(address, &format!("quaymaster.{topic}"))?);
    }
    Ok(messages)
}

/// Reads one topic whole, by `kcat -C -e -J`.
pub(crate) fn read_topic(address: &str, topic: &str) -> Result<Vec<Message>> {
    let output = Command::new("kcat")
        .args([
            "-C",
            "-e",
            "-q",
            "-J",
            "-o",
            "beginning",
            "-b",
            address,
            "-t",
            topic,
        ])
        // Not before the collector has made it.
        .args(["-X", "allow.auto.create.topics=false"])
        .stdin(Stdio::null())
        .output()
        .context("failed to run kcat")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("Unknown topic or partition") {
        return Ok(Vec::new());
    }
    ensure!(
        output.status.success(),
        "kcat could not read `{topic}`: {errors}"
    );
    let lines = String::from_utf8(output.stdout).context("kcat wrote what is not UTF-8")?;
    lines.lines().map(read_envelope).collect()
}

/// One line of `kcat -J`.
fn read_envelope(line: &str) -> Result<Message> {
    let envelope: Value =
        serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"))?;
    let payload = envelope["payload"].as_str();
    let value = payload
        .map(serde_json::from_str)
        .transpose()
        .context("a value is not JSON")?;
    let mut headers = BTreeMap::new();
    // A flat list: name, value, name, value.
    for pair in envelope["headers"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .chunks(2)
    {
        let [name, value] = pair else { continue };
        headers.insert(header_name(text(name)?), text(value)?.to_owned());
    }
    Ok(Message {
        topic: without_prefix(text(&envelope["topic"])?),
        key: text(&envelope["key"])?.to_owned(),
        value,
        headers,
        partition: envelope["partition"].as_i64(),
        offset: envelope["offset"].as_i64(),
        subject: None,
    })
}

fn read_nats(address: &str, topics: &[&str]) -> Result<Vec<Message>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = async_nats::connect(address)
            .await
            .context("no NATS server answers")?;
        let jetstream = async_nats::jetstream::new(client);
        let mut messages = Vec::new();
        for topic in topics {
            let stream = match *topic {
                "deltas" | "processes" | "ports" => {
                    format!("QUAYMASTER_{}", topic.to_uppercase())
                }
                table => format!("KV_quaymaster-{table}"),
            };
            messages.extend(read_stream(&jetstream, topic, &stream).await?);
        }
        Ok(messages)
    })
}

async fn read_stream(
    jetstream: &async_nats::jetstream::Context,
    topic: &str,
    stream: &str,
) -> Result<Vec<Message>> {
    // Not there before the collector has made it.
    let Ok(mut stream) = jetstream.get_stream(stream).await else {
        return Ok(Vec::new());
    };
    let state = stream
        .info()
        .await
        .context("a stream tells no state")?
        .state
        .clone();
    let mut messages = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        // In a bucket most sequences have been overwritten.
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        let headers = nats_headers(&message.headers);
        let is_delete = headers.contains_key("kv-operation");
        let subject = message.subject.to_string();
        messages.push(Message {
            topic: topic.to_owned(),
            key: nats_key(topic, &subject)?,
            value: if is_delete {
                None
            } else {
                Some(serde_json::from_slice(&message.payload).context("a value is not JSON")?)
            },
            headers,
            partition: None,
            offset: Some(i64::try_from(sequence)?),
            subject: Some(subject),
        });
    }
    Ok(messages)
}

fn nats_headers(headers: &async_nats::HeaderMap) -> BTreeMap<String, String> {
    let mut named = BTreeMap::new();
    for (name, values) in headers.iter() {
        if let Some(value) = values.first() {
            named.insert(header_name(name.as_ref()), value.to_string());
        }
    }
    named
}

/// `quaymaster.deltas.<host>.<op>` to `<host>`; `$KV.quaymaster-pns.<host>.<inode>` to `<host>/<inode>`.
fn nats_key(topic: &str, subject: &str) -> Result<String> {
    let tokens: Vec<_> = subject.split('.').skip(2).collect();
    ensure!(!tokens.is_empty(), "`{subject}` names no host");
    let tokens = if topic == "deltas" {
        &tokens[..1]
    } else {
        &tokens[..]
    };
    Ok(tokens.join("/"))
}

fn header_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let bare = name
        .strip_prefix("ce_")
        .or_else(|| name.strip_prefix("ce-"));
    bare.unwrap_or(&name).to_owned()
}

fn without_prefix(topic: &str) -> String {
    topic
        .rsplit_once('.')
        .map_or(topic, |(_, name)| name)
        .to_owned()
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("not a text: {value}"))
}

/// One of Kafka's own command-line tools, from its jars.
pub(crate) fn kafka_tool(lab: &Lab, class: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("java")
        .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(format!("{}/*", lab.value("LAB_KAFKA_LIBS")?))
        .arg(class)
        .args(["--bootstrap-server", &lab.value("LAB_KAFKA")?])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("failed to run java")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{class}` failed: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}
