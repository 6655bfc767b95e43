//! The cases of the contract that are about PID namespaces below a container's.

use std::collections::BTreeMap;

use quaymaster::reconcile::{
    Effect, FdToken, MappingKey, NestedLook, NestedQuery, Observation, Process, Settings,
};

use crate::script::*;

/// Container 1, whose own namespace is 500, in a collector that looks once a second where it has to.
fn with_container_1(settings: Settings) -> Script {
    let mut script = Script::with(settings);
    script.up(&docker());
    script.list(&docker(), Vec::new());
    script.run_docker(1, 100, 500);
    script
}

/// A full resync; the query that it leads to.
fn query(script: &mut Script) -> Option<NestedQuery> {
    let rows = [running(1, 100, 10), running(2, 101, 10)];
    let known = script.reconciler.containers().count();
    let rows = rows.iter().take(known).map(|row| row_of(row, 1)).collect();
    script.said.clear();
    script.resync(&docker(), rows);
    for effect in script.said.clone() {
        if let Effect::Inspect { id: asked, .. } = effect {
            let (number, pid) = if asked == id(1) { (1, 100) } else { (2, 101) };
            script.found(&docker(), running(number, pid, 10), None);
        }
    }
    script.wait(1_000);
    let found = script.said.iter().find_map(|effect| match effect {
        Effect::FindNested(query) => Some((**query).clone()),
        Effect::Publish(_)
        | Effect::SaveRow(_)
        | Effect::List { .. }
        | Effect::Inspect { .. }
        | Effect::ReadProcess { .. }
        | Effect::ReleaseNamespace(_) => None,
    });
    script.said.clear();
    found
}

fn owner(query: &NestedQuery, pns_inode: u64) -> MappingKey {
    MappingKey {
        pns_inode,
        generation: query.owners[&pns_inode].generation,
    }
}

fn tell(script: &mut Script, look: NestedLook) {
    let look = Box::new(look);
    script.tell(Observation::NestedLooked { look });
}

fn found(above: MappingKey, process: Process) -> NestedLook {
    NestedLook {
        found: vec![(above, process)],
        ..NestedLook::default()
    }
}

/// Container 1 with process 200 in namespace 600 below its own.
fn with_nested() -> (Script, MappingKey) {
    let mut script = with_container_1(Settings::default());
    let query = query(&mut script).expect("a resync leads to a look");
    let above = owner(&query, 500);
    tell(&mut script, found(above, process(200, 600)));
    (script, above)
}

fn generation(script: &Script, pns_inode: u64) -> MappingKey {
    let mut rows = script.reconciler.namespaces();
    let row = rows.find(|row| row.mapping().pns_inode == pns_inode);
    MappingKey {
        pns_inode,
        generation: row.expect("it is mapped").mapping().generation,
    }
}

#[test]
fn a_nested_namespace_is_mapped_to_its_container_until_a_look_no_longer_finds_it() {
    let (mut script, above) = with_nested();
    let told = script.mappings()[0].clone();
    assert!(told.nested);
    assert_eq!((told.pns_inode, told.owner.pid), (600, 200));
    assert_eq!(told.owner.container_id, id(1));
    assert_eq!(&*told.owner.container_name, "name-1");
    assert_eq!(told.valid_to_ms, None);

    let again = query(&mut script).expect("there is a container");
    assert_eq!(again.nested[&600].above, above);
    assert!(again.nested[&600].is_held);
    let gone = vec![generation(&script, 600)];
    script.at_ms += 500;
    tell(
        &mut script,
        NestedLook {
            gone,
            ..NestedLook::default()
        },
    );

    let ended = script.mappings()[0].clone();
    assert_eq!(ended.valid_to_ms, Some(T0_MS + script.at_ms));
    let (pns_inode, generation) = (600, ended.generation);
    script.tell(Observation::MappingAcked {
        pns_inode,
        generation,
    });
    script.wait(10 * 60 * 1_000);
    assert!(script.said.iter().any(is_tombstone));
    let let_go = Effect::ReleaseNamespace(FdToken(200));
    assert!(!script.said.contains(&let_go), "its number is kept");
    script.tell(Observation::TombstoneAcked {
        pns_inode,
        generation,
    });
    assert!(script.said.contains(&let_go));
    assert_eq!(script.reconciler.nested_count(), 0);
}

#[test]
fn a_nested_namespace_ends_with_its_container_and_outdated_looks_change_nothing() {
    let (mut script, above) = with_nested();
    let at_ms = script.at_ms;
    script.died(&docker(), 1, at_ms, 0);
    script.said.clear();
    script.found(&docker(), exited(1, 10, at_ms, 0), None);

    let ended: BTreeMap<_, _> = script
        .mappings()
        .into_iter()
        .map(|put| (put.pns_inode, put.valid_to_ms))
        .collect();
    assert_eq!(ended.len(), 2);
    assert_eq!(ended[&600], Some(T0_MS + at_ms));
    assert_eq!(ended[&500], ended[&600]);

    script.said.clear();
    let late = Process {
        fd: Some(FdToken(7)),
        ..process(200, 600)
    };
    tell(&mut script, found(above, late));
    assert!(script.mappings().is_empty());
    let let_go = Effect::ReleaseNamespace(FdToken(7));
    assert!(script.said.contains(&let_go));
}

#[test]
fn a_nested_namespace_that_is_a_watched_container_s_own_is_that_container_s() {
    let (mut script, above) = with_nested();
    let inner = Process {
        fd: Some(FdToken(7)),
        ..process(200, 600)
    };
    script.event(&docker(), 2, quaymaster::model::EventKind::Created, 1);
    script.event(&docker(), 2, quaymaster::model::EventKind::Started, 11);
    script.said.clear();
    script.found(&docker(), running(2, 200, 10), alive(inner));

    let told = script.mappings()[0].clone();
    assert!(!told.nested);
    assert_eq!((told.pns_inode, told.members.len()), (600, 1));
    assert_eq!(told.owner.container_id, id(2));
    assert_eq!(told.generation, generation(&script, 600).generation);

    // A look of before that is told late does not take it away again.
    script.said.clear();
    let late = Process {
        fd: Some(FdToken(8)),
        ..process(200, 600)
    };
    tell(&mut script, found(above, late));
    let gone = vec![generation(&script, 600)];
    tell(
        &mut script,
        NestedLook {
            gone,
            ..NestedLook::default()
        },
    );
    assert!(script.mappings().is_empty());
    let let_go = Effect::ReleaseNamespace(FdToken(8));
    assert!(script.said.contains(&let_go));
}

#[test]
fn one_below_a_container_that_became_known_later_goes_over_to_that_one() {
    let (mut script, _) = with_nested();
    script.run_docker(2, 101, 700);
    let asked = query(&mut script).expect("there are containers");
    let between = owner(&asked, 700);
    tell(&mut script, found(between, process(200, 600)));

    let told = script.mappings()[0].clone();
    assert_eq!((told.nested, told.owner.container_id), (true, id(2)));
    assert_eq!(script.reconciler.nested_count(), 1);
}

#[test]
fn no_more_are_mapped_below_one_container_than_the_limit() {
    let mut script = with_container_1(Settings::default());
    let asked = query(&mut script).expect("there is a container");
    let above = owner(&asked, 500);
    let room = asked.owners[&500].room;
    let all = (0..u32::try_from(room).expect("it is small") + 2)
        .map(|number| (above, process(1_000 + number, 10_000 + u64::from(number))));
    tell(
        &mut script,
        NestedLook {
            found: all.collect(),
            skipped: 3,
            ..NestedLook::default()
        },
    );

    assert_eq!(script.reconciler.nested_count(), room);
    assert_eq!(script.reconciler.counters().nested_skipped, 5);
    let releases = script.said.iter();
    let releases = releases.filter(|effect| matches!(effect, Effect::ReleaseNamespace(_)));
    assert_eq!(releases.count(), 2, "what is not mapped is not held");
    let asked = query(&mut script).expect("there is a container");
    assert_eq!(asked.owners[&500].room, 0);
}

#[test]
fn over_a_restart_a_nested_mapping_takes_its_fd_anew_or_ends_when_it_was_alive_last() {
    let (mut script, above) = with_nested();
    tell(&mut script, found(above, process(201, 601)));
    let alive_ms = script.at_ms;
    script.restart("boot-1");
    script.at_ms += 5_000;
    assert_eq!(script.reconciler.nested_count(), 2);
    script.up(&docker());
    let own = alive(process(100, 500));
    script.list(&docker(), vec![row_of(&running(1, 100, 10), 2)]);
    script.found(&docker(), running(1, 100, 10), own);
    let asked = query(&mut script).expect("there is a container");
    assert!(!asked.nested[&600].is_held);

    let gone = vec![generation(&script, 601)];
    tell(
        &mut script,
        NestedLook {
            gone,
            ..found(owner(&asked, 500), process(200, 600))
        },
    );

    let puts = script.mappings();
    assert_eq!(puts.len(), 1, "the one that lives was told before");
    assert_eq!(puts[0].pns_inode, 601);
    assert_eq!(puts[0].valid_to_ms, Some(T0_MS + alive_ms));
    let held: Vec<_> = script.reconciler.held_fds().collect();
    assert!(held.contains(&FdToken(200)));
    script.restart("boot-2");
    let ended = script.mappings();
    assert!(ended.iter().all(|put| put.valid_to_ms.is_some()));
    assert_eq!(ended.len(), 2, "600 and 500 ended with the boot");
}

#[test]
fn nothing_is_looked_for_where_that_is_not_wanted() {
    let settings = Settings {
        nested: false,
        ..Settings::default()
    };
    let mut script = with_container_1(settings);
    assert_eq!(query(&mut script), None);
}
