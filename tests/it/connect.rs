//! What stands at the path of an endpoint, and who answers there.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use quaymaster::model::RuntimeType;
use quaymaster::runtime::{Endpoint, Options, RuntimeError, connect, connect_with};
use rustix::process::geteuid;
use tempfile::tempdir;

use crate::fake_cri::{FakeCri, version};
use crate::fake_docker::{FakeDocker, Reply, docker_version, podman_version};
use crate::{as_nobody, error_of, hasty};

fn endpoint(runtime: RuntimeType, path: &Path) -> Endpoint {
    Endpoint {
        runtime,
        path: path.to_owned(),
    }
}

#[tokio::test]
async fn a_path_that_is_no_socket_is_named_for_what_it_is() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "")?;
    let dead = folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead)?);

    for runtime in [RuntimeType::Docker, RuntimeType::Cri] {
        for path in [folder.path(), &file] {
            let error = error_of(connect(&endpoint(runtime, path)).await);
            assert!(matches!(error, RuntimeError::NotASocket { .. }), "{error}");
        }
        for path in [folder.path().join("none"), file.join("below")] {
            let error = error_of(connect(&endpoint(runtime, &path)).await);
            assert!(matches!(error, RuntimeError::NotThere { .. }), "{error}");
        }
        let error = error_of(connect(&endpoint(runtime, &dead)).await);
        assert!(matches!(error, RuntimeError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("dead.sock"));
    }
    Ok(())
}

#[test]
fn a_socket_without_permission_says_what_to_do() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let path = folder.path().join("docker.sock");
    let _listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000))?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;

    let error = as_nobody(move |runtime| {
        let endpoint = endpoint(RuntimeType::Docker, &path);
        error_of(runtime.block_on(connect(&endpoint)))
    })?;
    assert!(
        matches!(error, RuntimeError::NoPermission { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("run as root"));
    Ok(())
}

#[tokio::test]
async fn each_runtime_is_known_by_its_version() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    let metadata = std::fs::metadata(&docker.endpoint().path)?;
    for (reply, name, text) in [
        (
            docker_version("20.10.24", "1.41", "1.12"),
            "docker",
            "20.10.24",
        ),
        (docker_version("29.0.0", "1.52", "1.44"), "docker", "29.0.0"),
        (podman_version(), "podman", "4.3.1"),
    ] {
        docker.reply("/version", Reply::ok(&reply));
        let client = connect(&docker.endpoint()).await?;
        let info = client.info();
        assert_eq!((&*info.name, &*info.version), (name, text));
        assert_eq!(info.endpoint, docker.endpoint());
        assert_eq!(info.peer_uid, geteuid().as_raw());
        assert_eq!(info.socket, (metadata.dev(), metadata.ino()));
    }

    let cri = FakeCri::start(folder.path())?;
    for (name, text) in [
        ("containerd", "v2.1.9"),
        ("cri-o", "1.31.0"),
        ("docker", "28.5.2"),
    ] {
        cri.state().version = version(name, text);
        let client = connect(&cri.endpoint()).await?;
        assert_eq!(
            (&*client.info().name, &*client.info().version),
            (name, text)
        );
        client.ping().await?;
        client.close().await;
    }
    Ok(())
}

/// A ping answers as the engines of the lab do; anything less is asked for the version.
#[tokio::test]
async fn an_engine_that_a_ping_tells_of_is_not_asked_for_its_version() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    for (server, api, name, version, is_asked) in [
        (
            "Docker/28.5.2+dfsg4 (linux)",
            "1.51",
            "docker",
            "28.5.2+dfsg4",
            false,
        ),
        ("Libpod/4.3.1 (linux)", "1.41", "podman", "4.3.1", false),
        ("Docker/99.0 (linux)", "1.99", "docker", "28.5.2", true),
        ("Docker/28.5.2 (linux)", "new", "docker", "28.5.2", true),
        ("Docker/", "1.51", "docker", "28.5.2", true),
        ("nginx/1.21", "1.51", "docker", "28.5.2", true),
        ("", "", "docker", "28.5.2", true),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nServer: {server}\r\nApi-Version: {api}\r\nContent-Length: 2\r\n\r\nOK"
        );
        docker.reply("/_ping", Reply::Raw(answer.into_bytes()));
        let asked = docker.requests().len();
        let client = connect(&docker.endpoint()).await?;
        let info = client.info();
        assert_eq!((&*info.name, &*info.version), (name, version), "{server}");
        let requests = docker.requests().split_off(asked);
        assert_eq!(requests.contains(&"GET /version".to_owned()), is_asked);
        client.list().await?;
        let spoken = if is_asked { "1.51" } else { api };
        let list = format!("GET /v{spoken}/containers/json?all=true");
        assert_eq!(docker.requests().pop(), Some(list));
    }
    Ok(())
}

#[tokio::test]
async fn requests_carry_the_version_that_both_sides_know() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    for (newest, oldest, expected) in [
        ("1.41", "1.12", "GET /v1.41/containers/json?all=true"),
        ("1.99", "1.70", "GET /v1.70/containers/json?all=true"),
    ] {
        let version = docker_version("x", newest, oldest);
        docker.reply("/version", Reply::ok(&version));
        connect(&docker.endpoint()).await?.list().await?;
        assert_eq!(docker.requests().pop().as_deref(), Some(expected));
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_of_the_other_protocol_is_no_runtime() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    // As dockerd answers to HTTP/2.
    docker.reply(
        "*",
        Reply::Raw(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n".to_vec()),
    );
    let error = error_of(connect(&endpoint(RuntimeType::Cri, &docker.endpoint().path)).await);
    assert!(matches!(error, RuntimeError::NotARuntime { .. }), "{error}");

    let cri = FakeCri::start(folder.path())?;
    let error = error_of(connect(&endpoint(RuntimeType::Docker, &cri.endpoint().path)).await);
    assert!(matches!(error, RuntimeError::NotARuntime { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_no_docker_is_no_runtime() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    for reply in [
        Reply::Json(404, "not here".to_owned()),
        Reply::Json(200, "<html>".to_owned()),
        Reply::Json(200, "{}".to_owned()),
        Reply::Json(200, r#"{"ApiVersion":7}"#.to_owned()),
        Reply::Raw(b"SSH-2.0-x\r\n".to_vec()),
        Reply::Raw(Vec::new()),
    ] {
        docker.reply("/version", reply.clone());
        let error = error_of(connect(&docker.endpoint()).await);
        assert!(
            matches!(error, RuntimeError::NotARuntime { .. }),
            "{reply:?} {error}"
        );
    }
    docker.reply(
        "/version",
        Reply::Json(500, r#"{"message":"starting"}"#.to_owned()),
    );
    let error = error_of(connect(&docker.endpoint()).await);
    assert!(matches!(error, RuntimeError::Connect { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.reply("/version", Reply::Silence);
    let cri = FakeCri::start(folder.path())?;
    cri.state().delay = crate::PATIENCE;
    for endpoint in [docker.endpoint(), cri.endpoint()] {
        let error = error_of(connect_with(&endpoint, &hasty()).await);
        assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    }

    // One that accepts and says nothing at all.
    let path = folder.path().join("mute.sock");
    let _listener = UnixListener::bind(&path)?;
    for runtime in [RuntimeType::Docker, RuntimeType::Cri] {
        let error = error_of(connect_with(&endpoint(runtime, &path), &hasty()).await);
        assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn the_name_of_a_runtime_is_bounded() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    cri.state().version = version(&"x".repeat(1 << 20), "\u{1b}[2J");
    let client = connect_with(&cri.endpoint(), &Options::default()).await?;
    assert!(client.info().name.len() <= quaymaster::runtime::text::TEXT_BYTES_MAX);
    cri.state().version = version("", "");
    let error = error_of(connect(&cri.endpoint()).await);
    assert!(matches!(error, RuntimeError::NotARuntime { .. }), "{error}");
    Ok(())
}
