//! What is sent when, and what becomes of it.
//!
//! Invariants:
//! - Every message that came in is in `unreported`, under a ticket that grows, until it is acknowledged or
//!   rejected. Tickets below `cursor` are with the producer, the others wait.
//! - After any failed delivery nothing more goes to that producer: it is closed, its late acknowledgements are
//!   taken, and all that is unreported goes to a new one in the order of the tickets. A message can so arrive
//!   twice, and never before an earlier one of its partition that was not rejected.
//! - After the cluster was away, or a producer failed for another reason than a message, no producer is made before
//!   the last acknowledged delta is read back ([`mod@super::check`]). That a broker alone was away is not such a case:
//!   a leader that has less than was acknowledged refuses the producer's sequence numbers, which is fatal to it.
//! - On an idle bus a record waits for the few messages before it, so that its delta is acknowledged first. With more than
//!   [`FEW`] nothing waits for a message of another topic.
//! - A message is rejected only when it was alone on its way. Those of a batch that was refused become
//!   *suspects*, which are sent one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::Checker;
use super::client::{self, BATCH_BYTES_MAX, BATCH_BYTES_MIN, LogLimit, Notice, Producer};
use super::errors::{Class, classify, denied_write, is_swept_out};
use super::stamps::{Stamp, Stamps};
use crate::backoff::Backoff;
use crate::model::Topic;
use crate::sink::report::{Abandoned, HealthTeller, Reporter};
use crate::sink::{
    Checked, Ended, IN_FLIGHT_MAX, Landmark, Loss, Outcome, Outgoing, Position, SinkError, Verdict,
};
use crate::sink::{cloudevents, encoded};
use crate::telemetry::chain;
use crate::wire;
use crate::wire::encoding::Encoding;

/// The waits before another producer is made.
const REBUILD_FIRST: Duration = Duration::from_millis(50);
/// The longest of them.
const REBUILD_LONGEST: Duration = Duration::from_secs(5);

/// The wait before a full queue is tried again.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(5);

/// Up to how many unreported messages a record waits for those before it: more are no idle bus, and go without a wait.
const FEW: usize = 4;

/// How long a record waits for them at most: a topic may take nothing. Looked at with every [`TICK`].
const RECORD_WAIT_MAX: Duration = TICK;

/// With messages of a topic on their way and none of it acknowledged for this long, the bus counts as down.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// How often that is looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long closing a producer may take: librdkafka itself waits for half a second.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Notices taken at once.
const NOTICES_MAX: usize = 1_024;

/// The one sending task.
pub(super) struct Sender {
    checker: Checker,
    /// The last acknowledged delta.
    last: Option<Landmark>,
    /// The cluster that it is of.
    bus: Arc<str>,
    /// Whether the last acknowledged delta is to be read back before the next producer is made.
    must_check: bool,
    reporter: Reporter,
    health: HealthTeller,
    live: Option<Live>,
    unreported: BTreeMap<u64, Pending>,
    next_ticket: u64,
    cursor: u64,
    in_flight: usize,
    alone: Option<u64>,
    /// Why the producer must be closed.
    broken: Option<String>,
    /// Whether that is the bus's fault, rather than a message's.
    bus_failed: bool,
    full_until: Option<Instant>,
    /// The newest status message, while an older one is unreported.
    held_status: Option<Outgoing>,
    stamps: Stamps,
    batch_bytes: u32,
    backoff: Backoff,
    /// When a message of a topic had its end last.
    progress: BTreeMap<Topic, Instant>,
    /// A topic of which messages are on their way, and none is acknowledged.
    stuck: Option<Topic>,
    /// When that is looked at next.
    look_at: Instant,
    last_error: String,
    log: LogLimit,
}

struct Live {
    producer: Producer,
    /// Of the certificates and secrets that it was made with.
    fingerprint: u64,
    notices: mpsc::UnboundedReceiver<Notice>,
    /// Whether it ever had a message acknowledged.
    has_delivered: bool,
}

struct Pending {
    message: Outgoing,
    /// When a producer was given it last.
    sent_at: Option<Instant>,
    stamp: Option<Stamp>,
    suspect: bool,
    /// How often it was refused for its time while alone.
    refusals: u32,
    /// Why the delta was refused in whose place this gap is.
    replaced: Option<String>,
}

impl Sender {
    pub(super) fn new(
        checker: Checker,
        last: Option<Landmark>,
        bus: Arc<str>,
        reporter: Reporter,
        health: HealthTeller,
    ) -> Self {
        Self {
            checker,
            last,
            bus,
            must_check: false,
            reporter,
            health,
            live: None,
            unreported: BTreeMap::new(),
            // librdkafka gives the ticket back as a pointer; 0 would be a null one.
            next_ticket: 1,
            cursor: 1,
            in_flight: 0,
            alone: None,
            broken: None,
            bus_failed: false,
            full_until: None,
            held_status: None,
            stamps: Stamps::default(),
            batch_bytes: BATCH_BYTES_MAX,
            backoff: Backoff::new(REBUILD_FIRST, REBUILD_LONGEST),
            progress: BTreeMap::new(),
            stuck: None,
            look_at: Instant::now() + TICK,
            last_error: String::new(),
            log: LogLimit::default(),
        }
    }

    /// Sends until `requests` is closed and all is reported, `stop` is cancelled, the receiver of the reports is
    /// gone, or acknowledged data is.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        let mut open = true;
        let mut ended = Ended::Finished;
        let mut intake = Vec::new();
        let mut notices = Vec::new();
        loop {
            if let Some(reason) = self.broken.take() {
                self.rebuild(&reason, &stop).await;
            }
            if stop.is_cancelled() {
                break;
            }
            if let Err(Abandoned) = self.reporter.offer() {
                break;
            }
            let nothing_comes = !open || (requests.is_closed() && requests.is_empty());
            if nothing_comes && self.unreported.is_empty() && self.reporter.waiting() == 0 {
                break;
            }
            if self.must_check {
                if let Some(loss) = self.check(&stop).await {
                    // Without a receiver there is nobody to tell of the loss either.
                    let _ = self.reporter.hand_over_all(&stop).await;
                    ended = Ended::BusLostData(loss);
                    break;
                }
                continue;
            }
            if self.look_at <= Instant::now() {
                self.look_at = Instant::now() + TICK;
                self.look_if_stuck();
            }
            self.ensure_producer();
            self.pump();
            if let Err(Abandoned) = self.reporter.offer() {
                break;
            }
            if self.broken.is_some() {
                continue;
            }
            let room =
                IN_FLIGHT_MAX.saturating_sub(self.unreported.len() + self.reporter.waiting());
            let wake_at = self.full_until.unwrap_or(self.look_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = next_notices(&mut self.live, &mut notices) => {}
                handed = self.reporter.hand_over_one() => if let Err(Abandoned) = handed {
                    break;
                },
                count = requests.recv_many(&mut intake, room), if open && room > 0 => {
                    open = count > 0;
                }
                () = tokio::time::sleep_until(wake_at), if !self.unreported.is_empty() => {
                    self.full_until = None;
                }
            }
            for notice in notices.drain(..) {
                self.handle_notice(notice);
            }
            for message in intake.drain(..) {
                self.take_in(message);
            }
        }
        if let Some(live) = self.live.take() {
            // Nobody waits for it: the program may be ending.
            drop(discard(live.producer));
        }
        Ok(ended)
    }

    /// Reads the last acknowledged delta back, and waits a little where the cluster cannot tell. What was lost, if
    /// it is; else `must_check` tells whether it is to be looked again.
    async fn check(&mut self, stop: &CancellationToken) -> Option<Loss> {
        let checked = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            checked = self.checker.create_and_check(self.last.as_ref()) => checked,
        };
        let error = match checked {
            Ok(Checked { bus, verdict }) => match verdict {
                Verdict::Lost(loss) => return Some(loss),
                Verdict::Kept if !self.bus.is_empty() && self.bus != bus => {
                    let reason = format!("the cluster is `{bus}`, and it was `{}`", self.bus);
                    return Some(Loss {
                        reason,
                        newest: None,
                    });
                }
                Verdict::Kept => {
                    self.bus = bus;
                    self.must_check = false;
                    return None;
                }
            },
            Err(error) => error,
        };
        self.health.down(&chain(&error));
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.backoff.next_wait()) => {}
        }
        None
    }

    fn take_in(&mut self, message: Outgoing) {
        if message.row == 0 && self.unreported.values().any(|other| other.message.row == 0) {
            self.held_status = Some(message);
            return;
        }
        let pending = Pending {
            message,
            sent_at: None,
            stamp: None,
            suspect: false,
            refusals: 0,
            replaced: None,
        };
        self.unreported.insert(self.next_ticket, pending);
        self.next_ticket += 1;
    }

    /// Hands to the producer what it may have now.
    fn pump(&mut self) {
        let now_ms = unix_now_ms();
        while self.broken.is_none()
            && self.alone.is_none()
            && self.full_until.is_none()
            && self.send_next(now_ms)
        {}
    }

    /// Hands over the next message; `false` where there is none, or it has to wait for others.
    fn send_next(&mut self, now_ms: i64) -> bool {
        let Some(live) = &self.live else { return false };
        let lets_records_wait = self.lets_records_wait();
        let Some((&ticket, pending)) = self.unreported.range_mut(self.cursor..).next() else {
            return false;
        };
        if lets_records_wait && pending.message.topic == Topic::Records {
            return false;
        }
        let stamp = self
            .stamps
            .next(pending.message.time_ms, pending.refusals, now_ms);
        let alone = pending.suspect || stamp.alone;
        if alone && self.in_flight > 0 {
            return false;
        }
        pending.stamp = Some(stamp);
        let topic = self.checker.topics.topic_name(pending.message.topic);
        let encoding = self.checker.topics.encoding;
        match send(
            &live.producer,
            &topic,
            ticket,
            &pending.message,
            stamp,
            encoding,
        ) {
            Ok(()) => {
                pending.sent_at = Some(Instant::now());
                self.cursor = ticket + 1;
                self.in_flight += 1;
                if alone {
                    self.alone = Some(ticket);
                }
            }
            Err(code) => match classify(code) {
                Class::Wait => self.full_until = Some(Instant::now() + QUEUE_FULL_WAIT),
                // librdkafka says so of this message itself: it was in no batch yet.
                Class::Rejected => self.refuse(ticket, code),
                Class::Retry | Class::RetryAndWarn | Class::Timestamp | Class::Fatal => {
                    self.note_failure(code, &topic);
                }
            },
        }
        true
    }

    /// Whether so little is on its way that a record waits for it. A broker takes one request of a connection at a time, and
    /// librdkafka sends those of several partitions in an order of its own: a delta would as often as not wait for its record.
    fn lets_records_wait(&self) -> bool {
        let oldest = self.unreported.first_key_value();
        let sent_at = oldest.and_then(|(_, pending)| pending.sent_at);
        let is_new = sent_at.is_some_and(|at| at.elapsed() < RECORD_WAIT_MAX);
        self.in_flight > 0 && self.unreported.len() <= FEW && is_new
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Delivered { ticket, result } => {
                self.in_flight = self.in_flight.saturating_sub(1);
                let was_alone = self.alone.take_if(|alone| *alone == ticket).is_some();
                match result {
                    Ok(position) => self.delivered(ticket, position),
                    Err(code) => self.failed(ticket, code, was_alone),
                }
            }
            Notice::Forsaken => {
                self.last_error = client::FORSAKEN.to_owned();
                self.broken.get_or_insert_with(|| self.last_error.clone());
                self.bus_failed = true;
                self.must_check = true;
            }
            Notice::Client { code, reason } => {
                self.last_error = reason;
                if code == Some(Code::AllBrokersDown) {
                    self.health.down(&self.last_error);
                    // A producer that has reached nobody yet may only have tried the first of several addresses.
                    if self.live.as_ref().is_some_and(|live| live.has_delivered) {
                        self.broken.get_or_insert_with(|| self.last_error.clone());
                        self.must_check = true;
                    }
                } else if code == Some(Code::Fatal) {
                    if let Some(denied) = self.denied_all() {
                        self.last_error = denied;
                    }
                    self.broken.get_or_insert_with(|| self.last_error.clone());
                    self.must_check = true;
                } else if code.is_some_and(is_about_who_we_are) {
                    self.health.down(&self.last_error);
                    self.look_for_new_files();
                }
            }
        }
    }

    /// What to say of a producer that is of no use because its user may write no topic at all: it is given no id then.
    fn denied_all(&self) -> Option<String> {
        let (code, _) = self.live.as_ref()?.producer.fatal_error()?;
        denied_write(code, &self.checker.topics.topic_name(Topic::Deltas))
    }

    fn delivered(&mut self, ticket: u64, position: Position) {
        let Some(pending) = self.unreported.get(&ticket) else {
            return;
        };
        if pending.message.topic == Topic::Deltas && self.contradicts(position) {
            // It is sent again behind what was lost. Reported, its place would be the newest that is known, and after a
            // crash nobody would miss what the log had before.
            self.broken
                .get_or_insert_with(|| format!("an offset was given twice: {}", position.offset));
            self.must_check = true;
            return;
        }
        if let Some(stamp) = pending.stamp {
            self.stamps.taken(stamp);
        }
        self.stuck.take_if(|topic| *topic == pending.message.topic);
        // That another topic takes messages says nothing of one that does not.
        if self.stuck.is_none() {
            self.health.up();
        }
        self.last_error.clear();
        if let Some(live) = &mut self.live {
            live.has_delivered = true;
        }
        self.remember(ticket, position);
        let pending = self.unreported.get_mut(&ticket);
        let outcome = match pending.and_then(|pending| pending.replaced.take()) {
            Some(reason) => Outcome::Replaced { reason, position },
            None => Outcome::Acked(position),
        };
        self.end(ticket, outcome);
    }

    /// A message is refused for what it is: a delta's place and turn are its gap's, anything else has its end.
    fn refuse(&mut self, ticket: u64, code: Code) {
        let reason = format!("kafka refuses it: {code}");
        let gap_of = |pending: &mut Pending| {
            let now_ms = u64::try_from(unix_now_ms()).unwrap_or(0);
            let gap = wire::quarantine_gap(&pending.message, now_ms)?;
            pending.message = gap;
            pending.suspect = false;
            pending.refusals = 0;
            pending.replaced = Some(reason.clone());
            Some(())
        };
        if self.unreported.get_mut(&ticket).and_then(gap_of).is_none() {
            self.end(ticket, Outcome::Rejected(reason));
        }
    }

    /// Whether a delta's place is not behind that of the last one: then it was put into a log that was made anew or cut
    /// under a producer which noticed nothing.
    fn contradicts(&self, position: Position) -> bool {
        // A repeated message that the broker knew already has no offset.
        position.offset >= 0
            && self.last.as_ref().is_some_and(|last| {
                last.position.partition == position.partition
                    && last.position.offset >= position.offset
            })
    }

    /// Keeps the place of an acknowledged delta.
    fn remember(&mut self, ticket: u64, position: Position) {
        let Some(pending) = self.unreported.get(&ticket) else {
            return;
        };
        if pending.message.topic != Topic::Deltas || position.offset < 0 {
            return;
        }
        self.last = Some(Landmark {
            bus: Arc::clone(&self.bus),
            position,
            ce_id: Arc::clone(&pending.message.ce_id),
        });
    }

    fn failed(&mut self, ticket: u64, code: Code, was_alone: bool) {
        let Some(pending) = self.unreported.get_mut(&ticket) else {
            return;
        };
        let topic = self.checker.topics.topic_name(pending.message.topic);
        match classify(code) {
            Class::Rejected if was_alone => {
                self.batch_bytes = BATCH_BYTES_MAX;
                self.refuse(ticket, code);
            }
            Class::Rejected => {
                pending.suspect = true;
                if code == Code::MessageSizeTooLarge && self.broken.is_none() {
                    // Perhaps only the batch was too large: the topic may take less than a broker's default.
                    self.batch_bytes = (self.batch_bytes / 2).max(BATCH_BYTES_MIN);
                }
            }
            Class::Timestamp => {
                pending.suspect = true;
                if let (true, Some(stamp)) = (was_alone, pending.stamp) {
                    pending.refusals = pending.refusals.saturating_add(1);
                    self.stamps.refused(stamp, unix_now_ms());
                    self.backoff.reset();
                    if self.log.admit("stamp", std::time::Instant::now()).is_some() {
                        tracing::warn!(
                            refused_ms = stamp.time_ms,
                            "the broker refuses a timestamp, trying another one: compare the clocks"
                        );
                    }
                }
            }
            Class::Wait | Class::Retry | Class::RetryAndWarn | Class::Fatal => {}
        }
        self.note_failure(code, &topic);
    }

    /// Has the producer closed, and says why once in a while.
    fn note_failure(&mut self, code: Code, topic: &str) {
        let class = classify(code);
        let error = denied_write(code, topic).unwrap_or_else(|| code.to_string());
        if class == Class::RetryAndWarn
            && self
                .log
                .admit("person", std::time::Instant::now())
                .is_some()
        {
            tracing::warn!(error, "kafka refuses messages, which are tried again");
        }
        let telling = !is_swept_out(code);
        if self.broken.is_none() || telling {
            self.broken = Some(error);
        }
        // A message that is refused for what it is leaves a bus that is well.
        let is_messages_fault = matches!(class, Class::Rejected | Class::Timestamp);
        self.bus_failed |= telling && !is_messages_fault;
        self.must_check |= class == Class::Fatal || (telling && !is_messages_fault);
    }

    /// A message has reached its end.
    fn end(&mut self, ticket: u64, outcome: Outcome) {
        let Some(pending) = self.unreported.remove(&ticket) else {
            return;
        };
        if let Outcome::Rejected(reason) | Outcome::Replaced { reason, .. } = &outcome {
            tracing::debug!(row = pending.message.row, reason, "kafka rejects a message");
        }
        self.progress.insert(pending.message.topic, Instant::now());
        self.backoff.reset();
        self.reporter.push(pending.message.row, outcome);
        if pending.message.row == 0
            && let Some(newer) = self.held_status.take()
        {
            self.take_in(newer);
        }
    }

    /// Too few replicas in sync, for one, is nothing that librdkafka tells: it goes on trying.
    fn look_if_stuck(&mut self) {
        let is_long = |at: &Instant| at.elapsed() >= STUCK_AFTER;
        let sent = self.unreported.range(..self.cursor);
        let mut stuck = sent
            .filter(|(_, pending)| pending.sent_at.as_ref().is_some_and(is_long))
            .map(|(_, pending)| pending.message.topic);
        self.stuck = stuck.find(|topic| self.progress.get(topic).is_none_or(is_long));
        let Some(topic) = self.stuck else { return };
        if self.last_error.is_empty() {
            let name = self.checker.topics.topic_name(topic);
            self.health.down(&format!(
                "kafka acknowledges nothing of `{name}`: too few replicas in sync, or too slow"
            ));
        } else {
            self.health.down(&self.last_error);
        }
    }

    /// The cluster does not let us in, or we do not believe it. Where a certificate or a secret is another one by now,
    /// a producer is made with it; else librdkafka goes on trying.
    fn look_for_new_files(&mut self) {
        let before = self.live.as_ref().map(|live| live.fingerprint);
        match self.checker.access.fingerprint() {
            Ok(now) if before.is_some_and(|before| before != now) => {
                tracing::info!(
                    "certificates or secrets have changed: connecting with the new ones"
                );
                self.bus_failed = true;
                self.broken.get_or_insert_with(|| self.last_error.clone());
            }
            // A file that cannot be read now is perhaps just being written.
            Ok(_) | Err(_) => {}
        }
    }

    /// Makes a producer where there is none.
    fn ensure_producer(&mut self) {
        if self.live.is_some() {
            return;
        }
        let opened = self.open_producer();
        match opened {
            Ok(live) => self.live = Some(live),
            Err(error) => {
                self.broken = Some(error);
                self.bus_failed = true;
            }
        }
    }

    fn open_producer(&self) -> Result<Live, String> {
        // First, so that a file that changes in between counts as changed.
        let fingerprint = self
            .checker
            .access
            .fingerprint()
            .map_err(|error| chain(&error))?;
        let base = client::base_config(&self.checker.access, &self.checker.client_id)
            .map_err(|error| chain(&error))?;
        let (producer, notices) =
            client::open_producer(&base, self.batch_bytes, client::Order::Gapless)
                .map_err(|error| format!("failed to start a producer: {}", chain(&error)))?;
        Ok(Live {
            producer,
            fingerprint,
            notices,
            has_delivered: false,
        })
    }

    /// Closes the producer, takes its late acknowledgements, and waits before the next one.
    async fn rebuild(&mut self, reason: &str, stop: &CancellationToken) {
        tracing::debug!(reason, "the producer is made anew");
        if let Some(mut live) = self.live.take() {
            let closed = discard(live.producer);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tokio::time::timeout(CLOSE_TIMEOUT, closed) => {}
            }
            while let Ok(notice) = live.notices.try_recv() {
                self.handle_notice(notice);
            }
        }
        // Failures that came with the closing belong to the old producer.
        self.broken = None;
        self.alone = None;
        self.full_until = None;
        self.in_flight = 0;
        self.cursor = self
            .unreported
            .first_key_value()
            .map_or(self.next_ticket, |(ticket, _)| *ticket);
        if std::mem::take(&mut self.bus_failed) {
            self.health.down(reason);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.backoff.next_wait()) => {}
        }
    }
}

/// Waits for notices of the producer; pending for ever without one.
async fn next_notices(live: &mut Option<Live>, notices: &mut Vec<Notice>) -> usize {
    match live {
        Some(live) => live.notices.recv_many(notices, NOTICES_MAX).await,
        None => std::future::pending().await,
    }
}

/// Gives a message to librdkafka.
fn send(
    producer: &Producer,
    topic: &str,
    ticket: u64,
    message: &Outgoing,
    stamp: Stamp,
    encoding: Encoding,
) -> Result<(), Code> {
    // Our own text is one of the topic's messages. What is not is refused for what it is.
    let value = encoded(message, encoding).map_err(|_| Code::InvalidRecord)?;
    let headers = cloudevents::headers(message, '_', encoding).iter().fold(
        OwnedHeaders::new_with_capacity(6),
        |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        },
    );
    let key = message.key();
    let mut record = BaseRecord::<str, [u8], usize>::with_opaque_to(topic, ticket as usize)
        .key(key.as_str())
        .timestamp(stamp.time_ms)
        .headers(headers);
    if let Some(value) = value.as_deref() {
        record = record.payload(value);
    }
    producer
        .send(record)
        .map_err(|error| error.rdkafka_error_code().unwrap_or(Code::Unknown))
}

/// Drops a producer on a thread of its own (librdkafka's threads are joined there), and tells the end of it.
fn discard(producer: Producer) -> oneshot::Receiver<()> {
    let (done, closed) = oneshot::channel();
    let spawned = thread::Builder::new()
        .name("sink-kafka-end".to_owned())
        .spawn(move || {
            drop(producer);
            let _ = done.send(());
        });
    if let Err(error) = spawned {
        // The closure was dropped here, and the producer with it.
        tracing::warn!(error = %error, "failed to start a thread to close a producer");
    }
    closed
}

/// Whether an error is one of certificates or passwords.
fn is_about_who_we_are(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL
    )
}

fn unix_now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::sink::{SinkHealth, TopicSettings};

    fn delta(seq: u64) -> Outgoing {
        Outgoing {
            row: seq,
            topic: Topic::Deltas,
            host_id: "h".into(),
            item: "".into(),
            op: "start".into(),
            value: Some("{}".into()),
            ce_id: format!("h:e:{seq}").into(),
            ce_type: "t",
            ce_source: "s".into(),
            time_ms: 1,
        }
    }

    fn position(offset: i64) -> Position {
        Position {
            partition: 0,
            offset,
        }
    }

    #[test]
    fn a_delta_in_a_log_that_was_cut_is_not_reported_and_hides_no_loss() {
        let checker = Checker {
            access: (&vec!["127.0.0.1:1".to_owned()]).into(),
            client_id: "test".to_owned(),
            topics: TopicSettings::default(),
        };
        let last = Landmark {
            bus: "cluster".into(),
            position: position(50),
            ce_id: "h:e:1".into(),
        };
        let (reports, _receiver) = mpsc::channel(8);
        let health = watch::channel(SinkHealth::default()).0;
        let mut sender = Sender::new(
            checker,
            Some(last),
            "cluster".into(),
            Reporter::new(reports),
            HealthTeller::new(health, "kafka"),
        );
        for seq in 2..=4 {
            sender.take_in(delta(seq));
        }
        for (ticket, offset) in [(1, 51), (2, 20), (3, 21)] {
            sender.handle_notice(Notice::Delivered {
                ticket,
                result: Ok(position(offset)),
            });
        }

        assert_eq!(sender.reporter.waiting(), 1, "only the first is told of");
        assert_eq!(sender.unreported.len(), 2);
        assert!(sender.must_check && sender.broken.is_some());
        let last = sender.last.map(|last| (last.position.offset, last.ce_id));
        assert_eq!(last, Some((51, "h:e:2".into())));
    }
}
