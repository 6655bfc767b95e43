//! `quaymaster topics` on both buses.

use quaymaster::cli::topics::{TopicsCommand, run};
use quaymaster::model::Topic;
use quaymaster::sink::{BusUrl, TopicSettings, open};
use quaymaster::wire::encoding::Encoding;

use crate::drive::{Driven, HOST, now_ms, state};
use crate::kafka::kcat;
use crate::lab::{Broker, fresh_topics};
use crate::nats::{bucket_name, client};

const DAY_MS: i64 = 86_400_000;

async fn command(
    command: TopicsCommand,
    bus: &BusUrl,
    topics: &TopicSettings,
) -> anyhow::Result<String> {
    let mut out = Vec::new();
    run(command, bus, topics, now_ms(), &mut out).await?;
    Ok(String::from_utf8(out)?)
}

/// Creates, fills, and reaps; the key `old` expired long ago, `renewed` did once, `late` but an hour ago.
async fn reap(bus: &BusUrl, topics: &TopicSettings) -> anyhow::Result<()> {
    let error = command(TopicsCommand::Verify, bus, topics).await;
    assert!(error.is_err(), "nothing is there yet");
    let text = command(TopicsCommand::List, bus, topics).await?;
    assert_eq!(text.matches("not there").count(), 4, "{text}");
    let text = command(TopicsCommand::Create, bus, topics).await?;
    assert_eq!(text.matches("created ").count(), 4, "{text}");
    command(TopicsCommand::Verify, bus, topics).await?;

    let mut driven = Driven::prepared(open(bus, topics, "quaymaster-test")?).await?;
    let now = now_ms();
    let rows = [
        ("old", now - 2 * DAY_MS),
        ("renewed", now - 2 * DAY_MS),
        ("late", now - DAY_MS / 24),
        ("renewed", now + DAY_MS),
        ("fresh", now + DAY_MS),
    ];
    for (row, (item, expires)) in (1..).zip(rows) {
        let value = format!("{{\"schema_version\":1,\"expires_at_ms\":{expires}}}");
        driven
            .send(state(row, Topic::Records, item, Some(value)))
            .await?;
    }
    driven.acked(rows.len()).await?;
    driven.finish().await?;
    let text = command(TopicsCommand::Reap, bus, topics).await?;
    assert!(text.contains("records: 1 keys tombstoned"), "{text}");
    let text = command(TopicsCommand::Reap, bus, topics).await?;
    assert!(text.contains("records: 0 keys tombstoned"), "{text}");
    let text = command(TopicsCommand::List, bus, topics).await?;
    assert!(text.contains("records: "), "{text}");
    Ok(())
}

#[tokio::test]
async fn reap_tombstones_what_expired_a_day_ago_on_kafka() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let bus = BusUrl::Kafka(kafka.servers.clone());
    let encoded = TopicSettings {
        encoding: Encoding::Protobuf,
        ..fresh_topics()
    };
    reap(&bus, &encoded).await?;
    reap(&bus, &topics).await?;
    let read = kcat(&kafka.servers, &topics.topic_name(Topic::Records)).await?;
    let dead: Vec<_> = read.iter().filter(|one| one.payload.is_none()).collect();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].key, format!("{HOST}/old"));
    let put = read.iter().find(|one| one.key == dead[0].key);
    assert_eq!(put.map(|one| one.partition), Some(dead[0].partition));
    Ok(())
}

#[tokio::test]
async fn reap_tombstones_what_expired_a_day_ago_on_nats() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let bus = BusUrl::Nats(nats.servers.clone());
    let encoded = TopicSettings {
        encoding: Encoding::Protobuf,
        ..fresh_topics()
    };
    reap(&bus, &encoded).await?;
    reap(&bus, &topics).await?;
    let store = client(&nats.servers)
        .await?
        .get_key_value(bucket_name(&topics, Topic::Records))
        .await?;
    for (item, stays) in [
        ("old", false),
        ("renewed", true),
        ("late", true),
        ("fresh", true),
    ] {
        let value = store.get(format!("{HOST}.{item}")).await?;
        assert_eq!(value.is_some(), stays, "{item}");
    }
    Ok(())
}

#[tokio::test]
async fn stdout_has_no_topics() {
    let error = command(
        TopicsCommand::Create,
        &BusUrl::Stdout,
        &TopicSettings::default(),
    )
    .await
    .expect_err("stdout has no topics");
    assert!(error.to_string().contains("stdout"));
}
