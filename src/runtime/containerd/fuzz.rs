//! containerd's events, its shims' pid files and its configuration of CRI as nobody writes them.

use prost::Message as _;

use super::proto::events::{Any, Envelope, TaskCreate};
use super::{Claims, bundles, hints, normalise, state_dir};
use crate::fuzzing::feed;
use crate::runtime::cri::proto::Entry;

#[test]
fn fuzz_containerd_events() {
    let task = TaskCreate {
        container_id: b"abc".to_vec(),
        pid: 7,
    };
    let envelope = Envelope {
        namespace: b"moby".to_vec(),
        topic: b"/tasks/create".to_vec(),
        event: Some(Any {
            value: task.encode_to_vec(),
        }),
        timestamp: None,
    };
    let claims = Claims::default();
    let version = "2.1.9".into();
    let samples = [envelope.encode_to_vec(), task.encode_to_vec()];
    feed("containerd events", &samples, |bytes| {
        if let Ok(envelope) = Envelope::decode(bytes) {
            drop(hints::created_task(&envelope, &claims));
            drop(normalise::event(&envelope, &version));
        }
        drop(TaskCreate::decode(bytes));
    });
}

#[test]
fn fuzz_containerd_bundles() {
    let config = br#"{"stateDir":"/run/containerd/io.containerd.grpc.v1.cri"}"#;
    let samples = [b"12345".to_vec(), config.to_vec()];
    feed("containerd bundles", &samples, |bytes| {
        assert_ne!(bundles::parse(bytes), Some(0), "0 is no pid");
        let info = [Entry {
            key: b"config".to_vec(),
            value: bytes.to_vec(),
        }];
        let state = state_dir::state_of(&info);
        assert!(state.is_none_or(|state| state.is_absolute()));
    });
}
