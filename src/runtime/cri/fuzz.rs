//! Answers of a CRI server as nobody writes them: the bytes of its messages, and the JSON in `info`.

use prost::Message;

use super::info;
use super::normalise::{self, Runtime};
use super::pods::ListFacts;
use super::proto::{
    ContainerEventResponse, ContainerEventType, ContainerState, ContainerStatus,
    ContainerStatusResponse, Entry, ListContainersResponse, ListPodSandboxResponse,
    PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusResponse, VersionResponse,
};
use crate::fuzzing::feed;

const ID: &str = "a5cd3d0fc084d3024e356aed70b3dea62e32d0f20df608354b9bf845ac8d557d";
const INFO: &str = r#"{"sandboxID":"8cbeb0823a7177c7232b1b0295575835ca1b9141e2ca29b80a605dac28ed9138","pid":4711,"image":"pause:3.10","privileged":false,"config":{"linux":{"security_context":{"namespace_options":{"pid":1,"network":2},"privileged":true}}},"runtimeSpec":{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"},{"type":"mount"}]}}}"#;

fn runtime() -> Runtime {
    Runtime {
        name: "containerd".into(),
        version: "2.1.9".into(),
    }
}

fn entry(key: &str, value: &str) -> Entry {
    Entry {
        key: key.into(),
        value: value.into(),
    }
}

fn status() -> ContainerStatus {
    ContainerStatus {
        id: ID.into(),
        state: ContainerState::ContainerExited.into(),
        created_at: 10,
        started_at: 20,
        finished_at: 30,
        exit_code: 137,
        image_ref: format!("docker.io/library/busybox@sha256:{ID}").into(),
        reason: "OOMKilled".into(),
        labels: vec![
            entry("io.kubernetes.pod.name", "web-0"),
            entry("app", "shop"),
        ],
        ..ContainerStatus::default()
    }
}

fn sandbox() -> PodSandboxStatus {
    PodSandboxStatus {
        id: ID.into(),
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            uid: "uid".into(),
            namespace: "shop".into(),
            attempt: 1,
        }),
        created_at: 10,
        labels: vec![entry("app", "shop")],
        ..PodSandboxStatus::default()
    }
}

#[test]
fn fuzz_cri_container_status() {
    let answer = ContainerStatusResponse {
        status: Some(status()),
        info: vec![entry("info", INFO)],
    };
    feed("CRI container status", &[answer.encode_to_vec()], |bytes| {
        if let Ok(answer) = ContainerStatusResponse::decode(bytes) {
            let info = info::parse(&answer.info);
            let status = answer.status.unwrap_or_default();
            let facts = ListFacts::default();
            drop(normalise::sandbox_id(&info, &facts));
            let _ = normalise::labels_name_the_pod(&status.labels);
            drop(normalise::container(
                &status,
                info,
                &facts,
                None,
                &runtime(),
            ));
        }
    });
}

#[test]
fn fuzz_cri_sandbox_status() {
    let answer = PodSandboxStatusResponse {
        status: Some(sandbox()),
        info: vec![entry("info", INFO)],
    };
    feed("CRI sandbox status", &[answer.encode_to_vec()], |bytes| {
        if let Ok(answer) = PodSandboxStatusResponse::decode(bytes) {
            let info = info::parse(&answer.info);
            let status = answer.status.unwrap_or_default();
            drop(normalise::sandbox(&status, info, &runtime()));
        }
    });
}

#[test]
fn fuzz_cri_info() {
    feed("CRI info", &[INFO.as_bytes().to_vec()], |bytes| {
        let entry = Entry {
            key: b"info".to_vec(),
            value: bytes.to_vec(),
        };
        drop(info::parse(&[entry]));
    });
}

#[test]
fn fuzz_cri_events() {
    let mut samples = Vec::new();
    for kind in [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
        ContainerEventType::ContainerDeletedEvent,
    ] {
        let event = ContainerEventResponse {
            container_id: ID.into(),
            container_event_type: kind.into(),
            created_at: 5,
            pod_sandbox_status: Some(sandbox()),
            containers_statuses: vec![status()],
        };
        samples.push(event.encode_to_vec());
    }
    feed("CRI events", &samples, |bytes| {
        if let Ok(event) = ContainerEventResponse::decode(bytes) {
            drop(normalise::event(&event, |_| false, &runtime()));
        }
    });
}

#[test]
fn fuzz_cri_lists() {
    let containers = ListContainersResponse {
        containers: vec![super::proto::Container {
            id: ID.into(),
            pod_sandbox_id: ID.into(),
            created_at: 10,
            labels: vec![entry("app", "shop")],
            ..super::proto::Container::default()
        }],
    };
    let sandboxes = ListPodSandboxResponse {
        items: vec![super::proto::PodSandbox {
            id: ID.into(),
            metadata: sandbox().metadata,
            created_at: 10,
            ..super::proto::PodSandbox::default()
        }],
    };
    let samples = [containers.encode_to_vec(), sandboxes.encode_to_vec()];
    feed("CRI lists", &samples, |bytes| {
        let sandboxes = ListPodSandboxResponse::decode(bytes).unwrap_or_default();
        let containers = ListContainersResponse::decode(bytes).unwrap_or_default();
        drop(normalise::listing(&sandboxes, &containers));
        drop(VersionResponse::decode(bytes));
    });
}
