//! The lab itself: what the other tests stand on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Lab, script};
use crate::world::{Cri, Docker};

/// The runtimes and brokers of the other tests, so that what the machine lacks of them is told here by name.
const EVERYTHING: [&str; 10] = [
    "containerd2",
    "containerd16",
    "docker",
    "docker20",
    "podman",
    "crio",
    "cri-dockerd",
    "kafka",
    "nats",
    "nats29",
];
/// What the lab starts by itself beside one of those, and what is one of those again, or no runtime and no broker.
const BESIDE: [&str; 5] = [
    "docker-containerd",
    "docker20-containerd",
    "rootless",
    "kafka2",
    "prometheus",
];

#[test]
fn no_component_of_the_lab_is_left_out() -> Result<()> {
    let lab = std::fs::read_to_string(script("lab"))?;
    let known = lab.lines().find_map(|line| {
        line.strip_prefix("readonly COMPONENTS=(")?
            .strip_suffix(')')
    });
    let known: BTreeSet<_> = known
        .context("the lab has no COMPONENTS")?
        .split(' ')
        .collect();
    let here: BTreeSet<_> = EVERYTHING.into_iter().chain(BESIDE).collect();
    ensure!(known == here, "{:?}", known.symmetric_difference(&here));
    Ok(())
}

#[test]
fn the_lab_starts_and_stops_every_runtime_and_broker() -> Result<()> {
    let Some(lab) = Lab::up(&EVERYTHING)? else {
        return Ok(());
    };
    for docker in ["DOCKER", "DOCKER20", "PODMAN"] {
        let docker = Docker::new(&lab, docker)?;
        let id = docker.run_staying("one", &[])?;
        ensure!(
            docker.containers()?[&id].state == "running",
            "the container does not run"
        );
    }
    for (socket, options) in [
        ("LAB_CRI_SOCKET", &[][..]),
        ("LAB_CONTAINERD16_SOCKET", &[]),
        ("LAB_CRIO_SOCKET", &[]),
        ("LAB_CRI_DOCKERD_SOCKET", &["--runtime", "unscored"]),
    ] {
        let cri = Cri::new(&lab, socket)?;
        let pod = cri.pod("pod", options)?;
        let id = cri.run_staying(&pod, "one")?;
        ensure!(
            cri.containers()?[&id].state == "running",
            "the container does not run"
        );
    }
    for component in EVERYTHING {
        lab.kill9(&[component])?;
    }
    lab.start(&EVERYTHING)?;
    // What a lab started names its folder, or lies in its cgroup.
    let dir = lab.dir().to_owned();
    let marks = [format!("{}/", dir.display()), lab.value("LAB_CGROUP")?];
    ensure!(
        !processes_with(&marks)?.is_empty(),
        "nothing of the lab runs"
    );
    drop(lab);
    let left = processes_with(&marks)?;
    ensure!(left.is_empty(), "the lab left {left:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&marks[0]), "the lab left mounts");
    ensure!(!dir.exists(), "the lab left its folder");
    Ok(())
}

#[test]
fn two_labs_at_once_do_not_meet() -> Result<()> {
    let components = ["containerd2", "docker", "nats"];
    let Some(one) = Lab::up(&components)? else {
        return Ok(());
    };
    let two = Lab::up(&components)?.context("the first one came up")?;
    ensure!(
        one.value("LAB_NATS")? != two.value("LAB_NATS")?,
        "both have one port"
    );
    let [here, there] = [Docker::new(&one, "DOCKER")?, Docker::new(&two, "DOCKER")?];
    here.run_staying("one", &[])?;
    ensure!(
        there.containers()?.is_empty(),
        "one lab's container is in the other"
    );
    drop(one);
    there.run_staying("two", &[])?;
    Ok(())
}

/// Processes whose arguments or cgroups have one of the marks, by pid.
fn processes_with(marks: &[String]) -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        // A process may end while it is looked at.
        let read = |name| std::fs::read(path.join(name)).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let is_zombie = arguments.is_empty();
        let is_marked = marks
            .iter()
            .any(|mark| arguments.contains(mark) || cgroups.contains(mark));
        if is_marked && !is_zombie && pid != std::process::id() {
            found.insert(pid, arguments);
        }
    }
    Ok(found)
}
