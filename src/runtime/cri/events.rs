//! The event stream: a call that may stay without an answer until the first event.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;
use tonic::{Response, Status, Streaming};

use super::client::{ServerSaid, is_unsupported};
use super::normalise::{self, Runtime};
use super::pods::Pods;
use super::proto::ContainerEventResponse;
use super::removals::Removals;
use crate::model::{ContainerId, ContainerKind, EventKind, RuntimeEvent};
use crate::runtime::{EventStream, RuntimeError};

/// The name of the request in errors.
pub(super) const REQUEST: &str = "events";

/// A stream that ends this soon, without an error and without an event, is none: CRI-O answers so when
/// `enable_pod_events` is off (cri-o, `server/container_events.go`).
const ENDS_AT_ONCE: Duration = Duration::from_secs(5);

/// CRI-O keeps the first 1,000 events of its life for its first subscriber, however old they are (cri-o 1.34,
/// `ContainerEventsChan` in `server/server.go`): what it hands out at first is a history of containers that are mostly gone.
/// As many minutes are taken of it as containerd keeps; the list that follows tells what is there.
const REPLAYED_AGE_MAX: Duration = Duration::from_secs(300);
/// How long after the subscription an event may be of that history. Later ones are taken whatever their time says, for the
/// clock may have been set.
const REPLAYED_WITHIN: Duration = Duration::from_secs(10);

/// What the call becomes.
type Call = Result<Response<Streaming<ContainerEventResponse>>, Status>;

enum Phase {
    Calling(BoxFuture<'static, Call>),
    Live(Box<Streaming<ContainerEventResponse>>),
    Ended,
}

/// What comes next of a call.
enum Answer {
    Accepted(Box<Streaming<ContainerEventResponse>>),
    Message(Box<ContainerEventResponse>),
    Refused(Status),
    End,
}

impl Phase {
    /// It may be dropped midway.
    async fn next(&mut self) -> Answer {
        let answer = match self {
            Self::Calling(call) => match call.await {
                Ok(response) => return Answer::Accepted(Box::new(response.into_inner())),
                Err(status) => Err(status),
            },
            Self::Live(messages) => messages.message().await,
            Self::Ended => Ok(None),
        };
        match answer {
            Ok(Some(message)) => Answer::Message(Box::new(message)),
            Ok(None) => Answer::End,
            Err(status) => Answer::Refused(status),
        }
    }
}

/// Never, where the runtime tells of removals itself.
async fn next_removal(removals: &mut Option<Removals>) -> (ContainerId, ContainerKind) {
    match removals {
        Some(removals) => removals.next().await,
        None => std::future::pending().await,
    }
}

/// A subscription that was sent.
pub(super) struct Subscription {
    uri: String,
    runtime: Runtime,
    pods: Arc<Pods>,
    phase: Phase,
    began: Instant,
    events: u64,
    /// CRI-O only: events of its history before this time, in unix nanoseconds, are passed over.
    since_ns: Option<i64>,
    /// CRI-O only.
    removals: Option<Removals>,
    /// The item that was found before anyone polled the stream.
    first: Option<Result<RuntimeEvent, RuntimeError>>,
}

impl Subscription {
    /// Takes the call; nothing is sent before it is polled.
    pub(super) fn new(
        uri: String,
        runtime: Runtime,
        pods: Arc<Pods>,
        call: BoxFuture<'static, Call>,
    ) -> Self {
        Self {
            uri,
            runtime,
            pods,
            phase: Phase::Calling(call),
            began: Instant::now(),
            events: 0,
            since_ns: None,
            removals: None,
            first: None,
        }
    }

    /// The same, of a CRI-O.
    pub(super) fn of_crio(self, removals: Removals) -> Self {
        let oldest = SystemTime::now().checked_sub(REPLAYED_AGE_MAX);
        let oldest = oldest.and_then(|oldest| oldest.duration_since(UNIX_EPOCH).ok());
        Self {
            since_ns: oldest.and_then(|oldest| i64::try_from(oldest.as_nanos()).ok()),
            removals: Some(removals),
            ..self
        }
    }

    /// Drives the subscription until `settled` is done: by then the server has accepted it, or refused it.
    ///
    /// # Errors
    /// What the server said when it refused.
    pub(super) async fn settle(
        mut self,
        settled: impl Future<Output = Result<(), RuntimeError>>,
    ) -> Result<EventStream, RuntimeError> {
        tokio::select! {
            biased;
            item = self.next() => match item {
                Some(Err(error)) if !matches!(error, RuntimeError::Malformed { .. }) => return Err(error),
                item => self.first = item,
            },
            done = settled => done?,
        }
        Ok(stream::unfold(self, |mut subscription| async move {
            let item = match subscription.first.take() {
                Some(item) => item,
                None => subscription.next().await?,
            };
            Some((item, subscription))
        })
        .boxed())
    }

    /// The next event. It may be dropped midway: the phase only changes between awaits.
    async fn next(&mut self) -> Option<Result<RuntimeEvent, RuntimeError>> {
        loop {
            let answer = tokio::select! {
                biased;
                answer = self.phase.next() => answer,
                (id, kind) = next_removal(&mut self.removals) => {
                    return Some(Ok(normalise::removal(id, kind)));
                }
            };
            match answer {
                Answer::Accepted(stream) => self.phase = Phase::Live(stream),
                Answer::Message(message) => {
                    self.events += 1;
                    if !self.is_history(&message) {
                        return Some(self.understand(&message));
                    }
                }
                Answer::End if matches!(self.phase, Phase::Ended) => return None,
                Answer::End => {
                    self.phase = Phase::Ended;
                    let is_off = self.events == 0 && self.began.elapsed() < ENDS_AT_ONCE;
                    return is_off.then(|| Err(self.unsupported()));
                }
                Answer::Refused(status) => {
                    self.phase = Phase::Ended;
                    return Some(Err(self.failed(&status)));
                }
            }
        }
    }

    fn is_history(&self, message: &ContainerEventResponse) -> bool {
        self.began.elapsed() < REPLAYED_WITHIN
            && self
                .since_ns
                .is_some_and(|since_ns| message.created_at < since_ns)
    }

    fn understand(&self, message: &ContainerEventResponse) -> Result<RuntimeEvent, RuntimeError> {
        if let Some(status) = &message.pod_sandbox_status
            && let Some(id) = normalise::id(&status.id)
        {
            let pod = normalise::pod_of_sandbox(&id, status.metadata.as_ref());
            self.pods.remember_sandbox(id, pod);
        }
        let event = normalise::event(message, |id| self.pods.is_sandbox(id), &self.runtime);
        let event = event.ok_or_else(|| RuntimeError::Malformed {
            endpoint: self.uri.clone(),
            request: REQUEST,
            source: "an event without a usable id or of an unknown type".into(),
        })?;
        if self.removals.is_some() {
            self.note_for_removals(&event, message);
        }
        Ok(event)
    }

    fn note_for_removals(&self, event: &RuntimeEvent, message: &ContainerEventResponse) {
        let id = event.id.clone();
        let sandbox = message.pod_sandbox_status.as_ref();
        let sandbox_id = sandbox.and_then(|status| normalise::id(&status.id));
        match (event.kind, event.what) {
            (ContainerKind::Sandbox, EventKind::Died) => self.pods.remember_stopped(id),
            (ContainerKind::Container, EventKind::Deleted) => self.pods.forget_container(&id),
            (ContainerKind::Container, _) => {
                if let Some(sandbox_id) = sandbox_id {
                    self.pods.remember_member(id, sandbox_id);
                }
            }
            (ContainerKind::Sandbox, _) => {}
        }
    }

    fn unsupported(&self) -> RuntimeError {
        RuntimeError::Unsupported {
            endpoint: self.uri.clone(),
            request: REQUEST,
        }
    }

    fn failed(&self, status: &Status) -> RuntimeError {
        if is_unsupported(status) {
            return self.unsupported();
        }
        RuntimeError::Request {
            endpoint: self.uri.clone(),
            request: REQUEST,
            source: Box::new(ServerSaid::new(status)),
        }
    }
}
