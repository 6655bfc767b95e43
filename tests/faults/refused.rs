//! A delta that the bus refuses for what it is: a gap stands in its place, and it waits in quarantine for a person.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::admin::alter;
use crate::bus::{Bus, Found, Topic};
use crate::course::{Course, Setup, can_unshare};
use crate::daemon::binary;
use crate::fake_docker::{FakeContainer, ZERO_TIME};
use crate::lab::{Broker, fresh_topics};
use crate::life::now_ns;
use crate::prng::Prng;

/// What the topic of the deltas takes: ordinary ones, and not the large one.
const MESSAGE_BYTES_MAX: &str = "16384";
/// Labels of the large container. The collector publishes the first 32 KiB of them.
const LABELS: usize = 64;
const LABEL_BYTES: usize = 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_that_kafka_finds_too_large_waits_for_a_person() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix;
    let bus = || Bus::kafka(&broker.servers[0], &prefix);
    let mut course = Course::start(Setup::new("refused delta, Kafka", Some(bus()))).await?;
    course.live(20).await?;
    course.converge().await?;
    let topic = format!("{prefix}.deltas");
    alter(
        &broker.servers,
        &topic,
        "max.message.bytes",
        MESSAGE_BYTES_MAX,
    )
    .await?;
    let large = large_container(&mut course.rng);
    course.count("delta too large");
    course.world.docker.put(&large);
    let attributes = json!({"name": large.name, "image": "nginx:1.21"});
    course
        .world
        .docker
        .push_event(&large.id, "create", now_ns(), &attributes);
    // The create is refused, and so is its part of the snapshot that follows.
    let others: BTreeSet<String> = course.world.items.keys().cloned().collect();
    course
        .until("all others behind two gaps", |oracle| {
            oracle.gaps == 2 && oracle.fold.keys().eq(&others)
        })
        .await?;
    let mut read = Vec::new();
    bus().read(&mut read).await?;
    let deltas: Vec<&Value> = read.iter().filter_map(delta).collect();
    for gap in deltas.iter().filter(|delta| delta["op"] == "gap") {
        anyhow::ensure!(gap["reason"] == "quarantine", "{gap}");
        anyhow::ensure!(gap["seq"] == gap["seq_from"], "{gap}");
    }
    let status = course.daemon.terminate()?;
    anyhow::ensure!(status.success(), "quaymaster ended with {status}");

    let shown = outbox(&["show"], &course.state_dir)?;
    let row = shown
        .lines()
        .find(|line| line.starts_with("quarantine   deltas"));
    let count = row.and_then(|row| row.split_whitespace().nth(2));
    anyhow::ensure!(count == Some("2"), "{shown}");
    let exported = outbox(&["export"], &course.state_dir)?;
    let mut ops = Vec::new();
    for line in exported.lines() {
        let line: Value = serde_json::from_str(line)?;
        let reason = line["reason"].as_str().unwrap_or_default();
        anyhow::ensure!(reason.contains("too large"), "{reason}");
        anyhow::ensure!(line["value"]["container"]["id"] == large.id, "{line}");
        ops.push(line["value"]["op"].as_str().unwrap_or_default().to_owned());
    }
    anyhow::ensure!(ops == ["create", "snapshot"], "{ops:?}");
    let kept = outbox_command(&["drop"], &course.state_dir)?;
    anyhow::ensure!(kept.status.code() == Some(1), "{kept:?}");
    let dropped = outbox(&["drop", "--yes"], &course.state_dir)?;
    anyhow::ensure!(dropped == "2 messages dropped\n", "{dropped}");
    let exported = outbox(&["export"], &course.state_dir)?;
    anyhow::ensure!(exported.is_empty(), "{exported}");
    Ok(())
}

/// One with labels that nothing compresses.
fn large_container(rng: &mut Prng) -> FakeContainer {
    let mut labels = BTreeMap::new();
    for number in 0..LABELS {
        let mut value = String::new();
        while value.len() < LABEL_BYTES {
            value.push_str(&format!("{:08x}", rng.below(1 << 32)));
        }
        labels.insert(format!("label-{number}"), value);
    }
    FakeContainer {
        state: "created".to_owned(),
        started_at: ZERO_TIME.to_owned(),
        labels,
        ..FakeContainer::running(&"f".repeat(64), "large", 0)
    }
}

fn delta(found: &Found) -> Option<&Value> {
    match found.topic {
        Topic::Deltas => found.value.as_ref(),
        Topic::Records | Topic::Pns => None,
    }
}

/// What `quaymaster outbox` prints where it succeeds.
fn outbox(arguments: &[&str], state_dir: &Path) -> anyhow::Result<String> {
    let output = outbox_command(arguments, state_dir)?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn outbox_command(arguments: &[&str], state_dir: &Path) -> anyhow::Result<Output> {
    let output = Command::new(binary())
        .arg("outbox")
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}
