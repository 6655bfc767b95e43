//! NATS stopped, started and killed while messages are on their way.

use quaymaster::model::Topic;

use crate::drive::{Driven, HOST, WAIT, delta, state};
use crate::kafka::first_appearances;
use crate::lab::{Broker, fresh_topics, report};
use crate::nats::{bucket_name, client, read_deltas, sink};

async fn survives(ends_with: &'static str) -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    // Each third message puts one of seven records.
    let message = |row: u64| {
        if row.is_multiple_of(3) {
            let item = format!("c{}", row % 7);
            state(row, Topic::Records, &item, Some(row.to_string()))
        } else {
            delta(row)
        }
    };
    let (mut acked, health) = driven
        .over_an_outage(
            &nats,
            ends_with,
            (1..=6_000).map(message).collect(),
            (6_001..=12_000).map(message).collect(),
        )
        .await?;
    assert!(!health.error.is_empty());
    assert!(driven.health.borrow().up);
    driven.finish().await?;
    acked.sort_unstable();
    assert!(
        acked.into_iter().eq(1..=12_000),
        "each is acknowledged once"
    );

    let client = client(&nats.servers).await?;
    let mut seqs: Vec<u64> = read_deltas(&client, &topics)
        .await?
        .into_iter()
        .map(|(_, _, seq)| seq)
        .collect();
    let copies = seqs.len();
    let expected = (1..=12_000).filter(|row| row % 3 != 0);
    assert!(first_appearances(&mut seqs).into_iter().eq(expected));
    let store = client
        .get_key_value(bucket_name(&topics, Topic::Records))
        .await?;
    for key in 0..7 {
        let newest = (1..=12_000_u64).rfind(|row| row % 3 == 0 && row % 7 == key);
        let found = store.get(format!("{HOST}.c{key}")).await?;
        let expected = newest.map(|row| row.to_string().into_bytes());
        assert_eq!(found.map(|bytes| bytes.to_vec()), expected, "c{key}");
    }
    report(&format!(
        "nats {ends_with}: {copies} messages for 8000 deltas, {}",
        health.error
    ));
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_and_order_kept_over_a_restart_of_nats() -> anyhow::Result<()> {
    survives("stop").await
}

#[tokio::test]
async fn nothing_is_lost_and_order_kept_over_a_killed_nats() -> anyhow::Result<()> {
    survives("kill9").await
}

#[tokio::test]
async fn stop_ends_the_sink_at_once_while_nats_is_away() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    driven.send(delta(1)).await?;
    driven.acked(1).await?;
    nats.order("stop").await?;
    let sent = driven.send(delta(2)).await;
    driven.stop.cancel();
    let ended = tokio::time::timeout(WAIT / 30, driven.task).await;
    nats.order("start").await?;
    sent?;
    ended???;
    Ok(())
}
