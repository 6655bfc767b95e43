//! Discovery over a root of our own.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use quaymaster::runtime::Endpoint;
use quaymaster::runtime::discover::{Host, discover};
use tempfile::{TempDir, tempdir};

/// A root with `/var/run -> ../run`, and sockets in it that stay when their listeners are gone.
fn root(sockets: &[&str]) -> anyhow::Result<TempDir> {
    let root = tempdir()?;
    std::fs::create_dir_all(root.path().join("run"))?;
    std::fs::create_dir_all(root.path().join("var"))?;
    symlink("../run", root.path().join("var/run"))?;
    for path in sockets {
        bind(root.path(), path)?;
    }
    Ok(root)
}

fn bind(root: &Path, path: &str) -> anyhow::Result<()> {
    let path = root.join(path.trim_start_matches('/'));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    UnixListener::bind(path)?;
    Ok(())
}

fn write(root: &Path, path: &str, text: &str) -> anyhow::Result<()> {
    let path = root.join(path.trim_start_matches('/'));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)?;
    Ok(())
}

fn found(root: &Path, docker_host: Option<&str>) -> Vec<String> {
    let host = Host {
        root: root.to_owned(),
        docker_host: docker_host.map(str::to_owned),
        uid: rustix::process::geteuid().as_raw(),
    };
    let prefix = root.display().to_string();
    let text = |endpoint: &Endpoint| endpoint.to_string().replacen(&prefix, "", 1);
    discover(&host).endpoints.iter().map(text).collect()
}

#[test]
fn every_usual_socket_is_found_once() -> anyhow::Result<()> {
    let root = root(&[
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
        "/run/cri-dockerd.sock",
        "/run/k3s/containerd/containerd.sock",
        "/run/k0s/containerd.sock",
        "/var/snap/microk8s/common/run/containerd.sock",
    ])?;
    assert_eq!(
        found(root.path(), None),
        [
            "docker=unix:///run/docker.sock",
            "docker=unix:///run/podman/podman.sock",
            "cri=unix:///run/containerd/containerd.sock",
            "cri=unix:///run/crio/crio.sock",
            "cri=unix:///run/cri-dockerd.sock",
            "cri=unix:///run/k3s/containerd/containerd.sock",
            "cri=unix:///run/k0s/containerd.sock",
            "cri=unix:///var/snap/microk8s/common/run/containerd.sock",
            "containerd=unix:///run/containerd/containerd.sock",
            "containerd=unix:///run/k3s/containerd/containerd.sock",
            "containerd=unix:///run/k0s/containerd.sock",
            "containerd=unix:///var/snap/microk8s/common/run/containerd.sock",
        ]
    );
    Ok(())
}

#[test]
fn nothing_is_found_where_nothing_is() -> anyhow::Result<()> {
    let root = root(&[])?;
    assert!(found(root.path(), None).is_empty());
    std::fs::create_dir(root.path().join("run/docker.sock"))?;
    write(root.path(), "/run/containerd/containerd.sock", "")?;
    symlink("nowhere", root.path().join("run/cri-dockerd.sock"))?;
    assert!(found(root.path(), Some("unix:///run/none.sock")).is_empty());
    Ok(())
}

#[test]
fn kubelet_s_own_endpoint_is_found() -> anyhow::Result<()> {
    let root = root(&[
        "/run/a.sock",
        "/run/b.sock",
        "/run/containerd/containerd.sock",
    ])?;
    write(
        root.path(),
        "/var/lib/kubelet/config.yaml",
        "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix:///var/run/a.sock\"\n",
    )?;
    write(
        root.path(),
        "/var/lib/kubelet/kubeadm-flags.env",
        "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/b.sock --v=2\"\n",
    )?;
    write(
        root.path(),
        "/etc/default/kubelet",
        "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock\n",
    )?;
    assert_eq!(
        found(root.path(), None),
        [
            "cri=unix:///run/containerd/containerd.sock",
            "cri=unix:///var/run/a.sock",
            "cri=unix:///run/b.sock",
            "containerd=unix:///run/containerd/containerd.sock",
        ]
    );
    Ok(())
}

#[test]
fn docker_host_counts_only_as_a_unix_socket_and_once() -> anyhow::Result<()> {
    let root = root(&["/run/docker.sock", "/run/other.sock"])?;
    let usual = ["docker=unix:///run/docker.sock"];
    for host in [
        "tcp://127.0.0.1:2375",
        "ssh://me@host",
        "unix:///var/run/docker.sock",
        "",
        "x",
    ] {
        assert_eq!(found(root.path(), Some(host)), usual, "{host}");
    }
    assert_eq!(
        found(root.path(), Some("unix:///run/other.sock")),
        [
            "docker=unix:///run/docker.sock",
            "docker=unix:///run/other.sock"
        ]
    );
    Ok(())
}

#[test]
fn sockets_of_other_users_and_outside_of_the_root_are_left_alone() -> anyhow::Result<()> {
    let outside = tempdir()?;
    bind(outside.path(), "/docker.sock")?;
    let inside = root(&["/run/podman/podman.sock"])?;
    symlink(
        outside.path().join("docker.sock"),
        inside.path().join("run/docker.sock"),
    )?;
    assert_eq!(
        found(inside.path(), None),
        ["docker=unix:///run/podman/podman.sock"]
    );

    if rustix::process::geteuid().is_root() {
        let socket = inside.path().join("run/podman/podman.sock");
        std::os::unix::fs::chown(socket, Some(1_000), None)?;
        assert!(found(inside.path(), None).is_empty());
    }
    Ok(())
}
