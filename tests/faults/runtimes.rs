//! Runtimes that end streams, lose and double events, hang, fail, restart, and storm.

use std::time::Duration;

use crate::course::{Course, Setup, can_unshare};

/// Containers of the great storm, with four events each.
const STORM: usize = 2_500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_that_fail_hang_and_restart_leave_whole_stories() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("runtimes", None)).await?;
    for kind in 0..8 {
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
    course.count("burst of 10,000 events");
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
async fn a_pid_that_is_reused_before_it_is_read_is_never_the_first_ones() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("reused pids", None)).await?;
    for _ in 0..4 {
        for _ in 0..5 {
            course.live(4).await?;
            course.reuse_pid().await?;
        }
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

/// CRI's overtake each other within a container too: STOPPED may come before STARTED.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_overtake_each_other_are_told_in_order() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("overtaken", None)).await?;
    course.world.late_percent = 50;
    for _ in 0..3 {
        course.live(60).await?;
        course.converge().await?;
    }
    anyhow::ensure!(course.world.overtaken > 20, "hardly any event was late");
    course.finish()?;
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
