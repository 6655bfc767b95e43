//! Kafka, as kcat reads it.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::Context as _;
use quaymaster::model::Topic;
use quaymaster::sink::kafka::topics::Admin;
use quaymaster::sink::{BusUrl, ManageTopics, Outcome, Sink, SinkError, TopicSettings, open};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use serde::Deserialize;

pub(crate) use crate::admin::admin;
use crate::admin::alter;
use crate::drive::{Driven, HOST, WAIT, delta, noise, now_ms, state};
use crate::lab::{Broker, fresh_topics};

/// A record as `kcat -J` prints it.
#[derive(Debug, Deserialize)]
pub(crate) struct Read {
    pub(crate) partition: i32,
    pub(crate) ts: i64,
    #[serde(default)]
    pub(crate) headers: Vec<String>,
    pub(crate) key: String,
    pub(crate) payload: Option<String>,
}

impl Read {
    fn headers(&self) -> BTreeMap<&str, &str> {
        self.headers
            .chunks(2)
            .filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1)?.as_str())))
            .collect()
    }

    pub(crate) fn seq(&self) -> Option<u64> {
        let value: serde_json::Value = serde_json::from_str(self.payload.as_deref()?).ok()?;
        value.get("seq")?.as_u64()
    }
}

pub(crate) fn sink(servers: &[String], topics: &TopicSettings) -> anyhow::Result<Box<dyn Sink>> {
    let bus = BusUrl::Kafka(servers.to_vec());
    Ok(open(&bus, topics, "quaymaster-test")?)
}

/// All that is in a topic.
pub(crate) async fn kcat(servers: &[String], topic: &str) -> anyhow::Result<Vec<Read>> {
    let command = tokio::process::Command::new("kcat")
        .args(["-C", "-e", "-q", "-J", "-o", "beginning", "-t", topic, "-b"])
        .arg(servers.join(","))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(WAIT, command).await??;
    anyhow::ensure!(
        output.status.success(),
        "kcat: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

#[tokio::test]
async fn ten_thousand_deltas_arrive_in_order_and_each_is_acknowledged_once() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    let sending = driven.send_all((1..=10_000).map(delta).collect());
    let acked = driven.acked(10_000).await?;
    sending.await?;
    assert!(driven.finish().await?.is_empty(), "each is reported once");
    let mut sorted = acked;
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(1..=10_000));
    let read = kcat(&kafka.servers, &topics.topic_name(Topic::Deltas)).await?;
    assert!(read.iter().filter_map(Read::seq).eq(1..=10_000));
    assert!(
        read.windows(2)
            .all(|pair| pair[0].partition == pair[1].partition)
    );
    Ok(())
}

#[tokio::test]
async fn on_an_idle_bus_a_delta_never_waits_for_its_record() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let mut driven = Driven::prepared(sink(&kafka.servers, &fresh_topics())?).await?;
    let pair = |row: u64| {
        let item = format!("{row:064x}");
        let record = state(row + 1, Topic::Records, &item, Some("{}".to_owned()));
        [delta(row), record]
    };

    for row in (1..=200).step_by(2) {
        for message in pair(row) {
            driven.send(message).await?;
        }
        assert_eq!(driven.acked(2).await?, [row, row + 1]);
    }

    // Where there is more, none waits for another.
    let sending = driven.send_all((201..=10_200).step_by(2).flat_map(pair).collect());
    let mut acked = driven.acked(10_000).await?;
    sending.await?;
    acked.sort_unstable();
    assert_eq!(acked, (201..=10_200).collect::<Vec<_>>());
    driven.finish().await?;
    Ok(())
}

#[tokio::test]
async fn kcat_reads_keys_headers_times_and_tombstones() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    let mut old = delta(1);
    old.time_ms = 1_640_000_000_123;
    let recent_ms = now_ms() - 5_000;
    let mut mapping = state(
        2,
        Topic::Pns,
        "4026532448",
        Some("{\"a\": 1.50}".to_owned()),
    );
    mapping.time_ms = recent_ms;
    driven.send(old).await?;
    driven.send(mapping).await?;
    driven
        .send(state(3, Topic::Pns, "4026532448", None))
        .await?;
    driven
        .send(state(
            0,
            Topic::Status,
            "",
            Some("{\"state\":\"live\"}".to_owned()),
        ))
        .await?;
    driven.acked(3).await?;
    assert!(
        driven.finish().await?.is_empty(),
        "a status message is not reported"
    );

    let deltas = kcat(&kafka.servers, &topics.topic_name(Topic::Deltas)).await?;
    let first = deltas.first().context("a delta")?;
    assert_eq!(first.key, HOST);
    let headers = first.headers();
    assert_eq!(
        headers.get("ce_id"),
        Some(&format!("{HOST}:epoch:1").as_str())
    );
    assert_eq!(headers.get("ce_source"), Some(&"quaymaster/test"));
    assert_eq!(headers.get("ce_type"), Some(&"io.quaymaster.delta.v1"));
    assert_eq!(headers.get("ce_specversion"), Some(&"1.0"));
    assert_eq!(headers.get("ce_time"), Some(&"2021-12-20T11:33:20.123Z"));
    assert_eq!(headers.get("content-type"), Some(&"application/json"));
    let age_ms = now_ms() - first.ts;
    assert!(
        age_ms < 4 * 86_400_000,
        "retention would delete it: {age_ms}"
    );

    let pns = kcat(&kafka.servers, &topics.topic_name(Topic::Pns)).await?;
    let [put, tombstone] = pns.as_slice() else {
        anyhow::bail!("a mapping and its tombstone, not {pns:?}");
    };
    assert_eq!(put.key, format!("{HOST}/4026532448"));
    assert_eq!(put.payload.as_deref(), Some("{\"a\": 1.50}"));
    assert_eq!(put.ts, recent_ms, "the event's own time");
    assert_eq!(tombstone.payload, None);
    assert_eq!(
        tombstone.headers().get("ce_id"),
        Some(&format!("{HOST}:epoch:r3").as_str())
    );
    assert!(!tombstone.headers().contains_key("content-type"));
    assert_eq!(put.partition, tombstone.partition);

    let status = kcat(&kafka.servers, &topics.topic_name(Topic::Status)).await?;
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].key, HOST);
    Ok(())
}

#[tokio::test]
async fn only_the_newest_waiting_status_is_sent_and_the_last_one_always() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    for seq in 1..=500 {
        let value = format!("{{\"seq\":{seq}}}");
        driven
            .send(state(0, Topic::Status, "", Some(value)))
            .await?;
    }
    driven.finish().await?;
    let status = kcat(&kafka.servers, &topics.topic_name(Topic::Status)).await?;
    assert_eq!(status.last().and_then(Read::seq), Some(500));
    assert!(status.windows(2).all(|pair| pair[0].seq() < pair[1].seq()));
    Ok(())
}

#[tokio::test]
async fn topics_are_created_as_designed_and_found_well() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = TopicSettings {
        partitions: 12,
        ..fresh_topics()
    };
    let admin = Admin::new(&kafka.servers, "quaymaster-test")?;
    let missing = admin.verify(&topics).await;
    let error = missing.expect_err("nothing is there yet").to_string();
    assert!(error.contains("topics.manage"), "{error}");
    assert_eq!(admin.create(&topics).await?.len(), 4);
    assert!(admin.create(&topics).await?.is_empty(), "all is there");
    admin.verify(&topics).await?;
    let listed = admin.list(&topics).await?;
    for (info, topic) in listed.iter().zip(Topic::ALL) {
        assert_eq!(info.name, topics.topic_name(topic));
        assert_eq!(info.partitions, 12);
        assert_eq!(info.replicas, 1);
        let setting = |key: &str| info.settings.get(key).map(String::as_str);
        assert_eq!(setting("retention.ms"), Some("604800000"));
        if topic == Topic::Deltas {
            assert_eq!(setting("cleanup.policy"), Some("delete"));
        } else {
            assert_eq!(setting("cleanup.policy"), Some("compact,delete"));
            assert_eq!(setting("segment.ms"), Some("3600000"));
            assert_eq!(setting("max.compaction.lag.ms"), Some("3600000"));
            assert_eq!(setting("min.cleanable.dirty.ratio"), Some("0.2"));
            assert_eq!(setting("delete.retention.ms"), Some("86400000"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_cleanup_policy_is_an_error_that_names_topic_and_setting() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    for (manage, word) in [
        (ManageTopics::Create, "create"),
        (ManageTopics::Verify, "verify"),
    ] {
        let topics = TopicSettings {
            manage,
            ..fresh_topics()
        };
        Admin::new(&kafka.servers, "quaymaster-test")?
            .create(&topics)
            .await?;
        let records = topics.topic_name(Topic::Records);
        alter(&kafka.servers, &records, "cleanup.policy", "delete").await?;
        let error = sink(&kafka.servers, &topics)?
            .prepare()
            .await
            .expect_err("the policy is wrong");
        assert!(matches!(error, SinkError::Misconfigured { .. }));
        let text = error.to_string();
        let pieces = [&records, "`delete`", "`compact,delete`", "topics.manage"];
        for piece in pieces {
            assert!(text.contains(piece), "{text}");
        }
        let folder = tempfile::tempdir()?;
        let state = format!("--state-dir={}", folder.path().display());
        let bus = format!("--bus=kafka://{}", kafka.servers.join(","));
        let prefix = format!("--topics-prefix={}", topics.prefix);
        let manage = format!("--topics-manage={word}");
        let nowhere = "--endpoint=docker=unix:///nonexistent/docker.sock";
        for arguments in [
            &["topics", &bus, &prefix, word][..],
            &[
                "run",
                "--host-id=h",
                &bus,
                &prefix,
                &manage,
                &state,
                nowhere,
            ],
        ] {
            let output = std::process::Command::new("timeout")
                .args(["60", env!("CARGO_BIN_EXE_quaymaster")])
                .args(arguments)
                .env_clear()
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
            let last = said.lines().next_back().unwrap_or_default();
            for piece in pieces {
                assert!(last.contains(piece), "{arguments:?}: {said}");
            }
        }
        let off = TopicSettings {
            manage: ManageTopics::Off,
            ..topics
        };
        sink(&kafka.servers, &off)?.prepare().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_delta_that_is_too_large_has_a_gap_in_its_place_and_the_others_go_on()
-> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut prepared = sink(&kafka.servers, &topics)?;
    prepared.prepare().await?;
    let name = topics.topic_name(Topic::Deltas);
    alter(&kafka.servers, &name, "max.message.bytes", "20000").await?;
    let mut driven = Driven::start(prepared);
    // 20 is larger than librdkafka takes at all, 40 than the topic takes; batches of the others would be too.
    let messages = (1..=60_u64).map(|row| {
        let bytes = match row {
            20 => 1_500_000,
            40 => 30_000,
            _ => 5_000,
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
    for _ in 0..60 {
        let report = driven.report().await?;
        if let Outcome::Replaced { reason, .. } = report.outcome {
            assert!(reason.contains("too large"), "{reason}");
            rejected.push(report.row);
        }
    }
    sending.await?;
    driven.finish().await?;
    rejected.sort_unstable();
    assert_eq!(rejected, [20, 40]);
    let read = kcat(&kafka.servers, &name).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    let firsts = first_appearances(&mut seqs);
    assert!(
        firsts.into_iter().eq(1..=60),
        "a gap has the number of its delta"
    );
    Ok(())
}

#[tokio::test]
async fn a_refused_timestamp_is_replaced_by_one_that_is_taken() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = fresh_topics();
    let mut prepared = sink(&kafka.servers, &topics)?;
    prepared.prepare().await?;
    let name = topics.topic_name(Topic::Deltas);
    alter(
        &kafka.servers,
        &name,
        "message.timestamp.after.max.ms",
        "3600000",
    )
    .await?;
    let mut driven = Driven::start(prepared);
    let ahead_ms = now_ms() + 3 * 86_400_000;
    let messages = (1..=20_u64).map(|row| {
        let mut message = delta(row);
        if row == 10 {
            message.time_ms = ahead_ms;
        }
        message
    });
    let sending = driven.send_all(messages.collect());
    driven.acked(20).await?;
    sending.await?;
    driven.finish().await?;
    let read = kcat(&kafka.servers, &name).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    assert!(first_appearances(&mut seqs).into_iter().eq(1..=20));
    assert!(read.iter().all(|one| one.ts < now_ms() + 3_600_000));
    Ok(())
}

#[tokio::test]
async fn a_topic_that_is_not_there_yet_holds_its_messages_until_it_is() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let topics = TopicSettings {
        manage: ManageTopics::Off,
        ..fresh_topics()
    };
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    let sending = driven.send_all((1..=100).map(delta).collect());
    let health = driven.until_health(false).await?;
    sending.await?;
    assert!(driven.reports.try_recv().is_err(), "nothing is reported");
    let name = topics.topic_name(Topic::Deltas);
    let topic = NewTopic::new(&name, 3, TopicReplication::Fixed(1));
    admin(&kafka.servers)?
        .create_topics(&[topic], &AdminOptions::new())
        .await?;
    driven.acked(100).await?;
    driven.until_health(true).await?;
    driven.finish().await?;
    let read = kcat(&kafka.servers, &name).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    assert!(
        first_appearances(&mut seqs).into_iter().eq(1..=100),
        "{health:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_kafka_that_is_not_there_is_unavailable_within_seconds() -> anyhow::Result<()> {
    for manage in [
        ManageTopics::Create,
        ManageTopics::Verify,
        ManageTopics::Off,
    ] {
        let topics = TopicSettings {
            manage,
            ..TopicSettings::default()
        };
        let mut sink = sink(&["127.0.0.1:1".to_owned()], &topics)?;
        let error = tokio::time::timeout(WAIT / 4, sink.prepare())
            .await?
            .expect_err("nothing listens there");
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    Ok(())
}

/// Keeps the first of each: what an at-least-once reader that drops `seq` it has seen would see.
pub(crate) fn first_appearances(seqs: &mut Vec<u64>) -> Vec<u64> {
    let mut seen = std::collections::BTreeSet::new();
    seqs.retain(|seq| seen.insert(*seq));
    seqs.clone()
}
