//! Asks every runtime for every container, once: for `list` and `exec`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt as _};

use super::{EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, chain};
use crate::model::{Container, ContainerId, ListRow, RuntimeType};
use crate::runtime::discover::{Host, denied_text, discover};
use crate::runtime::{Endpoint, Inspection, Options, RuntimeClient, RuntimeError, connect_with};

/// Inspects of one runtime at once.
const INSPECTS_AT_ONCE: usize = 8;

/// The name that cri-dockerd gives itself.
const CRI_DOCKERD: &str = "docker";

/// A container and the runtime that can be asked about it.
pub(super) struct Found {
    pub(super) client: Arc<dyn RuntimeClient>,
    pub(super) container: Container,
}

/// What could be had, and what went wrong.
#[derive(Default)]
pub(super) struct Gathered {
    /// By runtime type and id, each container once.
    pub(super) found: Vec<Found>,
    /// One line for each thing that failed.
    pub(super) problems: Vec<String>,
    /// Endpoints that were listed.
    pub(super) answered: usize,
    no_permission: usize,
}

impl Gathered {
    /// The exit code where no runtime could be listed; `None` where one was.
    pub(super) fn exit_code_if_unanswered(&self) -> Option<u8> {
        match (self.answered, self.no_permission) {
            (0, 0) => Some(EXIT_UNAVAILABLE),
            (0, _) => Some(EXIT_NO_PERMISSION),
            _ => None,
        }
    }

    fn failed(&mut self, error: &RuntimeError) {
        if matches!(error, RuntimeError::NoPermission { .. }) {
            self.no_permission += 1;
        }
        self.problems.push(chain(error));
    }
}

/// Asks the endpoints, or those that are found where none is given.
pub(super) async fn gather(endpoints: &[Endpoint], options: &Options) -> Gathered {
    let mut gathered = Gathered::default();
    let endpoints = if endpoints.is_empty() {
        let discovered = discover(&Host::here());
        if discovered.endpoints.is_empty() {
            gathered.no_permission += discovered.denied.len();
            let denied = discovered.denied.iter().map(|path| denied_text(path));
            gathered.problems.extend(denied);
        }
        discovered.endpoints
    } else {
        endpoints.to_vec()
    };
    if endpoints.is_empty() {
        gathered.problems.push(
            "no container runtime was found: name its socket with `--endpoint`, as in \
             `--endpoint docker=unix:///run/docker.sock`"
                .to_owned(),
        );
    }

    let connecting = endpoints
        .iter()
        .map(|endpoint| connect_with(endpoint, options));
    let mut sockets = BTreeSet::new();
    let mut clients = Vec::new();
    for result in futures::future::join_all(connecting).await {
        match result {
            Ok(client) => {
                let info = client.info();
                if sockets.insert((info.endpoint.runtime, info.socket)) {
                    options.claims.add(info.endpoint.runtime);
                    clients.push(client);
                }
            }
            Err(error) => gathered.failed(&error),
        }
    }
    for asked in futures::future::join_all(clients.into_iter().map(ask)).await {
        match asked {
            Ok((found, problems)) => {
                gathered.answered += 1;
                gathered.found.extend(found);
                gathered.problems.extend(problems);
            }
            Err(error) => gathered.failed(&error),
        }
    }
    gathered.found = merge(std::mem::take(&mut gathered.found));
    gathered
}

type Asked = Result<(Vec<Found>, Vec<String>), RuntimeError>;

async fn ask(client: Arc<dyn RuntimeClient>) -> Asked {
    let listing = client.list().await?;
    let mut problems = Vec::new();
    if listing.skipped > 0 {
        problems.push(format!(
            "`{}` listed {} containers that could not be understood",
            client.info().endpoint.uri(),
            listing.skipped
        ));
    }
    // One future a row, named here: closures over references confuse the compiler about lifetimes.
    let inspects: Vec<_> = listing
        .rows
        .into_iter()
        .map(|row| inspect(Arc::clone(&client), row))
        .collect();
    let answers: Vec<_> = stream::iter(inspects)
        .buffer_unordered(INSPECTS_AT_ONCE)
        .collect()
        .await;
    let mut found = Vec::new();
    for answer in answers {
        match answer {
            Ok(Inspection::Found(container)) => found.push(Found {
                client: Arc::clone(&client),
                container: *container,
            }),
            Ok(Inspection::Gone) => {}
            Err(error) => problems.push(chain(&error)),
        }
    }
    Ok((found, problems))
}

async fn inspect(client: Arc<dyn RuntimeClient>, row: ListRow) -> Result<Inspection, RuntimeError> {
    client.inspect(&row.id, row.kind).await
}

/// One container, one row. cri-dockerd's containers are also Docker's: state, process and times are Docker's to
/// tell, name, pod, kind and restarts cri-dockerd's; what Docker does not know is gone. Docker's client is kept.
fn merge(found: Vec<Found>) -> Vec<Found> {
    let mut rows: BTreeMap<(u32, ContainerId), Found> = BTreeMap::new();
    let mut by_cri_dockerd = Vec::new();
    let docker_users: BTreeSet<u32> = found
        .iter()
        .filter(|row| row.container.runtime == RuntimeType::Docker)
        .map(|row| row.client.info().peer_uid)
        .collect();
    for row in found {
        let uid = row.client.info().peer_uid;
        let is_twin = row.container.runtime == RuntimeType::Cri
            && &*row.container.runtime_name == CRI_DOCKERD
            && docker_users.contains(&uid);
        if is_twin {
            by_cri_dockerd.push((uid, row));
        } else {
            rows.insert((uid, row.container.id.clone()), row);
        }
    }
    for (uid, twin) in by_cri_dockerd {
        if let Some(row) = rows.get_mut(&(uid, twin.container.id.clone())) {
            let merged = &mut row.container;
            merged.runtime = RuntimeType::Cri;
            merged.name = twin.container.name;
            merged.kind = twin.container.kind;
            merged.pod = twin.container.pod.or_else(|| merged.pod.take());
            merged.restart_count = twin.container.restart_count;
        }
    }
    let mut found: Vec<Found> = rows.into_values().collect();
    found.sort_by(|a, b| {
        let key = |row: &Found| (row.container.runtime, row.container.id.clone());
        key(a).cmp(&key(b))
    });
    found
}
