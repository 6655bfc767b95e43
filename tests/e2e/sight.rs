//! What an operator sees: alerts, the dashboard, `quaymaster top`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::host::Host;
use crate::wait::eventually;

/// What Grafana puts in place of a dashboard's variables.
const VARIABLES: [(&str, &str); 2] = [("$instance", ".*"), ("$__rate_interval", "10s")];

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

/// A command that has to succeed; its stdout.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("failed to run {command:?}"))?;
    let (out, errors) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "{command:?} failed: {errors}{out}");
    Ok(out)
}

struct Prometheus(String);

impl Prometheus {
    fn get(&self, path: &str, query: Option<&str>) -> Result<Value> {
        let mut command = Command::new("curl");
        command.args(["-s", "-G", &format!("http://{}/api/v1/{path}", self.0)]);
        if let Some(query) = query {
            command
                .arg("--data-urlencode")
                .arg(format!("query={query}"));
        }
        let answer: Value = serde_json::from_str(&output_of(&mut command)?)?;
        ensure!(answer["status"] == "success", "{path} {query:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The series that a query gives.
    fn query(&self, query: &str) -> Result<Vec<Value>> {
        let data = self.get("query", Some(query))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The names of the alerts that fire.
    fn firing(&self) -> Result<Vec<String>> {
        let data = self.get("alerts", None)?;
        let alerts = data["alerts"].as_array().context("a list of alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let names = firing.filter_map(|alert| alert["labels"]["alertname"].as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Where the collector or enricher whose log this is says that it listens; the log is text or JSON.
pub(crate) fn address_in(mut log: impl FnMut() -> Result<String>) -> Result<String> {
    eventually("it listens", || {
        let log = log()?;
        let (_, text) = log.split_once("listening").context("not yet")?;
        let line = text.lines().next().unwrap_or_default().replace('"', " ");
        let (_, rest) = line.split_once("address").context("no address")?;
        let mut words = rest
            .split([' ', '=', ':', ',', '}'])
            .filter(|word| !word.is_empty());
        let (host, port) = (words.next(), words.next());
        Ok(format!(
            "{}:{}",
            host.context("no host")?,
            port.context("no port")?
        ))
    })
}

/// One sample of what a collector itself shows at `/metrics`.
pub(crate) fn metric(address: &str, sample: &str) -> Result<f64> {
    let url = format!("http://{address}/metrics");
    let text = output_of(Command::new("curl").args(["-sf", "-m", "10", &url]))?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(sample));
    let value = values
        .next()
        .with_context(|| format!("no {sample}: {text}"))?;
    Ok(value.trim().parse()?)
}

/// What Prometheus says of the two jobs of `deploy/prometheus/prometheus.yml`: both are up, and all alerts are there.
pub(crate) fn both_jobs_are_up(address: &str) -> Result<()> {
    let prometheus = Prometheus(address.to_owned());
    for job in ["quaymaster", "quaymaster-enrich"] {
        eventually(&format!("Prometheus scrapes {job}"), || {
            let up = prometheus.query(&format!("up{{job={job:?}}} == 1"))?;
            ensure!(up.len() == 1, "{up:?}");
            Ok(())
        })?;
    }
    let rules = prometheus.get("rules", None)?;
    let alerts = std::fs::read_to_string(deployed("prometheus/alerts.yml"))?;
    let groups = rules["groups"].as_array().context("groups of rules")?;
    let there: usize = groups
        .iter()
        .map(|group| group["rules"].as_array().map_or(0, Vec::len))
        .sum();
    ensure!(
        there == alerts.matches("- alert:").count(),
        "{there} rules: {rules}"
    );
    Ok(())
}

/// All queries of the dashboard.
fn dashboard() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(deployed("grafana/quaymaster.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let mut queries = Vec::new();
    for target in targets.flatten() {
        let query = target["expr"].as_str().context("a query")?.to_owned();
        let put = |query: String, (name, value): &(&str, &str)| query.replace(name, value);
        queries.push(VARIABLES.iter().fold(query, put));
    }
    Ok(queries)
}

/// The rules and their own tests, by promtool.
pub(crate) fn check_rules() -> Result<()> {
    for (verb, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let file = deployed("prometheus").join(file);
        output_of(Command::new("promtool").args([verb, "rules"]).arg(file))?;
    }
    // Debian's Prometheus is built without the discovery of Kubernetes: all else of that job is looked at.
    let job = std::fs::read_to_string(deployed("prometheus/kubernetes.yml"))?;
    let discovery = "kubernetes_sd_configs:\n      - role: pod\n";
    ensure!(job.contains(discovery), "no discovery of pods: {job}");
    let mut file = tempfile::NamedTempFile::new()?;
    let job = job.replace(
        discovery,
        "static_configs:\n      - targets: [\"pod:9464\"]\n",
    );
    std::io::Write::write_all(&mut file, job.as_bytes())?;
    output_of(
        Command::new("promtool")
            .args(["check", "config"])
            .arg(file.path()),
    )?;
    Ok(())
}

/// Has the lab's Prometheus scrape a collector: every query of the dashboard gives data, and the alert for a dead bus
/// fires when Kafka dies, and ends when it is back.
pub(crate) fn prometheus_sees_all_and_tells_of_a_dead_bus(
    host: &Host,
    address: &str,
) -> Result<()> {
    let prometheus = Prometheus(host.lab.value("LAB_PROMETHEUS")?);
    let targets = PathBuf::from(host.lab.value("LAB_PROMETHEUS_TARGETS")?);
    let target = json!([{ "targets": [address] }]);
    std::fs::write(targets.join("collector.json"), target.to_string())?;

    let queries = dashboard()?;
    ensure!(queries.len() >= 17, "{queries:?}");
    for query in &queries {
        eventually(&format!("data for `{query}`"), || {
            let series = prometheus.query(query)?;
            ensure!(!series.is_empty(), "nothing");
            ensure!(
                series.iter().all(|one| one["value"][1] != "NaN"),
                "{series:?}"
            );
            Ok(())
        })?;
    }
    eventually("no alert while all is well", || {
        let up = prometheus.query("min(quaymaster_bus_up) == 1")?;
        let firing = prometheus.firing()?;
        ensure!(!up.is_empty() && firing.is_empty(), "{firing:?}");
        Ok(())
    })?;

    let alert = "QuaymasterBusDown".to_owned();
    host.lab.kill9(&["kafka"])?;
    host.docker().run_staying("while-away", &[])?;
    eventually("the alert for a dead bus", || {
        let firing = prometheus.firing()?;
        ensure!(firing.contains(&alert), "{firing:?}");
        Ok(())
    })?;
    host.lab.start(&["kafka"])?;
    eventually("the alert ends", || {
        let firing = prometheus.firing()?;
        ensure!(!firing.contains(&alert), "{firing:?}");
        Ok(())
    })?;
    Ok(())
}
