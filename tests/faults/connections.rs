//! A network between the collector and the bus that cuts connections, delays them, and leaves them half open.

use std::time::Duration;

use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, Fragile, fresh_topics};
use crate::proxy::{Proxy, Weather};

/// How much later each piece comes on a slow network.
const DELAY: Duration = Duration::from_millis(150);

/// Puts a proxy before a broker.
pub(crate) async fn proxy_before(kind: Broker, broker: &Fragile) -> anyhow::Result<Proxy> {
    match kind {
        Broker::Kafka => {
            let at = broker.setting("LAB_KAFKA_PROXY")?;
            Proxy::start(&at, &broker.setting("LAB_KAFKA_PROXIED")?).await
        }
        Broker::Nats => Proxy::start("127.0.0.1:0", &broker.servers[0]).await,
    }
}

/// One fault of the network, the world going on all the while; it is fair again afterwards.
pub(crate) async fn network_fault(
    course: &mut Course,
    proxy: &Proxy,
    kind: u64,
) -> anyhow::Result<()> {
    let (fault, weather) = match kind % 3 {
        0 => ("connections cut", Weather::Cut),
        1 => ("connections delayed", Weather::Slow(DELAY)),
        _ => ("connections half open", Weather::HalfOpen),
    };
    course.count(fault);
    proxy.becomes(weather);
    course.live(25).await?;
    proxy.becomes(Weather::Fair);
    Ok(())
}

async fn faulty_network(kind: Broker, name: &'static str) -> anyhow::Result<()> {
    let Some(broker) = kind.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = match kind {
        Broker::Kafka => Bus::kafka(&broker.servers[0], &prefix),
        Broker::Nats => Bus::nats(&broker.servers[0], &prefix),
    };
    let proxy = proxy_before(kind, &broker).await?;
    let mut setup = Setup::new(name, Some(bus));
    setup.through = Some(proxy.address.to_string());
    let mut course = Course::start(setup).await?;
    for kind in 0..6 {
        course.live(10).await?;
        network_fault(&mut course, &proxy, kind).await?;
        course.live(5).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_cuts_delays_and_goes_dead_costs_nothing_on_kafka() -> anyhow::Result<()> {
    faulty_network(Broker::Kafka, "network, Kafka").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_cuts_delays_and_goes_dead_costs_nothing_on_nats() -> anyhow::Result<()> {
    faulty_network(Broker::Nats, "network, NATS").await
}
