//! HTTP/1.1 over a unix socket: one small pool of connections, for bollard and for our own requests.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bollard::{BollardRequest, ClientVersion, Docker};
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use crate::runtime::text;

/// What goes wrong below the API; it becomes the source of a [`crate::runtime::RuntimeError`].
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connections kept open while idle: as many as there are inspects at once.
const IDLE_CONNECTIONS_MAX: usize = 8;

/// Longest part of a server's error message that is kept, in bytes.
const SERVER_MESSAGE_BYTES_MAX: usize = 1_024;

type SendFn = dyn Fn(BollardRequest) -> BoxFuture<'static, Result<Response<Incoming>, legacy::Error>>
    + Send
    + Sync;

/// Sends requests to one socket. A request that is dropped midway closes its connection.
#[derive(Clone)]
pub(super) struct Http {
    send: Arc<SendFn>,
}

impl Http {
    /// A client for the socket at `path`; connects only when it is used.
    pub(super) fn new(path: &Path) -> Self {
        let path: Arc<Path> = path.into();
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            Box::pin(async move { UnixStream::connect(&path).await.map(TokioIo::new) })
        });
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self {
            send: Arc::new(move |request| Box::pin(client.request(request))),
        }
    }

    /// bollard over the same connections. Its requests carry no API version (its `Uri::parse` joins an
    /// absolute path, which drops the prefix): the server answers them in its newest one.
    pub(super) fn bollard(
        &self,
        timeout: std::time::Duration,
    ) -> Result<Docker, bollard::errors::Error> {
        let send = Arc::clone(&self.send);
        let transport = move |request: BollardRequest| {
            let answer = send(request);
            async move { answer.await.map_err(bollard::errors::Error::from) }
        };
        let version = ClientVersion {
            major_version: 1,
            minor_version: 41,
        };
        Docker::connect_with_custom_transport(
            transport,
            Some("http://docker"),
            timeout.as_secs().max(1),
            &version,
        )
    }

    /// Sends a GET; the answer's headers are there when this returns, its body is not.
    pub(super) async fn get(&self, path: &str) -> Result<Response<Incoming>, BoxError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("http://docker{path}"))
            .body(bollard::body_full(Bytes::new()))?;
        Ok((self.send)(request).await?)
    }

    /// Sends a GET and takes the whole answer, up to `bytes_max`.
    pub(super) async fn get_whole(
        &self,
        path: &str,
        bytes_max: usize,
    ) -> Result<(StatusCode, String), BoxError> {
        let response = self.get(path).await?;
        let status = response.status();
        let body = read_whole(response.into_body(), bytes_max).await?;
        Ok((status, body))
    }
}

/// Reads a body, up to `bytes_max`. What is not UTF-8 in it becomes U+FFFD: Go writes none, but no container
/// may blind us by a name that some other server passes on as it is.
pub(super) async fn read_whole(mut body: Incoming, bytes_max: usize) -> Result<String, BoxError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > bytes_max {
                return Err(Box::new(AnswerTooLong { bytes_max }));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => text::lossy(error.as_bytes()),
    })
}

/// An answer that passes the limit.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {bytes_max} bytes")]
pub(super) struct AnswerTooLong {
    /// The limit.
    pub(super) bytes_max: usize,
}

/// An answer with a status that is no success.
#[derive(Debug)]
pub(super) struct ServerSaid {
    /// The HTTP status.
    pub(super) status: StatusCode,
    /// What the server wrote, bounded and escaped.
    message: String,
}

impl ServerSaid {
    /// Takes the server's words from the body: `{"message": …}`, or the text itself.
    pub(super) fn new(status: StatusCode, body: &str) -> Self {
        let parsed: Option<super::wire::Problem> = serde_json::from_str(body).ok();
        let message = parsed
            .as_ref()
            .and_then(|problem| problem.message.0.as_deref())
            .unwrap_or(body);
        let head: String = message.chars().take(SERVER_MESSAGE_BYTES_MAX / 4).collect();
        Self {
            status,
            message: text::escaped(head.trim()),
        }
    }
}

impl fmt::Display for ServerSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the server said {}: {}",
            self.status.as_u16(),
            self.message
        )
    }
}

impl std::error::Error for ServerSaid {}

/// Writes text so that it may stand in a query.
pub(super) fn query_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
