//! What a consumer that is not our code finds on the bus, from the start and in order.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use serde_json::Value;

use crate::admin::alter;

/// The topics that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Deltas,
    Records,
    Pns,
}

/// What a collector's file says so that a Kafka can refuse: a broker asks for no more replicas in sync than a topic has. The
/// second one is of a broker that is stopped ([`crate::lab::Broker::know_second_kafka`]).
pub(crate) const TWO_REPLICAS: &str = "topics.replication = 2\n";

const TOPICS: [Topic; 3] = [Topic::Deltas, Topic::Records, Topic::Pns];

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Deltas => "deltas",
            Self::Records => "records",
            Self::Pns => "pns",
        }
    }
}

/// A message as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) topic: Topic,
    /// What stands behind the host in the key.
    pub(crate) item: String,
    /// `None` for a tombstone.
    pub(crate) value: Option<Value>,
    /// Its bytes.
    pub(crate) text: String,
    /// The CloudEvents id; empty where the bus has no headers.
    pub(crate) ce_id: String,
}

/// A place to read from.
#[expect(clippy::large_enum_variant, reason = "there is one for each course")]
pub(crate) enum Bus {
    /// A file that the collector's stdout goes to.
    Stdout { file: PathBuf, offset: u64 },
    /// One partition for each topic.
    Kafka {
        server: String,
        prefix: String,
        next: [i64; 3],
    },
    /// A stream for the deltas, buckets for the rest.
    Nats {
        server: String,
        prefix: String,
        next: [u64; 3],
        client: Option<jetstream::Context>,
    },
}

impl Bus {
    pub(crate) fn kafka(server: &str, prefix: &str) -> Self {
        Self::Kafka {
            server: server.to_owned(),
            prefix: prefix.to_owned(),
            next: [0; 3],
        }
    }

    pub(crate) fn nats(server: &str, prefix: &str) -> Self {
        Self::Nats {
            server: server.to_owned(),
            prefix: prefix.to_owned(),
            next: [1; 3],
            client: None,
        }
    }

    /// What the collector is told. `through` is an address before the bus.
    pub(crate) fn arguments(&self, through: Option<&str>) -> Vec<String> {
        match self {
            Self::Stdout { .. } => vec!["--bus=stdout:".to_owned()],
            Self::Kafka { server, prefix, .. } => vec![
                format!("--bus=kafka://{}", through.unwrap_or(server)),
                format!("--topics-prefix={prefix}"),
                "--topics-partitions=1".to_owned(),
            ],
            Self::Nats { server, prefix, .. } => vec![
                format!("--bus=nats://{}", through.unwrap_or(server)),
                format!("--topics-prefix={prefix}"),
            ],
        }
    }

    /// The bus takes no more, and says so, or takes all again: a NATS whose stream of deltas is full, a Kafka whose
    /// topics ask for more replicas in sync than there are ([`TWO_REPLICAS`]).
    pub(crate) async fn refuse(&self, refuses: bool) -> anyhow::Result<()> {
        match self {
            Self::Stdout { .. } => bail!("stdout takes all"),
            Self::Kafka { server, prefix, .. } => {
                let replicas = if refuses { "2" } else { "1" };
                // What else goes through must not hide that.
                for topic in ["deltas", "pns"] {
                    let name = format!("{prefix}.{topic}");
                    let servers = [server.clone()];
                    alter(&servers, &name, "min.insync.replicas", replicas).await?;
                }
            }
            Self::Nats { server, prefix, .. } => {
                let context = jetstream::new(async_nats::connect(server.as_str()).await?);
                let name = format!("{}_DELTAS", prefix.to_uppercase());
                let stream = context.get_stream(&name).await?;
                let mut config = stream.cached_info().config.clone();
                (config.discard, config.max_messages) = match refuses {
                    true => (jetstream::stream::DiscardPolicy::New, 1),
                    false => (jetstream::stream::DiscardPolicy::Old, -1),
                };
                context.update_stream(&config).await?;
            }
        }
        Ok(())
    }

    /// All that came since the last time. Between topics there is no order. After an error what was found until then is
    /// not found again.
    pub(crate) async fn read(&mut self, found: &mut Vec<Found>) -> anyhow::Result<()> {
        match self {
            Self::Stdout { file, offset } => found.extend(read_lines(file, offset)?),
            Self::Kafka {
                server,
                prefix,
                next,
            } => {
                for (topic, next) in TOPICS.into_iter().zip(next) {
                    found.extend(read_kafka(server, prefix, topic, next)?);
                }
            }
            Self::Nats {
                server,
                prefix,
                next,
                client,
            } => {
                let context = match client {
                    Some(context) => context.clone(),
                    None => {
                        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
                        let connected = options.connect(server.as_str()).await?;
                        client.insert(jetstream::new(connected)).clone()
                    }
                };
                for (topic, next) in TOPICS.into_iter().zip(next) {
                    read_nats(&context, prefix, topic, next, found).await?;
                }
            }
        }
        Ok(())
    }
}

fn read_lines(path: &PathBuf, offset: &mut u64) -> anyhow::Result<Vec<Found>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    bytes.truncate(whole.map_or(0, |at| at + 1));
    *offset += bytes.len() as u64;
    let mut all = Vec::new();
    for line in String::from_utf8(bytes)?.lines() {
        let line: Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let name = line["topic"].as_str().unwrap_or_default();
        let Some(topic) = topic_of(name) else {
            continue;
        };
        let value = Some(line["value"].clone()).filter(|value| !value.is_null());
        all.push(Found {
            topic,
            item: item_of(line["key"].as_str().unwrap_or_default()),
            text: value.as_ref().map(Value::to_string).unwrap_or_default(),
            value,
            ce_id: String::new(),
        });
    }
    Ok(all)
}

fn topic_of(name: &str) -> Option<Topic> {
    let last = name.rsplit_once('.').map_or(name, |(_, last)| last);
    TOPICS.into_iter().find(|topic| topic.name() == last)
}

fn item_of(key: &str) -> String {
    let item = key.split_once('/').map_or("", |(_, item)| item);
    item.to_owned()
}

/// kcat to the end of the partition.
fn read_kafka(
    server: &str,
    prefix: &str,
    topic: Topic,
    next: &mut i64,
) -> anyhow::Result<Vec<Found>> {
    let name = format!("{prefix}.{}", topic.name());
    let output = Command::new("timeout")
        .args(["20", "kcat", "-C", "-q", "-e", "-J", "-b", server])
        .args(["-X", "fetch.wait.max.ms=20", "-t", &name, "-p", "0"])
        .args(["-o", &next.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("failed to run kcat")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if error.contains("Unknown") {
            return Ok(Vec::new());
        }
        bail!("kcat ended with {}: {error}", output.status);
    }
    let mut all = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let headers = line["headers"].as_array().cloned().unwrap_or_default();
        let id = headers.chunks(2).find(|pair| pair[0] == "ce_id");
        let ce_id = id
            .and_then(|pair| pair.get(1)?.as_str())
            .unwrap_or_default();
        let text = line["payload"].as_str().unwrap_or_default().to_owned();
        *next = line["offset"].as_i64().context("kcat tells no offset")? + 1;
        all.push(Found {
            topic,
            item: item_of(line["key"].as_str().unwrap_or_default()),
            value: match text.as_str() {
                "" => None,
                text => Some(serde_json::from_str(text)?),
            },
            text,
            ce_id: ce_id.to_owned(),
        });
    }
    Ok(all)
}

async fn read_nats(
    context: &jetstream::Context,
    prefix: &str,
    topic: Topic,
    next: &mut u64,
    all: &mut Vec<Found>,
) -> anyhow::Result<()> {
    let name = match topic {
        Topic::Deltas => format!("{}_DELTAS", prefix.to_uppercase()),
        Topic::Records | Topic::Pns => format!("KV_{prefix}-{}", topic.name()),
    };
    let limit = Duration::from_secs(20);
    let Ok(mut stream) = tokio::time::timeout(limit, context.get_stream(&name)).await? else {
        return Ok(());
    };
    let newest = tokio::time::timeout(limit, stream.info())
        .await??
        .state
        .last_sequence;
    while *next <= newest {
        let answer = tokio::time::timeout(limit, stream.get_raw_message(*next)).await?;
        let message = match answer {
            Ok(message) => message,
            // A newer one of its subject took its place.
            Err(error)
                if error.kind() == jetstream::stream::RawMessageErrorKind::NoMessageFound =>
            {
                *next += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        *next += 1;
        let header = |name: &str| {
            let value = message.headers.get(name);
            value.map(|value| value.as_str().to_owned())
        };
        let is_tombstone = header("KV-Operation").is_some_and(|operation| operation != "PUT");
        let text = String::from_utf8(message.payload.to_vec())?;
        let subject = message.subject.as_str();
        all.push(Found {
            topic,
            item: match topic {
                Topic::Deltas => String::new(),
                Topic::Records | Topic::Pns => {
                    let last = subject.rsplit_once('.').map_or(subject, |(_, last)| last);
                    last.to_owned()
                }
            },
            value: match is_tombstone {
                true => None,
                false => Some(serde_json::from_str(&text)?),
            },
            text,
            ce_id: header("ce-id").unwrap_or_default(),
        });
    }
    Ok(())
}
