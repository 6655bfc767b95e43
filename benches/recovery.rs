//! The start with a full outbox: how long until the bus has its first message, and how much memory that takes.
//!
//! A process of its own fills the state through the reconciler and the outbox, in groups, as if the bus were
//! away, and is killed: the real binary finds what a crash leaves. Its bus is stdout, a pipe that is read here.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use quaymaster::model::message::Message;
use quaymaster::outbox::{Batch, Gap, Options, Outbox, Owner, render};
use quaymaster::reconcile::Effect;

use crate::synthetic::{GROUP, NOW_MS, life, opening, reconciler, renderer};

const HOST: &str = "bench-recovery";
/// How full it is, of the default limit of 1 GiB: just below what would drop.
const FULL_PERCENT: u64 = 99;
/// PID namespaces of containers that ended and are held, as many as a collector holds.
const NAMESPACES: u64 = 4_096;
/// The whole of it is to be through in this time.
const TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(
        std::env::var("QUAYMASTER_BENCH_DIR").unwrap_or_else(|_| "/var/tmp".to_owned()),
    )?;
    let filling = Command::new(std::env::current_exe()?)
        .arg("recovery-fill")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()?
        .wait_with_output()?;
    let said = String::from_utf8(filling.stdout)?;
    let figures: Vec<u64> = said
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("the filling process says what it owes")?;
    let [messages, deltas, bytes] = figures[..] else {
        anyhow::bail!("the filling process failed: {said}");
    };
    println!(
        "== recovery with a full outbox after a kill: {:.2} GiB owed, {messages} messages, {deltas} of them deltas",
        gib(bytes)
    );
    start(directory.path(), messages, deltas)
}

/// Fills the state, says what it owes, and kills itself. Called in a process of its own.
pub(crate) fn fill(directory: &Path) -> anyhow::Result<()> {
    let owner = Owner {
        host_id: HOST.into(),
        boot_id: "boot".into(),
        new_epoch: "epoch".to_owned(),
    };
    let options = Options::default();
    let full = options.bytes_max / 100 * FULL_PERCENT;
    let mut opened = Outbox::open(directory, &owner, options)?;
    let renderer = renderer(HOST);
    let mut reconciler = reconciler(std::mem::take(&mut opened.restored));
    let mut outbox = opened.outbox;
    let gap = |gap: &Gap| renderer.render_gap(gap, NOW_MS);
    let mut batch = Batch::default();
    let mut messages: Vec<(u64, Message)> = Vec::new();
    let mut observations = opening();
    let mut number = 0;
    while outbox.totals().bytes < full {
        for observation in std::mem::take(&mut observations) {
            for effect in reconciler.handle(observation, NOW_MS) {
                match effect {
                    Effect::Publish(message) => messages.push((outbox.take_row(), message)),
                    Effect::SaveRow(key) => {
                        batch.rows.insert(key);
                    }
                    Effect::List { .. }
                    | Effect::Inspect { .. }
                    | Effect::ReadProcess { .. }
                    | Effect::FindNested(_)
                    | Effect::ReleaseNamespace(_) => {}
                }
            }
        }
        if messages.len() >= GROUP {
            batch.messages = render(std::mem::take(&mut messages), &renderer, NOW_MS);
            outbox.commit(std::mem::take(&mut batch), &reconciler, NOW_MS, &gap)?;
        }
        observations = life(number, number % NAMESPACES)?;
        number += 1;
    }
    let totals = outbox.totals();
    println!("{} {} {}", totals.messages, totals.deltas, totals.bytes);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Ok(())
}

fn start(directory: &Path, messages: u64, deltas: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(["run", "--host-id", HOST, "--log", "error", "--state-dir"])
        .arg(directory)
        .arg("--endpoint")
        .arg(format!("docker=unix://{}/none.sock", directory.display()))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("stdout is a pipe")?;
    let mut lines = BufReader::with_capacity(1 << 20, output);
    let (mut first, mut read, mut last_seq) = (None, 0_u64, 0);
    let mut line = String::new();
    while last_seq < deltas && began.elapsed() < TIMEOUT {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "the collector has ended");
        first.get_or_insert_with(|| began.elapsed());
        read += 1;
        if let Some(seq) = seq_of(&line) {
            ensure!(seq == last_seq + 1, "delta {seq} follows {last_seq}");
            last_seq = seq;
        }
    }
    let drained = began.elapsed();
    let peak_mb = status_mb(child.id(), "VmHWM:")?;
    child.kill()?;
    child.wait()?;
    ensure!(
        last_seq >= deltas,
        "only {last_seq} of {deltas} deltas came"
    );
    let first = first.unwrap_or_default();
    println!(
        "first send after {:.2} s (goal 60 s); peak resident {peak_mb:.1} MB (goal 128 MB)",
        first.as_secs_f64()
    );
    #[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
    let rate = read as f64 / drained.as_secs_f64();
    println!(
        "all {deltas} deltas in order, {read} of {messages} messages by then, after {:.1} s ({rate:.0} messages/s)",
        drained.as_secs_f64()
    );
    Ok(())
}

/// The seq of a line of the deltas topic.
fn seq_of(line: &str) -> Option<u64> {
    if !line.starts_with(r#"{"topic":"quaymaster.deltas""#) {
        return None;
    }
    let (_, rest) = line.split_once(r#","seq":"#)?;
    let (digits, _) = rest.split_once(',')?;
    digits.parse().ok()
}

/// A size that `/proc` tells of a process, in MB.
pub(crate) fn status_mb(pid: u32, name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .context("a process has its sizes")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1_024.0)
}

#[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
