//! The shell for Kafka: one member of a consumer group, on a thread of its own.
//!
//! - [`session`] holds the clients; [`table`] reads the mapping topic, all of it in each member; [`watch`] hears of the group's
//!   partitions; [`offsets`] knows what may be committed; [`flight`] what the output does not have yet. Here is the order in
//!   which things happen.
//! - An offset is committed when the output (or the topic of the invalid ones) has acknowledged all events up to it. What goes
//!   wrong in between begins a new session from what was committed; the table stays.
//! - Members may come, go and be killed: what a member had not committed is another's then. It comes twice, never not at all.

mod flight;
mod offsets;
mod session;
mod stall;
mod table;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio_util::sync::CancellationToken;

use self::flight::{Envelope, Failure, Routes, To};
use self::offsets::Mark;
use self::session::{Session, is_refusal};
use self::table::TableReader;
use super::Spliced;
use super::joiner::{Action, Done, Incoming, Joiner};
use super::shell::stats::{Phase, Stats};
use super::shell::{Clock, DRAIN_GRACE, LOG_INTERVAL, SWEEP_INTERVAL, Setup, TELL_INTERVAL};
use crate::backoff::Backoff;
use crate::model::Topic;
use crate::sink::access::KafkaAccess;
use crate::sink::kafka::{BATCH_BYTES_MAX, BATCH_BYTES_MIN};

/// Messages of either topic that are taken before the other one has its turn.
const TURN_MAX: usize = 500;

/// How long a turn waits for the first event: a mapping that comes meanwhile is that much later.
const IDLE_WAIT: Duration = Duration::from_millis(5);

/// How long the filling waits for the next mapping before it looks whether to stop.
const FILL_WAIT: Duration = Duration::from_millis(100);

/// Without a mapping for this long, another reader fills if it can: see [`stall`].
const FILL_PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether all partitions are fetched still. One that is not is told by the third look.
const STALL_INTERVAL: Duration = Duration::from_secs(10);

/// How often offsets are committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// The first wait between two sessions, and the longest.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A session that has lasted this long was a good one.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// Joins until `stop`. It blocks: give it a thread.
///
/// # Errors
/// When the events' format cannot be read; a bus that is away is waited for.
pub fn run(
    setup: &Setup,
    access: &KafkaAccess,
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
        routes: Routes {
            input: setup.input.clone(),
            output: setup.output.clone(),
            invalid: setup.invalid.clone(),
            batch_bytes: BATCH_BYTES_MAX,
            stamps: true,
        },
        dropped: 0,
        held: None,
    };
    let Some(mut table) = enricher.fill() else {
        return Ok(());
    };
    let mut backoff = Backoff::new(RESTART_WAIT.0, RESTART_WAIT.1);
    loop {
        let began = Instant::now();
        let failure = match enricher.session(&mut table) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if began.elapsed() >= GOOD_SESSION {
            backoff.reset();
        }
        // What was under way is taken again from what was committed.
        enricher.joiner.forget(|_| false);
        enricher.held = None;
        let error = match failure {
            Failure::BatchTooLarge => {
                let smaller = enricher.routes.batch_bytes / 2;
                enricher.routes.batch_bytes = smaller.max(BATCH_BYTES_MIN);
                "the output takes smaller batches only".to_owned()
            }
            Failure::Timestamps => {
                enricher.routes.stamps = false;
                "the output does not take the input's timestamps".to_owned()
            }
            Failure::Bus(error) => error,
        };
        tracing::warn!(error, "begins anew from what was committed");
        stats.tell(|figures| {
            figures.restarts += 1;
            figures.error = error;
        });
        enricher.rest(backoff.next_wait());
        if stop.is_cancelled() {
            return Ok(());
        }
        if table.is_lost() {
            let Some(again) = enricher.fill() else {
                return Ok(());
            };
            table = again;
        }
    }
}

struct Enricher<'a> {
    setup: &'a Setup,
    access: &'a KafkaAccess,
    stats: &'a Stats,
    stop: &'a CancellationToken,
    clock: Clock,
    joiner: Joiner<Envelope>,
    routes: Routes,
    dropped: u64,
    /// What the producer had no room for.
    held: Option<Ready>,
}

impl Enricher<'_> {
    /// Reads the whole mapping topic. `None` where it was stopped meanwhile.
    fn fill(&mut self) -> Option<TableReader> {
        self.stats.tell(|figures| figures.phase = Phase::Filling);
        let began = Instant::now();
        let topic = self.mappings_topic();
        let mut reader = self.open_table(&topic)?;
        let mut heard_at = Instant::now();
        let mut done = Vec::new();
        while !reader.is_filled() {
            if self.stop.is_cancelled() {
                return None;
            }
            if reader.is_lost() {
                reader = self.open_table(&topic)?;
            }
            if heard_at.elapsed() >= FILL_PATIENCE {
                let other = self.open_table(&topic)?;
                if reader.waits_in_vain(&other, &topic) {
                    reader = other;
                }
                heard_at = Instant::now();
            }
            if self.follow(&mut reader, FILL_WAIT, &mut done) > 0 {
                heard_at = Instant::now();
            }
            self.tell();
        }
        let filled_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mappings = self.joiner.table_len();
        tracing::info!(topic, mappings, filled_ms, "the table is filled");
        self.stats.tell(|figures| figures.filled_ms = filled_ms);
        Some(reader)
    }

    /// Begins to read the mapping topic, as soon as that can be done. `None` where it was stopped meanwhile.
    fn open_table(&self, topic: &str) -> Option<TableReader> {
        let mut backoff = Backoff::new(RESTART_WAIT.0, RESTART_WAIT.1);
        let setup = self.setup;
        loop {
            match TableReader::open(self.access, &setup.client_id, &setup.group, topic) {
                Ok(reader) => return Some(reader),
                Err(error) => self.away(&format!("the topic `{topic}` cannot be read: {error}")),
            }
            self.rest(backoff.next_wait());
            if self.stop.is_cancelled() {
                return None;
            }
        }
    }

    /// Takes mappings. How many there were.
    fn follow(
        &mut self,
        table: &mut TableReader,
        patience: Duration,
        done: &mut Vec<Done<Envelope>>,
    ) -> usize {
        let now = self.clock.now();
        let joiner = &mut self.joiner;
        let read = table.read(TURN_MAX, patience, |key, value| {
            joiner.put(key, value, now, done);
        });
        let error = match read {
            Ok(count) => return count,
            Err(error) => error,
        };
        // Else it comes back by itself.
        if is_refusal(&error) {
            let topic = self.mappings_topic();
            let group = &self.setup.group;
            self.away(&format!(
                "the topic `{topic}` is not read by the group `{group}`: {error}"
            ));
        }
        tracing::debug!(%error, "the mapping topic is away");
        0
    }

    /// Joins until `stop` or a failure.
    fn session(&mut self, table: &mut TableReader) -> Result<(), Failure> {
        let broken = |error: KafkaError| Failure::Bus(error.to_string());
        let mut session =
            Session::open(self.setup, self.access, self.routes.clone()).map_err(broken)?;
        self.stats.tell(|figures| figures.phase = Phase::Live);
        let mut done = Vec::new();
        let (mut commit_at, mut sweep_at) = (Instant::now(), Instant::now() + SWEEP_INTERVAL);
        let (mut tell_at, mut log_at) = (Instant::now(), Instant::now() + LOG_INTERVAL);
        let mut stall_at = Instant::now() + STALL_INTERVAL;
        let mut drain_until: Option<Instant> = None;
        loop {
            self.stats.heartbeat.beat();
            let is_stopping = self.stop.is_cancelled();
            if is_stopping && drain_until.is_none() {
                self.stats.tell(|figures| figures.phase = Phase::Stopping);
                let grace = Duration::from_millis(self.setup.join.grace_ms);
                drain_until = Some(Instant::now() + grace + DRAIN_GRACE);
            }
            self.follow(table, Duration::ZERO, &mut done);
            if let Some(failure) = session.lost(table) {
                self.tell_session(&session);
                return Err(failure);
            }
            let is_stuck = self.held.is_some();
            let is_closed = is_stopping || is_stuck || session.flight().is_full();
            session.close_intake(is_closed).map_err(broken)?;
            self.take_events(&mut session, &mut done);
            self.joiner.tick(self.clock.now(), &mut done);
            if let Err(failure) = self.hand_over(&session, &mut done) {
                self.tell_session(&session);
                return Err(failure);
            }
            let now = Instant::now();
            if now >= stall_at {
                session.look(table, &self.mappings_topic());
                // It may have taken a moment.
                stall_at = Instant::now() + STALL_INTERVAL;
            }
            if now >= commit_at {
                session.commit(CommitMode::Async);
                commit_at = now + COMMIT_INTERVAL;
            }
            if now >= sweep_at {
                self.joiner.sweep(self.clock.now());
                sweep_at = now + SWEEP_INTERVAL;
            }
            if now >= tell_at {
                self.tell_session(&session);
                tell_at = now + TELL_INTERVAL;
            }
            if now >= log_at {
                self.stats.log();
                log_at = now + LOG_INTERVAL;
            }
            let is_drained = self.joiner.waiting().0 == 0
                && self.held.is_none()
                && session.flight().in_flight() == 0;
            if drain_until.is_some_and(|until| is_drained || now >= until) {
                session.commit(CommitMode::Sync);
                self.tell_session(&session);
                self.stats.log();
                return Ok(());
            }
        }
    }

    /// Takes a turn's events.
    fn take_events(&mut self, session: &mut Session, done: &mut Vec<Done<Envelope>>) {
        let mut patience = IDLE_WAIT;
        for _ in 0..TURN_MAX {
            // Partitions may come and go in here.
            let polled = session.consumer.poll(patience);
            let mut flight = session.flight();
            if flight.take_given_up() {
                self.joiner.forget(|envelope| flight.owns(envelope.mark));
            }
            match polled {
                None => return,
                Some(Ok(message)) => {
                    let mark = flight.begin(message.partition(), message.offset());
                    drop(flight);
                    session.is_refused = false;
                    self.joiner
                        .take(incoming(&message, mark), self.clock.now(), done);
                }
                Some(Err(error)) => {
                    drop(flight);
                    session.is_refused |= is_refusal(&error);
                    let (input, group) = (&self.setup.input, &self.setup.group);
                    self.away(&format!(
                        "the input `{input}` is not read by the group `{group}`: {error}"
                    ));
                    return;
                }
            }
            patience = Duration::ZERO;
        }
    }

    /// Hands what is done to the producer, and takes what the bus tells. Where the producer has no room, the rest stays
    /// `done` for the next turn.
    fn hand_over(
        &mut self,
        session: &Session,
        done: &mut Vec<Done<Envelope>>,
    ) -> Result<(), Failure> {
        let mut flight = session.flight();
        flight.drain();
        let mut rest = std::mem::take(done).into_iter();
        while flight.failure().is_none() {
            let Some(Ready {
                envelope,
                payload,
                to,
            }) = self.held.take().or_else(|| rest.next().map(Ready::of))
            else {
                break;
            };
            if !flight.owns(envelope.mark) {
                continue;
            }
            let Some(to) = to else {
                self.dropped += 1;
                flight.end(envelope.mark);
                continue;
            };
            if let Some((envelope, payload)) = flight.send(envelope, payload, to) {
                self.held = Some(Ready {
                    envelope,
                    payload,
                    to: Some(to),
                });
                break;
            }
        }
        done.extend(rest);
        match flight.failure() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    fn mappings_topic(&self) -> String {
        self.setup.topics.topic_name(Topic::Pns)
    }

    fn tell(&self) {
        self.stats.heartbeat.beat();
        let (waiting, waiting_bytes) = self.joiner.waiting();
        self.stats.tell(|figures| {
            figures.counts = *self.joiner.counts();
            figures.mappings = self.joiner.table_len();
            (figures.waiting, figures.waiting_bytes) = (waiting, waiting_bytes);
            figures.dropped = self.dropped;
        });
    }

    fn tell_session(&self, session: &Session) {
        self.tell();
        let (tally, in_flight) = {
            let mut flight = session.flight();
            (flight.take_tally(), flight.in_flight())
        };
        let lag = session.consumer.context().lag();
        self.stats.tell(|figures| {
            figures.sent += tally.sent;
            figures.aside += tally.aside;
            figures.unaltered += tally.unaltered;
            figures.rejected += tally.rejected;
            figures.in_flight = in_flight;
            figures.lag = lag;
            if tally.sent > 0 {
                figures.error.clear();
            }
        });
    }

    fn away(&self, error: &str) {
        let is_new = self.stats.figures().error != error;
        if is_new {
            tracing::warn!(error, "kafka is away");
        }
        self.stats
            .tell(|figures| error.clone_into(&mut figures.error));
    }

    /// Waits, unless it is stopped.
    fn rest(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while Instant::now() < until && !self.stop.is_cancelled() {
            self.stats.heartbeat.beat();
            std::thread::sleep(FILL_WAIT.min(wait));
        }
    }
}

/// What goes to the producer next; without a topic it is dropped.
struct Ready {
    envelope: Envelope,
    payload: Spliced,
    to: Option<To>,
}

impl Ready {
    fn of(Done { token, action }: Done<Envelope>) -> Self {
        let mut envelope = token;
        let (payload, to) = match action {
            Action::Send { payload, host } => {
                if envelope.key.is_none() {
                    envelope.key = host.map(|host| host.into_string().into_bytes());
                }
                (payload, Some(To::Output))
            }
            Action::Aside { payload, defect } => (
                Spliced::unaltered(&payload),
                Some(To::Aside(defect.as_str())),
            ),
            Action::Drop => (Spliced::unaltered(&[]), None),
        };
        Self {
            envelope,
            payload,
            to,
        }
    }
}

fn incoming<'m>(message: &'m BorrowedMessage<'_>, mark: Mark) -> Incoming<'m, Envelope> {
    let time_ms = message.timestamp().to_millis().filter(|ms| *ms > 0);
    Incoming {
        token: Envelope {
            mark,
            key: message.key().map(<[u8]>::to_vec),
            headers: message
                .headers()
                .map(rdkafka::message::BorrowedHeaders::detach),
            time_ms,
        },
        payload: message.payload().unwrap_or_default(),
        key: message.key().unwrap_or_default(),
        message_ms: time_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
    }
}
