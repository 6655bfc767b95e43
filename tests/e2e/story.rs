//! The whole story of a host on each bus: containers and pods come, change and go, the collector and the runtimes are
//! stopped, killed and started in between, and at every halt the bus tells what the runtimes tell.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::collector::Collector;
use crate::consume::{Bus, Message};
use crate::fold::{self, field};
use crate::host::{BusKind, Host};

#[test]
fn a_hosts_whole_story_is_told_on_stdout() -> Result<()> {
    tell(BusKind::Stdout)
}

#[test]
fn a_hosts_whole_story_is_told_on_kafka() -> Result<()> {
    tell(BusKind::Kafka)
}

#[test]
fn a_hosts_whole_story_is_told_on_nats() -> Result<()> {
    tell(BusKind::Nats)
}

fn tell(bus: BusKind) -> Result<()> {
    let Some(host) = Host::usual(bus)? else {
        return Ok(());
    };
    // There before the collector: these come as a snapshot.
    let standing = host.docker().run_staying("standing", &[])?;
    let pod = host.cri().pod("standing-pod", &[])?;
    host.cri().run_staying(&pod, "standing-one")?;

    let collector = host.setup.start()?;
    host.converged("the start")?;
    let web = containers_change(&host)?;
    containers_share_namespaces(&host, &web)?;
    let blinks = containers_live_for_milliseconds(&host)?;
    pods_come_and_change(&host)?;
    a_resync_changes_nothing(&host, &collector)?;

    collector.stop()?;
    host.docker().call(&["rm", "-f", "failing"])?;
    host.docker().run_staying("meanwhile", &[])?;
    let collector = host.setup.start()?;
    host.converged("a stop and a start of the collector")?;

    host.docker().call(&["stop", "-t", "0", "meanwhile"])?;
    collector.kill()?;
    host.docker().call(&["start", "meanwhile"])?;
    let collector = host.setup.start()?;
    host.converged("a SIGKILL and a start of the collector")?;

    runtimes_restart(&host, &standing)?;
    everything_goes(&host)?;
    collector.stop()?;
    check_the_whole(&host, &web, &blinks)
}

/// Every kind of change of a container of Docker's. Gives the id of the one that had them.
fn containers_change(host: &Host) -> Result<String> {
    let docker = host.docker();
    let web = docker.run_staying("web", &["--label", "tier=front"])?;
    host.converged("docker run")?;
    docker.call(&["rename", "web", "front"])?;
    docker.call(&["pause", "front"])?;
    host.converged("rename and pause")?;
    docker.call(&["unpause", "front"])?;
    let before = host.converged("unpause")?;
    let pns_before = field(&fold::records(&before)?[&web], "pns").to_owned();

    docker.call(&["restart", "-t", "0", "front"])?;
    host.told(
        "the mapping of the namespace before the restart ends",
        |messages| {
            // Its number may have been given to another namespace, once its tombstone was acknowledged.
            let Some(mapping) = fold::mappings(messages)?.remove(&pns_before) else {
                return Ok(());
            };
            let is_another = mapping["container_id"] != *web;
            ensure!(
                is_another || !mapping["valid_to_ms"].is_null(),
                "it lives: {mapping}"
            );
            Ok(())
        },
    )?;
    host.converged("restart")?;

    let failing = docker.run_ending("failing", &[], &["sh", "-c", "exit 3"])?;
    docker.call(&[
        "create",
        "--network",
        "none",
        "--name",
        "never",
        "busybox:lab",
    ])?;
    host.converged("an exit and a create")?;
    let record = host.record(&failing)?;
    ensure!(
        field(&record, "exit_code") == "3",
        "no exit code 3: {record}"
    );
    Ok(web)
}

fn containers_share_namespaces(host: &Host, web: &str) -> Result<()> {
    let debug = host
        .docker()
        .run_staying("debug", &["--pid=container:front"])?;
    host.docker().run_staying("agent", &["--pid=host"])?;
    let messages = host.converged("containers in other PID namespaces")?;
    let pns = field(&fold::records(&messages)?[&debug], "pns").to_owned();
    let mapping = &fold::mappings(&messages)?[&pns];
    ensure!(mapping["shared"] == true, "not shared: {mapping}");
    ensure!(
        mapping["container_id"] == *web,
        "pid 1 of the namespace is front's: {mapping}"
    );
    Ok(())
}

/// Containers that are gone before anybody can look at them. Gives their ids.
fn containers_live_for_milliseconds(host: &Host) -> Result<Vec<String>> {
    let mut blinks = Vec::new();
    for number in 0..3 {
        blinks.push(
            host.docker()
                .run_ending(&format!("blink-{number}"), &["--rm"], &["true"])?,
        );
    }
    host.told("three short lives", |messages| {
        let folded = fold::fold(messages)?;
        blinks
            .iter()
            .try_for_each(|blink| folded.check_whole_life(blink))
    })?;
    host.converged("containers that lived for milliseconds")?;
    Ok(blinks)
}

fn pods_come_and_change(host: &Host) -> Result<()> {
    let cri = host.cri();
    let shop = cri.pod("shop", &["--namespace", "market", "--uid", "9f7c"])?;
    let cart = cri.run_staying(&shop, "cart")?;
    let till = cri.run_staying(&shop, "till")?;
    let team = cri.pod("team", &["--share-pid"])?;
    let member = cri.run_staying(&team, "member")?;
    let messages = host.converged("two pods")?;
    let records = fold::records(&messages)?;
    let record = &records[&cart];
    let expected = [
        ("runtime", "cri"),
        ("kind", "container"),
        ("pod_name", "shop"),
        ("pod_namespace", "market"),
        ("pod_uid", "9f7c"),
        ("pod_sandbox_id", &shop),
    ];
    for (name, value) in expected {
        ensure!(
            field(record, name) == value,
            "{name} is not {value}: {record}"
        );
    }
    ensure!(
        field(&records[&shop], "kind") == "sandbox",
        "{}",
        records[&shop]
    );
    let mapping = &fold::mappings(&messages)?[field(&records[&member], "pns")];
    ensure!(
        mapping["shared"] == true,
        "a pod with one PID namespace: {mapping}"
    );
    ensure!(
        mapping["container_id"] == *member,
        "the container, not its sandbox: {mapping}"
    );

    cri.call(&["stop", &cart])?;
    cri.call(&["rm", &cart])?;
    cri.call(&["stop", &till])?;
    cri.call(&["stopp", &team])?;
    host.converged("stops and a removal in pods")?;
    Ok(())
}

/// A resync puts the records again, under its number, and finds nothing that no event has told.
fn a_resync_changes_nothing(host: &Host, collector: &Collector<'_>) -> Result<()> {
    let before = host.converged("all that was before")?;
    let (resyncs, deltas) = (newest_resync(&before)?, fold::last_seq(&before));
    collector.resync()?;
    host.told("a resync that was asked for ends", |messages| {
        let now = newest_resync(messages)?;
        ensure!(now > resyncs, "the newest resync is {now}");
        for record in fold::records(messages)?.values() {
            ensure!(
                field(record, "package_seq") == now.to_string(),
                "of an earlier resync: {record}"
            );
        }
        Ok(())
    })?;
    let after = fold::last_seq(&host.bus.read()?);
    ensure!(
        after == deltas,
        "the resync made deltas {} to {after}",
        deltas + 1
    );
    Ok(())
}

/// The number of the newest resync, which must have ended.
pub(crate) fn newest_resync(messages: &[Message]) -> Result<u64> {
    let statuses = fold::table(messages, "status");
    let status = statuses.values().next().context("no status")?;
    let resync = &status["resync"];
    ensure!(resync["state"] == "end", "it is not at its end: {status}");
    resync["package_seq"].as_u64().context("no package_seq")
}

/// Processes die while the runtime that would tell of it is away.
fn runtimes_restart(host: &Host, standing: &str) -> Result<()> {
    let pid = host.docker().pid(standing)?;
    host.lab.kill9(&["docker"])?;
    kill(pid)?;
    host.lab.start(&["docker"])?;
    host.converged("a SIGKILL and a start of dockerd")?;
    host.lab.stop(&["docker"])?;
    host.lab.start(&["docker"])?;
    host.docker().call(&["start", "standing"])?;
    host.converged("a stop and a start of dockerd")?;

    let pod = host.cri().pod("late", &[])?;
    let container = host.cri().run_staying(&pod, "late-one")?;
    host.converged("a pod")?;
    let pid = host.cri().pid(&container)?;
    host.lab.kill9(&["containerd2"])?;
    kill(pid)?;
    host.lab.start(&["containerd2"])?;
    host.converged("a SIGKILL and a start of containerd")?;
    Ok(())
}

fn kill(pid: u32) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process runs")?;
    kill_process(pid, Signal::KILL).context("failed to kill a container's process")
}

fn everything_goes(host: &Host) -> Result<()> {
    for id in host.docker().containers()?.keys() {
        host.docker().call(&["rm", "-f", id])?;
    }
    let cri = host.cri();
    for id in cri.containers()?.keys() {
        // A sandbox takes its containers with it; those are refused or gone then.
        let _ = cri
            .call(&["stopp", id])
            .and_then(|_| cri.call(&["rmp", id]));
    }
    ensure!(cri.containers()?.is_empty(), "pods are left");
    host.told("all tables are empty after the linger", |messages| {
        for topic in ["records", "pns"] {
            let left = fold::table(messages, topic);
            ensure!(left.is_empty(), "{topic} holds {left:#?}");
        }
        Ok(())
    })
}

/// What holds of everything that was published.
fn check_the_whole(host: &Host, web: &str, blinks: &[String]) -> Result<()> {
    let messages = host.bus.read()?;
    let folded = fold::fold(&messages)?;
    ensure!(
        folded.epochs == 1,
        "{} epochs, and the state was never lost",
        folded.epochs
    );
    ensure!(
        folded.containers.is_empty(),
        "not deleted: {:?}",
        folded.containers.keys()
    );
    for id in blinks.iter().map(String::as_str).chain([web]) {
        let story = &folded.stories[id];
        ensure!(
            story.first().is_some_and(|op| op == "create"),
            "{id}: {story:?}"
        );
        ensure!(
            story.last().is_some_and(|op| op == "delete"),
            "{id}: {story:?}"
        );
    }
    check_status(&messages)?;
    match host.bus {
        Bus::Stdout(_) => Ok(()),
        Bus::Nats(_) => fold::check_envelopes(&messages),
        Bus::Kafka(_) => {
            fold::check_envelopes(&messages)?;
            fold::check_partitions(&messages)
        }
    }
}

fn check_status(messages: &[Message]) -> Result<()> {
    let mut statuses = fold::table(messages, "status");
    let status = statuses.pop_first().context("no status")?.1;
    ensure!(
        status["state"] == "stopping",
        "the last status of a collector that was stopped: {status}"
    );
    let names: Vec<_> = status["runtimes"]
        .as_array()
        .context("no runtimes")?
        .iter()
        .map(|runtime| &runtime["name"])
        .collect();
    ensure!(
        names.contains(&&"docker".into()) && names.contains(&&"containerd".into()),
        "{status}"
    );
    Ok(())
}
