//! The I/O: requests, time limits, and what an HTTP status means.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures::StreamExt as _;
use hyper::StatusCode;
use serde::de::DeserializeOwned;

use super::exit_labels::ExitLabels;
use super::http::{AnswerTooLong, BoxError, Http, ServerSaid, read_whole};
use super::normalise::Engine;
use super::wire::{Details, ExecDetails, Row, Version};
use super::{events, http, normalise};
use crate::model::{Container, ContainerId, ContainerKind};
use crate::runtime::first_list::FirstList;
use crate::runtime::lenient::Lenient;
use crate::runtime::probe::Probe;
use crate::runtime::text;
use crate::runtime::{
    Endpoint, EventStream, ExecOutput, ExecStatus, Inspection, Listing, Options, RuntimeClient,
    RuntimeError, RuntimeInfo,
};

/// What is asked of dockerd's stream. `stop`, `kill`, `oom` and `update` add nothing; `health_status` or `exec_*`
/// would switch the whole filter to prefix matching (moby, `daemon/events/filter.go`).
const DOCKER_ACTIONS: &[&str] = &[
    "create", "start", "die", "destroy", "rename", "pause", "unpause",
];

/// What is asked of Podman's: it also says `init` (before `start`), and `remove` for `destroy`.
const PODMAN_ACTIONS: &[&str] = &[
    "create", "init", "start", "die", "died", "destroy", "remove", "rename", "pause", "unpause",
];

/// How often and how fast the exit code of an exec is asked for: its output may end a moment before dockerd has
/// noted the process's end.
const EXEC_INSPECTS_MAX: u32 = 50;
const EXEC_INSPECT_INTERVAL: Duration = Duration::from_millis(20);

/// A connection to Docker or Podman.
pub(super) struct DockerClient {
    http: Http,
    bollard: Docker,
    info: RuntimeInfo,
    uri: String,
    /// `/v1.41`
    prefix: String,
    exit_labels: Arc<ExitLabels>,
    first_list: FirstList<Container>,
    options: Options,
}

/// Asks who is there. The caller limits the time.
///
/// # Errors
/// As [`crate::runtime::connect_with`].
pub(in crate::runtime) async fn connect(
    endpoint: &Endpoint,
    probe: Probe,
    options: &Options,
) -> Result<Arc<dyn RuntimeClient>, RuntimeError> {
    let uri = endpoint.uri();
    let http = Http::new(&endpoint.path);
    let stranger = |source: BoxError| RuntimeError::NotARuntime {
        endpoint: uri.clone(),
        expected: endpoint.runtime,
        source,
    };

    let engine = match greeting(&http, options).await {
        Some(engine) => engine,
        None => {
            let (status, body) = http
                .get_whole("/version", options.message_bytes_max)
                .await
                .map_err(stranger)?;
            if status.is_server_error() {
                return Err(RuntimeError::Connect {
                    endpoint: uri,
                    source: Box::new(ServerSaid::new(status, &body)),
                });
            }
            if status != StatusCode::OK {
                return Err(stranger(Box::new(ServerSaid::new(status, &body))));
            }
            let version: Version =
                serde_json::from_str(&body).map_err(|error| stranger(error.into()))?;
            normalise::engine(&version)
                .ok_or_else(|| stranger("the answer has no API version".into()))?
        }
    };
    let bollard = http
        .bollard(options.request_timeout)
        .map_err(|error| RuntimeError::Connect {
            endpoint: uri.clone(),
            source: Box::new(error),
        })?;

    let info = RuntimeInfo {
        endpoint: endpoint.clone(),
        name: engine.name.into(),
        version: text::bounded(&engine.version).into(),
        peer_uid: probe.peer_uid,
        socket: probe.socket,
    };
    Ok(Arc::new(DockerClient {
        http,
        bollard,
        info,
        uri,
        prefix: format!("/v{}.{}", engine.api.0, engine.api.1),
        exit_labels: Arc::default(),
        first_list: FirstList::default(),
        options: options.clone(),
    }))
}

/// What the headers of a ping tell of the engine; `None` where they do not tell all. A ping costs dockerd nothing, and its
/// `/version` some 4 ms and two processes: it runs `runc --version` and `docker-init --version` each time.
async fn greeting(http: &Http, options: &Options) -> Option<Engine> {
    let response = http.get("/_ping").await.ok()?;
    let is_ok = response.status() == StatusCode::OK;
    let header = |name| {
        let value = response.headers().get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    };
    let engine = normalise::greeting(header("server"), header("api-version"));
    read_whole(response.into_body(), options.message_bytes_max)
        .await
        .ok()?;
    engine.filter(|_| is_ok)
}

#[async_trait]
impl RuntimeClient for DockerClient {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        let request = "ping";
        let timeout = self.options.version_timeout;
        let asking = self
            .http
            .get_whole("/_ping", self.options.message_bytes_max);
        let (status, body) = self.within(request, timeout, asking).await?;
        self.success(request, status, &body)
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let request = "list";
        let (status, body) = self.get(request, "/containers/json?all=true").await?;
        self.success(request, status, &body)?;
        let rows: Vec<Lenient<Row>> = self.parse(request, &body)?;
        self.exit_labels
            .add(normalise::labelled_as_exit_code(&rows));
        if !self.is_podman() {
            self.first_list.keep(|| {
                let rows = rows.iter().filter_map(|row| row.0.as_ref());
                let sketch = |row| normalise::sketch(row, &self.info.name, &self.info.version);
                rows.filter_map(sketch).collect()
            });
        }
        Ok(normalise::listing(rows))
    }

    fn sketch(&self, ids: &BTreeSet<ContainerId>) -> Vec<Container> {
        let sketched = self.first_list.take().into_iter();
        sketched
            .filter(|container| ids.contains(&container.id))
            .collect()
    }

    async fn inspect(
        &self,
        id: &ContainerId,
        _kind: ContainerKind,
    ) -> Result<Inspection, RuntimeError> {
        let request = "inspect";
        let (status, body) = self.get(request, &format!("/containers/{id}/json")).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(Inspection::Gone);
        }
        self.success(request, status, &body)?;
        let details: Details = self.parse(request, &body)?;
        normalise::container(details, &self.info.name, &self.info.version)
            .map(|container| Inspection::Found(Box::new(container)))
            .ok_or_else(|| self.failed(request, "the answer has no usable id".into()))
    }

    /// dockerd sends the headers of the answer just before it subscribes (moby, `getEvents`). `since` closes that
    /// gap from its memory of the last 256 events; an event may therefore come twice.
    async fn subscribe(&self) -> Result<EventStream, RuntimeError> {
        let request = events::REQUEST;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let actions = if self.is_podman() {
            PODMAN_ACTIONS
        } else {
            DOCKER_ACTIONS
        };
        let filters = serde_json::json!({"type": ["container"], "event": actions}).to_string();
        let path = format!(
            "{}/events?since={}.{:09}&filters={}",
            self.prefix,
            now.as_secs(),
            now.subsec_nanos(),
            http::query_escaped(&filters)
        );
        let timeout = self.options.request_timeout;
        let response = self.within(request, timeout, self.http.get(&path)).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(events::stream(
                self.uri.clone(),
                response.into_body(),
                Arc::clone(&self.exit_labels),
                self.is_podman(),
            ));
        }
        let reading = read_whole(response.into_body(), self.options.message_bytes_max);
        let body = self.within(request, timeout, reading).await?;
        self.success(request, status, &body)?;
        Err(self.failed(request, Box::new(ServerSaid::new(status, &body))))
    }

    /// A command that outlives `timeout` goes on in its container: the API has no way to end it.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
        output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError> {
        let running = self.run(id, command, output);
        match timeout {
            None => running.await,
            Some(timeout) => tokio::time::timeout(timeout, running)
                .await
                .unwrap_or_else(|_| Err(self.timed_out("exec", timeout))),
        }
    }

    async fn close(&self) {}
}

impl DockerClient {
    async fn run(
        &self,
        id: &ContainerId,
        command: &[String],
        output: &mut dyn ExecOutput,
    ) -> Result<ExecStatus, RuntimeError> {
        let request = "exec";
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            ..CreateExecOptions::default()
        };
        let exec = self
            .bollard
            .create_exec(id.as_str(), options)
            .await
            .map_err(|error| self.exec_failed(id, error))?;
        let started = self
            .bollard
            .start_exec(&exec.id, None::<StartExecOptions>)
            .await
            .map_err(|error| self.exec_failed(id, error))?;
        if let StartExecResults::Attached {
            output: mut pieces, ..
        } = started
        {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| self.failed(request, error.into()))?;
                let written = match piece {
                    LogOutput::StdErr { message } => output.stderr(&message),
                    LogOutput::StdOut { message }
                    | LogOutput::Console { message }
                    | LogOutput::StdIn { message } => output.stdout(&message),
                };
                written.map_err(|error| self.failed(request, error.into()))?;
            }
        }
        self.exit_code_of(&exec.id).await
    }

    async fn exit_code_of(&self, exec_id: &str) -> Result<ExecStatus, RuntimeError> {
        let request = "exec";
        let path = format!("/exec/{}/json", http::query_escaped(exec_id));
        for _ in 0..EXEC_INSPECTS_MAX {
            let (status, body) = self.get(request, &path).await?;
            self.success(request, status, &body)?;
            let details: ExecDetails = self.parse(request, &body)?;
            let code = details
                .exit_code
                .0
                .and_then(|code| i32::try_from(code).ok());
            match code {
                Some(exit_code) if details.running.0 != Some(true) => {
                    return Ok(ExecStatus { exit_code });
                }
                Some(_) | None => tokio::time::sleep(EXEC_INSPECT_INTERVAL).await,
            }
        }
        Err(self.failed(request, "the command's exit code is not known".into()))
    }

    fn is_podman(&self) -> bool {
        &*self.info.name == normalise::PODMAN
    }

    async fn get(
        &self,
        request: &'static str,
        path: &str,
    ) -> Result<(StatusCode, String), RuntimeError> {
        let path = format!("{}{path}", self.prefix);
        let asking = self.http.get_whole(&path, self.options.message_bytes_max);
        self.within(request, self.options.request_timeout, asking)
            .await
    }

    async fn within<T>(
        &self,
        request: &'static str,
        timeout: Duration,
        asking: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(timeout, asking).await {
            Ok(answer) => answer.map_err(|error| self.failed(request, error)),
            Err(_) => Err(self.timed_out(request, timeout)),
        }
    }

    fn success(
        &self,
        request: &'static str,
        status: StatusCode,
        body: &str,
    ) -> Result<(), RuntimeError> {
        if status.is_success() {
            return Ok(());
        }
        Err(self.failed(request, Box::new(ServerSaid::new(status, body))))
    }

    fn parse<T: DeserializeOwned>(
        &self,
        request: &'static str,
        body: &str,
    ) -> Result<T, RuntimeError> {
        serde_json::from_str(body).map_err(|error| self.failed(request, error.into()))
    }

    fn exec_failed(&self, id: &ContainerId, error: bollard::errors::Error) -> RuntimeError {
        if let bollard::errors::Error::DockerResponseServerError {
            status_code: 404, ..
        } = error
        {
            return RuntimeError::NoSuchContainer {
                endpoint: self.uri.clone(),
                id: id.to_string(),
            };
        }
        self.failed("exec", error.into())
    }

    fn failed(&self, request: &'static str, source: BoxError) -> RuntimeError {
        let endpoint = self.uri.clone();
        if source.is::<AnswerTooLong>() {
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

    fn timed_out(&self, request: &'static str, timeout: Duration) -> RuntimeError {
        RuntimeError::Timeout {
            endpoint: self.uri.clone(),
            request,
            timeout,
        }
    }
}
