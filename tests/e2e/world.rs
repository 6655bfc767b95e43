//! Drives the runtimes as people and kubelet do, with clients that are not Quaymaster's code, and tells what is true.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Lab, script};

/// The image of busybox that the lab builds.
const BUSYBOX: &str = "busybox:lab";
/// What a container does that should stay.
const STAY: [&str; 2] = ["sleep", "3600"];

/// What a runtime says of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its name without a slash.
    pub(crate) name: String,
    /// Docker's own word; CRI's in Quaymaster's words.
    pub(crate) state: String,
}

/// After this many seconds a start counts as held.
const HELD_S: &str = "10";

/// How long starts took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    ms: Vec<f64>,
    /// Whether one of them did not end.
    pub(crate) is_held: bool,
}

impl Times {
    /// How many were done.
    pub(crate) fn count(&self) -> usize {
        self.ms.len()
    }

    /// Takes others in.
    pub(crate) fn add(&mut self, other: Self) {
        self.ms.extend(other.ms);
        self.is_held |= other.is_held;
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.ms.clone();
        sorted.sort_by(f64::total_cmp);
        let p50 = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let max = sorted.last().copied().unwrap_or(0.0);
        write!(f, "{p50:.0} and {max:.0} ms of {}", sorted.len())?;
        if self.is_held {
            write!(f, ", then held")?;
        }
        Ok(())
    }
}

/// The docker command line on one socket.
pub(crate) struct Docker {
    cli: String,
    socket: String,
    config: PathBuf,
}

impl Docker {
    /// The dockerd, or what speaks like one, whose values in the lab begin with `LAB_` and `name`.
    pub(crate) fn new(lab: &Lab, name: &str) -> Result<Self> {
        Ok(Self {
            cli: lab.value(&format!("LAB_{name}_CLI"))?,
            socket: lab.value(&format!("LAB_{name}_SOCKET"))?,
            config: lab.dir().join("run"),
        })
    }

    /// As `--endpoint` wants it.
    pub(crate) fn endpoint(&self) -> String {
        format!("docker=unix://{}", self.socket)
    }

    /// One docker command; its output.
    pub(crate) fn call(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.cli);
        command.env("DOCKER_CONFIG", &self.config);
        command
            .args(["-H", &format!("unix://{}", self.socket)])
            .args(arguments);
        run(&mut command)
    }

    /// What a container has written so far, to either of its streams.
    pub(crate) fn said(&self, name: &str) -> Result<String> {
        let mut command = Command::new(&self.cli);
        command.env("DOCKER_CONFIG", &self.config);
        command.args(["-H", &format!("unix://{}", self.socket), "logs", name]);
        let output = command.stdin(Stdio::null()).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "{command:?} failed: {said}");
        Ok(said)
    }

    /// Starts a container that stays; its id.
    pub(crate) fn run_staying(&self, name: &str, options: &[&str]) -> Result<String> {
        let head = ["run", "-d", "--network", "none", "--name", name];
        let arguments = [&head[..], options, &[BUSYBOX], &STAY].concat();
        self.call(&arguments)
    }

    /// Starts a container with a command that ends by itself, without waiting for it; its id.
    pub(crate) fn run_ending(
        &self,
        name: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<String> {
        let head = ["run", "-d", "--network", "none", "--name", name];
        self.call(&[&head[..], options, &[BUSYBOX], command].concat())
    }

    /// Runs a container that ends at once, and waits until it is removed; its id.
    pub(crate) fn run_to_its_end(&self, name: &str) -> Result<String> {
        let file = self.config.join(format!("{name}.id"));
        let file = file.to_str().context("a path is not UTF-8")?;
        let head = ["run", "--rm", "--network", "none", "--cidfile", file];
        self.call(&[&head[..], &["--name", name, BUSYBOX, "true"]].concat())?;
        std::fs::read_to_string(file).with_context(|| format!("no id in `{file}`"))
    }

    /// All containers, by id.
    pub(crate) fn containers(&self) -> Result<BTreeMap<String, Seen>> {
        let lines = self.call(&[
            "ps",
            "-a",
            "--no-trunc",
            "--format",
            "{{.ID}}\t{{.Names}}\t{{.State}}",
        ])?;
        let mut containers = BTreeMap::new();
        for line in lines.lines() {
            let [id, name, state] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("`docker ps` wrote `{line}`");
            };
            let (name, state) = (name.to_owned(), state.to_owned());
            containers.insert(id.to_owned(), Seen { name, state });
        }
        Ok(containers)
    }

    /// The init process of a container; 0 where none runs.
    pub(crate) fn pid(&self, id: &str) -> Result<u32> {
        let pid = self.call(&["inspect", "-f", "{{.State.Pid}}", id])?;
        pid.parse().with_context(|| format!("`{pid}` is no pid"))
    }
}

/// A CRI server, by `tests/lab/cri`, which speaks Kubernetes' own schema.
pub(crate) struct Cri {
    socket: String,
    cgroup: String,
}

impl Cri {
    /// The server whose socket the lab tells under `key`.
    pub(crate) fn new(lab: &Lab, key: &str) -> Result<Self> {
        Ok(Self {
            socket: lab.value(key)?,
            cgroup: lab.value("LAB_CGROUP")?,
        })
    }

    /// As `--endpoint` wants it.
    pub(crate) fn endpoint(&self) -> String {
        format!("cri=unix://{}", self.socket)
    }

    /// One command; its output.
    pub(crate) fn call(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(script("cri"));
        command.env("LAB_CGROUP", &self.cgroup);
        command.args(["--socket", &self.socket]).args(arguments);
        run(&mut command)
    }

    /// Runs a pod's sandbox; its id.
    pub(crate) fn pod(&self, name: &str, options: &[&str]) -> Result<String> {
        self.call(&[&["runp", name][..], options].concat())
    }

    /// Runs a container that stays in a pod; its id.
    pub(crate) fn run_staying(&self, pod: &str, name: &str) -> Result<String> {
        self.call(&["run", pod, name])
    }

    /// Runs containers in a pod, one after another; each ends at once, and is removed. Their ids.
    pub(crate) fn lives(&self, pod: &str, name: &str, count: usize) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for number in 0..count {
            let name = format!("{name}-{number}");
            let id = self.call(&["run", pod, &name, "--", "/bin/true"])?;
            self.call(&["rm", &id])?;
            ids.push(id);
        }
        Ok(ids)
    }

    /// Takes the times of short lives in a pod, one after another. One that is not done within [`HELD_S`] counts as
    /// held, and ends it.
    pub(crate) fn times(
        &self,
        pod: &str,
        name: &str,
        count: usize,
        labels: &[String],
    ) -> Result<Times> {
        let mut command = Command::new(script("cri"));
        command.env("LAB_CGROUP", &self.cgroup);
        command.args(["--socket", &self.socket, "--timeout", HELD_S, "times"]);
        command.args(["--count", &count.to_string()]);
        for label in labels {
            command.args(["--label", label]);
        }
        let said = run(command.args([pod, name, "--", "/bin/true"]))?;
        let mut times = Times::default();
        for line in said.lines() {
            match line.parse() {
                Ok(ms) => times.ms.push(ms),
                Err(_) => times.is_held = true,
            }
        }
        Ok(times)
    }

    /// Ends all containers at once. A sandbox that is stopped gives those in it CRI-O's half a minute for their SIGTERM,
    /// which the init process of a PID namespace does not hear.
    pub(crate) fn stop_all(&self) -> Result<()> {
        let answer: Value = serde_json::from_str(&self.call(&["ps"])?)?;
        let containers = answer["containers"].as_array();
        for entry in containers.context("a list is missing")? {
            if entry["state"] == "CONTAINER_RUNNING" {
                self.call(&["stop", entry["id"].as_str().context("an id is missing")?])?;
            }
        }
        Ok(())
    }

    /// All containers and sandboxes, by id.
    pub(crate) fn containers(&self) -> Result<BTreeMap<String, Seen>> {
        let mut all = BTreeMap::new();
        for (verb, list) in [("ps", "containers"), ("pods", "items")] {
            let answer: Value = serde_json::from_str(&self.call(&[verb])?)?;
            for entry in answer[list].as_array().context("a list is missing")? {
                let id = entry["id"].as_str().context("an id is missing")?;
                let name = entry["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let state = cri_state(entry["state"].as_str().unwrap_or_default())?.to_owned();
                all.insert(id.to_owned(), Seen { name, state });
            }
        }
        Ok(all)
    }

    /// The init process of a container or sandbox; 0 where none runs.
    pub(crate) fn pid(&self, id: &str) -> Result<u32> {
        let answer = match self.call(&["inspect", id]) {
            Ok(answer) => answer,
            Err(_) => self.call(&["inspectp", id])?,
        };
        let answer: Value = serde_json::from_str(&answer)?;
        let info = answer["info"]["info"]
            .as_str()
            .context("the runtime tells no info")?;
        let info: Value = serde_json::from_str(info)?;
        Ok(u32::try_from(info["pid"].as_u64().unwrap_or(0))?)
    }
}

fn cri_state(word: &str) -> Result<&'static str> {
    Ok(match word {
        "CONTAINER_CREATED" => "created",
        "CONTAINER_RUNNING" | "SANDBOX_READY" => "running",
        "CONTAINER_EXITED" | "SANDBOX_NOTREADY" => "exited",
        "CONTAINER_UNKNOWN" => "unknown",
        other => bail!("`{other}` is no state of the CRI"),
    })
}

/// The PID namespace of a process, as the kernel writes it: `pid:[4026532448]`.
pub(crate) fn pns_of(pid: u32) -> Result<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    let link = link.with_context(|| format!("process {pid} has no namespace"))?;
    link.into_os_string()
        .into_string()
        .ok()
        .context("a namespace is not UTF-8")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("failed to run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {errors}");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
