//! SIGKILL at random instants.

use std::time::Duration;

use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, fresh_topics};

/// A life that is killed in its start lasts so long at most, in milliseconds.
pub(crate) const EARLY_MS: u64 = 80;

/// Kills, with checkpoints between them.
async fn kill_often(
    course: &mut Course,
    rounds: u64,
    kills: u64,
    longest_ms: u64,
) -> anyhow::Result<()> {
    for _ in 0..rounds {
        course.live(15).await?;
        for _ in 0..kills {
            course.live(2).await?;
            let life_ms = course.rng.below(longest_ms);
            tokio::time::sleep(Duration::from_millis(life_ms)).await;
            course.kill().await?;
        }
        course.converge().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_without_faults_is_told_to_the_last_step() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("no faults", None)).await?;
    for _ in 0..3 {
        course.live(60).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_instants_lose_nothing_on_stdout() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("kills, stdout", None)).await?;
    kill_often(&mut course, 4, 15, 300).await?;
    course.finish()?;
    Ok(())
}

/// Most of a start is within that time: the state is opened, the runtimes are listed, what is owed goes out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_first_moments_lose_nothing_on_stdout() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("early kills, stdout", None)).await?;
    kill_often(&mut course, 4, 50, EARLY_MS).await?;
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_instants_lose_nothing_on_kafka() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let bus = Bus::kafka(&broker.servers[0], &fresh_topics().prefix);
    let mut course = Course::start(Setup::new("kills, Kafka", Some(bus))).await?;
    kill_often(&mut course, 3, 15, 900).await?;
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_instants_lose_nothing_on_nats() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = Bus::nats(&broker.servers[0], &prefix);
    let mut course = Course::start(Setup::new("kills, NATS", Some(bus))).await?;
    kill_often(&mut course, 3, 15, 500).await?;
    course.finish()?;
    Ok(())
}
