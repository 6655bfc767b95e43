//! The stdout sink: one JSON object a line, `{"topic":…,"key":…,"value":…}`, a tombstone with a null value.
//!
//! Lines are written by a thread of their own, so that a slow reader of the pipe holds up neither the tokio
//! runtime nor, when the sink is stopped, the end of the program. A batch is acknowledged when the kernel has
//! taken it whole: there is no buffer of ours behind it.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::report::{Abandoned, HealthTeller, Reporter};
use super::{
    Checked, Ended, Landmark, Outcome, Outgoing, Position, Sink, SinkError, SinkHealth,
    TopicSettings, Verdict,
};
use crate::backoff::Backoff;
use crate::telemetry::chain;

/// Most messages in one write: what a slow reader has to take before the first of them is acknowledged.
const BATCH_MAX: usize = 256;
/// What names it among the buses.
const STDOUT_NAME: &str = "stdout:";

/// The waits where stdout takes nothing for now (a full disk behind it, or set to non-blocking).
const RETRY_FIRST: Duration = Duration::from_millis(5);
/// The longest of them.
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// JSON lines on standard output.
pub struct StdoutSink {
    topics: TopicSettings,
    writer: Option<Box<dyn Write + Send>>,
    turn: Turn,
}

/// Whose turn it is to write a batch: two sinks on one stdout must not mix their lines.
type Turn = Arc<Mutex<()>>;

/// The turn on the process's own standard output.
static STDOUT_TURN: LazyLock<Turn> = LazyLock::new(Turn::default);

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    key: &'a str,
    value: Option<&'a RawValue>,
}

/// Lines for the writing thread, and where it answers.
struct Batch {
    bytes: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

impl StdoutSink {
    /// Writes to the process's standard output.
    pub fn new(topics: &TopicSettings) -> Self {
        Self {
            topics: topics.clone(),
            writer: None,
            turn: Arc::clone(&STDOUT_TURN),
        }
    }

    /// Writes to `writer` instead.
    pub fn with_writer(topics: &TopicSettings, writer: Box<dyn Write + Send>) -> Self {
        Self {
            topics: topics.clone(),
            writer: Some(writer),
            turn: Turn::default(),
        }
    }
}

#[async_trait]
impl Sink for StdoutSink {
    /// Nothing to connect: it fails only where standard output is closed from the start.
    async fn prepare(&mut self) -> Result<(), SinkError> {
        if self.writer.is_none() {
            // Not `io::stdout()`: that one looks for newlines and keeps half lines back.
            let file: File = io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|source| write_error(source, "failed to open stdout"))?
                .into();
            self.writer = Some(Box::new(file));
        }
        Ok(())
    }

    /// A stream keeps nothing. It has a name, so that its line numbers are not looked for on another bus later.
    async fn check(&mut self, _last: Option<&Landmark>) -> Result<Checked, SinkError> {
        Ok(Checked {
            bus: STDOUT_NAME.into(),
            verdict: Verdict::Kept,
        })
    }

    /// Cancelled by `stop`, it leaves the writing thread to end by itself: that thread may be in a write that
    /// a reader never lets end.
    async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Outgoing>,
        reports: mpsc::Sender<super::Report>,
        health: watch::Sender<SinkHealth>,
        stop: CancellationToken,
    ) -> Result<Ended, SinkError> {
        self.prepare().await?;
        let Some(writer) = self.writer.take() else {
            return Ok(Ended::Finished);
        };
        let batches = start_writer(writer, Arc::clone(&self.turn))?;
        let health = HealthTeller::new(health, "stdout");
        let mut reporter = Reporter::new(reports);
        let mut messages = Vec::with_capacity(BATCH_MAX);
        let mut lines = 0_i64;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Finished),
                count = requests.recv_many(&mut messages, BATCH_MAX) => if count == 0 {
                    return Ok(Ended::Finished);
                },
            }
            let (bytes, outcomes) = self.render(&messages, &mut lines);
            messages.clear();
            let written = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Finished),
                written = write(&batches, bytes) => written,
            };
            if let Err(source) = written {
                let error = write_error(source, "failed to write to stdout");
                health.down(&chain(&error));
                return Err(error);
            }
            health.up();
            for (row, outcome) in outcomes {
                reporter.push(row, outcome);
            }
            if let Err(Abandoned) = reporter.hand_over_all(&stop).await {
                return Ok(Ended::Finished);
            }
        }
    }
}

impl StdoutSink {
    /// The lines of a batch, and each message's outcome once they are written.
    fn render(&self, messages: &[Outgoing], lines: &mut i64) -> (Vec<u8>, Vec<(u64, Outcome)>) {
        let mut bytes = Vec::new();
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            let outcome = match self.render_line(message, &mut bytes) {
                Ok(()) => {
                    *lines += 1;
                    Outcome::Acked(Position {
                        partition: 0,
                        offset: *lines,
                    })
                }
                Err(error) => Outcome::Rejected(format!("the value is no JSON: {error}")),
            };
            outcomes.push((message.row, outcome));
        }
        (bytes, outcomes)
    }

    /// Appends one line, or nothing.
    fn render_line(
        &self,
        message: &Outgoing,
        bytes: &mut Vec<u8>,
    ) -> Result<(), serde_json::Error> {
        let value = message
            .value
            .as_deref()
            .map(serde_json::from_slice::<&RawValue>)
            .transpose()?;
        let begin = bytes.len();
        let line = Line {
            topic: &self.topics.topic_name(message.topic),
            key: &message.key(),
            value,
        };
        if let Err(error) = serde_json::to_writer(&mut *bytes, &line) {
            bytes.truncate(begin);
            return Err(error);
        }
        // JSON has raw line breaks only between its tokens, where a space does as well.
        for byte in bytes.iter_mut().skip(begin) {
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        bytes.push(b'\n');
        Ok(())
    }
}

/// Has a batch written, and waits for the end of it.
async fn write(batches: &mpsc::Sender<Batch>, bytes: Vec<u8>) -> io::Result<()> {
    let (done, written) = oneshot::channel();
    let gone = || io::Error::other("the writing thread has ended");
    batches
        .send(Batch { bytes, done })
        .await
        .map_err(|_| gone())?;
    written.await.map_err(|_| gone())?
}

/// Starts the thread that writes; it ends with the returned sender.
fn start_writer(
    mut writer: Box<dyn Write + Send>,
    turn: Turn,
) -> Result<mpsc::Sender<Batch>, SinkError> {
    let (sender, mut batches) = mpsc::channel::<Batch>(1);
    thread::Builder::new()
        .name("sink-stdout".to_owned())
        .spawn(move || {
            while let Some(batch) = batches.blocking_recv() {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                if batch.done.is_closed() {
                    // The sink was stopped while another one wrote.
                    continue;
                }
                let result = write_whole(&mut *writer, &batch.bytes, || batch.done.is_closed());
                // Nobody waits any more: the sink was stopped.
                let _ = batch.done.send(result);
            }
        })
        .map_err(|source| {
            write_error(source, "failed to start the thread that writes to stdout")
        })?;
    Ok(sender)
}

/// Writes all of `bytes`, waiting where the other side takes nothing for now, until nobody waits for it.
fn write_whole(
    writer: &mut dyn Write,
    bytes: &[u8],
    abandoned: impl Fn() -> bool,
) -> io::Result<()> {
    let mut rest = bytes;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    while !rest.is_empty() {
        match writer.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                backoff.reset();
            }
            Err(error) if may_pass(&error) => {
                // Half a line would spoil the next one, which may be another sink's.
                if abandoned() && rest.len() == bytes.len() {
                    return Err(error);
                }
                if error.kind() == ErrorKind::StorageFull {
                    tracing::warn!(error = %error, "failed to write to stdout, trying again");
                }
                thread::sleep(backoff.next_wait());
            }
            Err(error) => return Err(error),
        }
    }
    writer.flush()
}

/// Whether a write that failed may succeed later with the same bytes.
fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::WouldBlock
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
    )
}

fn write_error(source: io::Error, tried: &str) -> SinkError {
    SinkError::Unavailable {
        message: tried.to_owned(),
        source: Some(Box::new(source)),
    }
}

#[cfg(test)]
#[path = "stdout_tests.rs"]
mod tests;
