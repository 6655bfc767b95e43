//! The cases of the contract that are about lists, runtimes that come and go, epochs and cri-dockerd.

use quaymaster::model::message::{Message, Op};
use quaymaster::model::{Container, EventKind, Pod, RuntimeType, State};
use quaymaster::reconcile::{Effect, ListOutcome, Observation, ProcessReading};

use crate::script::*;

const HOUR_MS: u64 = 60 * 60 * 1_000;

#[test]
fn a_list_row_that_inspect_no_longer_knows_tells_nothing() {
    let mut script = Script::watching_docker();

    for _ in 0..2 {
        let asked = script.resync(&docker(), vec![row_of(&exited(1, 1, 2, 0), 1)]);
        script.not_found(&docker(), 1);
        script.wait(5_000);

        assert_eq!(inspected(&asked), [id(1)]);
    }

    assert!(script.ops().is_empty());
    assert!(script.reconciler.is_settled());
}

#[test]
fn a_list_that_is_under_way_when_a_runtime_is_up_is_not_asked_for() {
    let asks = |effects: &[Effect]| {
        let mut lists = effects.iter();
        lists.any(|effect| matches!(effect, Effect::List { .. }))
    };
    for is_listing in [false, true] {
        let mut script = Script::new();

        let up = script.up_with(&docker(), is_listing);
        let resync = script.tell(Observation::ResyncDue);
        let listed = script.list(&docker(), vec![row_of(&running(1, 100, 10), 1)]);

        assert_eq!(asks(&up), !is_listing);
        assert!(!asks(&resync), "one at a time");
        assert_eq!(inspected(&listed), [id(1)], "it is taken all the same");
        assert!(asks(&listed), "the resync's own is asked for then");
    }
}

#[test]
fn a_late_list_does_not_revive_a_deleted_container() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.tell(Observation::ResyncDue);
    script.tell(Observation::ListBegan { source: docker() });
    script.died(&docker(), 1, 2_001, 0);
    script.event(&docker(), 1, EventKind::Deleted, 2_010);
    script.not_found(&docker(), 1);
    script.said.clear();

    let rows = vec![row_of(&running(1, 100, 10), 1)];
    script.tell(Observation::ListDone {
        source: docker(),
        outcome: ListOutcome::Complete(rows.clone()),
    });
    // A CRI list shows a sandbox for a while after its deletion.
    let asked = script.resync(&docker(), rows);

    assert!(script.ops().is_empty());
    assert!(inspected(&asked).is_empty());
}

#[test]
fn a_container_that_a_list_missed_by_mistake_comes_back() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.resync(&docker(), Vec::new());
    script.wait(3_000);
    script.said.clear();

    let asked = script.resync(&docker(), vec![row_of(&running(1, 100, 10), 1)]);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));
    script.wait(3_000);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));

    assert_eq!(inspected(&asked), [id(1)]);
    assert_eq!(script.ops(), ["create", "start"]);
}

#[test]
fn a_list_that_began_before_an_event_does_not_contradict_it() {
    let mut script = Script::watching_docker();
    script.tell(Observation::ResyncDue);
    script.tell(Observation::ListBegan { source: docker() });
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(&docker(), created(1, RuntimeType::Docker), None);

    script.tell(Observation::ListDone {
        source: docker(),
        outcome: ListOutcome::Complete(Vec::new()),
    });
    script.wait(5_000);

    assert_eq!(script.ops(), ["create"]);
}

#[test]
fn an_unchanged_resync_asks_for_no_inspect_and_tells_no_delta() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    let rows = vec![row_of(&running(1, 100, 10), 1)];
    let first = script.resync(&docker(), rows.clone());
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));
    script.said.clear();

    let second = script.resync(&docker(), rows);
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(process(100, 500))),
    });

    assert_eq!(inspected(&first), [id(1)], "an event had touched it");
    assert!(inspected(&second).is_empty());
    assert!(second.contains(&Effect::ReadProcess {
        id: id(1),
        pid: 100
    }));
    assert!(script.ops().is_empty());
    let records = second.iter().filter(|effect| {
        matches!(effect, Effect::Publish(Message::Record { package_seq, .. }) if *package_seq == 2)
    });
    assert_eq!(records.count(), 1, "its record is put again");
}

#[test]
fn a_row_that_is_the_same_with_another_process_is_inspected() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    let rows = vec![row_of(&running(1, 100, 10), 1)];
    script.resync(&docker(), rows.clone());
    script.found(&docker(), running(1, 100, 10), None);
    script.said.clear();

    // It was restarted, and the stream lost that.
    script.resync(&docker(), rows);
    let asked = script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Dead,
    });
    script.found(&docker(), running(1, 101, 5_000), alive(process(101, 501)));
    script.wait(3_000);
    script.found(&docker(), running(1, 101, 5_000), alive(process(101, 501)));

    assert_eq!(inspected(&asked), [id(1)]);
    assert_eq!(script.ops(), ["stop", "start"]);
    assert_eq!(script.field(Op::Start, "pid"), "101");
}

#[test]
fn after_a_gap_what_does_not_run_is_inspected_once() {
    let mut script = Script::new();
    script.up(&docker());
    let rows = vec![
        row_of(&exited(1, 1, 2, 0), 1),
        row_of(&running(2, 100, 10), 2),
    ];
    script.list(&docker(), rows.clone());
    script.found(&docker(), exited(1, 1, 2, 0), None);
    script.found(&docker(), running(2, 100, 10), alive(process(100, 500)));
    script.said.clear();

    script.tell(Observation::StreamGap { source: docker() });
    let after_gap = script.list(&docker(), rows.clone());
    // A whole run is hidden in the gap.
    script.found(&docker(), exited(1, 2_000, 2_500, 4), None);
    let later = script.resync(&docker(), rows);

    assert_eq!(inspected(&after_gap), [id(1)]);
    assert!(inspected(&later).is_empty());
    assert_eq!(script.ops(), ["start", "stop"]);
    assert_eq!(script.field(Op::Stop, "exit_code"), "4");
}

#[test]
fn an_epoch_opens_with_snapshots_and_ends_them() {
    let mut script = Script::new();
    script.up(&docker());
    script.list(&docker(), vec![row_of(&running(1, 100, 10), 1)]);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));

    assert_eq!(script.ops(), ["epoch", "snapshot", "snapshot_end"]);
    assert_eq!(script.field(Op::Snapshot, "pid"), "100");
    let snapshot = script.position(|effect| is_op(effect, Op::Snapshot));
    assert!(script.position(is_mapping) < snapshot);
}

#[test]
fn an_opening_that_was_cut_short_is_told_from_its_start() {
    let mut script = Script::new();
    script.up(&docker());
    let rows = vec![
        row_of(&running(1, 100, 10), 1),
        row_of(&running(2, 101, 10), 2),
    ];
    script.list(&docker(), rows);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));

    script.restart("boot-1");

    assert_eq!(script.ops(), ["epoch", "snapshot"]);
}

#[test]
fn an_epoch_without_any_runtime_is_open_after_a_while() {
    let mut script = Script::new();

    script.wait(40_000);

    assert_eq!(script.ops(), ["epoch", "snapshot_end"]);
}

#[test]
fn lost_deltas_are_followed_by_a_snapshot() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.run_docker(2, 101, 501);

    script.tell(Observation::SnapshotDue);

    assert_eq!(script.ops(), ["snapshot", "snapshot", "snapshot_end"]);
}

#[test]
fn a_bus_that_lost_its_data_has_every_record_and_mapping_again() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.run_docker(2, 101, 501);

    let effects = script.tell(Observation::StateDue);

    assert!(script.ops().is_empty(), "deltas have a tail of their own");
    assert_eq!(script.mappings().len(), 2);
    let is_record = |effect: &&Effect| matches!(effect, Effect::Publish(Message::Record { .. }));
    assert_eq!(effects.iter().filter(is_record).count(), 2);
}

#[test]
fn a_reboot_ends_the_mappings_first_and_owes_the_stops() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.wait(5_000);

    script.restart("boot-2");

    assert_eq!(script.ops(), ["stop"]);
    assert_eq!(&*script.delta(Op::Stop).reason, "reboot");
    assert_eq!(script.before(Op::Stop, "pid"), "100");
    assert_eq!(script.mappings().len(), 1);
    assert_eq!(
        script.mappings()[0].valid_to_ms,
        Some(T0_MS + script.at_ms),
        "it ends at the last proof of life"
    );
    assert_eq!(script.position(is_mapping), 0);
}

#[test]
fn a_process_that_ended_while_the_collector_was_away_ends_at_its_last_proof_of_life() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.restart("boot-1");
    let died_by_ms = T0_MS + script.at_ms;
    assert!(script.said.contains(&Effect::ReadProcess {
        id: id(1),
        pid: 100
    }));

    script.at_ms += 60_000;
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Dead,
    });

    assert_eq!(script.mappings()[0].valid_to_ms, Some(died_by_ms));
}

#[test]
fn an_endpoint_that_is_away_for_a_day_is_forgotten() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.down(&docker());

    script.wait(23 * HOUR_MS);
    assert!(script.ops().is_empty());
    script.wait(2 * HOUR_MS);

    assert_eq!(script.ops(), ["stop", "delete"]);
    assert_eq!(&*script.delta(Op::Delete).reason, "endpoint forgotten");
}

#[test]
fn an_endpoint_that_is_away_is_not_forgotten_when_the_clock_is_set_ahead() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.down(&docker());

    script.at_ms += 10 * 365 * 24 * HOUR_MS;
    script.wait(60_000);

    assert!(script.ops().is_empty());
}

#[test]
fn a_restart_of_the_collector_does_not_make_an_endpoint_older() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.restart("boot-1");
    script.at_ms += 30 * HOUR_MS;
    script.restart("boot-1");
    script.wait(60_000);

    assert!(
        script.ops().is_empty(),
        "Docker was up when it was last seen"
    );
}

#[test]
fn a_dead_process_of_an_endpoint_that_is_away_loses_its_mapping_at_once() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.down(&docker());
    script.said.clear();

    script.wait(20_000);
    let asked = Effect::ReadProcess {
        id: id(1),
        pid: 100,
    };
    assert!(script.said.contains(&asked));
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Dead,
    });

    assert!(script.mappings()[0].valid_to_ms.is_some());
    assert!(
        script.ops().is_empty(),
        "the container itself is still there"
    );
}

#[test]
fn an_endpoint_under_another_path_takes_its_containers_over() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.restart("boot-1");

    let other = quaymaster::model::SourceId::new("docker=unix:///var/run/docker.sock");
    script.tell(Observation::SourceUp {
        source: other.clone(),
        runtime: quaymaster::model::message::RuntimeSource {
            uid: 0,
            runtime: RuntimeType::Docker,
            name: "docker".into(),
            version: "1".into(),
            endpoint: "unix:///var/run/docker.sock".into(),
        },
        streaming: true,
        is_listing: false,
    });
    let asked = script.list(&other, vec![row_of(&running(1, 100, 10), 1)]);
    script.found(&other, running(1, 100, 10), alive(process(100, 500)));

    assert_eq!(inspected(&asked), [id(1)]);
    assert!(script.ops().is_empty());
}

fn kubernetes(container: Container) -> Container {
    let labels = [("io.kubernetes.pod.uid".to_owned(), "u".to_owned())];
    Container {
        labels: labels.into(),
        ..container
    }
}

fn as_cri_dockerd(number: u8, state: State) -> Container {
    Container {
        name: "nginx".to_owned(),
        state,
        pod: Some(Pod {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            uid: "u".to_owned(),
            sandbox_id: id(9).to_string(),
        }),
        restart_count: Some(3),
        ..created(number, RuntimeType::Cri)
    }
}

#[test]
fn cri_dockerd_lends_names_and_docker_says_the_state() {
    let mut script = Script::watching_docker();
    script.up(&cri_dockerd());
    script.list(&cri_dockerd(), Vec::new());
    script.event(&docker(), 1, EventKind::Created, 1);
    script.event(&docker(), 1, EventKind::Started, 11);
    let live = kubernetes(running(1, 100, 10));
    script.found(&docker(), live.clone(), alive(process(100, 500)));
    let asked = script.found(&docker(), live, None);
    assert!(inspected(&asked).is_empty());

    // cri-dockerd says that it was only created: what it says of the state is not heard.
    script.found(&cri_dockerd(), as_cri_dockerd(1, State::Created), None);

    assert_eq!(script.ops(), ["create", "start", "update"]);
    for (name, value) in [
        ("name", "nginx"),
        ("pod_name", "web"),
        ("runtime", "cri"),
        ("runtime_name", "docker"),
        ("restart_count", "3"),
        ("state", "running"),
        ("pid", "100"),
    ] {
        assert_eq!(script.field(Op::Update, name), value, "{name}");
    }
    let mapping = script.mappings().pop().expect("it is mapped");
    assert_eq!(&*mapping.owner.container_name, "nginx");
}

#[test]
fn an_outage_of_cri_dockerd_changes_nothing_and_it_never_creates() {
    let mut script = Script::watching_docker();
    script.up(&cri_dockerd());
    let row = row_of(&as_cri_dockerd(1, State::Running), 1);
    let asked = script.list(&cri_dockerd(), vec![row]);
    assert!(inspected(&asked).is_empty(), "Docker does not know it");
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(&docker(), kubernetes(created(1, RuntimeType::Docker)), None);
    script.found(&cri_dockerd(), as_cri_dockerd(1, State::Created), None);
    script.said.clear();

    script.down(&cri_dockerd());
    script.wait(25 * HOUR_MS);
    script.event(&docker(), 1, EventKind::Started, script.at_ms);
    let live = kubernetes(running(1, 100, script.at_ms - 1));
    script.found(&docker(), live, alive(process(100, 500)));

    assert_eq!(script.ops(), ["start"]);
    assert_eq!(script.field(Op::Start, "name"), "nginx");
    assert_eq!(script.field(Op::Start, "pod_name"), "web");
}
