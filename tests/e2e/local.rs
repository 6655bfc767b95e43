//! `quaymaster whois`, `processes` and `ports`, on real containers.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::collector::HOST_ID;
use crate::consume::Bus;
use crate::contract;
use crate::fold;
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::Docker;

/// A port that the test's own container listens on, in a network namespace of its own.
const PORT: &str = "4711";

/// Runs a subcommand against one Docker; its stdout.
fn ask(docker: &Docker, arguments: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(arguments)
        .args(["--endpoint", &docker.endpoint()])
        .env_clear()
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn whois(docker: &Docker, wanted: &str) -> Result<Value> {
    let text = ask(docker, &["whois", "--format", "json", wanted])?;
    serde_json::from_str(&text).context("whois writes JSON")
}

/// The fields of records that a subcommand prints.
fn fields(docker: &Docker, command: &str) -> Result<Vec<Value>> {
    let text = ask(docker, &[command, "--format", "json", "--host-id", HOST_ID])?;
    let rows = text.lines().map(serde_json::from_str::<Value>);
    rows.map(|row| Ok(row?["fields"].clone())).collect()
}

#[test]
fn processes_ports_and_nested_namespaces_are_told_their_containers() -> Result<()> {
    let Some(lab) = Lab::up(&["docker"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER")?;
    let web = docker.run_ending("web", &[], &["nc", "-ll", "-p", PORT, "-e", "cat"])?;
    let nested = ["unshare", "-p", "-f", "sleep", "3600"];
    let outer = docker.run_ending("outer", &["--privileged"], &nested)?;
    let guest = docker.run_staying("guest", &["--pid", "container:outer"])?;
    let agent = docker.run_staying("agent", &["--pid", "host"])?;

    let init = docker.pid(&outer)?.to_string();
    let inner = eventually("a process in a nested namespace", || {
        let rows = fields(&docker, "processes")?;
        let inner = rows.iter().find(|row| row["ppid"] == init);
        inner.cloned().context("it is not there")
    })?;
    ensure!(inner["container_id"] == outer, "{inner}");
    ensure!(inner["cmdline"] == "sleep 3600", "{inner}");
    let answer = whois(&docker, inner["pid"].as_str().unwrap_or_default())?;
    ensure!(answer["container"]["id"] == outer, "{answer}");
    ensure!(answer["how"] == "nested", "{answer}");
    let chain = answer["namespaces"].as_array().context("a chain")?;
    ensure!(chain.len() >= 3, "{answer}");
    ensure!(chain[0]["pns"] == inner["pid_ns"], "{answer}");
    ensure!(chain[1]["pns"] == answer["container"]["pns"], "{answer}");

    // Two containers in one namespace, told apart by their mounts; one in the host's, by its cgroup.
    for (name, id) in [("guest", &guest), ("agent", &agent), ("web", &web)] {
        let pid = docker.pid(id)?.to_string();
        ensure!(whois(&docker, &pid)?["container"]["id"] == *id, "{name}");
        ensure!(whois(&docker, name)?["container"]["id"] == *id, "{name}");
        let text = ask(&docker, &["whois", &id[..12]])?;
        ensure!(text.starts_with(&format!("container  {id}\n")), "{text}");
        let rows = fields(&docker, "processes")?;
        let row = rows.iter().find(|row| row["pid"] == pid);
        ensure!(
            row.context("it is listed")?["container_name"] == name,
            "{row:?}"
        );
    }
    let shared = whois(&docker, "guest")?;
    let members = shared["members"].as_array().map_or(0, Vec::len);
    ensure!(members == 2, "{shared}");
    let own = whois(&docker, &std::process::id().to_string())?;
    ensure!(own["container"].is_null(), "{own}");

    let port = eventually("the port is listened on", || {
        let rows = fields(&docker, "ports")?;
        let port = rows.iter().find(|row| row["container_id"] == web);
        port.cloned().context("it is not there")
    })?;
    ensure!(
        port["port"] == PORT && port["exe"] == "/bin/busybox",
        "{port}"
    );
    let pid = docker.pid(&web)?.to_string();
    ensure!(port["pid"] == pid, "{port}");
    let table = ask(&docker, &["ports"])?;
    ensure!(
        table
            .lines()
            .any(|line| line.contains(PORT) && line.contains("web")),
        "{table}"
    );
    Ok(())
}

#[test]
fn processes_reach_nats_again_and_again_and_kafka_once() -> Result<()> {
    let Some(lab) = Lab::up(&["docker", "kafka", "nats"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER")?;
    let host = Host::of(lab, vec![docker], Vec::new(), BusKind::Nats)?;
    let web = host.docker().run_staying("web", &[])?;
    let pid = host.docker().pid(&web)?;
    let setup = host.setup;
    let setup = setup.with(&["--processes-interval", "1s"]);
    let collector = setup.start()?;
    let of_web = |bus: &Bus, topic: &str| -> Result<Vec<Value>> {
        let key = format!("{HOST_ID}/{pid}");
        let messages = bus.read_snapshots(topic)?.into_iter();
        let of_web = messages.filter(|message| message.key == key);
        Ok(of_web.filter_map(|message| message.value).collect())
    };
    let records = eventually("two snapshots with the container's process", || {
        let records = of_web(&host.bus, "processes")?;
        let named = records
            .iter()
            .filter(|it| it["fields"]["container_id"] == web);
        ensure!(named.count() >= 2, "{records:?}");
        Ok(records)
    })?;
    let last = records.last().context("there are some")?;
    ensure!(
        last["data_type"] == 5050 && last["fields"]["cmdline"] == "sleep 3600",
        "{last}"
    );
    collector.stop()?;
    let messages = host.bus.read_snapshots("processes")?;
    contract::check_values(&messages)?;
    fold::check_envelopes(&messages)?;

    let kafka = Bus::Kafka(host.lab.value("LAB_KAFKA")?);
    for (command, topic) in [("processes", "processes"), ("ports", "ports")] {
        let arguments = [
            command,
            "--publish",
            "--bus",
            &kafka.url(),
            "--host-id",
            HOST_ID,
        ];
        ask(&host.dockers[0], &arguments)?;
        let messages = kafka.read_snapshots(topic)?;
        contract::check_values(&messages)?;
        fold::check_envelopes(&messages)?;
        let ids: std::collections::BTreeSet<_> =
            messages.iter().map(|it| &it.headers["id"]).collect();
        ensure!(ids.len() == messages.len(), "each id once");
    }
    let records = of_web(&kafka, "processes")?;
    ensure!(records.len() == 1, "{records:?}");
    ensure!(
        records[0]["fields"]["container_name"] == "web",
        "{records:?}"
    );
    Ok(())
}
