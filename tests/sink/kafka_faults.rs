//! Kafka stopped, started and killed while messages are on their way.

use quaymaster::model::Topic;
use quaymaster::sink::{ManageTopics, TopicSettings};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

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

/// librdkafka's own cluster of one broker, which fails on demand: some errors are fatal to an idempotent producer, some
/// are a person's matter, some pass.
#[tokio::test]
async fn fatal_errors_and_refusals_cost_no_message_and_no_order() -> anyhow::Result<()> {
    // More than there may be requests in flight: the mock has no order of its own.
    const TIMES: usize = 6;
    let cluster = MockCluster::new(1)?;
    let servers = vec![cluster.bootstrap_servers()];
    for (error, passes_by_itself) in [
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            false,
        ),
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
            false,
        ),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, false),
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            false,
        ),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, true),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, true),
    ] {
        let topics = TopicSettings {
            manage: ManageTopics::Off,
            ..fresh_topics()
        };
        let name = topics.topic_name(Topic::Deltas);
        cluster.create_topic(&name, 1, 1)?;
        let mut driven = Driven::prepared(sink(&servers, &topics)?).await?;
        let sending = driven.send_all((1..=100).map(delta).collect());
        let mut acked = driven.acked(100).await?;
        sending.await?;
        cluster.request_errors(RDKafkaApiKey::Produce, &[error; TIMES]);
        if passes_by_itself {
            // The producer itself sends these again, and a real broker sees to their order.
            driven.send(delta(101)).await?;
            acked.extend(driven.acked(1).await?);
        }
        let first = if passes_by_itself { 102 } else { 101 };
        let sending = driven.send_all((first..=3_000).map(delta).collect());
        acked.extend(driven.acked(3_000 - acked.len()).await?);
        sending.await?;
        assert!(driven.finish().await?.is_empty(), "{error:?}");
        acked.sort_unstable();
        assert!(acked.into_iter().eq(1..=3_000), "{error:?}");
        let read = kcat(&servers, &name).await?;
        let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
        let copies = seqs.len();
        assert!(
            first_appearances(&mut seqs).into_iter().eq(1..=3_000),
            "{error:?}"
        );
        report(&format!(
            "kafka, {error:?}: {copies} records for 3000 deltas"
        ));
    }
    Ok(())
}

/// Kafka's own tool for access control, on the topic of the deltas.
async fn acl(servers: &[String], libs: &str, topic: &str, order: &[&str]) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("java")
        .args([
            "-Xmx128m",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            &format!("{libs}/*"),
        ])
        .arg("org.apache.kafka.tools.AclCommand")
        .args(["--bootstrap-server", &servers.join(",")])
        .args(order)
        .args(["--deny-principal", "User:ANONYMOUS", "--operation", "Write"])
        .args(["--topic", topic])
        .output()
        .await?;
    anyhow::ensure!(
        output.status.success(),
        "AclCommand: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn a_right_that_is_lost_and_given_back_costs_nothing() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.steady().await? else {
        return Ok(());
    };
    let libs = kafka.setting("LAB_KAFKA_LIBS")?;
    let topics = fresh_topics();
    let name = topics.topic_name(Topic::Deltas);
    let mut driven = Driven::prepared(sink(&kafka.servers, &topics)?).await?;
    let sending = driven.send_all((1..=200).map(delta).collect());
    let mut acked = driven.acked(200).await?;
    sending.await?;
    acl(&kafka.servers, &libs, &name, &["--add"]).await?;
    let sending = driven.send_all((201..=400).map(delta).collect());
    let health = driven.until_health(false).await?;
    sending.await?;
    acl(&kafka.servers, &libs, &name, &["--remove", "--force"]).await?;
    acked.extend(driven.acked(200).await?);
    driven.until_health(true).await?;
    assert!(driven.finish().await?.is_empty());
    assert!(acked.into_iter().eq(1..=400), "each is acknowledged once");
    let read = kcat(&kafka.servers, &name).await?;
    let mut seqs: Vec<u64> = read.iter().filter_map(Read::seq).collect();
    assert!(first_appearances(&mut seqs).into_iter().eq(1..=400));
    report(&format!("kafka, a right lost: {}", health.error));
    Ok(())
}
