//! What stands on the bus under our host id and is not of this epoch: rows of a state that was lost, and the status of
//! another collector with the same host id.

use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::daemon::binary;
use crate::lab::{Broker, fresh_topics};
use crate::life::now_ms;

/// Puts a status as another machine with our host id would.
async fn put_anothers_status(bus: &str, prefix: &str) -> anyhow::Result<()> {
    let value = format!(
        "{{\"schema_version\":1,\"host_id\":\"faulty-host\",\"host_name\":\"its-clone\",\"boot_id\":\"another-boot\",\
         \"state\":\"live\",\"expires_at_ms\":{}}}",
        now_ms() + 90_000
    );
    if let Some(server) = bus.strip_prefix("nats://") {
        let client = async_nats::connect(server).await?;
        let store = async_nats::jetstream::new(client)
            .get_key_value(format!("{prefix}-status"))
            .await?;
        store.put("faulty-host", value.into()).await?;
        return Ok(());
    }
    let server = bus.strip_prefix("kafka://").context("a bus")?;
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", server, "-t", &format!("{prefix}.status")])
        .args(["-k", "faulty-host"])
        .stdin(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut kcat.stdin.take().context("stdin")?, value.as_bytes())?;
    anyhow::ensure!(kcat.wait()?.success(), "kcat");
    Ok(())
}

/// What `doctor` says of the bus.
async fn doctor(bus: &str, prefix: &str) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(binary())
        .arg("doctor")
        .args([format!("--bus={bus}"), format!("--topics-prefix={prefix}")])
        .arg("--host-id=faulty-host")
        .output()
        .await?;
    Ok(String::from_utf8(output.stdout)?)
}

async fn tells_of_both(
    name: &'static str,
    bus: Bus,
    url: &str,
    prefix: &str,
) -> anyhow::Result<()> {
    let mut setup = Setup::new(name, Some(bus));
    setup.arguments.push("--topics-read-back=true".to_owned());
    let mut course = Course::start(setup).await?;
    course.live(40).await?;
    course.converge().await?;
    course.until("rows", |oracle| oracle.stale() == 0).await?;
    let text = doctor(url, prefix).await?;
    anyhow::ensure!(text.contains("no other collector has"), "{text}");

    course.count("state removed");
    course.kill_only().await?;
    std::fs::remove_dir_all(&course.state_dir)?;
    course.figures.torn_states += 1;
    course.live(60).await?;
    course.daemon.spawn()?;
    course.converge().await?;
    let read_back = course.daemon.log_lines("gets its tombstone").len();
    course
        .until("what no longer holds has gone", |oracle| {
            oracle.lost_epochs == 1 && oracle.stale() == 0
        })
        .await?;
    course.live(20).await?;
    course.converge().await?;
    anyhow::ensure!(read_back <= 2, "it is read back once for each epoch");

    let mut told = Vec::new();
    for _ in 0..60 {
        put_anothers_status(url, prefix).await?;
        told = course.daemon.log_lines("another collector publishes");
        if !told.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let line = told
        .first()
        .context("no error tells of another collector")?;
    anyhow::ensure!(
        line.contains("ERROR") && line.contains("--host-id") && line.contains("its-clone"),
        "{line}"
    );
    put_anothers_status(url, prefix).await?;
    let text = doctor(url, prefix).await?;
    anyhow::ensure!(
        text.contains("another collector publishes") && text.contains("--host-id"),
        "{text}"
    );
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_cleared_of_a_lost_state_and_a_clone_is_told_of() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix;
    let server = &broker.servers[0];
    let bus = Bus::kafka(server, &prefix);
    tells_of_both(
        "lost state, Kafka",
        bus,
        &format!("kafka://{server}"),
        &prefix,
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_is_cleared_of_a_lost_state_and_a_clone_is_told_of() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let server = &broker.servers[0];
    let bus = Bus::nats(server, &prefix);
    tells_of_both(
        "lost state, NATS",
        bus,
        &format!("nats://{server}"),
        &prefix,
    )
    .await
}
