//! The HTTP listener: `/metrics`, `/livez`, `/readyz` and `/status`, for those on this host.
//!
//! It only looks at what the collector and the sink tell of themselves, and computes nothing until it is asked.
//! It takes GET and HEAD without a body, and there is no password: it is on loopback unless a person says
//! otherwise.
//!
//! A slow or hostile client costs at most one of [`CONNECTIONS_MAX`] places for [`CONNECTION_TIME_MAX`]. Who comes when
//! all are taken gets the place of whoever has held one longest: a kubelet and a Prometheus have their answer some ms after
//! they came, and those who hold places do not keep them out.

mod metrics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::collector::Snapshot;
use crate::heartbeat::Heartbeat;
use crate::local::periodic::Figures;
use crate::runtime::containerd::EarlyPids;
use crate::runtime::watch::now_ms;
use crate::sink::SinkHealth;
use crate::wire::Renderer;

/// Connections that are served at once: a Prometheus, a kubelet and a person need three.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send its request's head.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a connection may last in all. It has one request.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes; hyper takes no less than 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A collector that has not gone round for so long hangs. A failed commit rests for 10 s at most.
pub const LIFE_AGE_MAX: Duration = Duration::from_secs(60);
/// The rest after a connection could not be taken, such as for lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is served.
pub trait Page: Send + Sync + 'static {
    /// Why the process should be killed, if it should. A bus or a runtime that is away is no reason.
    fn dead(&self) -> Option<String>;

    /// Why it does not do its work yet, or not now.
    fn unready(&self) -> Option<String>;

    /// The metrics, in the OpenMetrics format.
    ///
    /// # Errors
    /// None that is known: a string takes all that is written.
    fn metrics(&self) -> Result<String, fmt::Error>;

    /// The status, as JSON.
    fn status(&self) -> Vec<u8>;
}

/// What can be looked at.
#[derive(Clone, Debug)]
pub struct View {
    /// What the collector tells of itself.
    pub snapshot: watch::Receiver<Snapshot>,
    /// What the sink tells of the bus.
    pub health: watch::Receiver<SinkHealth>,
    /// The collector's sign of life.
    pub heartbeat: Arc<Heartbeat>,
    /// How the status is written.
    pub renderer: Renderer,
    /// What came of the snapshots of processes, where they are sent.
    pub processes: Option<Arc<Figures>>,
    /// What was learned ahead of starts.
    pub pids: Arc<EarlyPids>,
}

impl Page for View {
    fn dead(&self) -> Option<String> {
        let age = self.heartbeat.age();
        (age > LIFE_AGE_MAX)
            .then(|| format!("the collector has not gone round for {} s", age.as_secs()))
    }

    fn unready(&self) -> Option<String> {
        let (state, has_no_runtime) = {
            let snapshot = self.snapshot.borrow();
            (snapshot.status.state, snapshot.status.runtimes.is_empty())
        };
        let health = self.health.borrow();
        if let Some(reason) = self.dead() {
            Some(reason)
        } else if state != "live" && has_no_runtime {
            Some("no container runtime has been found".to_owned())
        } else if state != "live" {
            Some(format!("the collector is {}", word_of(state)))
        } else if !health.up {
            let error = crate::runtime::text::escaped(&health.error);
            Some(format!("the bus does not take messages: {error}"))
        } else {
            None
        }
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        metrics::text(self)
    }

    /// With what is owed at this moment.
    fn status(&self) -> Vec<u8> {
        let status = {
            let snapshot = self.snapshot.borrow();
            let mut status = snapshot.status.clone();
            status.state = word_of(status.state);
            status.outbox.messages = snapshot.totals.messages;
            status.outbox.bytes = snapshot.totals.bytes;
            status
        };
        let message = self.renderer.render_status(&status, 0, now_ms());
        message.value.as_deref().unwrap_or_default().to_vec()
    }
}

/// The state's word; before its first one the collector is starting.
fn word_of(state: &'static str) -> &'static str {
    if state.is_empty() { "starting" } else { state }
}

/// Serves until `stop`. Connections that are open then are dropped.
pub async fn serve(listener: TcpListener, page: impl Page, stop: CancellationToken) {
    let page: Arc<dyn Page> = Arc::new(page);
    let mut connections = JoinSet::new();
    // The oldest first.
    let mut places: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        places.retain(|place| !place.is_finished());
        match accepted {
            Ok((stream, _)) => {
                if places.len() == CONNECTIONS_MAX
                    && let Some(oldest) = places.pop_front()
                {
                    oldest.abort();
                }
                places.push_back(connections.spawn(connection(stream, Arc::clone(&page))));
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, page: Arc<dyn Page>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &*page);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is its own business.
    match tokio::time::timeout(CONNECTION_TIME_MAX, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client did not get its answer"),
        Err(_) => tracing::debug!("a client took too long"),
    }
}

fn answer(request: &Request<Incoming>, page: &dyn Page) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match page.metrics() {
            Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be written");
                respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "failed\n")
            }
        },
        "/livez" => judged(page.dead()),
        "/readyz" => judged(page.unready()),
        "/status" => respond(StatusCode::OK, JSON, page.status()),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "/metrics, /livez, /readyz or /status\n",
        ),
    }
}

fn judged(wrong: Option<String>) -> Response<Full<Bytes>> {
    match wrong {
        None => respond(StatusCode::OK, TEXT, "ok\n"),
        Some(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason + "\n"),
    }
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
