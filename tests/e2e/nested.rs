//! PID namespaces below a container's: their mappings, from a look at the process table to their tombstones.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::consume::Message;
use crate::fold;
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::{Docker, pns_of};

/// Two PID namespaces, one below the other, in a container that outlives them.
const NEST: &str = "unshare -p -f unshare -p -f sleep 3600 & sleep 3600";

/// The processes of a container that are pid 1 of a namespace so many below the host's, by the kernel.
fn inits(container: &str, depth: usize) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let file = |name| PathBuf::from(format!("/proc/{pid}/{name}"));
        let read = |name| std::fs::read_to_string(file(name)).unwrap_or_default();
        let status = read("status");
        let mut lines = status.lines();
        let pids = lines.find_map(|line| line.strip_prefix("NSpid:"));
        let pids: Vec<_> = pids.unwrap_or_default().split_whitespace().collect();
        let is_init = pids.len() == depth + 1 && pids.last() == Some(&"1");
        if is_init && read("cgroup").contains(container) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn init(container: &str, depth: usize) -> Result<u32> {
    eventually("a nested namespace has its pid 1", || {
        let found = inits(container, depth)?;
        found.first().copied().context("there is none")
    })
}

/// The newest mapping of a namespace.
fn mapping(messages: &[Message], pns: &str) -> Result<Value> {
    let mut mappings = fold::mappings(messages)?;
    mappings
        .remove(pns)
        .with_context(|| format!("{pns} is not mapped"))
}

/// Waits until a namespace is mapped, live, to a container.
fn is_mapped(host: &Host, pid: u32, container: &str) -> Result<String> {
    let pns = pns_of(pid)?;
    host.told("the mapping of a nested namespace", |messages| {
        let mapping = mapping(messages, &pns)?;
        ensure!(mapping["nested"] == true, "{mapping}");
        ensure!(mapping["container_id"] == container, "{mapping}");
        ensure!(mapping["container_name"] == "outer", "{mapping}");
        ensure!(mapping["pid"] == pid, "{mapping}");
        ensure!(mapping["valid_to_ms"].is_null(), "{mapping}");
        Ok(())
    })?;
    Ok(pns)
}

/// Waits for the end of a mapping, and for its tombstone.
fn is_buried(host: &Host, pns: &str) -> Result<()> {
    host.told("the tombstone of a nested namespace", |messages| {
        let of_it = messages.iter().filter_map(|message| message.value.as_ref());
        let mut of_it = of_it.filter(|value| value["pns"] == pns && value["nested"] == true);
        let last = of_it.next_back().context("it was never mapped")?;
        ensure!(!last["valid_to_ms"].is_null(), "{last}");
        ensure!(mapping(messages, pns).is_err(), "it is mapped still");
        Ok(())
    })
    .map(drop)
}

#[test]
fn a_namespace_below_a_container_s_is_mapped_to_the_container_until_either_ends() -> Result<()> {
    let Some(lab) = Lab::up(&["docker"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER")?;
    let host = Host::of(lab, vec![docker], Vec::new(), BusKind::Stdout)?;
    let docker = host.docker();
    let outer = docker.run_ending("outer", &["--privileged"], &["sh", "-c", NEST])?;
    let deep = init(&outer, 3)?;

    // There at the start, both of them.
    let collector = host.setup.start()?;
    let middle = init(&outer, 2)?;
    let middle_pns = is_mapped(&host, middle, &outer)?;
    let deep_pns = is_mapped(&host, deep, &outer)?;
    ensure!(middle_pns != deep_pns, "they are two");
    host.converged("the start")?;

    // Pid 1 of the upper one takes the lower one with it, and the container goes on.
    let pid = i32::try_from(middle)?;
    kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL)?;
    collector.resync()?;
    is_buried(&host, &middle_pns)?;
    is_buried(&host, &deep_pns)?;
    docker.call(&["exec", "-d", "--privileged", "outer", "sh", "-c", NEST])?;
    let again = init(&outer, 3)?;
    collector.resync()?;
    let pns = is_mapped(&host, again, &outer)?;

    // Over a restart it stays, and it ends with the container, without a look.
    collector.kill()?;
    let collector = host.setup.start()?;
    host.converged("a restart")?;
    let kept = is_mapped(&host, again, &outer)?;
    ensure!(kept == pns, "{kept} is not {pns}");
    docker.call(&["rm", "-f", "outer"])?;
    is_buried(&host, &pns)?;
    host.converged("the container's end")?;
    collector.stop()
}
