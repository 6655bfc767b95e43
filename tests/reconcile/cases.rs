//! The cases of the contract that are about the story of one container.

use quaymaster::model::message::{Op, Origin, RuntimeSource};
use quaymaster::model::{Container, ContainerKind, EventKind, RuntimeType, SourceId, State};
use quaymaster::reconcile::{InspectOutcome, ListOutcome, Observation, Process, ProcessReading};

use crate::script::*;

#[test]
fn docker_rm_whose_inspect_comes_too_late_is_told_whole() {
    let mut script = Script::watching_docker();

    script.event(&docker(), 1, EventKind::Created, 1);
    script.event(&docker(), 1, EventKind::Started, 20);
    script.died(&docker(), 1, 30, 7);
    script.event(&docker(), 1, EventKind::Deleted, 40);
    script.not_found(&docker(), 1);

    assert_eq!(script.ops(), ["create", "start", "stop", "delete"]);
    assert_eq!(script.field(Op::Start, "pid"), "");
    assert_eq!(script.field(Op::Start, "pns"), "");
    assert_eq!(script.field(Op::Stop, "exit_code"), "7");
    assert_eq!(script.delta(Op::Stop).event_ts_ns, ns(30));
}

#[test]
fn a_run_that_was_over_before_anyone_looked_has_its_pid_from_a_hint() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(&docker(), created(1, RuntimeType::Docker), None);

    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(process(100, 500))),
    });
    script.event(&docker(), 1, EventKind::Started, 1_020);
    script.died(&docker(), 1, 1_030, 0);
    script.event(&docker(), 1, EventKind::Deleted, 1_040);
    script.not_found(&docker(), 1);

    assert_eq!(script.ops(), ["create", "start", "stop", "delete"]);
    assert_eq!(script.field(Op::Start, "pid"), "100");
    assert_eq!(script.field(Op::Start, "pns"), "pid:[500]");
    assert_eq!(script.field(Op::Stop, "pid"), "");
    assert_eq!(script.before(Op::Stop, "pid"), "100");
    assert_eq!(script.before(Op::Stop, "pns"), "pid:[500]");
    let start = script.position(|effect| is_op(effect, Op::Start));
    assert!(script.position(is_mapping) < start, "the mapping is early");
}

#[test]
fn a_container_that_was_created_and_removed_is_deleted_by_its_event() {
    let mut script = Script::watching_cri();
    script.event(&cri(), 1, EventKind::Created, 1);
    script.found(&cri(), of_cri(created(1, RuntimeType::Cri)), None);
    script.event(&cri(), 1, EventKind::Deleted, 40);
    // Events of its run might still come, and do not.
    script.wait(3_000);
    assert_eq!(script.ops(), ["create", "delete"]);
    assert_eq!(script.delta(Op::Delete).origin, Origin::Event);
    assert_eq!(script.delta(Op::Delete).event_ts_ns, ns(40));
}

#[test]
fn a_sandbox_that_has_ended_still_says_when_it_started() {
    let mut script = Script::watching_cri();
    let sandbox = |container: Container| Container {
        kind: ContainerKind::Sandbox,
        started_at_ns: None,
        finished_at_ns: None,
        exit_code: None,
        ..of_cri(container)
    };
    script.event(&cri(), 1, EventKind::Created, 1);
    script.event(&cri(), 1, EventKind::Started, 1_000);
    let runs = sandbox(running(1, 100, 1_000));
    script.found(&cri(), runs, alive(process(100, 500)));
    let told = script.field(Op::Start, "started_at_ms").to_owned();
    assert!(!told.is_empty(), "its event has told it");

    script.event(&cri(), 1, EventKind::Died, 2_000);
    let ended = sandbox(exited(1, 1_000, 2_000, 0));
    script.found(&cri(), ended, None);

    assert_eq!(script.ops(), ["create", "start", "stop"]);
    assert_eq!(script.field(Op::Stop, "started_at_ms"), told);
}

#[test]
fn a_docker_restart_is_a_stop_and_a_start_with_a_new_pid() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.died(&docker(), 1, 2_001, 143);
    script.event(&docker(), 1, EventKind::Started, 2_011);
    let again = Container {
        finished_at_ns: Some(ns(2_000)),
        ..running(1, 101, 2_010)
    };
    script.found(&docker(), again.clone(), alive(process(101, 501)));
    script.found(&docker(), again, alive(process(101, 501)));

    assert_eq!(script.ops(), ["stop", "start"]);
    assert_eq!(script.field(Op::Stop, "exit_code"), "143");
    assert_eq!(script.before(Op::Stop, "pid"), "100");
    assert_eq!(script.field(Op::Start, "pid"), "101");
    assert_eq!(script.field(Op::Start, "exit_code"), "");
}

#[test]
fn two_quick_restarts_between_inspects_are_told_each() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.died(&docker(), 1, 2_001, 1);
    script.event(&docker(), 1, EventKind::Started, 2_011);
    script.died(&docker(), 1, 2_021, 2);
    script.event(&docker(), 1, EventKind::Started, 2_031);
    let last = running(1, 102, 2_030);
    script.found(&docker(), last.clone(), alive(process(102, 502)));
    script.found(&docker(), last, None);

    assert_eq!(script.ops(), ["stop", "start", "stop", "start"]);
    let codes: Vec<_> = script
        .deltas()
        .filter(|delta| delta.op == Op::Stop)
        .filter_map(|delta| Some(delta.fields.as_ref()?.get("exit_code").to_owned()))
        .collect();
    assert_eq!(codes, ["1", "2"]);
}

#[test]
fn an_inspect_that_runs_ahead_of_the_stream_waits_for_its_events() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);

    // Two runs have begun and one has ended by the time of the inspect; their events come later.
    script.found(&docker(), running(1, 101, 1_030), alive(process(101, 501)));
    assert_eq!(script.ops(), ["create"]);
    assert_eq!(
        script.mappings().len(),
        1,
        "its namespace is mapped at once"
    );

    script.event(&docker(), 1, EventKind::Started, 1_011);
    script.died(&docker(), 1, 1_021, 3);
    script.event(&docker(), 1, EventKind::Started, 1_031);
    script.found(&docker(), running(1, 101, 1_030), alive(process(101, 501)));
    script.found(&docker(), running(1, 101, 1_030), alive(process(101, 501)));

    assert_eq!(script.ops(), ["create", "start", "stop", "start"]);
    assert!(script.reconciler.is_settled() || script.at_ms < 3_000);
}

#[test]
fn a_process_that_was_seen_ahead_is_not_of_a_run_that_ended_before_it() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    // The kernel tells its start to a tick or two: by that it could be of the run before.
    let second = Process {
        started_at_ms: T0_MS + 1_005,
        ..process(101, 501)
    };
    script.found(&docker(), running(1, 101, 1_030), alive(second));

    script.event(&docker(), 1, EventKind::Started, 1_011);
    script.died(&docker(), 1, 1_021, 3);
    script.found(&docker(), exited(1, 1_030, 1_040, 0), None);
    script.event(&docker(), 1, EventKind::Started, 1_031);
    script.died(&docker(), 1, 1_040, 0);
    script.found(&docker(), exited(1, 1_030, 1_040, 0), None);
    script.found(&docker(), exited(1, 1_030, 1_040, 0), None);

    assert_eq!(script.ops(), ["create", "start", "stop", "start", "stop"]);
    let starts = script.deltas().filter(|delta| delta.op == Op::Start);
    let pids: Vec<_> = starts
        .filter_map(|delta| Some(delta.fields.as_ref()?.get("pid").to_owned()))
        .collect();
    assert_eq!(pids, ["", "101"]);
}

#[test]
fn an_inspect_that_runs_ahead_of_a_lost_event_is_told_after_a_while() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(&docker(), running(1, 101, 1_030), alive(process(101, 501)));

    script.wait(3_000);
    script.found(&docker(), running(1, 101, 1_030), alive(process(101, 501)));

    assert_eq!(script.ops(), ["create", "start"]);
    assert_eq!(script.delta(Op::Start).origin, Origin::Resync);
}

#[test]
fn cri_stopped_before_started_is_told_in_order() {
    let mut script = Script::watching_cri();

    script.event(&cri(), 1, EventKind::Created, 1);
    script.died(&cri(), 1, 30, 5);
    script.event(&cri(), 1, EventKind::Started, 20);
    let ended = of_cri(exited(1, 20, 30, 5));
    script.found(&cri(), ended.clone(), None);
    script.found(&cri(), ended, None);

    assert_eq!(script.ops(), ["create", "start", "stop"]);
    assert_eq!(script.field(Op::Stop, "exit_code"), "5");
}

#[test]
fn cri_states_only_advance() {
    let mut script = Script::watching_cri();
    script.event(&cri(), 1, EventKind::Created, 1);
    script.event(&cri(), 1, EventKind::Started, 20);
    script.died(&cri(), 1, 30, 5);

    // This inspect was asked for before the container ended, and says that it lives.
    let live = of_cri(running(1, 100, 20));
    script.found(&cri(), live.clone(), None);
    script.found(&cri(), live, None);
    let ended = of_cri(exited(1, 20, 30, 5));
    script.wait(2_000);
    script.found(&cri(), ended, None);
    // A second STARTED, five minutes old, of another subscriber's queue.
    script.event(&cri(), 1, EventKind::Started, 21);
    script.found(&cri(), of_cri(exited(1, 20, 30, 5)), None);

    assert_eq!(script.ops(), ["create", "start", "stop"]);
}

#[test]
fn containerds_five_minutes_old_events_are_told_once_and_whole() {
    let mut script = Script::new();
    script.up(&cri());
    let live = of_cri(running(2, 100, 20));
    script.list(&cri(), vec![row_of(&live, 1)]);
    script.found(&cri(), live.clone(), alive(process(100, 500)));
    script.said.clear();

    // Container 1 is long gone, container 2 was listed already.
    for (number, what) in [
        (1, EventKind::Created),
        (2, EventKind::Created),
        (2, EventKind::Started),
        (1, EventKind::Started),
        (1, EventKind::Died),
        (1, EventKind::Deleted),
    ] {
        script.event(&cri(), number, what, 0);
    }
    script.not_found(&cri(), 1);
    script.found(&cri(), live.clone(), None);
    script.found(&cri(), live, None);

    let of_1: Vec<_> = script
        .deltas()
        .filter(|delta| {
            let fields = delta.fields.as_ref();
            fields.is_some_and(|fields| fields.get("id") == id(1).as_str())
        })
        .map(|delta| delta.op.as_str())
        .collect();
    assert_eq!(of_1, ["create", "start", "stop", "delete"]);
    assert_eq!(
        script.ops().len(),
        4,
        "nothing is told of container 2 again"
    );
}

#[test]
fn a_doubled_event_is_told_once() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    for _ in 0..2 {
        script.died(&docker(), 1, 2_001, 1);
    }
    script.found(&docker(), exited(1, 10, 2_000, 1), None);
    script.died(&docker(), 1, 2_001, 1);

    assert_eq!(script.ops(), ["stop"]);
    assert_eq!(script.reconciler.counters().ignored_events, 2);
}

#[test]
fn a_start_that_failed_is_no_run() {
    let mut script = Script::watching_docker();

    // `docker run --rm busybox no-such-command`: a die without a start.
    script.event(&docker(), 1, EventKind::Created, 1);
    script.died(&docker(), 1, 20, 127);
    script.event(&docker(), 1, EventKind::Deleted, 30);
    script.not_found(&docker(), 1);

    assert_eq!(script.ops(), ["create", "delete"]);
}

#[test]
fn the_oom_killer_is_the_reason_of_a_stop() {
    for (exit_code, oom_killed, reason) in [(137, Some(true), "oom"), (137, Some(false), "signal")]
    {
        let mut script = Script::watching_docker();
        script.run_docker(1, 100, 500);

        script.died(&docker(), 1, 2_001, exit_code);
        let ended = Container {
            oom_killed,
            ..exited(1, 10, 2_000, exit_code)
        };
        script.found(&docker(), ended, None);

        assert_eq!(&*script.delta(Op::Stop).reason, reason);
    }
}

#[test]
fn a_paused_container_keeps_its_pid_and_its_namespace() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.event(&docker(), 1, EventKind::Paused, 2_000);
    let paused = Container {
        state: State::Paused,
        ..running(1, 100, 10)
    };
    script.found(&docker(), paused, alive(process(100, 500)));

    assert_eq!(script.ops(), ["update"]);
    assert_eq!(script.field(Op::Update, "state"), "paused");
    assert_eq!(script.field(Op::Update, "pid"), "100");
    assert_eq!(script.field(Op::Update, "pns"), "pid:[500]");
    assert!(script.mappings().is_empty(), "its mapping stands as it is");
}

#[test]
fn a_pause_is_told_by_its_event_and_the_inspect_adds_nothing() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    let (pause_ms, unpause_ms) = (script.at_ms() + 5, script.at_ms() + 10);
    script.wait(20);

    script.event(&docker(), 1, EventKind::Paused, pause_ms);
    assert_eq!(script.ops(), ["update"]);
    assert_eq!(script.field(Op::Update, "state"), "paused");
    assert_eq!(script.delta(Op::Update).event_ts_ns, ns(pause_ms));
    let paused = Container {
        state: State::Paused,
        ..running(1, 100, 10)
    };
    script.found(&docker(), paused, alive(process(100, 500)));
    assert_eq!(script.ops(), ["update"], "it was told");

    // The inspect was asked for after this event: it may have been answered with what the event tells.
    script.event(&docker(), 1, EventKind::Unpaused, unpause_ms);
    assert_eq!(script.ops(), ["update"]);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));
    assert_eq!(script.ops(), ["update", "update"]);
}

#[test]
fn a_pause_that_is_over_when_it_is_inspected_is_told_all_the_same() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.wait(20);
    let at_ms = script.at_ms();

    script.event(&docker(), 1, EventKind::Paused, at_ms);
    script.event(&docker(), 1, EventKind::Unpaused, at_ms + 1);
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));

    let told = script.deltas().map(|delta| {
        let fields = delta.fields.as_ref().expect("it is about a container");
        (fields.get("state"), delta.event_ts_ns)
    });
    assert!(told.eq([("paused", ns(at_ms)), ("running", ns(at_ms + 1))]));
}

#[test]
fn a_pause_behind_a_gap_in_the_stream_waits_for_its_inspect() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.wait(20);

    script.tell(Observation::StreamGap { source: docker() });
    script.event(&docker(), 1, EventKind::Paused, script.at_ms());
    assert!(script.ops().is_empty(), "it may be another run's");
}

#[test]
fn an_inspect_that_fails_is_asked_again_and_no_event_is_lost() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.event(&docker(), 1, EventKind::Started, 11);
    script.tell(Observation::Inspected {
        source: docker(),
        id: id(1),
        outcome: InspectOutcome::Failed,
    });
    script.said.clear();

    script.wait(2_000);
    let asked = script.said.clone();
    script.found(&docker(), running(1, 100, 10), alive(process(100, 500)));

    assert_eq!(inspected(&asked), [id(1)]);
    assert_eq!(script.ops(), ["create", "start"]);
}

#[test]
fn what_an_event_told_is_not_told_by_the_resync_beside_it() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    // The list that was made after the end comes before the event that tells it.
    script.resync(&docker(), Vec::new());
    script.died(&docker(), 1, 2_001, 9);
    script.event(&docker(), 1, EventKind::Deleted, 2_010);

    assert_eq!(script.ops(), ["stop", "delete"]);
    assert_eq!(script.field(Op::Stop, "exit_code"), "9");
    assert_eq!(script.delta(Op::Delete).origin, Origin::Event);
    assert_eq!(script.reconciler.counters().missed, 0);
}

#[test]
fn what_no_event_told_is_found_by_the_resync_and_counted() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.resync(&docker(), Vec::new());
    script.wait(3_000);

    assert_eq!(script.ops(), ["stop", "delete"]);
    assert_eq!(script.delta(Op::Delete).origin, Origin::Resync);
    assert_eq!(script.reconciler.counters().missed, 2);
}

#[test]
fn a_failed_or_partial_list_deletes_nothing() {
    for outcome in [ListOutcome::Failed, ListOutcome::Partial(Vec::new())] {
        let mut script = Script::watching_docker();
        script.run_docker(1, 100, 500);

        script.tell(Observation::ResyncDue);
        script.list_with(&docker(), outcome);
        script.wait(10_000);

        assert!(script.ops().is_empty());
    }
}

#[test]
fn what_containerd_does_not_tell_of_a_task_its_events_have_told() {
    let mut script = Script::watching_docker();
    let own = |container: Container| Container {
        runtime: RuntimeType::Containerd,
        runtime_name: "containerd".into(),
        started_at_ns: None,
        ..container
    };
    script.event(&docker(), 1, EventKind::Created, 1);
    script.event(&docker(), 1, EventKind::Started, 20);
    let runs = own(running(1, 100, 20));
    script.found(&docker(), runs.clone(), alive(process(100, 500)));
    script.found(&docker(), runs, alive(process(100, 500)));
    assert_eq!(script.ops(), ["create", "start"]);
    let started = (T0_MS + 20).to_string();
    assert_eq!(script.field(Op::Start, "started_at_ms"), started);

    script.died(&docker(), 1, 30, 3);
    script.found(&docker(), own(exited(1, 20, 30, 3)), None);
    // Its task is deleted.
    script.event(&docker(), 1, EventKind::Renamed, 40);
    script.found(&docker(), own(created(1, RuntimeType::Containerd)), None);
    let changed: Vec<_> = script.deltas().map(|delta| &delta.changed).collect();
    assert_eq!(
        script.ops(),
        ["create", "start", "stop"],
        "changed: {changed:?}"
    );
    assert_eq!(script.field(Op::Stop, "exit_code"), "3");
    assert_eq!(script.field(Op::Stop, "started_at_ms"), started);
}

#[test]
fn a_container_that_vanished_while_its_runtime_was_away_ends_when_that_was_first_seen() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.down(&docker());
    script.wait(4_000);
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Dead,
    });
    let seen_ms = T0_MS + script.at_ms;
    script.wait(30_000);

    script.up(&docker());
    script.list(&docker(), Vec::new());

    assert_eq!(script.ops(), ["stop", "delete"]);
    assert_eq!(script.delta(Op::Stop).ts_ms, seen_ms);
    let mappings = script.mappings();
    let ended = mappings.last().expect("the mapping ended");
    assert_eq!(ended.valid_to_ms, Some(seen_ms));
}

#[test]
fn a_runtime_of_another_user_never_takes_over_what_root_s_has() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    let rootless = SourceId::new("docker=unix:///run/user/1000/docker.sock");
    script.tell(Observation::SourceUp {
        source: rootless.clone(),
        runtime: RuntimeSource {
            runtime: RuntimeType::Docker,
            name: "docker".into(),
            version: "1".into(),
            endpoint: "unix:///run/user/1000/docker.sock".into(),
            uid: 1_000,
        },
        streaming: true,
        is_listing: false,
    });
    script.down(&docker());

    script.list(&rootless, vec![row_of(&running(1, 100, 10), 9)]);
    script.died(&rootless, 1, 2_000, 0);

    assert!(script.ops().is_empty(), "told: {:?}", script.ops());
}

#[test]
fn an_inspect_of_containerd_that_runs_ahead_of_the_start_waits_for_it() {
    let mut script = Script::watching_docker();
    let ended = Container {
        runtime: RuntimeType::Containerd,
        started_at_ns: None,
        ..exited(1, 20, 30, 0)
    };
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(&docker(), ended.clone(), None);
    assert_eq!(script.ops(), ["create"]);

    script.event(&docker(), 1, EventKind::Started, 20);
    script.died(&docker(), 1, 30, 0);
    script.found(&docker(), ended.clone(), None);
    script.found(&docker(), ended, None);
    assert_eq!(script.ops(), ["create", "start", "stop"]);
}
