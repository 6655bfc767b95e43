//! The cases of the contract that are about PID namespaces.

use quaymaster::model::message::{Message, Op};
use quaymaster::model::{Container, ContainerKind, EventKind};
use quaymaster::reconcile::{
    Effect, FdToken, Observation, Phase, Process, ProcessReading, Settings,
};

use crate::script::*;
use crate::world::HOST_PNS;

const LINGER_MS: u64 = 10 * 60 * 1_000;

fn end_of_1(script: &mut Script) {
    let at_ms = script.at_ms;
    script.died(&docker(), 1, at_ms, 0);
    script.found(&docker(), exited(1, 10, at_ms, 0), None);
}

fn acked(pns_inode: u64, generation: u64) -> Observation {
    Observation::MappingAcked {
        pns_inode,
        generation,
    }
}

fn buried(pns_inode: u64, generation: u64) -> Observation {
    Observation::TombstoneAcked {
        pns_inode,
        generation,
    }
}

#[test]
fn a_mapping_ends_lingers_from_its_acknowledgement_and_gets_its_tombstone() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    end_of_1(&mut script);
    let ended = script.mappings()[0].clone();
    assert_eq!(ended.valid_to_ms, Some(T0_MS + script.at_ms));

    script.wait(2 * LINGER_MS);
    assert!(!script.said.iter().any(is_tombstone), "the bus is away");
    script.tell(acked(500, ended.generation));
    script.wait(LINGER_MS - 1_000);
    assert!(!script.said.iter().any(is_tombstone));
    script.wait(1_000);
    assert!(script.said.iter().any(is_tombstone));
    let let_go = Effect::ReleaseNamespace(FdToken(100));
    assert!(!script.said.contains(&let_go), "its number is kept");
    script.tell(buried(500, ended.generation));

    assert!(script.said.contains(&let_go));
    assert_eq!(script.reconciler.namespaces().count(), 0);
}

#[test]
fn a_clock_that_is_set_back_makes_no_mapping_linger_longer() {
    let mut script = Script::watching_docker();
    script.at_ms += 100 * LINGER_MS;
    script.run_docker(1, 100, 500);
    end_of_1(&mut script);
    let generation = script.mappings()[0].generation;
    script.tell(acked(500, generation));

    script.at_ms -= 90 * LINGER_MS;
    script.wait(LINGER_MS + 2_000);

    assert!(script.said.iter().any(is_tombstone));
}

#[test]
fn a_rename_puts_the_mapping_again() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.event(&docker(), 1, EventKind::Renamed, 2_000);
    let renamed = Container {
        name: "other".to_owned(),
        ..running(1, 100, 10)
    };
    script.found(&docker(), renamed, None);

    assert_eq!(script.ops(), ["update"]);
    assert_eq!(&*script.mappings()[0].owner.container_name, "other");
}

#[test]
fn the_hosts_own_namespace_is_not_mapped() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.event(&docker(), 1, EventKind::Started, 11);
    let host = process(100, HOST_PNS);
    script.found(&docker(), running(1, 100, 10), alive(host.clone()));
    script.found(&docker(), running(1, 100, 10), None);

    assert_eq!(script.ops(), ["create", "start"]);
    assert_eq!(script.field(Op::Start, "pns_inode"), HOST_PNS.to_string());
    assert!(script.mappings().is_empty());
    let let_go = Effect::ReleaseNamespace(FdToken(100));
    assert!(script.said.contains(&let_go));
}

#[test]
fn a_hint_is_mapped_before_the_start_and_given_up_when_no_start_comes() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(
        &docker(),
        created(1, quaymaster::model::RuntimeType::Docker),
        None,
    );
    script.said.clear();
    let hint = |reading| Observation::Process {
        id: id(1),
        pid: 100,
        reading,
    };

    script.tell(hint(ProcessReading::Alive(Box::new(process(100, 500)))));
    assert_eq!(script.mappings().len(), 1);
    assert!(script.ops().is_empty());
    script.tell(hint(ProcessReading::Dead));

    let mapping = script.mappings().pop().expect("its end is put");
    assert!(mapping.valid_to_ms.is_some());
}

#[test]
fn what_another_user_s_runtime_names_is_no_process_of_root_s_container() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    let made = created(1, quaymaster::model::RuntimeType::Docker);
    script.found(&docker(), made, None);
    script.said.clear();
    let named = |uid, number| Observation::ProcessOf {
        uid,
        id: id(number),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(process(100, 500))),
    };
    let let_go = Effect::ReleaseNamespace(FdToken(100));
    // A container of root's, and one that nobody has told yet.
    for number in [1, 2] {
        let effects = script.tell(named(1_000, number));
        assert!(
            effects.contains(&let_go) && effects.len() == 1,
            "{effects:?}"
        );
    }
    script.tell(named(0, 1));
    assert_eq!(script.mappings().len(), 1, "its own user's runtime may");
}

#[test]
fn a_process_that_no_start_comes_of_is_looked_at_until_it_has_ended() {
    let mut script = Script::watching_docker();
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(
        &docker(),
        created(1, quaymaster::model::RuntimeType::Docker),
        None,
    );
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(process(100, 500))),
    });
    let is_looked_at = |script: &Script| {
        let looks = |effect: &Effect| matches!(effect, Effect::ReadProcess { pid: 100, .. });
        script.said.iter().any(looks)
    };
    for _ in 0..8 {
        script.wait(1_000);
    }
    assert!(!is_looked_at(&script), "its start may come");
    for _ in 0..4 {
        script.wait(1_000);
    }
    assert!(is_looked_at(&script));
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Dead,
    });
    let mapping = script.mappings().pop().expect("its end is put");
    assert!(mapping.valid_to_ms.is_some());
    script.said.clear();
    for _ in 0..4 {
        script.wait(1_000);
    }
    assert!(!is_looked_at(&script), "it is no more");
}

#[test]
fn a_process_waits_for_a_container_that_nothing_is_known_of_and_is_mapped_once_it_is() {
    let hint = |number, fd| Observation::Process {
        id: id(number),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(Process {
            fd: Some(FdToken(fd)),
            ..process(100, 500 + fd)
        })),
    };
    let mut script = Script::watching_docker();
    script.tell(hint(1, 1));
    assert!(script.mappings().is_empty());
    assert_eq!(
        script.reconciler.held_fds().collect::<Vec<_>>(),
        [FdToken(1)]
    );

    // Its process may be gone by now: the run has it all the same.
    script.event(&docker(), 1, EventKind::Created, 1);
    script.found(
        &docker(),
        created(1, quaymaster::model::RuntimeType::Docker),
        None,
    );
    assert_eq!(script.mappings().len(), 1);
    assert_eq!(script.ops(), ["create"]);
    script.event(&docker(), 1, EventKind::Started, 1_020);
    script.died(&docker(), 1, 1_030, 0);
    script.event(&docker(), 1, EventKind::Deleted, 1_040);
    script.not_found(&docker(), 1);
    assert_eq!(script.ops(), ["create", "start", "stop", "delete"]);
    assert_eq!(script.field(Op::Start, "pid"), "100");

    // Nothing ever tells of this one, and of that one no more than its end.
    script.tell(hint(2, 2));
    script.tell(hint(1, 3));
    let is_held =
        |script: &Script, fd| script.reconciler.held_fds().any(|held| held == FdToken(fd));
    assert!(is_held(&script, 2));
    assert!(
        !is_held(&script, 3),
        "a container that was deleted takes none"
    );
    for _ in 0..20 {
        script.wait(1_000);
    }
    assert!(!is_held(&script, 2), "it has waited long enough");
}

#[test]
fn a_process_that_was_read_before_its_end_does_not_map_its_namespace_again() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    end_of_1(&mut script);
    script.said.clear();

    let late = Process {
        fd: Some(FdToken(7)),
        ..process(100, 500)
    };
    script.tell(Observation::Process {
        id: id(1),
        pid: 100,
        reading: ProcessReading::Alive(Box::new(late)),
    });

    assert!(script.mappings().is_empty());
    let let_go = Effect::ReleaseNamespace(FdToken(7));
    assert!(script.said.contains(&let_go));
}

#[test]
fn a_superseded_number_is_ended_first_and_gets_no_tombstone() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    script.restart("boot-1");
    script.up(&docker());
    script.list(&docker(), Vec::new());
    script.said.clear();

    // While the collector was away nobody held the number, and container 2 got it.
    let other = Process {
        started_at_ms: T0_MS + 900,
        ..process(101, 500)
    };
    script.event(&docker(), 2, EventKind::Created, 800);
    script.event(&docker(), 2, EventKind::Started, 910);
    script.found(&docker(), running(2, 101, 905), alive(other));
    script.tell(acked(500, 1));
    script.wait(2 * LINGER_MS);

    let puts = script.mappings();
    let told: Vec<_> = puts
        .iter()
        .take(2)
        .map(|put| (put.generation, put.valid_to_ms, put.owner.pid))
        .collect();
    assert_eq!(told, [(1, Some(T0_MS + 900), 100), (2, None, 101)]);
    assert!(!script.said.iter().any(is_tombstone));
}

#[test]
fn a_number_that_is_held_is_the_same_namespace() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    let joined = Process {
        is_init: false,
        ..process(101, 500)
    };
    script.run_docker_with(running(2, 101, 10), joined);

    let rows: Vec<_> = script.reconciler.namespaces().collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].phase(), Phase::Live);
    assert_eq!(rows[0].mapping().members.len(), 2);
    assert_eq!(rows[0].mapping().owner.container_id, id(1));
}

#[test]
fn the_owner_of_a_shared_namespace_is_pid_1_or_in_a_pod_the_first_container() {
    let sandbox = Container {
        kind: ContainerKind::Sandbox,
        ..running(3, 103, 10)
    };
    let member = |pid, at_ms| Process {
        is_init: pid == 103,
        started_at_ms: T0_MS + at_ms,
        ..process(pid, 500)
    };
    let mut script = Script::watching_docker();

    script.run_docker_with(sandbox, member(103, 1));
    let owner = |script: &Script| {
        let mut rows = script.reconciler.namespaces();
        let row = rows.next().expect("it is mapped");
        row.mapping().owner.container_id.clone()
    };
    assert_eq!(owner(&script), id(3), "nobody else is there");
    script.run_docker_with(running(2, 102, 10), member(102, 5));
    assert_eq!(owner(&script), id(2), "a sandbox gives way");
    script.run_docker_with(running(1, 101, 10), member(101, 9));
    assert_eq!(owner(&script), id(2), "it started first");
    script.run_docker_with(running(4, 104, 10), member(104, 5));
    assert_eq!(
        owner(&script),
        id(2),
        "of two that started together, the smaller id"
    );
}

#[test]
fn when_pid_1_of_a_shared_namespace_ends_its_mapping_ends() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);
    let joined = Process {
        is_init: false,
        ..process(101, 500)
    };
    script.run_docker_with(running(2, 101, 10), joined);

    script.died(&docker(), 2, 1_500, 0);
    script.found(&docker(), exited(2, 10, 1_500, 0), None);
    let after_member = script.mappings().pop().expect("it is put").clone();
    end_of_1(&mut script);

    assert_eq!(after_member.valid_to_ms, None);
    assert_eq!(after_member.members.len(), 1);
    let last = script.mappings().pop().expect("it is put");
    assert!(last.valid_to_ms.is_some());
}

#[test]
fn beyond_the_limit_the_oldest_that_linger_are_let_go() {
    let mut script = Script::with(Settings {
        held_max: 1,
        ..Settings::default()
    });
    script.up(&docker());
    script.list(&docker(), Vec::new());
    for number in 1..=3u8 {
        let pid = 100 + u32::from(number);
        script.run_docker(number, pid, 500 + u64::from(number));
        script.died(&docker(), number, 1_000 + u64::from(number), 0);
        let until_ms = 1_000 + u64::from(number);
        script.found(&docker(), exited(number, 10, until_ms, 0), None);
    }
    script.said.clear();

    script.wait(1_000);

    let mut tombstones = Vec::new();
    for effect in &script.said {
        if let Effect::Publish(Message::MappingTombstone { pns_inode, .. }) = effect {
            tombstones.push(*pns_inode);
        }
    }
    assert_eq!(tombstones, [501, 502]);
    assert_eq!(script.reconciler.counters().evicted, 2);
    let let_go = Effect::ReleaseNamespace(FdToken(101));
    assert!(script.said.contains(&let_go));
}

#[test]
fn a_mapping_is_renewed_once_a_refresh() {
    let mut script = Script::watching_docker();
    script.run_docker(1, 100, 500);

    script.wait(4 * 60 * 60 * 1_000);

    let puts = script.mappings();
    assert_eq!(puts.len(), 4);
}
