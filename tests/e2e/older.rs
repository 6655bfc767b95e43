//! Runtimes that the distribution has: older, or of another make.

use anyhow::{Result, ensure};

use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::world::{Cri, Docker};

#[test]
fn an_older_dockerd_is_followed() -> Result<()> {
    let Some(lab) = Lab::up(&["docker20"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER20")?;
    lives_are_told(
        &Host::of(lab, vec![docker], Vec::new(), BusKind::Stdout)?,
        "docker",
        true,
    )
}

#[test]
fn podman_is_followed_through_its_docker_socket() -> Result<()> {
    let Some(lab) = Lab::up(&["podman"])? else {
        return Ok(());
    };
    let podman = Docker::new(&lab, "PODMAN")?;
    lives_are_told(
        &Host::of(lab, vec![podman], Vec::new(), BusKind::Stdout)?,
        "podman",
        true,
    )
}

#[test]
fn a_rootless_podman_that_is_named_is_followed() -> Result<()> {
    let Some(lab) = Lab::up(&["rootless"])? else {
        return Ok(());
    };
    let podman = Docker::new(&lab, "ROOTLESS")?;
    lives_are_told(
        &Host::of(lab, vec![podman], Vec::new(), BusKind::Stdout)?,
        "podman",
        // With cgroups of version 1 such a container has none that could be frozen.
        false,
    )
}

fn lives_are_told(host: &Host, runtime_name: &str, can_pause: bool) -> Result<()> {
    let docker = host.docker();
    let standing = docker.run_staying("standing", &[])?;
    let collector = host.setup.start()?;
    host.converged("the start")?;
    let web = docker.run_staying("web", &[])?;
    docker.call(&["rename", "web", "front"])?;
    if can_pause {
        docker.call(&["pause", "front"])?;
        host.converged("run, rename and pause")?;
        docker.call(&["unpause", "front"])?;
    }
    docker.call(&["restart", "-t", "0", "front"])?;
    docker.run_ending("failing", &[], &["sh", "-c", "exit 3"])?;
    let blink = docker.run_ending("blink", &["--rm"], &["true"])?;
    host.told("a short life", |messages| {
        fold::fold(messages)?.check_whole_life(&blink)
    })?;
    let messages = host.converged("unpause, restart and an exit")?;
    let record = &fold::records(&messages)?[&web];
    ensure!(field(record, "runtime_name") == runtime_name, "{record}");
    ensure!(field(record, "runtime") == "docker", "{record}");
    for id in docker.containers()?.keys() {
        docker.call(&["rm", "-f", id])?;
    }
    let messages = host.converged("removals")?;
    collector.stop()?;
    let stories = fold::fold(&messages)?.stories;
    for id in [&standing, &web] {
        ensure!(
            stories[id].ends_with(&["stop".to_owned(), "delete".to_owned()]),
            "{:?}",
            stories[id]
        );
    }
    Ok(())
}

#[test]
fn a_containerd_without_events_is_polled() -> Result<()> {
    let Some(lab) = Lab::up(&["containerd16"])? else {
        return Ok(());
    };
    let cri = Cri::new(&lab, "LAB_CONTAINERD16_SOCKET")?;
    pods_are_told_by_polling(&Host::of(lab, Vec::new(), vec![cri], BusKind::Stdout)?)
}

/// What a CRI server without an event stream has is found by its lists, and its status says so.
pub(crate) fn pods_are_told_by_polling(host: &Host) -> Result<()> {
    let collector = host.setup.start()?;
    let cri = host.cri();
    let pod = cri.pod("pod", &[])?;
    let one = cri.run_staying(&pod, "one")?;
    cri.run_staying(&pod, "two")?;
    host.converged("a pod")?;
    cri.call(&["stop", &one])?;
    host.converged("a stop")?;
    cri.stop_all()?;
    cri.call(&["stopp", &pod])?;
    cri.call(&["rmp", &pod])?;
    let messages = host.converged("a removal")?;
    let statuses = fold::table(&messages, "status");
    let is_polling = statuses
        .values()
        .any(|status| status["runtimes"][0]["stream"] == "polling");
    ensure!(is_polling, "not told as polling: {statuses:?}");
    collector.stop()
}
