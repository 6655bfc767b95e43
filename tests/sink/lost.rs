//! Buses that lose what they acknowledged: restored from an earlier copy, also when others have written past it
//! since, or deleted and made anew. And what is no loss.

use std::sync::Arc;

use anyhow::Context as _;
use quaymaster::model::Topic;
use quaymaster::sink::{
    Ended, Landmark, Loss, ManageTopics, Outcome, Outgoing, Position, Sink, TopicSettings, Verdict,
};
use rdkafka::admin::AdminOptions;

use crate::drive::{Driven, HOST, WAIT, delta, state};
use crate::kafka::{self, Read, admin, kcat};
use crate::lab::{Broker, Fragile, fresh_topics};
use crate::nats::{self, client, read_deltas, stream_name};

impl Driven {
    /// The places of the next messages, which must all be acknowledged.
    async fn places(&mut self, count: usize) -> anyhow::Result<Vec<(u64, Position)>> {
        let mut places = Vec::new();
        while places.len() < count {
            let report = self.report().await?;
            match report.outcome {
                Outcome::Acked(position) => places.push((report.row, position)),
                Outcome::Rejected(reason) | Outcome::Replaced { reason, .. } => {
                    anyhow::bail!("row {}: {reason}", report.row)
                }
            }
        }
        Ok(places)
    }

    /// Waits until the sink ends over a loss.
    async fn loss(self) -> anyhow::Result<Loss> {
        let ended = tokio::time::timeout(WAIT, self.task)
            .await
            .context("the sink notices no loss")???;
        drop(self.requests);
        match ended {
            Ended::BusLostData(loss) => Ok(loss),
            Ended::Finished => anyhow::bail!("it has ended without a loss"),
        }
    }
}

fn landmark(bus: &Arc<str>, row: u64, position: Position) -> Landmark {
    Landmark {
        bus: Arc::clone(bus),
        position,
        ce_id: delta(row).ce_id,
    }
}

fn of_another_host(row: u64) -> Outgoing {
    Outgoing {
        host_id: Arc::from("another"),
        ce_id: Arc::from(format!("another:epoch:{row}").as_str()),
        ..delta(row)
    }
}

async fn verdict(sink: &mut Box<dyn Sink>, last: &Landmark) -> anyhow::Result<Verdict> {
    Ok(tokio::time::timeout(WAIT, sink.check(Some(last)))
        .await??
        .verdict)
}

/// A copy of the broker's data is put back under it, twice: once while the sink runs, once while it does not and
/// another host has written since.
async fn a_restored_copy_is_noticed(
    broker: &Fragile,
    data: &'static str,
    open: impl Fn() -> anyhow::Result<Box<dyn Sink>>,
) -> anyhow::Result<()> {
    let mut sink = open()?;
    sink.prepare().await?;
    let bus = sink.check(None).await?.bus;
    assert!(!bus.is_empty());
    let mut driven = Driven::start(sink);
    let sending = driven.send_all((1..=100).map(delta).collect());
    let kept = driven.places(100).await?;
    sending.await?;
    broker.order("stop").await?;
    broker.copy(data, "copy")?;
    broker.order("start").await?;
    // An outage without a loss is none.
    let sending = driven.send_all((101..=150).map(delta).collect());
    let gone = driven.places(50).await?;
    sending.await?;
    broker.order("stop").await?;
    broker.copy("copy", data)?;
    broker.order("start").await?;
    let loss = driven.loss().await?;
    assert_eq!(loss.newest, Some(delta(100).ce_id), "{loss:?}");

    let mut others = Driven::prepared(open()?).await?;
    let sending = others.send_all((1..=60).map(of_another_host).collect());
    others.places(60).await?;
    sending.await?;
    others.finish().await?;
    let mut sink = open()?;
    sink.prepare().await?;
    let last = |place: Option<&(u64, Position)>| {
        let (row, position) = place.copied().context("a place")?;
        anyhow::Ok(landmark(&bus, row, position))
    };
    assert_eq!(
        verdict(&mut sink, &last(kept.last())?).await?,
        Verdict::Kept
    );
    let Verdict::Lost(loss) = verdict(&mut sink, &last(gone.last())?).await? else {
        anyhow::bail!("another's message stands for the last one");
    };
    assert!(loss.reason.contains("another:epoch:"), "{loss:?}");
    assert_eq!(loss.newest, Some(delta(100).ce_id), "{loss:?}");
    let elsewhere = Landmark {
        bus: Arc::from("another bus"),
        ..last(kept.last())?
    };
    let found = verdict(&mut sink, &elsewhere).await?;
    assert!(
        matches!(found, Verdict::Lost(Loss { newest: None, .. })),
        "{found:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_kafka_restored_from_a_copy_is_noticed_also_past_others_messages() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    let topics = TopicSettings {
        partitions: 1,
        ..fresh_topics()
    };
    let open = || kafka::sink(&broker.servers, &topics);
    a_restored_copy_is_noticed(&broker, "kafka/data", open).await
}

#[tokio::test]
async fn a_nats_restored_from_a_copy_is_noticed_also_past_others_messages() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let open = || nats::sink(&broker.servers, &topics);
    a_restored_copy_is_noticed(&broker, "nats/store", open).await
}

#[tokio::test]
async fn a_topic_deleted_under_way_is_made_again_and_the_loss_is_told() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(kafka::sink(&broker.servers, &topics)?).await?;
    driven.send(delta(1)).await?;
    driven.places(1).await?;
    let name = topics.topic_name(Topic::Deltas);
    for result in admin(&broker.servers)?
        .delete_topics(&[&name], &AdminOptions::new())
        .await?
    {
        result.map_err(|(_, code)| code)?;
    }
    driven.send(delta(2)).await?;
    driven.loss().await?;
    let mut driven = Driven::prepared(kafka::sink(&broker.servers, &topics)?).await?;
    let sending = driven.send_all((1..=20).map(delta).collect());
    driven.places(20).await?;
    sending.await?;
    driven.finish().await?;
    let read = kcat(&broker.servers, &name).await?;
    let first = read.iter().filter_map(Read::seq).next();
    assert_eq!(first, Some(1), "nothing went before what was lost");
    Ok(())
}

#[tokio::test]
async fn what_was_written_after_a_loss_does_not_stand_for_what_survived() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut sink = kafka::sink(&broker.servers, &topics)?;
    sink.prepare().await?;
    let bus = sink.check(None).await?.bus;
    let mut driven = Driven::start(sink);
    // The log was made anew after delta 50, and the sink has gone on.
    let sending = driven.send_all((51..=53).map(delta).collect());
    let places = driven.places(3).await?;
    sending.await?;
    driven.finish().await?;

    let mut sink = kafka::sink(&broker.servers, &topics)?;
    sink.prepare().await?;
    let (_, written) = places.first().context("a place")?;
    let beyond = Position {
        offset: written.offset + 1_000,
        ..*written
    };
    for (last, survived) in [(50, None), (52, Some(52)), (60, Some(53))] {
        let found = verdict(&mut sink, &landmark(&bus, last, beyond)).await?;
        let Verdict::Lost(loss) = found else {
            anyhow::bail!("nothing stands at that place: {found:?}");
        };
        let survived = survived.map(|row| delta(row).ce_id);
        assert_eq!(loss.newest, survived, "the last was {last}: {loss:?}");
    }
    Ok(())
}

#[tokio::test]
async fn streams_that_vanish_are_made_again_and_the_loss_is_told() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    for topic in [Topic::Deltas, Topic::Records] {
        let topics = fresh_topics();
        let mut driven = Driven::prepared(nats::sink(&broker.servers, &topics)?).await?;
        let record = |row| state(row, Topic::Records, "c", Some(row.to_string()));
        driven.send(delta(1)).await?;
        driven.send(record(2)).await?;
        driven.places(2).await?;
        let client = client(&broker.servers).await?;
        match topic {
            Topic::Deltas => client.delete_stream(stream_name(&topics)).await.map(drop)?,
            Topic::Records | Topic::Pns | Topic::Status | Topic::Processes | Topic::Ports => client
                .delete_key_value(nats::bucket_name(&topics, topic))
                .await
                .map(drop)?,
        }
        driven.send(delta(3)).await?;
        driven.send(record(4)).await?;
        driven.loss().await?;
        let mut driven = Driven::prepared(nats::sink(&broker.servers, &topics)?).await?;
        for message in [delta(1), record(2), delta(3), record(4)] {
            driven.send(message).await?;
        }
        driven.places(4).await?;
        driven.finish().await?;
        let read = read_deltas(&client, &topics).await?;
        let mut seqs: Vec<u64> = read.into_iter().map(|(_, _, seq)| seq).collect();
        assert_eq!(kafka::first_appearances(&mut seqs), [1, 3], "{topic:?}");
        let store = client
            .get_key_value(nats::bucket_name(&topics, Topic::Records))
            .await?;
        let found = store.get(format!("{HOST}.c")).await?;
        assert_eq!(found.as_deref(), Some(&b"4"[..]), "{topic:?}");
    }
    Ok(())
}

/// A stream that was deleted and made anew by somebody, and what the bus itself let go.
#[tokio::test]
async fn what_went_with_the_retention_is_kept_and_a_new_stream_is_a_loss() -> anyhow::Result<()> {
    let (Some(kafka), Some(nats)) = (Broker::Kafka.steady().await?, Broker::Nats.steady().await?)
    else {
        return Ok(());
    };
    let topics = fresh_topics();
    let client = client(&nats.servers).await?;
    let mut sink = nats::sink(&nats.servers, &topics)?;
    sink.prepare().await?;
    let bus = sink.check(None).await?.bus;
    let mut driven = Driven::start(sink);
    let sending = driven.send_all((1..=20).map(delta).collect());
    let places = driven.places(20).await?;
    sending.await?;
    driven.finish().await?;
    let last = landmark(&bus, 20, places[19].1);
    let stream = client.get_stream(stream_name(&topics)).await?;
    stream.purge().sequence(21).await?;
    let mut sink = nats::sink(&nats.servers, &topics)?;
    sink.prepare().await?;
    assert_eq!(verdict(&mut sink, &last).await?, Verdict::Kept);
    client.delete_stream(stream_name(&topics)).await?;
    sink.prepare().await?;
    let found = verdict(&mut sink, &last).await?;
    assert!(matches!(found, Verdict::Lost(_)), "{found:?}");

    let topics = fresh_topics();
    let mut driven = Driven::prepared(kafka::sink(&kafka.servers, &topics)?).await?;
    let sending = driven.send_all((1..=20).map(delta).collect());
    let places = driven.places(20).await?;
    sending.await?;
    driven.finish().await?;
    let mut sink = kafka::sink(&kafka.servers, &topics)?;
    sink.prepare().await?;
    let bus = sink.check(None).await?.bus;
    let last = landmark(&bus, 20, places[19].1);
    assert_eq!(verdict(&mut sink, &last).await?, Verdict::Kept);
    let mut before = rdkafka::TopicPartitionList::new();
    let name = topics.topic_name(Topic::Deltas);
    let end = rdkafka::Offset::Offset(last.position.offset + 1);
    before.add_partition_offset(&name, last.position.partition, end)?;
    admin(&kafka.servers)?
        .delete_records(&before, &AdminOptions::new())
        .await?;
    assert_eq!(verdict(&mut sink, &last).await?, Verdict::Kept);
    let off = TopicSettings {
        manage: ManageTopics::Off,
        ..fresh_topics()
    };
    let found = verdict(&mut kafka::sink(&kafka.servers, &off)?, &last).await?;
    assert!(matches!(found, Verdict::Lost(_)), "{found:?}");
    Ok(())
}
