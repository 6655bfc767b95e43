//! What a collector tells of itself over HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer that is taken, in bytes. A status has some KiB.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where a collector listens: `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Option<Uri> = text.parse().ok();
        let authority = uri.as_ref().and_then(|uri| {
            let is_bare =
                uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
            uri.authority()
                .filter(|at| is_bare && at.port_u16().is_some() && !at.as_str().contains('@'))
        });
        match authority {
            Some(authority) => Ok(Self(authority.to_string())),
            None => Err("write `http://HOST:PORT`, as in `http://127.0.0.1:9464`".to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// Why nothing was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// Nobody is there.
    #[error("no collector answers at `{url}`")]
    Away {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Someone else is there.
    #[error("what answers at `{url}` is no collector: {why}")]
    Foreign { url: String, why: String },
}

/// One look.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) status: Status,
    /// Metrics without labels, by name; empty where they could not be had.
    pub(super) metrics: BTreeMap<String, f64>,
}

/// The status, as far as it is shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Status {
    pub(super) host_id: String,
    #[serde(default)]
    pub(super) host_name: String,
    #[serde(default)]
    pub(super) version: String,
    pub(super) epoch: String,
    pub(super) seq: u64,
    pub(super) state: String,
    #[serde(default)]
    pub(super) runtimes: Vec<Runtime>,
    #[serde(default)]
    pub(super) containers: BTreeMap<String, u64>,
    #[serde(default)]
    pub(super) resync: Resync,
    #[serde(default)]
    pub(super) outbox: Outbox,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Runtime {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) endpoint: String,
    pub(super) stream: String,
    pub(super) events: u64,
    pub(super) dropped: u64,
    pub(super) last_event_ms: u64,
    pub(super) last_resync_ms: u64,
    pub(super) error: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resync {
    pub(super) package_seq: u64,
    pub(super) state: String,
    pub(super) started_ms: u64,
    pub(super) finished_ms: u64,
    pub(super) count: u64,
    pub(super) missed: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Outbox {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) oldest_ms: u64,
    pub(super) quarantined: u64,
}

/// Looks once. Metrics that cannot be had are left out.
///
/// # Errors
/// Where no status can be had.
pub(super) async fn sample(address: &Address) -> Result<Sample, FetchError> {
    let status = get(address, "/status").await?;
    let status = serde_json::from_slice(&status).map_err(|error| FetchError::Foreign {
        url: format!("{address}/status"),
        why: error.to_string(),
    })?;
    let metrics = get(address, "/metrics").await.unwrap_or_default();
    Ok(Sample {
        status,
        metrics: plain(&String::from_utf8_lossy(&metrics)),
    })
}

/// The samples without labels of an OpenMetrics text.
fn plain(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.contains('{'))
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.split(' ').next()?.parse().ok()?))
        })
        .collect()
}

async fn get(address: &Address, path: &str) -> Result<Bytes, FetchError> {
    let url = || format!("{address}{path}");
    let away = |source| FetchError::Away { url: url(), source };
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange(address, path)).await {
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((status, _))) => Err(FetchError::Foreign {
            url: url(),
            why: format!("it says {status}"),
        }),
        Ok(Err(source)) => Err(away(source)),
        Err(source) => Err(away(Box::new(source))),
    }
}

type Exchanged = Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>>;

/// One request over a connection of its own, as the listener wants it.
async fn exchange(address: &Address, path: &str) -> Exchanged {
    let stream = TcpStream::connect(&address.0).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(hyper::header::HOST, &address.0)
        .body(Empty::<Bytes>::new())?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        Ok((status, body.collect().await?.to_bytes()))
    };
    // The listener closes the connection behind its answer, of which there may be something left to take. Where the
    // connection fails, the answer fails with it.
    let (answer, _) = tokio::join!(asking, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_http_url_is_an_address() {
        let parsed = Address::parse("http://127.0.0.1:9464/").map(|it| it.to_string());
        assert_eq!(parsed.as_deref(), Ok("http://127.0.0.1:9464"));
        assert!(Address::parse("http://[::1]:9464").is_ok());
        for text in [
            "",
            "127.0.0.1:9464",
            "https://a:1",
            "http://a",
            "http://a:1/x",
            "http://u:p@a:1",
            "http://a:1/?x",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn metrics_without_labels_are_read() {
        let text = "# HELP a b\nquaymaster_bus_up 1\nquaymaster_x{a=\"b\"} 2\nheartbeat 0.5 17\nbad x\n# EOF\n";
        let metrics = plain(text);
        assert_eq!(metrics.get("quaymaster_bus_up"), Some(&1.0));
        assert_eq!(metrics.get("heartbeat"), Some(&0.5));
        assert_eq!(metrics.len(), 2);
    }
}
