//! Containers that are containerd's own: of namespaces that neither Docker nor CRI has.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::consume::Message;
use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::{Cri, pns_of};

/// `ctr` on one containerd, in its namespace `default`.
struct Ctr {
    program: String,
    socket: String,
    cgroup: String,
    runc_root: String,
    image: String,
}

impl Ctr {
    /// The values of the lab under these keys; the image is imported.
    fn new(lab: &Lab, program: &str, socket: &str) -> Result<Self> {
        let ctr = Self {
            program: lab.value(program)?,
            socket: lab.value(socket)?,
            cgroup: lab.value("LAB_CGROUP")?,
            runc_root: lab.dir().join("ctr-runc").display().to_string(),
            image: lab.value("LAB_BUSYBOX_IMAGE")?,
        };
        let cache = std::env::var("QUAYMASTER_LAB_CACHE");
        let cache = cache.unwrap_or_else(|_| "/var/cache/quaymaster-lab".to_owned());
        let images = Path::new(&cache).join("images/lab.tar");
        ctr.call(&["images", "import", &images.display().to_string()])?;
        Ok(ctr)
    }

    fn endpoint(&self) -> String {
        format!("containerd=unix://{}", self.socket)
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(["-a", &self.socket, "-n", "default"])
            .args(arguments)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ctr {arguments:?} failed: {errors}"
        );
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    fn run(&self, options: &[&str], name: &str, command: &[&str]) -> Result<()> {
        let cgroup = format!("/{}/{name}", self.cgroup);
        let head = ["run", "--cgroup", &cgroup, "--runc-root", &self.runc_root];
        self.call(&[&head[..], options, &[&self.image, name], command].concat())?;
        Ok(())
    }

    fn pid(&self, name: &str) -> Result<u32> {
        let tasks = self.call(&["tasks", "list"])?;
        let mut rows = tasks.lines().map(str::split_whitespace);
        let mut row = rows
            .find_map(|mut row| (row.next() == Some(name)).then_some(row))
            .with_context(|| format!("no task of {name}"))?;
        Ok(row.next().context("a task without a pid")?.parse()?)
    }
}

#[test]
fn containers_of_containerds_own_namespaces_are_told() -> Result<()> {
    let Some(lab) = Lab::up(&["containerd2"])? else {
        return Ok(());
    };
    let ctr = Ctr::new(&lab, "LAB_CTR", "LAB_CONTAINERD_SOCKET")?;
    let cri = Cri::new(&lab, "LAB_CRI_SOCKET")?;
    lives_are_told(lab, &ctr, cri)
}

#[test]
fn containers_of_an_older_containerds_own_namespaces_are_told() -> Result<()> {
    let Some(lab) = Lab::up(&["containerd16"])? else {
        return Ok(());
    };
    let ctr = Ctr::new(&lab, "LAB_CTR16", "LAB_CONTAINERD16_SOCKET")?;
    let cri = Cri::new(&lab, "LAB_CONTAINERD16_SOCKET")?;
    lives_are_told(lab, &ctr, cri)
}

fn lives_are_told(lab: Lab, ctr: &Ctr, cri: Cri) -> Result<()> {
    let mut host = Host::of(lab, Vec::new(), vec![cri], BusKind::Stdout)?;
    host.setup = host.setup.with(&["--endpoint", &ctr.endpoint()]);
    ctr.run(&["-d"], "standing", &["sleep", "3600"])?;
    let collector = host.setup.start()?;
    runs(&host, ctr, "standing")?;
    ctr.run(&["-d"], "web", &["sleep", "3600"])?;
    runs(&host, ctr, "web")?;

    ctr.call(&["tasks", "pause", "web"])?;
    stands(&host, "web", "paused")?;
    ctr.call(&["tasks", "resume", "web"])?;
    stands(&host, "web", "running")?;
    ctr.call(&["tasks", "kill", "-s", "SIGKILL", "web"])?;
    stands(&host, "web", "exited")?;
    eventually("its task can be deleted", || {
        ctr.call(&["tasks", "delete", "web"])
    })?;
    ctr.run(&["--rm"], "blink", &["sleep", "0.2"])?;
    host.told("a short life", |messages| {
        story_is(messages, "blink", &["create", "start", "stop", "delete"])?;
        let start = delta(messages, "blink", "start")?;
        ensure!(!field(&start["container"], "pns").is_empty(), "{start}");
        Ok(())
    })?;
    stands(&host, "web", "exited")?;
    let record = host.record("default:web")?;
    ensure!(field(&record, "exit_code") == "137", "{record}");
    ctr.call(&["containers", "delete", "web"])?;
    host.told("the removal", |messages| {
        let story = ["create", "start", "stop", "delete"];
        story_is(messages, "web", &story)
    })?;
    pods_are_told_once(&host)?;
    commands_know_them(&host, ctr)?;
    ctr.call(&["tasks", "kill", "-s", "SIGKILL", "standing"])?;
    stands(&host, "standing", "exited")?;
    collector.stop()
}

/// Waits until a container is told as running, with its namespace and its mapping.
fn runs(host: &Host, ctr: &Ctr, name: &str) -> Result<()> {
    let pns = pns_of(ctr.pid(name)?)?;
    let id = format!("default:{name}");
    host.told(&format!("{id} runs"), |messages| {
        let records = fold::records(messages)?;
        let record = records.get(&id).context("no record")?;
        for (key, value) in [
            ("state", "running"),
            ("name", name),
            ("runtime", "containerd"),
            ("runtime_name", "containerd"),
            ("image_name", ctr.image.as_str()),
            ("pns", pns.as_str()),
        ] {
            ensure!(
                field(record, key) == value,
                "{key} is not {value}: {record}"
            );
        }
        let mappings = fold::mappings(messages)?;
        let mapping = mappings.get(&pns).context("no mapping")?;
        ensure!(mapping["container_id"] == *id, "{mapping}");
        ensure!(mapping["container_name"] == *name, "{mapping}");
        Ok(())
    })
}

fn stands(host: &Host, name: &str, state: &str) -> Result<()> {
    let id = format!("default:{name}");
    host.told(&format!("{id} is {state}"), |messages| {
        let records = fold::records(messages)?;
        let record = records.get(&id).context("no record")?;
        ensure!(field(record, "state") == state, "{record}");
        Ok(())
    })
}

/// What CRI has is not containerd's own too.
fn pods_are_told_once(host: &Host) -> Result<()> {
    let cri = host.cri();
    let pod = cri.pod("pod", &[])?;
    let one = cri.run_staying(&pod, "one")?;
    host.told("a pod", |messages| {
        let records = fold::records(messages)?;
        ensure!(records.contains_key(&one), "its container is not told");
        let twin = records.keys().find(|id| id.starts_with("k8s.io:"));
        ensure!(twin.is_none(), "told twice: {twin:?}");
        Ok(())
    })
}

/// `list` shows them; `exec` says that it cannot.
fn commands_know_them(host: &Host, ctr: &Ctr) -> Result<()> {
    let cri = host.cri().endpoint();
    let endpoints = ["--endpoint", &ctr.endpoint(), "--endpoint", &cri];
    let quaymaster = env!("CARGO_BIN_EXE_quaymaster");
    let listed = Command::new(quaymaster)
        .args(["list", "--format", "json"])
        .args(endpoints)
        .output()?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    let listed = listed.as_array().context("no list")?;
    let ids: Vec<&str> = listed.iter().map(|row| field(row, "id")).collect();
    ensure!(ids.contains(&"default:standing"), "{ids:?}");
    ensure!(!ids.iter().any(|id| id.starts_with("k8s.io:")), "{ids:?}");
    let exec = Command::new(quaymaster)
        .arg("exec")
        .args(endpoints)
        .args(["default:standing", "--", "true"])
        .output()?;
    let errors = String::from_utf8_lossy(&exec.stderr);
    ensure!(!exec.status.success(), "it cannot be: {errors}");
    ensure!(errors.contains("does not support `exec`"), "{errors}");
    Ok(())
}

fn story_is(messages: &[Message], name: &str, expected: &[&str]) -> Result<()> {
    let stories = fold::fold(messages)?.stories;
    let story = stories.get(&format!("default:{name}"));
    let story = story.context("nothing is told of it")?;
    let story: Vec<_> = story.iter().filter(|op| *op != "update").collect();
    ensure!(story == expected, "told as {story:?}");
    Ok(())
}

fn delta<'a>(messages: &'a [Message], name: &str, op: &str) -> Result<&'a Value> {
    let id = format!("default:{name}");
    let mut values = messages
        .iter()
        .filter(|message| message.topic == "deltas")
        .filter_map(|message| message.value.as_ref());
    let found = values.find(|delta| delta["op"] == op && delta["container"]["id"] == *id);
    found.with_context(|| format!("no {op} of {id}"))
}
