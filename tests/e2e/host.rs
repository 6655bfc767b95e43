//! A host as tests have it: runtimes, a bus, and the question whether what the bus says of the runtimes is true.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::collector::Setup;
use crate::consume::{Bus, Message};
use crate::contract;
use crate::fold::{self, field};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::{Cri, Docker, Seen, pns_of};

/// How long mappings linger in tests: long enough to be seen, short enough to be waited for.
pub(crate) const LINGER: &str = "4s";

/// Which bus a test runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BusKind {
    /// JSON lines.
    Stdout,
    /// Kafka.
    Kafka,
    /// NATS JetStream.
    Nats,
}

/// Runtimes, a bus, and how a collector is started there.
pub(crate) struct Host {
    /// Dockers, or what speaks like one.
    pub(crate) dockers: Vec<Docker>,
    /// CRI servers.
    pub(crate) cris: Vec<Cri>,
    /// Where the messages are.
    pub(crate) bus: Bus,
    /// How the collector is started.
    pub(crate) setup: Setup,
    /// Last, so that it ends when nothing uses it any more.
    pub(crate) lab: Lab,
}

fn address(lab: &Lab, bus: BusKind) -> Result<String> {
    match bus {
        BusKind::Stdout => Ok(String::new()),
        BusKind::Kafka => lab.value("LAB_KAFKA"),
        BusKind::Nats => lab.value("LAB_NATS"),
    }
}

impl Host {
    /// A containerd with CRI and a dockerd on it, with a bus. `None` where the machine cannot have them.
    pub(crate) fn usual(bus: BusKind) -> Result<Option<Self>> {
        let mut components = vec!["containerd2", "docker"];
        match bus {
            BusKind::Stdout => {}
            BusKind::Kafka => components.push("kafka"),
            BusKind::Nats => components.push("nats"),
        }
        let Some(lab) = Lab::up(&components)? else {
            return Ok(None);
        };
        let dockers = vec![Docker::new(&lab, "DOCKER")?];
        let cris = vec![Cri::new(&lab, "LAB_CRI_SOCKET")?];
        Self::of(lab, dockers, cris, bus).map(Some)
    }

    /// The host of a lab that is up.
    pub(crate) fn of(lab: Lab, dockers: Vec<Docker>, cris: Vec<Cri>, bus: BusKind) -> Result<Self> {
        let address = address(&lab, bus)?;
        let url = match bus {
            BusKind::Stdout => "stdout:".to_owned(),
            BusKind::Kafka => Bus::Kafka(address.clone()).url(),
            BusKind::Nats => Bus::Nats(address.clone()).url(),
        };
        let endpoints: Vec<_> = dockers.iter().map(Docker::endpoint).collect();
        let endpoints = [endpoints, cris.iter().map(Cri::endpoint).collect()].concat();
        let setup = Setup::new(&lab, &url, &endpoints).with(&["--pns-linger", LINGER]);
        let bus = match bus {
            BusKind::Stdout => Bus::Stdout(setup.stdout()),
            BusKind::Kafka => Bus::Kafka(address),
            BusKind::Nats => Bus::Nats(address),
        };
        Ok(Self {
            dockers,
            cris,
            bus,
            setup,
            lab,
        })
    }

    /// Reads at another of the lab's brokers from now on.
    pub(crate) fn reads_at(&mut self, bus: BusKind) -> Result<()> {
        let address = address(&self.lab, bus)?;
        self.bus = match bus {
            BusKind::Stdout => Bus::Stdout(self.setup.stdout()),
            BusKind::Kafka => Bus::Kafka(address),
            BusKind::Nats => Bus::Nats(address),
        };
        Ok(())
    }

    /// The first Docker.
    pub(crate) fn docker(&self) -> &Docker {
        &self.dockers[0]
    }

    /// The first CRI server.
    pub(crate) fn cri(&self) -> &Cri {
        &self.cris[0]
    }

    /// Waits until the tables and the folded deltas say of every container what its runtime says, and every live PID
    /// namespace is mapped, and no other. Gives the messages that say so.
    pub(crate) fn converged(&self, after: &str) -> Result<Vec<Message>> {
        eventually(&format!("the bus tells the truth after {after}"), || {
            self.check_truth()
        })
    }

    /// Waits for something that a reader of the bus would see.
    pub(crate) fn told<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&[Message]) -> Result<T>,
    ) -> Result<T> {
        eventually(what, || look(&self.bus.read()?))
    }

    /// The newest record of a container.
    pub(crate) fn record(&self, id: &str) -> Result<Value> {
        let records = fold::records(&self.bus.read()?)?;
        records
            .get(id)
            .cloned()
            .with_context(|| format!("no record of {id}"))
    }

    fn check_truth(&self) -> Result<Vec<Message>> {
        let truth = self.containers()?;
        let messages = self.bus.read()?;
        let records = fold::records(&messages)?;
        let folded = fold::fold(&messages)?;
        let ids = |table: &BTreeMap<String, Value>| table.keys().cloned().collect::<BTreeSet<_>>();
        let there: BTreeSet<_> = truth.keys().cloned().collect();
        ensure!(
            ids(&records) == there,
            "records of {:#?} where there are {truth:#?}",
            ids(&records)
        );
        ensure!(
            ids(&folded.containers) == there,
            "deltas tell of {:#?}",
            ids(&folded.containers)
        );
        for (id, seen) in &truth {
            for fields in [&records[id], &folded.containers[id]] {
                let (name, state) = (field(fields, "name"), field(fields, "state"));
                ensure!(
                    name == seen.name,
                    "{id} is told as `{name}` and is `{}`",
                    seen.name
                );
                ensure!(
                    state == seen.state,
                    "{name} is told as {state} and is {}",
                    seen.state
                );
            }
        }
        self.check_namespaces(&truth, &records, &messages)?;
        contract::check_values(&messages)?;
        Ok(messages)
    }

    fn check_namespaces(
        &self,
        truth: &BTreeMap<String, Seen>,
        records: &BTreeMap<String, Value>,
        messages: &[Message],
    ) -> Result<()> {
        let mappings = fold::mappings(messages)?;
        let hosts_own = pns_of(std::process::id())?;
        let mut live = BTreeSet::new();
        for (id, seen) in truth {
            if !matches!(seen.state.as_str(), "running" | "paused") {
                ensure!(
                    field(&records[id], "pid").is_empty(),
                    "{} has a pid and does not run",
                    seen.name
                );
                continue;
            }
            let pid = self.pid(id)?;
            if pid == 0 {
                // A sandbox of CRI-O, whose process was dropped.
                let has_none = field(&records[id], "pid").is_empty();
                ensure!(has_none, "{} has a pid and no process", seen.name);
                continue;
            }
            let pns = pns_of(pid)?;
            ensure!(
                field(&records[id], "pid") == pid.to_string(),
                "{} has the pid {pid}",
                seen.name
            );
            ensure!(
                field(&records[id], "pns") == pns,
                "{} lives in {pns}",
                seen.name
            );
            if pns == hosts_own {
                continue;
            }
            let mapping = mappings
                .get(&pns)
                .with_context(|| format!("no mapping of {pns}, {}", seen.name))?;
            ensure!(
                mapping["valid_to_ms"].is_null(),
                "{pns} has ended: {mapping}"
            );
            let members = mapping["members"]
                .as_array()
                .context("a mapping without members")?;
            let is_member = members.iter().any(|member| member["container_id"] == **id);
            ensure!(is_member, "{} is not in {mapping}", seen.name);
            live.insert(pns);
        }
        ensure!(
            !mappings.contains_key(&hosts_own),
            "the host's own namespace is mapped"
        );
        for (pns, mapping) in &mappings {
            let has_ended = !mapping["valid_to_ms"].is_null();
            // A dockerd that was killed between a container's creation and its start leaves its process behind,
            // and says that the container does not run; its namespace lives all the same.
            let pid = mapping["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            let is_left = pid.is_some_and(|pid| pns_of(pid).is_ok_and(|lives| lives == *pns));
            ensure!(
                has_ended || live.contains(pns) || is_left,
                "{pns} is told as live: {mapping}"
            );
        }
        Ok(())
    }

    fn containers(&self) -> Result<BTreeMap<String, Seen>> {
        let mut all = BTreeMap::new();
        for docker in &self.dockers {
            all.append(&mut docker.containers()?);
        }
        for cri in &self.cris {
            all.append(&mut cri.containers()?);
        }
        Ok(all)
    }

    fn pid(&self, id: &str) -> Result<u32> {
        let dockers = self.dockers.iter().filter_map(|docker| docker.pid(id).ok());
        let mut pids = dockers.chain(self.cris.iter().filter_map(|cri| cri.pid(id).ok()));
        pids.next()
            .with_context(|| format!("no runtime knows {id}"))
    }
}
