//! Whether the bus can be reached and has the topics that are needed. Creates nothing.

use std::time::Duration;

use super::Finding;
use crate::cli::{EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, chain, sink_failure};
use crate::config::Config;
use crate::model::Topic;
use crate::procfs::ProcessTable;
use crate::sink::access::{KafkaAccess, NatsAccess};
use crate::sink::kafka::rights::{self, Operation};
use crate::sink::nats::NatsSink;
use crate::sink::{Bus, ManageTopics, SinkError, TopicSettings, open, twin};

/// How long the bus may take for each question.
const PATIENCE: Duration = Duration::from_secs(15);
/// The name under which the bus sees us.
const CLIENT_ID: &str = "quaymaster-doctor";

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let bus = &config.bus;
    if matches!(bus, Bus::Stdout) {
        let remedy = "give a kafka:// or nats:// bus where others are to read";
        return vec![Finding::limited("bus", "stdout: nothing is sent", remedy)];
    }
    if let Err(error) = ask(config, ManageTopics::Off).await {
        let remedy = "start it, or name another with `--bus`; look at its address, its port and the firewall";
        return vec![Finding::unwell("bus", error.text, remedy).with_code(error.code)];
    }
    let answers = format!("{bus} answers");
    let mut findings = vec![match bus.in_the_clear() {
        Some(why) => Finding::limited("bus", answers, why),
        None => Finding::well("bus", answers),
    }];
    if config.topics.manage == ManageTopics::Off {
        let found = "not looked at: topics.manage is `off`";
        findings.push(Finding::well("topics", found));
        return findings;
    }
    let topics = match ask(config, ManageTopics::Verify).await {
        Ok(()) => Finding::well("topics", "all are there and as needed"),
        Err(wrong) if wrong.is_of_topics && is_only_missing(config, &wrong.text) => {
            Finding::limited(
                "topics",
                "not all are there",
                "`quaymaster run` creates them, or `quaymaster topics create` now",
            )
        }
        Err(wrong) => {
            let remedy = "`quaymaster topics list` shows them, `quaymaster topics create` makes what is missing";
            Finding::unwell("topics", wrong.text, remedy).with_code(wrong.code)
        }
    };
    findings.push(topics);
    let rights = match bus {
        Bus::Kafka(access) => rights_on_kafka(config, access).await,
        Bus::Nats(access) => rights_on_nats(config, access).await,
        Bus::Stdout => Vec::new(),
    };
    let are_known = rights.is_empty();
    findings.extend(rights);
    findings.extend(look_for_another(config, are_known).await);
    findings
}

/// What the cluster does not let this user do with the topics. Nothing is found where it does not tell.
async fn rights_on_kafka(config: &Config, access: &KafkaAccess) -> Vec<Finding> {
    let used = &config.topics.used;
    let mut wanted = Vec::new();
    for topic in used {
        let name = config.topics.topic_name(*topic);
        wanted.push((name.clone(), Operation::Write));
        let is_read = match topic {
            Topic::Deltas | Topic::Status => true,
            Topic::Records | Topic::Pns => config.read_back,
            Topic::Processes | Topic::Ports => false,
        };
        if is_read {
            wanted.push((name, Operation::Read));
        }
    }
    let status = config.topics.topic_name(Topic::Status);
    let missing = rights::missing(access, CLIENT_ID, wanted).await;
    let missing = missing.unwrap_or_default().into_iter();
    let finding = |(topic, operation): (String, Operation)| {
        let found = format!(
            "kafka does not let this user do {} on the topic `{topic}`",
            operation.as_str()
        );
        let is_for_the_twin = operation == Operation::Read && topic == status;
        no_right(found, is_for_the_twin)
    };
    missing.map(finding).collect()
}

/// What the server does not let this user publish, and whether it may read its keys back. Nothing is found where it does
/// not tell.
async fn rights_on_nats(config: &Config, access: &NatsAccess) -> Vec<Finding> {
    let Ok(host_id) = crate::host::host_id(config.host_id.as_deref()) else {
        return Vec::new();
    };
    let mut sink = NatsSink::new(access, &config.topics, CLIENT_ID);
    let asking = tokio::time::timeout(PATIENCE, sink.missing_rights(&host_id, config.read_back));
    let missing = match asking.await {
        Ok(Ok(missing)) => missing,
        Ok(Err(_)) | Err(_) => return Vec::new(),
    };
    let missing = missing.into_iter();
    missing.map(|found| no_right(found, false)).collect()
}

fn no_right(found: String, can_do_without: bool) -> Finding {
    if can_do_without {
        let remedy = "grant it; without it no other collector with this host id is found";
        Finding::limited("rights", found, remedy)
    } else {
        let remedy = "grant it: docs/security.md has all that are needed";
        Finding::unwell("rights", found, remedy).with_code(EXIT_NO_PERMISSION)
    }
}

/// Whether another collector publishes with our host id. Nothing is found where it cannot be told, but for a right that is
/// missing, where no others are.
async fn look_for_another(config: &Config, tells_rights: bool) -> Option<Finding> {
    let host_id = crate::host::host_id(config.host_id.as_deref()).ok()?;
    let boot_id = ProcessTable::open(&config.procfs).ok()?.boot_id().ok()?;
    let mut sink = open(&config.bus, &config.topics, CLIENT_ID).ok()?;
    let statuses = tokio::time::timeout(PATIENCE, sink.statuses(&host_id));
    let statuses = match statuses.await.ok()? {
        Ok(statuses) => statuses,
        Err(error @ SinkError::Denied { .. }) if tells_rights => {
            return Some(no_right(chain(&error), false));
        }
        Err(_) => return None,
    };
    let now_ms = i64::try_from(crate::runtime::watch::now_ms()).unwrap_or(i64::MAX);
    Some(match twin::other(&statuses, &boot_id, now_ms) {
        None => Finding::well("host id", format!("no other collector has `{host_id}`")),
        Some(other) => Finding::unwell(
            "host id",
            format!(
                "another collector publishes with `{host_id}`: host `{}`, boot {}",
                other.host_name, other.boot_id
            ),
            "give each host its own with `--host-id`; after a crash of this host, look again in two minutes",
        ),
    })
}

/// What the bus has against us, and the exit code of a command that ends with it.
struct Wrong {
    is_of_topics: bool,
    text: String,
    code: u8,
}

async fn ask(config: &Config, manage: ManageTopics) -> Result<(), Wrong> {
    let topics = TopicSettings {
        manage,
        ..config.topics.clone()
    };
    let asking = async { open(&config.bus, &topics, CLIENT_ID)?.prepare().await };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let is_of_topics = matches!(error, SinkError::Misconfigured { .. });
            let failure = sink_failure(error);
            Err(Wrong {
                is_of_topics,
                text: failure.to_string(),
                code: failure.code,
            })
        }
        Err(_) => Err(Wrong {
            is_of_topics: false,
            text: format!(
                "{} does not answer within {} s",
                config.bus,
                PATIENCE.as_secs()
            ),
            code: EXIT_UNAVAILABLE,
        }),
    }
}

/// Whether a topic is missing that the daemon itself would create.
fn is_only_missing(config: &Config, text: &str) -> bool {
    config.topics.manage == ManageTopics::Create && text.contains("is not there")
}
