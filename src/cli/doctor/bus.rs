//! Whether the bus can be reached and has the topics that are needed. Creates nothing.

use std::time::Duration;

use super::Finding;
use crate::cli::chain;
use crate::config::Config;
use crate::sink::{Bus, ManageTopics, SinkError, TopicSettings, open};

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
        return vec![Finding::unwell("bus", error.text(), remedy)];
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
    findings.push(match ask(config, ManageTopics::Verify).await {
        Ok(()) => Finding::well("topics", "all are there and as needed"),
        Err(Wrong::Topics(text)) if is_only_missing(config, &text) => Finding::limited(
            "topics",
            "not all are there",
            "`quaymaster run` creates them, or `quaymaster topics create` now",
        ),
        Err(wrong) => {
            let remedy = "`quaymaster topics list` shows them, `quaymaster topics create` makes what is missing";
            Finding::unwell("topics", wrong.text(), remedy)
        }
    });
    findings
}

/// What the bus has against us.
enum Wrong {
    Topics(String),
    Away(String),
}

impl Wrong {
    fn text(self) -> String {
        match self {
            Self::Topics(text) | Self::Away(text) => text,
        }
    }
}

async fn ask(config: &Config, manage: ManageTopics) -> Result<(), Wrong> {
    let topics = TopicSettings {
        manage,
        ..config.topics.clone()
    };
    let asking = async { open(&config.bus, &topics, CLIENT_ID)?.prepare().await };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ SinkError::Misconfigured { .. })) => Err(Wrong::Topics(chain(&error))),
        Ok(Err(
            error @ (SinkError::Unavailable { .. }
            | SinkError::Denied { .. }
            | SinkError::Untrusted { .. }
            | SinkError::File(_)),
        )) => Err(Wrong::Away(chain(&error))),
        Err(_) => Err(Wrong::Away(format!(
            "{} does not answer within {} s",
            config.bus,
            PATIENCE.as_secs()
        ))),
    }
}

/// Whether a topic is missing that the daemon itself would create.
fn is_only_missing(config: &Config, text: &str) -> bool {
    config.topics.manage == ManageTopics::Create && text.contains("is not there")
}
