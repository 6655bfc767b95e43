//! The command line: exit codes and what is said for what is wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::Context as _;

/// Seconds after which a binary that should have ended by itself is ended; its exit code is then 124.
const LIMIT_S: &str = "60";

fn quaymaster(arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new("timeout")
        .args([LIMIT_S, env!("CARGO_BIN_EXE_quaymaster")])
        .args(arguments)
        .env_clear()
        .output()
        .context("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_settings_end_with_64_and_name_the_setting() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("quaymaster.toml");
    std::fs::write(&file, "resync_intervall = \"5m\"\n")?;
    let file = file.to_string_lossy().into_owned();
    let wrong_type = directory.path().join("wrong-type.toml");
    std::fs::write(&wrong_type, "[topics]\npartitions = \"twelve\"\n")?;
    let wrong_type = wrong_type.to_string_lossy().into_owned();
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--bus", "amqp://x"], "`bus`"),
        (&["run", "--bus", "kafka://nowhere"], "`bus`"),
        (&["run", "--endpoint", "docker=tcp://x"], "`endpoint`"),
        (&["run", "--resync-interval", "0s"], "`resync_interval`"),
        (&["run", "--host-id", "a:b"], "`host_id`"),
        (&["run", "--outbox-max-bytes", "1"], "`outbox.max_bytes`"),
        (&["run", "--topics-prefix", "a b"], "topics"),
        (
            &["run", "--config", "/nonexistent.toml"],
            "/nonexistent.toml",
        ),
        (&["run", "--config", &file], "`resync_interval`"),
        (&["run", "--config", &wrong_type], "`partitions`"),
        (
            &["run", "--bus", "nats://jane:hunter2@a:4222"],
            "`nats.username`",
        ),
    ];
    for (arguments, expected) in cases {
        let output = quaymaster(arguments)?;
        assert_eq!(
            output.status.code(),
            Some(64),
            "{arguments:?}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains(expected),
            "{arguments:?}: {}",
            said(&output)
        );
        assert_eq!(
            said(&output).lines().count(),
            1,
            "{arguments:?}: {}",
            said(&output)
        );
        assert!(!said(&output).contains("hunter2"), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() -> anyhow::Result<()> {
    let variables = [
        ("QUAYMASTER_CONFIG", ""),
        ("QUAYMASTER_BUS", ""),
        ("QUAYMASTER_ENDPOINT", ""),
        ("QUAYMASTER_HTTP_LISTEN_ANYWHERE", ""),
        ("QUAYMASTER_TLS", "no"),
        ("QUAYMASTER_KEEP_PRIVILEGES", "1"),
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(["config", "show", "--host-id", "h"])
        .env_clear()
        .envs(variables)
        .output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(shown.contains("stdout:"), "{shown}");
    Ok(())
}

#[test]
fn config_check_asks_the_runtimes_and_the_bus_only_where_it_is_told_to() -> anyhow::Result<()> {
    let bus = ["--host-id=h", "--bus=kafka://127.0.0.1:1"];
    let endpoint = "--endpoint=docker=unix:///nonexistent/docker.sock";
    let offline = [&["config", "check"], &bus[..], &[endpoint]].concat();
    assert_eq!(quaymaster(&offline)?.status.code(), Some(0));
    let live = quaymaster(&[&offline[..], &["--live"]].concat())?;
    assert_eq!(live.status.code(), Some(69), "{}", said(&live));
    assert!(
        said(&live).contains("/nonexistent/docker.sock"),
        "{}",
        said(&live)
    );
    assert_eq!(said(&live).lines().count(), 1, "{}", said(&live));
    Ok(())
}

#[test]
fn a_file_with_a_secret_that_is_of_no_use_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let empty = directory.path().join("empty");
    std::fs::write(&empty, "")?;
    let file = |path: &str| format!("--sasl-password-file={path}");
    for (path, expected) in [
        ("/nonexistent/password", "is not there"),
        (&*empty.to_string_lossy(), "is empty"),
    ] {
        let output = quaymaster(&[
            "run",
            "--bus=kafka://127.0.0.1:1",
            "--sasl-mechanism=PLAIN",
            "--sasl-username=u",
            &file(path),
        ])?;
        assert_eq!(output.status.code(), Some(64), "{}", said(&output));
        let said = said(&output);
        assert!(
            said.contains("`sasl.password_file`") && said.contains(expected),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    Ok(())
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() -> anyhow::Result<()> {
    assert_eq!(quaymaster(&["runn"])?.status.code(), Some(2));
    assert_eq!(quaymaster(&["exec", "a"])?.status.code(), Some(2));
    let help = quaymaster(&["run", "--help"])?;
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8_lossy(&help.stdout);
    for flag in [
        "--bus",
        "--state-dir",
        "--endpoint",
        "--resync-interval",
        "--host-id",
        "--once",
    ] {
        assert!(text.contains(flag), "{flag} is in the help");
    }
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    std::fs::write(&file, "")?;
    let file = file.to_string_lossy().into_owned();
    let output = quaymaster(&["run", "--once", "--host-id", "h", "--state-dir", &file])?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&file), "{}", said(&output));
    Ok(())
}

/// The binary as a user who may read nothing of root's. It is started through an open file: the folders above it may
/// be closed to that user.
fn as_nobody(arguments: &[&str]) -> anyhow::Result<Output> {
    use std::os::fd::AsRawFd as _;
    if !rustix::process::geteuid().is_root() {
        return quaymaster(arguments);
    }
    let binary = std::fs::File::open(env!("CARGO_BIN_EXE_quaymaster"))?;
    rustix::io::fcntl_setfd(&binary, rustix::io::FdFlags::empty())?;
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["timeout", LIMIT_S])
        .arg(format!("/proc/self/fd/{}", binary.as_raw_fd()))
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .output()
        .context("setpriv runs")
}

fn mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(mode),
    )?)
}

#[test]
fn what_this_user_may_not_have_ends_with_77_before_anything_is_started() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    mode(directory.path(), 0o755)?;
    let at = |name: &str| directory.path().join(name);
    for name in ["password", "quaymaster.toml"] {
        std::fs::write(at(name), "hunter2\n")?;
        mode(&at(name), 0o000)?;
    }
    std::fs::create_dir(at("closed"))?;
    mode(&at("closed"), 0o555)?;
    std::fs::create_dir(at("open"))?;
    mode(&at("open"), 0o777)?;
    // A state that root made, as where the service's user was changed.
    std::fs::create_dir(at("roots"))?;
    std::fs::write(at("roots").join("state.redb"), "")?;
    mode(&at("roots").join("state.redb"), 0o000)?;
    let _socket = std::os::unix::net::UnixListener::bind(at("docker.sock"))?;
    mode(&at("docker.sock"), 0o000)?;
    let text = |name: &str| at(name).to_string_lossy().into_owned();
    let state = |name: &str| format!("--state-dir={}", text(name));
    let (open, closed, roots) = (state("open"), state("closed"), state("roots"));
    let missing = state("closed/missing");
    let password = format!("--sasl-password-file={}", text("password"));
    let config = format!("--config={}", text("quaymaster.toml"));
    let endpoint = format!("--endpoint=docker=unix://{}", text("docker.sock"));
    let user = ["--sasl-mechanism=PLAIN", "--sasl-username=u", &password];
    let kafka = [
        &["--host-id=h", "--bus=kafka://127.0.0.1:1", &open],
        &user[..],
    ]
    .concat();
    let run = |rest: &[&str]| -> Vec<String> {
        let head = ["run", "--once", "--host-id=h", endpoint.as_str()];
        head.iter()
            .chain(rest)
            .map(|word| (*word).to_owned())
            .collect()
    };
    let kafka_of = |head: &[&str]| -> Vec<String> {
        head.iter()
            .chain(&kafka)
            .map(|word| (*word).to_owned())
            .collect()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let cases: &[(Vec<String>, &str, &str)] = &[
        (kafka_of(&["run"]), "`sasl.password_file`", "let it"),
        (kafka_of(&["doctor"]), "`sasl.password_file`", "let it"),
        (
            kafka_of(&["config", "check"]),
            "`sasl.password_file`",
            "let it",
        ),
        (run(&[&config]), "quaymaster.toml", "ermission denied"),
        (run(&[&closed]), &text("closed"), "--state-dir"),
        (run(&[&missing]), &text("closed/missing"), "--state-dir"),
        (run(&[&roots]), &text("roots"), "--state-dir"),
        (
            words(&["outbox", "show", &roots]),
            &text("roots"),
            "--state-dir",
        ),
        (words(&["list", &endpoint]), &text("docker.sock"), "group"),
        (
            words(&["config", "check", "--live", "--host-id=h", &endpoint]),
            &text("docker.sock"),
            "group",
        ),
    ];
    for (arguments, names, remedy) in cases {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = as_nobody(&arguments)?;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(77), "{arguments:?}: {said}");
        assert!(
            said.contains(names) && said.contains(remedy),
            "{arguments:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(!said.contains("hunter2"), "{arguments:?}: {said}");
        assert!(
            output.stdout.is_empty(),
            "{arguments:?} published something"
        );
    }
    assert_eq!(
        std::fs::read_dir(at("open"))?.count(),
        0,
        "a state was begun"
    );
    Ok(())
}

#[test]
fn a_port_in_use_ends_with_69_before_anything_is_started() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let state_dir = format!("--state-dir={}", state.display());
    let output = quaymaster(&["run", "--host-id=h", &state_dir, "--listen", &address])?;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains(&address) && said.contains("--listen"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!state.exists(), "a state was begun");
    Ok(())
}

#[test]
fn two_collectors_do_not_share_a_state_directory() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().to_string_lossy().into_owned();
    let socket = directory.path().join("none.sock");
    let endpoint = format!("docker=unix://{}", socket.display());
    let arguments = [
        "run",
        "--host-id",
        "h",
        "--state-dir",
        &state,
        "--endpoint",
        &endpoint,
    ];
    let mut first = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    // Its first line says that it has the state. Its stdout stays open: without a reader it would end.
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(first.stdout.take().context("stdout is piped")?);
    std::io::BufRead::read_line(&mut stdout, &mut line)?;
    let second = quaymaster(&arguments)?;
    first.kill()?;
    first.wait()?;
    drop(stdout);
    assert!(line.contains("quaymaster."), "{line}");
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(
        said(&second).contains("another quaymaster"),
        "{}",
        said(&second)
    );
    Ok(())
}

#[test]
fn a_list_without_a_runtime_ends_with_69() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("none.sock");
    let endpoint = format!("docker=unix://{}", socket.display());
    let output = quaymaster(&["list", "--endpoint", &endpoint])?;
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("none.sock"), "{}", said(&output));
    Ok(())
}

#[test]
fn config_shows_where_each_value_comes_from() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("quaymaster.toml");
    std::fs::write(
        &file,
        "resync_interval = \"7s\"\nbus = \"kafka://a:1\"\n[topics]\nprefix = \"q\"\n",
    )?;
    let output = Command::new(env!("CARGO_BIN_EXE_quaymaster"))
        .args(["config", "show", "--bus", "nats://b:2", "--config"])
        .arg(&file)
        .env_clear()
        .env("QUAYMASTER_PNS_LINGER", "3m")
        .output()?;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = String::from_utf8(output.stdout)?;
    for (line, origin) in [
        ("bus = \"nats://b:2\"", "# flag"),
        ("pns.linger = \"3m\"", "# environment"),
        ("resync_interval = \"7s\"", "# file"),
        ("topics.prefix = \"q\"", "# file"),
        ("topics.partitions = 12", "# default"),
    ] {
        let found = text.lines().find(|found| found.starts_with(line));
        assert!(
            found.is_some_and(|found| found.ends_with(origin)),
            "{line}\n{text}"
        );
    }
    // What is shown is a configuration again.
    std::fs::write(&file, &text)?;
    let path = file.to_string_lossy().into_owned();
    let checked = quaymaster(&["config", "check", "--host-id", "h", "--config", &path])?;
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    Ok(())
}

#[test]
fn config_check_ends_with_64_and_one_line() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("quaymaster.toml");
    let path = file.to_string_lossy().into_owned();
    for (text, expected) in [
        (
            "resync_intervall = \"5m\"",
            "did you mean `resync_interval`?",
        ),
        ("[http]\nlisten = \"0.0.0.0:1\"", "listen_anywhere"),
        ("bus = 7", "invalid type"),
        ("bus = ", "not valid"),
        ("log.filter = \"a=b=c\"", "log filter"),
    ] {
        std::fs::write(&file, text)?;
        let output = quaymaster(&["config", "check", "--host-id", "h", "--config", &path])?;
        assert_eq!(output.status.code(), Some(64), "{text}: {}", said(&output));
        assert!(
            said(&output).contains(expected),
            "{text}: {}",
            said(&output)
        );
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
    }
    Ok(())
}

#[test]
fn the_outbox_is_shown_and_what_is_missing_or_in_use_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().to_string_lossy().into_owned();
    let none = quaymaster(&["outbox", "show", "--state-dir", &state])?;
    assert_eq!(none.status.code(), Some(69), "{}", said(&none));
    assert!(said(&none).contains("no state"), "{}", said(&none));

    let owner = quaymaster::outbox::Owner {
        host_id: "h".into(),
        boot_id: "b".into(),
        new_epoch: "e1".to_owned(),
    };
    let options = quaymaster::outbox::Options::default();
    let opened = quaymaster::outbox::Outbox::open(directory.path(), &owner, options)?;
    let used = quaymaster(&["outbox", "show", "--state-dir", &state])?;
    assert_eq!(used.status.code(), Some(69), "{}", said(&used));
    assert!(said(&used).contains("stop it first"), "{}", said(&used));
    drop(opened);

    let shown = quaymaster(&["outbox", "show", "--state-dir", &state])?;
    assert_eq!(shown.status.code(), Some(0), "{}", said(&shown));
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("quarantine   pns"), "{text}");
    let kept = quaymaster(&["outbox", "drop", "--state-dir", &state])?;
    assert_eq!(kept.status.code(), Some(1), "{}", said(&kept));
    assert!(said(&kept).contains("--yes"), "{}", said(&kept));
    let dropped = quaymaster(&["outbox", "drop", "--yes", "--state-dir", &state])?;
    assert_eq!(dropped.status.code(), Some(0), "{}", said(&dropped));
    Ok(())
}

#[test]
fn the_doctor_names_what_is_not_well_and_what_to_do() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let state = state.to_string_lossy().into_owned();
    let endpoint = format!("docker=unix://{}/none.sock", directory.path().display());
    let arguments = [
        "doctor",
        "--format",
        "json",
        "--host-id",
        "h",
        "--state-dir",
        &state,
        "--endpoint",
        &endpoint,
        "--bus",
        "nats://127.0.0.1:1",
    ];
    let output = quaymaster(&arguments)?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("need attention"),
        "{}",
        said(&output)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["well"], false);
    let findings = report["findings"].as_array().context("findings")?;
    let of = |check: &str| findings.iter().find(|finding| finding["check"] == check);
    for (check, health) in [
        ("host", "well"),
        ("clock", "well"),
        ("state", "well"),
        ("runtime", "unwell"),
        ("bus", "unwell"),
    ] {
        let finding = of(check).context(check)?;
        assert_eq!(finding["health"], health, "{finding}");
        let has_remedy = finding["remedy"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert_eq!(has_remedy, health != "well", "{finding}");
    }
    // It only looked.
    assert!(!std::path::Path::new(&state).exists());
    Ok(())
}

#[test]
fn completions_and_manual_pages_know_every_subcommand() -> anyhow::Result<()> {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = quaymaster(&["completions", shell])?;
        assert_eq!(output.status.code(), Some(0), "{shell}: {}", said(&output));
        let text = String::from_utf8(output.stdout)?;
        for word in ["whois", "processes", "resync-interval"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(quaymaster(&["completions", "csh"])?.status.code(), Some(2));

    let directory = tempfile::tempdir()?;
    let pages = directory.path().join("share/man1");
    let output = quaymaster(&["man", &pages.to_string_lossy()])?;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for (page, word) in [
        ("quaymaster.1", "whois"),
        ("quaymaster-run.1", "resync"),
        ("quaymaster-topics-verify.1", "topics"),
    ] {
        let text = std::fs::read_to_string(pages.join(page)).with_context(|| page.to_owned())?;
        assert!(
            text.starts_with(".ie") && text.contains(word),
            "{page}: {text}"
        );
    }
    let file = pages.join("quaymaster.1/x");
    let output = quaymaster(&["man", &file.to_string_lossy()])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("quaymaster.1/x"),
        "{}",
        said(&output)
    );
    Ok(())
}
