//! Finds the sockets of runtimes: the usual places, what kubelet is told, and `DOCKER_HOST`.
//!
//! Looks only at files, connects to nothing, keeps nothing: it is called again now and then, since an agent
//! often starts before the runtime does. Sockets of other users (rootless Docker and Podman) are not found
//! here; they are watched only when asked for by `--endpoint`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Endpoint;
use crate::model::RuntimeType;

/// Where Docker and root's Podman listen. The first of two paths to one socket is the one that is named.
const DOCKER_SOCKETS: &[&str] = &[
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/var/run/podman/podman.sock",
];

/// Where CRI servers listen: containerd, CRI-O, cri-dockerd, k3s and RKE2, k0s, MicroK8s.
const CRI_SOCKETS: &[&str] = &[
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

/// Where a containerd listens whose own API is asked for the namespaces that nobody else has: those of CRI, and
/// Docker's own.
const CONTAINERD_SOCKETS: &[&str] = &[
    "/run/containerd/containerd.sock",
    "/run/docker/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

/// Where kubelet's configuration stands (kubeadm, EKS, k0s), as YAML or JSON.
const KUBELET_CONFIGS: &[&str] = &[
    "/var/lib/kubelet/config.yaml",
    "/etc/kubernetes/kubelet/config.json",
    "/etc/kubernetes/kubelet/kubelet-config.json",
    "/etc/kubernetes/kubelet-config.yaml",
    "/var/lib/k0s/kubelet-config.yaml",
];

/// Where flags of kubelet stand.
const KUBELET_FLAGS: &[&str] = &[
    "/var/lib/kubelet/kubeadm-flags.env",
    "/etc/default/kubelet",
    "/etc/sysconfig/kubelet",
];

/// Its key in the configuration, and its flag.
const KUBELET_KEY: &str = "containerRuntimeEndpoint";
const KUBELET_FLAG: &str = "--container-runtime-endpoint";

/// Longest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// What discovery looks at.
#[derive(Clone, Debug)]
pub struct Host {
    /// The root of the file system: `/`, or where the host's is mounted. Symbolic links that lead out of it are
    /// not followed.
    pub root: PathBuf,
    /// The value of `DOCKER_HOST`; all but `unix://…` is left alone.
    pub docker_host: Option<String>,
    /// Our user: sockets of root and of this user are found.
    pub uid: u32,
}

impl Host {
    /// This machine, as this process sees it.
    pub fn here() -> Self {
        Self {
            root: PathBuf::from("/"),
            docker_host: std::env::var("DOCKER_HOST").ok(),
            uid: rustix::process::geteuid().as_raw(),
        }
    }
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// The endpoints whose sockets are there, Docker's first, each socket once.
    pub endpoints: Vec<Endpoint>,
    /// Places that this user may not look at, such as root's Podman, whose folder only root enters.
    pub denied: Vec<PathBuf>,
}

/// Looks at every usual place.
pub fn discover(host: &Host) -> Discovered {
    let usual = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mut docker = usual(DOCKER_SOCKETS);
    docker.extend(host.docker_host.as_deref().and_then(socket_path));
    let mut cri = usual(CRI_SOCKETS);
    cri.extend(kubelet_sockets(&host.root));

    let mut seen = BTreeSet::new();
    let mut denied = BTreeSet::new();
    let mut found = Discovered::default();
    for (runtime, paths) in [
        (RuntimeType::Docker, docker),
        (RuntimeType::Cri, cri),
        (RuntimeType::Containerd, usual(CONTAINERD_SOCKETS)),
    ] {
        for path in paths {
            let path = below(&host.root, &path);
            match socket_inode(host, &path) {
                Ok(Some(inode)) if seen.insert((runtime, inode)) => {
                    found.endpoints.push(Endpoint { runtime, path });
                }
                // `/var/run` is `/run`: the first of two paths is the one that is told.
                Err(error)
                    if error.kind() == ErrorKind::PermissionDenied
                        && denied.insert(folder_of(&path)) =>
                {
                    found.denied.push(path);
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path.parent()?).ok()
}

/// The line about a place that may not be looked at.
pub(crate) fn denied_text(path: &Path) -> String {
    format!(
        "no permission to look for a runtime at `{}`",
        path.display()
    )
}

/// Device and inode of a socket that is below the root, and root's or ours.
fn socket_inode(host: &Host, path: &Path) -> io::Result<Option<(u64, u64)>> {
    let metadata = fs::metadata(path)?;
    let is_ours = metadata.uid() == 0 || metadata.uid() == host.uid;
    let is_inside = fs::canonicalize(path)?.starts_with(fs::canonicalize(&host.root)?);
    let fits = metadata.file_type().is_socket() && is_ours && is_inside;
    Ok(fits.then(|| (metadata.dev(), metadata.ino())))
}

/// What kubelet is told, in every place where it may be told.
fn kubelet_sockets(root: &Path) -> Vec<PathBuf> {
    let configs = KUBELET_CONFIGS
        .iter()
        .filter_map(|path| read(root, path))
        .filter_map(|text| socket_of_config(&text));
    let flags = KUBELET_FLAGS
        .iter()
        .filter_map(|path| read(root, path))
        .filter_map(|text| socket_of_flags(&text));
    configs.chain(flags).collect()
}

fn read(root: &Path, path: &str) -> Option<String> {
    let file = fs::File::open(below(root, Path::new(path))).ok()?;
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The top-level key of a KubeletConfiguration, in YAML or in JSON with one key a line: it is a plain scalar, for
/// which no parser of YAML is needed.
fn socket_of_config(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        if key.trim().trim_matches('"') != KUBELET_KEY {
            return None;
        }
        let value = value.trim().trim_end_matches(',');
        let value = value.split(" #").next().unwrap_or(value).trim();
        socket_path(value.trim_matches(['"', '\'']))
    })
}

/// `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///… …"`
fn socket_of_flags(text: &str) -> Option<PathBuf> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .find_map(|line| {
            let (_, rest) = line.split_once(KUBELET_FLAG)?;
            let value = rest.strip_prefix(['=', ' '])?.trim_start();
            let end = value.find(|c: char| c.is_whitespace() || c == '"' || c == '\'');
            socket_path(end.map_or(value, |end| value.get(..end).unwrap_or(value)))
        })
}

/// The path in `unix:///path`, `unix:/path` or, as kubelet takes it too, `/path`.
fn socket_path(text: &str) -> Option<PathBuf> {
    let path = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"))
        .unwrap_or(text);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_s_endpoint_is_read_of_yaml_json_and_flags() {
        let expected = Some(PathBuf::from("/run/x/y.sock"));
        for text in [
            "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/x/y.sock\nb: c\n",
            "containerRuntimeEndpoint: \"unix:///run/x/y.sock\" # ours\n",
            "containerRuntimeEndpoint: 'unix:/run/x/y.sock'\n",
            "{\n  \"containerRuntimeEndpoint\": \"unix:///run/x/y.sock\",\n  \"a\": 1\n}\n",
            "containerRuntimeEndpoint: /run/x/y.sock",
        ] {
            assert_eq!(socket_of_config(text), expected, "{text}");
        }
        for text in [
            "containerRuntimeEndpoint: \"\"\n",
            "containerRuntimeEndpoint: tcp://127.0.0.1:1\n",
            "# containerRuntimeEndpoint: unix:///run/x/y.sock\n",
            "imageServiceEndpoint: unix:///run/x/y.sock\n",
        ] {
            assert_eq!(socket_of_config(text), None, "{text}");
        }
        for text in [
            "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/x/y.sock --pod-infra-container-image=p\"",
            "A=1\nKUBELET_EXTRA_ARGS='--v=2 --container-runtime-endpoint unix:///run/x/y.sock'",
        ] {
            assert_eq!(socket_of_flags(text), expected, "{text}");
        }
        for text in [
            "#--container-runtime-endpoint=unix:///run/x/y.sock",
            "A=--container-runtime-endpoint-x=unix:///run/x/y.sock",
            "",
        ] {
            assert_eq!(socket_of_flags(text), None, "{text}");
        }
    }
}
