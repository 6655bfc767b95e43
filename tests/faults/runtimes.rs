//! Runtimes that end streams, lose and double events, hang, fail, restart, and storm.

use std::time::Duration;

use crate::course::{Course, Setup, can_unshare};

/// Containers of the great storm, with four events each.
const STORM: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_that_fail_hang_and_restart_leave_whole_stories() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("runtimes", None)).await?;
    for kind in 0..7 {
        course.live(15).await?;
        course.runtime_fault(kind).await?;
        course.live(10).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_events_is_told_to_the_last_step() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("storm", None)).await?;
    course.live(20).await?;
    course.converge().await?;
    course.count("burst of 8,000 events");
    course.world.burst(STORM);
    course.live(20).await?;
    let is_told = |oracle: &crate::oracle::Oracle| oracle.deltas >= STORM as u64 * 4;
    course.until("the storm is told", is_told).await?;
    course.converge().await?;
    let figures = course.finish()?;
    anyhow::ensure!(
        figures.owed_steps >= STORM as u64 * 4,
        "the stream was cut: only {} steps could be judged",
        figures.owed_steps
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_twice_is_told_once() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("doubled", None)).await?;
    course.world.double_percent = 100;
    for _ in 0..2 {
        course.live(60).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}
