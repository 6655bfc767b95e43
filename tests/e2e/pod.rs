//! The pod that the chart renders, as arguments of `docker run`: what the kubelet would ask a runtime for, word for word.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::wait::eventually;

/// The one container of a DaemonSet's pod.
pub(crate) struct Pod {
    spec: Value,
    container: Value,
    /// Where each volume is on this machine.
    volumes: Vec<(String, PathBuf)>,
}

impl Pod {
    /// The pod of the rendered documents. What it mounts of the node is below `dir`: `/run` is `dir` itself, a secret
    /// `secrets`.
    pub(crate) fn of(documents: &[Value], dir: &Path) -> Result<Self> {
        let one = |kind: &str| documents.iter().find(|document| document["kind"] == kind);
        let daemonset = one("DaemonSet").context("a DaemonSet")?;
        let spec = daemonset["spec"]["template"]["spec"].clone();
        let [container] = &spec["containers"].as_array().context("containers")?[..] else {
            bail!("not one container: {spec}");
        };
        let mut volumes = Vec::new();
        for volume in spec["volumes"].as_array().context("volumes")? {
            let place = if let Some(path) = volume["hostPath"]["path"].as_str() {
                match path {
                    "/run" => dir.to_owned(),
                    "/etc/machine-id" => PathBuf::from(path),
                    path => dir.join("node").join(path.trim_start_matches('/')),
                }
            } else if volume["secret"].is_object() {
                dir.join("secrets")
            } else if volume["configMap"].is_object() {
                let files = one("ConfigMap").context("a ConfigMap")?["data"].as_object();
                let place = dir.join("config");
                std::fs::create_dir_all(&place)?;
                for (name, text) in files.context("files")? {
                    std::fs::write(place.join(name), text.as_str().context("a text")?)?;
                }
                place
            } else {
                bail!("a volume that is not known here: {volume}");
            };
            if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                std::fs::create_dir_all(&place)?;
            }
            let name = volume["name"].as_str().context("a name")?.to_owned();
            volumes.push((name, place));
        }
        Ok(Self {
            container: container.clone(),
            spec,
            volumes,
        })
    }

    /// Takes a variable out of the container's environment.
    pub(crate) fn take_variable(&mut self, name: &str) -> Result<()> {
        let variables = self.container["env"].as_array_mut().context("env")?;
        let before = variables.len();
        variables.retain(|variable| variable["name"] != name);
        ensure!(variables.len() + 1 == before, "there is no {name}");
        Ok(())
    }

    /// `docker run` under a name, with what the pod says and no more.
    pub(crate) fn arguments(&self, name: &str) -> Result<Vec<String>> {
        let mut all: Vec<String> = ["run", "--detach", "--name", name, "--network", "host"]
            .map(str::to_owned)
            .to_vec();
        let mut add = |words: &[&str]| all.extend(words.iter().map(|&word| word.to_owned()));
        if self.spec["hostPID"] == true {
            add(&["--pid", "host"]);
        }
        let grace = &self.spec["terminationGracePeriodSeconds"];
        add(&["--stop-timeout", &grace.to_string()]);
        if let Some(memory) = self.container["resources"]["limits"]["memory"].as_str() {
            add(&["--memory", &memory.replace("Mi", "m")]);
        }
        let context = &self.container["securityContext"];
        add(&["--user", &context["runAsUser"].to_string()]);
        ensure!(context["privileged"] == false, "it is privileged");
        if context["allowPrivilegeEscalation"] == false {
            add(&["--security-opt", "no-new-privileges"]);
        }
        if context["readOnlyRootFilesystem"] == true {
            add(&["--read-only"]);
        }
        for (list, flag) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
            for capability in context["capabilities"][list]
                .as_array()
                .into_iter()
                .flatten()
            {
                add(&[flag, capability.as_str().context("a capability")?]);
            }
        }
        // Docker's own profile is what it calls RuntimeDefault.
        ensure!(
            context["seccompProfile"]["type"] == "RuntimeDefault",
            "{context}"
        );
        if context["appArmorProfile"]["type"] == "Unconfined" {
            add(&["--security-opt", "apparmor=unconfined"]);
        }
        for variable in self.container["env"].as_array().context("env")? {
            let name = variable["name"].as_str().context("a name")?;
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                None => variable["value"].as_str().context("a value")?,
                Some("spec.nodeName") => "node-1",
                Some(other) => bail!("a field that is not known here: {other}"),
            };
            add(&["--env", &format!("{name}={value}")]);
        }
        for mount in self.container["volumeMounts"]
            .as_array()
            .context("mounts")?
        {
            add(&["--volume", &self.volume(mount)?]);
        }
        add(&[self.container["image"].as_str().context("an image")?]);
        for argument in self.container["args"].as_array().context("args")? {
            add(&[argument.as_str().context("a text")?]);
        }
        Ok(all)
    }

    fn volume(&self, mount: &Value) -> Result<String> {
        let name = mount["name"].as_str().context("a name")?;
        let (_, place) = self
            .volumes
            .iter()
            .find(|(known, _)| known == name)
            .with_context(|| format!("no volume {name}"))?;
        let place = mount["subPath"]
            .as_str()
            .map_or_else(|| place.clone(), |path| place.join(path));
        let target = mount["mountPath"].as_str().context("a path")?;
        let mut volume = format!("{}:{target}", place.display());
        let mut options = Vec::new();
        if mount["readOnly"] == true {
            options.push("ro");
        }
        // Where the machine's own mounts are private, as in many containers, there is nothing to be passed on.
        if mount["mountPropagation"] == "HostToContainer" && root_is_shared()? {
            options.push("rslave");
        }
        if !options.is_empty() {
            volume += &format!(":{}", options.join(","));
        }
        Ok(volume)
    }

    /// Asks what the kubelet would ask, at the collector's address.
    pub(crate) fn probes_succeed(&self, address: &str) -> Result<()> {
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let get = &self.container[probe]["httpGet"];
            ensure!(get["port"] == "http", "{probe}: {get}");
            let path = get["path"].as_str().context("a path")?;
            eventually(&format!("the {probe} succeeds"), || {
                let url = format!("http://{address}{path}");
                let status = Command::new("curl")
                    .args(["-sf", "-m", "5", &url])
                    .output()?;
                ensure!(status.status.success(), "{url}: {status:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn root_is_shared() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut root = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/"));
    Ok(root
        .next_back()
        .is_some_and(|line| line.contains(" shared:")))
}
