//! The joins of `deploy/` on the engines that people run, with the real topics of real containers: a process event gets the
//! container that had its PID namespace at its time, and no other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};

use crate::collector::{HOST_ID, Setup};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::{Cri, Docker, pns_of};

const EVENTS: &str = "process-events";
const OUTPUT: &str = "process-events-enriched";
/// Not the table's 12, so that the join has to bring both together.
const EVENT_PARTITIONS: i32 = 3;
/// Longer than the test: the mapping of what lived some ms is there when its event comes.
const LINGER: &str = "5m";
/// The PID namespace of the machine itself: the kernel's constant.
const HOST_PNS: u64 = 4_026_531_836;
/// Before a container lived.
const BEFORE_MS: u64 = 3_600_000;
/// After it lived, and after the tolerance of 2 s; Flink would take all other events for late if this were far ahead.
const AFTER_MS: u64 = 4_500;
/// What a container does that lives some ms and says itself in which namespace, and when (seconds since boot).
const BLINK: [&str; 3] = [
    "sh",
    "-c",
    "readlink /proc/self/ns/pid; cat /proc/uptime; sleep 0.1",
];

#[test]
fn kafka_streams_gives_process_events_their_containers() -> Result<()> {
    let arguments = |lab: &Lab, kafka: &str| {
        vec![
            "-Xmx256m".to_owned(),
            "io.quaymaster.example.Join".to_owned(),
            format!("bootstrap.servers={kafka}"),
            format!("events={EVENTS}"),
            format!("output={OUTPUT}"),
            format!("state.dir={}", lab.dir().join("streams").display()),
            // Longer than a collector takes to start.
            "grace.ms=15000".to_owned(),
        ]
    };
    events_are_joined_by("kafka-streams", arguments)
}

#[test]
fn flink_sql_gives_process_events_their_containers() -> Result<()> {
    let arguments = |lab: &Lab, kafka: &str| {
        let mut arguments = vec![
            "-Xmx512m".to_owned(),
            // Flink leaves its folders there.
            format!("-Djava.io.tmpdir={}", lab.dir().display()),
            "io.quaymaster.example.RunSql".to_owned(),
        ];
        for table in ["process_events", "process_events_enriched", "pns"] {
            arguments.push(format!("{table}.properties.bootstrap.servers={kafka}"));
        }
        arguments.push("process_events.scan.startup.mode=earliest-offset".to_owned());
        for table in ["process_events", "pns"] {
            arguments.push(format!("{table}.scan.watermark.idle-timeout=3s"));
        }
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/flink");
        for file in ["tables.sql", "join.sql"] {
            arguments.push(deploy.join(file).display().to_string());
        }
        arguments
    };
    events_are_joined_by("flink", arguments)
}

/// One engine: `arguments` are those of its Java.
fn events_are_joined_by(part: &str, arguments: impl Fn(&Lab, &str) -> Vec<String>) -> Result<()> {
    let Some(classpath) = Lab::classpath(part)? else {
        return Ok(());
    };
    let Some(lab) = Lab::up(&["containerd2", "docker", "kafka"])? else {
        return Ok(());
    };
    let kafka = lab.value("LAB_KAFKA")?;
    let docker = Docker::new(&lab, "DOCKER")?;
    create_topics(&kafka)?;
    // Its event is there before its mapping.
    let late = docker.run_staying("late", &[])?;
    let mut events = Events::of(&kafka);
    events.send("late", HOST_ID, number_of(&docker, &late)?, now_ms())?;
    events.send_text("no JSON")?;
    let engine = Engine::start(part, &lab, &classpath, &arguments(&lab, &kafka))?;
    let endpoints = [
        docker.endpoint(),
        Cri::new(&lab, "LAB_CRI_SOCKET")?.endpoint(),
    ];
    let setup = Setup::new(&lab, &format!("kafka://{kafka}"), &endpoints);
    let setup = setup.with(&["--pns-linger", LINGER]);
    let collector = setup.start()?;

    let web = docker.run_staying("web", &[])?;
    let web_number = number_of(&docker, &web)?;
    events.send("web", HOST_ID, web_number, now_ms())?;
    let mut ids = BTreeMap::from([("late", late), ("web", web)]);
    for name in ["blink", "wink"] {
        ids.insert(name, docker.run_ending(name, &[], &BLINK)?);
        let (number, at_ms) = blinked(&docker, name)?;
        docker.call(&["rm", "-f", name])?;
        events.send(name, HOST_ID, number, at_ms)?;
        // Before and after it lived the number is another's, as far as anybody knows.
        events.send("earlier", HOST_ID, number, at_ms - BEFORE_MS)?;
        events.send("later", HOST_ID, number, at_ms + AFTER_MS)?;
    }
    events.send("elsewhere", "another-host", web_number, now_ms())?;
    events.send("host", HOST_ID, HOST_PNS, now_ms())?;
    // A foreign message among the mappings stops nobody.
    produce(
        &kafka,
        "quaymaster.pns",
        "nobody/1:no mapping",
        &["-K", ":"],
    )?;

    let found = eventually(&format!("{part} has joined all events"), || {
        // The time of events is that of events: the last ones go out when later ones come.
        events.send("clock", "clock", 1, now_ms() + 10_000)?;
        engine.check_log()?;
        joined(&kafka)?.check_all(&events.sent)
    })?;
    for (event, container) in &found {
        let id = ids.get(event.as_str());
        let (told, named) = (&container["container_id"], &container["container_name"]);
        match id {
            Some(id) => {
                ensure!(container["match"] == "matched", "{event}: {container}");
                ensure!(told == id, "{event} is of {id}: {container}");
                ensure!(named == event, "{event} is given {container}");
            }
            None => {
                let mark = if event == "host" { "host" } else { "unmatched" };
                ensure!(container["match"] == mark, "{event}: {container}");
                ensure!(named.is_null(), "{event} has no container: {container}");
            }
        }
    }
    collector.stop()?;
    engine.stop()
}

/// The number of a running container's PID namespace, as the kernel tells it.
fn number_of(docker: &Docker, id: &str) -> Result<u64> {
    number(&pns_of(docker.pid(id)?)?)
}

fn number(link: &str) -> Result<u64> {
    let number = link
        .strip_prefix("pid:[")
        .and_then(|rest| rest.strip_suffix(']'));
    let number = number.with_context(|| format!("`{link}` is no PID namespace"))?;
    Ok(number.parse()?)
}

/// What a container of [`BLINK`] said: the number of its namespace, and when it lived, in unix milliseconds.
fn blinked(docker: &Docker, name: &str) -> Result<(u64, u64)> {
    docker.call(&["wait", name])?;
    let said = docker.call(&["logs", name])?;
    let (link, uptime) = said.split_once('\n').context("it said nothing")?;
    let since_boot = |uptime: &str| -> Result<f64> {
        let seconds = uptime.split(' ').next().unwrap_or_default();
        seconds
            .parse()
            .with_context(|| format!("`{uptime}` is no uptime"))
    };
    let ago_s = since_boot(&std::fs::read_to_string("/proc/uptime")?)? - since_boot(uptime)?;
    let ago = std::time::Duration::from_secs_f64(ago_s.max(0.0));
    Ok((number(link)?, now_ms() - u64::try_from(ago.as_millis())?))
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Quaymaster's own topics as it makes them, and those of the events.
fn create_topics(kafka: &str) -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(["topics", "--bus", &format!("kafka://{kafka}"), "create"])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "no topics: {errors}");
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .create()?;
    let new = [EVENTS, OUTPUT]
        .map(|name| NewTopic::new(name, EVENT_PARTITIONS, TopicReplication::Fixed(1)));
    let made = futures::executor::block_on(admin.create_topics(&new, &AdminOptions::new()))?;
    for topic in made {
        topic.map_err(|(name, code)| anyhow::anyhow!("no topic {name}: {code}"))?;
    }
    Ok(())
}

/// Process events, as some sensor sends them.
struct Events {
    kafka: String,
    /// How many of each name.
    sent: BTreeMap<String, usize>,
}

impl Events {
    fn of(kafka: &str) -> Self {
        Self {
            kafka: kafka.to_owned(),
            sent: BTreeMap::new(),
        }
    }

    fn send(&mut self, name: &str, host: &str, pns_inode: u64, time_ms: u64) -> Result<()> {
        let event = json!({"host_id": host, "pns_inode": pns_inode, "time_ms": time_ms, "pid": 1, "exe": name});
        self.send_text(&event.to_string())?;
        if name != "clock" {
            *self.sent.entry(name.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    fn send_text(&self, text: &str) -> Result<()> {
        produce(&self.kafka, EVENTS, text, &[])
    }
}

/// Sends one message by kcat.
fn produce(kafka: &str, topic: &str, text: &str, options: &[&str]) -> Result<()> {
    let mut kcat = Command::new("kcat")
        .args(["-P", "-q", "-b", kafka, "-t", topic])
        .args(options)
        .stdin(Stdio::piped())
        .spawn()
        .context("failed to run kcat")?;
    let mut input = kcat.stdin.take().context("kcat has no stdin")?;
    writeln!(input, "{text}")?;
    drop(input);
    ensure!(kcat.wait()?.success(), "kcat could not send to {topic}");
    Ok(())
}

/// What came out: of each event's name the containers that it was given.
struct Joined(BTreeMap<String, Vec<Value>>);

fn joined(kafka: &str) -> Result<Joined> {
    let output = Command::new("kcat")
        .args([
            "-C",
            "-e",
            "-q",
            "-o",
            "beginning",
            "-b",
            kafka,
            "-t",
            OUTPUT,
        ])
        .stdin(Stdio::null())
        .output()
        .context("failed to run kcat")?;
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        // What was no JSON may be passed on as it came.
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let name = event["exe"].as_str().context("an event without its name")?;
        let containers = all.entry(name.to_owned()).or_default();
        containers.push(event["container"].clone());
    }
    Ok(Joined(all))
}

impl Joined {
    /// Every event came out as often as it went in, at the least, and always with the same container.
    fn check_all(self, sent: &BTreeMap<String, usize>) -> Result<BTreeMap<String, Value>> {
        let mut found = BTreeMap::new();
        for (name, count) in sent {
            let containers = self.0.get(name).map_or(&[][..], Vec::as_slice);
            ensure!(containers.len() >= *count, "`{name}` is not there yet");
            let first = containers[0].clone();
            ensure!(
                containers.iter().all(|container| *container == first),
                "`{name}` is told in more than one way: {containers:?}"
            );
            found.insert(name.clone(), first);
        }
        Ok(found)
    }
}

/// A stream processor that runs in a Java of its own.
struct Engine {
    name: String,
    child: Child,
    log: PathBuf,
    is_stopped: bool,
}

impl Engine {
    fn start(name: &str, lab: &Lab, classpath: &str, arguments: &[String]) -> Result<Self> {
        let log = lab.dir().join("log").join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = Command::new("java")
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args([
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                classpath,
            ])
            .args(arguments)
            .env("TMPDIR", lab.dir())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("failed to run java")?;
        let name = name.to_owned();
        Ok(Self {
            name,
            child,
            log,
            is_stopped: false,
        })
    }

    /// An engine that has ended tells so at once, not by a wait that is over.
    fn check_log(&self) -> Result<()> {
        let log = std::fs::read_to_string(&self.log)?;
        let fatal = log
            .lines()
            .find(|line| line.starts_with("Exception in thread"));
        ensure!(fatal.is_none(), "{} failed: {fatal:?}", self.name);
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "{} has ended by itself",
            self.name
        );
        self.is_stopped = true;
        Ok(())
    }
}

impl Drop for Engine {
    #[expect(clippy::print_stderr, reason = "the log of a failed test")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.is_stopped {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- what {} logged:\n{}\n---", self.name, tail.join("\n"));
        }
    }
}
