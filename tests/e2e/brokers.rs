//! Brokers that go away and come back, and what they hold, as their own tools tell it.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::collector::HOST_ID;
use crate::consume::kafka_tool;
use crate::fold;
use crate::host::{BusKind, Host};

#[test]
fn nothing_is_lost_while_kafka_is_away() -> Result<()> {
    nothing_is_lost_while_away(BusKind::Kafka, "kafka")
}

#[test]
fn nothing_is_lost_while_nats_is_away() -> Result<()> {
    nothing_is_lost_while_away(BusKind::Nats, "nats")
}

/// The bus is away at the start, then killed, then stopped; the collector is killed while it owes messages.
fn nothing_is_lost_while_away(bus: BusKind, component: &str) -> Result<()> {
    let Some(host) = Host::usual(bus)? else {
        return Ok(());
    };
    let docker = host.docker();
    host.lab.stop(&[component])?;
    let collector = host.setup.start()?;
    docker.run_staying("early", &[])?;
    host.lab.start(&[component])?;
    host.converged("a start before the bus")?;

    host.lab.kill9(&[component])?;
    let blink = docker.run_ending("blink", &["--rm"], &["true"])?;
    docker.run_staying("while-killed", &[])?;
    collector.kill()?;
    docker.call(&["rm", "-f", "early"])?;
    let collector = host.setup.start()?;
    host.lab.start(&[component])?;
    host.converged("a SIGKILL of the bus and the collector")?;

    host.lab.stop(&[component])?;
    docker.call(&["rm", "-f", "while-killed"])?;
    host.lab.start(&[component])?;
    let messages = host.converged("a stop and a start of the bus")?;
    collector.stop()?;
    let folded = fold::fold(&messages)?;
    ensure!(folded.epochs == 1, "{} epochs", folded.epochs);
    // Whoever saw any of it tells all of it; the collector may have been killed before it did.
    if folded.stories.contains_key(&blink) {
        folded.check_whole_life(&blink)?;
    }
    fold::check_envelopes(&messages)
}

#[test]
fn kafkas_own_tools_find_what_the_contract_promises() -> Result<()> {
    let Some(host) = Host::usual(BusKind::Kafka)? else {
        return Ok(());
    };
    let collector = host.setup.start()?;
    let web = host.docker().run_staying("web", &[])?;
    host.converged("docker run")?;
    host.docker().call(&["rm", "-f", "web"])?;
    host.converged("docker rm")?;
    collector.stop()?;

    let topics = kafka_tool(
        &host.lab,
        "org.apache.kafka.tools.TopicCommand",
        &["--describe"],
    )?;
    for table in ["records", "pns", "status"] {
        let name = format!("Topic: quaymaster.{table}\t");
        let line = topics
            .lines()
            .find(|line| line.contains(&name) && line.contains("PartitionCount"));
        let line = line.with_context(|| format!("no topic for {table} in {topics}"))?;
        ensure!(line.contains("PartitionCount: 12"), "{line}");
        let is_compacted = line.contains("cleanup.policy=compact,delete")
            || line.contains("cleanup.policy=delete,compact");
        ensure!(is_compacted, "{line}");
    }
    let key = format!("{HOST_ID}/{web}");
    let lines = console_consumer(&host, "quaymaster.records")?;
    let of_web: Vec<_> = lines.lines().filter(|line| line.contains(&key)).collect();
    let last = of_web
        .last()
        .with_context(|| format!("no record of {web} in {lines}"))?;
    // headers, key, value, with tabs between.
    ensure!(
        last.ends_with("null"),
        "the last one is a tombstone: {last}"
    );
    ensure!(last.contains("ce_specversion:1.0"), "{last}");
    let first = of_web[0].rsplit('\t').next().context("no value")?;
    let record: Value = serde_json::from_str(first)?;
    ensure!(record["data_type"] == 5056, "{record}");
    Ok(())
}

fn console_consumer(host: &Host, topic: &str) -> Result<String> {
    let mut arguments = vec!["--topic", topic, "--from-beginning", "--timeout-ms", "5000"];
    for property in ["print.key=true", "print.headers=true"] {
        arguments.extend(["--formatter-property", property]);
    }
    kafka_tool(
        &host.lab,
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        &arguments,
    )
}
