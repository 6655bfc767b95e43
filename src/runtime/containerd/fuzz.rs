//! containerd's events as it does not write them.

use prost::Message as _;

use super::proto::events::{Any, Envelope, TaskCreate};
use super::{Claims, hints, normalise};
use crate::fuzzing::feed;

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
