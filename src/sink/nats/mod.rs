//! The NATS sink: JetStream, a stream for the deltas and a KV bucket for each compacted topic.
//!
//! - [`naming`] has subjects and names; [`streams`] creates and checks; [`connection`] keeps the connection;
//!   [`publish`] brings one message through; [`errors`] classifies; [`mod@check`] and [`sound`] look whether what was acknowledged is
//!   there, [`own`] what stands there of this host; here is what may be in flight at once.
//! - Deltas: one in flight, so that none overtakes another that was refused. State: one in flight per key,
//!   [`STATE_IN_FLIGHT_MAX`] keys at once.
//! - JetStream acknowledges before it syncs to disk (`sync_interval`, two minutes by default): what it had
//!   acknowledged can be lost when the power fails. `sync_interval: always` in the server's configuration is
//!   the remedy.

mod check;
mod connection;
mod errors;
mod login;
mod naming;
mod own;
mod publish;
mod reap;
mod rights;
mod sound;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::connection::Connection;
pub(crate) use self::errors::{Class, classify};
pub(super) use self::login::check;
pub(crate) use self::naming::{Naming, token_text};
pub use self::streams::StreamInfo;

use self::publish::{Delivered, Publisher};
use self::sound::Sound;
use super::access::NatsAccess;
use super::report::{Abandoned, HealthTeller, Reporter};
use super::{
    Checked, Ended as RunEnded, IN_FLIGHT_MAX, Landmark, Outgoing, OwnKey, Report, Sink, SinkError,
    SinkHealth, TopicSettings, Verdict,
};
use crate::backoff::Backoff;
use crate::model::Topic;
use crate::telemetry::chain;

/// Keys of compacted topics that are on their way at once: enough to hide the server's answer time.
const STATE_IN_FLIGHT_MAX: usize = 128;

/// Keys whose last sequence is remembered. Beyond it all are forgotten; each costs one refused attempt then.
const SEQUENCES_MAX: usize = 65_536;

/// The waits between attempts to connect, where `prepare` was not called.
const CONNECT_FIRST: Duration = Duration::from_millis(200);
/// The longest of them.
const CONNECT_LONGEST: Duration = Duration::from_secs(5);

/// NATS.
pub struct NatsSink {
    access: NatsAccess,
    topics: TopicSettings,
    client_id: String,
    connection: Option<Connection>,
    /// Streams that `prepare` created.
    created: Vec<String>,
    /// The last acknowledged delta, where `check` found it.
    last: Option<Landmark>,
    /// The time at which the stream of the deltas was made, as `check` found it.
    bus: Arc<str>,
}

impl NatsSink {
    /// A sink for a server or a cluster. Nothing is connected yet.
    pub fn new(access: impl Into<NatsAccess>, topics: &TopicSettings, client_id: &str) -> Self {
        Self {
            access: access.into(),
            topics: topics.clone(),
            client_id: client_id.to_owned(),
            connection: None,
            created: Vec::new(),
            last: None,
            bus: Arc::from(""),
        }
    }

    async fn connect(&mut self) -> Result<Connection, SinkError> {
        match &self.connection {
            Some(connection) => Ok(connection.clone()),
            None => {
                let connection = Connection::open(&self.access, &self.client_id).await?;
                self.connection = Some(connection.clone());
                Ok(connection)
            }
        }
    }

    /// Creates what is missing and returns the names of what it created.
    ///
    /// # Errors
    /// As [`Sink::prepare`].
    pub async fn create_streams(&mut self) -> Result<Vec<String>, SinkError> {
        let connection = self.connect().await?;
        streams::create(&connection, &Naming::new(&self.topics), &self.topics).await
    }

    /// Checks the streams.
    ///
    /// # Errors
    /// As [`Sink::prepare`].
    pub async fn verify_streams(&mut self) -> Result<(), SinkError> {
        let connection = self.connect().await?;
        streams::verify(&connection, &Naming::new(&self.topics), &self.topics).await
    }

    /// Shows the streams as they are.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where the server does not answer.
    pub async fn list_streams(&mut self) -> Result<Vec<StreamInfo>, SinkError> {
        let connection = self.connect().await?;
        streams::list(&connection, &Naming::new(&self.topics), &self.topics).await
    }

    /// What the server does not let this user do of what a collector of this host needs besides the streams: each as the
    /// server says it. The messages that try it name a place in their stream that there is not, so that none is stored.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub async fn missing_rights(
        &mut self,
        host_id: &str,
        reads_back: bool,
    ) -> Result<Vec<String>, SinkError> {
        let connection = self.connect().await?;
        let naming = Naming::new(&self.topics);
        let mut missing = rights::missing(&connection, &naming, &self.topics, host_id).await;
        if reads_back && let Err(SinkError::Denied { message }) = self.own_keys(host_id).await {
            missing.push(message);
        }
        Ok(missing)
    }

    /// Deletes the keys whose newest value expired before `before_ms` (unix milliseconds), unless its host puts
    /// it again meanwhile. Dropped midway, some are deleted.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where the server does not answer or a bucket is not there.
    pub async fn reap(&mut self, before_ms: i64) -> Result<Vec<super::Reaped>, SinkError> {
        let connection = self.connect().await?;
        reap::reap(&connection, &Naming::new(&self.topics), before_ms).await
    }
}

#[async_trait]
impl Sink for NatsSink {
    /// Dropped midway, a stream may have been created or not; a later call finds out.
    async fn prepare(&mut self) -> Result<(), SinkError> {
        self.topics.check()?;
        let connection = self.connect().await?;
        let naming = Naming::new(&self.topics);
        self.created = streams::prepare(&connection, &naming, &self.topics).await?;
        Ok(())
    }

    async fn check(&mut self, last: Option<&Landmark>) -> Result<Checked, SinkError> {
        let connection = self.connect().await?;
        let naming = Naming::new(&self.topics);
        let checked = check::check(&connection, &naming, last, &self.created).await?;
        self.created.clear();
        self.bus = Arc::clone(&checked.bus);
        self.last = match checked.verdict {
            Verdict::Kept => last.cloned(),
            Verdict::Lost(_) => None,
        };
        Ok(checked)
    }

    async fn own_keys(&mut self, host_id: &str) -> Result<Vec<OwnKey>, SinkError> {
        let connection = self.connect().await?;
        own::keys(&connection, &Naming::new(&self.topics), host_id).await
    }

    async fn statuses(&mut self, host_id: &str) -> Result<Vec<Vec<u8>>, SinkError> {
        let connection = self.connect().await?;
        own::statuses(&connection, &Naming::new(&self.topics), host_id).await
    }

    async fn run(
        &mut self,
        requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<RunEnded, SinkError> {
        let health = HealthTeller::new(health, "nats");
        let mut backoff = Backoff::new(CONNECT_FIRST, CONNECT_LONGEST);
        let connection = loop {
            let error = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(RunEnded::Finished),
                connected = self.connect() => match connected {
                    Ok(connection) => break connection,
                    Err(error) => error,
                },
            };
            health.down(&chain(&error));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(RunEnded::Finished),
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        };
        let naming = Naming::new(&self.topics);
        let sound = Sound::new(&connection, self.last.take(), Arc::clone(&self.bus));
        let topics = self.topics.clone();
        let publisher = Publisher::new(connection, naming.clone(), topics, health, sound);
        Sender {
            publisher: Arc::new(publisher),
            naming,
            reporter: Reporter::new(reports),
            queues: HashMap::new(),
            ready: VecDeque::new(),
            sequences: HashMap::new(),
            under_way: FuturesUnordered::new(),
            state_under_way: 0,
            unreported: 0,
        }
        .run(requests, stop)
        .await
    }
}

/// What is sent one after another: all deltas, or the messages of one subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Deltas,
    Subject(Arc<str>),
}

/// A message that has reached its end.
struct Ended {
    lane: Lane,
    row: u64,
    delivered: Delivered,
}

/// What may be in flight at once.
struct Sender {
    publisher: Arc<Publisher>,
    naming: Naming,
    reporter: Reporter,
    /// What waits in each lane that has a message under way or ready; lanes without any are not in here.
    queues: HashMap<Lane, VecDeque<Outgoing>>,
    /// Lanes of state with messages and none under way, in the order in which they became so.
    ready: VecDeque<Lane>,
    /// The last sequence of each subject, as far as is known.
    sequences: HashMap<Lane, u64>,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    state_under_way: usize,
    unreported: usize,
}

impl Sender {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) -> Result<RunEnded, SinkError> {
        let mut open = true;
        let mut intake = Vec::new();
        let publisher = Arc::clone(&self.publisher);
        let mut watching = pin!(publisher.watch_connection());
        let mut losing = pin!(publisher.lost());
        loop {
            if let Err(Abandoned) = self.reporter.offer() {
                return Ok(RunEnded::Finished);
            }
            if !open && self.unreported == 0 && self.reporter.waiting() == 0 {
                return Ok(RunEnded::Finished);
            }
            let room = IN_FLIGHT_MAX.saturating_sub(self.unreported + self.reporter.waiting());
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(RunEnded::Finished),
                () = &mut watching => {}
                loss = &mut losing => {
                    // Without a receiver there is nobody to tell of the loss either.
                    let _ = self.reporter.hand_over_all(&stop).await;
                    return Ok(RunEnded::BusLostData(loss));
                }
                Some(ended) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.end(ended);
                }
                handed = self.reporter.hand_over_one() => if let Err(Abandoned) = handed {
                    return Ok(RunEnded::Finished);
                },
                count = requests.recv_many(&mut intake, room), if open && room > 0 => {
                    open = count > 0;
                    for message in intake.drain(..) {
                        self.take_in(message);
                    }
                }
            }
            while self.state_under_way < STATE_IN_FLIGHT_MAX
                && let Some(lane) = self.ready.pop_front()
            {
                self.start_next(lane);
            }
        }
    }

    fn take_in(&mut self, message: Outgoing) {
        let lane = match message.topic {
            Topic::Deltas => Lane::Deltas,
            Topic::Records | Topic::Pns | Topic::Status | Topic::Processes | Topic::Ports => {
                Lane::Subject(self.naming.subject(&message).into())
            }
        };
        if let Some(queue) = self.queues.get_mut(&lane) {
            // Only the newest status is worth sending.
            if message.row == 0
                && let Some(waiting) = queue.iter_mut().find(|waiting| waiting.row == 0)
            {
                *waiting = message;
                return;
            }
            queue.push_back(message);
        } else {
            self.queues.insert(lane.clone(), VecDeque::from([message]));
            self.make_ready(lane);
        }
        self.unreported += 1;
    }

    /// A lane with messages has none under way. The deltas do not wait behind the state.
    fn make_ready(&mut self, lane: Lane) {
        match lane {
            Lane::Deltas => self.start_next(lane),
            Lane::Subject(_) => self.ready.push_back(lane),
        }
    }

    fn start_next(&mut self, lane: Lane) {
        let Some(message) = self.queues.get_mut(&lane).and_then(VecDeque::pop_front) else {
            return;
        };
        match lane {
            Lane::Deltas => {}
            Lane::Subject(_) => self.state_under_way += 1,
        }
        let replaces = self.sequences.get(&lane).copied().unwrap_or(0);
        let publisher = Arc::clone(&self.publisher);
        self.under_way.push(Box::pin(async move {
            let delivered = publisher.deliver(&message, replaces).await;
            Ended {
                lane,
                row: message.row,
                delivered,
            }
        }));
    }

    fn end(&mut self, ended: Ended) {
        let Ended {
            lane,
            row,
            delivered,
        } = ended;
        self.unreported = self.unreported.saturating_sub(1);
        self.reporter.push(row, delivered.outcome);
        match &lane {
            Lane::Deltas => {}
            Lane::Subject(_) => {
                self.state_under_way = self.state_under_way.saturating_sub(1);
                if let Some(sequence) = delivered.sequence {
                    if self.sequences.len() >= SEQUENCES_MAX {
                        self.sequences.clear();
                    }
                    self.sequences.insert(lane.clone(), sequence);
                }
            }
        }
        if self.queues.get(&lane).is_some_and(VecDeque::is_empty) {
            self.queues.remove(&lane);
        } else {
            self.make_ready(lane);
        }
    }
}
