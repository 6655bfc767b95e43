//! The mapping before the first instruction: when Kafka has acknowledged it, against containerd's `/tasks/start` of the
//! same container; and whether it names the namespace that runc itself made.
//!
//! The starts are seen by `ctr events`, the namespaces by a wrapper around runc (`tests/lab`): neither is our code.
//!
//! The collector has the priority that `deploy/systemd` gives it, and so has the broker, which elsewhere has a machine
//! of its own; the runtimes and the clients have none.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use quaymaster::model::Topic;
use quaymaster::runtime::text::rfc3339_ns;
use quaymaster::sink::{BusUrl, Outgoing, TopicSettings};

use crate::daemon::{Daemon, endpoints};
use crate::latency::{Picked, Timed, Times, between_ms};

/// Starts at each runtime, one at a time and at once each, where `QUAYMASTER_BENCH_STARTS` says nothing.
const STARTS: usize = 200;
/// Clients that start containers at once.
const CLIENTS: usize = 8;
/// How long after the last start its mapping and the observers' words may come.
const SETTLE: Duration = Duration::from_secs(3);

/// `Nice=` of `deploy/systemd`, and what it takes to have none again.
const NICE: i32 = -10;
const UN_NICE: &str = "10";

/// When `/tasks/start` of each container was published.
type Starts = Arc<Mutex<HashMap<String, u64>>>;

pub(crate) fn run() -> anyhow::Result<()> {
    // Threads that are made from here on have it too.
    rustix::process::setpriority_process(None, NICE)?;
    favour("self");
    favour(&variable("LAB_KAFKA_PID")?);
    println!("early: the collector and the broker run at nice {NICE}, runtimes and clients at 0");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let count = match std::env::var("QUAYMASTER_BENCH_STARTS") {
        Ok(count) => count.parse()?,
        Err(_) => STARTS,
    };
    let bus: BusUrl = format!("kafka://{}", variable("LAB_KAFKA")?).parse()?;
    let topics = TopicSettings {
        prefix: format!("early{}", std::process::id()),
        ..TopicSettings::default()
    };
    let times = Arc::new(Mutex::new(Vec::new()));
    let sink = Timed {
        inner: Some(quaymaster::sink::open(&bus, &topics, "bench")?),
        pick: mapping_of,
        times: Arc::clone(&times),
    };
    let mut daemon = Daemon::start(&endpoints()?, Box::new(sink)).await?;
    daemon.settled().await?;
    let (mut observer, starts) = observe_starts()?;
    let pod = cri(&["runp", "--runtime", "observed", "early"])?;
    // The first messages open connections and topics.
    start_docker("early-first", 1)?;
    tokio::time::sleep(SETTLE).await;

    for (name, clients, is_docker) in [
        ("Docker, one at a time", 1, true),
        ("CRI, one at a time", 1, false),
        ("Docker, 8 clients at once", CLIENTS, true),
        ("CRI, 8 clients at once", CLIENTS, false),
    ] {
        starts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let pod = pod.clone();
        tokio::task::spawn_blocking(move || start_all(clients, count, is_docker, &pod)).await??;
        tokio::time::sleep(SETTLE).await;
        print_early(name, &starts, &times)?;
    }
    daemon.print_hints();
    observer.kill()?;
    observer.wait()?;
    daemon.end().await?;
    Ok(())
}

/// The containers and the namespace of a mapping that lives.
fn mapping_of(message: &Outgoing) -> Option<Picked> {
    if message.topic != Topic::Pns {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(message.value.as_deref()?).ok()?;
    let members = value.get("members")?.as_array()?;
    let of = |member: &serde_json::Value| Some(member.get("container_id")?.as_str()?.to_owned());
    Some(Picked {
        pns: value.get("pns")?.as_str()?.to_owned(),
        containers: members.iter().filter_map(of).collect(),
        ..Picked::default()
    })
}

fn start_all(clients: usize, count: usize, is_docker: bool, pod: &str) -> anyhow::Result<()> {
    let share = count / clients;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let name = format!("early-{clients}-{client}");
                    if is_docker {
                        start_docker(&name, share)
                    } else {
                        start_cri(&name, share, pod)
                    }
                })
            })
            .collect();
        for started in all {
            let started = started.join();
            started.map_err(|_| anyhow::anyhow!("a client ended abnormally"))??;
        }
        Ok(())
    })
}

/// Gives a session the same priority among others: with `sched_autogroup_enabled` a process's own counts only within
/// its session (sched(7)). Where the kernel has no such thing its own is enough.
fn favour(process: &str) {
    let _ = std::fs::write(format!("/proc/{process}/autogroup"), NICE.to_string());
}

/// A client: a session of its own, without our priority.
fn client(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["--wait", "nice", "-n", UN_NICE, program]);
    command
}

fn docker(arguments: &[&str]) -> anyhow::Result<()> {
    let status = client(&variable("LAB_DOCKER_CLI")?)
        .arg("-H")
        .arg(format!("unix://{}", variable("LAB_DOCKER_SOCKET")?))
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "docker {arguments:?} failed: {status}");
    Ok(())
}

fn start_docker(name: &str, count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        let name = format!("{name}-{number}");
        let head = ["run", "--rm", "--runtime", "observed", "--network", "none"];
        docker(&[&head[..], &["--name", &name, "busybox:lab", "true"]].concat())?;
    }
    Ok(())
}

/// The containers stay behind, ended: their removal is not what is measured.
fn start_cri(name: &str, count: usize, pod: &str) -> anyhow::Result<()> {
    let count = count.to_string();
    cri(&["run-many", "--count", &count, pod, name, "--", "true"])?;
    Ok(())
}

fn cri(arguments: &[&str]) -> anyhow::Result<String> {
    let output = client(&variable("LAB_CRI")?)
        .args(["--socket", &variable("LAB_CRI_SOCKET")?])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "cri {arguments:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Reads what `ctr events` says of starts, until it is killed.
fn observe_starts() -> anyhow::Result<(Child, Starts)> {
    // It is killed by its pid: no session of its own, which might be another process.
    let mut child = Command::new("nice")
        .args(["-n", UN_NICE, &variable("LAB_CTR")?])
        .args(["-a", &variable("LAB_CONTAINERD_SOCKET")?, "events"])
        .arg("topic==\"/tasks/start\"")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let starts = Starts::default();
    let noted = Arc::clone(&starts);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((id, at_ns)) = start_in(&line) {
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.insert(id, at_ns);
            }
        }
    });
    Ok((child, starts))
}

/// `2026-01-02 03:04:05.123456789 +0000 UTC moby /tasks/start {"container_id":"…","pid":7}`
fn start_in(line: &str) -> Option<(String, u64)> {
    let (head, json) = line.split_once(" /tasks/start ")?;
    let mut words = head.split_ascii_whitespace();
    let at = format!("{}T{}Z", words.next()?, words.next()?);
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let id = value.get("container_id")?.as_str()?;
    Some((id.to_owned(), rfc3339_ns(&at)?))
}

fn print_early(name: &str, starts: &Starts, times: &Mutex<Vec<Times>>) -> anyhow::Result<()> {
    let starts = starts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let truth = std::fs::read_to_string(variable("LAB_OBSERVED")?)?;
    let truth: HashMap<&str, &str> = truth
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let mut first: HashMap<&str, (u64, &str)> = HashMap::new();
    for time in &times {
        for container in &time.picked.containers {
            first
                .entry(container)
                .or_insert((time.acked_ns, &time.picked.pns));
        }
    }
    let of = |id: &String| first.get(id.as_str());
    let leads: Vec<f64> = starts
        .iter()
        .filter_map(|(id, start_ns)| Some(between_ms(*start_ns, of(id)?.0)))
        .collect();
    let early = leads.iter().filter(|lead| **lead < 0.0).count();
    let right = starts
        .keys()
        .filter(|id| {
            let told = of(id).map(|(_, pns)| *pns);
            told.is_some() && told == truth.get(id.as_str()).copied()
        })
        .count();
    let total = starts.len();
    println!("== early mapping: {name}, containers that run `true`");
    crate::print_distribution("mapping acknowledged - task start", leads);
    println!(
        "acknowledged before the start: {early} of {total}; with the right namespace: {right} of {total}"
    );
    Ok(())
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name}: use `make bench`"))
}
