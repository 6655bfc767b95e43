//! Process events of real containers, joined by the real binary: also of one that lived some milliseconds.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::collector::HOST_ID;
use crate::consume::{Bus, Message, read_topic};
use crate::host::{BusKind, Host};
use crate::wait::eventually;
use crate::world::pns_of;

const INPUT: &str = "events";
const OUTPUT: &str = "events-joined";

/// A `quaymaster enrich` that runs. One that is dropped is killed.
struct Enricher {
    child: Child,
    log: PathBuf,
}

impl Enricher {
    fn start(host: &Host) -> Result<Self> {
        let log = host.lab.dir().join("enrich.log");
        let child = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
            .args(["enrich", "--bus", &host.bus.url()])
            .args(["--input", INPUT, "--output", OUTPUT, "--grace", "20s"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("failed to start quaymaster")?;
        Ok(Self { child, log })
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = eventually("the enricher ends", || {
            self.child.try_wait()?.context("it runs still")
        })?;
        let log = std::fs::read_to_string(&self.log)?;
        ensure!(
            status.success() && !log.contains(" ERROR "),
            "{status}: {log}"
        );
        Ok(())
    }
}

impl Drop for Enricher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn kafka_events_of_a_container_that_lived_some_ms_carry_its_name() -> Result<()> {
    events_carry_the_name(BusKind::Kafka)
}

#[test]
fn nats_events_of_a_container_that_lived_some_ms_carry_its_name() -> Result<()> {
    events_carry_the_name(BusKind::Nats)
}

fn events_carry_the_name(bus: BusKind) -> Result<()> {
    let Some(host) = Host::usual(bus)? else {
        return Ok(());
    };
    let docker = host.docker();
    let collector = host.setup.start()?;
    let web = docker.run_staying("web", &[])?;
    host.converged("docker run")?;
    create_input(&host.bus)?;
    let enricher = Enricher::start(&host)?;

    // What a sensor sees, without asking Docker: the namespace of a process in the container.
    let pid = docker.call(&["inspect", "-f", "{{.State.Pid}}", &web])?;
    let staying = event("staying", &pns_of(pid.parse()?)?, now_ms()?);
    // A process that tells its own namespace and the time, and is gone.
    let told = docker.call(&[
        "run",
        "--network",
        "none",
        "--name",
        "blink",
        "busybox:lab",
        "sh",
        "-c",
        "readlink /proc/self/ns/pid; date +%s; sleep 0.1",
    ])?;
    let (pns, seconds) = told.split_once('\n').context("two lines")?;
    let seconds: u64 = seconds.trim().parse()?;
    let gone = event("gone", pns.trim(), seconds * 1_000 + 500);
    let host_own = event("host", "pid:[4026531836]", now_ms()?);
    for event in [&staying, &gone, &host_own] {
        send(&host.bus, event)?;
    }
    eventually("the host's own process is told as such", || {
        let joined = read_output(&host.bus, OUTPUT)?;
        let event = joined.iter().find(|event| event["what"] == "host");
        ensure!(event.context("it is not there")?["container"]["match"] == "host");
        Ok(())
    })?;
    let wanted = [("staying", web.as_str(), "web"), ("gone", "", "blink")];
    eventually("the events carry their containers", || {
        let joined = read_output(&host.bus, OUTPUT)?;
        for (what, id, name) in wanted {
            let event = joined.iter().find(|event| event["what"] == what);
            let container = &event.with_context(|| format!("no {what}"))?["container"];
            ensure!(container["container_name"] == name, "{what}: {container}");
            ensure!(
                id.is_empty() || container["container_id"] == id,
                "{container}"
            );
        }
        Ok(())
    })?;
    docker.call(&["rm", "-f", "web", "blink"])?;
    enricher.stop()?;
    collector.stop()
}

fn event(what: &str, pns: &str, time_ms: u64) -> String {
    json!({"what": what, "host_id": HOST_ID, "pns": pns, "time_ms": time_ms}).to_string()
}

fn now_ms() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_millis())?)
}

/// The input belongs to whoever sends events: the enricher does not create it.
fn create_input(bus: &Bus) -> Result<()> {
    match bus {
        Bus::Stdout(_) => Ok(()),
        Bus::Kafka(address) => runtime()?.block_on(async {
            use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
            let admin: AdminClient<rdkafka::client::DefaultClientContext> =
                rdkafka::ClientConfig::new()
                    .set("bootstrap.servers", address)
                    .create()?;
            let topic = NewTopic::new(INPUT, 3, TopicReplication::Fixed(1));
            admin.create_topics(&[topic], &AdminOptions::new()).await?;
            Ok(())
        }),
        Bus::Nats(address) => runtime()?.block_on(async {
            let client = async_nats::connect(address).await?;
            let config = async_nats::jetstream::stream::Config {
                name: "EVENTS".to_owned(),
                subjects: vec![INPUT.to_owned()],
                ..Default::default()
            };
            async_nats::jetstream::new(client)
                .create_stream(config)
                .await?;
            Ok(())
        }),
    }
}

fn send(bus: &Bus, event: &str) -> Result<()> {
    match bus {
        Bus::Stdout(_) => Ok(()),
        Bus::Kafka(address) => {
            let mut child = Command::new("kcat")
                .args(["-P", "-b", address, "-t", INPUT])
                .stdin(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().context("a pipe")?;
            std::io::Write::write_all(&mut stdin, event.as_bytes())?;
            drop(stdin);
            ensure!(child.wait()?.success(), "kcat did not send");
            Ok(())
        }
        Bus::Nats(address) => runtime()?.block_on(async {
            let client = async_nats::connect(address).await?;
            let jetstream = async_nats::jetstream::new(client);
            jetstream
                .publish(INPUT, event.to_owned().into())
                .await?
                .await?;
            Ok(())
        }),
    }
}

/// What is in an enricher's output.
pub(crate) fn read_output(bus: &Bus, output: &str) -> Result<Vec<Value>> {
    match bus {
        Bus::Stdout(_) => Ok(Vec::new()),
        Bus::Kafka(address) => {
            let value = |message: Message| message.value.context("an event has a text");
            read_topic(address, output)?
                .into_iter()
                .map(value)
                .collect()
        }
        Bus::Nats(address) => runtime()?.block_on(async {
            let client = async_nats::connect(address).await?;
            let jetstream = async_nats::jetstream::new(client);
            let name = output.replace('.', "_").to_uppercase();
            let stream = jetstream.get_stream(name).await?;
            let mut values = Vec::new();
            for sequence in 1..=stream.cached_info().state.last_sequence {
                let message = stream.get_raw_message(sequence).await?;
                values.push(serde_json::from_slice(&message.payload)?);
            }
            Ok(values)
        }),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
