//! Judges what was found on the bus. Independent of the code under test: it knows JSON, and the promises of
//! docs/messages.md.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};

use serde_json::Value;

use crate::bus::{Found, Topic};
use crate::life::now_ms;
use crate::world::{Item, Kind, Owned, Step, World, owns};

/// Most complaints that are kept.
const COMPLAINTS_MAX: usize = 50;

/// What was told of one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    steps: Vec<Step>,
    /// A snapshot or a gap hides steps.
    is_cut: bool,
    is_there: bool,
    is_open: bool,
}

/// A reader's view of one host.
#[derive(Default)]
pub(crate) struct Oracle {
    /// Of a compacted topic only the newest message of each key is to be seen (a bucket of NATS).
    sees_newest_only: bool,
    epoch: String,
    epochs: Vec<String>,
    seq: u64,
    contents: HashMap<String, u64>,
    told: BTreeMap<String, Told>,
    /// The fold of all deltas: id to fields.
    pub(crate) fold: BTreeMap<String, Value>,
    /// Containers that the running snapshot has named.
    snapshot: Option<BTreeSet<String>>,
    /// After a gap, until its snapshot has ended.
    in_gap: bool,
    records: BTreeMap<String, Value>,
    mappings: BTreeMap<String, Value>,
    /// All puts of mappings, for the check against who owned what.
    puts: Vec<Value>,
    /// Mappings without an end that were tombstoned.
    bare_tombstones: Vec<Value>,
    /// A collector was killed, or lost what it had not committed: nothing holds the numbers of its namespaces any more.
    pub(crate) may_reuse: bool,
    /// Mappings whose ends the bus has lost: namespace and begin.
    endless: BTreeSet<(String, u64)>,
    /// Whether a line of the earlier epochs may still be in the compacted topics.
    pub(crate) lost_epochs: usize,
    pub(crate) complaints: Vec<String>,
    pub(crate) deltas: u64,
    pub(crate) doubled: u64,
    pub(crate) gaps: u64,
    pub(crate) messages: u64,
    pub(crate) tombstones: u64,
}

impl Oracle {
    pub(crate) fn new(sees_newest_only: bool) -> Self {
        Self {
            sees_newest_only,
            ..Self::default()
        }
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(complaint);
        }
    }

    pub(crate) fn take(&mut self, found: Found) {
        self.messages += 1;
        let is_doubled = self.is_doubled(&found);
        self.doubled += u64::from(is_doubled);
        match found.topic {
            Topic::Deltas => match found.value {
                Some(value) => self.delta(&value),
                None => self.complain("a delta without a value".to_owned()),
            },
            Topic::Records => match found.value {
                Some(value) => drop(self.records.insert(found.item, value)),
                None => drop(self.records.remove(&found.item)),
            },
            // A double comes after a crash, and repeats an older state for a moment; on stdout nothing tells.
            Topic::Pns => {
                let is_unnamed = found.ce_id.is_empty() && found.value.is_none();
                let is_next = !is_doubled && !is_unnamed && !self.sees_newest_only;
                self.mapping(found.item, found.value, is_next);
            }
        }
    }

    /// Whether its id was seen before; then its content must be what it was.
    fn is_doubled(&mut self, found: &Found) -> bool {
        if found.ce_id.is_empty() {
            return false;
        }
        let mut hasher = DefaultHasher::new();
        (&found.item, &found.text).hash(&mut hasher);
        let content = hasher.finish();
        match self.contents.insert(found.ce_id.clone(), content) {
            None => false,
            Some(earlier) => {
                if earlier != content {
                    self.complain(format!(
                        "two contents under one id {}: {}",
                        found.ce_id, found.text
                    ));
                }
                true
            }
        }
    }

    fn delta(&mut self, delta: &Value) {
        let epoch = text(delta, "epoch");
        let seq = delta["seq"].as_u64().unwrap_or(0);
        let from = delta["seq_from"].as_u64().unwrap_or(seq);
        let op = text(delta, "op");
        if epoch != self.epoch {
            if self.epochs.contains(&epoch) {
                return;
            }
            if op != "epoch" || from != 1 {
                self.complain(format!("epoch {epoch} opens with {op} {from}"));
            }
            self.epochs.push(epoch.clone());
            self.lost_epochs = self.epochs.len() - 1;
            self.epoch = epoch;
            self.seq = 0;
        }
        if seq <= self.seq {
            return;
        }
        let is_gap = op == "gap";
        if from != self.seq + 1 && !(is_gap && from <= self.seq) {
            self.complain(format!("after seq {} comes {op} {from}: {delta}", self.seq));
        }
        self.seq = seq;
        self.deltas += 1;
        self.fold_delta(&op, delta);
    }

    fn fold_delta(&mut self, op: &str, delta: &Value) {
        let container = &delta["container"];
        let id = text(container, "id");
        match op {
            "epoch" => {
                self.fold.clear();
                for told in self.told.values_mut() {
                    told.is_there = false;
                    told.is_open = false;
                    told.is_cut = true;
                }
                self.snapshot = Some(BTreeSet::new());
            }
            "gap" => {
                self.gaps += 1;
                self.in_gap = true;
                // One that stands for a refused line of a snapshot is within it: the snapshot goes on.
                if delta["reason"] != "quarantine" {
                    self.snapshot = None;
                }
                for told in self.told.values_mut() {
                    told.is_cut = true;
                }
            }
            "snapshot_end" => {
                self.in_gap = false;
                let named = self.snapshot.take().unwrap_or_default();
                self.fold.retain(|id, _| named.contains(id));
                for (id, told) in &mut self.told {
                    told.is_there &= named.contains(id);
                }
            }
            "create" | "snapshot" | "start" | "stop" | "update" | "delete" => {
                self.tell(op, &id, container);
                if op == "snapshot" {
                    self.snapshot.get_or_insert_default();
                }
                if let Some(named) = &mut self.snapshot {
                    match op {
                        "delete" => drop(named.remove(&id)),
                        "snapshot" | "create" => drop(named.insert(id.clone())),
                        _ => {}
                    }
                }
                match op {
                    "delete" => drop(self.fold.remove(&id)),
                    _ => drop(self.fold.insert(id, container.clone())),
                }
            }
            other => self.complain(format!("an op that nobody promised: {other}")),
        }
    }

    /// No start without its create, no stop without its start, no delete of what runs.
    fn tell(&mut self, op: &str, id: &str, container: &Value) {
        let in_gap = self.in_gap;
        let told = self.told.entry(id.to_owned()).or_default();
        let is_wrong = match op {
            "create" => told.is_there,
            "snapshot" => false,
            "start" => !told.is_there || told.is_open,
            "stop" => !told.is_there || !told.is_open,
            "delete" => !told.is_there || told.is_open,
            _ => !told.is_there,
        };
        let was = (told.is_there, told.is_open);
        match op {
            "create" => {
                told.is_there = true;
                told.is_open = false;
                told.steps.push(Step::Create);
            }
            "snapshot" => {
                told.is_there = true;
                told.is_open = matches!(text(container, "state").as_str(), "running" | "paused");
                told.is_cut = true;
            }
            "start" => {
                told.is_open = true;
                let pid = text(container, "pid").parse().unwrap_or(0);
                told.steps.push(Step::Start(pid));
            }
            "stop" => {
                told.is_open = false;
                told.steps.push(Step::Stop);
            }
            "delete" => {
                told.is_there = false;
                told.is_open = false;
                told.steps.push(Step::Delete);
            }
            _ => {}
        }
        if is_wrong && !in_gap {
            let steps = told.steps.clone();
            self.complain(format!(
                "{op} of {id} (there, open: {was:?}) at seq {}: {steps:?}",
                self.seq
            ));
        }
    }

    /// What follows what is only judged where it is known to do so.
    fn mapping(&mut self, inode: String, value: Option<Value>, is_next: bool) {
        let earlier = match &value {
            Some(value) => self.mappings.insert(inode, value.clone()),
            None => self.mappings.remove(&inode),
        };
        let earlier = earlier.filter(|_| is_next);
        let Some(value) = value else {
            self.tombstones += 1;
            // Judged at a checkpoint: between topics there is no order.
            if let Some(earlier) = earlier
                && earlier["valid_to_ms"].is_null()
            {
                self.bare_tombstones.push(earlier);
            }
            return;
        };
        if let Some(earlier) = earlier
            && earlier["epoch"] == value["epoch"]
            && is_other_namespace(&earlier, &value)
        {
            let ended = earlier["valid_to_ms"].as_u64();
            let began = value["valid_from_ms"].as_u64().unwrap_or(0);
            let is_free = match ended {
                Some(ended_ms) => ended_ms <= began + 50,
                None => self.endless.contains(&namespace_and_begin(&earlier)),
            };
            if !is_free {
                self.complain(format!(
                    "a number goes to another before it is free: {earlier} then {value}"
                ));
            } else if !self.may_reuse {
                self.complain(format!(
                    "a number goes to another, and no tombstone is between: {earlier} then {value}"
                ));
            }
        }
        self.puts.push(value);
    }

    /// The mappings that are open on the bus now.
    pub(crate) fn open_mappings(&self) -> BTreeSet<(String, u64)> {
        let mappings = self.mappings.values();
        let open = mappings.filter(|mapping| mapping["valid_to_ms"].is_null());
        open.map(namespace_and_begin).collect()
    }

    /// The bus is one that was put back to when these were open: their ends may be lost, with the tombstones behind them.
    pub(crate) fn lost_ends_of(&mut self, open: BTreeSet<(String, u64)>) {
        self.endless = open;
    }

    /// What an earlier epoch left, or an earlier copy of the bus, is tombstoned by one that knows nothing of its end any
    /// more; all else has its end first.
    pub(crate) fn check_tombstones(&mut self) {
        for earlier in std::mem::take(&mut self.bare_tombstones) {
            let is_endless = self.endless.contains(&namespace_and_begin(&earlier));
            if self.is_of_this_epoch(&earlier) && !is_endless {
                self.complain(format!("a tombstone, and no end before it: {earlier}"));
            }
        }
    }

    /// No mapping names a container that did not own that namespace at that time.
    pub(crate) fn check_owners(&mut self, owned: &[Owned]) -> u64 {
        let puts = std::mem::take(&mut self.puts);
        let mut wrong = 0;
        for put in &puts {
            let inode = put["pns_inode"].as_u64().unwrap_or(0);
            let valid_from_ms = put["valid_from_ms"].as_u64().unwrap_or(0);
            let valid_to_ms = put["valid_to_ms"].as_u64();
            let members = put["members"].as_array().cloned().unwrap_or_default();
            for named in members.iter().chain([put]) {
                let (container, pid) = (text(named, "container_id"), named["pid"].as_u64());
                let is_right = owned.iter().any(|owner| {
                    owner.inode == inode
                        && owner.container == container
                        && Some(u64::from(owner.pid)) == pid
                        && owns(owner, owned, valid_from_ms, valid_to_ms)
                });
                if !is_right {
                    wrong += 1;
                    let owners: Vec<_> =
                        owned.iter().filter(|owned| owned.inode == inode).collect();
                    self.complain(format!(
                        "wrong owner at {}: {put}; true: {owners:?}",
                        now_ms()
                    ));
                }
            }
        }
        wrong
    }

    /// How the fold and the compacted topics differ from the truth.
    pub(crate) fn differences(&self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (id, item) in &world.items {
            let expected = expected_fields(item);
            let record = self.records.get(id).map(|record| &record["fields"]);
            for (place, found) in [("deltas", self.fold.get(id)), ("records", record)] {
                let Some(found) = found else {
                    all.push(format!("{place} lack {} {id}", item.name));
                    continue;
                };
                for (field, value) in &expected {
                    if found[*field] != value.as_str() {
                        all.push(format!(
                            "{place}: {field} of {} {id} is {} and not {value}",
                            item.name, found[*field]
                        ));
                    }
                }
            }
            if let Some(life) = &item.life {
                let found = self.mappings.get(&life.inode.to_string());
                let is_right = found.is_some_and(|found| {
                    text(found, "container_id") == *id
                        && found["pid"].as_u64() == Some(u64::from(life.pid))
                        && found["valid_to_ms"].is_null()
                });
                if !is_right {
                    all.push(format!("no mapping of {} {id}: {found:?}", item.name));
                }
            }
        }
        let is_there = |id: &&String| !world.items.contains_key(*id);
        for id in self.fold.keys().filter(is_there) {
            all.push(format!("the deltas still have {id}"));
        }
        for (id, record) in &self.records {
            if is_there(&id) && self.is_of_this_epoch(&record["fields"]) {
                all.push(format!("a record of what is gone: {id}"));
            }
        }
        let live: BTreeSet<String> = world
            .items
            .values()
            .filter_map(|item| item.life.as_ref())
            .map(|life| life.inode.to_string())
            .collect();
        for (inode, mapping) in &self.mappings {
            if !live.contains(inode) && self.is_of_this_epoch(mapping) {
                all.push(format!("a mapping that has no tombstone: {mapping}"));
            }
        }
        if self.snapshot.is_some() {
            all.push("a snapshot that has not ended".to_owned());
        }
        all
    }

    /// What a lost state left on the bus is not known to anyone but its reader, until it expires.
    fn is_of_this_epoch(&self, value: &Value) -> bool {
        text(value, "epoch") == self.epoch
    }

    /// How many lines of lost epochs stand in the compacted topics.
    pub(crate) fn stale(&self) -> usize {
        let records = self.records.values().map(|record| &record["fields"]);
        let all = records.chain(self.mappings.values());
        all.filter(|value| !self.is_of_this_epoch(value)).count()
    }

    /// Every step of those whose life was undisturbed: how many steps that were, and what is wrong.
    pub(crate) fn check_stories(&self, world: &World) -> (u64, Vec<String>) {
        let (mut checked, mut lost) = (0, Vec::new());
        let items: Vec<&Item> = world.items.values().chain(&world.gone).collect();
        for item in items {
            if !world.is_owed_whole(item) {
                continue;
            }
            let told = self.told.get(&item.id).cloned().unwrap_or_default();
            if told.is_cut {
                continue;
            }
            checked += item.story.len() as u64;
            if !is_same_story(&item.story, &told.steps) {
                lost.push(format!(
                    "{} {} was to be told {:?}, and was told {:?}; {} ms since its last change",
                    item.name,
                    item.id,
                    item.story,
                    told.steps,
                    item.last_change_ms_ago()
                ));
            }
        }
        for id in self.told.keys().filter(|id| !world.ids.contains(*id)) {
            lost.push(format!("a container that never was: {id}"));
        }
        (checked, lost)
    }
}

/// A pid that nobody could see may be missing.
fn is_same_story(truth: &[Step], told: &[Step]) -> bool {
    truth.len() == told.len()
        && truth.iter().zip(told).all(|pair| match pair {
            (Step::Start(truth), Step::Start(told)) => truth == told || *told == 0,
            (truth, told) => truth == told,
        })
}

fn is_other_namespace(one: &Value, other: &Value) -> bool {
    let differs = |field: &str| one[field] != other[field];
    match text(one, "pns_id").as_str() {
        "" => differs("container_id"),
        _ => differs("pns_id"),
    }
}

fn expected_fields(item: &Item) -> Vec<(&'static str, String)> {
    let (pid, pns) = match &item.life {
        Some(life) => (life.pid.to_string(), format!("pid:[{}]", life.inode)),
        None => (String::new(), String::new()),
    };
    let runtime = match item.kind {
        Kind::Docker => "docker",
        Kind::Sandbox | Kind::Cri(_) => "cri",
    };
    let kind = match item.kind {
        Kind::Sandbox => "sandbox",
        Kind::Docker | Kind::Cri(_) => "container",
    };
    let mut expected = vec![
        ("id", item.id.clone()),
        ("name", item.name.clone()),
        ("state", item.word().to_owned()),
        ("pid", pid),
        ("pns", pns),
        ("runtime", runtime.to_owned()),
        ("kind", kind.to_owned()),
    ];
    if let (Some(code), Kind::Docker | Kind::Cri(_)) = (item.exit_code, &item.kind) {
        expected.push(("exit_code", code.to_string()));
    }
    expected
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn namespace_and_begin(mapping: &Value) -> (String, u64) {
    let begin_ms = mapping["valid_from_ms"].as_u64().unwrap_or(0);
    (text(mapping, "pns_id"), begin_ms)
}
