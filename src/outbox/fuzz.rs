//! Rows of the state as no collector wrote them. A row that cannot be read is damage: the state is set aside.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunk::{self, StoredDelta};
use super::reader::StoredMessage;
use super::states::StoredState;
use super::{Meta, Stage};
use crate::fuzzing::feed;
use crate::model::message::RuntimeSource;
use crate::model::{
    Container, ContainerId, ContainerKind, ListRow, RuntimeType, SourceId, State, Topic,
};
use crate::reconcile::{
    Identity, InspectOutcome, ListOutcome, NamespaceRow, Observation, Process, ProcessReading,
    Reconciler, Restored, Row, RowKey, Settings, Source, Tracked,
};

const SOURCE: &str = "docker=unix:///run/docker.sock";

fn bytes(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("it can be written")
}

/// A reconciler that knows one running container, so that there are rows of each kind.
fn reconciler() -> Reconciler {
    let identity = Identity {
        boot_id: "boot".into(),
        host_pns_inode: 1,
        previous_epoch: None,
    };
    let mut reconciler = Reconciler::new(identity, Settings::default(), Restored::default());
    let source = SourceId::new(SOURCE);
    let id = ContainerId::parse("abc").expect("it is an id");
    let observations = [
        Observation::Began {
            last_alive_ms: 0,
            owed: std::collections::BTreeSet::new(),
        },
        Observation::SourceExpected {
            source: source.clone(),
        },
        Observation::SourceUp {
            source: source.clone(),
            runtime: RuntimeSource {
                uid: 0,
                runtime: RuntimeType::Docker,
                name: "docker".into(),
                version: "28".into(),
                endpoint: "unix:///run/docker.sock".into(),
            },
            streaming: true,
            is_listing: false,
        },
        Observation::ListBegan {
            source: source.clone(),
        },
        Observation::ListDone {
            source: source.clone(),
            outcome: ListOutcome::Complete(vec![ListRow {
                id: id.clone(),
                kind: ContainerKind::Container,
                state: State::Running,
                fingerprint: 7,
            }]),
        },
        Observation::Inspected {
            source,
            id: id.clone(),
            outcome: InspectOutcome::Found {
                container: Box::new(running(id)),
                process: Some(ProcessReading::Alive(Box::new(process()))),
            },
        },
    ];
    for observation in observations {
        drop(reconciler.handle(observation, 1_700_000_000_000));
    }
    reconciler
}

fn process() -> Process {
    Process {
        pid: 4_711,
        start_ticks: 99,
        started_at_ms: 1_699_999_999_000,
        pns_inode: 4_026_532_448,
        pns_id: Some(8_412),
        mnt_ns: 4_026_532_449,
        cgroup: "/docker/abc".into(),
        is_init: true,
        fd: None,
    }
}

fn running(id: ContainerId) -> Container {
    Container {
        id,
        name: "web".to_owned(),
        kind: ContainerKind::Container,
        runtime: RuntimeType::Docker,
        runtime_name: "docker".into(),
        runtime_version: "28".into(),
        state: State::Running,
        image_id: "1".repeat(64),
        image_name: "nginx:1.21".to_owned(),
        image_digest: String::new(),
        pid: Some(4_711),
        created_at_ns: 1_699_999_998_000_000_000,
        started_at_ns: Some(1_699_999_999_000_000_000),
        finished_at_ns: None,
        exit_code: None,
        oom_killed: Some(false),
        restart_count: Some(0),
        pod: None,
        pid_mode: String::new(),
        privileged: Some(false),
        reason: String::new(),
        labels: [("tier".to_owned(), "front".to_owned())].into(),
    }
}

fn is_written<T: Serialize>(row: &T) {
    drop(bytes(row));
}

/// What is read back is written again: nothing that was believed may make a row that cannot be saved.
fn fuzz<T: DeserializeOwned>(table: &'static str, samples: &[Vec<u8>], again: impl Fn(&T)) {
    for sample in samples {
        assert!(postcard::from_bytes::<T>(sample).is_ok(), "a bad sample");
    }
    assert!(!samples.is_empty(), "no sample of {table}");
    feed(&format!("outbox, {table}"), samples, |input| {
        if let Ok(row) = postcard::from_bytes::<T>(input) {
            again(&row);
        }
    });
}

#[test]
fn fuzz_outbox_meta() {
    let meta = Meta {
        host_id: "host".to_owned(),
        epoch: "epoch".to_owned(),
        seq: 7,
        ..Meta::default()
    };
    fuzz(
        "meta",
        &[bytes(&meta), bytes(&Meta::default())],
        is_written::<Meta>,
    );
}

#[test]
fn fuzz_outbox_containers() {
    let reconciler = reconciler();
    let samples: Vec<_> = reconciler.containers().map(bytes).collect();
    fuzz("containers", &samples, is_written::<Tracked>);
}

#[test]
fn fuzz_outbox_namespaces() {
    let reconciler = reconciler();
    let samples: Vec<_> = reconciler.namespaces().map(bytes).collect();
    fuzz("namespaces", &samples, is_written::<NamespaceRow>);
}

#[test]
fn fuzz_outbox_sources() {
    let reconciler = reconciler();
    let key = RowKey::Source(SourceId::new(SOURCE));
    let sample = match reconciler.row(&key) {
        Some(Row::Source(source)) => vec![bytes(source)],
        Some(Row::Container(_) | Row::Namespace(_)) | None => Vec::new(),
    };
    fuzz("sources", &sample, is_written::<Source>);
}

fn owed(topic: Topic, row: u64) -> super::Owed {
    super::Owed {
        outgoing: super::Outgoing {
            row,
            topic,
            host_id: "host".into(),
            item: "4026532448".into(),
            op: "start".into(),
            value: Some(bytes::Bytes::from_static(b"{\"op\":\"start\"}")),
            ce_id: "host:epoch:1".into(),
            ce_type: crate::wire::ce_type(topic),
            ce_source: crate::wire::ce_source("host"),
            time_ms: 7,
        },
        generation: 1,
        seq: row,
        stage: Stage::Mapping,
    }
}

#[test]
fn fuzz_outbox_deltas() {
    let owed = [owed(Topic::Deltas, 1), owed(Topic::Deltas, 2)];
    let deltas: Vec<_> = owed.iter().map(StoredDelta::of).collect();
    let mut sample = Vec::new();
    let encoded = chunk::encode::<postcard::Error>(&deltas, &mut Vec::new(), |_, chunk, _| {
        sample = chunk.to_vec();
        Ok(())
    });
    encoded.expect("it can be written");
    feed("outbox, deltas", &[sample], |input| {
        if let Ok((_, deltas)) = chunk::decode(input) {
            deltas.flatten().for_each(|delta| is_written(&delta));
        }
    });
}

#[test]
fn fuzz_outbox_states_and_quarantine() {
    let owed = owed(Topic::Pns, 1);
    let state = StoredState::of(&owed);
    feed("outbox, states", &[bytes(&state)], |input| {
        if let Ok(state) = postcard::from_bytes::<StoredState<'_>>(input) {
            is_written(&state);
        }
    });
    let (host_id, source) = ("host".into(), crate::wire::ce_source("host"));
    let message = StoredMessage::of_state(&state, "id".into());
    fuzz(
        "quarantine",
        &[bytes(&("too large", &message))],
        |entry: &(String, StoredMessage)| {
            drop(entry.1.clone().into_outgoing(1, &host_id, &source));
        },
    );
}
