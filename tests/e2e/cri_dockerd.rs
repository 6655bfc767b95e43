//! The real cri-dockerd: Docker's containers, with their pods' names.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::world::{Cri, Docker};

#[test]
fn containers_of_docker_and_cri_dockerd_are_told_once() -> Result<()> {
    let Some(lab) = Lab::up(&["docker", "cri-dockerd"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER")?;
    let cri = Cri::new(&lab, "LAB_CRI_DOCKERD_SOCKET")?;
    let host = Host::of(lab, vec![docker], vec![cri], BusKind::Stdout)?;
    let (docker, cri) = (host.docker(), host.cri());
    let refused = cri.call(&["events"]);
    ensure!(
        format!("{refused:?}").contains("UNIMPLEMENTED"),
        "it has events now: {refused:?}"
    );
    // Below zero, as cri-dockerd gives a sandbox, no score may be set on a machine without CAP_SYS_RESOURCE.
    let pod_options = ["--runtime", "unscored"];
    let standing = cri.pod("standing", &pod_options)?;
    let web = cri.run_staying(&standing, "web")?;
    let plain = docker.run_staying("plain", &[])?;
    let collector = host.setup.start()?;
    host.converged("the start")?;

    let pod = cri.pod("later", &pod_options)?;
    let side = cri.run_staying(&pod, "side")?;
    host.converged("a pod beside it")?;
    for (id, kind, name) in [(&pod, "sandbox", "later"), (&side, "container", "side")] {
        let record = host.record(id)?;
        for (field_name, value) in [
            ("runtime", "cri"),
            ("runtime_name", "docker"),
            ("kind", kind),
            ("name", name),
            ("pod_name", "later"),
            ("pod_namespace", "default"),
            ("pod_uid", "uid-later"),
        ] {
            ensure!(
                field(&record, field_name) == value,
                "{field_name} of {record}"
            );
        }
    }
    ensure!(field(&host.record(&plain)?, "runtime") == "docker");
    both_are_listed_once(&host, &[&standing, &web, &plain, &pod, &side])?;

    // Without cri-dockerd Docker goes on to say what is there, and the names stay.
    host.lab.kill9(&["cri-dockerd"])?;
    docker.call(&["kill", &side])?;
    host.told("the end of one while cri-dockerd is away", |messages| {
        let record = &fold::records(messages)?[&side];
        ensure!(field(record, "state") == "exited", "{record}");
        ensure!(field(record, "name") == "side", "{record}");
        ensure!(field(record, "pod_name") == "later", "{record}");
        Ok(())
    })?;
    host.lab.start(&["cri-dockerd"])?;
    host.converged("its return")?;
    for pod in [&standing, &pod] {
        cri.call(&["stopp", pod])?;
        cri.call(&["rmp", pod])?;
    }
    docker.call(&["rm", "-f", &plain])?;
    let messages = host.converged("removals")?;
    let stories = fold::fold(&messages)?.stories;
    for id in [&standing, &web, &plain, &pod, &side] {
        let ends = stories[id].iter().filter(|op| *op == "delete").count();
        ensure!(ends == 1, "{:?}", stories[id]);
    }
    let creations = stories[&side].iter().filter(|op| *op == "create").count();
    ensure!(creations == 1, "{:?}", stories[&side]);
    let status = fold::table(&messages, "status");
    let runtimes = status.values().flat_map(|it| it["runtimes"].as_array());
    let streams: Vec<_> = runtimes
        .flatten()
        .map(|runtime| runtime["stream"].clone())
        .collect();
    ensure!(
        streams.contains(&Value::from("live")) && streams.contains(&Value::from("polling")),
        "{streams:?}"
    );
    collector.stop()
}

fn both_are_listed_once(host: &Host, ids: &[&String]) -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quaymaster"));
    command.args(["list", "--format", "json"]).env_clear();
    command.args(["--endpoint", &host.docker().endpoint()]);
    command.args(["--endpoint", &host.cri().endpoint()]);
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    let rows = rows.as_array().context("no array")?;
    for id in ids {
        let of_it = rows.iter().filter(|row| row["id"] == id.as_str());
        ensure!(of_it.count() == 1, "{id} in {rows:#?}");
    }
    Ok(())
}
