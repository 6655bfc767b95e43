//! Statuses as containerd, CRI-O and cri-dockerd give them.

use super::super::proto::{
    ContainerEventResponse, ContainerMetadata, LinuxPodSandboxStatus, Namespace, NamespaceMode,
    NamespaceOption, PodSandbox,
};
use super::*;

const ID: &str = "a5cd3d0fc084d3024e356aed70b3dea62e32d0f20df608354b9bf845ac8d557d";
const SANDBOX_ID: &str = "8cbeb0823a7177c7232b1b0295575835ca1b9141e2ca29b80a605dac28ed9138";
const DIGEST: &str = "21f66f01bb01504f7520bdbd2310e41f2575bd50376494d40c0d392b7e39719c";

fn runtime() -> Runtime {
    Runtime {
        name: "containerd".into(),
        version: "2.1.9".into(),
    }
}

fn entries(pairs: &[(&str, &str)]) -> Vec<Entry> {
    pairs
        .iter()
        .map(|(key, value)| Entry {
            key: key.as_bytes().to_vec(),
            value: value.as_bytes().to_vec(),
        })
        .collect()
}

fn status(state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: ID.into(),
        metadata: Some(ContainerMetadata {
            name: "web".into(),
            attempt: 2,
        }),
        state: state.into(),
        created_at: 10,
        image: Some(ImageSpec {
            image: "docker.io/library/nginx:1.21".into(),
            user_specified_image: "nginx:1.21".into(),
        }),
        image_ref: format!("sha256:{DIGEST}").into(),
        ..ContainerStatus::default()
    }
}

fn info(pid: u32) -> Info {
    Info {
        pid: Some(pid),
        sandbox_id: Some(SANDBOX_ID.to_owned()),
        ..Info::default()
    }
}

fn read(status: &ContainerStatus, info: Info) -> Container {
    container(status, info, &ListFacts::default(), None, &runtime()).expect("it has an id")
}

#[test]
fn a_running_container_is_read_whole() {
    let mut said = status(ContainerState::ContainerRunning);
    said.started_at = 20;
    said.labels = entries(&[("io.kubernetes.pod.name", "web-0"), ("app", "shop")]);
    let running = read(&said, info(4_242));
    assert_eq!(running.id.as_str(), ID);
    assert_eq!(running.name, "web");
    assert_eq!(running.kind, ContainerKind::Container);
    assert_eq!(running.runtime, RuntimeType::Cri);
    assert_eq!(&*running.runtime_name, "containerd");
    assert_eq!(running.state, State::Running);
    assert_eq!(running.image_id, DIGEST);
    assert_eq!(running.image_name, "docker.io/library/nginx:1.21");
    assert_eq!(running.pid, Some(4_242));
    assert_eq!(
        (running.created_at_ns, running.started_at_ns),
        (10, Some(20))
    );
    assert_eq!((running.finished_at_ns, running.exit_code), (None, None));
    assert_eq!(running.oom_killed, None);
    assert_eq!(running.restart_count, Some(2));
    let pod = running.pod.expect("labels and info name it");
    assert_eq!(
        (pod.name.as_str(), pod.sandbox_id.as_str()),
        ("web-0", SANDBOX_ID)
    );
    assert_eq!(running.labels.len(), 2);
}

#[test]
fn an_exit_code_counts_only_of_a_container_that_has_exited() {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning, ContainerUnknown};
    for (state, started, finished, expected) in [
        (ContainerExited, 20, 30, Some(5)),
        // What lives for less than a millisecond ends before it starts (containerd 2.1).
        (ContainerExited, 30, 20, Some(5)),
        // It never started.
        (ContainerExited, 0, 30, Some(5)),
        // The same in CRI-O 1.34: Go's zero time.
        (ContainerExited, -6_795_364_578_871_345_152, 30, Some(5)),
        (ContainerExited, 20, 0, None),
        (ContainerRunning, 20, 0, None),
        (ContainerCreated, 0, 0, None),
        (ContainerUnknown, 20, 30, None),
    ] {
        let mut said = status(state);
        (said.started_at, said.finished_at, said.exit_code) = (started, finished, 5);
        let container = read(&said, info(7));
        assert_eq!(
            container.exit_code, expected,
            "{state:?} {started} {finished}"
        );
        if expected.is_some() {
            assert!(container.finished_at_ns >= container.started_at_ns);
        }
    }
}

#[test]
fn a_pid_counts_only_while_a_process_may_live() {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning, ContainerUnknown};
    // CRI-O has the pid before the start, and never clears it.
    for (state, expected) in [
        (ContainerCreated, Some(7)),
        (ContainerRunning, Some(7)),
        (ContainerExited, None),
        (ContainerUnknown, None),
    ] {
        assert_eq!(read(&status(state), info(7)).pid, expected, "{state:?}");
    }
}

#[test]
fn an_oom_kill_is_told_by_its_reason() {
    let mut said = status(ContainerState::ContainerExited);
    said.reason = OOM_KILLED.into();
    assert_eq!(read(&said, info(0)).oom_killed, Some(true));
    said.reason = "Error".into();
    assert_eq!(read(&said, info(0)).oom_killed, Some(false));
}

#[test]
fn the_image_is_named_as_each_runtime_names_it() {
    let image = |image: &str, asked: &str, image_ref: &str, image_id: &str| {
        let mut said = status(ContainerState::ContainerRunning);
        said.image = Some(ImageSpec {
            image: image.into(),
            user_specified_image: asked.into(),
        });
        (said.image_ref, said.image_id) = (image_ref.into(), image_id.into());
        let read = read(&said, info(1));
        (read.image_name, read.image_id, read.image_digest)
    };
    let id = DIGEST.to_owned();
    let local = format!("sha256:{DIGEST}");
    let pulled = format!("docker.io/library/busybox@sha256:{DIGEST}");
    assert_eq!(
        image(&local, "nginx:1", &local, ""),
        ("nginx:1".to_owned(), id.clone(), String::new())
    );
    assert_eq!(
        image(&local, "", &local, ""),
        (id.clone(), id.clone(), String::new())
    );
    assert_eq!(
        image("nginx", "", &pulled, DIGEST),
        ("nginx".to_owned(), id.clone(), pulled.clone())
    );
    assert_eq!(
        image("nginx", "", &format!("docker://{local}"), ""),
        ("nginx".to_owned(), id, String::new())
    );
    assert_eq!(
        image("nginx", "", &format!("docker-pullable://{pulled}"), ""),
        ("nginx".to_owned(), String::new(), pulled)
    );
}

#[test]
fn what_the_status_leaves_out_the_list_gives() {
    let mut said = status(ContainerState::ContainerRunning);
    (said.image, said.image_ref) = (None, Vec::new());
    let facts = ListFacts {
        sandbox_id: ContainerId::parse(SANDBOX_ID),
        image_name: "nginx".to_owned(),
        image_id: DIGEST.to_owned(),
    };
    let pod = Pod {
        name: "web-0".to_owned(),
        ..Pod::default()
    };
    let read = container(&said, Info::default(), &facts, Some(&pod), &runtime());
    let read = read.expect("it has an id");
    assert_eq!(
        (read.image_name.as_str(), read.image_id.as_str()),
        ("nginx", DIGEST)
    );
    let pod = read.pod.expect("the list names it");
    assert_eq!(
        (pod.name.as_str(), pod.sandbox_id.as_str()),
        ("web-0", SANDBOX_ID)
    );
}

fn sandbox_status(state: PodSandboxState, pid: NamespaceMode) -> PodSandboxStatus {
    PodSandboxStatus {
        id: SANDBOX_ID.into(),
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 1,
        }),
        state: state.into(),
        created_at: 10,
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(NamespaceOption { pid: pid.into() }),
            }),
        }),
        ..PodSandboxStatus::default()
    }
}

#[test]
fn a_sandbox_is_running_while_it_is_ready() {
    let ready = sandbox_status(PodSandboxState::SandboxReady, NamespaceMode::Pod);
    let read = sandbox(&ready, info(7), &runtime()).expect("it has an id");
    assert_eq!(read.kind, ContainerKind::Sandbox);
    assert_eq!((read.state, read.pid), (State::Running, Some(7)));
    assert_eq!(
        (read.name.as_str(), read.pid_mode.as_str()),
        ("web-0", "pod")
    );
    assert_eq!(read.restart_count, Some(1));
    let pod = read.pod.expect("it is one");
    assert_eq!((pod.namespace.as_str(), pod.uid.as_str()), ("shop", "u-1"));
    assert_eq!(pod.sandbox_id, SANDBOX_ID);

    let gone = sandbox_status(PodSandboxState::SandboxNotready, NamespaceMode::Node);
    let read = sandbox(&gone, info(7), &runtime()).expect("it has an id");
    assert_eq!((read.state, read.pid), (State::Exited, None));
    assert_eq!(read.pid_mode, "node");
}

fn event_of(kind: i32, id: &str) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: id.into(),
        container_event_type: kind,
        created_at: 99,
        ..ContainerEventResponse::default()
    }
}

#[test]
fn a_sandbox_s_event_is_known_by_its_status_or_by_what_was_listed() {
    let stopped = ContainerEventType::ContainerStoppedEvent.into();
    let mut said = event_of(stopped, SANDBOX_ID);
    said.pod_sandbox_status = Some(sandbox_status(
        PodSandboxState::SandboxNotready,
        NamespaceMode::Container,
    ));
    let read = event(&said, |_| false, &runtime()).expect("it is known");
    assert_eq!(
        (read.kind, read.what),
        (ContainerKind::Sandbox, EventKind::Died)
    );
    assert_eq!(read.facts.map(|facts| facts.state), Some(State::Exited));

    said.pod_sandbox_status = None;
    let read = event(&said, |id| id.as_str() == SANDBOX_ID, &runtime()).expect("it is known");
    assert_eq!((read.kind, read.facts), (ContainerKind::Sandbox, None));
    let read = event(&said, |_| false, &runtime()).expect("it is known");
    assert_eq!(read.kind, ContainerKind::Container);
}

#[test]
fn an_event_carries_the_facts_of_its_own_container() {
    let mut said = event_of(ContainerEventType::ContainerStoppedEvent.into(), ID);
    let mut exited = status(ContainerState::ContainerExited);
    (exited.started_at, exited.finished_at, exited.exit_code) = (20, 30, 5);
    let mut other = status(ContainerState::ContainerRunning);
    other.id = "b".repeat(64).into();
    said.containers_statuses = vec![other, exited];
    said.pod_sandbox_status = Some(sandbox_status(
        PodSandboxState::SandboxReady,
        NamespaceMode::Container,
    ));
    let read = event(&said, |_| true, &runtime()).expect("it is known");
    assert_eq!((read.kind, read.at_ns), (ContainerKind::Container, 99));
    assert_eq!(read.exit_code, Some(5));
    let facts = read.facts.expect("its status is there");
    assert_eq!((facts.state, facts.pid), (State::Exited, None));
    let pod = facts.pod.expect("its sandbox is there");
    assert_eq!(
        (pod.name.as_str(), pod.sandbox_id.as_str()),
        ("web-0", SANDBOX_ID)
    );
}

#[test]
fn an_event_that_makes_no_sense_is_none() {
    for said in [event_of(0, ""), event_of(0, "a/b"), event_of(17, ID)] {
        assert_eq!(event(&said, |_| false, &runtime()), None);
    }
}

#[test]
fn a_hostile_row_costs_only_itself() {
    let row = |id: &[u8], name: &[u8]| proto::Container {
        id: id.to_vec(),
        pod_sandbox_id: SANDBOX_ID.into(),
        metadata: Some(ContainerMetadata {
            name: name.to_vec(),
            attempt: 0,
        }),
        ..proto::Container::default()
    };
    let containers = ListContainersResponse {
        containers: vec![
            row(b"", b"a"),
            row(b"\xff\xfe", b"b"),
            row(ID.as_bytes(), b"\xff\0\x1b[2J"),
        ],
    };
    let sandboxes = ListPodSandboxResponse {
        items: vec![PodSandbox::default()],
    };
    let (listing, known) = listing(&sandboxes, &containers);
    assert_eq!((listing.rows.len(), listing.skipped), (1, 3));
    assert_eq!(known.containers.len(), 1);
}

#[test]
fn the_order_of_labels_changes_no_fingerprint() {
    let row = |labels: &[(&str, &str)], state: ContainerState| {
        let row = proto::Container {
            id: ID.into(),
            state: state.into(),
            labels: entries(labels),
            ..proto::Container::default()
        };
        container_row(&ContainerId::parse(ID).expect("it is an id"), &row).fingerprint
    };
    let running = ContainerState::ContainerRunning;
    let one = row(&[("a", "1"), ("b", "2")], running);
    assert_eq!(one, row(&[("b", "2"), ("a", "1")], running));
    assert_ne!(one, row(&[("a", "2"), ("b", "1")], running));
    assert_ne!(
        one,
        row(&[("a", "1"), ("b", "2")], ContainerState::ContainerExited)
    );
}

#[test]
fn a_sandbox_that_is_ready_can_be_sketched() {
    let row = |state: PodSandboxState| PodSandbox {
        id: SANDBOX_ID.into(),
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 1,
        }),
        state: state.into(),
        created_at: 10,
        labels: entries(&[("app", "shop")]),
    };
    let status = PodSandboxStatus {
        labels: entries(&[("app", "shop")]),
        linux: None,
        ..sandbox_status(PodSandboxState::SandboxReady, NamespaceMode::Pod)
    };
    let whole = sandbox(&status, Info::default(), &runtime());
    let sketch = sandbox_sketch(row(PodSandboxState::SandboxReady), &runtime());
    assert!(sketch.is_some());
    assert_eq!(sketch, whole);
    let ended = sandbox_sketch(row(PodSandboxState::SandboxNotready), &runtime());
    assert_eq!(ended, None);
}
