//! `quaymaster list`: all containers of all runtimes, as they are now.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::gather::gather;
use super::table::{self, cell, short_id};
use super::written;
use crate::model::Container;
use crate::runtime::{Endpoint, Options};

/// The arguments of `quaymaster list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Ask this runtime only, as in `docker=unix:///run/docker.sock` or `cri=unix:///run/crio/crio.sock`; may be
    /// given more than once
    #[arg(long, value_name = "KIND=URI")]
    pub endpoint: Vec<Endpoint>,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

/// How the list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: one line a container.
    Table,
    /// For programs: an array of objects with the record's fields.
    Json,
}

/// Prints all containers to `out`, and one line to `err` for each runtime or container that could not be asked.
/// `pns_of` tells the namespace link (`pid:[4026532448]`) of a process on this host.
///
/// Returns 0 when at least one runtime was listed, 69 when none answers, 77 when we may not connect to any, 1
/// when the output cannot be written.
pub async fn run(
    args: &ListArgs,
    pns_of: &(dyn Fn(u32) -> Option<String> + Send + Sync),
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> u8 {
    let gathered = gather(&args.endpoint, &Options::default()).await;
    for problem in &gathered.problems {
        // When even stderr is closed there is nobody left to tell.
        let _ = writeln!(err, "quaymaster: {problem}");
    }
    if let Some(code) = gathered.exit_code_if_unanswered() {
        return code;
    }
    let rows: Vec<(&Container, String)> = gathered
        .found
        .iter()
        .map(|found| {
            let pns = found.container.pid.and_then(pns_of).unwrap_or_default();
            (&found.container, pns)
        })
        .collect();
    let result = match args.format {
        Format::Table => write_table(&rows, out),
        Format::Json => write_json(&rows, out),
    };
    written(result.and_then(|()| out.flush()), err)
}

fn write_json(rows: &[(&Container, String)], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|(container, pns)| Value::Object(fields(container, pns)))
        .collect();
    serde_json::to_writer_pretty(&mut *out, &rows)?;
    writeln!(out)
}

/// The fields of the record that a runtime alone tells; all values are text, an unknown one is `""`.
pub(super) fn fields(container: &Container, pns: &str) -> Map<String, Value> {
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let ms = |ns: Option<u64>| number(ns.map(|ns| ns / 1_000_000));
    let flag = |value: Option<bool>| value.map(|value| value.to_string()).unwrap_or_default();
    let pns_inode = pns
        .strip_prefix("pid:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or_default();
    let seconds = container.created_at_ns / 1_000_000_000;
    let created = (seconds > 0).then_some(seconds);
    let pod = container.pod.clone().unwrap_or_default();
    let labels = serde_json::to_string(&container.labels).unwrap_or_default();
    [
        ("id", container.id.to_string()),
        ("name", container.name.clone()),
        ("state", container.state.as_str().to_owned()),
        ("image_id", container.image_id.clone()),
        ("image_name", container.image_name.clone()),
        ("pid", number(container.pid.map(u64::from))),
        ("pns", pns.to_owned()),
        ("pns_inode", pns_inode.to_owned()),
        ("runtime", container.runtime.as_str().to_owned()),
        ("create_time", number(created)),
        ("kind", container.kind.as_str().to_owned()),
        ("runtime_name", container.runtime_name.to_string()),
        ("runtime_version", container.runtime_version.to_string()),
        ("pod_name", pod.name),
        ("pod_namespace", pod.namespace),
        ("pod_uid", pod.uid),
        ("pod_sandbox_id", pod.sandbox_id),
        ("image_digest", container.image_digest.clone()),
        ("started_at_ms", ms(container.started_at_ns)),
        ("finished_at_ms", ms(container.finished_at_ns)),
        (
            "exit_code",
            container
                .exit_code
                .map(|code| code.to_string())
                .unwrap_or_default(),
        ),
        ("oom_killed", flag(container.oom_killed)),
        (
            "restart_count",
            number(container.restart_count.map(u64::from)),
        ),
        ("pid_mode", container.pid_mode.clone()),
        ("privileged", flag(container.privileged)),
        ("labels", labels),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), Value::String(value)))
    .collect()
}

fn write_table(rows: &[(&Container, String)], out: &mut dyn Write) -> io::Result<()> {
    let head = [
        "CONTAINER ID",
        "NAME",
        "STATE",
        "RUNTIME",
        "KIND",
        "PID",
        "PNS",
        "POD",
        "IMAGE",
    ]
    .map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|(container, pns)| cells(container, pns)));
    table::write(&lines, out)
}

fn cells(container: &Container, pns: &str) -> [String; 9] {
    let image = if container.image_name.is_empty() {
        &container.image_id
    } else {
        &container.image_name
    };
    [
        short_id(container.id.as_str()),
        cell(&container.name),
        container.state.as_str().to_owned(),
        cell(&container.runtime_name),
        container.kind.as_str().to_owned(),
        container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        cell(pns),
        cell(&table::pod(container)),
        cell(image),
    ]
}
