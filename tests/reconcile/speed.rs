//! What a delta costs. Run it with
//! `cargo test --release --test reconcile -- --ignored --nocapture what_a_delta_costs`.

use std::time::Instant;

use quaymaster::model::message::Message;
use quaymaster::model::{ContainerId, EventKind};
use quaymaster::reconcile::{Effect, Observation};

use crate::script::*;

/// How many containers live and go.
const CONTAINERS: u32 = 50_000;

#[test]
#[ignore = "a measurement, not a test"]
#[expect(clippy::print_stdout, reason = "the figure is what it is for")]
fn what_a_delta_costs() {
    let mut script = Script::watching_docker();
    let label = |n: u32| (format!("label-{n}"), "some value of a label".to_owned());
    let mut deltas = 0u64;
    let mut spent = std::time::Duration::ZERO;
    for number in 0..CONTAINERS {
        let id = ContainerId::parse(&format!("{number:064x}")).expect("hex digits are an id");
        let at_ms = 2_000 + u64::from(number);
        let mut live = running(1, 100, at_ms + 1);
        live.id = id.clone();
        live.labels = (0..4).map(label).collect();
        let mut ended = exited(1, at_ms + 1, at_ms + 5, 0);
        ended.id = id.clone();
        ended.labels = live.labels.clone();
        let event = |what, after_ms| Observation::Event {
            source: docker(),
            event: quaymaster::model::RuntimeEvent {
                id: id.clone(),
                kind: quaymaster::model::ContainerKind::Container,
                what,
                at_ns: ns(at_ms + after_ms),
                exit_code: None,
                facts: None,
            },
        };
        let found = |container, process| Observation::Inspected {
            source: docker(),
            id: id.clone(),
            outcome: quaymaster::reconcile::InspectOutcome::Found {
                container: Box::new(container),
                process,
            },
        };
        let inode = 5_000 + u64::from(number);
        let observations = [
            event(EventKind::Created, 0),
            event(EventKind::Started, 2),
            found(live.clone(), alive(process(100 + number, inode))),
            found(live, None),
            event(EventKind::Died, 6),
            found(ended, None),
            event(EventKind::Deleted, 8),
            Observation::MappingAcked {
                pns_inode: inode,
                generation: u64::from(number) + 1,
            },
        ];
        let began = Instant::now();
        for observation in observations {
            let effects = script.reconciler.handle(observation, T0_MS + at_ms);
            let told = effects
                .iter()
                .filter(|effect| matches!(effect, Effect::Publish(Message::Delta(_))));
            deltas += told.count() as u64;
        }
        spent += began.elapsed();
    }
    let nanos = spent.as_nanos() / u128::from(deltas);
    println!("{deltas} deltas, {nanos} ns each");
}
