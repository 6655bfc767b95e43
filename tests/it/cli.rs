//! `quaymaster list` and `quaymaster exec`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clap::Parser as _;
use quaymaster::cli::{exec, list};
use quaymaster::runtime::Endpoint;
use quaymaster::runtime::cri::proto::{ContainerState, ExecSyncResponse};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::fake_cri::{FakeCri, running, version};
use crate::fake_docker::{FakeContainer, FakeDocker, Reply};
use crate::{ID, ID_B, SANDBOX_ID, as_nobody};

#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(list::ListArgs),
    Exec(exec::ExecArgs),
}

struct Ran {
    code: u8,
    out: String,
    err: String,
}

async fn run(endpoints: &[Endpoint], arguments: &[&str]) -> anyhow::Result<Ran> {
    let (first, rest) = arguments.split_first().unwrap_or((&"", &[]));
    let mut line = vec!["quaymaster".to_owned(), (*first).to_owned()];
    for endpoint in endpoints {
        line.push(format!("--endpoint={endpoint}"));
    }
    line.extend(rest.iter().map(|word| (*word).to_owned()));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let pns_of = |pid: u32| Some(format!("pid:[{}]", 4_026_530_000_u32 + pid));
    let code = match Cli::try_parse_from(line)?.command {
        Command::List(args) => list::run(&args, &pns_of, &mut out, &mut err).await,
        Command::Exec(args) => exec::run(&args, &mut out, &mut err).await,
    };
    Ok(Ran {
        code,
        out: String::from_utf8(out)?,
        err: String::from_utf8(err)?,
    })
}

fn at(path: &Path) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::parse(&format!(
        "docker=unix://{}",
        path.display()
    ))?)
}

#[tokio::test]
async fn all_containers_of_all_runtimes_are_listed() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 7));
    let cri = FakeCri::start(folder.path())?;
    cri.put_sandbox(SANDBOX_ID, "db-0", "shop", 8);
    cri.put_container(running(ID_B, "db"), SANDBOX_ID, 9);
    let endpoints = [docker.endpoint(), cri.endpoint()];

    let table = run(&endpoints, &["list"]).await?;
    assert_eq!((table.code, table.err.as_str()), (0, ""));
    let lines: Vec<&str> = table.out.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("CONTAINER ID"));
    assert!(
        lines[1].contains("web") && lines[1].contains("pid:[4026530007]"),
        "{}",
        lines[1]
    );
    assert!(
        lines[3].contains("shop/db-0") && lines[3].contains("containerd"),
        "{}",
        lines[3]
    );

    let json = run(&endpoints, &["list", "--format", "json"]).await?;
    let rows: Vec<Value> = serde_json::from_str(&json.out)?;
    assert_eq!(rows.len(), 3);
    assert!(
        rows.iter()
            .flat_map(|row| row.as_object())
            .flat_map(|row| row.values())
            .all(Value::is_string)
    );
    let web = &rows[0];
    for (key, expected) in [
        ("id", ID),
        ("name", "web"),
        ("state", "running"),
        ("pid", "7"),
        ("pns", "pid:[4026530007]"),
        ("pns_inode", "4026530007"),
        ("runtime", "docker"),
        ("create_time", "1704067200"),
        ("started_at_ms", "1704067201000"),
        ("exit_code", ""),
        ("labels", "{}"),
    ] {
        assert_eq!(web[key], expected, "{key}");
    }
    assert_eq!(rows[2]["pod_name"], "db-0");
    Ok(())
}

#[tokio::test]
async fn what_cri_dockerd_and_docker_both_know_is_one_row() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "k8s_web_web-0", 7).exited(3));
    let cri = FakeCri::start(folder.path())?;
    cri.state().version = version("docker", "28.5.2");
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 8);
    cri.put_container(running(ID, "web"), SANDBOX_ID, 9);

    let json = run(
        &[docker.endpoint(), cri.endpoint()],
        &["list", "--format=json"],
    )
    .await?;
    let rows: Vec<Value> = serde_json::from_str(&json.out)?;
    assert_eq!(rows.len(), 1, "what only cri-dockerd knows does not exist");
    for (key, expected) in [
        ("runtime", "cri"),
        ("runtime_name", "docker"),
        ("name", "web"),
        ("pod_name", "web-0"),
        ("state", "exited"),
        ("pid", ""),
        ("exit_code", "3"),
    ] {
        assert_eq!(rows[0][key], expected, "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn one_runtime_that_fails_hides_no_other() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 7));
    let nowhere = at(&folder.path().join("none.sock"))?;

    let both = run(&[docker.endpoint(), nowhere.clone()], &["list"]).await?;
    assert_eq!(both.code, 0);
    assert!(both.out.contains("web"));
    assert!(both.err.contains("no socket at"), "{}", both.err);

    let none = run(&[nowhere], &["list"]).await?;
    assert_eq!((none.code, none.out.as_str()), (69, ""));
    Ok(())
}

#[test]
fn a_runtime_that_may_not_be_asked_has_an_exit_code_of_its_own() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let path = folder.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000))?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let endpoints = [at(&path)?];
    for arguments in [&["list"][..], &["exec", "web", "--", "true"]] {
        let endpoints = endpoints.clone();
        let ran = as_nobody(move |runtime| runtime.block_on(run(&endpoints, arguments)))??;
        assert_eq!((ran.code, ran.out.as_str()), (77, ""));
        assert!(ran.err.contains("no permission"), "{}", ran.err);
    }
    Ok(())
}

#[tokio::test]
async fn hostile_text_does_not_reach_the_terminal() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(
        ID,
        "\u{1b}]0;pwned\u{7}\u{202e}\nfake row",
        7,
    ));
    docker.put(&FakeContainer::running(ID_B, &"long".repeat(1_000), 7));
    let table = run(&[docker.endpoint()], &["list"]).await?;
    assert_eq!(table.out.lines().count(), 3);
    assert!(table.out.chars().all(|c| c == '\n' || !c.is_control()));
    assert!(!table.out.contains('\u{202e}'));
    assert!(table.out.lines().all(|line| line.chars().count() < 400));
    Ok(())
}

/// Lets every command in every container of the fake print `ran` and end with `code`.
fn script_exec(docker: &FakeDocker, id: &str, code: i64) {
    let created = Reply::Json(201, json!({"Id": format!("e{id}")}).to_string());
    docker.reply(&format!("/containers/{id}/exec"), created);
    let frames = b"\x01\0\0\0\0\0\0\x03ran\x02\0\0\0\0\0\0\x04oops".to_vec();
    docker.reply(&format!("/exec/e{id}/start"), Reply::Upgrade(frames));
    let ended = json!({"Running": false, "ExitCode": code});
    docker.reply(&format!("/exec/e{id}/json"), Reply::ok(&ended));
}

#[tokio::test]
async fn a_command_runs_where_the_id_its_beginning_or_the_name_says() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 7));
    docker.put(&FakeContainer::running(ID_B, "a4", 8));
    script_exec(&docker, ID, 5);
    script_exec(&docker, ID_B, 6);
    for (wanted, code) in [
        (ID, 5),
        ("a4bd", 5),
        ("web", 5),
        (ID_B, 6),
        ("b", 6),
        ("a4", 6),
    ] {
        let ran = run(&[docker.endpoint()], &["exec", wanted, "--", "ls", "-l"]).await?;
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (code, "ran", "oops"),
            "{wanted}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_means_several_containers_is_told_with_all_of_them() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    let other_sandbox = "6".repeat(64);
    cri.put_sandbox(SANDBOX_ID, "web-0", "shop", 8);
    cri.put_sandbox(&other_sandbox, "web-1", "shop", 9);
    cri.put_container(running(ID, "web"), SANDBOX_ID, 10);
    cri.put_container(running(ID_B, "web"), &other_sandbox, 11);
    cri.state().exec = Some(ExecSyncResponse::default());

    let ran = run(&[cri.endpoint()], &["exec", "web", "--", "true"]).await?;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("may mean any of these") && ran.err.contains(ID) && ran.err.contains(ID_B)
    );
    assert!(ran.err.contains("shop/web-1/web"), "{}", ran.err);
    for wanted in ["web-1/web", "shop/web-1/web"] {
        assert_eq!(
            run(&[cri.endpoint()], &["exec", wanted, "--", "true"])
                .await?
                .code,
            0
        );
    }

    // An earlier attempt that has ended is not meant.
    let mut ended = running(ID, "web");
    ended.state = ContainerState::ContainerExited.into();
    cri.put_container(ended, SANDBOX_ID, 0);
    assert_eq!(
        run(&[cri.endpoint()], &["exec", "web", "--", "true"])
            .await?
            .code,
        0
    );
    // Nor is a sandbox.
    let ran = run(&[cri.endpoint()], &["exec", "web-0", "--", "true"]).await?;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("no container has the id or name `web-0`"),
        "{}",
        ran.err
    );
    Ok(())
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_given_up_with_a_word() -> anyhow::Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 7));
    docker.reply(&format!("/containers/{ID}/exec"), Reply::Silence);
    let ran = run(
        &[docker.endpoint()],
        &["exec", "--timeout=100ms", "web", "--", "sleep"],
    )
    .await?;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("did not answer `exec` within 100 ms"),
        "{}",
        ran.err
    );
    assert!(
        run(
            &[docker.endpoint()],
            &["exec", "--timeout=soon", "web", "--", "x"]
        )
        .await
        .is_err()
    );
    assert!(run(&[docker.endpoint()], &["exec", "web"]).await.is_err());
    Ok(())
}
