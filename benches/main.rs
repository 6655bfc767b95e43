//! Benchmarks: each compares in one run, and prints figures and ratios. `make bench` runs them all.
//!
//! `synthetic`, `enrich`, `recovery` and `processes` need nothing. `fleet` fills a real Kafka with a whole fleet, takes
//! minutes, and runs only when it is named. The others need real runtimes (`latency` and `early` a real Kafka too)
//! that `benches/run` starts through `tests/lab` and names in the environment.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod daemon;
mod early;
mod enrich;
mod fleet;
mod latency;
mod memory;
mod processes;
mod recovery;
mod resync;
mod synthetic;

#[global_allocator]
static ALLOCATOR: enrich::Counting = enrich::Counting;

fn main() -> anyhow::Result<()> {
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    // A part of `recovery` in a process of its own.
    if let [name, directory] = &names[..]
        && name == "recovery-fill"
    {
        return recovery::fill(directory.as_ref());
    }
    let wants = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if wants("synthetic") {
        synthetic::run()?;
    }
    if wants("recovery") {
        recovery::run()?;
    }
    if wants("processes") {
        processes::run()?;
    }
    if wants("enrich") {
        enrich::run()?;
    }
    if wants("resync") {
        resync::run()?;
    }
    if wants("latency") {
        latency::run()?;
    }
    if wants("early") {
        early::run()?;
    }
    if wants("memory") {
        memory::run()?;
    }
    if names.iter().any(|name| name == "fleet") {
        fleet::run()?;
    }
    Ok(())
}

/// The p-th part of sorted values, by nearest rank.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let last = sorted.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = (part * last as f64).round() as usize;
    sorted[index.min(last)]
}

/// A line of percentiles, in milliseconds.
pub(crate) fn print_distribution(name: &str, mut values_ms: Vec<f64>) {
    values_ms.sort_by(f64::total_cmp);
    println!(
        "{name}: n {}, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        values_ms.len(),
        percentile(&values_ms, 0.50),
        percentile(&values_ms, 0.90),
        percentile(&values_ms, 0.99),
        percentile(&values_ms, 1.0),
    );
}
