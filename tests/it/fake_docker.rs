//! A Docker daemon of cardboard: HTTP/1.1 by hand over a unix socket, so that it can also answer wrongly.
//!
//! Answers are looked up by path, without the version and the query; what is not scripted is 404. Every request
//! is noted. Events are pushed by the test and go to every subscriber.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quaymaster::model::RuntimeType;
use quaymaster::runtime::Endpoint;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// Events that a subscriber may lag behind before it loses some, as dockerd's own.
const EVENTS_BUFFERED: usize = 1_024;
/// Where containers are listed.
const LIST: &str = "/containers/json";

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status and a body, with its length.
    Json(u16, String),
    /// These bytes, whatever they are, and the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, ever.
    Silence,
    /// The same after some time.
    Late(Duration, Box<Reply>),
    /// The answer to an upgrade: these bytes, and the end of the connection.
    Upgrade(Vec<u8>),
    /// The stream of events: headers at once, then what the test pushes.
    Events,
}

impl Reply {
    /// 200 with a body.
    pub(crate) fn ok(body: &Value) -> Self {
        Self::Json(200, body.to_string())
    }
}

#[derive(Debug, Default)]
struct Script {
    replies: BTreeMap<String, Reply>,
    requests: Vec<String>,
    list: BTreeMap<String, Value>,
    /// A whole list was given since events were last asked for.
    is_listed: bool,
}

#[derive(Clone, Debug)]
enum Push {
    Bytes(Vec<u8>),
    End,
}

/// The daemon. It ends when it is dropped.
pub(crate) struct FakeDocker {
    path: PathBuf,
    script: Arc<Mutex<Script>>,
    events: broadcast::Sender<Push>,
    server: JoinHandle<()>,
}

impl FakeDocker {
    /// A daemon with the API of Docker 28 and no container, on `docker.sock` below `folder`.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_at(&folder.join("docker.sock"))
    }

    /// The same at another path. An older socket there is replaced.
    pub(crate) fn start_at(path: &Path) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        let script = Arc::new(Mutex::new(Script::default()));
        let (events, _) = broadcast::channel(EVENTS_BUFFERED);
        let server = tokio::spawn(serve(listener, Arc::clone(&script), events.clone()));
        let fake = Self {
            path: path.to_owned(),
            script,
            events,
            server,
        };
        fake.reply("/_ping", Reply::Json(200, "OK".to_owned()));
        fake.reply(
            "/version",
            Reply::ok(&docker_version("28.5.2", "1.51", "1.24")),
        );
        fake.reply(LIST, Reply::ok(&json!([])));
        fake.reply("/events", Reply::Events);
        Ok(fake)
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            runtime: RuntimeType::Docker,
            path: self.path.clone(),
        }
    }

    /// Scripts the answer to a path, as `/containers/json`.
    pub(crate) fn reply(&self, path: &str, reply: Reply) {
        self.lock().replies.insert(path.to_owned(), reply);
    }

    /// Adds a container to the list and to what can be inspected, or changes it.
    pub(crate) fn put(&self, container: &FakeContainer) {
        let mut script = self.lock();
        script.list.insert(container.id.clone(), container.row());
        let path = format!("/containers/{}/json", container.id);
        script.replies.insert(path, Reply::ok(&container.details()));
        script.relist();
    }

    /// Takes a container away.
    pub(crate) fn remove(&self, id: &str) {
        let mut script = self.lock();
        script.list.remove(id);
        script.replies.remove(&format!("/containers/{id}/json"));
        script.relist();
    }

    /// Sends one line to all who have subscribed; how many have.
    pub(crate) fn push(&self, line: &str) -> usize {
        let bytes = format!("{line}\n").into_bytes();
        self.events.send(Push::Bytes(bytes)).unwrap_or(0)
    }

    /// Sends an event of a container as dockerd writes it.
    pub(crate) fn push_event(
        &self,
        id: &str,
        action: &str,
        at_ns: u64,
        attributes: &Value,
    ) -> usize {
        let event = json!({
            "status": action, "id": id, "Type": "container", "Action": action,
            "Actor": {"ID": id, "Attributes": attributes},
            "scope": "local", "time": at_ns / 1_000_000_000, "timeNano": at_ns,
        });
        self.push(&event.to_string())
    }

    /// Ends all streams of events, as Podman and older daemons do now and then.
    pub(crate) fn end_events(&self) {
        let _ = self.events.send(Push::End);
    }

    /// How many streams of events are open.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn subscribers(&self) -> usize {
        self.events.receiver_count()
    }

    /// Whether somebody reads the events, and was given a whole list since they were asked for.
    #[allow(dead_code, reason = "for tests/faults, which shares this file")]
    pub(crate) fn is_followed(&self) -> bool {
        self.lock().is_listed && self.subscribers() > 0
    }

    /// All requests so far, as `GET /v1.51/containers/json?all=true`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Script {
    fn relist(&mut self) {
        let rows: Vec<&Value> = self.list.values().collect();
        let reply = Reply::ok(&json!(rows));
        self.replies.insert(LIST.to_owned(), reply);
    }
}

/// The answer to `/version`.
pub(crate) fn docker_version(version: &str, newest: &str, oldest: &str) -> Value {
    json!({
        "Platform": {"Name": ""}, "Version": version, "ApiVersion": newest, "MinAPIVersion": oldest,
        "Components": [{"Name": "Engine", "Version": version}],
    })
}

/// Podman's.
pub(crate) fn podman_version() -> Value {
    json!({
        "Version": "4.3.1", "ApiVersion": "1.41", "MinAPIVersion": "1.24",
        "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}, {"Name": "Conmon", "Version": "2"}],
    })
}

/// A container of the fake daemon. Its fields may be changed before it is put.
#[derive(Clone, Debug)]
pub(crate) struct FakeContainer {
    /// 64 hex digits.
    pub(crate) id: String,
    /// Without the `/`.
    pub(crate) name: String,
    /// Docker's word.
    pub(crate) state: String,
    /// 0 for none.
    pub(crate) pid: u32,
    /// RFC 3339, or Docker's zero time.
    pub(crate) started_at: String,
    /// RFC 3339, or Docker's zero time.
    pub(crate) finished_at: String,
    /// Of the newest run.
    pub(crate) exit_code: i64,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
}

/// "Never", as Go writes it.
pub(crate) const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

impl FakeContainer {
    /// One that runs.
    pub(crate) fn running(id: &str, name: &str, pid: u32) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            state: "running".to_owned(),
            pid,
            started_at: "2024-01-01T00:00:01.000000001Z".to_owned(),
            finished_at: ZERO_TIME.to_owned(),
            exit_code: 0,
            labels: BTreeMap::new(),
        }
    }

    /// The same after its process has ended.
    #[must_use]
    pub(crate) fn exited(mut self, exit_code: i64) -> Self {
        self.state = "exited".to_owned();
        self.pid = 0;
        self.finished_at = "2024-01-01T00:00:02.5Z".to_owned();
        self.exit_code = exit_code;
        self
    }

    fn row(&self) -> Value {
        json!({
            "Id": self.id, "Names": [format!("/{}", self.name)], "Image": "nginx:1.21",
            "ImageID": format!("sha256:{}", "1".repeat(64)), "Created": 1_704_067_200, "State": self.state,
            "Status": "Up 5 minutes", "Labels": self.labels,
        })
    }

    fn details(&self) -> Value {
        json!({
            "Id": self.id, "Name": format!("/{}", self.name), "Created": "2024-01-01T00:00:00Z",
            "Image": format!("sha256:{}", "1".repeat(64)), "RestartCount": 0,
            "State": {
                "Status": self.state, "Pid": self.pid, "ExitCode": self.exit_code, "OOMKilled": false,
                "Error": "", "StartedAt": self.started_at, "FinishedAt": self.finished_at,
            },
            "Config": {"Image": "nginx:1.21", "Labels": self.labels, "Env": ["SECRET=1"]},
            "HostConfig": {"PidMode": "", "Privileged": false},
        })
    }
}

async fn serve(
    listener: UnixListener,
    script: Arc<Mutex<Script>>,
    events: broadcast::Sender<Push>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(converse(stream, Arc::clone(&script), events.clone()));
    }
}

/// One connection; any error ends it.
async fn converse(
    mut stream: UnixStream,
    script: Arc<Mutex<Script>>,
    events: broadcast::Sender<Push>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(target) = read_request(&mut stream, &mut buffer).await? {
        let mut reply = {
            let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
            let path = plain_path(&target);
            let reply = script.replies.get(&path).cloned();
            script.requests.push(target);
            match &reply {
                Some(Reply::Events) => script.is_listed = false,
                Some(Reply::Json(200, _)) if path == LIST => script.is_listed = true,
                _ => {}
            }
            let missing = json!({"message": "No such container"}).to_string();
            reply.unwrap_or(Reply::Json(404, missing))
        };
        while let Reply::Late(wait, later) = reply {
            tokio::time::sleep(wait).await;
            reply = *later;
        }
        match reply {
            Reply::Json(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::Upgrade(bytes) => {
                let head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
                stream.write_all(head).await?;
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::Events => return send_events(stream, events.subscribe()).await,
            Reply::Silence | Reply::Late(..) => std::future::pending().await,
        }
    }
    Ok(())
}

/// Ends with the stream of events, and as soon as its reader has gone.
async fn send_events(
    mut stream: UnixStream,
    mut events: broadcast::Receiver<Push>,
) -> std::io::Result<()> {
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).await?;
    let mut unexpected = [0; 64];
    loop {
        let push = tokio::select! {
            read = stream.read(&mut unexpected) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
            push = events.recv() => push,
        };
        let Ok(Push::Bytes(bytes)) = push else { break };
        let size = format!("{:x}\r\n", bytes.len());
        stream.write_all(size.as_bytes()).await?;
        stream.write_all(&bytes).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    stream.shutdown().await
}

/// Method and target of the next request, its body read and forgotten; `None` at the end of the connection.
async fn read_request(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<String>> {
    let head_end = loop {
        let found = buffer.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(found) = found {
            break found + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let body = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0);
    while buffer.len() < head_end + body {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    buffer.drain(..head_end + body);
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    Ok(Some(format!("{method} {target}")))
}

/// `/containers/json` of `GET /v1.51/containers/json?all=true`.
fn plain_path(target: &str) -> String {
    let path = target.split_once(' ').map_or(target, |(_, path)| path);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    match path
        .strip_prefix("/v1.")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((_, rest)) => format!("/{rest}"),
        None => path.to_owned(),
    }
}
