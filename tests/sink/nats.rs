//! NATS, as its own client reads it.

use anyhow::Context as _;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, kv};
use futures::StreamExt as _;
use quaymaster::model::Topic;
use quaymaster::sink::nats::NatsSink;
use quaymaster::sink::{BusUrl, ManageTopics, Outcome, Sink, SinkError, TopicSettings, open};

use crate::drive::{Driven, HOST, WAIT, delta, noise, state};
use crate::lab::{Broker, fresh_topics};

pub(crate) fn sink(servers: &[String], topics: &TopicSettings) -> anyhow::Result<Box<dyn Sink>> {
    let bus = BusUrl::Nats(servers.to_vec());
    Ok(open(&bus, topics, "quaymaster-test")?)
}

pub(crate) async fn client(servers: &[String]) -> anyhow::Result<jetstream::Context> {
    Ok(jetstream::new(
        async_nats::connect(servers.join(",")).await?,
    ))
}

/// The names of the deltas' stream and of a bucket.
pub(crate) fn stream_name(topics: &TopicSettings) -> String {
    format!("{}_DELTAS", topics.prefix.replace('.', "_").to_uppercase())
}

pub(crate) fn bucket_name(topics: &TopicSettings, topic: Topic) -> String {
    format!("{}-{}", topics.prefix.replace('.', "_"), topic.as_str())
}

async fn bucket(
    client: &jetstream::Context,
    topics: &TopicSettings,
    topic: Topic,
) -> anyhow::Result<kv::Store> {
    Ok(client.get_key_value(bucket_name(topics, topic)).await?)
}

/// All deltas, as (subject, headers, seq in the value).
pub(crate) async fn read_deltas(
    client: &jetstream::Context,
    topics: &TopicSettings,
) -> anyhow::Result<Vec<(String, async_nats::HeaderMap, u64)>> {
    let mut stream = client.get_stream(stream_name(topics)).await?;
    let count = stream.info().await?.state.messages;
    let consumer = stream
        .create_consumer(jetstream::consumer::pull::OrderedConfig::default())
        .await?;
    let mut messages = consumer.messages().await?;
    let mut read = Vec::new();
    while (read.len() as u64) < count {
        let message = tokio::time::timeout(WAIT, messages.next())
            .await?
            .context("the stream ended")??;
        let value: serde_json::Value = serde_json::from_slice(&message.payload)?;
        let seq = value.get("seq").and_then(serde_json::Value::as_u64);
        read.push((
            message.subject.to_string(),
            message.headers.clone().unwrap_or_default(),
            seq.context("a seq")?,
        ));
    }
    Ok(read)
}

#[tokio::test]
async fn ten_thousand_deltas_arrive_in_order_and_each_is_acknowledged_once() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    let sending = driven.send_all((1..=10_000).map(delta).collect());
    let acked = driven.acked(10_000).await?;
    sending.await?;
    assert!(driven.finish().await?.is_empty(), "each is reported once");
    assert!(acked.into_iter().eq(1..=10_000));
    let read = read_deltas(&client(&nats.servers).await?, &topics).await?;
    assert!(read.iter().map(|(_, _, seq)| *seq).eq(1..=10_000));
    let (subject, headers, _) = read.first().context("a delta")?;
    assert_eq!(*subject, format!("{}.deltas.{HOST}.update", topics.prefix));
    for (name, value) in [
        ("ce-id", format!("{HOST}:epoch:1").as_str()),
        ("Nats-Msg-Id", format!("{HOST}:epoch:1").as_str()),
        ("ce-type", "io.quaymaster.delta.v1"),
        ("ce-specversion", "1.0"),
        ("ce-source", "quaymaster/test"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(
            headers.get(name).map(|found| found.as_str()),
            Some(value),
            "{name}"
        );
    }
    assert!(headers.get("ce-time").is_some());
    Ok(())
}

#[tokio::test]
async fn each_key_ends_at_its_newest_value_and_tombstones_delete() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    let mut messages = Vec::new();
    for round in 0..20_u64 {
        for key in 0..50_u64 {
            let row = round * 50 + key + 1;
            let value = (round < 19 || key % 2 == 0).then(|| format!("{{\"round\":{round}}}"));
            messages.push(state(row, Topic::Records, &format!("c{key}"), value));
        }
    }
    let sending = driven.send_all(messages);
    driven.acked(1_000).await?;
    sending.await?;
    driven.finish().await?;
    let store = bucket(&client(&nats.servers).await?, &topics, Topic::Records).await?;
    for key in 0..50 {
        let name = format!("{HOST}.c{key}");
        let entry = store.entry(name.clone()).await?.context("an entry")?;
        if key % 2 == 0 {
            assert_eq!(entry.value.as_ref(), b"{\"round\":19}", "{name}");
        } else {
            assert_eq!(entry.operation, kv::Operation::Delete, "{name}");
            assert!(store.get(name).await?.is_none());
        }
    }
    let marker = store
        .stream
        .get_last_raw_message_by_subject(&format!("{}{HOST}.c1", store.prefix))
        .await?;
    let id = marker.headers.get("ce-id").map(|id| id.as_str().to_owned());
    assert_eq!(id, Some(format!("{HOST}:epoch:r952")));
    assert!(marker.headers.get("content-type").is_none());
    assert!(marker.headers.get("Nats-Msg-Id").is_none());
    Ok(())
}

#[tokio::test]
async fn an_outside_write_is_overwritten_by_the_next_value() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    let store = bucket(&client(&nats.servers).await?, &topics, Topic::Pns).await?;
    let key = format!("{HOST}.4026532448");
    let mapping = |row, text: &str| state(row, Topic::Pns, "4026532448", Some(text.to_owned()));
    // Before the sink knows the key, and after.
    store.put(key.clone(), "outside".into()).await?;
    driven.send(mapping(1, "1")).await?;
    driven.acked(1).await?;
    assert_eq!(store.get(key.clone()).await?.as_deref(), Some(&b"1"[..]));
    store.put(key.clone(), "outside".into()).await?;
    driven.send(mapping(2, "2")).await?;
    driven.acked(1).await?;
    assert_eq!(store.get(key.clone()).await?.as_deref(), Some(&b"2"[..]));
    store.purge(key.clone()).await?;
    driven.send(mapping(3, "3")).await?;
    driven.acked(1).await?;
    assert_eq!(store.get(key).await?.as_deref(), Some(&b"3"[..]));
    driven.finish().await?;
    Ok(())
}

#[tokio::test]
async fn a_value_that_is_there_already_is_acknowledged_and_not_written_twice() -> anyhow::Result<()>
{
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let message = state(7, Topic::Records, "c", Some("{}".to_owned()));
    for _ in 0..2 {
        let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
        driven.send(message.clone()).await?;
        driven.send(delta(1)).await?;
        driven.acked(2).await?;
        driven.finish().await?;
    }
    let client = client(&nats.servers).await?;
    let mut store = bucket(&client, &topics, Topic::Records).await?;
    assert_eq!(store.stream.info().await?.state.last_sequence, 1);
    assert_eq!(
        read_deltas(&client, &topics).await?.len(),
        1,
        "the server knows its id"
    );
    Ok(())
}

#[tokio::test]
async fn hostile_tokens_are_encoded() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&nats.servers, &topics)?).await?;
    for (row, item) in [
        (1, "moby:a.b"),
        (2, ">"),
        (3, "*"),
        (4, "a b\r\n"),
        (5, "ü="),
    ] {
        driven
            .send(state(row, Topic::Records, item, Some(row.to_string())))
            .await?;
    }
    let mut hostile = delta(6);
    hostile.host_id = "h.>".into();
    hostile.op = "x y".into();
    driven.send(hostile).await?;
    driven.acked(6).await?;
    driven.finish().await?;
    let client = client(&nats.servers).await?;
    let store = bucket(&client, &topics, Topic::Records).await?;
    for (row, item) in [
        (1, "moby=3Aa=2Eb"),
        (2, "=3E"),
        (3, "=2A"),
        (4, "a=20b=0D=0A"),
        (5, "=C3=BC=3D"),
    ] {
        let value = store.get(format!("{HOST}.{item}")).await?;
        assert_eq!(value.as_deref(), Some(row.to_string().as_bytes()), "{item}");
    }
    let read = read_deltas(&client, &topics).await?;
    assert_eq!(read[0].0, format!("{}.deltas.h=2E=3E.x=20y", topics.prefix));
    Ok(())
}

#[tokio::test]
async fn a_delta_that_is_too_large_has_a_gap_in_its_place_and_the_others_go_on()
-> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut prepared = sink(&nats.servers, &topics)?;
    prepared.prepare().await?;
    let client = client(&nats.servers).await?;
    let mut stream = client.get_stream(stream_name(&topics)).await?;
    let mut config = stream.info().await?.config.clone();
    config.max_message_size = 20_000;
    client.update_stream(config).await?;
    let mut driven = Driven::start(prepared);
    let messages = (1..=30_u64).map(|row| {
        let bytes = match row {
            10 => 1_500_000,
            20 => 30_000,
            _ => 100,
        };
        let mut message = delta(row);
        let value = format!(
            "{{\"host_name\":\"n\",\"boot_id\":\"b\",\"epoch\":\"e\",\"seq\":{row},\"x\":{}}}",
            noise(bytes, row)
        );
        message.value = Some(value.as_bytes().to_vec().into());
        message
    });
    let sending = driven.send_all(messages.collect());
    let mut rejected = Vec::new();
    for _ in 0..30 {
        let report = driven.report().await?;
        if let Outcome::Replaced { .. } = report.outcome {
            rejected.push(report.row);
        }
    }
    sending.await?;
    driven.finish().await?;
    assert_eq!(rejected, [10, 20]);
    let read = read_deltas(&client, &topics).await?;
    assert!(read.iter().map(|(_, _, seq)| *seq).eq(1..=30));
    Ok(())
}

#[tokio::test]
async fn streams_are_created_as_designed_and_a_wrong_one_is_refused_by_name() -> anyhow::Result<()>
{
    let Some(nats) = Broker::Nats.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut admin = NatsSink::new(&nats.servers, &topics, "quaymaster-test");
    let missing = admin
        .verify_streams()
        .await
        .expect_err("nothing is there yet");
    assert!(missing.to_string().contains("topics.manage"), "{missing}");
    assert_eq!(admin.create_streams().await?.len(), 4);
    assert!(admin.create_streams().await?.is_empty());
    admin.verify_streams().await?;
    assert!(admin.list_streams().await?.iter().all(|info| info.exists));
    let client = client(&nats.servers).await?;
    let deltas = client.get_stream(stream_name(&topics)).await?;
    let config = &deltas.cached_info().config;
    assert_eq!(config.subjects, [format!("{}.deltas.>", topics.prefix)]);
    assert_eq!(config.max_age.as_secs(), 7 * 86_400);
    assert_eq!(config.duplicate_window.as_secs(), 120);
    assert_eq!(config.storage, StorageType::File);
    let store = bucket(&client, &topics, Topic::Status).await?;
    let status = store.status().await?;
    assert_eq!(
        (status.history(), status.max_age().as_secs()),
        (1, 7 * 86_400)
    );
    assert_eq!(status.info.config.max_bytes, -1);

    let wrong = fresh_topics();
    client
        .create_stream(Config {
            name: stream_name(&wrong),
            subjects: vec![format!("{}.deltas.>", wrong.prefix)],
            retention: RetentionPolicy::WorkQueue,
            ..Config::default()
        })
        .await?;
    let error = sink(&nats.servers, &wrong)?
        .prepare()
        .await
        .expect_err("a work queue loses what is read");
    assert!(matches!(error, SinkError::Misconfigured { .. }));
    let text = error.to_string();
    for piece in [&stream_name(&wrong), "WorkQueue", "topics.manage"] {
        assert!(text.contains(piece), "{text}");
    }
    let off = TopicSettings {
        manage: ManageTopics::Off,
        ..wrong
    };
    sink(&nats.servers, &off)?.prepare().await?;
    Ok(())
}

#[tokio::test]
async fn a_nats_that_is_not_there_is_unavailable_within_seconds() -> anyhow::Result<()> {
    let mut sink = sink(&["127.0.0.1:1".to_owned()], &TopicSettings::default())?;
    let error = tokio::time::timeout(WAIT / 4, sink.prepare())
        .await?
        .expect_err("nothing listens there");
    assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    Ok(())
}
