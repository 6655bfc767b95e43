//! Which container a process belongs to. Pure: what it needs to know of processes is told to it.
//!
//! - In a container's PID namespace: that container. Where several share it, the one with the same mount namespace,
//!   else with the same cgroup, else the one whose mapping it would be.
//! - In a PID namespace below a container's (Docker in Docker): the container of the nearest ancestor. A namespace
//!   of which a runtime knows is nearer than all its ancestors.
//! - In the host's own, where containers may run by `--pid=host`: the one with the same cgroup, or one above it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::scan::ProcessRow;
use crate::model::Container;
use crate::model::message::Member;
use crate::reconcile::{Process, closest_member, in_cgroup, member_of};

/// A container that lives.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// What its runtime says of it.
    pub container: Arc<Container>,
    /// Its init process, in the host's PID namespace.
    pub pid: u32,
    /// The start of that process in clock ticks since boot, where it was seen before.
    pub start_ticks: Option<u64>,
}

/// How it is known whose something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The container's own PID namespace.
    Namespace,
    /// A PID namespace below the container's.
    Nested,
    /// The container's cgroup, in the host's PID namespace.
    Cgroup,
}

impl How {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Nested => "nested",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Whose something is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The container.
    pub container: Arc<Container>,
    /// How that is known.
    pub how: How,
    /// The number of the container's PID namespace.
    pub pns_inode: u64,
}

/// What is asked of a process only where it is needed.
pub struct Look<'a> {
    /// The numbers of the PID namespaces above its own, the nearest first.
    pub ancestors: Box<dyn Fn(u32) -> Vec<u64> + 'a>,
    /// Its cgroup's path; `""` where that is not known.
    pub cgroup: Box<dyn Fn(u32) -> String + 'a>,
}

#[derive(Debug)]
struct Place {
    container: Arc<Container>,
    member: Member,
}

/// The containers that live, by PID namespace.
#[derive(Debug)]
pub struct Tenants {
    places: BTreeMap<u64, Vec<Place>>,
    host_pns_inode: u64,
    /// Of namespaces that are no container's own: the container's namespace above them.
    above: HashMap<u64, Option<u64>>,
}

impl Tenants {
    /// Finds the containers' init processes among all (which are in the order of their pids). One that is not there,
    /// or is another process by now, has no place.
    pub fn new(
        tenants: Vec<Tenant>,
        processes: &[ProcessRow],
        host_pns_inode: u64,
        cgroup: &dyn Fn(u32) -> String,
    ) -> Self {
        let mut places: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for Tenant {
            container,
            pid,
            start_ticks,
        } in tenants
        {
            let found = processes.binary_search_by_key(&pid, |row| row.pid).ok();
            let Some(row) = found.and_then(|index| processes.get(index)) else {
                continue;
            };
            let Some(pns_inode) = row.pns_inode else {
                continue;
            };
            if start_ticks.is_some_and(|ticks| ticks != row.start_ticks) {
                continue;
            }
            let process = Process {
                pid,
                start_ticks: row.start_ticks,
                started_at_ms: row.started_at_ms,
                pns_inode,
                pns_id: None,
                mnt_ns: row.mnt_ns.unwrap_or(0),
                cgroup: cgroup(pid).into(),
                is_init: row.ns_pid == Some(1),
                fd: None,
            };
            let member = member_of(&container, &process);
            let place = Place { container, member };
            places.entry(pns_inode).or_default().push(place);
        }
        Self {
            places,
            host_pns_inode,
            above: HashMap::new(),
        }
    }

    /// Whose a process is; `None` where it is no container's.
    pub fn owner(&mut self, process: &ProcessRow, look: &Look<'_>) -> Option<Owner> {
        let pns_inode = process.pns_inode?;
        if pns_inode == self.host_pns_inode {
            return self.by_cgroup(process, look);
        }
        let (pns_inode, how) = if self.places.contains_key(&pns_inode) {
            (pns_inode, How::Namespace)
        } else {
            let (places, host) = (&self.places, self.host_pns_inode);
            let above = *self.above.entry(pns_inode).or_insert_with(|| {
                let ancestors = (look.ancestors)(process.pid);
                let is_place = |inode: &u64| *inode != host && places.contains_key(inode);
                ancestors.into_iter().find(is_place)
            });
            match above {
                Some(inode) => (inode, How::Nested),
                None => return self.by_cgroup(process, look),
            }
        };
        let places = self.places.get(&pns_inode)?;
        let cgroup = || (look.cgroup)(process.pid);
        let member = closest_member(members_of(places), process.mnt_ns, &cgroup)?;
        let place = place_of(places, member)?;
        Some(Owner {
            container: Arc::clone(&place.container),
            how,
            pns_inode,
        })
    }

    /// All containers of a PID namespace.
    pub fn members(&self, pns_inode: u64) -> impl Iterator<Item = &Member> {
        let places = self.places.get(&pns_inode);
        members_of(places.map_or(&[], Vec::as_slice))
    }

    /// Among the containers in the host's own PID namespace.
    fn by_cgroup(&self, process: &ProcessRow, look: &Look<'_>) -> Option<Owner> {
        let places = self.places.get(&self.host_pns_inode)?;
        let member = in_cgroup(members_of(places), &(look.cgroup)(process.pid))?;
        let place = place_of(places, member)?;
        Some(Owner {
            container: Arc::clone(&place.container),
            how: How::Cgroup,
            pns_inode: self.host_pns_inode,
        })
    }
}

/// The place of a member.
fn place_of<'a>(places: &'a [Place], member: &Member) -> Option<&'a Place> {
    let is_it = |place: &&Place| place.member.container_id == member.container_id;
    places.iter().find(is_it)
}

fn members_of(places: &[Place]) -> impl Iterator<Item = &Member> + Clone {
    places.iter().map(|place| &place.member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContainerId, ContainerKind, RuntimeType, State};

    const HOST: u64 = 4_026_531_836;

    fn tenant(name: &str, pid: u32) -> Tenant {
        let container = Container {
            name: name.to_owned(),
            runtime_name: "docker".into(),
            runtime_version: "1".into(),
            state: State::Running,
            pid: Some(pid),
            ..Container::bare(
                ContainerId::parse(name).expect("the test's id is one"),
                ContainerKind::Container,
                RuntimeType::Docker,
            )
        };
        Tenant {
            container: Arc::new(container),
            pid,
            start_ticks: Some(u64::from(pid)),
        }
    }

    fn process(pid: u32, pns_inode: u64, ns_pid: u32, mnt_ns: u64) -> ProcessRow {
        ProcessRow {
            pid,
            pns_inode: Some(pns_inode),
            ns_pid: Some(ns_pid),
            mnt_ns: Some(mnt_ns),
            start_ticks: u64::from(pid),
            ..ProcessRow::default()
        }
    }

    /// Namespace 30 lies below 20, 40 below 30, 50 below the host's. Cgroups are named after pids.
    fn look() -> Look<'static> {
        Look {
            ancestors: Box::new(|pid| match pid / 10 {
                3 => vec![20, HOST],
                4 => vec![30, 20, HOST],
                _ => vec![HOST],
            }),
            cgroup: Box::new(|pid| match pid {
                1 => "/".to_owned(),
                12 => "/agent/11/sub".to_owned(),
                13 => "/agent/110".to_owned(),
                23 => "/pod/22".to_owned(),
                51 => "/agent/11/deep/er".to_owned(),
                pid => format!("/{}/{pid}", if pid < 20 { "agent" } else { "pod" }),
            }),
        }
    }

    #[test]
    fn each_process_is_told_its_container() {
        let processes = [
            process(1, HOST, 1, 1),
            process(11, HOST, 11, 2),
            process(12, HOST, 12, 2),
            process(13, HOST, 13, 2),
            process(21, 20, 1, 3),
            process(22, 20, 7, 4),
            process(23, 20, 9, 9),
            process(24, 20, 10, 9),
            process(25, 20, 11, 4),
            process(31, 30, 1, 3),
            process(41, 40, 1, 8),
            process(51, 50, 1, 8),
            process(61, 60, 1, 8),
        ];
        let look = look();
        let all = vec![
            tenant("agent", 11),
            tenant("web", 21),
            tenant("debug", 22),
            // Its process is another one by now.
            Tenant {
                start_ticks: Some(1),
                ..tenant("old", 61)
            },
            tenant("gone", 999),
        ];
        let mut tenants = Tenants::new(all, &processes, HOST, &|pid| (look.cgroup)(pid));
        let expected = [
            (1, None),
            (11, Some(("agent", How::Cgroup))),
            (12, Some(("agent", How::Cgroup))),
            (13, None),
            (21, Some(("web", How::Namespace))),
            (22, Some(("debug", How::Namespace))),
            // Neither's mounts, but one's cgroup.
            (23, Some(("debug", How::Namespace))),
            // Nothing tells: whose mapping it is.
            (24, Some(("web", How::Namespace))),
            (25, Some(("debug", How::Namespace))),
            (31, Some(("web", How::Nested))),
            (41, Some(("web", How::Nested))),
            (51, Some(("agent", How::Cgroup))),
            (61, None),
        ];
        for (process, (pid, owner)) in processes.iter().zip(expected) {
            assert_eq!(process.pid, pid);
            let found = tenants.owner(process, &look);
            let found = found
                .as_ref()
                .map(|it| (it.container.name.as_str(), it.how));
            assert_eq!(found, owner, "pid {pid}");
        }
        assert_eq!(tenants.members(20).count(), 2);
        assert_eq!(tenants.members(30).count(), 0);
    }

    #[test]
    fn a_nested_namespace_whose_runtime_is_watched_is_its_own_containers() {
        let processes = [
            process(21, 20, 1, 3),
            process(31, 30, 1, 5),
            process(41, 40, 1, 5),
        ];
        let look = look();
        let all = vec![tenant("outer", 21), tenant("inner", 31)];
        let mut tenants = Tenants::new(all, &processes, HOST, &|pid| (look.cgroup)(pid));
        for (process, name) in processes.iter().zip(["outer", "inner", "inner"]) {
            let owner = tenants.owner(process, &look).expect("it is a container's");
            assert_eq!(owner.container.name, name);
        }
    }
}
