//! Which of librdkafka's settings may be passed through: all but those on which Quaymaster's promises rest, those that
//! have a setting of their own here, and those that would put a secret into the configuration file or run foreign code.

use rdkafka::error::KafkaError;

use super::client;
use crate::sink::SinkError;
use crate::sink::access::KafkaAccess;

/// Settings that are ours, and why.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &[
            "acks",
            "request.required.acks",
            "enable.idempotence",
            "enable.gapless.guarantee",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "retries",
            "message.send.max.retries",
            "message.timeout.ms",
            "delivery.timeout.ms",
            "transactional.id",
            "transaction.timeout.ms",
            "delivery.report.only.error",
            "queuing.strategy",
        ],
        "what was promised of order and of loss rests on it",
    ),
    (
        &["partitioner", "partitioner_cb", "msg_order_cmp"],
        "who joins the topics relies on where a key goes",
    ),
    (
        &["allow.auto.create.topics"],
        "topics that a broker makes by itself would have the wrong cleanup policy",
    ),
    (
        &["batch.size", "queue.buffering.max.kbytes"],
        "it is changed while running, as the broker and the memory ask for",
    ),
    (&["bootstrap.servers", "metadata.broker.list"], "use `bus`"),
    (&["client.id"], "it is made of the host id"),
    (
        &["security.protocol"],
        "it follows from `tls.enabled` and `sasl.mechanism`",
    ),
    (
        &[
            "enable.ssl.certificate.verification",
            "ssl.endpoint.identification.algorithm",
        ],
        "a broker whose certificate is not checked could be anybody; use `tls.ca_file`",
    ),
    (
        &["ssl.ca.location", "ssl.ca.pem", "ssl_ca"],
        "use `tls.ca_file`",
    ),
    (
        &[
            "ssl.certificate.location",
            "ssl.certificate.pem",
            "ssl_certificate",
        ],
        "use `tls.cert_file`",
    ),
    (
        &["ssl.key.location", "ssl.key.pem", "ssl_key"],
        "use `tls.key_file`",
    ),
    (&["ssl.key.password"], "use `tls.key_password_file`"),
    (
        &["sasl.mechanism", "sasl.mechanisms"],
        "use `sasl.mechanism`",
    ),
    (&["sasl.username"], "use `sasl.username`"),
    (&["sasl.password"], "use `sasl.password_file`"),
    (
        &[
            "plugin.library.paths",
            "ssl.engine.location",
            "ssl.providers",
            "sasl.kerberos.kinit.cmd",
        ],
        "it would run foreign code",
    ),
    (&["debug", "log_level"], "use `log.filter`"),
    (
        &[
            "group.id",
            "enable.auto.commit",
            "auto.offset.reset",
            "isolation.level",
            "statistics.interval.ms",
        ],
        "it is set where it is needed",
    ),
];

/// Why a setting of librdkafka is refused; `None` where it may be passed through.
pub fn refusal(name: &str) -> Option<&'static str> {
    let listed = REFUSED
        .iter()
        .find(|(names, _)| names.contains(&name))
        .map(|(_, why)| *why);
    let is_callback = name.ends_with("_cb") || name.ends_with("opaque");
    let is_secret = name.contains("password") || name.contains("secret") || name.ends_with(".pem");
    listed
        .or(is_callback.then_some("it is no setting for people"))
        .or(is_secret.then_some("a secret must not stand in the configuration"))
}

/// Asks librdkafka whether it takes the settings; connects to nothing.
///
/// # Errors
/// [`SinkError::Misconfigured`] names the setting and what librdkafka says of it, [`SinkError::File`] a file with a
/// secret that is of no use.
pub(in crate::sink) fn check(access: &KafkaAccess) -> Result<(), SinkError> {
    let config = client::base_config(access, "quaymaster")?;
    config.create_native_config().map(drop).map_err(|error| {
        let message = if let KafkaError::ClientConfig(_, why, name, _) = error {
            // The value is left out: it could be a secret.
            format!("`librdkafka.{name}` is not valid: librdkafka says: {why}")
        } else {
            format!("librdkafka refuses its settings: {error}")
        };
        SinkError::Misconfigured { message }
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::*;

    fn checked(name: &str, value: &str) -> Result<(), String> {
        let access = KafkaAccess {
            servers: vec!["localhost:9092".to_owned()],
            librdkafka: [(name.to_owned(), value.to_owned())].into(),
            ..KafkaAccess::default()
        };
        check(&access).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_promises_rest_on_is_refused_and_the_rest_passes() {
        for name in [
            "acks",
            "enable.gapless.guarantee",
            "partitioner",
            "message.timeout.ms",
            "sasl.password",
            "ssl.keystore.password",
            "sasl.oauthbearer.client.secret",
            "log_cb",
            "ssl.endpoint.identification.algorithm",
        ] {
            assert!(refusal(name).is_some(), "{name}");
        }
        for name in [
            "linger.ms",
            "compression.type",
            "ssl.cipher.suites",
            "socket.timeout.ms",
        ] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }

    #[test]
    fn what_librdkafka_does_not_take_is_named_without_its_value() {
        assert_eq!(checked("linger.ms", "20"), Ok(()));
        for (name, value) in [("lingr.ms", "20"), ("linger.ms", "hunter2")] {
            let error = checked(name, value).err().unwrap_or_default();
            assert!(error.contains(&format!("`librdkafka.{name}`")), "{error}");
            assert!(!error.contains("`hunter2`"), "{error}");
        }
    }

    #[test]
    fn every_setting_that_is_refused_is_one_of_librdkafka() {
        let known = |name: &str| {
            let mut config = ClientConfig::new();
            config.set(name, "");
            match config.create_native_config() {
                Ok(_) => true,
                Err(error) => !error.to_string().contains("No such configuration property"),
            }
        };
        assert!(!known("no.such.setting"));
        for (names, _) in REFUSED {
            for name in *names {
                assert!(known(name), "{name}");
            }
        }
    }
}
