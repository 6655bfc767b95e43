//! The real CRI-O, with pod events and without, and crictl beside `quaymaster list`.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::consume::Message;
use crate::early::{every_mapping, observed};
use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::lab::{Lab, tell};
use crate::older;
use crate::world::{Cri, pns_of};

/// Containers that end at once.
const BLINKS: usize = 5;

fn crio(variables: &[(&str, String)]) -> Result<Option<Host>> {
    let Some(lab) = Lab::up_with(&["crio"], variables)? else {
        return Ok(None);
    };
    let cri = Cri::new(&lab, "LAB_CRIO_SOCKET")?;
    Host::of(lab, Vec::new(), vec![cri], BusKind::Stdout).map(Some)
}

#[test]
fn pods_of_crio_are_followed_by_its_events() -> Result<()> {
    let Some(host) = crio(&[])? else {
        return Ok(());
    };
    let cri = host.cri();
    let standing = cri.pod("standing", &[])?;
    cri.run_staying(&standing, "web")?;
    let collector = host.setup.start()?;
    host.converged("the start")?;

    a_created_container_is_mapped_before_it_starts(&host, &standing)?;
    // Its sandbox has a process: another pod's was dropped (`drop_infra_ctr`).
    let shared = cri.pod("shared", &["--share-pid"])?;
    ensure!(cri.pid(&shared)? != 0, "the shared pod has no process");
    cri.run_staying(&shared, "one")?;
    let two = cri.run_staying(&shared, "two")?;
    let agent = cri.pod("agent", &["--host-pid"])?;
    cri.run_staying(&agent, "agent")?;
    let messages = host.converged("a shared namespace and the host's")?;
    let mapping = fold::mappings(&messages)?[&pns_of(cri.pid(&shared)?)?].clone();
    ensure!(mapping["shared"] == true, "{mapping}");
    ensure!(
        mapping["members"].as_array().map(Vec::len) == Some(3),
        "{mapping}"
    );

    short_lives_are_told_whole(&host, &standing)?;
    list_and_exec_agree_with_crictl(&host)?;
    let pns = pns_of(cri.pid(&two)?)?;
    cri.stop_all()?;
    // It does not hear its SIGTERM either.
    let infra = i32::try_from(cri.pid(&shared)?)?;
    kill_process(Pid::from_raw(infra).context("no pid")?, Signal::KILL)?;
    for pod in [&shared, &standing, &agent] {
        cri.call(&["stopp", pod])?;
    }
    host.converged("stops")?;
    for pod in [&shared, &standing, &agent] {
        cri.call(&["rmp", pod])?;
    }
    let messages = host.converged("removals")?;
    let deltas = messages.iter().filter(|message| message.topic == "deltas");
    let mut removals = deltas.filter_map(|message| message.value.as_ref());
    let removal = removals.find(|it| it["op"] == "delete" && it["container"]["id"] == shared);
    let removal = removal.context("the sandbox's removal is not told")?;
    // CRI-O never says so, nor of the containers in it: it is found without a resync.
    ensure!(removal["source"]["origin"] == "event", "{removal}");
    host.told("the tombstone", |messages| {
        let is_of_it = |it: &&Message| it.topic == "pns" && it.key.ends_with(pns_number(&pns));
        let newest = messages.iter().rfind(is_of_it);
        let newest = newest.context("it was never mapped")?;
        ensure!(newest.value.is_none(), "{newest:?}");
        Ok(())
    })?;
    ensure!(is_streaming(&messages), "the status does not say `live`");
    collector.stop()
}

/// `4026532448` of `pid:[4026532448]`.
fn pns_number(pns: &str) -> &str {
    pns.trim_start_matches("pid:[").trim_end_matches(']')
}

fn is_streaming(messages: &[Message]) -> bool {
    fold::table(messages, "status")
        .values()
        .all(|status| status["runtimes"][0]["stream"] == "live")
}

fn a_created_container_is_mapped_before_it_starts(host: &Host, pod: &str) -> Result<()> {
    let cri = host.cri();
    let early = cri.call(&["create", pod, "early"])?;
    let pid = cri.pid(&early)?;
    let pns = pns_of(pid)?;
    host.told("the mapping of a container that is created", |messages| {
        let mapping = fold::mappings(messages)?
            .remove(&pns)
            .context("it is not mapped")?;
        ensure!(mapping["container_id"] == early.as_str(), "{mapping}");
        ensure!(mapping["pid"] == pid, "{mapping}");
        let story = &fold::fold(messages)?.stories[&early];
        ensure!(story == &["create"], "{story:?}");
        Ok(())
    })?;
    cri.call(&["start", &early])?;
    let record = host.converged("its start")?;
    let record = &fold::records(&record)?[&early];
    ensure!(field(record, "pns") == pns, "{record}");

    // One that is never started ends when it is removed.
    let never = cri.call(&["create", pod, "never"])?;
    host.told("its creation", |messages| {
        fold::records(messages)?
            .remove(&never)
            .context("no record")?;
        Ok(())
    })?;
    cri.call(&["rm", &never])?;
    let messages = host.converged("the removal of one that never ran")?;
    let story = &fold::fold(&messages)?.stories[&never];
    ensure!(
        story
            .iter()
            .filter(|op| *op != "update")
            .eq(["create", "delete"]),
        "{story:?}"
    );
    Ok(())
}

fn short_lives_are_told_whole(host: &Host, pod: &str) -> Result<()> {
    let cri = host.cri();
    let failing = cri.call(&["run", pod, "failing", "--", "/bin/sh", "-c", "exit 3"])?;
    let blinks = cri.lives(pod, "blink", BLINKS)?;
    host.told("short lives", |messages| {
        let told = fold::fold(messages)?;
        for id in &blinks {
            told.check_whole_life(id)?;
        }
        let record = fold::records(messages)?;
        let record = record.get(&failing).context("no record")?;
        ensure!(field(record, "exit_code") == "3", "{record}");
        ensure!(field(record, "reason") == "Error", "{record}");
        Ok(())
    })?;
    let truth = observed(host)?;
    let mapped = every_mapping(&host.bus.read()?)?;
    let in_time: Vec<_> = blinks
        .iter()
        .filter_map(|id| mapped.get_key_value(id))
        .collect();
    for (id, told) in &in_time {
        ensure!(truth.get(*id) == Some(told), "{id} is mapped to {told}");
    }
    tell(&format!(
        "CRI-O: {} of {BLINKS} containers that end at once are mapped",
        in_time.len()
    ));
    Ok(())
}

fn list_and_exec_agree_with_crictl(host: &Host) -> Result<()> {
    let endpoint = host.cri().endpoint();
    let ours = quaymaster(&endpoint, &["list", "--format", "json"])?;
    let ours: Value = serde_json::from_str(&ours)?;
    let ours: BTreeSet<_> = ours
        .as_array()
        .context("no array")?
        .iter()
        .map(|row| {
            (
                field(row, "id").to_owned(),
                field(row, "name").to_owned(),
                field(row, "image_id").to_owned(),
            )
        })
        .collect();
    let crictl = |verb: &[&str]| -> Result<Value> {
        let socket = endpoint.trim_start_matches("cri=");
        let mut command = Command::new(host.lab.value("LAB_CRICTL")?);
        let output = command
            .args(["--runtime-endpoint", socket])
            .args(verb)
            .args(["-o", "json"])
            .output()?;
        ensure!(output.status.success(), "crictl: {output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mut theirs = BTreeSet::new();
    for (verb, list) in [(&["ps", "-a"][..], "containers"), (&["pods"][..], "items")] {
        for row in crictl(verb)?[list].as_array().context("no list")? {
            theirs.insert((
                field(row, "id").to_owned(),
                field(&row["metadata"], "name").to_owned(),
                field(row, "imageId").to_owned(),
            ));
        }
    }
    ensure!(ours == theirs, "{ours:#?} and {theirs:#?}");
    let said = quaymaster(
        &endpoint,
        &["exec", "web", "--", "/bin/sh", "-c", "echo $PPID; echo it"],
    )?;
    ensure!(said == "0\nit\n", "exec says {said:?}");
    let failed = quaymaster(&endpoint, &["exec", "web", "--", "/bin/sh", "-c", "exit 5"]);
    ensure!(failed.is_err(), "exec hides an exit status");
    Ok(())
}

/// A subcommand at one endpoint; what it writes.
fn quaymaster(endpoint: &str, arguments: &[&str]) -> Result<String> {
    let (subcommand, rest) = arguments.split_first().context("no subcommand")?;
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args([subcommand, "--endpoint", endpoint])
        .args(rest)
        .env_clear()
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_crio_without_pod_events_is_polled() -> Result<()> {
    let Some(host) = crio(&[("QUAYMASTER_LAB_CRIO_POD_EVENTS", "false".to_owned())])? else {
        return Ok(());
    };
    older::pods_are_told_by_polling(&host)
}

#[test]
fn what_ends_while_crio_is_away_is_told_when_it_is_back() -> Result<()> {
    let Some(host) = crio(&[])? else {
        return Ok(());
    };
    let cri = host.cri();
    let pod = cri.pod("pod", &[])?;
    let staying = cri.run_staying(&pod, "staying")?;
    let ending = cri.run_staying(&pod, "ending")?;
    let collector = host.setup.start()?;
    let messages = host.converged("the start")?;
    let before = fold::records(&messages)?[&staying].clone();

    let pid = i32::try_from(cri.pid(&ending)?)?;
    host.lab.kill9(&["crio"])?;
    kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?;
    host.lab.start(&["crio"])?;
    let messages = host.converged("the restart of CRI-O")?;
    let folded = fold::fold(&messages)?;
    let story = &folded.stories[&ending];
    ensure!(story.last().is_some_and(|op| op == "stop"), "{story:?}");
    ensure!(
        field(&folded.containers[&ending], "exit_code") == "137",
        "{:?}",
        folded.containers[&ending]
    );
    let after = &fold::records(&messages)?[&staying];
    for name in ["pid", "pns", "started_at_ms", "pod_name"] {
        ensure!(field(after, name) == field(&before, name), "{after}");
    }

    // Its events are followed again, and a resync finds nothing that they did not tell.
    cri.run_staying(&pod, "new")?;
    host.converged("a container after the restart")?;
    collector.resync()?;
    cri.call(&["rm", &ending])?;
    cri.stop_all()?;
    cri.call(&["stopp", &pod])?;
    cri.call(&["rmp", &pod])?;
    host.converged("removals")?;
    collector.stop()
}
