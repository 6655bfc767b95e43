//! Which runtimes answer, with which version, whether they tell their events, and whether pids are had early.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::Finding;
use crate::cli::{EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, chain};
use crate::config::Config;
use crate::runtime::containerd::{self, BundlesError};
use crate::runtime::discover::{Discovered, Host, denied_text, discover};
use crate::runtime::{Endpoint, RuntimeError, connect};

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let is_found = config.endpoints.is_empty();
    let discovered = if is_found {
        discover(&Host::here())
    } else {
        Discovered {
            endpoints: config.endpoints.clone(),
            denied: Vec::new(),
        }
    };
    let denied = discovered.denied.iter().map(|path| {
        let remedy = "run as a user that may enter its folder, such as root, if a runtime is there";
        Finding::limited("runtime", denied_text(path), remedy)
    });
    let denied: Vec<_> = denied.collect();
    let code = if denied.is_empty() {
        EXIT_UNAVAILABLE
    } else {
        EXIT_NO_PERMISSION
    };
    // The same socket may serve several endpoints, by several paths.
    let sockets: BTreeMap<_, _> = discovered
        .endpoints
        .iter()
        .flat_map(|endpoint| containerd::hint_sockets(endpoint, is_found))
        .map(|socket| {
            (
                socket.canonicalize().unwrap_or_else(|_| socket.clone()),
                socket,
            )
        })
        .collect();
    let looking: Vec<_> = discovered
        .endpoints
        .into_iter()
        .map(|endpoint| look_at(endpoint, is_found))
        .collect();
    let mut found: Vec<_> = join_all(looking).await.into_iter().flatten().collect();
    let is_none_there = found.is_empty();
    found.extend(denied);
    if is_none_there {
        let remedy = "start one, or name its socket with `--endpoint`";
        let none = "no container runtime is there";
        found.push(Finding::unwell("runtime", none, remedy).with_code(code));
    }
    let early = join_all(sockets.values().map(|socket| look_for_bundles(socket))).await;
    found
        .into_iter()
        .chain(early.into_iter().flatten())
        .collect()
}

/// Whether the bundles of the containerd at a socket can be read; nothing of a socket that is not its, or that does not answer.
async fn look_for_bundles(socket: &std::path::Path) -> Option<Finding> {
    let (error, remedy) = match containerd::bundles_folder(socket).await {
        Ok(folder) => {
            let found = format!("the bundles below `{}` can be read", folder.display());
            return Some(Finding::well("early pids", found));
        }
        Err(BundlesError::NotContainerd(_) | BundlesError::Ask { .. }) => return None,
        Err(error @ BundlesError::Watch { .. }) => (
            error,
            "run as root, or give CAP_DAC_READ_SEARCH; in a container, mount /run",
        ),
        Err(
            error @ (BundlesError::NotFound(_) | BundlesError::Foreign(_) | BundlesError::Gone(_)),
        ) => (
            error,
            "containerd's state directory belongs beside its socket",
        ),
    };
    let found = format!("by containerd's events alone: {}", chain(&error));
    Some(Finding::limited("early pids", found, remedy))
}

/// Looks at one; what was found by itself and is no runtime is no news.
async fn look_at(endpoint: Endpoint, is_found: bool) -> Option<Finding> {
    let client = match connect(&endpoint).await {
        Ok(client) => client,
        Err(RuntimeError::NotARuntime { .. }) if is_found => return None,
        Err(error) => {
            let remedy = match &error {
                RuntimeError::NoPermission { .. } => "run as root, or as a member of its group",
                RuntimeError::NotARuntime { .. } => {
                    "it may speak the other protocol: docker=… or cri=…"
                }
                RuntimeError::NotThere { .. }
                | RuntimeError::NotASocket { .. }
                | RuntimeError::Connect { .. }
                | RuntimeError::Timeout { .. }
                | RuntimeError::Request { .. }
                | RuntimeError::TooLong { .. }
                | RuntimeError::Malformed { .. }
                | RuntimeError::Unsupported { .. }
                | RuntimeError::NoSuchContainer { .. } => "see that the runtime runs and answers",
            };
            let code = match &error {
                RuntimeError::NoPermission { .. } => EXIT_NO_PERMISSION,
                RuntimeError::NotARuntime { .. }
                | RuntimeError::NotThere { .. }
                | RuntimeError::NotASocket { .. }
                | RuntimeError::Connect { .. }
                | RuntimeError::Timeout { .. }
                | RuntimeError::Request { .. }
                | RuntimeError::TooLong { .. }
                | RuntimeError::Malformed { .. }
                | RuntimeError::Unsupported { .. }
                | RuntimeError::NoSuchContainer { .. } => EXIT_UNAVAILABLE,
            };
            return Some(Finding::unwell("runtime", chain(&error), remedy).with_code(code));
        }
    };
    let info = client.info();
    let name = format!("{} {} at {}", info.name, info.version, endpoint.uri());
    let finding = match client.subscribe().await {
        Ok(_) => Finding::well("runtime", format!("{name}: tells its events")),
        Err(RuntimeError::Unsupported { .. }) => Finding::limited(
            "runtime",
            format!("{name}: has no events for us and is listed every second"),
            "what lives shorter may be missed; containerd 2 and CRI-O with pod events have them",
        ),
        Err(error) => Finding::unwell(
            "runtime",
            format!("{name}: {}", chain(&error)),
            "see the runtime's own log",
        ),
    };
    client.close().await;
    Some(finding)
}
