//! The I/O: calls, time limits, and what a gRPC status means.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::events::{self, Subscription};
use super::info;
use super::normalise::{self, Runtime};
use super::pods::{ListFacts, Pods};
use super::proto::runtime_service_client::RuntimeServiceClient;
use super::proto::{
    self, ContainerStatus, ContainerStatusRequest, ExecSyncRequest, GetEventsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxStatusRequest,
    PodSandboxStatusResponse, VersionRequest,
};
use super::removals::Removals;
use crate::model::{Container, ContainerId, ContainerKind, Pod};
use crate::runtime::first_list::FirstList;
use crate::runtime::probe::Probe;
use crate::runtime::text;
use crate::runtime::{
    Endpoint, EventStream, ExecOutput, ExecStatus, Inspection, Listing, Options, RuntimeClient,
    RuntimeError, RuntimeInfo,
};

/// The version of kubelet's API that a client names in `Version`.
const KUBELET_API_VERSION: &str = "0.1.0";

/// How long a subscription is watched, after the server has answered a later call on the same connection, before
/// it counts as accepted. A refusal comes at once; an acceptance says nothing until the first event.
const SUBSCRIBE_SETTLE: Duration = Duration::from_millis(50);

/// Longest part of a server's error message that is kept, in characters.
const SERVER_MESSAGE_CHARS_MAX: usize = 256;

/// A connection to a CRI server.
pub(super) struct CriClient {
    calls: RuntimeServiceClient<Channel>,
    info: RuntimeInfo,
    runtime: Runtime,
    uri: String,
    pods: Arc<Pods>,
    first_list: FirstList<SketchRow>,
    options: Options,
}

/// A row of the list, as [`RuntimeClient::sketch`] needs it.
#[derive(Debug)]
enum SketchRow {
    Container(proto::Container),
    Sandbox(proto::PodSandbox),
}

/// Asks for the version. The caller limits the time.
///
/// No HTTP/2 keep-alive is set: grpc-go servers close a connection that is pinged more often than every five
/// minutes. [`RuntimeClient::ping`] goes over the same connection as the events and finds it dead.
///
/// # Errors
/// As [`crate::runtime::connect_with`].
pub(in crate::runtime) async fn connect(
    endpoint: &Endpoint,
    probe: Probe,
    options: &Options,
) -> Result<Arc<dyn RuntimeClient>, RuntimeError> {
    let uri = endpoint.uri();
    let path: Arc<std::path::Path> = endpoint.path.as_path().into();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(&path).await.map(TokioIo::new) }
    });
    // The authority is of no meaning on a unix socket; grpc-go wants it to be well formed.
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector_lazy(connector);
    let mut calls =
        RuntimeServiceClient::new(channel).max_decoding_message_size(options.message_bytes_max);

    let version = calls
        .version(version_request())
        .await
        .map_err(|status| refused(endpoint, &status))?
        .into_inner();
    let runtime = Runtime {
        name: text::bounded(&text::lossy(&version.runtime_name)).into(),
        version: text::bounded(&text::lossy(&version.runtime_version)).into(),
    };
    if runtime.name.is_empty() {
        return Err(RuntimeError::NotARuntime {
            endpoint: uri,
            expected: endpoint.runtime,
            source: "the answer has no runtime name".into(),
        });
    }
    let info = RuntimeInfo {
        endpoint: endpoint.clone(),
        name: Arc::clone(&runtime.name),
        version: Arc::clone(&runtime.version),
        peer_uid: probe.peer_uid,
        socket: probe.socket,
    };
    Ok(Arc::new(CriClient {
        calls,
        info,
        runtime,
        uri,
        pods: Arc::default(),
        first_list: FirstList::default(),
        options: options.clone(),
    }))
}

fn version_request() -> VersionRequest {
    VersionRequest {
        version: KUBELET_API_VERSION.to_owned(),
    }
}

/// A status without a server behind it (its source is of the transport), or one of a server that is not CRI's,
/// means that something else answers: the connection itself has just been made.
fn refused(endpoint: &Endpoint, status: &Status) -> RuntimeError {
    let is_foreign = status.code() == Code::Unimplemented
        || std::error::Error::source(status).is_some()
        || status.message().contains("grpc-status header missing");
    let uri = endpoint.uri();
    let source = Box::new(ServerSaid::new(status));
    if is_foreign {
        RuntimeError::NotARuntime {
            endpoint: uri,
            expected: endpoint.runtime,
            source,
        }
    } else {
        RuntimeError::Connect {
            endpoint: uri,
            source,
        }
    }
}

#[async_trait]
impl RuntimeClient for CriClient {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.ask_version(self.options.version_timeout).await
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let request = "list";
        let (mut first, mut second) = (self.calls.clone(), self.calls.clone());
        let both = async {
            futures::try_join!(
                first.list_pod_sandbox(ListPodSandboxRequest {}),
                second.list_containers(ListContainersRequest {}),
            )
        };
        let (sandboxes, containers) = self
            .within(request, self.options.request_timeout, both)
            .await?
            .map_err(|status| self.failed(request, &status))?;
        let (sandboxes, containers) = (sandboxes.into_inner(), containers.into_inner());
        let (listing, known) = normalise::listing(&sandboxes, &containers);
        self.pods.replace(known);
        if self.is_containerd() {
            self.first_list.keep(|| {
                let sandboxes = sandboxes.items.into_iter().map(SketchRow::Sandbox);
                let containers = containers.containers.into_iter();
                sandboxes
                    .chain(containers.map(SketchRow::Container))
                    .collect()
            });
        }
        Ok(listing)
    }

    fn sketch(&self, ids: &BTreeSet<ContainerId>) -> Vec<Container> {
        let rows = self.first_list.take().into_iter();
        let sketched = rows.filter_map(|row| match row {
            SketchRow::Container(row) => {
                let sandbox = normalise::id(&row.pod_sandbox_id);
                let pod = sandbox.and_then(|sandbox| self.pods.pod_of_sandbox(&sandbox));
                normalise::sketch(row, pod.as_deref(), &self.runtime)
            }
            SketchRow::Sandbox(row) => normalise::sandbox_sketch(row, &self.runtime),
        });
        sketched
            .filter(|container| ids.contains(&container.id))
            .collect()
    }

    async fn inspect(
        &self,
        id: &ContainerId,
        kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError> {
        match kind {
            ContainerKind::Container => self.inspect_container(id).await,
            ContainerKind::Sandbox => self.inspect_sandbox(id).await,
        }
    }

    /// A server that accepts says nothing until the first event: its headers come with it. So the subscription is
    /// sent, then `Version` is asked on the same connection; when that has been answered, and no refusal has come
    /// within [`SUBSCRIBE_SETTLE`], the subscription stands. containerd 2 does not refuse.
    async fn subscribe(&self) -> Result<EventStream, RuntimeError> {
        if self.shares_events() && !self.options.containerd_1_7_events {
            return Err(RuntimeError::Unsupported {
                endpoint: self.uri.clone(),
                request: events::REQUEST,
            });
        }
        let mut calls = self.calls.clone();
        let call = async move { calls.get_container_events(GetEventsRequest {}).await }.boxed();
        let subscription = Subscription::new(
            self.uri.clone(),
            self.runtime.clone(),
            Arc::clone(&self.pods),
            call,
        );
        let subscription = if &*self.runtime.name == "cri-o" {
            subscription.of_crio(Removals::new(
                self.calls.clone(),
                Arc::clone(&self.pods),
                self.options.request_timeout,
            ))
        } else {
            subscription
        };
        subscription
            .settle(async {
                self.ask_version(self.options.request_timeout).await?;
                if !self.surely_has_events() {
                    tokio::time::sleep(SUBSCRIBE_SETTLE).await;
                }
                Ok(())
            })
            .await
    }

    /// The server ends a command that outlives `timeout` (whole seconds, rounded up). Output comes at the end,
    /// and is lost with the time limit; runtimes cut it after 16 MB.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
        output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError> {
        let request = "exec";
        let mut calls = self.calls.clone();
        let call = calls.exec_sync(ExecSyncRequest {
            container_id: id.to_string(),
            cmd: command.to_vec(),
            timeout: timeout.map_or(0, whole_seconds),
        });
        let answer = match timeout {
            None => call.await,
            Some(timeout) => self.within(request, timeout, call).await?,
        };
        let answer =
            answer
                .map(Response::into_inner)
                .map_err(|status| match (status.code(), timeout) {
                    (Code::DeadlineExceeded, Some(timeout)) => self.timed_out(request, timeout),
                    _ if is_gone(&status) => RuntimeError::NoSuchContainer {
                        endpoint: self.uri.clone(),
                        id: id.to_string(),
                    },
                    _ => self.failed(request, &status),
                })?;
        output
            .stdout(&answer.stdout)
            .and_then(|()| output.stderr(&answer.stderr))
            .map_err(|error| RuntimeError::Request {
                endpoint: self.uri.clone(),
                request,
                source: Box::new(error),
            })?;
        Ok(ExecStatus {
            exit_code: answer.exit_code,
        })
    }

    async fn close(&self) {}
}

impl CriClient {
    async fn inspect_container(&self, id: &ContainerId) -> Result<Inspection, RuntimeError> {
        let request = "inspect";
        let mut calls = self.calls.clone();
        let call = calls.container_status(ContainerStatusRequest {
            container_id: id.to_string(),
            verbose: true,
        });
        let answer = self
            .within(request, self.options.request_timeout, call)
            .await?;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_gone(&status) => return Ok(Inspection::Gone),
            Err(status) => return Err(self.failed(request, &status)),
        };
        let status = answer.status.unwrap_or_default();
        let info = info::parse(&answer.info);
        let facts = self.pods.facts_of(id);
        let pod = self.pod_of(&status, &info, &facts).await;
        normalise::container(&status, info, &facts, pod.as_deref(), &self.runtime)
            .map(|container| Inspection::Found(Box::new(container)))
            .ok_or_else(|| self.malformed(request))
    }

    async fn inspect_sandbox(&self, id: &ContainerId) -> Result<Inspection, RuntimeError> {
        let request = "inspect";
        let answer = match self.sandbox_status(id, true).await? {
            Ok(answer) => answer,
            Err(status) if is_gone(&status) => return Ok(Inspection::Gone),
            Err(status) => return Err(self.failed(request, &status)),
        };
        let status = answer.status.unwrap_or_default();
        let info = info::parse(&answer.info);
        normalise::sandbox(&status, info, &self.runtime)
            .map(|container| Inspection::Found(Box::new(container)))
            .ok_or_else(|| self.malformed(request))
    }

    /// The pod as its sandbox says it: from the newest list, or asked for where neither that nor the labels tell.
    /// That a sandbox cannot be asked is no reason to fail the inspect.
    async fn pod_of(
        &self,
        status: &ContainerStatus,
        info: &info::Info,
        facts: &ListFacts,
    ) -> Option<Arc<Pod>> {
        let id = normalise::sandbox_id(info, facts)?;
        let known = self.pods.pod_of_sandbox(&id);
        if known.is_some() || normalise::labels_name_the_pod(&status.labels) {
            return known;
        }
        let answer = self.sandbox_status(&id, false).await.ok()?.ok()?;
        let metadata = answer.status.and_then(|status| status.metadata);
        let pod = normalise::pod_of_sandbox(&id, metadata.as_ref());
        self.pods.remember_sandbox(id, pod.clone());
        Some(Arc::new(pod))
    }

    async fn sandbox_status(
        &self,
        id: &ContainerId,
        verbose: bool,
    ) -> Result<Result<PodSandboxStatusResponse, Status>, RuntimeError> {
        let mut calls = self.calls.clone();
        let call = calls.pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id: id.to_string(),
            verbose,
        });
        let answer = self
            .within("inspect", self.options.request_timeout, call)
            .await?;
        Ok(answer.map(Response::into_inner))
    }

    async fn ask_version(&self, timeout: Duration) -> Result<(), RuntimeError> {
        let request = "version";
        let mut calls = self.calls.clone();
        self.within(request, timeout, calls.version(version_request()))
            .await?
            .map_err(|status| self.failed(request, &status))?;
        Ok(())
    }

    /// containerd before 2.0 has no event stream (1.6), or one whose events each go to one reader only (1.7).
    fn shares_events(&self) -> bool {
        self.is_containerd() && major_version(&self.runtime.version).is_some_and(|major| major < 2)
    }

    fn surely_has_events(&self) -> bool {
        self.is_containerd() && major_version(&self.runtime.version).is_some_and(|major| major >= 2)
    }

    fn is_containerd(&self) -> bool {
        &*self.runtime.name == "containerd"
    }

    async fn within<T>(
        &self,
        request: &'static str,
        timeout: Duration,
        call: impl Future<Output = T>,
    ) -> Result<T, RuntimeError> {
        tokio::time::timeout(timeout, call)
            .await
            .map_err(|_| self.timed_out(request, timeout))
    }

    fn timed_out(&self, request: &'static str, timeout: Duration) -> RuntimeError {
        RuntimeError::Timeout {
            endpoint: self.uri.clone(),
            request,
            timeout,
        }
    }

    fn failed(&self, request: &'static str, status: &Status) -> RuntimeError {
        if is_unsupported(status) {
            return RuntimeError::Unsupported {
                endpoint: self.uri.clone(),
                request,
            };
        }
        failed(&self.uri, request, status)
    }

    fn malformed(&self, request: &'static str) -> RuntimeError {
        RuntimeError::Request {
            endpoint: self.uri.clone(),
            request,
            source: "the answer has no usable id".into(),
        }
    }
}

/// What a status means that is no refusal of the call as such.
pub(in crate::runtime) fn failed(
    uri: &str,
    request: &'static str,
    status: &Status,
) -> RuntimeError {
    let (endpoint, source) = (uri.to_owned(), Box::new(ServerSaid::new(status)));
    if is_too_long(status) {
        return RuntimeError::TooLong {
            endpoint,
            request,
            source,
        };
    }
    RuntimeError::Request {
        endpoint,
        request,
        source,
    }
}

/// Whether the answer passes the limit: ours, of which tonic says OutOfRange (`codec/decode.rs`), or the server's own, of
/// which grpc-go says ResourceExhausted (`server.go`, `sendResponse`: "trying to send message larger than max").
fn is_too_long(status: &Status) -> bool {
    let message = status.message();
    let is_ours = status.code() == Code::OutOfRange && message.contains("length too large");
    let is_theirs =
        status.code() == Code::ResourceExhausted && message.contains("message larger than max");
    is_ours || is_theirs
}

/// Whether the server has no such call.
pub(super) fn is_unsupported(status: &Status) -> bool {
    status.code() == Code::Unimplemented
}

/// Whether the server does not know the container. cri-dockerd passes Docker's words on with code Unknown.
fn is_gone(status: &Status) -> bool {
    status.code() == Code::NotFound
        || (status.code() == Code::Unknown && status.message().contains("No such container"))
}

/// `2` of `v2.1.4`, `1` of `1.6.20~ds1`.
fn major_version(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('v').unwrap_or(text);
    let (major, _) = digits.split_once('.')?;
    major.parse().ok()
}

fn whole_seconds(timeout: Duration) -> i64 {
    let rounded_up = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    i64::try_from(rounded_up.max(1)).unwrap_or(i64::MAX)
}

/// What a server answered instead of a message.
#[derive(Debug)]
pub(in crate::runtime) struct ServerSaid {
    code: Code,
    message: String,
}

impl ServerSaid {
    /// Takes the status' words, bounded and escaped.
    pub(in crate::runtime) fn new(status: &Status) -> Self {
        let mut message = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        let head: String = message.chars().take(SERVER_MESSAGE_CHARS_MAX).collect();
        Self {
            code: status.code(),
            message: text::escaped(&head),
        }
    }
}

impl fmt::Display for ServerSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server said {:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for ServerSaid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_of_every_distribution_s_text() {
        for (text, expected) in [
            ("v2.1.4", Some(2)),
            ("1.6.20~ds1", Some(1)),
            ("v1.7.22-k3s1", Some(1)),
            ("2.0.0-rc.1", Some(2)),
            ("", None),
            ("dev", None),
        ] {
            assert_eq!(major_version(text), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_for_either_side_is_told_from_other_refusals() {
        let ours = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        let theirs = "grpc: trying to send message larger than max (9 vs. 8)";
        for (status, expected) in [
            (Status::out_of_range(ours), true),
            (Status::resource_exhausted(theirs), true),
            (Status::resource_exhausted("too many open files"), false),
            (Status::unavailable(theirs), false),
        ] {
            let error = failed("unix:///cri.sock", "list", &status);
            let is_too_long = matches!(error, RuntimeError::TooLong { .. });
            assert_eq!(is_too_long, expected, "{status:?}");
        }
    }

    #[test]
    fn a_time_limit_is_rounded_up_to_whole_seconds() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(2)), 2);
        assert_eq!(whole_seconds(Duration::from_millis(2_001)), 3);
    }
}
