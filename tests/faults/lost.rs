//! Brokers that lose what they acknowledged: their data is put back from an earlier copy. A reader that begins anew must
//! find every delta and all state there again.

use std::time::{Duration, Instant};

use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, Fragile, fresh_topics};

/// Longest wait for a loss to be noticed.
const NOTICE_MAX: Duration = Duration::from_secs(60);

/// Puts a copy back under the broker twice: while the collector lives, and while it is dead.
async fn is_mended(
    name: &'static str,
    broker: &Fragile,
    data: &'static str,
    bus: impl Fn() -> Bus,
) -> anyhow::Result<()> {
    let mut course = Course::start(Setup::new(name, Some(bus()))).await?;
    course.live(30).await?;
    course.converge().await?;
    broker.order("stop").await?;
    broker.copy(data, "copy")?;
    let open = course.oracle.open_mappings();
    broker.order("start").await?;
    for is_dead in [false, true] {
        course.live(40).await?;
        course.converge().await?;
        course.count("broker put back to an earlier copy");
        if is_dead {
            course.kill_only().await?;
        }
        broker.order("stop").await?;
        broker.copy("copy", data)?;
        broker.order("start").await?;
        if is_dead {
            course.daemon.spawn()?;
        }
        course.read_anew(bus());
        course.oracle.lost_ends_of(open.clone());
        is_noticed(&mut course, 1 + usize::from(is_dead)).await?;
        course.live(20).await?;
        course.converge().await?;
        anyhow::ensure!(
            course.oracle.gaps == 0,
            "what was lost is in the kept tail, and no gap is needed"
        );
    }
    let told = losses_told(&course);
    anyhow::ensure!(told == 2, "each loss is told once, not {told} times in all");
    course.finish()?;
    Ok(())
}

/// Waits, while the world goes on, until the collector has told of so many losses.
async fn is_noticed(course: &mut Course, losses: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    while losses_told(course) < losses {
        course.daemon.check()?;
        anyhow::ensure!(
            began.elapsed() < NOTICE_MAX,
            "the loss is not noticed: {}",
            course.daemon.tail()
        );
        course.live(1).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn losses_told(course: &Course) -> usize {
    course.daemon.log_lines("it is sent again").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_kafka_lost_is_sent_again() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix;
    let bus = || Bus::kafka(&broker.servers[0], &prefix);
    is_mended("restored Kafka", &broker, "kafka/data", bus).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_nats_lost_is_sent_again() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = || Bus::nats(&broker.servers[0], &prefix);
    is_mended("restored NATS", &broker, "nats/store", bus).await
}
