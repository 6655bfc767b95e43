//! What is on its way to the output: each message until the bus has it, and then its input's offset.
//!
//! Whatever goes wrong with a message besides what it is itself is a [`Failure`]: the session begins anew from what was
//! committed. So nothing is lost, and what was acknowledged meanwhile comes twice.

use std::collections::HashMap;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use tokio::sync::mpsc;

use super::offsets::{Mark, Offsets};
use crate::enrich::Spliced;
use crate::sink::Position;
use crate::sink::kafka::{BATCH_BYTES_MIN, Class, FORSAKEN, Notice, Producer, classify};

/// Most messages under way.
pub(super) const IN_FLIGHT_MAX: usize = 50_000;

/// Most bytes under way: below librdkafka's own bound, so that its queue is never full for long.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages from this size on are kept until the bus has them, so that one that is too large by what was added can go out as
/// it came. No broker that is in use refuses smaller ones.
const KEPT_BYTES_MIN: usize = 64 * 1024;

/// The header of an event that was put aside: why.
const REASON_HEADER: &str = "quaymaster-reason";

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Output,
    /// The topic of the invalid ones, with what is wrong.
    Aside(&'static str),
}

/// What the input's message had besides its text.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) mark: Mark,
    pub(super) key: Option<Vec<u8>>,
    pub(super) headers: Option<OwnedHeaders>,
    /// Its time in unix milliseconds.
    pub(super) time_ms: Option<i64>,
}

struct Sent {
    mark: Mark,
    to: To,
    bytes: usize,
    kept: Option<Box<(Envelope, Spliced)>>,
    is_unaltered: bool,
}

/// Why a session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The broker refuses whole batches.
    BatchTooLarge,
    /// The broker does not take the input's timestamps.
    Timestamps,
    /// Anything else.
    Bus(String),
}

/// What has come of messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) aside: u64,
    pub(super) unaltered: u64,
    pub(super) rejected: u64,
}

/// Names and limits.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) invalid: String,
    pub(super) batch_bytes: u32,
    /// Whether the input's timestamps are kept.
    pub(super) stamps: bool,
}

/// What is under way.
pub(super) struct Flight {
    routes: Routes,
    producer: Producer,
    notices: mpsc::UnboundedReceiver<Notice>,
    offsets: Offsets,
    sent: HashMap<u64, Sent>,
    next_ticket: u64,
    bytes: usize,
    failure: Option<Failure>,
    tally: Tally,
    /// Whether partitions went away since the last look: events of theirs that wait are no longer ours.
    has_given_up: bool,
}

impl Flight {
    pub(super) fn new(
        routes: Routes,
        producer: Producer,
        notices: mpsc::UnboundedReceiver<Notice>,
    ) -> Self {
        Self {
            routes,
            producer,
            notices,
            offsets: Offsets::default(),
            sent: HashMap::new(),
            next_ticket: 0,
            bytes: 0,
            failure: None,
            tally: Tally::default(),
            has_given_up: false,
        }
    }

    pub(super) fn input(&self) -> &str {
        &self.routes.input
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    pub(super) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.sent.len() >= IN_FLIGHT_MAX || self.bytes >= IN_FLIGHT_BYTES_MAX
    }

    /// Messages of these partitions that the bus does not have yet. Those that wait for their mapping do not count: the next
    /// owner of the partition takes them again.
    pub(super) fn in_flight_of(&self, partitions: &[i32]) -> usize {
        let sent = self.sent.values();
        sent.filter(|one| partitions.contains(&one.mark.partition) && self.offsets.owns(one.mark))
            .count()
    }

    pub(super) fn begin(&mut self, partition: i32, offset: i64) -> Mark {
        self.offsets.begin(partition, offset)
    }

    /// Nothing more comes of a message.
    pub(super) fn end(&mut self, mark: Mark) {
        self.offsets.end(mark);
    }

    pub(super) fn owns(&self, mark: Mark) -> bool {
        self.offsets.owns(mark)
    }

    pub(super) fn take_due(&mut self) -> Vec<(i32, i64)> {
        self.offsets.take_due()
    }

    pub(super) fn give_up(&mut self, partitions: &[i32]) {
        self.offsets.give_up(partitions);
        self.has_given_up = true;
    }

    /// Whether partitions went away since the last call.
    pub(super) fn take_given_up(&mut self) -> bool {
        std::mem::take(&mut self.has_given_up)
    }

    /// Hands a message to the producer; gives it back where that has no room now.
    pub(super) fn send(
        &mut self,
        envelope: Envelope,
        payload: Spliced,
        to: To,
    ) -> Option<(Envelope, Spliced)> {
        let ticket = self.next_ticket;
        let outcome = self.hand_over(ticket, &envelope, &payload, to);
        let bytes = payload.text.len();
        let mark = envelope.mark;
        match outcome {
            Ok(()) => {}
            Err(error) => match error.rdkafka_error_code().map(classify) {
                Some(Class::Wait) => return Some((envelope, payload)),
                Some(Class::Rejected) => {
                    self.rejected(mark, to, bytes, Some(Box::new((envelope, payload))), false);
                    return None;
                }
                _ => {
                    self.fail(Failure::Bus(error.to_string()));
                    return None;
                }
            },
        }
        let is_unaltered = payload.added.is_empty();
        let kept =
            (bytes >= KEPT_BYTES_MIN && !is_unaltered).then(|| Box::new((envelope, payload)));
        self.note_sent(ticket, mark, to, bytes, kept, false);
        None
    }

    fn note_sent(
        &mut self,
        ticket: u64,
        mark: Mark,
        to: To,
        bytes: usize,
        kept: Option<Box<(Envelope, Spliced)>>,
        is_unaltered: bool,
    ) {
        self.next_ticket += 1;
        self.bytes += bytes;
        let sent = Sent {
            mark,
            to,
            bytes,
            kept,
            is_unaltered,
        };
        self.sent.insert(ticket, sent);
    }

    fn hand_over(
        &self,
        ticket: u64,
        envelope: &Envelope,
        payload: &Spliced,
        to: To,
    ) -> Result<(), KafkaError> {
        let topic = match to {
            To::Output => &self.routes.output,
            To::Aside(_) => &self.routes.invalid,
        };
        // A ticket goes through a pointer of librdkafka's.
        let ticket = usize::try_from(ticket).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, ticket)
            .payload(payload.text.as_slice());
        if let Some(key) = &envelope.key {
            record = record.key(key.as_slice());
        }
        if let Some(time_ms) = envelope.time_ms.filter(|_| self.routes.stamps) {
            record = record.timestamp(time_ms);
        }
        let headers = match (to, &envelope.headers) {
            (To::Output, headers) => headers.clone(),
            (To::Aside(reason), headers) => {
                let headers = headers.clone().unwrap_or_else(OwnedHeaders::new);
                Some(headers.insert(Header {
                    key: REASON_HEADER,
                    value: Some(reason),
                }))
            }
        };
        if let Some(headers) = headers {
            record = record.headers(headers);
        }
        self.producer.send(record)
    }

    /// Takes what the bus has told meanwhile.
    pub(super) fn drain(&mut self) {
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Delivered { ticket, result } => self.delivered(ticket, result),
                Notice::Forsaken => self.fail(Failure::Bus(FORSAKEN.to_owned())),
                // What matters of it comes as deliveries too; a fatal one may leave none.
                Notice::Client { .. } => {
                    if let Some((_, reason)) = self.producer.fatal_error() {
                        self.fail(Failure::Bus(reason));
                    }
                }
            }
        }
    }

    fn delivered(&mut self, ticket: u64, result: Result<Position, RDKafkaErrorCode>) {
        let Some(sent) = self.sent.remove(&ticket) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(sent.bytes);
        let Err(code) = result else {
            self.offsets.end(sent.mark);
            match sent.to {
                To::Output => self.tally.sent += 1,
                To::Aside(_) => self.tally.aside += 1,
            }
            self.tally.unaltered += u64::from(sent.is_unaltered);
            return;
        };
        match classify(code) {
            Class::Rejected => {
                self.rejected(sent.mark, sent.to, sent.bytes, sent.kept, sent.is_unaltered);
            }
            Class::Timestamp => self.fail(Failure::Timestamps),
            Class::Wait | Class::Retry | Class::RetryAndWarn | Class::Fatal => {
                let topic = match sent.to {
                    To::Output => &self.routes.output,
                    To::Aside(_) => &self.routes.invalid,
                };
                let error = format!("`{topic}` does not take messages: {code}");
                self.fail(Failure::Bus(error));
            }
        }
    }

    /// A message that was refused for what it is, if it was alone in its batch: without the addition it may be taken.
    fn rejected(
        &mut self,
        mark: Mark,
        to: To,
        bytes: usize,
        kept: Option<Box<(Envelope, Spliced)>>,
        was_unaltered: bool,
    ) {
        let batch_bytes = self.routes.batch_bytes as usize;
        if bytes <= batch_bytes && self.routes.batch_bytes > BATCH_BYTES_MIN {
            self.fail(Failure::BatchTooLarge);
            return;
        }
        if let Some((envelope, mut payload)) = kept.map(|kept| *kept)
            && !was_unaltered
            && !payload.added.is_empty()
        {
            payload.take_back();
            let ticket = self.next_ticket;
            let error = match self.hand_over(ticket, &envelope, &payload, to) {
                Ok(()) => {
                    self.note_sent(ticket, mark, to, payload.text.len(), None, true);
                    return;
                }
                Err(error) => error,
            };
            if error.rdkafka_error_code().map(classify) != Some(Class::Rejected) {
                // It is taken again from what was committed.
                self.fail(Failure::Bus(error.to_string()));
                return;
            }
        }
        self.tally.rejected += 1;
        self.offsets.end(mark);
        tracing::error!(
            partition = mark.partition,
            offset = mark.offset,
            bytes,
            "an event is lost: the bus refuses it for what it is"
        );
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }
}
