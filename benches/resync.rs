//! The resync of real containers against listing and inspecting each of them one after another.

use std::time::Instant;

use anyhow::Context as _;
use quaymaster::runtime::{Endpoint, Inspection};

use crate::daemon::{Counting, Daemon, Keys, cpu_seconds, endpoints, new_folder, runtime_pids};

const ROUNDS: u32 = 20;

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    wall_ms: f64,
    cpu_ms: f64,
    calls: f64,
    containers: usize,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(compare())
}

async fn compare() -> anyhow::Result<()> {
    let endpoints = endpoints()?;
    let naive = one_inspect_each(&endpoints).await?;
    println!(
        "== resync of {} real containers, {ROUNDS} rounds each",
        naive.containers
    );
    let (told, cold) = without_state(&endpoints).await?;
    let (restarted, steady) = with_state(&endpoints).await?;
    for (name, cost) in [
        ("one inspect each", naive),
        ("cold, until every container and mapping is told", told),
        ("cold, until every field is filled", cold),
        ("after a restart, with the state kept", restarted),
        ("steady", steady),
    ] {
        println!(
            "{name}: {:.1} ms wall, {:.1} ms of the runtimes' CPU, {:.0} calls",
            cost.wall_ms, cost.cpu_ms, cost.calls
        );
    }
    println!(
        "ratio steady / one inspect each: wall {:.3}, runtimes' CPU {:.3}, calls {:.4} (goal 0.1)",
        steady.wall_ms / naive.wall_ms,
        steady.cpu_ms / naive.cpu_ms,
        steady.calls / naive.calls
    );
    for (name, cost) in [
        ("without a state, all told", told),
        ("without a state, all filled", cold),
        ("after a restart", restarted),
    ] {
        println!(
            "ratio cold {name}, / one inspect each: wall {:.3} (goal 0.25), runtimes' CPU {:.3}",
            cost.wall_ms / naive.wall_ms,
            cost.cpu_ms / naive.cpu_ms
        );
    }
    Ok(())
}

async fn one_inspect_each(endpoints: &[Endpoint]) -> anyhow::Result<Cost> {
    let pids = runtime_pids()?;
    let mut clients = Vec::new();
    for endpoint in endpoints {
        clients.push(quaymaster::runtime::connect(endpoint).await?);
    }
    let mut cost = Cost::default();
    let before = cpu_seconds(&pids)?;
    let began = Instant::now();
    for _ in 0..ROUNDS {
        cost.containers = 0;
        for client in &clients {
            cost.calls += 1.0;
            for row in client.list().await?.rows {
                cost.calls += 1.0;
                if let Inspection::Found(_) = client.inspect(&row.id, row.kind).await? {
                    cost.containers += 1;
                }
            }
        }
    }
    average(
        &mut cost,
        began.elapsed().as_secs_f64(),
        cpu_seconds(&pids)? - before,
        ROUNDS,
    );
    Ok(cost)
}

/// From the first connection, with nothing known before: until each container has its record and each namespace its
/// mapping, and until all that the runtimes know is in them.
async fn without_state(endpoints: &[Endpoint]) -> anyhow::Result<(Cost, Cost)> {
    let pids = runtime_pids()?;
    let rounds = ROUNDS / 4;
    // The first subscriber for a while gets five minutes of containerd's old events; they are not measured.
    let all = drain_old_events(endpoints).await?;
    let (mut told, mut filled) = (Cost::default(), Cost::default());
    let (mut told_sum, mut filled_sum) = ((0.0, 0.0), (0.0, 0.0));
    for _ in 0..rounds {
        // An empty folder is there, as a package or the service manager leaves it.
        let folder = new_folder()?;
        let before = cpu_seconds(&pids)?;
        let began = Instant::now();
        let (sink, mut told_keys) = Counting::new(all);
        let mut daemon = Daemon::restart(endpoints, Box::new(sink), folder).await?;
        let told_at = told_keys
            .wait_for(|told| told.all_at.is_some())
            .await?
            .all_at;
        let told_at = told_at.context("it has a time")?;
        told_sum.0 += (told_at - began).as_secs_f64();
        told_sum.1 += cpu_seconds(&pids)? - before;
        told.calls += count(daemon.calls());
        daemon.settled().await?;
        filled_sum.0 += began.elapsed().as_secs_f64();
        filled_sum.1 += cpu_seconds(&pids)? - before;
        filled.calls += count(daemon.calls());
        daemon.end().await?;
    }
    average(&mut told, told_sum.0, told_sum.1, rounds);
    average(&mut filled, filled_sum.0, filled_sum.1, rounds);
    Ok((told, filled))
}

/// Gives the keys of records and mappings that such a host has.
async fn drain_old_events(endpoints: &[Endpoint]) -> anyhow::Result<Keys> {
    let (sink, told) = Counting::new(Keys::default());
    let mut daemon = Daemon::start(endpoints, Box::new(sink)).await?;
    daemon.settled().await?;
    daemon.end().await?;
    let keys = told.borrow().keys;
    Ok(keys)
}

/// A restart of the collector with its state, and resyncs of one that runs.
async fn with_state(endpoints: &[Endpoint]) -> anyhow::Result<(Cost, Cost)> {
    let pids = runtime_pids()?;
    let mut daemon = Daemon::start(endpoints, Box::new(crate::latency::Nowhere)).await?;
    daemon.settled().await?;
    let mut state = daemon.end().await?;
    let rounds = ROUNDS / 4;
    let (mut restarted, mut wall, mut cpu) = (Cost::default(), 0.0, 0.0);
    for _ in 0..rounds {
        let before = cpu_seconds(&pids)?;
        let began = Instant::now();
        daemon = Daemon::restart(endpoints, Box::new(crate::latency::Nowhere), state).await?;
        daemon.listed(endpoints.len()).await?;
        wall += began.elapsed().as_secs_f64();
        cpu += cpu_seconds(&pids)? - before;
        restarted.calls += count(daemon.calls());
        state = daemon.end().await?;
    }
    average(&mut restarted, wall, cpu, rounds);

    daemon = Daemon::restart(endpoints, Box::new(crate::latency::Nowhere), state).await?;
    daemon.listed(endpoints.len()).await?;
    // The first list after events differs from the one before; the second is steady.
    daemon.resync().await?;
    let mut steady = Cost::default();
    let calls_before = daemon.calls();
    let before = cpu_seconds(&pids)?;
    let began = Instant::now();
    for _ in 0..ROUNDS {
        daemon.resync().await?;
    }
    let wall = began.elapsed().as_secs_f64();
    steady.calls = count(daemon.calls() - calls_before);
    average(&mut steady, wall, cpu_seconds(&pids)? - before, ROUNDS);
    daemon.end().await?;
    Ok((restarted, steady))
}

fn count(calls: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let calls = calls as f64;
    calls
}

fn average(cost: &mut Cost, wall_seconds: f64, cpu_seconds: f64, rounds: u32) {
    cost.wall_ms = wall_seconds * 1_000.0 / f64::from(rounds);
    cost.cpu_ms = cpu_seconds * 1_000.0 / f64::from(rounds);
    cost.calls /= f64::from(rounds);
}
