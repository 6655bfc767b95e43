//! The adapter to Docker and Podman.

use std::sync::Arc;
use std::time::Duration;

use quaymaster::model::{ContainerKind, EventKind, State};
use quaymaster::runtime::{
    ExecOutput, Inspection, Options, RuntimeClient, RuntimeError, connect, connect_with, text,
};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::fake_docker::{FakeContainer, FakeDocker, Reply, podman_version};
use crate::{ID, ID_B, PATIENCE, error_of, found, hasty, id, next_event, next_item};

const CONTAINER: ContainerKind = ContainerKind::Container;

async fn start() -> anyhow::Result<(TempDir, FakeDocker, Arc<dyn RuntimeClient>)> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    let client = connect(&docker.endpoint()).await?;
    Ok((folder, docker, client))
}

#[tokio::test]
async fn a_container_is_listed_and_inspected_until_it_is_gone() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    docker.put(&FakeContainer::running(ID, "web", 4_242));
    docker.put(&FakeContainer::running(ID_B, "job", 0).exited(3));

    let listing = client.list().await?;
    let states: Vec<_> = listing
        .rows
        .iter()
        .map(|row| (row.id.as_str(), row.state))
        .collect();
    assert_eq!(states, [(ID, State::Running), (ID_B, State::Exited)]);
    assert_eq!(listing.skipped, 0);

    let web = found(&*client, ID, CONTAINER).await?;
    assert_eq!(
        (web.name.as_str(), web.pid, web.exit_code),
        ("web", Some(4_242), None)
    );
    assert_eq!(&*web.runtime_version, "28.5.2");
    let job = found(&*client, ID_B, CONTAINER).await?;
    assert_eq!(
        (job.state, job.pid, job.exit_code),
        (State::Exited, None, Some(3))
    );

    docker.remove(ID);
    assert!(matches!(
        client.inspect(&id(ID), CONTAINER).await?,
        Inspection::Gone
    ));
    assert_eq!(client.list().await?.rows.len(), 1);
    assert!(
        docker
            .requests()
            .iter()
            .all(|request| !request.contains("size"))
    );
    Ok(())
}

#[tokio::test]
async fn an_odd_row_costs_only_itself() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    docker.reply(
        "/containers/json",
        Reply::ok(&json!([
            {"Id": ID, "Names": "web", "Created": "yesterday", "State": ["running"], "Labels": [1]},
            {"Names": ["/no-id"]}, {"Id": ""}, {"Id": "../../etc"}, {"Id": "a".repeat(1_000)}, 7, null, [],
            {"Id": ID_B, "State": "running", "Labels": {"a": {"b": 1}}},
        ])),
    );
    let listing = client.list().await?;
    let ids: Vec<_> = listing
        .rows
        .iter()
        .map(|row| (row.id.as_str(), row.state))
        .collect();
    assert_eq!(ids, [(ID, State::Unknown), (ID_B, State::Running)]);
    assert_eq!(listing.skipped, 7);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_broken_is_an_error_and_the_next_one_is_not() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let truncated = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{\"Id\":\"".to_vec();
    for reply in [
        Reply::Raw(truncated),
        Reply::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        Reply::Raw(Vec::new()),
        Reply::Json(200, format!("[{{\"Id\":\"{ID}\"")),
        Reply::Json(200, String::new()),
        // Not "no containers": that would delete them all.
        Reply::Json(200, "null".to_owned()),
        Reply::Json(200, r#"{"message":"x"}"#.to_owned()),
        Reply::Json(500, r#"{"message":"\u001b[2Jdisk full"}"#.to_owned()),
        Reply::Json(404, "page not found".to_owned()),
    ] {
        docker.reply("/containers/json", reply.clone());
        docker.reply(&format!("/containers/{ID}/json"), reply.clone());
        let error = error_of(client.list().await);
        assert!(
            matches!(error, RuntimeError::Request { .. }),
            "{reply:?} {error}"
        );
        let line = quaymaster::cli::chain(&error);
        assert!(!line.contains('\u{1b}'), "{line}");
        if !matches!(reply, Reply::Json(404, _)) {
            let error = error_of(client.inspect(&id(ID), CONTAINER).await);
            assert!(
                matches!(error, RuntimeError::Request { .. }),
                "{reply:?} {error}"
            );
        }
    }
    docker.put(&FakeContainer::running(ID, "web", 1));
    assert_eq!(client.list().await?.rows.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_list_of_many_megabytes_is_taken_and_one_beyond_the_limit_is_not() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let padding = "x".repeat(1_000);
    let rows: Vec<Value> = (0..6_000)
        .map(|n| json!({"Id": format!("{n:064x}"), "State": "running", "Labels": {"a": padding}}))
        .collect();
    docker.reply("/containers/json", Reply::ok(&json!(rows)));
    assert_eq!(client.list().await?.rows.len(), 6_000);

    let options = Options {
        message_bytes_max: 1 << 20,
        ..Options::default()
    };
    let error = error_of(
        connect_with(&docker.endpoint(), &options)
            .await?
            .list()
            .await,
    );
    assert!(matches!(error, RuntimeError::TooLong { .. }), "{error}");
    assert!(quaymaster::cli::chain(&error).contains("longer than 1048576 bytes"));
    Ok(())
}

#[tokio::test]
async fn a_slow_answer_is_given_up_in_time_and_disturbs_no_other() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 1));
    let client = connect_with(&docker.endpoint(), &hasty()).await?;
    let list = Reply::ok(&json!([]));
    docker.reply("/containers/json", Reply::Late(PATIENCE, Box::new(list)));
    docker.reply("/_ping", Reply::Silence);
    for error in [error_of(client.list().await), error_of(client.ping().await)] {
        assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    }
    assert_eq!(found(&*client, ID, CONTAINER).await?.name, "web");
    // Headers in time, and then nothing.
    let stalled = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[".to_vec();
    docker.reply(
        "/containers/json",
        Reply::Late(Duration::from_millis(1), Box::new(Reply::Raw(stalled))),
    );
    assert!(client.list().await.is_err());
    Ok(())
}

#[tokio::test]
async fn hostile_names_and_labels_are_bounded_and_kept_as_text() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let mut hostile = FakeContainer::running(ID, "\u{1b}]0;x\u{7}\u{202e}\n\"}]", 1);
    hostile
        .labels
        .insert("a\n\0".to_owned(), "\u{1b}[31m".to_owned());
    docker.put(&hostile);
    let read = found(&*client, ID, CONTAINER).await?;
    assert_eq!(read.name, hostile.name);
    assert_eq!(
        read.labels.get("a\n\0").map(String::as_str),
        Some("\u{1b}[31m")
    );

    hostile.name = "n".repeat(64 * 1024);
    hostile.labels.insert("big".to_owned(), "x".repeat(1 << 20));
    docker.put(&hostile);
    let read = found(&*client, ID, CONTAINER).await?;
    assert_eq!(read.name.len(), text::TEXT_BYTES_MAX);
    assert_eq!(read.labels.get("big"), None);
    assert_eq!(
        read.labels
            .get(text::LABELS_DROPPED_KEY)
            .map(String::as_str),
        Some("1")
    );

    // Bytes that are no UTF-8 cost that name, not the list.
    let mut body = format!("[{{\"Id\":\"{ID}\",\"Names\":[\"/").into_bytes();
    body.extend_from_slice(b"\xff\xfe\"]}]");
    let mut raw = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    raw.extend_from_slice(&body);
    docker.reply("/containers/json", Reply::Raw(raw));
    assert_eq!(client.list().await?.rows.len(), 1);
    Ok(())
}

#[tokio::test]
async fn events_come_in_order_from_the_moment_of_the_subscription() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let mut events = client.subscribe().await?;
    let told = [
        ("create", EventKind::Created, json!({"name": "web"})),
        ("start", EventKind::Started, json!({})),
        ("pause", EventKind::Paused, json!({})),
        ("unpause", EventKind::Unpaused, json!({})),
        ("rename", EventKind::Renamed, json!({"oldName": "/web"})),
        ("die", EventKind::Died, json!({"exitCode": "137"})),
        ("destroy", EventKind::Deleted, json!({})),
    ];
    for (at_ns, (action, _, attributes)) in (1_u64..).zip(&told) {
        assert_eq!(docker.push_event(ID, action, at_ns, attributes), 1);
    }
    for (at_ns, (action, what, _)) in (1_u64..).zip(&told) {
        let event = next_event(&mut events).await?;
        assert_eq!((event.what, event.at_ns), (*what, at_ns), "{action}");
        assert_eq!(event.id, id(ID));
        assert_eq!(event.exit_code, (*what == EventKind::Died).then_some(137));
    }
    let request = docker.requests().pop().unwrap_or_default();
    assert!(request.starts_with("GET /v1.51/events?since="), "{request}");
    assert!(
        !request.contains("health") && !request.contains("exec"),
        "{request}"
    );
    assert!(!request.contains("remove"), "{request}");
    docker.end_events();
    assert!(next_item(&mut events).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn podman_s_init_and_remove_are_asked_for_and_understood() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.reply("/version", Reply::ok(&podman_version()));
    let client = connect(&docker.endpoint()).await?;
    let mut events = client.subscribe().await?;
    let request = docker.requests().pop().unwrap_or_default();
    assert!(
        request.contains("%22remove%22") && request.contains("%22init%22"),
        "{request}"
    );

    let code = json!({"containerExitCode": "3"});
    docker.push_event(ID, "init", 1, &code);
    docker.push_event(ID, "die", 2, &code);
    docker.push_event(ID, "remove", 3, &code);
    let event = next_event(&mut events).await?;
    assert_eq!(
        (event.what, event.exit_code),
        (EventKind::Initialized, None)
    );
    let event = next_event(&mut events).await?;
    assert_eq!((event.what, event.exit_code), (EventKind::Died, Some(3)));
    let event = next_event(&mut events).await?;
    assert_eq!((event.what, event.exit_code), (EventKind::Deleted, None));
    Ok(())
}

#[tokio::test]
async fn a_malformed_event_is_told_in_its_place_and_the_stream_goes_on() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let mut events = client.subscribe().await?;
    for line in [
        "{",
        "\u{fffd}",
        "[]",
        r#"{"Type":"container","Actor":{"ID":"x"}}"#,
    ] {
        docker.push(line);
    }
    docker.push(r#"{"Type":"network","Action":"connect"}"#);
    docker.push("");
    docker.push_event(ID, "start", 5, &json!({}));
    for _ in 0..4 {
        let item = next_item(&mut events).await?;
        assert!(
            matches!(item, Some(Err(RuntimeError::Malformed { .. }))),
            "{item:?}"
        );
    }
    assert_eq!(next_event(&mut events).await?.at_ns, 5);
    Ok(())
}

#[tokio::test]
async fn a_label_cannot_pass_for_an_exit_code() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let mut events = client.subscribe().await?;
    // dockerd lets the label win over its own attribute, in every event of the container.
    let label = json!({"exitCode": "0"});
    docker.push_event(ID, "create", 1, &label);
    docker.push_event(ID, "die", 2, &label);
    docker.push_event(ID, "destroy", 3, &label);
    docker.push_event(ID, "die", 4, &json!({"exitCode": "1"}));
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(next_event(&mut events).await?.exit_code);
    }
    assert_eq!(codes, [None, None, None, Some(1)]);

    // One that was there before the subscription is known by the list.
    let mut listed = FakeContainer::running(ID_B, "web", 1);
    listed.labels.insert("exitCode".to_owned(), "x".to_owned());
    docker.put(&listed);
    client.list().await?;
    docker.push_event(ID_B, "die", 5, &label);
    assert_eq!(next_event(&mut events).await?.exit_code, None);
    Ok(())
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    docker.reply("/events", Reply::Raw(head.as_bytes().to_vec()));
    let mut events = client.subscribe().await?;
    let item = next_item(&mut events).await?;
    assert!(
        matches!(item, Some(Err(RuntimeError::Request { .. }))),
        "{item:?}"
    );
    assert!(next_item(&mut events).await?.is_none());

    docker.reply(
        "/events",
        Reply::Json(400, r#"{"message":"bad filter"}"#.to_owned()),
    );
    let error = error_of(client.subscribe().await);
    assert!(quaymaster::cli::chain(&error).contains("bad filter"));
    Ok(())
}

#[tokio::test]
async fn an_idle_stream_outlives_every_time_limit() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    let client = connect_with(&docker.endpoint(), &hasty()).await?;
    let mut events = client.subscribe().await?;
    let waiting = tokio::time::timeout(hasty().request_timeout * 3, next_item(&mut events)).await;
    assert!(waiting.is_err(), "nothing has happened yet");
    docker.push_event(ID, "start", 1, &json!({}));
    assert_eq!(next_event(&mut events).await?.what, EventKind::Started);
    Ok(())
}

#[derive(Default)]
struct Captured {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl ExecOutput for Captured {
    fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.err.extend_from_slice(bytes);
        Ok(())
    }
}

fn frame(stream: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![stream, 0, 0, 0];
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[tokio::test]
async fn a_command_s_output_is_told_apart_and_its_exit_code_is_waited_for() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let frames = [frame(1, "out"), frame(2, "err"), frame(1, " more")].concat();
    docker.reply(
        &format!("/containers/{ID}/exec"),
        Reply::Json(201, r#"{"Id":"e1"}"#.to_owned()),
    );
    docker.reply("/exec/e1/start", Reply::Upgrade(frames));
    docker.reply(
        "/exec/e1/json",
        Reply::ok(&json!({"Running": true, "ExitCode": null})),
    );
    let command = ["true".to_owned()];
    let mut output = Captured::default();
    let id = id(ID);
    let running = client.exec(&id, &command, None, &mut output);
    let ending = async {
        while !docker
            .requests()
            .iter()
            .any(|request| request.ends_with("/exec/e1/json"))
        {
            tokio::task::yield_now().await;
        }
        docker.reply(
            "/exec/e1/json",
            Reply::ok(&json!({"Running": false, "ExitCode": 7})),
        );
    };
    let (status, ()) = tokio::join!(running, ending);
    assert_eq!(status?.exit_code, 7);
    assert_eq!(
        (output.out.as_slice(), output.err.as_slice()),
        (&b"out more"[..], &b"err"[..])
    );
    Ok(())
}

#[tokio::test]
async fn a_command_ends_with_its_container_s_absence_or_its_time_limit() -> anyhow::Result<()> {
    let (_folder, docker, client) = start().await?;
    let command = ["true".to_owned()];
    let mut output = Captured::default();
    let error = error_of(client.exec(&id(ID), &command, None, &mut output).await);
    assert!(
        matches!(error, RuntimeError::NoSuchContainer { .. }),
        "{error}"
    );

    docker.reply(&format!("/containers/{ID}/exec"), Reply::Silence);
    let limit = Some(Duration::from_millis(50));
    let error = error_of(client.exec(&id(ID), &command, limit, &mut output).await);
    assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");

    let paused = r#"{"message":"container is paused"}"#.to_owned();
    docker.reply(&format!("/containers/{ID}/exec"), Reply::Json(409, paused));
    let error = error_of(client.exec(&id(ID), &command, None, &mut output).await);
    assert!(quaymaster::cli::chain(&error).contains("container is paused"));
    Ok(())
}
