//! Brokers that are stopped, killed and frozen while containers come and go. The collector lives: nothing of what
//! the runtimes said may be missing afterwards.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, Fragile, fresh_topics};

/// Runs an order of the lab while the world goes on.
pub(crate) async fn order_while_living(
    course: &mut Course,
    broker: &Fragile,
    verb: &'static str,
    changes: u64,
) -> anyhow::Result<()> {
    let (ordered, lived) = tokio::join!(broker.order(verb), course.live(changes));
    ordered?;
    lived
}

/// One fault of a broker, which is well again afterwards.
pub(crate) async fn broker_fault(
    course: &mut Course,
    broker: &Fragile,
    kind: u64,
) -> anyhow::Result<()> {
    match kind % 3 {
        0 => {
            course.count("broker stopped and started");
            order_while_living(course, broker, "stop", 15).await?;
            order_while_living(course, broker, "start", 15).await
        }
        1 => {
            course.count("broker killed -9 and started");
            order_while_living(course, broker, "kill9", 15).await?;
            order_while_living(course, broker, "start", 15).await
        }
        _ => {
            course.count("broker frozen");
            let pid = pid_of(broker)?;
            kill_process(pid, Signal::STOP)?;
            let lived = course.live(60).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            kill_process(pid, Signal::CONT)?;
            lived
        }
    }
}

fn pid_of(broker: &Fragile) -> anyhow::Result<Pid> {
    let path = broker
        .folder()
        .join("run")
        .join(broker.name())
        .with_extension("pid");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let pid = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    pid.and_then(Pid::from_raw).context("the lab tells no pid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kafka_that_stops_dies_or_freezes_costs_nothing() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let bus = Bus::kafka(&broker.servers[0], &fresh_topics().prefix);
    let mut course = Course::start(Setup::new("broker, Kafka", Some(bus))).await?;
    for kind in 0..3 {
        course.live(20).await?;
        broker_fault(&mut course, &broker, kind).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_that_refuses_what_it_is_given_gets_it_later() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = Bus::nats(&broker.servers[0], &prefix);
    let mut course = Course::start(Setup::new("refusing, NATS", Some(bus))).await?;
    for _ in 0..2 {
        course.live(20).await?;
        course.converge().await?;
        course.count("bus refusing writes");
        course.refuse(true).await?;
        course.live(40).await?;
        course.kill().await?;
        course.live(10).await?;
        course.refuse(false).await?;
        course.live(5).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_that_stops_dies_or_freezes_costs_nothing() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = Bus::nats(&broker.servers[0], &prefix);
    let mut course = Course::start(Setup::new("broker, NATS", Some(bus))).await?;
    for kind in 0..3 {
        course.live(20).await?;
        broker_fault(&mut course, &broker, kind).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}
