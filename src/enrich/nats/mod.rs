//! The shell for NATS: a durable pull consumer on the events' stream, and an ordered one on the mappings' bucket.
//!
//! - [`mod@deliver`] brings one event into the output. Here is the order in which things happen.
//! - An event is acknowledged to its stream when the output's stream has it. What is not acknowledged is given to another member,
//!   or to this one again, after the consumer's `ack_wait`.
//! - Members of one durable consumer share the events one by one: unlike on Kafka, nothing keeps those of one namespace together, so that
//!   there is no order between members.

mod deliver;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::{self, OrderedConfig};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Message};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use self::deliver::{Delivered, Delivery, Outcome, deliver};
use super::Spliced;
use super::joiner::{Action, Done, Incoming, Joiner};
use super::shell::stats::{Phase, Stats};
use super::shell::{Clock, DRAIN_GRACE, LOG_INTERVAL, SWEEP_INTERVAL, Setup, TELL_INTERVAL};
use super::table::TableKey;
use crate::backoff::Backoff;
use crate::model::Topic;
use crate::sink::access::NatsAccess;
use crate::sink::nats::{Connection, Naming, NatsSink, token_text};
use crate::sink::{ManageTopics, RETENTION, Sink as _, SinkError};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Most events under way.
const IN_FLIGHT_MAX: usize = 4_096;

/// How long an event may be under way besides its grace before another member gets it.
const ACK_WAIT: Duration = Duration::from_secs(60);

/// Events that the server hands out before it awaits acknowledgements, besides those that may wait for their mapping.
const ACK_PENDING: usize = 10_000;

/// Messages of a turn.
const PULL_MAX: usize = 500;

/// The server tells by this interval that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the server keeps a pull open.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// The first wait between two sessions, and the longest.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often what waits is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Time for the next message of a bucket that is being read for the first time.
const FILL_TIMEOUT: Duration = Duration::from_secs(15);

/// An event's own: how it is acknowledged, and its id in the output.
struct Token {
    acker: Acker,
    headers: Option<async_nats::HeaderMap>,
    id: String,
}

type Deliveries = FuturesUnordered<BoxFuture<'static, Delivered<Acker>>>;

/// Joins until `stop`.
///
/// # Errors
/// When a setting is wrong; a server that is away is waited for.
pub async fn run(
    setup: &Setup,
    access: &NatsAccess,
    stats: &Arc<Stats>,
    stop: &CancellationToken,
) -> Result<(), String> {
    let mut enricher = Enricher {
        setup,
        access,
        stats,
        stop,
        clock: Clock::start(),
        joiner: Joiner::new(setup.join.clone(), setup.reader()?),
        dropped: 0,
    };
    let mut backoff = Backoff::new(RESTART_WAIT.0, RESTART_WAIT.1);
    loop {
        let error = match enricher.session().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let was_live = stats.figures().phase == Phase::Live;
        if was_live {
            backoff.reset();
        }
        // What was under way is handed out again.
        enricher.joiner.forget(|_| false);
        if let Some(SinkError::Misconfigured { message }) = error.downcast_ref::<SinkError>() {
            return Err(message.clone());
        }
        let error = crate::telemetry::chain(&*error);
        tracing::warn!(error, "nats is away, or has no such streams");
        stats.heartbeat.beat();
        stats.tell(|figures| {
            figures.restarts += u64::from(was_live);
            figures.phase = Phase::Starting;
            figures.error = error;
        });
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

struct Enricher<'a> {
    setup: &'a Setup,
    access: &'a NatsAccess,
    stats: &'a Stats,
    stop: &'a CancellationToken,
    clock: Clock,
    joiner: Joiner<Token>,
    dropped: u64,
}

impl Enricher<'_> {
    async fn session(&mut self) -> Result<(), BoxError> {
        let setup = self.setup;
        let opening = async {
            let mut sink = NatsSink::new(self.access, &setup.topics, &setup.client_id);
            sink.prepare().await?;
            let connection = Connection::open(self.access, &setup.client_id).await?;
            ensure_output(&connection, setup, &setup.output).await?;
            if setup.join.on_invalid == super::joiner::OnInvalid::Topic {
                ensure_output(&connection, setup, &setup.invalid).await?;
            }
            Ok::<_, BoxError>(connection)
        };
        let connection = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            opened = opening => opened?,
        };
        let mut done = Vec::new();
        self.stats.tell(|figures| figures.phase = Phase::Filling);
        let began = Instant::now();
        let table = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            filled = fill(&connection, setup, &mut self.joiner, self.clock) => filled?,
        };
        let filled_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mappings = self.joiner.table_len();
        tracing::info!(mappings, filled_ms, "the table is filled");
        let events = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            events = events(&connection, setup) => events?,
        };
        self.stats.tell(|figures| {
            figures.phase = Phase::Live;
            figures.filled_ms = filled_ms;
            figures.error.clear();
        });
        done.clear();
        self.join(&connection, table, events, done).await
    }

    async fn join(
        &mut self,
        connection: &Connection,
        mut table: pull::Ordered,
        mut events: pull::Stream,
        mut done: Vec<Done<Token>>,
    ) -> Result<(), BoxError> {
        let bucket = bucket_start(self.setup);
        let stop = self.stop.clone();
        let mut deliveries = Deliveries::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut sweep_at, mut log_at) = (
            Instant::now() + SWEEP_INTERVAL,
            Instant::now() + LOG_INTERVAL,
        );
        let mut tell_at = Instant::now();
        let mut drain_until: Option<Instant> = None;
        loop {
            let is_open = drain_until.is_none() && deliveries.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if drain_until.is_none() => {
                    self.stats.tell(|figures| figures.phase = Phase::Stopping);
                    let grace = Duration::from_millis(self.setup.join.grace_ms);
                    drain_until = Some(Instant::now() + grace + DRAIN_GRACE);
                }
                Some(delivered) = deliveries.next(), if !deliveries.is_empty() => {
                    if before_the_end(&stop, self.delivered(delivered)).await.is_none() {
                        return Ok(());
                    }
                }
                message = table.next() => {
                    let message = message.ok_or("the mappings' consumer has ended")??;
                    put(&mut self.joiner, &bucket, &message, self.clock, &mut done);
                }
                message = events.next(), if is_open => {
                    let message = message.ok_or("the events' consumer has ended")??;
                    self.take(message, &mut done)?;
                }
                _ = tick.tick() => {}
            }
            self.joiner.tick(self.clock.now(), &mut done);
            for one in done.drain(..) {
                let handed = self.hand_over(&connection.jetstream, one, &deliveries);
                if before_the_end(&stop, handed).await.is_none() {
                    return Ok(());
                }
            }
            self.stats.heartbeat.beat();
            let now = Instant::now();
            if now >= sweep_at {
                self.joiner.sweep(self.clock.now());
                sweep_at = now + SWEEP_INTERVAL;
            }
            if now >= tell_at {
                self.tell(deliveries.len());
                tell_at = now + TELL_INTERVAL;
            }
            if now >= log_at {
                self.stats.log();
                log_at = now + LOG_INTERVAL;
            }
            let is_drained = self.joiner.waiting().0 == 0 && deliveries.is_empty();
            if drain_until.is_some_and(|until| is_drained || now >= until) {
                self.tell(deliveries.len());
                self.stats.log();
                // The last acknowledgements are on their way.
                return match before_the_end(&stop, connection.client.flush()).await {
                    Some(flushed) => flushed.map_err(Into::into),
                    None => Ok(()),
                };
            }
        }
    }

    fn take(&mut self, message: Message, done: &mut Vec<Done<Token>>) -> Result<(), BoxError> {
        let (id, published_ms, pending) = {
            let info = message.info()?;
            let id = format!(
                "{}:{}:{}",
                self.setup.group, info.stream, info.stream_sequence
            );
            let published_ns = info.published.unix_timestamp_nanos();
            let published_ms = u64::try_from(published_ns / 1_000_000).unwrap_or(0);
            (id, published_ms, info.pending)
        };
        self.stats.tell(|figures| figures.lag = Some(pending));
        let key = key_of(&message.subject, &self.setup.input);
        let (message, acker) = message.split();
        let incoming = Incoming {
            token: Token {
                acker,
                headers: message.headers,
                id,
            },
            payload: &message.payload,
            key: key.as_bytes(),
            message_ms: published_ms,
        };
        self.joiner.take(incoming, self.clock.now(), done);
        Ok(())
    }

    async fn hand_over(
        &mut self,
        jetstream: &jetstream::Context,
        done: Done<Token>,
        deliveries: &Deliveries,
    ) {
        let Done { token, action } = done;
        let (payload, subject, reason) = match action {
            Action::Send { payload, .. } => (payload, &self.setup.output, None),
            Action::Aside { payload, defect } => (
                Spliced::unaltered(&payload),
                &self.setup.invalid,
                Some(defect.as_str()),
            ),
            Action::Drop => {
                self.dropped += 1;
                acknowledge(&token.acker).await;
                return;
            }
        };
        let delivery = Delivery {
            jetstream: jetstream.clone(),
            subject: subject.clone(),
            id: token.id,
            headers: token.headers,
            reason,
            payload,
            stop: self.stop.clone(),
        };
        // The first attempt is made here, so that they go out in order.
        let first = delivery.attempt().await;
        deliveries.push(Box::pin(deliver(delivery, first, token.acker)));
    }

    async fn delivered(&self, delivered: Delivered<Acker>) {
        self.stats.tell(|figures| match delivered.outcome {
            Outcome::Sent { is_aside: false } => figures.sent += 1,
            Outcome::Sent { is_aside: true } => figures.aside += 1,
            Outcome::Unaltered => {
                figures.sent += 1;
                figures.unaltered += 1;
            }
            Outcome::Rejected => figures.rejected += 1,
            Outcome::Stopped => {}
        });
        match delivered.outcome {
            Outcome::Sent { .. } | Outcome::Unaltered | Outcome::Rejected => {
                acknowledge(&delivered.token).await;
            }
            Outcome::Stopped => {}
        }
    }

    fn tell(&self, in_flight: usize) {
        let (waiting, waiting_bytes) = self.joiner.waiting();
        self.stats.tell(|figures| {
            figures.counts = *self.joiner.counts();
            figures.mappings = self.joiner.table_len();
            (figures.waiting, figures.waiting_bytes) = (waiting, waiting_bytes);
            figures.in_flight = in_flight;
            figures.dropped = self.dropped;
        });
    }
}

/// Waits for what a server that is away lets nobody have, but not for ever once we are to stop: the client takes nothing
/// while it looks for a server, and what was not acknowledged is handed out again.
async fn before_the_end<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let end = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_GRACE).await;
    };
    tokio::select! {
        done = work => Some(done),
        () = end => None,
    }
}

/// One that is lost is handed out again: it comes twice then.
async fn acknowledge(acker: &Acker) {
    if let Err(error) = acker.ack().await {
        tracing::debug!(%error, "an event is not acknowledged");
    }
}

/// What the subjects of the bucket's keys begin with.
fn bucket_start(setup: &Setup) -> String {
    let subjects = Naming::new(&setup.topics).subjects(Topic::Pns);
    subjects.trim_end_matches('>').to_owned()
}

/// Reads the bucket whole, and goes on from there.
async fn fill(
    connection: &Connection,
    setup: &Setup,
    joiner: &mut Joiner<Token>,
    clock: Clock,
) -> Result<pull::Ordered, BoxError> {
    let naming = Naming::new(&setup.topics);
    let bucket = bucket_start(setup);
    let stream = connection
        .jetstream
        .get_stream(naming.stream(Topic::Pns))
        .await?;
    let is_empty = stream.cached_info().state.messages == 0;
    let consumer = stream
        .create_consumer(OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: naming.subjects(Topic::Pns),
            ..OrderedConfig::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    // Nothing waits for a mapping yet.
    let mut done = Vec::new();
    let mut is_read = is_empty;
    while !is_read {
        let message = tokio::time::timeout(FILL_TIMEOUT, messages.next()).await?;
        let message = message.ok_or("the mappings' consumer has ended")??;
        put(joiner, &bucket, &message, clock, &mut done);
        is_read = message.info()?.pending == 0;
    }
    Ok(messages)
}

fn put(
    joiner: &mut Joiner<Token>,
    bucket: &str,
    message: &Message,
    clock: Clock,
    done: &mut Vec<Done<Token>>,
) {
    let key = message.subject.strip_prefix(bucket).and_then(|key| {
        let (host, inode) = key.rsplit_once('.')?;
        TableKey::of(token_text(host)?.into(), inode)
    });
    let headers = message.headers.as_ref();
    let is_marker = headers.is_some_and(|headers| headers.get("KV-Operation").is_some());
    let value = (!is_marker).then_some(&*message.payload);
    joiner.put(key.as_ref(), value, clock.now(), done);
}

/// The durable consumer's messages.
async fn events(connection: &Connection, setup: &Setup) -> Result<pull::Stream, BoxError> {
    let jetstream = &connection.jetstream;
    let name = jetstream.stream_by_subject(setup.input.as_str()).await?;
    let stream = jetstream.get_stream(&name).await?;
    let grace = Duration::from_millis(setup.join.grace_ms);
    let durable = setup.group.replace('.', "_");
    let pending = ACK_PENDING.saturating_add(setup.join.waiting_max);
    let config = pull::Config {
        durable_name: Some(durable.clone()),
        filter_subject: setup.input.clone(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: grace + ACK_WAIT,
        max_ack_pending: i64::try_from(pending).unwrap_or(i64::MAX),
        max_deliver: -1,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(&durable, config).await?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(PULL_MAX)
        .heartbeat(HEARTBEAT)
        .expires(PULL_EXPIRES)
        .messages()
        .await?;
    Ok(messages)
}

/// Creates a stream for a subject that none listens to, or says that there is none.
async fn ensure_output(
    connection: &Connection,
    setup: &Setup,
    subject: &str,
) -> Result<(), BoxError> {
    let jetstream = &connection.jetstream;
    if setup.topics.manage == ManageTopics::Off
        || jetstream.stream_by_subject(subject).await.is_ok()
    {
        return Ok(());
    }
    let name = subject.replace('.', "_").to_uppercase();
    if setup.topics.manage == ManageTopics::Verify {
        let message = format!(
            "no stream listens to `{subject}`: create it, or set topics.manage = \"create\""
        );
        return Err(SinkError::Misconfigured { message }.into());
    }
    let config = Config {
        name,
        subjects: vec![subject.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_age: RETENTION,
        num_replicas: usize::try_from(setup.topics.replication)
            .unwrap_or(1)
            .max(1),
        ..Config::default()
    };
    jetstream.create_stream(config).await?;
    Ok(())
}

/// What stands for the key of a message: the tokens behind the fixed part of the input's subject, decoded, with `/` between.
fn key_of(subject: &str, input: &str) -> String {
    let fixed = input
        .split('.')
        .take_while(|token| !matches!(*token, "*" | ">"));
    let tokens = subject.split('.').skip(fixed.count());
    let texts: Vec<_> = tokens
        .map(|token| token_text(token).unwrap_or_else(|| token.to_owned()))
        .collect();
    texts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_what_the_inputs_subject_leaves_open() {
        for (subject, input, key) in [
            (
                "quaymaster.processes.h1.7",
                "quaymaster.processes.>",
                "h1/7",
            ),
            (
                "quaymaster.processes.a=2Eb.7",
                "quaymaster.processes.*.*",
                "a.b/7",
            ),
            ("events", "events", ""),
        ] {
            assert_eq!(key_of(subject, input), key);
        }
    }
}
