//! One host of the fleet: its containers as a node of Kubernetes has them, and what its collector puts.

use std::sync::Arc;

use quaymaster::model::message::{Delta, Mapping, Member, Message, Op, Origin, RuntimeSource};
use quaymaster::model::record::{Fields, ProcessFacts};
use quaymaster::model::{Container, ContainerId, ContainerKind, Pod, RuntimeType, State};
use quaymaster::sink::Outgoing;
use quaymaster::wire::{self, Refresh, Renderer};

/// The defaults of `quaymaster run`.
const REFRESH: Refresh = Refresh {
    records_ms: 300_000,
    pns_ms: 3_600_000,
    status_ms: 30_000,
};
/// The first number of a namespace that is not the host's own.
const PNS_MIN: u64 = 4_026_532_000;
/// The oldest container of a host, before now.
const AGE_MAX_MS: u64 = 86_400_000;
const IMAGES: u64 = 200;

/// One host.
pub(super) struct Host {
    number: u64,
    containers: u64,
    renderer: Renderer,
    source: Arc<RuntimeSource>,
    now_ms: u64,
}

/// The id of a host, as systemd writes a machine's.
pub(super) fn host_id(number: u64) -> String {
    format!("{:032x}", scattered(number, 1))
}

/// The number of the namespace of a host's container.
pub(super) fn pns_of(container: u64) -> u64 {
    PNS_MIN + 3 * container
}

impl Host {
    pub(super) fn new(number: usize, containers: usize) -> Self {
        let number = number as u64;
        let host = wire::Host {
            host_id: host_id(number).into(),
            host_name: format!("node-{number:05}.fleet.local").into(),
            boot_id: uuid(number, 2).into(),
            epoch: uuid(number, 3).into(),
        };
        let source = RuntimeSource {
            uid: 0,
            runtime: RuntimeType::Cri,
            name: "containerd".into(),
            version: "2.1.4".into(),
            endpoint: "unix:///run/containerd/containerd.sock".into(),
        };
        Self {
            number,
            containers: containers as u64,
            renderer: Renderer::new(host, REFRESH),
            source: Arc::new(source),
            now_ms: super::now_ms(),
        }
    }

    /// What a collector without a state puts.
    pub(super) fn first(&self) -> Vec<Outgoing> {
        let all = (0..self.containers).flat_map(|container| {
            [
                self.mapping(container, None, false),
                self.delta(container, Op::Snapshot),
                self.record(container),
            ]
        });
        self.rendered(all)
    }

    /// What a resync puts, and a refresh of all mappings.
    pub(super) fn refresh(&self) -> Vec<Outgoing> {
        let all = (0..self.containers)
            .flat_map(|container| [self.record(container), self.mapping(container, None, true)]);
        self.rendered(all)
    }

    /// Some containers end and go, and as many others come.
    pub(super) fn churn(&self, count: usize) -> Vec<Outgoing> {
        let all = (0..count as u64).flat_map(|old| {
            let new = self.containers + old;
            [
                self.mapping(old, Some(self.now_ms), false),
                self.delta(old, Op::Stop),
                self.delta(old, Op::Delete),
                Message::RecordTombstone { id: self.id(old) },
                Message::MappingTombstone {
                    pns_inode: pns_of(old),
                    generation: 1,
                },
                self.mapping(new, None, false),
                self.delta(new, Op::Create),
                self.delta(new, Op::Start),
                self.record(new),
            ]
        });
        self.rendered(all)
    }

    fn rendered(&self, messages: impl Iterator<Item = Message>) -> Vec<Outgoing> {
        // Rows of a host that has run for a while.
        let rows = 1_000_000..;
        messages
            .zip(rows)
            .map(|(message, row)| self.renderer.render(&message, row, self.now_ms))
            .collect()
    }

    fn id(&self, container: u64) -> ContainerId {
        let text = format!(
            "{:032x}{:032x}",
            scattered(self.number, container),
            scattered(container, self.number)
        );
        ContainerId::parse(&text).expect("64 hex digits are an id")
    }

    fn started_ms(&self, container: u64) -> u64 {
        self.now_ms
            - u64::try_from(scattered(self.number, container) % u128::from(AGE_MAX_MS)).unwrap_or(0)
    }

    fn image(&self, container: u64) -> u64 {
        u64::try_from(scattered(self.number, container) % u128::from(IMAGES)).unwrap_or(0)
    }

    fn pod(&self, container: u64) -> Pod {
        let service = self.image(container);
        Pod {
            name: format!(
                "service-{service}-{:010x}-{:05x}",
                service * 7_919,
                container
            ),
            namespace: format!("team-{}", service % 20),
            uid: uuid(self.number, container + 10),
            sandbox_id: self.id(container + 1_000_000).as_str().to_owned(),
        }
    }

    fn container(&self, container: u64) -> Container {
        let service = self.image(container);
        let pod = self.pod(container);
        let started_ns = self.started_ms(container) * 1_000_000;
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Container {
            id: self.id(container),
            name: format!("service-{service}"),
            kind: ContainerKind::Container,
            runtime: RuntimeType::Cri,
            runtime_name: "containerd".into(),
            runtime_version: "2.1.4".into(),
            state: State::Running,
            image_id: format!(
                "{:032x}{:032x}",
                scattered(service, 5),
                scattered(service, 6)
            ),
            image_name: format!(
                "registry.fleet.local/team-{}/service-{service}:1.{service}.3",
                service % 20
            ),
            image_digest: String::new(),
            pid: Some(1_000 + u32::try_from(container * 17).unwrap_or(0)),
            created_at_ns: started_ns,
            started_at_ns: Some(started_ns),
            finished_at_ns: None,
            exit_code: None,
            oom_killed: None,
            restart_count: Some(0),
            labels: [
                label(
                    "io.kubernetes.container.name",
                    &format!("service-{service}"),
                ),
                label("io.kubernetes.pod.name", &pod.name),
                label("io.kubernetes.pod.namespace", &pod.namespace),
                label("io.kubernetes.pod.uid", &pod.uid),
            ]
            .into(),
            pod: Some(pod),
            pid_mode: String::new(),
            privileged: Some(false),
            reason: String::new(),
        }
    }

    fn fields(&self, container: u64) -> Fields {
        let of = self.container(container);
        let process = ProcessFacts {
            pid: of.pid,
            pns_inode: Some(pns_of(container)),
            pns_id: Some(8_000 + container),
        };
        Fields::of(&of, process)
    }

    fn record(&self, container: u64) -> Message {
        Message::Record {
            id: self.id(container),
            fields: self.fields(container),
            package_seq: 2_016,
            seq: 12_345,
        }
    }

    fn delta(&self, container: u64, op: Op) -> Message {
        Message::Delta(Box::new(Delta {
            seq: 12_345,
            op,
            ts_ms: self.now_ms,
            source: Some(Arc::clone(&self.source)),
            origin: Origin::Event,
            event_ts_ns: self.now_ms * 1_000_000,
            fields: Some(self.fields(container)),
            changed: vec![
                ("state", "created".into()),
                ("pid", "".into()),
                ("pns", "".into()),
            ],
            reason: "".into(),
            package_seq: 2_016,
            previous_epoch: None,
        }))
    }

    fn mapping(&self, container: u64, valid_to_ms: Option<u64>, refresh: bool) -> Message {
        let of = self.container(container);
        let pod_uid = of.pod.as_ref().map_or("", |pod| &pod.uid).replace('-', "_");
        let member = Member {
            cgroup: format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_uid}.slice/cri-containerd-{}.scope",
                of.id.as_str()
            )
            .into(),
            container_id: of.id,
            container_name: of.name.into(),
            kind: ContainerKind::Container,
            runtime: RuntimeType::Cri,
            image_name: of.image_name.into(),
            pod: of.pod,
            pid: of.pid.unwrap_or(0),
            start_ticks: container,
            started_at_ms: self.started_ms(container),
            mnt_ns: pns_of(container) + 1,
            is_init: true,
        };
        let mapping = Mapping {
            pns_inode: pns_of(container),
            pns_id: Some(8_000 + container),
            generation: 1,
            boot_id: Arc::clone(&self.renderer.host().boot_id),
            valid_from_ms: self.started_ms(container),
            valid_to_ms,
            owner: member.clone(),
            members: vec![member],
            nested: false,
            seq: 12_345,
        };
        Message::Mapping {
            mapping: Box::new(mapping),
            refresh,
        }
    }
}

/// A number that looks like a hash of two (splitmix64, twice): ids do not compress.
fn scattered(one: u64, two: u64) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let high = mix(mix(one) ^ two);
    u128::from(high) << 64 | u128::from(mix(high))
}

fn uuid(one: u64, two: u64) -> String {
    let hex = format!("{:032x}", scattered(one, two));
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}
