//! Brokers that are stopped, killed and frozen, and such as refuse what they are given, while containers come and go. The
//! collector lives: nothing of what the runtimes said may be missing afterwards.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::bus::{Bus, TWO_REPLICAS};
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, Fragile, fresh_topics};

/// Longest wait for the collector to tell that its bus refuses, or takes messages again.
const TELLS_MAX: Duration = Duration::from_secs(60);

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
    match kind % 4 {
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
        2 => {
            course.count("broker frozen");
            let pid = pid_of(broker)?;
            kill_process(pid, Signal::STOP)?;
            let lived = course.live(60).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            kill_process(pid, Signal::CONT)?;
            lived
        }
        _ => {
            course.count("bus refusing writes");
            course.refuse(true).await?;
            course.live(40).await?;
            if course.rng.percent(50) {
                course.kill().await?;
            }
            course.refuse(false).await
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

/// Writes are refused while the world goes on and the collector is killed, and are taken again.
async fn refuses_for_a_while(mut setup: Setup) -> anyhow::Result<()> {
    setup.arguments.push("--listen=127.0.0.1:0".to_owned());
    let mut course = Course::start(setup).await?;
    for _ in 0..2 {
        course.live(20).await?;
        course.converge().await?;
        tells(&mut course, "200 ", "").await?;
        course.count("bus refusing writes");
        course.refuse(true).await?;
        course.live(40).await?;
        tells(&mut course, "503 ", "the bus does not take messages").await?;
        let owed = owed_messages(&course).await?;
        anyhow::ensure!(owed > 0, "nothing is owed to a bus that refuses");
        course.kill().await?;
        course.live(10).await?;
        course.refuse(false).await?;
        course.live(5).await?;
        course.converge().await?;
    }
    tells(&mut course, "200 ", "").await?;
    course.finish()?;
    Ok(())
}

/// Waits, while the world goes on, until `/readyz` answers so.
async fn tells(course: &mut Course, status: &str, text: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let answer = course.ask("/readyz").await.unwrap_or_default();
        let rest = answer.strip_prefix("HTTP/1.1 ").unwrap_or_default();
        if rest.starts_with(status) && rest.contains(text) {
            return Ok(());
        }
        anyhow::ensure!(
            began.elapsed() < TELLS_MAX,
            "/readyz is not {status}{text}: {answer}"
        );
        course.live(1).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What `/status` says of the outbox.
async fn owed_messages(course: &Course) -> anyhow::Result<u64> {
    let answer = course.ask("/status").await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let status: serde_json::Value = serde_json::from_str(body)?;
    let owed = &status["outbox"]["messages"];
    owed.as_u64().with_context(|| format!("{status}"))
}

/// The topics ask for two replicas in sync, and there is one: NOT_ENOUGH_REPLICAS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kafka_that_has_too_few_replicas_gets_all_later() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    Broker::know_second_kafka().await?;
    let bus = Bus::kafka(&broker.servers[0], &fresh_topics().prefix);
    let mut setup = Setup::new("refusing, Kafka", Some(bus));
    setup.file = TWO_REPLICAS;
    refuses_for_a_while(setup).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_that_refuses_what_it_is_given_gets_it_later() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = Bus::nats(&broker.servers[0], &prefix);
    refuses_for_a_while(Setup::new("refusing, NATS", Some(bus))).await
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
