//! The Debian package, made of the binary under test: installed, upgraded, removed and purged in a root file system of
//! its own. `operator.rs` runs it.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::lab;

/// The user of the tests' collector; one that the machine does not have.
pub(crate) const UID: u32 = 64_713;
/// `systemd-analyze security` gives a unit up to 100; this one must not get worse than this.
const EXPOSURE_MAX: &str = "--threshold=30";

#[test]
fn the_package_is_installed_upgraded_removed_and_purged() -> Result<()> {
    let folder = TempDir::new()?;
    let root = Root(folder.path().join("root"));
    std::fs::create_dir(&root.0)?;
    if !lab::rootfs(&root.0)? {
        return Ok(());
    }
    let unit = Path::new("usr/lib/systemd/system/quaymaster.service");
    let state = Path::new("var/lib/quaymaster/state.redb");
    root.install(&package(folder.path(), "0.1.0")?)?;
    ensure!(
        root.call(&["quaymaster", "--version"])?
            .starts_with("quaymaster ")
    );
    let groups = root.call(&["id", "-nG", "quaymaster"])?;
    ensure!(groups.split(' ').any(|group| group == "root"), "{groups}");
    check_unit(&root.0, unit)?;
    check_state_directory(&root, unit)?;
    check_manual(&root.0)?;
    check_licences(&root.0)?;

    let settings = root.0.join("etc/default/quaymaster");
    let mode = std::fs::metadata(&settings)?.mode() & 0o777;
    ensure!(mode == 0o640, "secrets may stand in it: {mode:o}");
    std::fs::write(&settings, "QUAYMASTER_BUS=kafka://broker:9092\n")?;
    std::fs::create_dir_all(root.0.join("var/lib/quaymaster"))?;
    std::fs::write(root.0.join(state), "kept")?;
    root.install(&package(folder.path(), "0.2.0")?)?;
    let version = root.call(&["dpkg-query", "-W", "-f", "${Version}", "quaymaster"])?;
    ensure!(version == "0.2.0", "{version}");
    let kept = std::fs::read_to_string(&settings)?;
    ensure!(
        kept.contains("broker:9092"),
        "an upgrade took the settings: {kept}"
    );

    root.call(&["dpkg", "--remove", "quaymaster"])?;
    ensure!(!root.0.join(unit).exists() && !root.0.join("usr/bin/quaymaster").exists());
    ensure!(
        root.0.join(state).exists() && settings.exists(),
        "a removal took the state"
    );
    root.call(&["dpkg", "--purge", "quaymaster"])?;
    ensure!(
        !root.0.join(state).exists() && !settings.exists(),
        "a purge left the state"
    );
    ensure!(
        root.call(&["id", "quaymaster"]).is_err(),
        "a purge left the user"
    );
    Ok(())
}

/// Unpacks the package, and gives its binary as the unit starts it: with a user of its own, its capabilities, and
/// the groups of these sockets.
pub(crate) fn unpacked_as_the_unit(folder: &Path, endpoints: &[String]) -> Result<Vec<OsString>> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let unpacked = folder.join("unpacked");
    let package = package(folder, "0.1.0")?;
    succeed(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(&unpacked),
    )?;
    as_the_unit(&unpacked.join("usr/bin/quaymaster"), endpoints)
}

/// What `deploy/systemd/quaymaster.service` says of user, groups and capabilities, in setpriv's words.
fn as_the_unit(binary: &Path, endpoints: &[String]) -> Result<Vec<OsString>> {
    let mut program: Vec<OsString> = vec!["setpriv".into()];
    program.push(format!("--reuid={UID}").into());
    program.push(format!("--regid={UID}").into());
    // As the package does: the groups of the runtimes' sockets.
    let groups = endpoints.iter().map(|endpoint| {
        let path = endpoint
            .split("://")
            .nth(1)
            .context("an endpoint without a path")?;
        Ok(std::fs::metadata(path)?.gid().to_string())
    });
    let groups = groups.collect::<Result<Vec<_>>>()?;
    program.push(format!("--groups={}", groups.join(",")).into());
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        program.push(format!("{set}=-all,+sys_ptrace,+dac_read_search").into());
    }
    program.push("--no-new-privs".into());
    program.push(binary.into());
    Ok(program)
}

/// Our licence, and those of what is linked into the binary.
fn check_licences(root: &Path) -> Result<()> {
    let doc = root.join("usr/share/doc/quaymaster");
    let ours = std::fs::read_to_string(doc.join("LICENSE"))?;
    ensure!(ours.contains("Apache License"), "{ours}");
    let copyright = std::fs::read_to_string(doc.join("copyright"))?;
    ensure!(copyright.contains("third-party-licenses.gz"), "{copyright}");
    let read = succeed(Command::new("zcat").arg(doc.join("third-party-licenses.gz")))?;
    are_notices(&String::from_utf8_lossy(&read.stdout))
}

/// Whether these are the notices of what is linked into the binary: of each crate that `Cargo.toml` names for it, of some
/// that those bring, and of the C libraries in them.
pub(crate) fn are_notices(notices: &str) -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(manifest)?.parse()?;
    let direct = manifest["dependencies"].as_table();
    let direct = direct.context("no dependencies")?.keys();
    let indirect = ["ring", "h2", "rdkafka-sys", "tonic-prost"].map(str::to_owned);
    for name in direct.chain(&indirect) {
        let line = format!("\n{name} ");
        ensure!(notices.contains(&line), "no notice of {name}");
    }
    for text in [
        "librdkafka - Apache Kafka C driver library",
        "Permission is hereby granted, free of charge",
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
    ] {
        ensure!(notices.contains(text), "`{text}` is missing");
    }
    Ok(())
}

/// There is a page for each subcommand, and completions for the shells that Debian has.
fn check_manual(root: &Path) -> Result<()> {
    let pages = root.join("usr/share/man/man1");
    for subcommand in ["", "-run", "-doctor", "-enrich", "-config-show"] {
        let page = pages.join(format!("quaymaster{subcommand}.1.gz"));
        let read = succeed(Command::new("zcat").arg(&page))?;
        let text = String::from_utf8(read.stdout)?;
        ensure!(text.contains(".SH NAME"), "{}: {text}", page.display());
    }
    for (path, command) in [
        ("bash-completion/completions/quaymaster", "complete -F"),
        ("zsh/vendor-completions/_quaymaster", "#compdef quaymaster"),
        (
            "fish/vendor_completions.d/quaymaster.fish",
            "complete -c quaymaster",
        ),
    ] {
        let text = std::fs::read_to_string(root.join("usr/share").join(path))?;
        ensure!(
            text.contains(command) && text.contains("doctor"),
            "{path}: {text}"
        );
    }
    Ok(())
}

/// What systemd itself thinks of the unit.
fn check_unit(root: &Path, unit: &Path) -> Result<()> {
    let verified = succeed(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(format!("--root={}", root.display()))
            .arg(Path::new("/").join(unit)),
    )?;
    let said = String::from_utf8_lossy(&verified.stderr);
    ensure!(
        !said.contains("quaymaster"),
        "systemd-analyze verify: {said}"
    );
    let arguments = ["security", "--no-pager", "--offline=yes", EXPOSURE_MAX];
    succeed(
        Command::new("systemd-analyze")
            .args(arguments)
            .arg(root.join(unit)),
    )?;
    Ok(())
}

/// The daemon that the unit starts has its state where the unit lets it write, and a purge looks for it.
fn check_state_directory(root: &Root, unit: &Path) -> Result<()> {
    let text = std::fs::read_to_string(root.0.join(unit))?;
    let values = |key: &'static str| {
        text.lines()
            .filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let one = |key| {
        values(key)
            .next()
            .with_context(|| format!("the unit has no {key}="))
    };
    let wanted = format!("/var/lib/{}", one("StateDirectory")?);
    // What systemd gives a service of a user of its own, and what the unit adds.
    let mut environment = vec![
        format!("HOME={wanted}"),
        format!("STATE_DIRECTORY={wanted}"),
    ];
    environment.extend(values("Environment").map(|value| value.replace("%S", "/var/lib")));
    let mut command = vec![
        "setpriv",
        "--reuid",
        one("User")?,
        "--clear-groups",
        "env",
        "-i",
    ];
    command.extend(environment.iter().map(String::as_str));
    command.extend(["/usr/bin/quaymaster", "config", "show"]);
    let shown = root.call(&command)?;
    let state = shown.lines().find(|line| line.starts_with("state_dir"));
    let state = state.context("no state_dir in `config show`")?;
    ensure!(
        state.split('"').nth(1) == Some(&wanted),
        "the unit's StateDirectory= is {wanted}, and `config show` says {state}"
    );
    Ok(())
}

/// A root file system in which the package is installed.
struct Root(PathBuf);

impl Root {
    fn install(&self, package: &Path) -> Result<()> {
        std::fs::copy(package, self.0.join("package.deb"))?;
        self.call(&["dpkg", "--install", "/package.deb"])?;
        Ok(())
    }

    fn call(&self, command: &[&str]) -> Result<String> {
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.0).args(command);
        chroot
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        Ok(String::from_utf8(succeed(&mut chroot)?.stdout)?
            .trim()
            .to_owned())
    }
}

/// The package of the binary under test.
fn package(folder: &Path, version: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/debian/build");
    let mut command = Command::new(script);
    command.args([
        "--binary",
        env!("CARGO_BIN_EXE_quaymaster"),
        "--version",
        version,
    ]);
    let output = succeed(command.arg("--out").arg(folder))?;
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

pub(crate) fn succeed(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("failed to run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(output)
}
