//! Mappings of containers that live for some milliseconds, and of a host that is full when the collector starts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use crate::consume::Message;
use crate::fold;
use crate::host::{BusKind, Host};
use crate::sight;

/// How many containers come and go at each runtime.
const BLINKS: usize = 15;

#[test]
fn a_container_that_lives_for_milliseconds_has_its_mapping() -> Result<()> {
    let Some(mut host) = Host::usual(BusKind::Kafka)? else {
        return Ok(());
    };
    host.setup = host.setup.with(&["--listen", "127.0.0.1:0"]);
    let pod = host.cri().pod("blinks", &["--runtime", "observed"])?;
    let collector = host.setup.start()?;
    host.converged("the start")?;
    let docker = host.docker();
    let mut blinks = Vec::new();
    for number in 0..BLINKS {
        let options = ["--rm", "--runtime", "observed"];
        blinks.push(docker.run_ending(&format!("blink-{number}"), &options, &["true"])?);
    }
    let count = BLINKS.to_string();
    let ended = host
        .cri()
        .call(&["run-many", "--count", &count, &pod, "blink", "--", "true"])?;
    blinks.extend(ended.lines().map(str::to_owned));

    let observed = observed(&host)?;
    host.told("the end of each", |messages| {
        let stories = fold::fold(messages)?.stories;
        for id in &blinks {
            let story = stories.get(id).context("nothing is told of it")?;
            ensure!(story.iter().any(|op| op == "stop"), "{id}: {story:?}");
        }
        Ok(())
    })?;
    // How many were read in time is for the bench, on a machine that has time for it; each that was must be right.
    let mapped = every_mapping(&host.bus.read()?)?;
    let mut in_time = [0, 0];
    for (index, id) in blinks.iter().enumerate() {
        let truth = observed.get(id).context("runc did not make it")?;
        if let Some(told) = mapped.get(id) {
            ensure!(told == truth, "{id} lived in {truth}, mapped {told}");
            in_time[usize::from(index >= BLINKS)] += 1;
        }
    }
    ensure!(
        in_time.iter().all(|count| *count > BLINKS / 2),
        "of {BLINKS} each, Docker and CRI: {in_time:?} are mapped"
    );
    // The bundles tell of most first; now and then containerd's event is read before, on a busy machine more often.
    let address = sight::address_in(|| collector.log())?;
    let of_bundles = sight::metric(&address, "quaymaster_hints_total{origin=\"bundle\"}")?;
    ensure!(
        of_bundles > f64::from(u32::try_from(BLINKS / 2)?),
        "of {} processes the bundles told {of_bundles}",
        2 * BLINKS
    );
    collector.stop()
}

#[test]
fn a_full_host_is_told_at_the_start_with_one_update_each_at_most() -> Result<()> {
    let Some(host) = Host::usual(BusKind::Stdout)? else {
        return Ok(());
    };
    let cri = host.cri();
    let pod = cri.pod("full", &[])?;
    let staying = cri.call(&["run-many", "--count", "12", &pod, "full"])?;
    // containerd hands its first subscriber the events of the last five minutes; then they are over.
    let collector = host.setup.start()?;
    host.converged("the first start")?;
    collector.stop()?;
    std::fs::remove_dir_all(host.lab.dir().join("quaymaster"))?;

    let collector = host.setup.start()?;
    let messages = host.converged("the start")?;
    let deltas: Vec<_> = messages
        .iter()
        .filter(|message| message.topic == "deltas")
        .filter_map(|message| message.value.as_ref())
        .collect();
    for id in staying.lines() {
        let of_it = deltas.iter().filter(|delta| delta["container"]["id"] == id);
        let ops: Vec<_> = of_it.filter_map(|delta| delta["op"].as_str()).collect();
        ensure!(ops == ["snapshot", "update"], "{id} is told as {ops:?}");
        let record = host.record(id)?;
        ensure!(
            !fold::field(&record, "started_at_ms").is_empty(),
            "{record}"
        );
        ensure!(fold::field(&record, "privileged") == "false", "{record}");
    }
    let last = deltas.last().context("nothing is told")?;
    ensure!(last["op"] == "snapshot_end", "the opening ends with {last}");
    collector.stop()
}

/// What runc's wrapper noted: the namespace of each container's init process.
pub(crate) fn observed(host: &Host) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(host.lab.value("LAB_OBSERVED")?)?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs
        .map(|(id, pns)| (id.to_owned(), pns.to_owned()))
        .collect())
}

/// The namespace that was mapped to each container at any time.
pub(crate) fn every_mapping(messages: &[Message]) -> Result<BTreeMap<String, String>> {
    let mut mapped = BTreeMap::new();
    for message in messages.iter().filter(|message| message.topic == "pns") {
        let Some(value) = &message.value else {
            continue;
        };
        let pns = value["pns"].as_str().context("a mapping without pns")?;
        let members = value["members"].as_array().context("no members")?;
        for member in members {
            let id = member["container_id"].as_str().context("no id")?;
            mapped.insert(id.to_owned(), pns.to_owned());
        }
    }
    Ok(mapped)
}
