//! A CRI server of cardboard: tonic over a unix socket, from the same `.proto`, with grpc-go's manners where they
//! matter (no headers before the first event).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use quaymaster::model::RuntimeType;
use quaymaster::runtime::Endpoint;
use quaymaster::runtime::cri::proto::runtime_service_server::{
    RuntimeService, RuntimeServiceServer,
};
use quaymaster::runtime::cri::proto::*;
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// Events that a subscriber may lag behind, as containerd's own channel.
const EVENTS_BUFFERED: usize = 100;

/// How the server treats those who ask for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EventsMode {
    /// containerd 2: a stream, without headers before the first event.
    #[default]
    Live,
    /// containerd 1.6, cri-dockerd.
    Unimplemented,
    /// CRI-O with `enable_pod_events` off.
    EndsAtOnce,
}

/// What the server says; a test may change it at any time.
#[derive(Clone, Debug, Default)]
pub(crate) struct CriState {
    /// The answer to Version.
    pub(crate) version: VersionResponse,
    /// The answer to ListPodSandbox.
    pub(crate) sandboxes: Vec<PodSandbox>,
    /// The answer to ListContainers.
    pub(crate) containers: Vec<Container>,
    /// The answers to ContainerStatus, by id.
    pub(crate) statuses: BTreeMap<String, ContainerStatusResponse>,
    /// The answers to PodSandboxStatus, by id.
    pub(crate) sandbox_statuses: BTreeMap<String, PodSandboxStatusResponse>,
    /// The answer to ExecSync; none is an error.
    pub(crate) exec: Option<ExecSyncResponse>,
    /// The error of every list.
    pub(crate) list_error: Option<Status>,
    /// The error of every inspect.
    pub(crate) inspect_error: Option<Status>,
    /// How events are given.
    pub(crate) events: EventsMode,
    /// How long every answer takes.
    pub(crate) delay: Duration,
    /// The names of all calls so far.
    pub(crate) calls: Vec<String>,
    /// Whether sandboxes, and containers, were listed since events were last asked for.
    pub(crate) is_listed: [bool; 2],
}

#[derive(Clone, Debug)]
enum Push {
    Event(Box<ContainerEventResponse>),
    End,
}

/// The server. It ends when it is dropped.
pub(crate) struct FakeCri {
    path: PathBuf,
    state: Arc<Mutex<CriState>>,
    events: broadcast::Sender<Push>,
    server: JoinHandle<()>,
}

impl FakeCri {
    /// A server that calls itself containerd 2.1, with nothing in it, on `cri.sock` below `folder`.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("cri.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let state = Arc::new(Mutex::new(CriState {
            version: version("containerd", "v2.1.9"),
            ..CriState::default()
        }));
        let (events, _) = broadcast::channel(EVENTS_BUFFERED);
        let service = Service {
            state: Arc::clone(&state),
            events: events.clone(),
        };
        let service = RuntimeServiceServer::new(service).max_encoding_message_size(usize::MAX);
        let server = tokio::spawn(serve(listener, service));
        Ok(Self {
            path,
            state,
            events,
            server,
        })
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            runtime: RuntimeType::Cri,
            path: self.path.clone(),
        }
    }

    /// What it says; not to be held over an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, CriState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a sandbox, in the list and for inspects; READY with a pid, NOTREADY with 0.
    pub(crate) fn put_sandbox(&self, id: &str, name: &str, namespace: &str, pid: u32) {
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}").into(),
            namespace: namespace.into(),
            attempt: 0,
        };
        let state = if pid == 0 {
            PodSandboxState::SandboxNotready
        } else {
            PodSandboxState::SandboxReady
        };
        let status = PodSandboxStatus {
            id: id.into(),
            metadata: Some(metadata.clone()),
            state: state.into(),
            created_at: 10,
            ..PodSandboxStatus::default()
        };
        let info = format!(r#"{{"pid":{pid},"image":"registry.example/pause:3.10"}}"#);
        let mut said = self.state();
        said.sandboxes.retain(|row| row.id != id.as_bytes());
        said.sandboxes.push(PodSandbox {
            id: id.into(),
            metadata: Some(metadata),
            state: state.into(),
            created_at: 10,
            labels: Vec::new(),
        });
        said.sandbox_statuses.insert(
            id.to_owned(),
            PodSandboxStatusResponse {
                status: Some(status),
                info: vec![entry("info", &info)],
            },
        );
    }

    /// Adds a container, in the list and for inspects.
    pub(crate) fn put_container(&self, status: ContainerStatus, sandbox_id: &str, pid: u32) {
        let id = String::from_utf8_lossy(&status.id).into_owned();
        let info = format!(r#"{{"sandboxID":"{sandbox_id}","pid":{pid}}}"#);
        let mut said = self.state();
        said.containers.retain(|row| row.id != status.id);
        said.containers.push(Container {
            id: status.id.clone(),
            pod_sandbox_id: sandbox_id.into(),
            metadata: status.metadata.clone(),
            image: status.image.clone(),
            image_ref: status.image_ref.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            image_id: status.image_id.clone(),
        });
        said.statuses.insert(
            id,
            ContainerStatusResponse {
                status: Some(status),
                info: vec![entry("info", &info)],
            },
        );
    }

    /// Takes a container or a sandbox away.
    pub(crate) fn remove(&self, id: &str) {
        let mut said = self.state();
        said.containers.retain(|row| row.id != id.as_bytes());
        said.sandboxes.retain(|row| row.id != id.as_bytes());
        said.statuses.remove(id);
        said.sandbox_statuses.remove(id);
    }

    /// Sends an event to all who have subscribed; how many have.
    pub(crate) fn push(&self, event: ContainerEventResponse) -> usize {
        self.events.send(Push::Event(Box::new(event))).unwrap_or(0)
    }

    /// How many streams of events are open.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn subscribers(&self) -> usize {
        self.events.receiver_count()
    }

    /// Whether somebody reads the events, and was given whole lists since they were asked for.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn is_followed(&self) -> bool {
        self.state().is_listed == [true; 2] && self.subscribers() > 0
    }

    /// Ends all streams of events.
    pub(crate) fn end_events(&self) {
        let _ = self.events.send(Push::End);
    }
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The answer to Version.
pub(crate) fn version(name: &str, version: &str) -> VersionResponse {
    VersionResponse {
        version: "0.1.0".into(),
        runtime_name: name.into(),
        runtime_version: version.into(),
        runtime_api_version: "v1".into(),
    }
}

/// A label, or a part of a verbose status.
pub(crate) fn entry(key: &str, value: &str) -> Entry {
    Entry {
        key: key.into(),
        value: value.into(),
    }
}

/// The status of a container that runs; its fields may be changed before it is put.
pub(crate) fn running(id: &str, name: &str) -> ContainerStatus {
    ContainerStatus {
        id: id.into(),
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        state: ContainerState::ContainerRunning.into(),
        created_at: 10,
        started_at: 20,
        image: Some(ImageSpec {
            image: "docker.io/library/nginx:1.21".into(),
            user_specified_image: Vec::new(),
        }),
        image_ref: format!("sha256:{}", "1".repeat(64)).into(),
        ..ContainerStatus::default()
    }
}

/// An event of a container or sandbox without any status.
pub(crate) fn event(id: &str, kind: ContainerEventType, at_ns: i64) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: id.into(),
        container_event_type: kind.into(),
        created_at: at_ns,
        ..ContainerEventResponse::default()
    }
}

/// tonic's own server would need its router, and with it axum.
async fn serve(listener: UnixListener, service: RuntimeServiceServer<Service>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(service.clone());
        connections.spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is none of our business.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Service {
    state: Arc<Mutex<CriState>>,
    events: broadcast::Sender<Push>,
}

impl Service {
    fn state(&self) -> MutexGuard<'_, CriState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, waits as long as the script says, and takes what it says then.
    async fn said(&self, call: &str) -> CriState {
        let delay = {
            let mut state = self.state();
            state.calls.push(call.to_owned());
            state.delay
        };
        tokio::time::sleep(delay).await;
        self.state().clone()
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(
        &self,
        _request: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(self.said("Version").await.version))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn list_pod_sandbox(
        &self,
        _request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let said = self.said("ListPodSandbox").await;
        match said.list_error {
            Some(status) => Err(status),
            None => {
                self.state().is_listed[0] = true;
                Ok(Response::new(ListPodSandboxResponse {
                    items: said.sandboxes,
                }))
            }
        }
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let said = self.said("PodSandboxStatus").await;
        if let Some(status) = said.inspect_error {
            return Err(status);
        }
        let request = request.into_inner();
        let mut answer = said
            .sandbox_statuses
            .get(&request.pod_sandbox_id)
            .cloned()
            .ok_or_else(|| Status::not_found("no such sandbox"))?;
        if !request.verbose {
            answer.info.clear();
        }
        Ok(Response::new(answer))
    }

    async fn list_containers(
        &self,
        _request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let said = self.said("ListContainers").await;
        match said.list_error {
            Some(status) => Err(status),
            None => {
                self.state().is_listed[1] = true;
                Ok(Response::new(ListContainersResponse {
                    containers: said.containers,
                }))
            }
        }
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let said = self.said("ContainerStatus").await;
        if let Some(status) = said.inspect_error {
            return Err(status);
        }
        said.statuses
            .get(&request.into_inner().container_id)
            .cloned()
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no such container"))
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let call = format!("ExecSync {} {:?}", request.timeout, request.cmd);
        let said = self.said(&call).await;
        if !said.statuses.contains_key(&request.container_id) {
            return Err(Status::not_found("no such container"));
        }
        said.exec
            .map(Response::new)
            .ok_or_else(|| Status::unknown("failed to exec in container"))
    }

    type GetContainerEventsStream = EventStream;

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        self.state().is_listed = [false; 2];
        let mut receiver = self.events.subscribe();
        match self.said("GetContainerEvents").await.events {
            EventsMode::Unimplemented => Err(Status::unimplemented("method not implemented")),
            EventsMode::EndsAtOnce => Ok(Response::new(stream::empty().boxed())),
            EventsMode::Live => {
                // As grpc-go: nothing is sent before the first event, not even headers.
                let first = next(&mut receiver).await;
                let rest = stream::unfold(receiver, |mut receiver| async move {
                    let event = next(&mut receiver).await?;
                    Some((Ok(event), receiver))
                });
                let all = stream::iter(first.map(Ok)).chain(rest);
                Ok(Response::new(all.boxed()))
            }
        }
    }
}

async fn next(receiver: &mut broadcast::Receiver<Push>) -> Option<ContainerEventResponse> {
    match receiver.recv().await {
        Ok(Push::Event(event)) => Some(*event),
        Ok(Push::End) | Err(_) => None,
    }
}
