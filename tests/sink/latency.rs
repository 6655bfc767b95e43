//! What one acknowledgement costs on an idle bus: printed, not asserted.

use std::time::{Duration, Instant};

use quaymaster::sink::{BusUrl, TopicSettings, open};

use crate::drive::{Driven, delta};
use crate::lab::{Broker, fresh_topics, report};

async fn measure(name: &str, bus: &BusUrl, topics: &TopicSettings) -> anyhow::Result<()> {
    let mut sink = open(bus, topics, "quaymaster-test")?;
    sink.prepare().await?;
    let mut driven = Driven::start(sink);
    let mut times = Vec::with_capacity(500);
    for row in 1..=550 {
        let sent_at = Instant::now();
        driven.send(delta(row)).await?;
        driven.acked(1).await?;
        // The first ones pay for the connection.
        if row > 50 {
            times.push(sent_at.elapsed());
        }
    }
    let sent_at = Instant::now();
    let sending = driven.send_all((1_000..=20_999).map(delta).collect());
    driven.acked(20_000).await?;
    let rate = 20_000.0 / sent_at.elapsed().as_secs_f64();
    sending.await?;
    driven.finish().await?;
    times.sort_unstable();
    let quantile = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or(Duration::ZERO)
    };
    report(&format!(
        "{name}: send to ack p50 {:?}, p99 {:?}, worst {:?}; backlog {rate:.0} deltas/s",
        quantile(50),
        quantile(99),
        times.last().copied().unwrap_or_default(),
    ));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_kafka_acknowledges_within_milliseconds() -> anyhow::Result<()> {
    let Some(kafka) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    measure(
        "kafka",
        &BusUrl::Kafka(kafka.servers.clone()),
        &fresh_topics(),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_nats_acknowledges_within_milliseconds() -> anyhow::Result<()> {
    let Some(nats) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    measure("nats", &BusUrl::Nats(nats.servers.clone()), &fresh_topics()).await
}
