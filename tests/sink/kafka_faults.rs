//! Kafka stopped, started and killed while messages are on their way.

use quaymaster::model::Topic;

use crate::drive::{Driven, WAIT, delta};
use crate::kafka::{Read, first_appearances, kcat, sink};
use crate::lab::{Broker, fresh_topics, report};

async fn survives(ends_with: &'static str) -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    let (mut acked, health) = driven
        .over_an_outage(
            &kafka,
            ends_with,
            (1..=10_000).map(delta).collect(),
            (10_001..=20_000).map(delta).collect(),
        )
        .await?;
    assert!(!health.error.is_empty());
    assert!(driven.health.borrow().up);
    driven.finish().await?;
    acked.sort_unstable();
    assert!(
        acked.into_iter().eq(1..=20_000),
        "each is acknowledged once"
    );

    let read = kcat(&kafka.servers, &topics.topic_name(Topic::Deltas)).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    let copies = seqs.len();
    assert!(first_appearances(&mut seqs).into_iter().eq(1..=20_000));
    report(&format!(
        "kafka {ends_with}: {copies} records for 20000 deltas, {}",
        health.error
    ));
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_and_order_kept_over_a_restart_of_kafka() -> anyhow::Result<()> {
    survives("stop").await
}

#[tokio::test]
async fn nothing_is_lost_and_order_kept_over_a_killed_kafka() -> anyhow::Result<()> {
    survives("kill9").await
}

#[tokio::test]
async fn stop_ends_the_sink_at_once_while_kafka_is_away() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    driven.send(delta(1)).await?;
    driven.acked(1).await?;
    kafka.order("stop").await?;
    let sent = driven.send(delta(2)).await;
    driven.stop.cancel();
    let ended = tokio::time::timeout(WAIT / 30, driven.task).await;
    kafka.order("start").await?;
    sent?;
    ended???;
    Ok(())
}
