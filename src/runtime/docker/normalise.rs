//! From Docker's words to ours. Pure.

use std::sync::Arc;

use super::exit_labels::EXIT_CODE_ATTRIBUTE;
use super::wire::{Attributes, Details, Event, Row, Version};
use crate::model::{
    Container, ContainerId, ContainerKind, EventKind, ListRow, Pod, RuntimeEvent, RuntimeType,
    State,
};
use crate::runtime::lenient::{Lenient, TextMap};
use crate::runtime::text::{self, Fingerprint};
use crate::runtime::{Listing, kubernetes, run_end};

/// The label by which cri-dockerd (and dockershim before it) tells a pod's sandbox from its containers.
pub(super) const KUBERNETES_TYPE_LABEL: &str = "io.kubernetes.docker.type";

/// Its value for sandboxes.
const KUBERNETES_TYPE_SANDBOX: &str = "podsandbox";

/// The names of the two engines.
pub(super) const PODMAN: &str = "podman";
const DOCKER: &str = "docker";

/// Newest API version that we know; what is read has been the same since 1.24.
pub(super) const API_VERSION_MAX: (u32, u32) = (1, 53);

/// Who answers at a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Engine {
    /// `docker` or `podman`.
    pub(super) name: &'static str,
    /// Its own version.
    pub(super) version: String,
    /// The API version to speak: the server's newest, at most ours; where ours is too old for it, its oldest.
    pub(super) api: (u32, u32),
}

/// What the headers of an answer tell: dockerd's `Server: Docker/28.5.2 (linux)` (moby, api/server/middleware/version.go),
/// Podman's `Libpod/4.3.1 (linux)` (pkg/api/server/handler_api.go). `None` where they do not tell all, and where the API
/// is newer than ours: how old a version the server takes they do not say.
pub(super) fn greeting(server: &str, api_version: &str) -> Option<Engine> {
    let (product, version) = server.split_once('/')?;
    let name = match product {
        "Docker" => DOCKER,
        "Libpod" => PODMAN,
        _ => return None,
    };
    let version = version.split_ascii_whitespace().next()?.to_owned();
    let api = parse_api_version(api_version).filter(|newest| *newest <= API_VERSION_MAX)?;
    Some(Engine { name, version, api })
}

/// What `/version` tells; `None` where it has no API version: it is no Docker. Podman calls its first component
/// `Podman Engine`.
pub(super) fn engine(version: &Version) -> Option<Engine> {
    let newest = parse_api_version(version.api_version.text())?;
    let oldest = parse_api_version(version.min_api_version.text()).unwrap_or(newest);
    let is_podman = version.components.0.as_ref().is_some_and(|components| {
        components
            .iter()
            .any(|component| component.name.text().starts_with("Podman"))
    });
    Some(Engine {
        name: if is_podman { PODMAN } else { DOCKER },
        version: version.version.text().to_owned(),
        api: newest.min(API_VERSION_MAX).max(oldest.min(newest)),
    })
}

fn parse_api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A whole list; rows without a usable id are skipped and counted.
pub(super) fn listing(rows: Vec<Lenient<Row>>) -> Listing {
    let mut listing = Listing::default();
    for row in rows {
        match row.0.and_then(list_row) {
            Some(row) => listing.rows.push(row),
            None => listing.skipped += 1,
        }
    }
    listing
}

fn list_row(row: Row) -> Option<ListRow> {
    let id = ContainerId::parse(row.id.text())?;
    let mut names = row.names.or_default();
    names.sort();
    let labels = row.labels.or_default();
    let kind = kind(labels.get(KUBERNETES_TYPE_LABEL));
    let mut labels = labels.0;
    labels.sort();

    let mut print = Fingerprint::new()
        .field(id.as_str().as_bytes())
        .field(row.image.text().as_bytes())
        .field(row.image_id.text().as_bytes())
        .field(&row.created.0.unwrap_or(0).to_le_bytes())
        .field(row.state.text().as_bytes())
        .field(lasting_status(row.status.text()).as_bytes());
    for name in &names {
        print = print.field(name.as_bytes());
    }
    for (key, value) in &labels {
        print = print.field(key.as_bytes()).field(value.as_bytes());
    }
    Some(ListRow {
        id,
        kind,
        state: state(row.state.text()),
        fingerprint: print.finish(),
    })
}

/// A container that runs, as its list row tells it; `None` where the row does not say what an inspect would: the name
/// of an image whose tag has moved is an id there.
pub(super) fn sketch(
    row: &Row,
    runtime_name: &Arc<str>,
    runtime_version: &Arc<str>,
) -> Option<Container> {
    let id = ContainerId::parse(row.id.text())?;
    let state = state(row.state.text());
    let image_name = row.image.text();
    let is_tag_moved = text::is_bare_sha256(text::bare_digest(image_name))
        || row.image_id.text().contains(image_name);
    if !state.is_live() || is_tag_moved {
        return None;
    }
    // Names of links have the name of the container that has the link before them.
    let names = row.names.0.as_deref().unwrap_or_default();
    let own_name = names
        .iter()
        .find(|name| !name.trim_start_matches('/').contains('/'))?;
    let labels = row.labels.0.clone().unwrap_or_default();
    let created_at_s = row
        .created
        .0
        .and_then(|seconds| u64::try_from(seconds).ok());
    Some(Container {
        kind: kind(labels.get(KUBERNETES_TYPE_LABEL)),
        runtime_name: Arc::clone(runtime_name),
        runtime_version: Arc::clone(runtime_version),
        state,
        image_id: text::bounded(text::bare_digest(row.image_id.text())),
        created_at_ns: created_at_s.unwrap_or(0).saturating_mul(1_000_000_000),
        pod: pod(&labels),
        labels: text::bounded_labels(labels.0),
        ..bare(&id, name(own_name), image_name)
    })
}

/// The part of `Exited (137) 5 minutes ago` that time does not change; nothing of `Up 5 minutes (healthy)`.
fn lasting_status(status: &str) -> &str {
    match status.split_once(')') {
        Some((head, _)) if head.starts_with("Exited (") || head.starts_with("Restarting (") => head,
        Some(_) | None => "",
    }
}

/// One container, as an inspect tells it; `None` where it has no usable id.
pub(super) fn container(
    details: Details,
    runtime_name: &Arc<str>,
    runtime_version: &Arc<str>,
) -> Option<Container> {
    let id = ContainerId::parse(details.id.text())?;
    let config = details.config.or_default();
    let host = details.host_config.or_default();
    let said = details.state.or_default();
    let labels = config.labels.or_default();

    let state = state(said.status.text());
    let started_at_ns = text::rfc3339_ns(said.started_at.text());
    let finished_at_ns = run_end(
        state,
        started_at_ns,
        text::rfc3339_ns(said.finished_at.text()),
    );
    let has_ended = finished_at_ns.is_some() && finished_at_ns >= started_at_ns;
    // Podman's `initialized` container has its process already; everywhere else a pid without a living
    // process is one of the past.
    let may_have_pid = state.is_live() || state == State::Created;
    let oom_killed = said.oom_killed.0;
    let reason = if oom_killed == Some(true) {
        "OOMKilled".to_owned()
    } else {
        text::bounded(said.error.text())
    };
    let image_name = config.image.text();

    Some(Container {
        id,
        name: name(details.name.text()),
        kind: kind(labels.get(KUBERNETES_TYPE_LABEL)),
        runtime: RuntimeType::Docker,
        runtime_name: Arc::clone(runtime_name),
        runtime_version: Arc::clone(runtime_version),
        state,
        image_id: text::bounded(text::bare_digest(details.image.text())),
        image_name: text::bounded(text::bare_digest(image_name)),
        image_digest: text::bounded(repository_digest(image_name)),
        pid: said
            .pid
            .0
            .filter(|_| may_have_pid)
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0),
        created_at_ns: text::rfc3339_ns(details.created.text()).unwrap_or(0),
        started_at_ns,
        finished_at_ns: finished_at_ns.filter(|_| has_ended && !state.is_live()),
        exit_code: said
            .exit_code
            .0
            .filter(|_| has_ended && !state.is_live())
            .and_then(|code| i32::try_from(code).ok()),
        oom_killed,
        restart_count: details
            .restart_count
            .0
            .and_then(|count| u32::try_from(count).ok()),
        pod: pod(&labels),
        pid_mode: pid_mode(host.pid_mode.text()),
        privileged: host.privileged.0,
        reason,
        labels: text::bounded_labels(labels.0),
    })
}

/// The ids of a list's containers whose labels hide the exit code of their events (see `exit_labels`).
pub(super) fn labelled_as_exit_code(rows: &[Lenient<Row>]) -> Vec<ContainerId> {
    rows.iter()
        .filter_map(|row| row.0.as_ref())
        .filter(|row| {
            let labels = row.labels.0.as_ref();
            labels.is_some_and(|labels| labels.get(EXIT_CODE_ATTRIBUTE).is_some())
        })
        .filter_map(|row| ContainerId::parse(row.id.text()))
        .collect()
}

/// One event; `None` for what is not a container's or has another action than those asked for. Its exit code is
/// what an attribute or a label of that name says, in every event: [`ExitLabels::screen`] has yet to judge it.
///
/// # Errors
/// What it lacks.
///
/// [`ExitLabels::screen`]: super::exit_labels::ExitLabels::screen
pub(super) fn event(event: &Event) -> Result<Option<RuntimeEvent>, &'static str> {
    match event.scope.0.as_deref() {
        Some("container") => {}
        Some(_) => return Ok(None),
        None => return Err("an event without a type"),
    }
    let action = event
        .action
        .0
        .as_deref()
        .ok_or("an event without an action")?;
    let what = match action {
        "create" => EventKind::Created,
        "init" => EventKind::Initialized,
        "start" => EventKind::Started,
        "pause" => EventKind::Paused,
        "unpause" => EventKind::Unpaused,
        "rename" => EventKind::Renamed,
        "die" | "died" => EventKind::Died,
        "destroy" | "remove" => EventKind::Deleted,
        _ => return Ok(None),
    };
    let actor = event.actor.0.as_ref().ok_or("an event of nobody")?;
    let id = ContainerId::parse(actor.id.text()).ok_or("an event without a usable id")?;
    let attributes = actor.attributes.0.as_ref();
    let exit_code = attributes.and_then(|said| {
        said.exit_code
            .0
            .as_ref()
            .or(said.container_exit_code.0.as_ref())
    });
    // A label may hold anything; that it is there is what counts (see `exit_labels`).
    let exit_code = match (what, exit_code) {
        (_, None) => None,
        (EventKind::Died, Some(code)) => code.parse().ok(),
        (_, Some(code)) => Some(code.parse().unwrap_or(0)),
    };
    let at_ns = match (event.time_nano.0, event.time.0) {
        (Some(ns), _) if ns > 0 => u64::try_from(ns).unwrap_or(0),
        (_, Some(s)) => u64::try_from(s).unwrap_or(0).saturating_mul(1_000_000_000),
        (_, None) => 0,
    };
    let kind = kind(attributes.and_then(|said| said.kubernetes_type.0.as_deref()));
    let facts = attributes
        .filter(|_| what == EventKind::Created)
        .map(|said| Box::new(facts(&id, kind, at_ns, said)));
    Ok(Some(RuntimeEvent {
        id,
        kind,
        what,
        at_ns,
        exit_code,
        facts,
    }))
}

/// What the event of its creation says of a container, for one that is gone before it can be inspected. Which
/// labels it has cannot be told: an event's attributes mix them with its own.
fn facts(id: &ContainerId, kind: ContainerKind, at_ns: u64, said: &Attributes) -> Container {
    Container {
        kind,
        created_at_ns: at_ns,
        ..bare(id, name(said.name.text()), said.image.text())
    }
}

/// A container of which only its names are known.
fn bare(id: &ContainerId, name: String, image_name: &str) -> Container {
    Container {
        name,
        image_name: text::bounded(text::bare_digest(image_name)),
        image_digest: text::bounded(repository_digest(image_name)),
        ..Container::bare(id.clone(), ContainerKind::Container, RuntimeType::Docker)
    }
}

/// The name itself where it is `repo@sha256:…`: an inspect tells no other digest of the repository.
fn repository_digest(image_name: &str) -> &str {
    if image_name.contains("@sha256:") {
        image_name
    } else {
        ""
    }
}

/// Podman says `private` where Docker says nothing.
fn pid_mode(mode: &str) -> String {
    match mode {
        "private" => String::new(),
        _ => text::bounded(mode),
    }
}

fn name(text: &str) -> String {
    text::bounded(text.strip_prefix('/').unwrap_or(text))
}

fn kind(kubernetes_type: Option<&str>) -> ContainerKind {
    if kubernetes_type == Some(KUBERNETES_TYPE_SANDBOX) {
        ContainerKind::Sandbox
    } else {
        ContainerKind::Container
    }
}

fn pod(labels: &TextMap) -> Option<Pod> {
    kubernetes::pod_of_labels(|key| labels.get(key))
}

/// Docker's words, and those of Podman that its compatible API lets through.
fn state(word: &str) -> State {
    match word {
        "created" | "configured" | "initialized" => State::Created,
        "running" | "stopping" => State::Running,
        "paused" => State::Paused,
        "restarting" => State::Restarting,
        "removing" => State::Removing,
        "exited" | "stopped" => State::Exited,
        "dead" => State::Dead,
        _ => State::Unknown,
    }
}

#[cfg(test)]
#[path = "normalise_tests.rs"]
mod tests;
