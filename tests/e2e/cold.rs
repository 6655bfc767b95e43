//! A collector that begins beside containers that run already.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::consume::Message;
use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::world::pns_of;

/// Containers of each runtime: enough for sketches.
const EACH: usize = 8;

#[test]
fn what_runs_already_is_told_by_its_namespace_before_it_is_inspected() -> Result<()> {
    let Some(host) = Host::usual(BusKind::Stdout)? else {
        return Ok(());
    };
    let (docker, cri) = (host.docker(), host.cri());
    let mut plain = BTreeMap::new();
    for number in 0..EACH {
        let id = docker.run_staying(&format!("web-{number}"), &[])?;
        let pid = docker.pid(&id)?;
        plain.insert(id, pid);
    }
    let mut asked = BTreeMap::new();
    for (name, mode) in [("debug", "--pid=container:web-0"), ("agent", "--pid=host")] {
        let id = docker.run_staying(name, &[mode])?;
        let pid = docker.pid(&id)?;
        asked.insert(id, pid);
    }
    let pod = cri.pod("pod", &[])?;
    for number in 0..EACH {
        let id = cri.run_staying(&pod, &format!("side-{number}"))?;
        let pid = cri.pid(&id)?;
        plain.insert(id, pid);
    }

    // containerd has kept the events of what was started for its first subscriber. They are taken out of the way.
    let collector = host.setup.start()?;
    host.converged("the first start")?;
    collector.stop()?;
    std::fs::remove_dir_all(host.setup.dir().join("state"))?;

    let collector = host.setup.start()?;
    host.told("the end of the second epoch's opening", |messages| {
        let mut ops = Vec::new();
        for message in messages.iter().filter(|message| message.topic == "deltas") {
            let delta = message.value.as_ref().context("a delta without a value")?;
            ops.extend(delta["op"].as_str());
        }
        ops.retain(|op| *op == "epoch" || *op == "snapshot_end");
        ensure!(ops == ["epoch", "snapshot_end"].repeat(2), "{ops:?}");
        Ok(())
    })?;
    // The truth of records and mappings, the shared namespace and the host's among them.
    let messages = host.converged("a cold start")?;
    collector.stop()?;

    let told = snapshots(&messages)?;
    for (id, pid) in plain.iter().chain(&asked) {
        let snapshot = told.get(id).with_context(|| format!("{id} is not told"))?;
        ensure!(field(snapshot, "pid") == pid.to_string(), "{snapshot}");
        ensure!(field(snapshot, "pns") == pns_of(*pid)?, "{snapshot}");
        let is_sketch = field(snapshot, "started_at_ms").is_empty();
        ensure!(is_sketch == plain.contains_key(id), "{snapshot}");
    }
    let filled = fold::fold(&messages)?;
    for id in plain.keys() {
        let container = &filled.containers[id];
        ensure!(!field(container, "started_at_ms").is_empty(), "{container}");
        let story = &filled.stories[id];
        let is_told = story.ends_with(&["snapshot".to_owned(), "update".to_owned()]);
        ensure!(is_told, "{id}: {story:?}");
    }
    Ok(())
}

/// The containers as the newest epoch's opening told them first.
fn snapshots(messages: &[Message]) -> Result<BTreeMap<String, Value>> {
    let mut told = BTreeMap::new();
    for message in messages.iter().filter(|message| message.topic == "deltas") {
        let delta = message.value.as_ref().context("a delta without a value")?;
        if delta["op"] == "epoch" {
            told.clear();
        }
        if delta["op"] == "snapshot" {
            let container = &delta["container"];
            told.insert(field(container, "id").to_owned(), container.clone());
        }
    }
    Ok(told)
}
