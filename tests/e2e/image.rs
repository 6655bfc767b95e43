//! The container image, and what starts it. docker-compose.yml: each of its services with the settings that stand there,
//! the image on a real Docker, the others, whose images no registry gives us here, from their packages. The chart: as
//! Kubernetes' own schemas judge it, and its container on a real Docker.
//!
//! Grafana is in no package: `sight.rs` asks Prometheus what its dashboard would ask.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::collector::HOST_ID;
use crate::enrich;
use crate::host::{BusKind, Host, LINGER};
use crate::lab::{self, Lab};
use crate::operator::{self, PASSWORD, USER, written};
use crate::package;
use crate::pod::Pod;
use crate::sight;
use crate::wait::eventually;
use crate::world::{Cri, Docker};

/// The image that is built here, under the name that the lab's Docker gives it.
const IMAGE: &str = "quaymaster:lab";
/// Where a container finds what is secret.
const SECRETS: &str = "/etc/quaymaster/secrets";

#[test]
fn what_docker_compose_starts_works_together_with_the_settings_that_stand_there() -> Result<()> {
    let Some(lab) = Lab::up(&["containerd2", "docker"])? else {
        return Ok(());
    };
    if !lab::builder(&lab)? {
        return Ok(());
    }
    let mut compose = Compose::new(&lab)?;
    let services = compose.services()?;
    let kafka = written(lab.dir(), "kafka.settings", &kafka_settings(&services)?)?;
    lab.add(&["kafka"], &[("QUAYMASTER_LAB_KAFKA_SETTINGS", kafka)])?;
    let mut host = host(lab, BusKind::Kafka)?;
    let bus = host.bus.url();
    let web = host.docker().run_staying("web", &[])?;

    compose.change(&host, &bus, "")?;
    compose.call(&["config", "--quiet"])?;
    compose.call(&["build", "--quiet", "quaymaster"])?;
    carries_labels_and_licences(host.docker())?;
    compose.call(&["up", "--detach", "--no-deps", "quaymaster", "enrich"])?;
    let pod = host.cri().pod("pod", &[])?;
    host.cri().run_staying(&pod, "one")?;
    // It sees itself as well, in the host's PID namespace: a record, and no mapping.
    host.converged("docker compose up")?;
    is_joined(&host, &services, &web)?;

    let listening = |service: &str| {
        let name = format!("qm-{service}-1");
        sight::address_in(|| host.docker().said(&name))
    };
    let addresses = [listening("quaymaster")?, listening("enrich")?];
    let settings = prometheus_settings(&services, &addresses)?;
    let settings = written(host.lab.dir(), "prometheus.settings", &settings)?;
    let variables = [("QUAYMASTER_LAB_PROMETHEUS_CONFIG", settings)];
    host.lab.add(&["prometheus"], &variables)?;
    sight::both_jobs_are_up(&host.lab.value("LAB_PROMETHEUS")?)?;
    compose.ends_well(&host, &["quaymaster", "enrich"])?;

    // The other bus, as its service starts it, with what an operator adds: TLS and a password.
    compose.call(&["down", "--volumes"])?;
    let certificates = Certificates::write(&host.lab.dir().join("certificates"))?;
    operator::secrets(host.lab.dir(), &certificates)?;
    let conf = operator::nats_conf(&certificates);
    let variables = [
        ("QUAYMASTER_LAB_NATS_COMMAND", nats_command(&services)?),
        (
            "QUAYMASTER_LAB_NATS_CONF",
            written(host.lab.dir(), "conf", &conf)?,
        ),
    ];
    host.lab.add(&["nats"], &variables)?;
    host.reads_at(BusKind::Nats)?;
    let entered = format!(
        "      QUAYMASTER_TLS_CA_FILE: {SECRETS}/ca.pem\n      QUAYMASTER_NATS_USERNAME: {USER}\n      \
         QUAYMASTER_NATS_PASSWORD_FILE: {SECRETS}/password\n"
    );
    // What docker-compose.yml's head says of NATS.
    compose.input = Some("quaymaster.processes.>");
    compose.change(&host, &host.bus.url(), &entered)?;
    compose.call(&["up", "--detach", "--no-deps", "quaymaster", "enrich"])?;
    host.converged("docker compose up over TLS")?;
    is_joined(&host, &services, &web)?;
    let said = compose.call(&["exec", "-T", "quaymaster", "quaymaster", "doctor"])?;
    ensure!(!said.contains(PASSWORD), "the doctor tells the password");
    compose.ends_well(&host, &["quaymaster", "enrich"])
}

#[test]
fn the_charts_container_publishes_over_tls_and_prometheus_sees_it() -> Result<()> {
    let folder = TempDir::new()?;
    let certificates = Certificates::write(&folder.path().join("certificates"))?;
    let components = ["containerd2", "docker", "kafka", "prometheus"];
    let variables = operator::kafka_variables(folder.path(), &certificates)?;
    let Some(lab) = Lab::up_with(&components, &variables)? else {
        return Ok(());
    };
    if !lab::builder(&lab)? {
        return Ok(());
    }
    let host = host(lab, BusKind::Kafka)?;
    let compose = Compose::new(&host.lab)?;
    compose.change(&host, &host.bus.url(), "")?;
    compose.call(&["build", "--quiet", "quaymaster"])?;
    let bus = format!("kafka://{}", host.lab.value("LAB_KAFKA_LOGIN")?);
    let values = [
        ("bus", bus.as_str()),
        ("secretName", "bus"),
        ("image.tag", "lab"),
        ("env.QUAYMASTER_TLS_CA_FILE", &format!("{SECRETS}/ca.pem")),
        ("env.QUAYMASTER_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("env.QUAYMASTER_SASL_USERNAME", USER),
        (
            "env.QUAYMASTER_SASL_PASSWORD_FILE",
            &format!("{SECRETS}/password"),
        ),
        // What only a test has: its own name, and a place that is not the machine's.
        ("env.QUAYMASTER_HOST_ID", HOST_ID),
        ("env.QUAYMASTER_PNS_LINGER", LINGER),
        (
            "env.QUAYMASTER_ENDPOINT",
            &endpoints(&host).replace(',', "\\,"),
        ),
    ];
    let set = values.map(|(name, value)| ["--set-string".to_owned(), format!("{name}={value}")]);
    let settings = "config=[http]\nlisten = \"127.0.0.1:0\"\n\n[processes]\ninterval = \"2s\"\n";
    let set = [
        set.concat(),
        vec!["--set-string".to_owned(), settings.to_owned()],
    ]
    .concat();
    let Some(documents) = lab::rendered(&set)? else {
        return Ok(());
    };
    operator::secrets(host.lab.dir(), &certificates)?;
    let mut pod = Pod::of(&documents, host.lab.dir())?;
    // The port is one that is free here, by the file: the variable would win.
    pod.take_variable("QUAYMASTER_HTTP_LISTEN")?;
    let arguments = pod.arguments("collector")?;
    host.docker()
        .call(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    host.docker().run_staying("web", &[])?;
    let sandbox = host.cri().pod("pod", &[])?;
    host.cri().run_staying(&sandbox, "one")?;
    host.converged("the DaemonSet's container")?;
    let said = host
        .docker()
        .call(&["exec", "collector", "quaymaster", "doctor"])?;
    ensure!(!said.contains(PASSWORD), "the doctor tells the password");
    let address = sight::address_in(|| host.docker().said("collector"))?;
    pod.probes_succeed(&address)?;
    sight::prometheus_sees_all_and_tells_of_a_dead_bus(&host, &address)?;
    host.converged("an outage of Kafka")?;
    let said = host.docker().said("collector")?;
    ensure!(!said.contains(PASSWORD), "the password is in the log");
    host.docker().call(&["stop", "collector"])?;
    ends_with_zero(&host, "collector")
}

#[test]
fn the_chart_and_the_manifests_are_what_kubernetes_takes() -> Result<()> {
    let Some(said) = lab::manifests()? else {
        return Ok(());
    };
    ensure!(said.contains("documents are valid"), "{said}");
    Ok(())
}

fn host(lab: Lab, bus: BusKind) -> Result<Host> {
    let docker = Docker::new(&lab, "DOCKER")?;
    let cri = Cri::new(&lab, "LAB_CRI_SOCKET")?;
    Host::of(lab, vec![docker], vec![cri], bus)
}

/// What the image says of itself, and the licences in it.
fn carries_labels_and_licences(docker: &Docker) -> Result<()> {
    let said = docker.call(&[
        "image",
        "inspect",
        "--format",
        "{{json .Config.Labels}}",
        IMAGE,
    ])?;
    let labels: Value = serde_json::from_str(&said)?;
    for (label, value) in [
        ("title", "Quaymaster"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("revision", "unknown"),
    ] {
        let label = format!("org.opencontainers.image.{label}");
        ensure!(labels[&label] == value, "{label} in {labels}");
    }
    let in_it = |name: &str| {
        let file = format!("/usr/share/doc/quaymaster/{name}");
        docker.call(&[
            "run",
            "--rm",
            "--network=none",
            "--entrypoint=cat",
            IMAGE,
            &file,
        ])
    };
    ensure!(in_it("LICENSE")?.contains("Apache License"));
    package::are_notices(&in_it("third-party-licenses")?)
}

/// The runtimes as a container finds them that has the lab's folder at the place of the host's `/run`.
fn endpoints(host: &Host) -> String {
    let dir = host.lab.dir().display().to_string();
    let dockers = host.dockers.iter().map(Docker::endpoint);
    let all = dockers.chain(host.cris.iter().map(Cri::endpoint));
    all.map(|endpoint| endpoint.replace(&dir, "/run"))
        .collect::<Vec<_>>()
        .join(",")
}

fn ends_with_zero(host: &Host, name: &str) -> Result<()> {
    let state = "{{.State.ExitCode}} {{.State.OOMKilled}}";
    let ended = host.docker().call(&["inspect", "-f", state, name])?;
    ensure!(ended == "0 false", "{name} ended with {ended}");
    Ok(())
}

/// The process of a container comes out of the enricher's output with that container.
fn is_joined(host: &Host, services: &Value, id: &str) -> Result<()> {
    let command = services["enrich"]["command"]
        .as_array()
        .context("a command")?;
    let output = command
        .last()
        .and_then(Value::as_str)
        .context("an output")?;
    let pid = host.docker().pid(id)?.to_string();
    eventually(
        "the process of a container comes out of the enricher",
        || {
            let joined = enrich::read_output(&host.bus, output)?;
            let event = joined
                .iter()
                .rev()
                .find(|value| value["fields"]["pid"] == *pid);
            let event =
                event.with_context(|| format!("no process {pid} among {}", joined.len()))?;
            ensure!(event["container"]["container_id"] == *id, "{event}");
            ensure!(event["container"]["container_name"] == "web", "{event}");
            Ok(())
        },
    )
}

/// The Kafka service's environment as the image makes server.properties of it; only its addresses and its folder are the
/// lab's.
fn kafka_settings(services: &Value) -> Result<String> {
    let variables = services["kafka"]["environment"].as_object();
    let mut settings = String::new();
    for (name, value) in variables.context("kafka has an environment")? {
        let name = name
            .strip_prefix("KAFKA_")
            .context("only KAFKA_ is expected")?;
        let key = name.to_lowercase().replace('_', ".");
        let mut value = value.as_str().context("a text")?.to_owned();
        for (theirs, ours) in [
            ("kafka:9092", "127.0.0.1:@PORT@"),
            ("localhost:9093", "127.0.0.1:@CONTROLLER@"),
            ("://:9092", "://127.0.0.1:@PORT@"),
            ("://:9093", "://127.0.0.1:@CONTROLLER@"),
            ("/var/lib/kafka/data", "@HOME@/data"),
        ] {
            value = value.replace(theirs, ours);
        }
        settings += &format!("{key}={value}\n");
    }
    let is_ours = !settings.contains("909") && !settings.contains("/var/");
    ensure!(is_ours, "not all is replaced: {settings}");
    Ok(settings)
}

fn nats_command(services: &Value) -> Result<String> {
    let words = services["nats"]["command"].as_array();
    let words = words.context("nats has a command")?.iter();
    let words: Option<Vec<_>> = words.map(Value::as_str).collect();
    let command = words.context("words")?.join(" ");
    ensure!(command.contains("/data"), "{command}");
    Ok(command.replace("/data", "@HOME@/data"))
}

/// The file that is mounted into the Prometheus service, with the addresses of this test.
fn prometheus_settings(services: &Value, [collector, enricher]: &[String; 2]) -> Result<String> {
    let mounts = services["prometheus"]["volumes"].as_array();
    let mounts = mounts.context("prometheus has volumes")?;
    let source = |target: &str| -> Result<&str> {
        let mount = mounts.iter().find(|mount| mount["target"] == target);
        let source = mount.and_then(|mount| mount["source"].as_str());
        source.with_context(|| format!("nothing is mounted at {target}"))
    };
    let alerts = "/etc/prometheus/alerts.yml";
    let mut settings = std::fs::read_to_string(source("/etc/prometheus/prometheus.yml")?)?;
    for (theirs, ours) in [
        ("quaymaster:9464", collector.as_str()),
        ("enrich:9464", enricher.as_str()),
        (alerts, source(alerts)?),
    ] {
        ensure!(settings.contains(theirs), "no {theirs} in {settings}");
        settings = settings.replace(theirs, ours);
    }
    Ok(settings)
}

/// docker-compose.yml with what only a test changes: the lab's sockets and bus, and a binary that is built already.
struct Compose {
    dir: PathBuf,
    cli: String,
    socket: String,
    /// The enricher's input, where it is not the file's own.
    input: Option<&'static str>,
}

impl Compose {
    fn new(lab: &Lab) -> Result<Self> {
        let built = lab.dir().join("built/src/target/release");
        std::fs::create_dir_all(&built)?;
        let binary = built.join("quaymaster");
        if !binary.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_quaymaster"), &binary)?;
            let strip = Command::new("strip").arg(&binary).status();
            ensure!(
                strip.context("failed to run strip")?.success(),
                "strip failed"
            );
            let top = Path::new(env!("CARGO_MANIFEST_DIR"));
            let source = lab.dir().join("built/src");
            std::fs::copy(top.join("LICENSE"), source.join("LICENSE"))?;
            let notices = package::succeed(&mut Command::new(top.join("deploy/licenses")))?;
            let file = source.join("target/third-party-licenses");
            std::fs::write(file, notices.stdout)?;
        }
        Ok(Self {
            dir: lab.dir().to_owned(),
            cli: lab.value("LAB_DOCKER_CLI")?,
            socket: lab.value("LAB_DOCKER_SOCKET")?,
            input: None,
        })
    }

    /// The services as the file alone has them.
    fn services(&self) -> Result<Value> {
        let said = self.run(&["config", "--format", "json"], false)?;
        let mut config: Value = serde_json::from_str(&said)?;
        Ok(config["services"].take())
    }

    /// Writes what is changed for a bus; `more` are further variables of the collector and of the enricher.
    fn change(&self, host: &Host, bus: &str, more: &str) -> Result<()> {
        let dir = self.dir.display();
        let endpoints = endpoints(host);
        // It is a user of its own there, which may not read a file of root's.
        let more_of_enricher = more.replace(
            &format!("_PASSWORD_FILE: {SECRETS}/password"),
            &format!("_PASSWORD: {PASSWORD}"),
        );
        let changes = format!(
            "services:
  quaymaster:
    image: {IMAGE}
    build:
      network: host
      additional_contexts: {{ build: {dir}/built }}
    network_mode: host
    ports: !reset []
    environment:
      QUAYMASTER_BUS: {bus}
      QUAYMASTER_HOST_ID: {HOST_ID}
      QUAYMASTER_PNS_LINGER: {LINGER}
      QUAYMASTER_ENDPOINT: {endpoints}
      QUAYMASTER_HTTP_LISTEN: 127.0.0.1:0
{more}    volumes:
      - {dir}:/run:ro
      - {dir}/secrets:{SECRETS}:ro
  enrich:
    image: {IMAGE}
    network_mode: host
    environment:
      QUAYMASTER_BUS: {bus}
      QUAYMASTER_HTTP_LISTEN: 127.0.0.1:0
{more_of_enricher}    volumes:
      - {dir}/secrets:{SECRETS}:ro
"
        );
        std::fs::write(self.dir.join("compose.yml"), changes)?;
        Ok(())
    }

    /// Ends services, which must go with status 0.
    fn ends_well(&self, host: &Host, services: &[&str]) -> Result<()> {
        self.call(&[&["stop"], services].concat())?;
        for service in services {
            ends_with_zero(host, &format!("qm-{service}-1"))?;
        }
        Ok(())
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments, true)
    }

    fn run(&self, arguments: &[&str], is_changed: bool) -> Result<String> {
        let mut command = Command::new(&self.cli);
        command.env("DOCKER_CONFIG", self.dir.join("run"));
        command.env("DOCKER_HOST", format!("unix://{}", self.socket));
        if let Some(input) = self.input {
            command.env("QUAYMASTER_ENRICH_INPUT", input);
        }
        // Through bake, a build that wants the host's network asks first.
        command.env("COMPOSE_BAKE", "false");
        command.args(["compose", "--project-name", "qm", "--progress", "quiet"]);
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        command.arg("--file").arg(top.join("docker-compose.yml"));
        if is_changed {
            command.arg("--file").arg(self.dir.join("compose.yml"));
        }
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.context("failed to run docker compose")?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "docker compose {arguments:?}: {said}{out}"
        );
        Ok(out)
    }
}
