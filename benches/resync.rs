//! The resync of real containers against listing and inspecting each of them one after another.

use std::time::Instant;

use quaymaster::runtime::{Endpoint, Inspection};

use crate::daemon::{Daemon, cpu_seconds, endpoints, runtime_pids};

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
    let (cold, steady) = ours(&endpoints).await?;
    for (name, cost) in [
        ("one inspect each", naive),
        ("cold", cold),
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
    println!(
        "ratio cold / one inspect each: wall {:.3} (goal 0.25), runtimes' CPU {:.3}",
        cold.wall_ms / naive.wall_ms,
        cold.cpu_ms / naive.cpu_ms
    );
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

async fn ours(endpoints: &[Endpoint]) -> anyhow::Result<(Cost, Cost)> {
    let pids = runtime_pids()?;
    let mut cold = Cost::default();
    let cold_rounds = ROUNDS / 4;
    let mut wall = 0.0;
    let mut cpu = 0.0;
    for _ in 0..cold_rounds {
        let before = cpu_seconds(&pids)?;
        let began = Instant::now();
        let mut daemon = Daemon::start(endpoints, Box::new(crate::latency::Nowhere)).await?;
        daemon.settled().await?;
        wall += began.elapsed().as_secs_f64();
        cpu += cpu_seconds(&pids)? - before;
        // Ours are counted as requests; a list of CRI is two calls (sandboxes and containers) on either side.
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let calls = daemon.calls() as f64;
        cold.calls += calls;
        daemon.end().await?;
    }
    average(&mut cold, wall, cpu, cold_rounds);

    let mut daemon = Daemon::start(endpoints, Box::new(crate::latency::Nowhere)).await?;
    daemon.settled().await?;
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
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let calls = (daemon.calls() - calls_before) as f64;
    steady.calls = calls;
    average(&mut steady, wall, cpu_seconds(&pids)? - before, ROUNDS);
    daemon.end().await?;
    Ok((cold, steady))
}

fn average(cost: &mut Cost, wall_seconds: f64, cpu_seconds: f64, rounds: u32) {
    cost.wall_ms = wall_seconds * 1_000.0 / f64::from(rounds);
    cost.cpu_ms = cpu_seconds * 1_000.0 / f64::from(rounds);
    cost.calls /= f64::from(rounds);
}
