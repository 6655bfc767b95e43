//! What a delta costs. Run it with
//! `cargo test --release --test reconcile -- --ignored --nocapture what_a_delta_costs`.

use quaymaster::model::message::Message;
use quaymaster::model::{ContainerId, ContainerKind, EventKind, RuntimeEvent};
use quaymaster::reconcile::{Effect, InspectOutcome, Observation};

use crate::script::*;

/// How many containers live and go.
const CONTAINERS: u32 = 50_000;
/// How many of them are measured at a time.
const BATCH: u32 = 1_000;

#[test]
#[ignore = "a measurement, not a test"]
#[expect(clippy::print_stdout, reason = "the figure is what it is for")]
fn what_a_delta_costs() {
    let mut script = Script::watching_docker();
    let mut deltas = 0u64;
    let mut spent_ns = 0;
    for batch in 0..CONTAINERS / BATCH {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let observations: Vec<_> = numbers.flat_map(life_of).collect();
        let began_ns = on_cpu_ns();
        for (observation, at_ms) in observations {
            let effects = script.reconciler.handle(observation, T0_MS + at_ms);
            let told = effects
                .iter()
                .filter(|effect| matches!(effect, Effect::Publish(Message::Delta(_))));
            deltas += told.count() as u64;
        }
        spent_ns += on_cpu_ns() - began_ns;
    }
    println!("{deltas} deltas, {} ns each", spent_ns / deltas);
}

/// What the runtimes and the bus say of one container from its creation to its deletion.
fn life_of(number: u32) -> Vec<(Observation, u64)> {
    let id = ContainerId::parse(&format!("{number:064x}")).expect("hex digits are an id");
    let at_ms = 2_000 + u64::from(number);
    let label = |n: u32| (format!("label-{n}"), "some value of a label".to_owned());
    let mut live = running(1, 100, at_ms + 1);
    live.id = id.clone();
    live.labels = (0..4).map(label).collect();
    let mut ended = exited(1, at_ms + 1, at_ms + 5, 0);
    ended.id = id.clone();
    ended.labels = live.labels.clone();
    let event = |what, after_ms| Observation::Event {
        source: docker(),
        event: RuntimeEvent {
            id: id.clone(),
            kind: ContainerKind::Container,
            what,
            at_ns: ns(at_ms + after_ms),
            exit_code: None,
            facts: None,
        },
    };
    let found = |container, process| Observation::Inspected {
        source: docker(),
        id: id.clone(),
        outcome: InspectOutcome::Found {
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
    observations
        .into_iter()
        .map(|observation| (observation, at_ms))
        .collect()
}

/// The time that this thread has been on a CPU: what others do meanwhile does not count.
fn on_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|ns| ns.parse().ok()).unwrap_or(0)
}
