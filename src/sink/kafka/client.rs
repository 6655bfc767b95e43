//! librdkafka's producer as we set it up, and what it tells from its own threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _, ToBytes};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::statistics::Statistics;
use tokio::sync::mpsc;

use crate::sink::Position;
use crate::sink::access::{FileError, KafkaAccess, Tls, expose};

/// The same kind of line of librdkafka is logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Kinds of lines that are told apart, a bound on memory: librdkafka has some dozens.
const LOG_KINDS_MAX: usize = 128;

/// Most bytes in librdkafka's queue, in KiB. Beyond it the sender waits.
const QUEUE_KIB_MAX: &str = "65536";

/// Smallest batch that a producer is set to after batches were refused as too large, in bytes.
pub(crate) const BATCH_BYTES_MIN: u32 = 16 * 1024;

/// Largest batch, in bytes: librdkafka's own default, below the 1 MiB that brokers take by default.
pub(crate) const BATCH_BYTES_MAX: u32 = 1_000_000;

/// How long one poll of a producer lasts. What comes is told at once; but rdkafka spins through the last millisecond of each,
/// and a producer that is dropped waits for its end.
const POLL: Duration = Duration::from_millis(100);

/// The same of a producer that has nothing under way.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// How often a client counts its brokers, in milliseconds.
const STATISTICS_INTERVAL_MS: &str = "2000";

/// What librdkafka's threads tell the sender.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A message's end, under the ticket it was sent with.
    Delivered {
        ticket: u64,
        result: Result<Position, RDKafkaErrorCode>,
    },
    /// An error of the client as a whole.
    Client {
        code: Option<RDKafkaErrorCode>,
        reason: String,
    },
    /// The client knows no broker any more, and will reach none: see [`knows_no_broker`].
    Forsaken,
}

/// What is said of a client that knows no broker any more.
pub(crate) const FORSAKEN: &str = "the cluster named none of its brokers";

/// A producer, and the thread on which it is polled: what it tells comes from there.
pub(crate) struct Producer {
    base: Arc<BaseProducer<Context>>,
    is_over: Arc<AtomicBool>,
    polling: Option<JoinHandle<()>>,
}

impl Producer {
    fn start(base: BaseProducer<Context>) -> std::io::Result<Self> {
        let base = Arc::new(base);
        let is_over = Arc::new(AtomicBool::new(false));
        let (polled, is_ended) = (Arc::clone(&base), Arc::clone(&is_over));
        let polling = thread::Builder::new()
            .name("kafka-poll".to_owned())
            .spawn(move || {
                while !is_ended.load(Ordering::Relaxed) {
                    let is_idle = polled.in_flight_count() == 0;
                    polled.poll(if is_idle { IDLE_POLL } else { POLL });
                }
            })?;
        Ok(Self {
            base,
            is_over,
            polling: Some(polling),
        })
    }

    /// Hands a message over.
    ///
    /// # Errors
    /// When its queue is full, or it takes nothing any more.
    pub(crate) fn send<K: ToBytes + ?Sized, P: ToBytes + ?Sized>(
        &self,
        record: BaseRecord<'_, K, P, usize>,
    ) -> Result<(), KafkaError> {
        self.base.send(record).map_err(|(error, _)| error)
    }

    /// Why it takes nothing any more, if so: the code behind it, and librdkafka's words.
    pub(crate) fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.base.client().fatal_error()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(polling) = self.polling.take() {
            // One that ended abnormally has nothing more to tell.
            let _ = polling.join();
        }
    }
}

/// The settings that every client of ours has. Files with secrets are read at each call.
///
/// # Errors
/// Where such a file is of no use.
pub(crate) fn base_config(
    access: &KafkaAccess,
    client_id: &str,
) -> Result<ClientConfig, FileError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", access.servers.join(","))
        .set("client.id", client_id)
        .set("allow.auto.create.topics", "false")
        .set("socket.keepalive.enable", "true")
        // A broker that comes back is noticed within a second or two; librdkafka would wait 10.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in &access.librdkafka {
        config.set(name, value);
    }
    let protocol = match (&access.tls, &access.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &access.tls {
        set_tls(&mut config, tls)?;
    }
    if let Some(sasl) = &access.sasl {
        let password = sasl.password.read()?;
        config
            .set("sasl.mechanism", sasl.mechanism.as_str())
            .set("sasl.username", &sasl.username)
            .set("sasl.password", expose(&password));
    }
    Ok(config)
}

fn set_tls(config: &mut ClientConfig, tls: &Tls) -> Result<(), FileError> {
    // librdkafka's defaults, said aloud: a broker that is not who it says is refused.
    config
        .set("enable.ssl.certificate.verification", "true")
        .set("ssl.endpoint.identification.algorithm", "https");
    if let Some(ca) = &tls.ca {
        config.set("ssl.ca.location", ca.text());
    }
    if let Some(identity) = &tls.identity {
        config
            .set("ssl.certificate.location", identity.cert.text())
            .set("ssl.key.location", identity.key.text());
        if let Some(password) = &identity.key_password {
            config.set("ssl.key.password", expose(&password.read()?));
        }
    }
    Ok(())
}

/// Lets a client tell its statistics, by which [`knows_no_broker`] judges.
pub(crate) fn set_statistics(config: &mut ClientConfig) {
    config.set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
}

/// Whether a client has let go of all its brokers. A cluster whose only broker is fenced (it was just started, or its
/// heartbeats came too late) names topics and no broker; librdkafka then forgets all that it knew, those that it was
/// given too, and where it loses a race never connects again (confluentinc/librdkafka#5301, #5606). Another client does.
pub(crate) fn knows_no_broker(statistics: &Statistics) -> bool {
    let mut brokers = statistics.brokers.values();
    !brokers.any(|broker| matches!(broker.source.as_str(), "configured" | "learned"))
}

/// What a producer does when the broker refuses a message for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It dies rather than leave a hole that later messages could pass.
    Gapless,
    /// It goes on with those behind.
    Loose,
}

impl Order {
    fn gapless(self) -> &'static str {
        match self {
            Self::Gapless => "true",
            Self::Loose => "false",
        }
    }
}

/// Makes a producer and the receiver of its notices. It connects in the background.
///
/// # Errors
/// When librdkafka refuses a setting or cannot start its threads.
pub(crate) fn open_producer(
    base: &ClientConfig,
    batch_bytes: u32,
    order: Order,
) -> Result<(Producer, mpsc::UnboundedReceiver<Notice>), KafkaError> {
    let (notices, receiver) = mpsc::unbounded_channel();
    let mut config = base.clone();
    // Batches form by themselves while a request is on its way; an idle bus gets a message at once.
    set_unless_set(&mut config, ["linger.ms", "queue.buffering.max.ms"], "0");
    set_unless_set(
        &mut config,
        ["compression.type", "compression.codec"],
        "lz4",
    );
    config
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", order.gapless())
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", "0")
        // A topic that is deleted is told of within seconds; librdkafka would hope for 30.
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("batch.size", batch_bytes.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX);
    set_statistics(&mut config);
    let context = Context {
        notices: Some(notices),
        log: LogLimit::default(),
    };
    let base = BaseProducer::from_config_and_context(&config, context)?;
    let producer = Producer::start(base)
        .map_err(|error| KafkaError::ClientCreation(format!("no thread to poll it: {error}")))?;
    Ok((producer, receiver))
}

/// Sets a default of ours, where it is set by neither of its two names.
fn set_unless_set(config: &mut ClientConfig, names: [&str; 2], value: &str) {
    if names.iter().all(|name| config.get(name).is_none()) {
        config.set(names[0], value);
    }
}

/// Receives what librdkafka's threads say.
#[derive(Default)]
pub(crate) struct Context {
    /// Unbounded by type, bounded in fact: deliveries by the messages in flight, errors by the sender, which
    /// takes them as they come.
    notices: Option<mpsc::UnboundedSender<Notice>>,
    log: LogLimit,
}

impl Context {
    fn notify(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            // The sender is gone when the sink was stopped; nobody waits for this any more.
            let _ = notices.send(notice);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.notify(Notice::Client {
            code: error.rdkafka_error_code(),
            reason: reason.to_owned(),
        });
    }

    fn stats(&self, statistics: Statistics) {
        if knows_no_broker(&statistics) {
            self.notify(Notice::Forsaken);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let result = match result {
            Ok(message) => Ok(Position {
                partition: message.partition(),
                offset: message.offset(),
            }),
            Err((error, _)) => Err(error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        self.notify(Notice::Delivered {
            ticket: opaque as u64,
            result,
        });
    }
}

/// Whether it is told of each of our producers, whatever a person set: the guarantee that we ask for is called experimental.
fn is_of_our_own_setting(facility: &str, message: &str) -> bool {
    facility == "CONFWARN" && message.contains("property enable.gapless.guarantee is experimental")
}

/// Lets a line of each kind through once in [`LOG_INTERVAL`].
#[derive(Default)]
pub(crate) struct LogLimit {
    kinds: Mutex<BTreeMap<String, (Instant, u64)>>,
}

impl LogLimit {
    /// Passes on a line of librdkafka's.
    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if is_of_our_own_setting(facility, message) {
            tracing::debug!(facility, message, "librdkafka warns");
            return;
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => {
                if let Some(suppressed) = self.admit(facility, Instant::now()) {
                    tracing::warn!(facility, message, suppressed, "librdkafka warns");
                } else {
                    tracing::debug!(facility, message, "librdkafka warns");
                }
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, message, "librdkafka says");
            }
        }
    }

    /// How many lines of this kind were held back since the last one, if this one may pass.
    pub(crate) fn admit(&self, facility: &str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, suppressed)) = kinds.get_mut(facility) {
            if now.saturating_duration_since(*last) < LOG_INTERVAL {
                *suppressed += 1;
                return None;
            }
            let count = *suppressed;
            (*last, *suppressed) = (now, 0);
            return Some(count);
        }
        if kinds.len() >= LOG_KINDS_MAX {
            return None;
        }
        kinds.insert(facility.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_of_a_setting_that_is_ours_is_told_from_those_of_a_persons() {
        let told = "Configuration property enable.gapless.guarantee is experimental: When set";
        let persons = "Configuration property api.version.request is deprecated";
        assert!(is_of_our_own_setting("CONFWARN", told));
        assert!(!is_of_our_own_setting("CONFWARN", persons));
        assert!(!is_of_our_own_setting("FAIL", told));
    }

    #[test]
    fn a_repeated_line_passes_once_in_the_interval_and_counts_the_rest() {
        let limit = LogLimit::default();
        let start = Instant::now();
        assert_eq!(limit.admit("FAIL", start), Some(0));
        assert_eq!(limit.admit("FAIL", start), None);
        assert_eq!(limit.admit("ERROR", start), Some(0));
        assert_eq!(limit.admit("FAIL", start + LOG_INTERVAL), Some(1));
    }
}
