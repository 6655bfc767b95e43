//! Private runtimes and brokers, by `tests/lab/lab`. What starts here ends when the [`Lab`] is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// `lab`'s exit status where something that it needs is not on the machine (sysexits' EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: i32 = 69;

/// A folder with runtimes and brokers that run.
pub(crate) struct Lab {
    dir: PathBuf,
}

impl Lab {
    /// Starts components; each is ready when this returns.
    ///
    /// `None` where the machine lacks something, which is told loudly. With `CI=true` that is an error: there
    /// everything has to be tested.
    pub(crate) fn up(components: &[&str]) -> Result<Option<Self>> {
        Self::up_with(components, &[])
    }

    /// The same, with variables that `tests/lab/lib/brokers.sh` names.
    pub(crate) fn up_with(
        components: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Option<Self>> {
        let dir = tempfile::Builder::new()
            .prefix("qm")
            .tempdir_in("/tmp")?
            .keep();
        let lab = Self { dir };
        let mut command = Command::new(script("lab"));
        command.arg("up").arg(&lab.dir).args(components);
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        let output = command.stdin(Stdio::null()).output();
        let output = output.context("failed to run tests/lab/lab")?;
        let is_there = is_there(&output, &format!("`lab up` of {components:?}"))?;
        Ok(is_there.then_some(lab))
    }

    /// Starts further components beside those that run; as [`Self::up_with`], but that they must be there.
    pub(crate) fn add(&self, components: &[&str], variables: &[(&str, String)]) -> Result<()> {
        let mut command = Command::new(script("lab"));
        command.arg("up").arg(&self.dir).args(components);
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        let output = command.stdin(Stdio::null()).output();
        let output = output.context("failed to run tests/lab/lab")?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`lab up` of {components:?}: {why}");
        Ok(())
    }

    /// With what Java runs a stream processor of `deploy/`; `None` as for [`Self::up`].
    pub(crate) fn classpath(part: &str) -> Result<Option<String>> {
        let output = Command::new(script("lab"))
            .args(["classpath", part])
            .output()
            .context("failed to run tests/lab/lab")?;
        let is_there = is_there(&output, &format!("`lab classpath {part}`"))?;
        let text = String::from_utf8(output.stdout)?;
        Ok(is_there.then(|| text.trim_end().to_owned()))
    }

    /// Ends components as their service manager would.
    pub(crate) fn stop(&self, components: &[&str]) -> Result<()> {
        self.succeed("stop", components)
    }

    /// Ends components without a word; their containers live on.
    pub(crate) fn kill9(&self, components: &[&str]) -> Result<()> {
        self.succeed("kill9", components)
    }

    /// Starts stopped components again, at the same sockets and ports.
    pub(crate) fn start(&self, components: &[&str]) -> Result<()> {
        self.succeed("start", components)
    }

    /// A value that the lab tells about itself, such as `LAB_KAFKA`.
    pub(crate) fn value(&self, key: &str) -> Result<String> {
        let values = self.values()?;
        values
            .get(key)
            .cloned()
            .with_context(|| format!("the lab tells no {key}"))
    }

    /// All that the lab tells about itself.
    pub(crate) fn values(&self) -> Result<BTreeMap<String, String>> {
        let text =
            std::fs::read_to_string(self.dir.join("env")).context("the lab has no env file")?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    /// The folder, for what belongs to a test and ends with it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn succeed(&self, command: &str, components: &[&str]) -> Result<()> {
        let output = self.call(command, components)?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`lab {command}` of {components:?} failed: {why}"
        );
        Ok(())
    }

    fn call(&self, command: &str, components: &[&str]) -> Result<Output> {
        Command::new(script("lab"))
            .arg(command)
            .arg(&self.dir)
            .args(components)
            .stdin(Stdio::null())
            .output()
            .context("failed to run tests/lab/lab")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A lab that could not be ended is told by the next look at the machine, not by this test.
        let _ = self.call("down", &[]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Gives a lab's docker what the image is built with. `false` as [`Lab::up`] has `None`.
pub(crate) fn builder(lab: &Lab) -> Result<bool> {
    is_there(&lab.call("builder", &[])?, "`lab builder`")
}

/// Renders and validates the manifests. `None` as [`Lab::up`].
pub(crate) fn manifests() -> Result<Option<String>> {
    check("manifests", &[])
}

/// The documents that the chart renders with these arguments of helm. `None` as [`Lab::up`].
pub(crate) fn rendered(arguments: &[String]) -> Result<Option<Vec<Value>>> {
    let all = [&["render".to_owned()], arguments].concat();
    let said = check("manifests", &all)?;
    Ok(said.map(|said| serde_json::from_str(&said)).transpose()?)
}

/// Reads the AsyncAPI document by its own parser. `None` as [`Lab::up`].
pub(crate) fn asyncapi() -> Result<Option<String>> {
    check("asyncapi", &[])
}

/// What a program of `tests/lab` that checks something says when all is well.
fn check(name: &str, arguments: &[String]) -> Result<Option<String>> {
    let mut command = Command::new(script(name));
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("failed to run tests/lab/{name}"))?;
    let is_there = is_there(&output, &format!("`tests/lab/{name}`"))?;
    Ok(is_there.then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Unpacks Debian's base system into an empty folder. `false` as [`Lab::up`] has `None`.
pub(crate) fn rootfs(into: &Path) -> Result<bool> {
    let mut command = Command::new(script("lab"));
    let output = command
        .arg("rootfs")
        .arg(into)
        .stdin(Stdio::null())
        .output();
    is_there(
        &output.context("failed to run tests/lab/lab")?,
        "`lab rootfs`",
    )
}

/// Whether the lab had what it needed. What the machine lacks is told loudly, and is an error with `CI=true`.
fn is_there(output: &Output, what: &str) -> Result<bool> {
    if output.status.success() {
        return Ok(true);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    let is_unavailable = output.status.code() == Some(EXIT_UNAVAILABLE);
    if is_unavailable && !std::env::var("CI").is_ok_and(|ci| ci == "true") {
        skipped(&format!("{what}: {why}"));
        return Ok(false);
    }
    bail!("{what} failed: {why}{out}");
}

/// A program of `tests/lab`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab")
        .join(name)
}

/// Writes a line past the test harness's capture.
pub(crate) fn tell(line: &str) {
    use std::io::Write as _;
    // Nobody to tell when stderr is gone.
    let _ = std::io::stderr().write_all(format!("tests/e2e: {line}\n").as_bytes());
}

#[expect(clippy::print_stderr, reason = "a skipped test has to be seen")]
fn skipped(why: &str) {
    eprintln!(
        "\n!!! SKIPPED, for this machine lacks something: {why}\n!!! `make install-lab` as root brings it\n"
    );
}
