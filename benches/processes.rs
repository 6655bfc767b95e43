//! A snapshot of many real processes: read, told their containers, and rendered as JSON; and a look at them for nested namespaces.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use quaymaster::local::nested::look_at;
use quaymaster::local::scan::{Scene, look};
use quaymaster::procfs::ProcessTable;
use quaymaster::reconcile::NestedQuery;
use quaymaster::wire::Host;
use quaymaster::wire::local::Snapshot;

use crate::print_distribution;

/// Processes that are there when it is measured, with those that were before.
const PROCESSES: usize = 5_000;
const ROUNDS: u32 = 20;

pub(crate) fn run() -> anyhow::Result<()> {
    let table = ProcessTable::open(Path::new("/proc"))?;
    let before = Scene::read(&table, Vec::new())?.processes.len();
    let mut sleepers = Sleepers(Vec::new());
    for _ in before..PROCESSES {
        let sleeper = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()?;
        sleepers.0.push(sleeper);
    }
    let host = Host {
        host_id: "bench".into(),
        host_name: "bench".into(),
        boot_id: "b007".into(),
        epoch: "".into(),
    };
    let (mut count, mut bytes) = (0, 0);
    let mut rounds_ms = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let mut scene = Scene::read(&table, Vec::new())?;
        let snapshot = Snapshot::new(host.clone(), 1_700_000_000_000);
        let look = look(&table);
        for process in &scene.processes {
            let owner = scene.tenants.owner(process, &look);
            bytes += snapshot
                .process(process, owner.as_ref().map(|owner| &*owner.container))
                .len();
        }
        count += scene.processes.len();
        rounds_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let total_ms: f64 = rounds_ms.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (count, bytes) = (count as f64, bytes as f64);
    let rounds = f64::from(ROUNDS);
    println!(
        "== a snapshot of {:.0} processes, read, attributed and rendered",
        count / rounds
    );
    println!(
        "{:.0} processes/s, {:.0} bytes of JSON each",
        count / total_ms * 1e3,
        bytes / count
    );
    print_distribution("a snapshot", rounds_ms);
    looks(&table)
}

/// What a resync's look for nested namespaces costs, where there are none.
fn looks(table: &ProcessTable) -> anyhow::Result<()> {
    let query = NestedQuery::default();
    let mut rounds_ms = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        look_at(table, &query)?;
        rounds_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    print_distribution("a look for nested namespaces at the same", rounds_ms);
    Ok(())
}

/// Ends them all.
struct Sleepers(Vec<Child>);

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}
