//! Where containerd has the folders of its tasks, which none of its own services says.
//!
//! With CRI it stands in the verbose `Status`: `config` has `stateDir`, a folder below containerd's state directory
//! (seen with 1.6.20 and 2.1.9). Else it is looked for beside the socket, where everybody has it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tonic::transport::Channel;

use crate::runtime::cri::proto::runtime_service_client::RuntimeServiceClient;
use crate::runtime::cri::proto::{Entry, StatusRequest};

/// The folder of the tasks in the state directory (containerd ≥ 1.4, the plugin's type and id).
const TASKS: &str = "io.containerd.runtime.v2.task";
/// Longest JSON that is looked at, in bytes; it has some 3 KiB.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// A folder of tasks that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Whose it is.
    pub(super) uid: u32,
}

/// The folder of the tasks of the containerd at a socket; `None` where there is none to be found.
pub(super) async fn tasks_folder(socket: &Path, channel: Channel) -> Option<Folder> {
    let told = told_by_cri(channel).await;
    told.into_iter()
        .chain(beside(socket))
        .map(|state| state.join(TASKS))
        .find_map(|path| {
            let metadata = std::fs::symlink_metadata(&path).ok()?;
            let uid = metadata.uid();
            metadata.is_dir().then_some(Folder { path, uid })
        })
}

async fn told_by_cri(channel: Channel) -> Option<PathBuf> {
    let request = StatusRequest { verbose: true };
    // Where CRI is not served, or not yet, the answer is an error.
    let answer = RuntimeServiceClient::new(channel).status(request).await;
    state_of(&answer.ok()?.into_inner().info)
}

#[derive(Deserialize)]
struct CriConfig {
    #[serde(rename = "stateDir")]
    state_dir: PathBuf,
}

/// containerd's state directory, of CRI's `info`.
pub(super) fn state_of(info: &[Entry]) -> Option<PathBuf> {
    let config = info
        .iter()
        .find(|entry| entry.key == b"config" && entry.value.len() <= CONFIG_BYTES_MAX)?;
    let config: CriConfig = serde_json::from_slice(&config.value).ok()?;
    let state = config.state_dir.parent()?;
    state.is_absolute().then(|| state.to_owned())
}

/// The state directories that a socket's place suggests, the likeliest first.
fn beside(socket: &Path) -> Vec<PathBuf> {
    let Some(folder) = socket.parent() else {
        return Vec::new();
    };
    vec![
        // containerd's default, and k3s: `/run/containerd/containerd.sock`.
        folder.to_owned(),
        // dockerd's own containerd: `/run/docker/containerd/daemon` (moby, `libcontainerd/supervisor`).
        folder.join("daemon"),
        // k0s and MicroK8s: `/run/k0s/containerd.sock` and `/run/k0s/containerd`.
        socket.with_extension(""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(key: &str, value: &str) -> Vec<Entry> {
        vec![Entry {
            key: key.into(),
            value: value.into(),
        }]
    }

    #[test]
    fn cri_tells_the_state_directory() {
        let config = r#"{"rootDir":"/r/io.containerd.grpc.v1.cri","stateDir":"/s/io.containerd.grpc.v1.cri"}"#;
        assert_eq!(state_of(&info("config", config)), Some("/s".into()));
        for (key, value) in [
            ("config", ""),
            ("config", "{}"),
            ("config", r#"{"stateDir":7}"#),
            ("config", r#"{"stateDir":""}"#),
            ("config", r#"{"stateDir":"a/b"}"#),
            ("config", r#"{"stateDir":"/"}"#),
            ("golang", config),
        ] {
            assert_eq!(state_of(&info(key, value)), None, "{key} {value}");
        }
    }

    #[test]
    fn the_places_that_everybody_uses_are_beside_the_socket() {
        for (socket, state) in [
            ("/run/containerd/containerd.sock", "/run/containerd"),
            (
                "/run/docker/containerd/containerd.sock",
                "/run/docker/containerd/daemon",
            ),
            ("/run/k3s/containerd/containerd.sock", "/run/k3s/containerd"),
            ("/run/k0s/containerd.sock", "/run/k0s/containerd"),
            (
                "/var/snap/microk8s/common/run/containerd.sock",
                "/var/snap/microk8s/common/run/containerd",
            ),
        ] {
            let places = beside(Path::new(socket));
            assert!(places.contains(&PathBuf::from(state)), "{places:?}");
        }
    }
}
