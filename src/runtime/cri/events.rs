//! The event stream: a call that may stay without an answer until the first event.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;
use tonic::{Response, Status, Streaming};

use super::client::{ServerSaid, is_unsupported};
use super::normalise::{self, Runtime};
use super::pods::Pods;
use super::proto::ContainerEventResponse;
use crate::model::RuntimeEvent;
use crate::runtime::{EventStream, RuntimeError};

/// The name of the request in errors.
pub(super) const REQUEST: &str = "events";

/// A stream that ends this soon, without an error and without an event, is none: CRI-O answers so when
/// `enable_pod_events` is off (cri-o, `server/container_events.go`).
const ENDS_AT_ONCE: Duration = Duration::from_secs(5);

/// What the call becomes.
type Call = Result<Response<Streaming<ContainerEventResponse>>, Status>;

enum Phase {
    Calling(BoxFuture<'static, Call>),
    Live(Box<Streaming<ContainerEventResponse>>),
    Ended,
}

/// A subscription that was sent.
pub(super) struct Subscription {
    uri: String,
    runtime: Runtime,
    pods: Arc<Pods>,
    phase: Phase,
    began: Instant,
    events: u64,
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
            first: None,
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
            let answer = match &mut self.phase {
                Phase::Calling(call) => match call.await {
                    Ok(response) => {
                        self.phase = Phase::Live(Box::new(response.into_inner()));
                        continue;
                    }
                    Err(status) => Err(status),
                },
                Phase::Live(messages) => messages.message().await,
                Phase::Ended => return None,
            };
            match answer {
                Ok(Some(message)) => {
                    self.events += 1;
                    return Some(self.understand(&message));
                }
                Ok(None) => {
                    self.phase = Phase::Ended;
                    let is_off = self.events == 0 && self.began.elapsed() < ENDS_AT_ONCE;
                    return is_off.then(|| Err(self.unsupported()));
                }
                Err(status) => {
                    self.phase = Phase::Ended;
                    return Some(Err(self.failed(&status)));
                }
            }
        }
    }

    fn understand(&self, message: &ContainerEventResponse) -> Result<RuntimeEvent, RuntimeError> {
        if let Some(status) = &message.pod_sandbox_status
            && let Some(id) = normalise::id(&status.id)
        {
            let pod = normalise::pod_of_sandbox(&id, status.metadata.as_ref());
            self.pods.remember_sandbox(id, pod);
        }
        normalise::event(message, |id| self.pods.is_sandbox(id), &self.runtime).ok_or_else(|| {
            RuntimeError::Malformed {
                endpoint: self.uri.clone(),
                request: REQUEST,
                source: "an event without a usable id or of an unknown type".into(),
            }
        })
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
