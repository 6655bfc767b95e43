//! The invariants, by name, over everything that the reconciler ever said.

use std::collections::{BTreeMap, BTreeSet};

use quaymaster::model::message::{Delta, Mapping, Member, Message, Op};
use quaymaster::model::record::Fields;
use quaymaster::model::{ContainerId, ContainerKind};
use quaymaster::reconcile::{Effect, FdToken, NamespaceRow, Phase, Reconciler};

use crate::world::{HOST_PNS, Truth, World};

/// The name of a broken invariant, and how it was broken.
pub(crate) type Check = Result<(), String>;

/// Says that an invariant holds, or names it.
macro_rules! ensure {
    ($condition:expr, $name:literal, $($detail:tt)+) => {
        if !$condition {
            return Err(format!(concat!($name, ": {}"), format_args!($($detail)+)));
        }
    };
}
pub(crate) use ensure;

/// How far two namespaces of one number may overlap in time: clocks and late observations.
const OVERLAP_MS: u64 = 2_000;

/// What only events tell of a sandbox.
const TIMES: [&str; 3] = ["started_at_ms", "finished_at_ms", "exit_code"];

/// A container as a reader of the deltas holds it.
#[derive(Clone, Debug)]
struct Folded {
    fields: Fields,
    is_open: bool,
}

/// What was told of a container, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) creates: usize,
    pub(crate) snapshots: usize,
    pub(crate) starts: usize,
    pub(crate) deletes: usize,
    /// The exit codes of its stops.
    pub(crate) stops: Vec<String>,
}

/// A reader of everything that is published.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    seq: u64,
    folded: BTreeMap<ContainerId, Folded>,
    pub(crate) stories: BTreeMap<ContainerId, Story>,
    records: BTreeMap<ContainerId, Fields>,
    pns: BTreeMap<u64, Mapping>,
    generations: BTreeSet<u64>,
    was_mapped: BTreeSet<(u64, ContainerId)>,
    /// Mappings that were put with an end and have no tombstone yet.
    ended: BTreeSet<(u64, u64)>,
    pub(crate) deltas: usize,
    pub(crate) inspects: usize,
    /// Whether the clock stepped: times are then not compared.
    pub(crate) clock_stepped: bool,
    pub(crate) is_epoch_open: bool,
    /// Whether no fd keeps a number: it may have gone to another container before the first was told.
    pub(crate) numbers_pass: bool,
}

impl Checker {
    /// A reader lost deltas: it drops what it holds, and waits for the snapshot.
    pub(crate) fn lose_all(&mut self) {
        self.folded.clear();
    }

    /// Takes the effects of one step.
    pub(crate) fn take(&mut self, effects: &[Effect], world: &World) -> Check {
        for effect in effects {
            match effect {
                Effect::Publish(message) => self.take_message(message, world)?,
                Effect::Inspect { .. } => self.inspects += 1,
                Effect::SaveRow(_)
                | Effect::List { .. }
                | Effect::ReadProcess { .. }
                | Effect::FindNested(_)
                | Effect::ReleaseNamespace(_) => {}
            }
        }
        Ok(())
    }

    fn take_message(&mut self, message: &Message, world: &World) -> Check {
        match message {
            Message::Delta(delta) => self.take_delta(delta, world),
            Message::Record { id, fields, .. } => {
                let known = self.folded.get(id).map(|folded| &folded.fields);
                ensure!(
                    known == Some(fields),
                    "a_record_says_what_the_deltas_say",
                    "{id}: {fields:?}, not {known:?}"
                );
                self.records.insert(id.clone(), fields.clone());
                Ok(())
            }
            Message::RecordTombstone { id } => {
                self.records.remove(id);
                Ok(())
            }
            Message::Mapping { mapping, refresh } => self.take_mapping(mapping, *refresh, world),
            Message::MappingTombstone {
                pns_inode,
                generation,
            } => {
                let owner = self.pns.get(pns_inode).map(|mapping| mapping.generation);
                ensure!(
                    owner == Some(*generation),
                    "a_tombstone_is_sent_only_while_the_key_belongs_to_its_namespace",
                    "{pns_inode} belongs to {owner:?}, not {generation}"
                );
                ensure!(
                    self.ended.remove(&(*pns_inode, *generation)),
                    "a_tombstone_follows_an_end",
                    "{pns_inode} of {generation} lives"
                );
                self.pns.remove(pns_inode);
                Ok(())
            }
        }
    }

    fn take_delta(&mut self, delta: &Delta, world: &World) -> Check {
        ensure!(
            delta.seq == self.seq + 1,
            "seq_is_contiguous",
            "{} follows {}",
            delta.seq,
            self.seq
        );
        self.seq = delta.seq;
        match delta.op {
            Op::Epoch => {
                self.folded.clear();
                self.is_epoch_open = true;
                return Ok(());
            }
            Op::SnapshotEnd => return Ok(()),
            Op::Create | Op::Start | Op::Stop | Op::Delete | Op::Update | Op::Snapshot => {}
        }
        self.deltas += usize::from(delta.op != Op::Snapshot);
        ensure!(
            self.is_epoch_open,
            "an_epoch_opens_before_anything_is_told",
            "{:?}",
            delta.op
        );
        let Some(fields) = &delta.fields else {
            return Err(format!("a_delta_has_its_container: {:?}", delta.op));
        };
        let id = ContainerId::parse(fields.get("id")).ok_or("a_delta_names_its_container")?;
        ensure!(
            world.containers.contains_key(&id),
            "nothing_is_told_of_what_was_never_there",
            "{id}"
        );
        self.check_story(&id, delta, fields)?;
        self.check_changes(&id, delta, fields)?;
        if delta.op == Op::Start {
            self.check_early_mapping(&id, fields)?;
        }
        let is_open = match delta.op {
            Op::Start => true,
            Op::Snapshot => matches!(fields.get("state"), "running" | "paused"),
            Op::Update => self.folded.get(&id).is_some_and(|folded| folded.is_open),
            Op::Create | Op::Stop | Op::Delete | Op::Epoch | Op::SnapshotEnd => false,
        };
        ensure!(
            is_open || fields.get("pid").is_empty(),
            "only_an_open_run_has_a_pid",
            "{:?} {fields:?}",
            delta.op
        );
        if delta.op == Op::Delete {
            self.folded.remove(&id);
        } else {
            let fields = fields.clone();
            self.folded.insert(id, Folded { fields, is_open });
        }
        Ok(())
    }

    fn check_story(&mut self, id: &ContainerId, delta: &Delta, fields: &Fields) -> Check {
        let known = self.folded.get(id);
        let is_open = known.is_some_and(|folded| folded.is_open);
        let story = self.stories.entry(id.clone()).or_default();
        match delta.op {
            Op::Create => {
                ensure!(known.is_none(), "no_create_of_what_was_told", "{id}");
                story.creates += 1;
            }
            Op::Snapshot => story.snapshots += 1,
            Op::Start => {
                ensure!(known.is_some(), "no_start_without_create", "{id}");
                ensure!(!is_open, "no_start_while_a_run_is_open", "{id}");
                story.starts += 1;
            }
            Op::Stop => {
                ensure!(is_open, "no_stop_without_start", "{id}");
                story.stops.push(fields.get("exit_code").to_owned());
            }
            Op::Update => ensure!(known.is_some(), "no_update_without_create", "{id}"),
            Op::Delete => {
                ensure!(known.is_some(), "no_delete_of_what_was_never_told", "{id}");
                ensure!(!is_open, "no_delete_with_an_open_run", "{id}");
                story.deletes += 1;
            }
            Op::Epoch | Op::SnapshotEnd => {}
        }
        Ok(())
    }

    fn check_changes(&self, id: &ContainerId, delta: &Delta, fields: &Fields) -> Check {
        let is_first = matches!(delta.op, Op::Create | Op::Snapshot);
        let before = self.folded.get(id).filter(|_| !is_first);
        let changes = before.map(|before| fields.changes_since(&before.fields));
        ensure!(
            delta.changed == changes.unwrap_or_default(),
            "changed_and_before_are_the_difference",
            "{id} {:?}: {:?}",
            delta.op,
            delta.changed
        );
        ensure!(
            delta.op != Op::Update || !delta.changed.is_empty(),
            "an_update_changes_something",
            "{id}"
        );
        Ok(())
    }

    fn check_early_mapping(&self, id: &ContainerId, fields: &Fields) -> Check {
        let inode: u64 = fields.get("pns_inode").parse().unwrap_or(HOST_PNS);
        if inode == HOST_PNS {
            return Ok(());
        }
        let has_passed = self.numbers_pass && self.pns.contains_key(&inode);
        ensure!(
            has_passed || self.was_mapped.contains(&(inode, id.clone())),
            "a_mapping_is_handed_over_before_its_start",
            "{id} in {inode}"
        );
        Ok(())
    }

    fn take_mapping(&mut self, mapping: &Mapping, refresh: bool, world: &World) -> Check {
        let inode = mapping.pns_inode;
        ensure!(
            inode != HOST_PNS,
            "the_host_namespace_is_not_mapped",
            "{mapping:?}"
        );
        let lives: Vec<_> = mapping
            .members
            .iter()
            .map(|member| {
                let lives = world.lives.iter();
                let mut lives = lives.filter(|life| life.boot_id == mapping.boot_id);
                lives.find(|life| {
                    let is_process = (life.pid, life.start_ticks, life.inode)
                        == (member.pid, member.start_ticks, inode);
                    let is_own = !life.is_nest && life.container == member.container_id;
                    is_process && (is_own || mapping.nested)
                })
            })
            .collect();
        ensure!(
            lives.iter().all(Option::is_some),
            "no_mapping_to_a_container_that_does_not_own_its_namespace",
            "{mapping:?}"
        );
        let namespaces: BTreeSet<_> = lives.iter().flatten().map(|life| life.namespace).collect();
        ensure!(
            namespaces.len() == 1,
            "a_mapping_is_of_one_namespace",
            "{mapping:?}"
        );
        let is_above = |namespace: &u64| {
            let mut lives = world.lives.iter().filter(|life| !life.is_nest);
            lives.any(|life| {
                life.container == mapping.owner.container_id
                    && world.is_below(*namespace, life.namespace)
            })
        };
        ensure!(
            !mapping.nested || (mapping.members.len() == 1 && namespaces.iter().all(is_above)),
            "a_nested_mapping_names_one_container_above_it",
            "{mapping:?}"
        );
        ensure!(
            Some(&mapping.owner) == expected_owner(&mapping.members),
            "the_owner_is_pid_1_or_the_first_container",
            "{mapping:?}"
        );
        self.check_succession(mapping, refresh)?;
        let key = (inode, mapping.generation);
        match mapping.valid_to_ms {
            Some(valid_to_ms) => {
                ensure!(
                    valid_to_ms >= mapping.valid_from_ms,
                    "a_mapping_ends_after_it_began",
                    "{mapping:?}"
                );
                self.ended.insert(key);
            }
            None => {
                self.ended.remove(&key);
            }
        }
        let members = mapping.members.iter();
        self.was_mapped
            .extend(members.map(|member| (inode, member.container_id.clone())));
        self.pns.insert(inode, mapping.clone());
        Ok(())
    }

    fn check_succession(&mut self, mapping: &Mapping, refresh: bool) -> Check {
        let Some(before) = self.pns.get(&mapping.pns_inode) else {
            ensure!(
                self.generations.insert(mapping.generation),
                "a_generation_is_never_used_again",
                "{mapping:?}"
            );
            return Ok(());
        };
        if before.generation == mapping.generation {
            let is_renewed = before.members == mapping.members
                && before.valid_to_ms == mapping.valid_to_ms
                && before.valid_from_ms == mapping.valid_from_ms;
            ensure!(
                !refresh || is_renewed,
                "a_refresh_changes_nothing",
                "{before:?} {mapping:?}"
            );
            ensure!(
                before.nested || !mapping.nested,
                "a_container_keeps_its_own_namespace",
                "{before:?} {mapping:?}"
            );
            let is_same = before.owner.container_id == mapping.owner.container_id;
            ensure!(
                before.valid_to_ms.is_none() || !mapping.nested || is_same,
                "a_nested_mapping_that_ended_is_no_other_container_s",
                "{before:?} {mapping:?}"
            );
            return Ok(());
        }
        ensure!(
            self.generations.insert(mapping.generation),
            "a_generation_is_never_used_again",
            "{mapping:?}"
        );
        let Some(ended_ms) = before.valid_to_ms else {
            return Err(format!(
                "a_superseded_mapping_is_ended_first: {before:?} by {mapping:?}"
            ));
        };
        self.ended.remove(&(before.pns_inode, before.generation));
        ensure!(
            self.clock_stepped || ended_ms <= mapping.valid_from_ms + OVERLAP_MS,
            "no_number_means_two_containers_at_one_time",
            "{before:?} and {mapping:?}"
        );
        Ok(())
    }

    /// What holds after every step.
    pub(crate) fn after_step(&self, reconciler: &Reconciler) -> Check {
        let tally: BTreeMap<_, _> = reconciler.tally().collect();
        let folded: BTreeMap<_, _> = self
            .folded
            .iter()
            .map(|(id, folded)| (id, folded.fields.clone()))
            .collect();
        ensure!(
            tally == folded,
            "folding_all_deltas_gives_the_tally",
            "{folded:#?} is not {tally:#?}"
        );
        ensure!(
            reconciler.seq() == self.seq,
            "seq_is_contiguous",
            "{} is not {}",
            reconciler.seq(),
            self.seq
        );
        for row in reconciler.namespaces() {
            let inode = row.mapping().pns_inode;
            let is_known = self.pns.get(&inode) == Some(row.mapping());
            ensure!(
                is_known || row.phase() == Phase::Buried,
                "the_table_says_what_the_rows_say",
                "{row:?}, not {:?}",
                self.pns.get(&inode)
            );
            let is_ended = row.mapping().valid_to_ms.is_some();
            ensure!(
                is_ended == (row.phase() != Phase::Live),
                "a_mapping_that_ends_has_its_end",
                "{row:?}"
            );
            self.check_above(reconciler, row)?;
        }
        for inode in self.pns.keys() {
            let mut rows = reconciler.namespaces();
            ensure!(
                rows.any(|row| row.mapping().pns_inode == *inode),
                "a_mapping_without_a_row_has_its_tombstone",
                "{inode}"
            );
        }
        Ok(())
    }

    fn check_above(&self, reconciler: &Reconciler, row: &NamespaceRow) -> Check {
        let is_nested = row.mapping().nested;
        ensure!(
            is_nested == row.above().is_some(),
            "what_is_nested_has_a_namespace_above_it",
            "{row:?}"
        );
        let mut rows = reconciler.namespaces();
        let is_there = rows.any(|other| {
            let mapping = other.mapping();
            row.above().is_some_and(|above| {
                (above.pns_inode, above.generation) == (mapping.pns_inode, mapping.generation)
            }) && !mapping.nested
                && other.phase() == Phase::Live
        });
        ensure!(
            !is_nested || row.phase() != Phase::Live || is_there,
            "a_nested_mapping_lives_no_longer_than_the_one_above_it",
            "{row:?}"
        );
        Ok(())
    }

    /// The tokens that the mappings hold, each once.
    pub(crate) fn tokens_of(reconciler: &Reconciler) -> Result<BTreeSet<FdToken>, String> {
        let mut tokens = BTreeSet::new();
        for token in reconciler.namespaces().filter_map(|row| row.fd()) {
            ensure_token(tokens.insert(token), token)?;
        }
        Ok(tokens)
    }

    /// What holds after a complete resync.
    pub(crate) fn after_resync(&self, world: &World, truth: &Truth) -> Check {
        let folded: Truth = self
            .folded
            .iter()
            .map(|(id, folded)| (id.clone(), folded.fields.clone()))
            .collect();
        for (id, fields) in truth {
            let told = folded.get(id);
            let is_true = told.is_some_and(|told| {
                let mut differing = told.changes_since(fields).into_iter();
                // A sandbox's times are those of its events; no list and no inspect tells them.
                let is_sandbox = fields.get("kind") == "sandbox";
                differing.all(|(name, _)| is_sandbox && TIMES.contains(&name))
            });
            ensure!(
                is_true,
                "a_complete_resync_gives_the_truth",
                "{id} is {fields:?}, told {told:?}"
            );
        }
        for id in folded.keys() {
            ensure!(
                truth.contains_key(id),
                "a_complete_resync_gives_the_truth",
                "{id} is gone, told {:?}",
                folded.get(id)
            );
        }
        ensure!(
            self.records == folded,
            "the_records_are_the_truth",
            "{:?} {folded:?}",
            self.records
        );
        self.mappings_are_the_truth(world)
    }

    fn mappings_are_the_truth(&self, world: &World) -> Check {
        let mut expected: BTreeMap<u64, BTreeSet<(&ContainerId, u32)>> = BTreeMap::new();
        for (pid, process) in &world.procs {
            if process.inode != HOST_PNS {
                let members = expected.entry(process.inode).or_default();
                members.insert((&process.container, *pid));
            }
        }
        let told: BTreeMap<_, BTreeSet<_>> = self
            .pns
            .iter()
            .filter(|(_, mapping)| mapping.valid_to_ms.is_none() && !mapping.nested)
            .map(|(inode, mapping)| {
                let members = mapping.members.iter();
                let members = members.map(|member| (&member.container_id, member.pid));
                (*inode, members.collect())
            })
            .collect();
        ensure!(
            told == expected,
            "the_mappings_are_the_truth",
            "{told:?} is not {expected:?}"
        );
        Ok(())
    }

    /// What holds after a look at all processes. What has ended and lingers may wait for its tombstone.
    pub(crate) fn after_look(&self, world: &World) -> Check {
        let mut expected = BTreeMap::new();
        for (pid, nest) in &world.nests {
            let is_owned = |above: &u64| {
                let mut processes = world.procs.values();
                processes.any(|process| process.namespace == *above)
            };
            if let Some(above) = world.above(nest.namespace).find(is_owned) {
                expected.insert(nest.inode, (*pid, above));
            }
        }
        for (inode, mapping) in self.pns.iter().filter(|(_, mapping)| mapping.nested) {
            let is_live = mapping.valid_to_ms.is_none();
            let known = expected.remove(inode);
            let is_right = known.is_some_and(|(pid, above)| {
                let mut lives = world.lives.iter();
                pid == mapping.owner.pid
                    && lives.any(|life| {
                        life.namespace == above && life.container == mapping.owner.container_id
                    })
            });
            ensure!(
                is_right || !is_live,
                "the_nested_mappings_are_the_truth",
                "{mapping:?} is not {known:?}"
            );
        }
        ensure!(
            expected.is_empty(),
            "the_nested_mappings_are_the_truth",
            "{expected:?} are not told"
        );
        Ok(())
    }

    /// What holds when every linger is over and acknowledged.
    pub(crate) fn after_linger(&self) -> Check {
        ensure!(
            self.ended.is_empty(),
            "every_mapping_that_ends_gets_its_tombstone",
            "{:?}",
            self.ended
        );
        Ok(())
    }

    /// What holds of the containers whose runtime's stream was whole.
    pub(crate) fn stories_are_whole(&self, world: &World) -> Check {
        for (id, container) in &world.containers {
            let story = self.stories.get(id).cloned().unwrap_or_default();
            ensure!(
                story.starts <= container.runs.len(),
                "no_run_is_invented",
                "{id}: {story:?} of {:?}",
                container.runs
            );
            if !container.is_clean {
                continue;
            }
            let exits: Vec<String> = container
                .runs
                .iter()
                .filter_map(|run| run.exit_code)
                .map(|code| match container.facts.kind {
                    ContainerKind::Container => code.to_string(),
                    ContainerKind::Sandbox => String::new(),
                })
                .collect();
            ensure!(
                story.creates == 1 && story.deletes == usize::from(container.is_removed),
                "whatever_was_seen_is_created_and_deleted_once",
                "{id}: {story:?}"
            );
            ensure!(
                story.starts == container.runs.len() && story.stops == exits,
                "every_run_has_its_start_and_its_stop",
                "{id}: {story:?} of {:?}",
                container.runs
            );
        }
        Ok(())
    }
}

fn ensure_token(is_new: bool, token: FdToken) -> Check {
    ensure!(
        is_new,
        "a_token_is_held_by_one_mapping",
        "{token:?} is held by two"
    );
    Ok(())
}

/// The rule of the contract, written a second time.
fn expected_owner(members: &[Member]) -> Option<&Member> {
    let containers = || {
        members
            .iter()
            .filter(|member| member.kind == ContainerKind::Container)
    };
    containers()
        .find(|member| member.is_init)
        .or_else(|| {
            let mut sorted: Vec<_> = containers().collect();
            sorted.sort_by_key(|member| (member.started_at_ms, member.container_id.clone()));
            sorted.first().copied()
        })
        .or(members.first())
}
