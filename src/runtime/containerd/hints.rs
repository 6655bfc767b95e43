//! Hints: the pid of a container before its first instruction runs.
//!
//! They come from the shims' bundles, read by `bundles.rs`, and from containerd's own events, read here; `pids.rs` reads
//! each process and tells of it.
//!
//! containerd publishes `/tasks/create` with the pid once the init process is there, for CRI's containers and for
//! Docker's (namespace `moby`), some 12 ms before `/tasks/start` and 25 ms before Docker's own `start`. The process
//! is read at once, its namespace held, and told to the reconciler, which maps it ahead of the `start`. These are
//! hints: whether a container exists and runs is said by Docker and by CRI alone. Where CRI has no stream
//! (containerd 1.6, 1.7), an event causes the list that the next poll would have made.
//!
//! There is no replay, and a hint that is lost costs only its being early. containerd queues without bound for a
//! slow reader, so the stream is read at all times, on a thread of its own: a container that lives some ms is gone while
//! another task decodes a long list on the thread that it shares.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::{Code, Streaming};

use super::client::channel;
use super::pids::Origin;
use super::proto::events::events_client::EventsClient;
use super::proto::events::{Envelope, SubscribeRequest, TaskCreate};
use super::{CRI_NAMESPACE, Claims, bundles};
use crate::backoff::Backoff;
use crate::model::{ContainerId, SourceId};
use crate::reconcile::Observation;
use crate::runtime::watch::WatchContext;

/// What is asked for.
const FILTERS: [&str; 4] = [
    "topic==\"/tasks/create\"",
    "topic==\"/tasks/exit\"",
    "topic==\"/containers/create\"",
    "topic==\"/containers/delete\"",
];
/// How long they wait when the socket was found: everybody waits for its first list, and only what starts meanwhile for
/// hints, and that is told by its events.
const HELD: Duration = Duration::from_millis(50);
/// The first and the longest wait before the stream is asked for again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Reads the hints of the containerd at a socket until the context's `stop`, or for good where something else is there.
/// `cri` is the endpoint of CRI at the same socket, if it is watched. Dropped midway, the threads that read go on until
/// `stop`.
pub async fn hints(socket: PathBuf, cri: Option<SourceId>, context: WatchContext) {
    tokio::select! {
        () = context.stop.cancelled() => return,
        () = tokio::time::sleep(HELD) => {}
    }
    let socket: Arc<Path> = socket.into();
    let of_bundles = {
        let (socket, context) = (Arc::clone(&socket), context.clone());
        on_a_thread("bundles", || async move {
            bundles::read(&socket, &context).await;
        })
    };
    let of_events = on_a_thread("hints", || async move {
        read(&socket, cri.as_ref(), &context).await;
    });
    tokio::join!(of_bundles, of_events);
}

/// Does something on a thread of its own, and waits for its end.
async fn on_a_thread<F: Future<Output = ()>>(
    name: &'static str,
    work: impl FnOnce() -> F + Send + 'static,
) {
    let (done, ended) = oneshot::channel();
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(work()),
            Err(error) => tracing::warn!(%error, name, "no hints: the system has nothing left"),
        }
        // Nobody may wait for it any more.
        let _ = done.send(());
    });
    match spawned {
        Ok(_) => _ = ended.await,
        Err(error) => tracing::warn!(%error, name, "no hints: the system has no thread left"),
    }
}

async fn read(socket: &Path, cri: Option<&SourceId>, context: &WatchContext) {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        let ended = tokio::select! {
            () = context.stop.cancelled() => return,
            ended = session(socket, cri, context, &mut backoff) => ended,
        };
        if let Err(status) = ended {
            if status.code() == Code::Unimplemented {
                tracing::debug!(socket = %socket.display(), "no events of containerd here");
                return;
            }
            tracing::debug!(socket = %socket.display(), error = %status, "no hints for now");
        }
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

async fn session(
    socket: &Path,
    cri: Option<&SourceId>,
    context: &WatchContext,
    backoff: &mut Backoff,
) -> Result<(), tonic::Status> {
    let uid = UnixStream::connect(socket).await?.peer_cred()?.uid();
    let request = SubscribeRequest {
        filters: FILTERS.map(str::to_owned).to_vec(),
    };
    let mut stream: Streaming<Envelope> = EventsClient::new(channel(socket))
        .subscribe(request)
        .await?
        .into_inner();
    tracing::debug!(socket = %socket.display(), "hints are read");
    while let Some(envelope) = stream.message().await? {
        backoff.reset();
        take(&envelope, cri, uid, context);
    }
    Ok(())
}

/// Tells the collector of one event, without ever waiting. What does not fit is lost, as a hint may be.
fn take(envelope: &Envelope, cri: Option<&SourceId>, uid: u32, context: &WatchContext) {
    if envelope.topic == b"/tasks/create"
        && let Some(task) = created_task(envelope, &context.options.claims)
    {
        let pids = &context.options.pids;
        pids.tell(Origin::Event, task, uid, context);
    }
    if envelope.namespace == CRI_NAMESPACE.as_bytes()
        && let Some(source) = cri
    {
        context.observations.try_send(Observation::ListDue {
            source: source.clone(),
        });
    }
}

/// The container and the pid of a `/tasks/create`; `None` where either is missing or no id.
pub(super) fn created_task(envelope: &Envelope, claims: &Claims) -> Option<(ContainerId, u32)> {
    let event = envelope.event.as_ref()?;
    let task = TaskCreate::decode(event.value.as_slice()).ok()?;
    let id = claims.key(&envelope.namespace, &task.container_id)?;
    (task.pid != 0).then_some((id, task.pid))
}

#[cfg(test)]
mod tests {
    use super::super::proto::events::Any;
    use super::*;
    use crate::model::RuntimeType;

    fn claims() -> Claims {
        let claims = Claims::default();
        claims.add(RuntimeType::Docker);
        claims
    }

    fn envelope(value: Vec<u8>) -> Envelope {
        Envelope {
            namespace: b"moby".to_vec(),
            topic: b"/tasks/create".to_vec(),
            event: Some(Any { value }),
            timestamp: None,
        }
    }

    #[test]
    fn a_task_that_was_created_has_a_container_and_a_pid() {
        let task = TaskCreate {
            container_id: b"abc".to_vec(),
            pid: 7,
        };
        let (id, pid) =
            created_task(&envelope(task.encode_to_vec()), &claims()).expect("it is whole");
        assert_eq!((id.as_str(), pid), ("abc", 7));
    }

    #[test]
    fn what_is_malformed_is_no_hint() {
        let without_pid = TaskCreate {
            container_id: b"abc".to_vec(),
            pid: 0,
        };
        let hostile = TaskCreate {
            container_id: b"a/b\xff".to_vec(),
            pid: 7,
        };
        let values = [
            without_pid.encode_to_vec(),
            hostile.encode_to_vec(),
            vec![0xff; 40],
            Vec::new(),
        ];
        for value in values {
            assert!(
                created_task(&envelope(value.clone()), &claims()).is_none(),
                "{value:?}"
            );
        }
        let empty = Envelope::default();
        assert!(created_task(&empty, &claims()).is_none());
    }
}
