//! The client for namespaces that nobody else watches: calls, time limits, the stream.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryFutureExt as _, stream};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::proto::containers::containers_client::ContainersClient;
use super::proto::containers::{
    Container as Row, GetContainerRequest, ListContainersRequest, ListContainersResponse,
};
use super::proto::events::events_client::EventsClient;
use super::proto::events::{Envelope, SubscribeRequest};
use super::proto::namespaces::ListNamespacesRequest;
use super::proto::namespaces::namespaces_client::NamespacesClient;
use super::proto::version::VersionRequest;
use super::proto::version::version_client::VersionClient;
use super::{Claims, in_namespace, normalise, split_key, tasks, utf8};
use crate::model::{ContainerId, ContainerKind, RuntimeEvent};
use crate::runtime::cri::ServerSaid;
use crate::runtime::probe::Probe;
use crate::runtime::text;
use crate::runtime::{
    Endpoint, EventStream, ExecOutput, ExecStatus, Inspection, Listing, Options, RuntimeClient,
    RuntimeError, RuntimeInfo,
};

/// The runtime's name.
pub(super) const NAME: &str = "containerd";

/// The name of the stream in errors.
const EVENTS: &str = "events";

/// How long a subscription has, after containerd has answered a later call on the same connection, to be in force:
/// each call has a thread of its own there.
const SUBSCRIBE_SETTLE: Duration = Duration::from_millis(5);

/// A connection to containerd.
struct ContainerdClient {
    channel: Channel,
    info: RuntimeInfo,
    uri: String,
    claims: Arc<Claims>,
    options: Options,
}

/// A connection that is made when it is first used.
pub(super) fn channel(path: &std::path::Path) -> Channel {
    let path: Arc<std::path::Path> = path.into();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(&path).await.map(TokioIo::new) }
    });
    // The authority is of no meaning on a unix socket; grpc-go wants it to be well formed.
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector_lazy(connector)
}

/// Asks for the version. The caller limits the time.
///
/// # Errors
/// As [`crate::runtime::connect_with`].
pub(in crate::runtime) async fn connect(
    endpoint: &Endpoint,
    probe: Probe,
    options: &Options,
) -> Result<Arc<dyn RuntimeClient>, RuntimeError> {
    let uri = endpoint.uri();
    let channel = channel(&endpoint.path);
    let version = VersionClient::new(channel.clone())
        .version(VersionRequest {})
        .await
        .map_err(|status| RuntimeError::NotARuntime {
            endpoint: uri.clone(),
            expected: endpoint.runtime,
            source: Box::new(ServerSaid::new(&status)),
        })?
        .into_inner();
    let info = RuntimeInfo {
        endpoint: endpoint.clone(),
        name: NAME.into(),
        version: text::bounded(&text::lossy(&version.version)).into(),
        peer_uid: probe.peer_uid,
        socket: probe.socket,
    };
    Ok(Arc::new(ContainerdClient {
        channel,
        info,
        uri,
        claims: Arc::clone(&options.claims),
        options: options.clone(),
    }))
}

#[async_trait]
impl RuntimeClient for ContainerdClient {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.ask_version(self.options.version_timeout).await
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let request = "list";
        let listing = self.list_all();
        let timeout = self.options.request_timeout;
        self.within(request, timeout, listing)
            .await?
            .map_err(|status| self.failed(request, &status))
    }

    async fn inspect(
        &self,
        id: &ContainerId,
        _kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError> {
        let request = "inspect";
        // Such a key is made only by this client: another id is not of this runtime.
        let Some((namespace, name)) = split_key(id) else {
            return Ok(Inspection::Gone);
        };
        let asking = self.look(namespace, name);
        let timeout = self.options.request_timeout;
        let found = self.within(request, timeout, asking).await?;
        let Some((row, task)) = found.map_err(|status| self.failed(request, &status))? else {
            return Ok(Inspection::Gone);
        };
        normalise::container(namespace, &row, task.as_ref(), &self.info.version)
            .map(|container| Inspection::Found(Box::new(container)))
            .ok_or_else(|| RuntimeError::Request {
                endpoint: self.uri.clone(),
                request,
                source: "the answer has no usable id".into(),
            })
    }

    /// containerd says nothing until the first event: its headers come with it.
    async fn subscribe(&self) -> Result<EventStream, RuntimeError> {
        let mut calls = EventsClient::new(self.channel.clone());
        let filters = normalise::FILTERS.map(str::to_owned).to_vec();
        let call = async move {
            let answer = calls.subscribe(SubscribeRequest { filters }).await;
            answer.map(tonic::Response::into_inner)
        };
        let mut raw = Box::pin(call.try_flatten_stream());
        let settled = async {
            self.ask_version(self.options.request_timeout).await?;
            tokio::time::sleep(SUBSCRIBE_SETTLE).await;
            Ok(())
        };
        let first = tokio::select! {
            biased;
            item = raw.next() => match item {
                Some(Err(status)) => return Err(self.failed(EVENTS, &status)),
                item => item,
            },
            done = settled => {
                done?;
                None
            }
        };
        let reader = Reader {
            uri: self.uri.clone(),
            version: Arc::clone(&self.info.version),
            claims: Arc::clone(&self.claims),
        };
        let items = stream::iter(first).chain(raw);
        Ok(items
            .filter_map(move |item| std::future::ready(reader.understand(item)))
            .boxed())
    }

    /// Not supported: a process of a task needs pipes in the file system that containerd's shim opens too, and a whole
    /// OCI process.
    async fn exec(
        &self,
        _id: &ContainerId,
        _command: &[String],
        _timeout: Option<Duration>,
        _output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError> {
        Err(RuntimeError::Unsupported {
            endpoint: self.uri.clone(),
            request: "exec",
        })
    }

    async fn close(&self) {}
}

impl ContainerdClient {
    async fn list_all(&self) -> Result<Listing, Status> {
        let namespaces = NamespacesClient::new(self.channel.clone())
            .list(ListNamespacesRequest {})
            .await?
            .into_inner()
            .namespaces;
        let mut listing = Listing::default();
        for namespace in namespaces {
            let Some(name) = utf8(&namespace.name) else {
                listing.skipped += 1;
                continue;
            };
            if !self.claims.is_claimed(name) {
                self.list_namespace(name, &mut listing).await?;
            }
        }
        Ok(listing)
    }

    async fn list_namespace(&self, namespace: &str, listing: &mut Listing) -> Result<(), Status> {
        let mut calls = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(self.options.message_bytes_max);
        let request = in_namespace(ListContainersRequest {}, namespace)?;
        let ListContainersResponse { containers } = calls.list(request).await?.into_inner();
        let tasks = if containers.is_empty() {
            std::collections::HashMap::new()
        } else {
            tasks::list(self.channel.clone(), namespace).await?
        };
        for row in containers {
            let task = utf8(&row.id).and_then(|id| tasks.get(id));
            match normalise::list_row(namespace, &row, task) {
                Some(row) => listing.rows.push(row),
                None => listing.skipped += 1,
            }
        }
        Ok(())
    }

    async fn look(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<(Row, Option<super::proto::tasks::Process>)>, Status> {
        let message = GetContainerRequest {
            id: name.to_owned(),
        };
        let request = in_namespace(message, namespace)?;
        let mut calls = ContainersClient::new(self.channel.clone());
        let row = match calls.get(request).await {
            Ok(answer) => answer.into_inner().container.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        let task = tasks::get(self.channel.clone(), namespace, name).await?;
        Ok(Some((row, task)))
    }

    async fn ask_version(&self, timeout: Duration) -> Result<(), RuntimeError> {
        let request = "version";
        let mut calls = VersionClient::new(self.channel.clone());
        self.within(request, timeout, calls.version(VersionRequest {}))
            .await?
            .map_err(|status| self.failed(request, &status))?;
        Ok(())
    }

    async fn within<T>(
        &self,
        request: &'static str,
        timeout: Duration,
        call: impl Future<Output = T>,
    ) -> Result<T, RuntimeError> {
        tokio::time::timeout(timeout, call)
            .await
            .map_err(|_| RuntimeError::Timeout {
                endpoint: self.uri.clone(),
                request,
                timeout,
            })
    }

    fn failed(&self, request: &'static str, status: &Status) -> RuntimeError {
        failed(&self.uri, request, status)
    }
}

fn failed(uri: &str, request: &'static str, status: &Status) -> RuntimeError {
    if status.code() == Code::Unimplemented {
        return RuntimeError::Unsupported {
            endpoint: uri.to_owned(),
            request,
        };
    }
    crate::runtime::cri::failed(uri, request, status)
}

/// What is needed to understand the stream's items.
struct Reader {
    uri: String,
    version: Arc<str>,
    claims: Arc<Claims>,
}

impl Reader {
    fn understand(
        &self,
        item: Result<Envelope, Status>,
    ) -> Option<Result<RuntimeEvent, RuntimeError>> {
        let envelope = match item {
            Ok(envelope) => envelope,
            Err(status) => return Some(Err(failed(&self.uri, EVENTS, &status))),
        };
        if utf8(&envelope.namespace).is_some_and(|name| self.claims.is_claimed(name)) {
            return None;
        }
        match normalise::event(&envelope, &self.version) {
            Ok(event) => event.map(Ok),
            Err(problem) => Some(Err(RuntimeError::Malformed {
                endpoint: self.uri.clone(),
                request: EVENTS,
                source: problem.into(),
            })),
        }
    }
}
