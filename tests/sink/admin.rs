//! What the tests change in a Kafka by themselves.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigSource, ResourceSpecifier,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

/// Longest wait for a broker to take a setting over.
const TAKEN_MAX: Duration = Duration::from_secs(60);

pub(crate) fn admin(servers: &[String]) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", servers.join(","))
        .create()?)
}

/// Sets a topic's setting, and waits until the broker tells it.
pub(crate) async fn alter(
    servers: &[String],
    topic: &str,
    key: &str,
    value: &str,
) -> anyhow::Result<()> {
    // What this call does not name goes back to the broker's default.
    let before = settings(servers, topic).await?;
    let mut wish = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(key, value);
    for entry in &before {
        if let (ConfigSource::DynamicTopic, Some(value)) = (&entry.source, &entry.value)
            && entry.name != key
        {
            wish = wish.set(&entry.name, value);
        }
    }
    let results = admin(servers)?
        .alter_configs(&[wish], &AdminOptions::new())
        .await?;
    for result in results {
        result.map_err(|(_, code)| code)?;
    }
    // The broker takes it over a little later.
    let has_it = async {
        loop {
            let mut entries = settings(servers, topic).await?.into_iter();
            if entries.any(|entry| entry.name == key && entry.value.as_deref() == Some(value)) {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(TAKEN_MAX, has_it).await?
}

async fn settings(servers: &[String], topic: &str) -> anyhow::Result<Vec<ConfigEntry>> {
    let wanted = [ResourceSpecifier::Topic(topic)];
    let found = admin(servers)?
        .describe_configs(&wanted, &AdminOptions::new())
        .await?;
    let resource = found.into_iter().next().context("the topic")??;
    Ok(resource.entries)
}
