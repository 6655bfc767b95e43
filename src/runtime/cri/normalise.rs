//! From CRI's words to ours. Pure.

use std::sync::Arc;

use super::info::{self, Info};
use super::pods::{Known, ListFacts};
use super::proto::{
    self, ContainerEventType, ContainerState, ContainerStatus, Entry, ImageSpec,
    ListContainersResponse, ListPodSandboxResponse, PodSandboxMetadata, PodSandboxState,
    PodSandboxStatus,
};
use crate::model::{
    Container, ContainerId, ContainerKind, EventKind, ListRow, Pod, RuntimeEvent, RuntimeType,
    State,
};
use crate::runtime::text::{self, Fingerprint, bounded, lossy};
use crate::runtime::{Listing, kubernetes, run_end};

/// Reason of a container that the kernel's OOM killer ended; CRI demands this word.
const OOM_KILLED: &str = "OOMKilled";

/// The name and version that every container of one runtime carries.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
}

/// A whole list, and what is to be remembered of it. Rows without a usable id are skipped and counted.
pub(super) fn listing(
    sandboxes: &ListPodSandboxResponse,
    containers: &ListContainersResponse,
) -> (Listing, Known) {
    let mut listing = Listing::default();
    let mut known = Known::default();
    for row in &sandboxes.items {
        let Some(id) = id(&row.id) else {
            listing.skipped += 1;
            continue;
        };
        if sandbox_state(row.state) == State::Exited {
            known.stopped.insert(id.clone());
        }
        listing.rows.push(sandbox_row(&id, row));
        let pod = pod_of_sandbox(&id, row.metadata.as_ref());
        known.sandboxes.insert(id, Arc::new(pod));
    }
    for row in &containers.containers {
        let Some(id) = id(&row.id) else {
            listing.skipped += 1;
            continue;
        };
        listing.rows.push(container_row(&id, row));
        let facts = ListFacts {
            sandbox_id: self::id(&row.pod_sandbox_id),
            image_name: image_name(row.image.as_ref()),
            image_id: image_id(&row.image_id, &row.image_ref),
        };
        known.containers.insert(id, facts);
    }
    (listing, known)
}

fn sandbox_row(id: &ContainerId, row: &proto::PodSandbox) -> ListRow {
    let metadata = row.metadata.as_ref();
    let text = |pick: fn(&PodSandboxMetadata) -> &Vec<u8>| metadata.map_or(&[][..], |m| pick(m));
    let print = Fingerprint::new()
        .field(id.as_str().as_bytes())
        .field(text(|metadata| &metadata.name))
        .field(text(|metadata| &metadata.uid))
        .field(text(|metadata| &metadata.namespace))
        .field(&metadata.map_or(0, |m| m.attempt).to_le_bytes())
        .field(&row.state.to_le_bytes())
        .field(&row.created_at.to_le_bytes());
    ListRow {
        id: id.clone(),
        kind: ContainerKind::Sandbox,
        state: sandbox_state(row.state),
        fingerprint: with_labels(print, &row.labels).finish(),
    }
}

fn container_row(id: &ContainerId, row: &proto::Container) -> ListRow {
    let metadata = row.metadata.as_ref();
    let image = row.image.as_ref();
    let print = Fingerprint::new()
        .field(id.as_str().as_bytes())
        .field(&row.pod_sandbox_id)
        .field(metadata.map_or(&[][..], |metadata| &metadata.name))
        .field(
            &metadata
                .map_or(0, |metadata| metadata.attempt)
                .to_le_bytes(),
        )
        .field(image.map_or(&[][..], |image| &image.image))
        .field(&row.image_ref)
        .field(&row.image_id)
        .field(&row.state.to_le_bytes())
        .field(&row.created_at.to_le_bytes());
    ListRow {
        id: id.clone(),
        kind: ContainerKind::Container,
        state: container_state(row.state),
        fingerprint: with_labels(print, &row.labels).finish(),
    }
}

/// Go's maps have no order.
fn with_labels(print: Fingerprint, labels: &[Entry]) -> Fingerprint {
    let mut sorted: Vec<(&[u8], &[u8])> = labels
        .iter()
        .map(|entry| (entry.key.as_slice(), entry.value.as_slice()))
        .collect();
    sorted.sort_unstable();
    sorted
        .into_iter()
        .fold(print, |print, (key, value)| print.field(key).field(value))
}

/// One container. `info` is that of a verbose status, `facts` what the list said, `pod` what its sandbox says.
pub(super) fn container(
    status: &ContainerStatus,
    info: Info,
    facts: &ListFacts,
    pod: Option<&Pod>,
    runtime: &Runtime,
) -> Option<Container> {
    let id = id(&status.id)?;
    let state = container_state(status.state);
    let started_at_ns = positive(status.started_at);
    let finished_at_ns = run_end(state, started_at_ns, positive(status.finished_at));
    let has_ended = finished_at_ns.is_some() && finished_at_ns >= started_at_ns;
    let has_exited = state == State::Exited;
    let reason = bounded(&lossy(&status.reason));
    // CRI-O has the process before the start, and never clears its pid after the exit.
    let may_have_pid = state == State::Running || state == State::Created;
    let metadata = status.metadata.clone().unwrap_or_default();
    let sandbox_id = sandbox_id(&info, facts);

    Some(Container {
        id,
        name: bounded(&lossy(&metadata.name)),
        kind: ContainerKind::Container,
        runtime: RuntimeType::Cri,
        runtime_name: Arc::clone(&runtime.name),
        runtime_version: Arc::clone(&runtime.version),
        state,
        image_id: first_of([
            image_id(&status.image_id, &status.image_ref),
            facts.image_id.clone(),
        ]),
        image_name: first_of([image_name(status.image.as_ref()), facts.image_name.clone()]),
        image_digest: image_digest(&status.image_ref),
        pid: info.pid.filter(|_| may_have_pid),
        created_at_ns: positive(status.created_at).unwrap_or(0),
        started_at_ns,
        finished_at_ns,
        exit_code: (has_exited && has_ended).then_some(status.exit_code),
        oom_killed: has_exited.then_some(reason == OOM_KILLED),
        restart_count: Some(metadata.attempt),
        pod: pod_of_container(&status.labels, sandbox_id.as_ref(), pod),
        pid_mode: info.pid_mode.unwrap_or_default().to_owned(),
        privileged: info.privileged,
        reason,
        labels: labels(&status.labels),
    })
}

/// A container that runs, as its list row tells it.
pub(super) fn sketch(
    row: proto::Container,
    pod: Option<&Pod>,
    runtime: &Runtime,
) -> Option<Container> {
    let facts = ListFacts {
        sandbox_id: id(&row.pod_sandbox_id),
        ..ListFacts::default()
    };
    let status = ContainerStatus {
        id: row.id,
        metadata: row.metadata,
        state: row.state,
        created_at: row.created_at,
        image: row.image,
        image_ref: row.image_ref,
        image_id: row.image_id,
        labels: row.labels,
        ..ContainerStatus::default()
    };
    let container = container(&status, Info::default(), &facts, pod, runtime)?;
    (container.state == State::Running).then_some(container)
}

/// A sandbox that is ready, as its list row tells it.
pub(super) fn sandbox_sketch(row: proto::PodSandbox, runtime: &Runtime) -> Option<Container> {
    let status = PodSandboxStatus {
        id: row.id,
        metadata: row.metadata,
        state: row.state,
        created_at: row.created_at,
        labels: row.labels,
        ..PodSandboxStatus::default()
    };
    let sandbox = sandbox(&status, Info::default(), runtime)?;
    (sandbox.state == State::Running).then_some(sandbox)
}

/// One sandbox.
pub(super) fn sandbox(
    status: &PodSandboxStatus,
    info: Info,
    runtime: &Runtime,
) -> Option<Container> {
    let id = id(&status.id)?;
    let state = sandbox_state(status.state);
    let metadata = status.metadata.clone().unwrap_or_default();
    let mode = status
        .linux
        .as_ref()
        .and_then(|linux| linux.namespaces.as_ref())
        .and_then(|namespaces| namespaces.options.as_ref())
        .map(|options| info::pid_mode(i64::from(options.pid)));
    Some(Container {
        name: bounded(&lossy(&metadata.name)),
        kind: ContainerKind::Sandbox,
        runtime: RuntimeType::Cri,
        runtime_name: Arc::clone(&runtime.name),
        runtime_version: Arc::clone(&runtime.version),
        state,
        image_id: String::new(),
        image_name: info
            .image
            .as_deref()
            .map(|image| bounded(text::bare_digest(image)))
            .unwrap_or_default(),
        image_digest: String::new(),
        pid: info.pid.filter(|_| state == State::Running),
        created_at_ns: positive(status.created_at).unwrap_or(0),
        started_at_ns: None,
        finished_at_ns: None,
        exit_code: None,
        oom_killed: None,
        restart_count: Some(metadata.attempt),
        pod: Some(pod_of_sandbox(&id, Some(&metadata))),
        pid_mode: mode.or(info.pid_mode).unwrap_or_default().to_owned(),
        privileged: info.privileged,
        reason: String::new(),
        labels: labels(&status.labels),
        id,
    })
}

/// One event, with the statuses that it carries; `None` for one that cannot be understood. `is_sandbox` tells
/// of an id whether it is known as a sandbox's: the DELETED of a sandbox may come without its status
/// (containerd, `generateAndSendContainerEvent`).
pub(super) fn event(
    event: &proto::ContainerEventResponse,
    is_sandbox: impl Fn(&ContainerId) -> bool,
    runtime: &Runtime,
) -> Option<RuntimeEvent> {
    let id = id(&event.container_id)?;
    let what = match ContainerEventType::try_from(event.container_event_type).ok()? {
        ContainerEventType::ContainerCreatedEvent => EventKind::Created,
        ContainerEventType::ContainerStartedEvent => EventKind::Started,
        ContainerEventType::ContainerStoppedEvent => EventKind::Died,
        ContainerEventType::ContainerDeletedEvent => EventKind::Deleted,
    };
    let status_of_sandbox = event.pod_sandbox_status.as_ref();
    let own_sandbox = status_of_sandbox.filter(|status| status.id == event.container_id);
    let own_container = event
        .containers_statuses
        .iter()
        .find(|status| status.id == event.container_id);
    let kind = if own_sandbox.is_some() || (own_container.is_none() && is_sandbox(&id)) {
        ContainerKind::Sandbox
    } else {
        ContainerKind::Container
    };

    let facts = match kind {
        ContainerKind::Sandbox => {
            own_sandbox.and_then(|status| sandbox(status, Info::default(), runtime))
        }
        ContainerKind::Container => own_container.and_then(|status| {
            let sandbox_id = status_of_sandbox.and_then(|status| self::id(&status.id));
            let pod = status_of_sandbox
                .zip(sandbox_id.as_ref())
                .map(|(status, id)| pod_of_sandbox(id, status.metadata.as_ref()));
            let facts = ListFacts {
                sandbox_id,
                ..ListFacts::default()
            };
            container(status, Info::default(), &facts, pod.as_ref(), runtime)
        }),
    };
    Some(RuntimeEvent {
        id,
        kind,
        what,
        at_ns: positive(event.created_at).unwrap_or(0),
        exit_code: facts
            .as_ref()
            .filter(|_| what == EventKind::Died)
            .and_then(|facts| facts.exit_code),
        facts: facts.map(Box::new),
    })
}

/// The event of a removal that the runtime does not tell.
pub(super) fn removal(id: ContainerId, kind: ContainerKind) -> RuntimeEvent {
    RuntimeEvent {
        id,
        kind,
        what: EventKind::Deleted,
        at_ns: 0,
        exit_code: None,
        facts: None,
    }
}

/// The sandbox of a container, from the info or the list.
pub(super) fn sandbox_id(info: &Info, facts: &ListFacts) -> Option<ContainerId> {
    info.sandbox_id
        .as_deref()
        .and_then(ContainerId::parse)
        .or_else(|| facts.sandbox_id.clone())
}

/// The pod of a sandbox, from its metadata.
pub(super) fn pod_of_sandbox(id: &ContainerId, metadata: Option<&PodSandboxMetadata>) -> Pod {
    let metadata = metadata.cloned().unwrap_or_default();
    Pod {
        name: bounded(&lossy(&metadata.name)),
        namespace: bounded(&lossy(&metadata.namespace)),
        uid: bounded(&lossy(&metadata.uid)),
        sandbox_id: id.to_string(),
    }
}

/// Whether the labels alone tell the pod whole.
pub(super) fn labels_name_the_pod(entries: &[Entry]) -> bool {
    pod_of_labels(entries)
        .is_some_and(|pod| !pod.name.is_empty() && !pod.namespace.is_empty() && !pod.uid.is_empty())
}

/// An id in a foreign message.
pub(super) fn id(bytes: &[u8]) -> Option<ContainerId> {
    std::str::from_utf8(bytes).ok().and_then(ContainerId::parse)
}

fn pod_of_container(
    entries: &[Entry],
    sandbox_id: Option<&ContainerId>,
    pod: Option<&Pod>,
) -> Option<Pod> {
    let mut pod = pod.cloned().or_else(|| pod_of_labels(entries));
    if let Some(id) = sandbox_id {
        pod.get_or_insert_default().sandbox_id = id.to_string();
    }
    pod
}

fn pod_of_labels(entries: &[Entry]) -> Option<Pod> {
    kubernetes::pod_of_labels(|key| {
        entries
            .iter()
            .find(|entry| entry.key == key.as_bytes())
            .and_then(|entry| std::str::from_utf8(&entry.value).ok())
    })
}

fn labels(entries: &[Entry]) -> std::collections::BTreeMap<String, String> {
    text::bounded_labels(
        entries
            .iter()
            .map(|entry| (lossy(&entry.key), lossy(&entry.value))),
    )
}

/// A name that a person can read, if there is one: containerd gives the id of an image that lost its tag.
fn image_name(spec: Option<&ImageSpec>) -> String {
    let Some(spec) = spec else {
        return String::new();
    };
    let image = lossy(&spec.image);
    let bare = text::bare_digest(&image);
    if (bare.is_empty() || text::is_bare_sha256(bare)) && !spec.user_specified_image.is_empty() {
        let asked = lossy(&spec.user_specified_image);
        return bounded(text::bare_digest(&asked));
    }
    bounded(bare)
}

/// `image_id` where it is one, else the reference where that is one: `sha256:…` (containerd),
/// `docker://sha256:…` (cri-dockerd).
fn image_id(image_id: &[u8], image_ref: &[u8]) -> String {
    [image_id, image_ref]
        .into_iter()
        .map(|bytes| {
            let text = lossy(bytes);
            let local = text.strip_prefix("docker://").unwrap_or(&text);
            bounded(text::bare_digest(local))
        })
        .find(|text| text::is_bare_sha256(text))
        .unwrap_or_default()
}

/// The reference where it is `repo@sha256:…` (CRI-O), `docker-pullable://repo@sha256:…` (cri-dockerd).
fn image_digest(image_ref: &[u8]) -> String {
    let text = lossy(image_ref);
    let bare = text.strip_prefix("docker-pullable://").unwrap_or(&text);
    if bare.contains("@sha256:") {
        bounded(bare)
    } else {
        String::new()
    }
}

fn first_of(texts: [String; 2]) -> String {
    texts
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

fn positive(ns: i64) -> Option<u64> {
    u64::try_from(ns).ok().filter(|ns| *ns > 0)
}

fn container_state(state: i32) -> State {
    match ContainerState::try_from(state) {
        Ok(ContainerState::ContainerCreated) => State::Created,
        Ok(ContainerState::ContainerRunning) => State::Running,
        Ok(ContainerState::ContainerExited) => State::Exited,
        Ok(ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    }
}

fn sandbox_state(state: i32) -> State {
    match PodSandboxState::try_from(state) {
        Ok(PodSandboxState::SandboxReady) => State::Running,
        Ok(PodSandboxState::SandboxNotready) => State::Exited,
        Err(_) => State::Unknown,
    }
}

#[cfg(test)]
#[path = "normalise_tests.rs"]
mod tests;
