//! A broker of this test's own, ended with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};

use crate::lab::{report, script};

static LABS: AtomicU32 = AtomicU32::new(0);

/// A lab in a folder of its own.
pub(crate) struct SecureLab {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
}

impl SecureLab {
    /// Starts a component with the lab's variables; `None` where there is none and the test is skipped.
    pub(crate) fn start(
        component: &str,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Option<Self>> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("/tmp/quay-tls-{}-{number}", std::process::id()));
        let mut lab = Self {
            folder,
            settings: BTreeMap::new(),
        };
        let mut command = Command::new(script());
        command.arg("up").arg(&lab.folder).arg(component);
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.code() == Some(69) && std::env::var("CI").as_deref() != Ok("true") {
                report(&format!("SKIPPED, as there is no {component}: {said}"));
                return Ok(None);
            }
            bail!("`lab up` ended with {}: {said}", output.status);
        }
        let text = std::fs::read_to_string(lab.folder.join("env"))?;
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lab.settings = lines
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Some(lab))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn address(&self, key: &str) -> anyhow::Result<&str> {
        let address = self.settings.get(key).map(String::as_str);
        address.with_context(|| format!("{key} is not in the lab's env"))
    }
}

impl Drop for SecureLab {
    fn drop(&mut self) {
        // What it leaves behind is ended by hand: there is nobody to tell in a test that unwinds.
        let _ = Command::new(script())
            .arg("down")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .output();
    }
}

/// Writes a file and gives its path as text.
pub(crate) fn written(folder: &Path, name: &str, text: &str) -> anyhow::Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}
