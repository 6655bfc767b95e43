//! Containers that come and go without a pause while the bus or a runtime is killed beside them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::fold;
use crate::host::{BusKind, Host};
use crate::wait::eventually;
use crate::world::Docker;

/// Lives in a row of the short course.
const LIVES: usize = 15;
/// Lives in a row of the long course.
const LIVES_LONG: usize = 200;
/// Those who start containers at the same time.
const HANDS: usize = 2;
/// Lives that each of them makes while Kafka dies and comes back.
const STORM_LIVES: usize = 12;
/// Lives between two faults of a runtime.
const LIVES_BETWEEN: usize = 3;
/// How often a runtime is killed.
const KILLS: usize = 2;

#[test]
fn short_lives_in_a_row_are_each_told_whole() -> Result<()> {
    short_lives_in_a_row(LIVES)
}

#[test]
#[ignore = "lasts some minutes; `make faults` runs it"]
fn two_hundred_short_lives_in_a_row_are_each_told_whole() -> Result<()> {
    short_lives_in_a_row(LIVES_LONG)
}

/// Each is removed before the next is begun, so that the kernel would give them all one number.
fn short_lives_in_a_row(count: usize) -> Result<()> {
    let Some(host) = Host::usual(BusKind::Kafka)? else {
        return Ok(());
    };
    let collector = host.setup.start()?;
    host.converged("the start")?;
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(host.docker().run_to_its_end(&format!("blink-{number}"))?);
    }
    told_whole(&host, &ids)?;
    let messages = host.converged("short lives")?;
    collector.stop()?;
    fold::check_envelopes(&messages)
}

/// The stream of events is never cut: all of it is owed.
#[test]
fn a_kafka_killed_in_the_middle_of_a_storm_costs_no_step() -> Result<()> {
    let Some(host) = Host::usual(BusKind::Kafka)? else {
        return Ok(());
    };
    let pod = host.cri().pod("storm", &[])?;
    let collector = host.setup.start()?;
    host.converged("the start")?;
    let done = AtomicUsize::new(0);
    let (ids, apps) = std::thread::scope(|scope| -> Result<_> {
        let hands: Vec<_> = (0..HANDS)
            .map(|hand| {
                let (docker, done) = (host.docker(), &done);
                scope.spawn(move || lives(docker, hand, STORM_LIVES, done))
            })
            .collect();
        let apps = scope.spawn(|| host.cri().lives(&pod, "app", STORM_LIVES));
        has_reached(&done, STORM_LIVES / 2)?;
        host.lab.kill9(&["kafka"])?;
        has_reached(&done, STORM_LIVES)?;
        host.lab.start(&["kafka"])?;
        let mut ids = Vec::new();
        for hand in hands {
            ids.extend(join(hand)?);
        }
        Ok((ids, join(apps)?))
    })?;
    told_whole(&host, &ids)?;
    told_whole(&host, &apps)?;
    let messages = host.converged("a storm over a SIGKILL of Kafka")?;
    collector.stop()?;
    let folded = fold::fold(&messages)?;
    ensure!(folded.epochs == 1, "{} epochs", folded.epochs);
    fold::check_envelopes(&messages)
}

#[test]
fn dockerd_killed_while_containers_come_and_go_leaves_the_truth() -> Result<()> {
    killed_while_containers_come_and_go("docker")
}

#[test]
fn containerd_killed_while_containers_come_and_go_leaves_the_truth() -> Result<()> {
    killed_while_containers_come_and_go("containerd2")
}

/// Orders that meet a dead runtime fail; whatever is there afterwards is the truth. The lab's dockerd has live-restore:
/// a container outlives both, and nothing of that is told.
fn killed_while_containers_come_and_go(component: &str) -> Result<()> {
    let Some(host) = Host::usual(BusKind::Stdout)? else {
        return Ok(());
    };
    let docker = host.docker();
    let standing = docker.run_staying("standing", &[])?;
    let pid = docker.pid(&standing)?;
    let pod = host.cri().pod("standing-pod", &[])?;
    let standing_app = host.cri().run_staying(&pod, "standing-app")?;
    let collector = host.setup.start()?;
    host.converged("the start")?;
    let (done, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        // However this ends, they have to.
        let _over = SetWhenDropped(&is_over);
        for hand in 0..HANDS {
            let (host, done, is_over) = (&host, &done, &is_over);
            scope.spawn(move || come_and_go(host, hand, done, is_over));
        }
        scope.spawn(|| pods_come_and_go(&host, &pod, &is_over));
        for _ in 0..KILLS {
            has_reached(&done, done.load(Ordering::Relaxed) + LIVES_BETWEEN)?;
            host.lab.kill9(&[component])?;
            host.lab.start(&[component])?;
        }
        has_reached(&done, done.load(Ordering::Relaxed) + LIVES_BETWEEN)
    })?;
    let messages = host.converged(&format!("SIGKILLs of {component} in a storm"))?;
    ensure!(
        docker.pid(&standing)? == pid,
        "live-restore lost a container"
    );
    let folded = fold::fold(&messages)?;
    for id in [&standing, &standing_app] {
        let story = &folded.stories[id];
        ensure!(
            !story.iter().any(|op| op == "stop" || op == "delete"),
            "a container that outlived {component} is told as {story:?}"
        );
    }
    ensure!(folded.epochs == 1, "{} epochs", folded.epochs);
    collector.stop()
}

/// Makes lives; their ids.
fn lives(docker: &Docker, hand: usize, count: usize, done: &AtomicUsize) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(docker.run_to_its_end(&format!("storm-{hand}-{number}"))?);
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(ids)
}

/// Starts, stops and removes until it is over. A runtime that is dead refuses; what it was half way through stays.
fn come_and_go(host: &Host, hand: usize, done: &AtomicUsize, is_over: &AtomicBool) {
    let docker = host.docker();
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("come-{hand}-{number}");
        let lived = docker
            .run_staying(&name, &[])
            .and_then(|_| docker.call(&["restart", "-t", "0", &name]))
            .and_then(|_| docker.call(&["rm", "-f", &name]));
        match lived {
            Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
            Err(_) => std::thread::sleep(crate::wait::LOOK_EVERY),
        }
    }
}

fn pods_come_and_go(host: &Host, pod: &str, is_over: &AtomicBool) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("app-{number}");
        let lived = host.cri().run_staying(pod, &name).and_then(|id| {
            host.cri().call(&["stop", &id])?;
            host.cri().call(&["rm", &id])
        });
        if lived.is_err() {
            std::thread::sleep(crate::wait::LOOK_EVERY);
        }
    }
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn has_reached(done: &AtomicUsize, lives: usize) -> Result<()> {
    eventually(&format!("{lives} lives are over"), || {
        let now = done.load(Ordering::Relaxed);
        ensure!(now >= lives, "{now} are");
        Ok(())
    })
}

fn join<T>(hand: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    hand.join().ok().context("a hand panicked")?
}

/// Waits until each of them was created, started, stopped and deleted on the bus, and nothing else.
fn told_whole(host: &Host, ids: &[String]) -> Result<()> {
    host.told("lives, each to its end", |messages| {
        let folded = fold::fold(messages)?;
        ids.iter().try_for_each(|id| folded.check_whole_life(id))
    })
}
