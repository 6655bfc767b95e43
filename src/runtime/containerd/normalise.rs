//! From containerd's words to ours. Pure.
//!
//! containerd keeps a container (what was asked for) and a task (its init process, from its creation until somebody
//! deletes it, which clients do soon after the exit). It tells neither when a task started, nor anything of one that
//! was deleted: what its events told stays (`reconcile/views.rs`).

use std::sync::Arc;

use prost::Message as _;

use super::proto::containers::{Container as Row, Entry};
use super::proto::events::{ContainerEvent, Envelope, TaskCreate, TaskEvent, TaskExit};
use super::proto::tasks::{Process, Status};
use super::{own_key, unix_ns, utf8};
use crate::model::{
    Container, ContainerId, ContainerKind, EventKind, ListRow, RuntimeEvent, RuntimeType, State,
};
use crate::runtime::kubernetes;
use crate::runtime::text::{self, Fingerprint, bounded, lossy};

/// The label in which nerdctl keeps the name that a person gave.
const NERDCTL_NAME_LABEL: &[u8] = b"nerdctl/name";

/// The events that are asked for.
pub(super) const FILTERS: [&str; 8] = [
    "topic==\"/containers/create\"",
    "topic==\"/containers/update\"",
    "topic==\"/containers/delete\"",
    "topic==\"/tasks/create\"",
    "topic==\"/tasks/start\"",
    "topic==\"/tasks/exit\"",
    "topic==\"/tasks/paused\"",
    "topic==\"/tasks/resumed\"",
];

/// A list row; `None` where it has no usable id.
pub(super) fn list_row(namespace: &str, row: &Row, task: Option<&Process>) -> Option<ListRow> {
    let id = own_key(namespace, utf8(&row.id)?)?;
    let state = state(task);
    let task_pid = task.map_or(0, |task| task.pid);
    let mut print = Fingerprint::new()
        .field(id.as_str().as_bytes())
        .field(&row.image)
        .field(state.as_str().as_bytes())
        .field(&task_pid.to_le_bytes());
    for time in [&row.created_at, &row.updated_at].into_iter().flatten() {
        print = print
            .field(&time.seconds.to_le_bytes())
            .field(&time.nanos.to_le_bytes());
    }
    Some(ListRow {
        id,
        kind: ContainerKind::Container,
        state,
        fingerprint: print.finish(),
    })
}

/// One container; `None` where it has no usable id.
pub(super) fn container(
    namespace: &str,
    row: &Row,
    task: Option<&Process>,
    runtime_version: &Arc<str>,
) -> Option<Container> {
    let id = own_key(namespace, utf8(&row.id)?)?;
    let label = |key: &[u8]| {
        let is_it = |entry: &&Entry| entry.key == key;
        row.labels
            .iter()
            .find(is_it)
            .and_then(|entry| utf8(&entry.value))
    };
    let state = state(task);
    let ended = task.filter(|_| state == State::Exited);
    let exited_at = ended.and_then(|task| task.exited_at.as_ref());
    let name = label(NERDCTL_NAME_LABEL)
        .filter(|name| !name.is_empty())
        .map_or_else(|| lossy(&row.id), str::to_owned);
    let created_at = row.created_at.as_ref();
    let is_there = state.is_live() || state == State::Created;
    Some(Container {
        name: bounded(&name),
        image_name: bounded(text::bare_digest(&lossy(&row.image))),
        state,
        pid: task
            .map(|task| task.pid)
            .filter(|pid| is_there && *pid != 0),
        created_at_ns: created_at
            .and_then(|time| unix_ns(time.seconds, time.nanos))
            .unwrap_or(0),
        finished_at_ns: exited_at.and_then(|time| unix_ns(time.seconds, time.nanos)),
        exit_code: ended.and_then(|task| i32::try_from(task.exit_status).ok()),
        pod: kubernetes::pod_of_labels(|key| label(key.as_bytes())),
        labels: text::bounded_labels(
            row.labels
                .iter()
                .map(|entry| (lossy(&entry.key), lossy(&entry.value))),
        ),
        ..bare(id, runtime_version)
    })
}

/// The event of a namespace that is containerd's own.
///
/// # Errors
/// What is wrong with it; `Ok(None)` for what is not to be told: the end of an exec.
pub(super) fn event(
    envelope: &Envelope,
    runtime_version: &Arc<str>,
) -> Result<Option<RuntimeEvent>, &'static str> {
    let value = envelope
        .event
        .as_ref()
        .map_or(&[][..], |event| event.value.as_slice());
    let malformed = |_| "an event that cannot be decoded";
    let mut exit = None;
    let mut image = None;
    let (what, id) = match envelope.topic.as_slice() {
        b"/containers/create" => {
            let event = ContainerEvent::decode(value).map_err(malformed)?;
            image = Some(event.image);
            (EventKind::Created, event.id)
        }
        b"/containers/update" => {
            let event = ContainerEvent::decode(value).map_err(malformed)?;
            (EventKind::Renamed, event.id)
        }
        b"/containers/delete" => {
            let event = ContainerEvent::decode(value).map_err(malformed)?;
            (EventKind::Deleted, event.id)
        }
        b"/tasks/create" => {
            let event = TaskCreate::decode(value).map_err(malformed)?;
            (EventKind::Initialized, event.container_id)
        }
        b"/tasks/start" => (EventKind::Started, task_of(value).map_err(malformed)?),
        b"/tasks/paused" => (EventKind::Paused, task_of(value).map_err(malformed)?),
        b"/tasks/resumed" => (EventKind::Unpaused, task_of(value).map_err(malformed)?),
        b"/tasks/exit" => {
            let event = TaskExit::decode(value).map_err(malformed)?;
            if !event.id.is_empty() && event.id != event.container_id {
                return Ok(None);
            }
            let at = event.exited_at.as_ref();
            exit = Some((
                i32::try_from(event.exit_status).ok(),
                at.and_then(|time| unix_ns(time.seconds, time.nanos)),
            ));
            (EventKind::Died, event.container_id)
        }
        _ => return Err("an event that was not asked for"),
    };
    let namespace = utf8(&envelope.namespace).ok_or("an event of no namespace")?;
    let name = utf8(&id).ok_or("an event without a usable id")?;
    let id = own_key(namespace, name).ok_or("an event without a usable id")?;
    let sent_ns = envelope
        .timestamp
        .as_ref()
        .and_then(|time| unix_ns(time.seconds, time.nanos));
    let at_ns = exit.and_then(|(_, at_ns)| at_ns).or(sent_ns).unwrap_or(0);
    let facts = image.map(|image| {
        Box::new(Container {
            name: bounded(name),
            image_name: bounded(text::bare_digest(&lossy(&image))),
            created_at_ns: at_ns,
            ..bare(id.clone(), runtime_version)
        })
    });
    Ok(Some(RuntimeEvent {
        id,
        kind: ContainerKind::Container,
        what,
        at_ns,
        exit_code: exit.and_then(|(code, _)| code),
        facts,
    }))
}

fn task_of(value: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    TaskEvent::decode(value).map(|event| event.container_id)
}

/// A container of which nothing is known.
fn bare(id: ContainerId, runtime_version: &Arc<str>) -> Container {
    Container {
        runtime_name: super::client::NAME.into(),
        runtime_version: Arc::clone(runtime_version),
        ..Container::bare(id, ContainerKind::Container, RuntimeType::Containerd)
    }
}

/// A container without a task is one that is not started: that one has ended is known only while its task is there.
fn state(task: Option<&Process>) -> State {
    let Some(task) = task else {
        return State::Created;
    };
    match Status::try_from(task.status) {
        Ok(Status::Created) => State::Created,
        Ok(Status::Running) => State::Running,
        Ok(Status::Paused | Status::Pausing) => State::Paused,
        Ok(Status::Stopped) => State::Exited,
        Ok(Status::Unknown) | Err(_) => State::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::events::{Any, Timestamp};
    use super::*;

    fn envelope(topic: &str, value: Vec<u8>) -> Envelope {
        Envelope {
            timestamp: Some(Timestamp {
                seconds: 7,
                nanos: 0,
            }),
            namespace: b"default".to_vec(),
            topic: topic.as_bytes().to_vec(),
            event: Some(Any { value }),
        }
    }

    fn read(topic: &str, value: Vec<u8>) -> Result<Option<RuntimeEvent>, &'static str> {
        event(&envelope(topic, value), &"2.1.9".into())
    }

    fn task(status: Status) -> Process {
        Process {
            id: b"web".to_vec(),
            pid: 42,
            status: status.into(),
            exit_status: 3,
            exited_at: Some(super::super::proto::tasks::Timestamp {
                seconds: 9,
                nanos: 5,
            }),
        }
    }

    #[test]
    fn the_end_of_a_container_is_told_and_that_of_an_exec_is_not() {
        let exit = |id: &[u8]| TaskExit {
            container_id: b"web".to_vec(),
            id: id.to_vec(),
            exit_status: 137,
            exited_at: None,
        };
        let died = read("/tasks/exit", exit(b"web").encode_to_vec());
        let died = died.expect("it is whole").expect("it is told");
        assert_eq!(died.id.as_str(), "default:web");
        assert_eq!(
            (died.what, died.exit_code, died.at_ns),
            (EventKind::Died, Some(137), 7_000_000_000)
        );
        let of_exec = read("/tasks/exit", exit(b"exec-1").encode_to_vec());
        assert!(of_exec.expect("it is whole").is_none());
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        let hostile = TaskEvent {
            container_id: b"a/b\xff".to_vec(),
        };
        for (topic, value) in [
            ("/tasks/start", vec![0xff; 40]),
            ("/tasks/start", hostile.encode_to_vec()),
            ("/tasks/start", Vec::new()),
            ("/images/create", Vec::new()),
        ] {
            assert!(read(topic, value).is_err(), "{topic}");
        }
    }

    #[test]
    fn a_task_says_how_its_container_stands() {
        let row = Row {
            id: b"web".to_vec(),
            labels: vec![Entry {
                key: NERDCTL_NAME_LABEL.to_vec(),
                value: b"front".to_vec(),
            }],
            image: b"docker.io/library/busybox:lab".to_vec(),
            ..Row::default()
        };
        let version: Arc<str> = "2.1.9".into();
        for (status, state, pid, exit_code) in [
            (Status::Created, State::Created, Some(42), None),
            (Status::Running, State::Running, Some(42), None),
            (Status::Pausing, State::Paused, Some(42), None),
            (Status::Stopped, State::Exited, None, Some(3)),
        ] {
            let read = container("default", &row, Some(&task(status)), &version);
            let read = read.expect("it has an id");
            assert_eq!(
                (read.state, read.pid, read.exit_code),
                (state, pid, exit_code)
            );
            assert_eq!(
                (read.name.as_str(), read.id.as_str()),
                ("front", "default:web")
            );
        }
        let never = container("default", &row, None, &version).expect("it has an id");
        assert_eq!((never.state, never.pid), (State::Created, None));
        let nameless = Row {
            labels: Vec::new(),
            ..row.clone()
        };
        let nameless = container("default", &nameless, None, &version).expect("it has an id");
        assert_eq!(nameless.name, "web");
        let print = |task: Option<&Process>| {
            let row = list_row("default", &row, task).expect("it has an id");
            row.fingerprint
        };
        assert_ne!(print(None), print(Some(&task(Status::Running))));
    }
}
