//! `quaymaster enrich` while its broker is killed and started again: nothing is missing in the output, and nothing is
//! acknowledged at the input that the output does not have.

use anyhow::ensure;

use crate::enrich::{Enricher, INODES, Kafka, Nats, Read, until};
use crate::lab::Broker;

/// Events before, during and after each of the broker's deaths.
const PART: usize = 150;
const DEATHS: usize = 2;
const TOTAL: usize = DEATHS * 3 * PART;

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_costs_no_event() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    let kafka = Kafka::new(&broker.servers).await?;
    for inode in INODES {
        kafka.map(inode).await?;
    }
    let mut enricher = Enricher::start(&kafka.bus(), &kafka.topics, &kafka.arguments(&[]))?;
    enricher.says(&["partitions are assigned"]).await?;
    for death in 0..DEATHS {
        let from = death * 3 * PART;
        kafka.events(from..from + PART).await?;
        // What follows is on its way, at us or in the enricher, when the broker dies.
        for number in from + PART..from + 2 * PART {
            kafka.hand_over_event(number)?;
        }
        broker.order("kill9").await?;
        for number in from + 2 * PART..from + 3 * PART {
            kafka.hand_over_event(number)?;
        }
        broker.order("start").await?;
        // The one is asked for before the other, which may grow meanwhile.
        let committed = until("the group's offsets can be read", async || {
            Ok(kafka.committed().ok())
        })
        .await?;
        let joined = kafka.joined().await?.len();
        ensure!(
            usize::try_from(committed)? <= joined,
            "{committed} are committed, and {joined} in the output"
        );
        kafka.delivered().await?;
    }
    kafka.joined_all(TOTAL).await?;
    let log = enricher.stop().await?;
    ensure!(!log.contains("ERROR"), "{log}");
    ensure!(
        kafka.committed()? == i64::try_from(TOTAL)?,
        "{} are committed",
        kafka.committed()?
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_is_killed_costs_no_event() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    let nats = Nats::new(&broker.servers).await?;
    for inode in INODES {
        nats.map(inode).await?;
    }
    let mut enricher = Enricher::start(&nats.bus, &nats.topics, &nats.arguments())?;
    enricher.says(&["the table is filled"]).await?;
    let mut read = Read::default();
    for death in 0..DEATHS {
        let from = death * 3 * PART;
        nats.events(from..from + PART).await?;
        let killed_and_started = async {
            broker.order("kill9").await?;
            broker.order("start").await
        };
        tokio::try_join!(
            nats.events(from + PART..from + 3 * PART),
            killed_and_started
        )?;
        let acknowledged = until("the consumer can be asked", async || {
            Ok(nats.acknowledged().await.ok())
        })
        .await?;
        nats.read(&mut read).await?;
        // An event that was sent twice counts twice at the input, and once here.
        ensure!(
            acknowledged <= read.sequence(),
            "{acknowledged} are acknowledged, and {} in the output",
            read.sequence()
        );
    }
    until("all events are in the output", async || {
        nats.read(&mut read).await?;
        Ok((read.joined.len() == TOTAL).then_some(()))
    })
    .await?;
    let log = enricher.stop().await?;
    ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}
