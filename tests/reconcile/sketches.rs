//! Containers that are told by a sketch while an epoch opens, and by an inspect when everything else is told.

use quaymaster::model::message::Op;
use quaymaster::model::{Container, ContainerKind, EventKind, SourceId};
use quaymaster::reconcile::{Effect, InspectOutcome, Observation, Process, ProcessReading};

use crate::script::{
    Script, T0_MS, alive, cri, docker, exited, id, inspected, of_cri, process, row_of, running,
};

fn sketch_of(whole: &Container) -> Container {
    Container {
        started_at_ns: None,
        ..whole.clone()
    }
}

impl Script {
    fn sketched(&mut self, source: &SourceId, whole: &Container, process: Process) -> Vec<Effect> {
        self.tell(Observation::Inspected {
            source: source.clone(),
            id: whole.id.clone(),
            outcome: InspectOutcome::Sketched {
                container: Box::new(sketch_of(whole)),
                process: ProcessReading::Alive(Box::new(process)),
            },
        })
    }

    /// One of Docker's that runs since 10 is sketched at 1,000.
    fn sketching_docker() -> (Self, Container) {
        let mut script = Self::new();
        script.up(&docker());
        let whole = running(1, 100, 10);
        script.list(&docker(), vec![row_of(&whole, 7)]);
        script.sketched(&docker(), &whole, process(100, 500));
        assert_eq!(script.ops(), ["epoch", "snapshot"]);
        script.said.clear();
        script.at_ms += 1_000;
        (script, whole)
    }
}

fn asks_with(effects: &[Effect], sketch_will_do: bool) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Inspect { may_sketch, .. } if *may_sketch == sketch_will_do)
    })
}

#[test]
fn a_sketch_is_told_at_once_and_filled_once_before_the_opening_ends() {
    for (source, whole) in [
        (docker(), running(1, 100, 10)),
        (cri(), of_cri(running(1, 100, 10))),
    ] {
        let mut script = Script::new();
        script.up(&source);
        let asked = script.list(&source, vec![row_of(&whole, 7)]);
        assert!(asks_with(&asked, true));

        let asked = script.sketched(&source, &whole, process(100, 500));
        assert_eq!(script.ops(), ["epoch", "snapshot"]);
        assert_eq!(script.field(Op::Snapshot, "pns"), "pid:[500]");
        assert_eq!(script.field(Op::Snapshot, "started_at_ms"), "");
        assert_eq!(script.mappings().len(), 1);
        assert!(asks_with(&asked, false));

        script.found(&source, whole.clone(), alive(process(100, 500)));
        assert_eq!(
            script.ops(),
            ["epoch", "snapshot", "update", "snapshot_end"]
        );
        assert_eq!(script.delta(Op::Update).changed.len(), 1);
        assert_eq!(script.before(Op::Update, "started_at_ms"), "");
        assert_eq!(
            script.field(Op::Update, "started_at_ms"),
            (T0_MS + 10).to_string()
        );
        assert_eq!(script.mappings().len(), 1, "the mapping stays as it is");

        let asked = script.list(&source, vec![row_of(&whole, 7)]);
        assert!(inspected(&asked).is_empty(), "the row is known");
    }
}

#[test]
fn a_sketch_that_was_killed_before_it_was_filled_is_filled_after_the_restart() {
    for (source, whole) in [
        (docker(), running(1, 100, 10)),
        (cri(), of_cri(running(1, 100, 10))),
    ] {
        let mut script = Script::new();
        script.up(&source);
        script.list(&source, vec![row_of(&whole, 7)]);
        script.sketched(&source, &whole, process(100, 500));

        script.restart("boot-1");
        script.up(&source);
        let asked = script.list(&source, vec![row_of(&whole, 7)]);
        assert_eq!(inspected(&asked), [id(1)]);
        script.found(&source, whole, alive(process(100, 500)));
        assert!(!script.ops().contains(&"start"), "{:?}", script.ops());
        assert!(!script.ops().contains(&"stop"), "{:?}", script.ops());
    }
}

#[test]
fn what_a_sketch_showed_and_the_downtime_ended_is_one_run() {
    let (mut script, _) = Script::sketching_docker();

    script.restart("boot-1");
    script.at_ms += 5_000;
    script.up(&docker());
    let gone = exited(1, 10, 4_000, 3);
    script.list(&docker(), vec![row_of(&gone, 8)]);
    script.found(&docker(), gone, None);

    let ops = script.ops();
    let runs = ops.iter().filter(|op| **op == "start" || **op == "stop");
    assert_eq!(runs.count(), 1, "{ops:?}");
    assert_eq!(script.field(Op::Stop, "exit_code"), "3");
}

#[test]
fn the_whole_is_asked_for_when_every_runtime_has_told_what_it_has_and_a_few_at_a_time() {
    let mut script = Script::new();
    script.up(&docker());
    script.up(&cri());
    let whole: Vec<_> = (1..=6)
        .map(|number| of_cri(running(number, 100 + u32::from(number), 10)))
        .collect();
    let rows = whole.iter().map(|whole| row_of(whole, 7)).collect();
    script.list(&cri(), rows);
    for (index, whole) in whole.iter().enumerate() {
        let index = u32::try_from(index).expect("they are few");
        let process = process(101 + index, 501 + u64::from(index));
        let asked = script.sketched(&cri(), whole, process);
        assert!(inspected(&asked).is_empty(), "Docker is not listed yet");
    }
    assert!(!script.reconciler.is_settled());

    let asked = script.list(&docker(), Vec::new());
    assert_eq!(inspected(&asked), [id(1), id(2), id(3), id(4)]);
    let first = whole[0].clone();
    let asked = script.found(&cri(), first, alive(process(101, 501)));
    assert_eq!(inspected(&asked), [id(5)], "the next takes its place");
    assert!(!script.ops().contains(&"snapshot_end"));
    for (pid, whole) in (102..).zip(&whole[1..]) {
        let process = process(pid, 400 + u64::from(pid));
        script.found(&cri(), whole.clone(), alive(process));
    }
    assert_eq!(script.ops().last(), Some(&"snapshot_end"));
    assert!(script.reconciler.is_settled());
}

#[test]
fn a_runtime_that_hangs_does_not_keep_the_others_sketches_unfilled() {
    let mut script = Script::new();
    script.up(&docker());
    script.up(&cri());
    let whole = of_cri(running(1, 100, 10));
    script.list(&cri(), vec![row_of(&whole, 7)]);
    script.sketched(&cri(), &whole, process(100, 500));
    script.said.clear();

    script.wait(3_000);

    assert_eq!(inspected(&script.said), [id(1)]);
}

#[test]
fn a_runtime_that_went_away_before_its_sketches_were_filled_is_asked_when_it_is_back() {
    let mut script = Script::new();
    script.up(&docker());
    script.up(&cri());
    let whole = of_cri(running(1, 100, 10));
    script.list(&cri(), vec![row_of(&whole, 7)]);
    script.sketched(&cri(), &whole, process(100, 500));
    script.down(&cri());
    script.list(&docker(), Vec::new());
    assert_eq!(script.ops().last(), Some(&"snapshot_end"));

    script.up(&cri());
    let asked = script.list(&cri(), vec![row_of(&whole, 7)]);
    assert_eq!(inspected(&asked), [id(1)]);
}

#[test]
fn a_sketched_container_that_ends_before_it_is_filled_ends_once() {
    let (mut script, _) = Script::sketching_docker();

    script.died(&docker(), 1, 1_500, 3);
    script.found(&docker(), running(1, 100, 10), None);
    script.found(&docker(), exited(1, 10, 1_500, 3), None);
    script.wait(5_000);

    let told: Vec<_> = script.ops();
    assert_eq!(told, ["update", "stop", "snapshot_end"]);
    assert_eq!(script.field(Op::Stop, "exit_code"), "3");
    let started = (T0_MS + 10).to_string();
    assert_eq!(script.field(Op::Stop, "started_at_ms"), started);
}

#[test]
fn a_sketched_container_that_an_inspect_finds_ended_before_its_event_ends_once() {
    let (mut script, _) = Script::sketching_docker();

    script.found(&docker(), exited(1, 10, 1_500, 3), None);
    script.died(&docker(), 1, 1_500, 3);
    script.found(&docker(), exited(1, 10, 1_500, 3), None);
    script.wait(5_000);

    assert_eq!(script.ops(), ["stop", "snapshot_end"]);
}

#[test]
fn a_sketched_container_that_is_restarted_before_it_is_filled_stops_and_starts() {
    let (mut script, _) = Script::sketching_docker();

    script.died(&docker(), 1, 1_500, 3);
    script.event(&docker(), 1, EventKind::Started, 1_700);
    let again = running(1, 200, 1_690);
    let process = Process {
        started_at_ms: T0_MS + 1_600,
        ..process(200, 600)
    };
    script.found(&docker(), again.clone(), alive(process.clone()));
    let process = Process {
        fd: None,
        ..process
    };
    script.found(&docker(), again, alive(process));
    script.wait(5_000);

    assert_eq!(script.ops(), ["stop", "start", "snapshot_end"]);
    assert_eq!(script.field(Op::Start, "pns"), "pid:[600]");
}

#[test]
fn the_late_event_of_a_sketched_run_s_start_is_no_other_run() {
    let (mut script, whole) = Script::sketching_docker();

    script.event(&docker(), 1, EventKind::Started, 12);
    let held = Process {
        fd: None,
        ..process(100, 500)
    };
    script.found(&docker(), whole.clone(), alive(held.clone()));
    script.found(&docker(), whole, alive(held));
    script.wait(5_000);

    let ops = script.ops();
    assert!(!ops.contains(&"start") && !ops.contains(&"stop"), "{ops:?}");
}

#[test]
fn a_sketch_in_the_host_s_namespace_has_no_mapping_and_one_in_another_s_is_its_member() {
    let mut script = Script::new();
    script.up(&docker());
    let (host, owner, guest) = (
        running(1, 100, 10),
        running(2, 200, 10),
        running(3, 300, 20),
    );
    let rows = [&host, &owner, &guest].map(|whole| row_of(whole, 7));
    script.list(&docker(), rows.to_vec());
    let of_host = Process {
        is_init: false,
        ..process(100, crate::world::HOST_PNS)
    };
    script.sketched(&docker(), &host, of_host);
    assert!(script.mappings().is_empty());

    script.sketched(&docker(), &owner, process(200, 500));
    let of_guest = Process {
        is_init: false,
        ..process(300, 500)
    };
    script.sketched(&docker(), &guest, of_guest);
    let mappings = script.mappings();
    let newest = mappings.last().expect("the two share one");
    assert_eq!(newest.members.len(), 2);
    assert_eq!(newest.owner.container_id, id(2));
}

#[test]
fn a_sketched_sandbox_is_one() {
    let mut script = Script::new();
    script.up(&cri());
    let whole = Container {
        kind: ContainerKind::Sandbox,
        started_at_ns: None,
        ..of_cri(running(1, 100, 10))
    };
    script.list(&cri(), vec![row_of(&whole, 7)]);
    script.sketched(&cri(), &whole, process(100, 500));
    script.found(&cri(), whole, alive(process(100, 500)));

    assert_eq!(script.ops(), ["epoch", "snapshot", "snapshot_end"]);
    assert_eq!(script.field(Op::Snapshot, "kind"), "sandbox");
}
