//! The adapter to CRI servers.

use std::sync::Arc;
use std::time::Duration;

use quaymaster::model::{ContainerKind, EventKind, State};
use quaymaster::runtime::cri::proto::{
    ContainerEventType, ContainerMetadata, ContainerState, ExecSyncResponse,
};
use quaymaster::runtime::{
    ExecOutput, Inspection, Options, RuntimeClient, RuntimeError, connect, connect_with, text,
};
use tempfile::{TempDir, tempdir};
use tonic::Status;

use crate::fake_cri::{EventsMode, FakeCri, entry, event, running, version};
use crate::{ID, ID_B, SANDBOX_ID, error_of, found, hasty, id, next_event, next_item};

const CONTAINER: ContainerKind = ContainerKind::Container;
const SANDBOX: ContainerKind = ContainerKind::Sandbox;

async fn start() -> anyhow::Result<(TempDir, FakeCri, Arc<dyn RuntimeClient>)> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    let client = connect(&cri.endpoint()).await?;
    Ok((folder, cri, client))
}

#[tokio::test]
async fn a_pod_is_listed_and_inspected_until_it_is_gone() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 7);
    cri.put_container(running(ID, "web"), SANDBOX_ID, 8);

    let listing = client.list().await?;
    let rows: Vec<_> = listing
        .rows
        .iter()
        .map(|row| (row.id.as_str(), row.kind, row.state))
        .collect();
    assert_eq!(
        rows,
        [
            (SANDBOX_ID, SANDBOX, State::Running),
            (ID, CONTAINER, State::Running)
        ]
    );

    let sandbox = found(&*client, SANDBOX_ID, SANDBOX).await?;
    assert_eq!(
        (sandbox.name.as_str(), sandbox.kind, sandbox.pid),
        ("web-0", SANDBOX, Some(7))
    );
    assert_eq!(sandbox.image_name, "registry.example/pause:3.10");
    let web = found(&*client, ID, CONTAINER).await?;
    assert_eq!((web.name.as_str(), web.pid), ("web", Some(8)));
    let pod = web.pod.expect("its sandbox was listed");
    assert_eq!(
        (pod.name.as_str(), pod.namespace.as_str()),
        ("web-0", "shop")
    );
    assert_eq!(
        (pod.uid.as_str(), pod.sandbox_id.as_str()),
        ("uid-web-0", SANDBOX_ID)
    );

    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 0);
    let sandbox = found(&*client, SANDBOX_ID, SANDBOX).await?;
    assert_eq!((sandbox.state, sandbox.pid), (State::Exited, None));

    cri.remove(ID);
    cri.remove(SANDBOX_ID);
    assert!(matches!(
        client.inspect(&id(ID), CONTAINER).await?,
        Inspection::Gone
    ));
    assert!(matches!(
        client.inspect(&id(SANDBOX_ID), SANDBOX).await?,
        Inspection::Gone
    ));
    assert!(client.list().await?.rows.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_container_that_was_never_listed_learns_its_pod_from_its_sandbox_once()
-> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 7);
    cri.put_container(running(ID, "web"), SANDBOX_ID, 8);
    for _ in 0..3 {
        let web = found(&*client, ID, CONTAINER).await?;
        assert_eq!(web.pod.map(|pod| pod.name).as_deref(), Some("web-0"));
    }
    let asked = |cri: &FakeCri| {
        cri.state()
            .calls
            .iter()
            .filter(|call| *call == "PodSandboxStatus")
            .count()
    };
    assert_eq!(asked(&cri), 1);

    // kubelet's labels tell as much, without a question.
    let mut labelled = running(ID_B, "web");
    labelled.labels = vec![
        entry("io.kubernetes.pod.name", "db-0"),
        entry("io.kubernetes.pod.namespace", "shop"),
        entry("io.kubernetes.pod.uid", "u"),
    ];
    cri.put_container(labelled, &"c".repeat(64), 9);
    let web = found(&*client, ID_B, CONTAINER).await?;
    assert_eq!(web.pod.map(|pod| pod.name).as_deref(), Some("db-0"));
    assert_eq!(asked(&cri), 1);
    Ok(())
}

#[tokio::test]
async fn only_what_a_server_does_not_know_is_gone() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    // cri-dockerd passes on what Docker says, with no code of its own.
    let dockers = Status::unknown(format!(
        "Error response from daemon: No such container: {ID}"
    ));
    for status in [Status::not_found("not found"), dockers] {
        cri.state().inspect_error = Some(status);
        for kind in [CONTAINER, SANDBOX] {
            let answer = client.inspect(&id(ID), kind).await?;
            assert!(matches!(answer, Inspection::Gone), "{kind:?}");
        }
    }
    for status in [
        Status::unknown("disk full"),
        Status::internal("No such container"),
    ] {
        cri.state().inspect_error = Some(status);
        for kind in [CONTAINER, SANDBOX] {
            let error = error_of(client.inspect(&id(ID), kind).await);
            assert!(matches!(error, RuntimeError::Request { .. }), "{error}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_zero_pid_is_none_and_an_info_that_is_no_json_is_no_error() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    cri.put_container(running(ID, "web"), SANDBOX_ID, 0);
    assert_eq!(found(&*client, ID, CONTAINER).await?.pid, None);
    if let Some(answer) = cri.state().statuses.get_mut(ID) {
        answer.info = vec![entry("info", "{\"pid\":")];
    }
    let web = found(&*client, ID, CONTAINER).await?;
    assert_eq!((web.pid, web.state), (None, State::Running));
    Ok(())
}

#[tokio::test]
async fn text_that_is_no_utf_8_hides_nobody() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    let mut hostile = running(ID, "");
    hostile.metadata = Some(ContainerMetadata {
        name: b"\xff\xfe\x1b[2J".to_vec(),
        attempt: 0,
    });
    let mut label = entry("a", "b");
    label.key = b"\xc3\x28".to_vec();
    hostile.labels = vec![label, entry("big", &"x".repeat(1 << 20))];
    cri.put_container(hostile, SANDBOX_ID, 8);
    cri.put_container(running(ID_B, "web"), SANDBOX_ID, 9);

    assert_eq!(client.list().await?.rows.len(), 2);
    let read = found(&*client, ID, CONTAINER).await?;
    assert_eq!(read.name, "\u{fffd}\u{fffd}\u{1b}[2J");
    assert_eq!(read.labels.get("\u{fffd}(").map(String::as_str), Some("b"));
    assert_eq!(
        read.labels
            .get(text::LABELS_DROPPED_KEY)
            .map(String::as_str),
        Some("1")
    );
    Ok(())
}

#[tokio::test]
async fn a_row_without_a_usable_id_is_skipped_and_counted() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    cri.put_container(running("", "a"), SANDBOX_ID, 1);
    cri.put_container(running("a/b", "b"), SANDBOX_ID, 1);
    cri.put_container(running(ID, "c"), SANDBOX_ID, 1);
    let listing = client.list().await?;
    assert_eq!((listing.rows.len(), listing.skipped), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_list_over_four_mebibytes_is_taken_and_one_beyond_the_limit_is_not() -> anyhow::Result<()>
{
    let (_folder, cri, client) = start().await?;
    for n in 0..20 {
        let mut big = running(&format!("{n:064x}"), "web");
        big.labels = vec![entry("big", &"x".repeat(300_000))];
        cri.put_container(big, SANDBOX_ID, 1);
    }
    assert_eq!(client.list().await?.rows.len(), 20);

    let options = Options {
        message_bytes_max: 1 << 20,
        ..Options::default()
    };
    let error = error_of(connect_with(&cri.endpoint(), &options).await?.list().await);
    assert!(matches!(error, RuntimeError::TooLong { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_s_error_and_a_slow_answer_are_told_apart() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    let client = connect_with(&cri.endpoint(), &hasty()).await?;
    cri.state().list_error = Some(Status::unavailable("\u{1b}[2Jshutting down"));
    let error = error_of(client.list().await);
    assert!(matches!(error, RuntimeError::Request { .. }), "{error}");
    let line = quaymaster::cli::chain(&error);
    assert!(
        line.contains("shutting down") && !line.contains('\u{1b}'),
        "{line}"
    );

    cri.state().delay = crate::PATIENCE;
    for error in [
        error_of(client.list().await),
        error_of(client.ping().await),
        error_of(client.inspect(&id(ID), CONTAINER).await),
        error_of(client.inspect(&id(ID), SANDBOX).await),
    ] {
        assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    }
    cri.state().delay = Duration::ZERO;
    client.ping().await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_comes_back_is_asked_again_over_the_same_client() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    let client = connect(&cri.endpoint()).await?;
    drop(cri);
    while client.ping().await.is_ok() {
        tokio::task::yield_now().await;
    }
    let cri = FakeCri::start(folder.path())?;
    cri.put_container(running(ID, "web"), SANDBOX_ID, 1);
    tokio::time::timeout(crate::PATIENCE, async {
        while client.list().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_subscription_stands_before_the_first_event_has_come() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    let mut events = client.subscribe().await?;
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 7);
    client.list().await?;

    let mut created = event(ID, ContainerEventType::ContainerCreatedEvent, 1);
    let mut status = running(ID, "web");
    status.state = ContainerState::ContainerCreated.into();
    created.containers_statuses = vec![status];
    assert_eq!(cri.push(created), 1);
    cri.push(event(ID, ContainerEventType::ContainerStartedEvent, 2));
    cri.push(event(ID, ContainerEventType::ContainerStoppedEvent, 3));
    cri.push(event(ID, ContainerEventType::ContainerDeletedEvent, 4));
    cri.push(event(
        SANDBOX_ID,
        ContainerEventType::ContainerDeletedEvent,
        5,
    ));
    for (what, kind, at_ns) in [
        (EventKind::Created, CONTAINER, 1),
        (EventKind::Started, CONTAINER, 2),
        (EventKind::Died, CONTAINER, 3),
        (EventKind::Deleted, CONTAINER, 4),
        (EventKind::Deleted, SANDBOX, 5),
    ] {
        let event = next_event(&mut events).await?;
        assert_eq!((event.what, event.kind, event.at_ns), (what, kind, at_ns));
        assert_eq!(event.facts.is_some(), what == EventKind::Created);
    }
    cri.end_events();
    assert!(next_item(&mut events).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn an_event_that_comes_with_the_subscription_is_not_lost() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    let pushing = async {
        while cri.push(event(ID, ContainerEventType::ContainerStartedEvent, 9)) == 0 {
            tokio::task::yield_now().await;
        }
    };
    let (events, ()) = tokio::join!(client.subscribe(), pushing);
    assert_eq!(next_event(&mut events?).await?.at_ns, 9);
    Ok(())
}

#[tokio::test]
async fn a_malformed_event_is_told_in_its_place_and_the_stream_goes_on() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    let mut events = client.subscribe().await?;
    let mut unknown = event(ID, ContainerEventType::ContainerStartedEvent, 1);
    unknown.container_event_type = 42;
    cri.push(unknown);
    cri.push(event("", ContainerEventType::ContainerStartedEvent, 2));
    cri.push(event(ID, ContainerEventType::ContainerStartedEvent, 3));
    for _ in 0..2 {
        let item = next_item(&mut events).await?;
        assert!(
            matches!(item, Some(Err(RuntimeError::Malformed { .. }))),
            "{item:?}"
        );
    }
    assert_eq!(next_event(&mut events).await?.at_ns, 3);
    Ok(())
}

#[tokio::test]
async fn a_server_without_events_is_told_as_such() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    for (name, text, mode) in [
        ("docker", "28.5.2", EventsMode::Unimplemented),
        ("cri-o", "1.31.0", EventsMode::EndsAtOnce),
        ("containerd", "dev", EventsMode::Unimplemented),
        ("containerd", "1.6.20~ds1", EventsMode::Live),
        ("containerd", "v1.7.27", EventsMode::Live),
    ] {
        cri.state().version = version(name, text);
        cri.state().events = mode;
        let client = connect(&cri.endpoint()).await?;
        let error = error_of(client.subscribe().await);
        assert!(
            matches!(error, RuntimeError::Unsupported { .. }),
            "{name} {text} {error}"
        );
    }
    let asked = cri
        .state()
        .calls
        .iter()
        .filter(|call| *call == "GetContainerEvents")
        .count();
    assert_eq!(
        asked, 3,
        "containerd 1.x is not even asked: kubelet would lose events"
    );
    Ok(())
}

/// A CRI-O that was connected to, and its events.
async fn crio() -> anyhow::Result<(TempDir, FakeCri, Arc<dyn RuntimeClient>)> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    cri.state().version = version("cri-o", "1.34.0");
    let client = connect(&cri.endpoint()).await?;
    Ok((folder, cri, client))
}

#[tokio::test]
async fn a_removed_sandbox_of_crio_is_found_with_the_containers_in_it() -> anyhow::Result<()> {
    let (_folder, cri, client) = crio().await?;
    let other = "d".repeat(64);
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 7);
    cri.put_sandbox(&other, "job", "shop", 0);
    cri.put_container(running(ID, "web"), SANDBOX_ID, 8);
    let mut events = client.subscribe().await?;
    client.list().await?;
    // One of its containers is known by an event alone, and one is told to be deleted.
    let sandbox = cri.state().sandbox_statuses[SANDBOX_ID].status.clone();
    for (id, kind, at_ns) in [
        (ID_B, ContainerEventType::ContainerCreatedEvent, now_ns()),
        (ID, ContainerEventType::ContainerDeletedEvent, now_ns()),
        (
            SANDBOX_ID,
            ContainerEventType::ContainerStoppedEvent,
            now_ns(),
        ),
    ] {
        let mut told = event(id, kind, at_ns);
        told.pod_sandbox_status.clone_from(&sandbox);
        cri.push(told);
        assert_eq!(next_event(&mut events).await?.id.as_str(), id);
    }
    cri.remove(SANDBOX_ID);
    for (id, kind) in [(ID_B, CONTAINER), (SANDBOX_ID, SANDBOX)] {
        let removed = next_event(&mut events).await?;
        assert_eq!((removed.id.as_str(), removed.kind), (id, kind));
        assert_eq!((removed.what, removed.at_ns), (EventKind::Deleted, 0));
    }
    // The other one was listed as stopped, and no event told that.
    cri.remove(&other);
    assert_eq!(next_event(&mut events).await?.id.as_str(), other);
    Ok(())
}

#[tokio::test]
async fn what_crio_kept_for_its_first_subscriber_is_taken_only_if_it_is_new() -> anyhow::Result<()>
{
    let (_folder, cri, client) = crio().await?;
    let mut events = client.subscribe().await?;
    let minute_ns = 60_000_000_000;
    let started = ContainerEventType::ContainerStartedEvent;
    for age in [6 * 24 * 60, 6, 4] {
        cri.push(event(ID, started, now_ns() - age * minute_ns));
    }
    cri.push(event(ID_B, started, now_ns()));
    let first = next_event(&mut events).await?;
    let age_ns = now_ns() - i64::try_from(first.at_ns)?;
    assert!(age_ns < 5 * minute_ns, "{age_ns} ns old");
    assert_eq!(first.id.as_str(), ID);
    assert_eq!(next_event(&mut events).await?.id.as_str(), ID_B);
    Ok(())
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("the clock is past 1970");
    i64::try_from(now.as_nanos()).expect("it is before 2262")
}

#[tokio::test]
async fn containerd_1_7_gives_its_events_when_asked_for() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    cri.state().version = version("containerd", "v1.7.27");
    let options = Options {
        containerd_1_7_events: true,
        ..Options::default()
    };
    let client = connect_with(&cri.endpoint(), &options).await?;
    let mut events = client.subscribe().await?;
    cri.push(event(ID, ContainerEventType::ContainerStartedEvent, 3));
    assert_eq!(next_event(&mut events).await?.at_ns, 3);
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

#[tokio::test]
async fn a_command_s_output_and_exit_code_are_passed_on() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    cri.put_container(running(ID, "web"), SANDBOX_ID, 8);
    cri.state().exec = Some(ExecSyncResponse {
        stdout: b"out".to_vec(),
        stderr: b"err".to_vec(),
        exit_code: 7,
    });
    let command = ["ls".to_owned(), "-l".to_owned()];
    let mut output = Captured::default();
    let limit = Some(Duration::from_millis(1_500));
    let status = client.exec(&id(ID), &command, limit, &mut output).await?;
    assert_eq!(status.exit_code, 7);
    assert_eq!(
        (output.out.as_slice(), output.err.as_slice()),
        (&b"out"[..], &b"err"[..])
    );
    let call = cri.state().calls.pop();
    assert_eq!(call.as_deref(), Some(r#"ExecSync 2 ["ls", "-l"]"#));
    Ok(())
}

#[tokio::test]
async fn a_command_ends_with_its_container_s_absence_or_its_time_limit() -> anyhow::Result<()> {
    let (_folder, cri, client) = start().await?;
    let command = ["true".to_owned()];
    let mut output = Captured::default();
    let error = error_of(client.exec(&id(ID), &command, None, &mut output).await);
    assert!(
        matches!(error, RuntimeError::NoSuchContainer { .. }),
        "{error}"
    );

    cri.put_container(running(ID, "web"), SANDBOX_ID, 8);
    let error = error_of(client.exec(&id(ID), &command, None, &mut output).await);
    assert!(matches!(error, RuntimeError::Request { .. }), "{error}");

    cri.state().delay = crate::PATIENCE;
    let limit = Some(Duration::from_millis(50));
    let error = error_of(client.exec(&id(ID), &command, limit, &mut output).await);
    assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    Ok(())
}
