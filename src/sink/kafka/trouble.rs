//! Why a cluster does not answer, where it is a matter of certificates or of passwords.
//!
//! A question to librdkafka ends with a transport error or a timeout alone; the reason is told to a producer's context,
//! and of a certificate not even there. So, after a question has failed, we look again in both ways.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::RDKafkaErrorCode as Code;

use super::client::{self, BATCH_BYTES_MAX, Notice};
use crate::sink::access::KafkaAccess;
use crate::sink::{SinkError, tls};

/// How long a producer is listened to for a reason.
const REASON_TIMEOUT: Duration = Duration::from_secs(3);

/// The error of a question that failed, made clearer where that can be. It takes some seconds, and may be dropped midway.
pub(super) async fn explain(
    access: &KafkaAccess,
    config: &ClientConfig,
    error: SinkError,
) -> SinkError {
    match &error {
        SinkError::Unavailable { .. } => {}
        SinkError::Misconfigured { .. }
        | SinkError::Denied { .. }
        | SinkError::Untrusted { .. }
        | SinkError::File(_) => return error,
    }
    if let Some(settings) = &access.tls {
        let (settings, servers) = (settings.clone(), access.servers.clone());
        let looking = tokio::task::spawn_blocking(move || {
            servers
                .iter()
                .find_map(|server| tls::why(&settings, server))
        });
        if let Ok(Some(message)) = looking.await {
            return SinkError::Untrusted { message };
        }
    }
    match reason(config).await {
        Some((code, reason)) => told(access, code, &reason).unwrap_or(error),
        None => error,
    }
}

/// What a producer is told first.
async fn reason(config: &ClientConfig) -> Option<(Code, String)> {
    let mut config = config.clone();
    // What it logs is what it tells us too; each attempt's line would not be the last one's.
    config.set_log_level(RDKafkaLogLevel::Critical);
    let (producer, mut notices) =
        client::open_producer(&config, BATCH_BYTES_MAX, client::Order::Gapless).ok()?;
    let listening = async {
        let mut last = None;
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Client {
                    code: Some(code),
                    reason,
                } => {
                    // That all are down is told after the reason why.
                    if code != Code::AllBrokersDown {
                        return Some((code, reason));
                    }
                    last = Some((code, reason));
                }
                Notice::Client { code: None, .. } | Notice::Delivered { .. } | Notice::Forsaken => {
                }
            }
        }
        last
    };
    let heard = tokio::time::timeout(REASON_TIMEOUT, listening).await;
    // Its threads are joined when it is dropped, which takes up to half a second.
    drop(tokio::task::spawn_blocking(move || drop(producer)));
    heard.ok().flatten()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the codes are librdkafka's and not exhaustive"
)]
fn told(access: &KafkaAccess, code: Code, reason: &str) -> Option<SinkError> {
    let servers = access.servers.join(",");
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            let remedy = match &access.sasl {
                Some(sasl) => format!(
                    "look at `sasl.username`, `sasl.mechanism` and `{}`",
                    sasl.password.origin()
                ),
                None => "name a user with `sasl.username`".to_owned(),
            };
            Some(SinkError::Denied {
                message: format!("kafka at {servers} refuses the login: {remedy}: {reason}"),
            })
        }
        Code::SSL => Some(SinkError::Untrusted {
            message: format!("TLS to kafka at {servers} fails: {reason}"),
        }),
        _ => Some(SinkError::Unavailable {
            message: format!("kafka at {servers} does not answer"),
            source: Some(reason.into()),
        }),
    }
}
