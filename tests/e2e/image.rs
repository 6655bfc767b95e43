//! The container image and what starts it: built of the Dockerfile and started by docker-compose.yml on a real Docker;
//! the chart and the manifests, as Kubernetes' own schemas judge them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::collector::HOST_ID;
use crate::host::{BusKind, Host, LINGER};
use crate::lab;

#[test]
fn the_image_runs_as_docker_compose_starts_it() -> Result<()> {
    let Some(host) = Host::usual(BusKind::Kafka)? else {
        return Ok(());
    };
    if !lab::builder(&host.lab)? {
        return Ok(());
    }
    let compose = Compose::new(&host)?;
    compose.call(&["config", "--quiet"])?;
    compose.call(&["build", "--quiet", "quaymaster"])?;
    compose.call(&["up", "--detach", "--no-deps", "quaymaster"])?;
    host.docker().run_staying("web", &[])?;
    let pod = host.cri().pod("pod", &[])?;
    host.cri().run_staying(&pod, "one")?;
    // It sees itself as well, in the host's PID namespace: a record, and no mapping.
    host.converged("docker compose up")?;
    compose.call(&["stop", "quaymaster"])?;
    let state = ["inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}"];
    let ended = host
        .docker()
        .call(&[&state[..], &["qm-quaymaster-1"]].concat())?;
    ensure!(ended == "0 false", "it ended with {ended}");
    Ok(())
}

#[test]
fn the_chart_and_the_manifests_are_what_kubernetes_takes() -> Result<()> {
    let Some(said) = lab::manifests()? else {
        return Ok(());
    };
    ensure!(said.contains("documents are valid"), "{said}");
    Ok(())
}

/// docker-compose.yml with what only a test changes: the lab's sockets and bus, and a binary that is built already.
struct Compose<'a> {
    host: &'a Host,
}

impl<'a> Compose<'a> {
    fn new(host: &'a Host) -> Result<Self> {
        let dir = host.lab.dir();
        let built = dir.join("built/src/target/release");
        std::fs::create_dir_all(&built)?;
        std::fs::copy(env!("CARGO_BIN_EXE_quaymaster"), built.join("quaymaster"))?;
        let strip = Command::new("strip").arg(built.join("quaymaster")).status();
        ensure!(
            strip.context("failed to run strip")?.success(),
            "strip failed"
        );
        let kafka = host.lab.value("LAB_KAFKA")?;
        let dir = dir.display();
        let sockets = host.dockers.iter().map(|docker| docker.endpoint());
        let sockets = sockets.chain(host.cris.iter().map(|cri| cri.endpoint()));
        let endpoints = sockets.collect::<Vec<_>>().join(",");
        let changes = format!(
            "services:
  quaymaster:
    image: quaymaster:lab
    build:
      network: host
      additional_contexts: {{ build: {dir}/built }}
    network_mode: host
    ports: !reset []
    environment:
      QUAYMASTER_BUS: kafka://{kafka}
      QUAYMASTER_HOST_ID: {HOST_ID}
      QUAYMASTER_PNS_LINGER: {LINGER}
      QUAYMASTER_ENDPOINT: {endpoints}
      QUAYMASTER_HTTP_LISTEN: 127.0.0.1:0
    volumes:
      - {dir}:{dir}:ro
"
        );
        std::fs::write(host.lab.dir().join("compose.yml"), changes)?;
        Ok(Self { host })
    }

    fn call(&self, arguments: &[&str]) -> Result<()> {
        let lab = &self.host.lab;
        let socket = lab.value("LAB_DOCKER_SOCKET")?;
        let mut command = Command::new(lab.value("LAB_DOCKER_CLI")?);
        command.env("DOCKER_CONFIG", lab.dir().join("run"));
        command.env("DOCKER_HOST", format!("unix://{socket}"));
        // Through bake, a build that wants the host's network asks first.
        command.env("COMPOSE_BAKE", "false");
        command.args(["compose", "--project-name", "qm", "--progress", "quiet"]);
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in [
            top.join("docker-compose.yml"),
            lab.dir().join("compose.yml"),
        ] {
            command.arg("--file").arg(file);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.context("failed to run docker compose")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "docker compose {arguments:?}: {said}"
        );
        Ok(())
    }
}
