//! `quaymaster whois`: whose a process, a PID namespace or a container is, from the live runtimes and the process
//! table. No daemon is needed.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::choose::choose;
use super::list::fields;
use super::local::{Here, told};
use super::{EXIT_FAILURE, Failure, written};
use crate::config::Overrides;
use crate::local::nsfs::{self, Namespace};
use crate::local::scan::{ProcessRow, look};
use crate::local::tenants::{How, Owner};
use crate::model::message::Member;
use crate::model::record::pns_text;
use crate::runtime::text;

/// The largest pid (`PID_MAX_LIMIT`, include/linux/threads.h). Namespaces' numbers begin far above it
/// (`PROC_DYNAMIC_FIRST`, fs/proc/generic.c).
const PID_MAX: u64 = 4_194_304;

/// The arguments of `quaymaster whois`.
#[derive(Args, Clone, Debug)]
pub struct WhoisArgs {
    /// Ask this runtime only, as in `docker=unix:///run/docker.sock`; may be given more than once
    #[arg(long, value_name = "KIND=URI")]
    pub endpoint: Vec<String>,
    /// Where the host's /proc is mounted
    #[arg(long, value_name = "DIR", env = "QUAYMASTER_PROCFS")]
    pub procfs: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub format: WhoisFormat,
    /// A pid, a PID namespace (`pid:[4026532448]`, or its number), a container's id, a beginning of it, or its name
    #[arg(value_name = "PID|PNS|ID|NAME")]
    pub wanted: String,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhoisFormat {
    /// For people.
    Text,
    /// For programs: one object.
    Json,
}

/// What was found.
struct Answer {
    process: Option<ProcessRow>,
    /// From the process's own to the host's.
    namespaces: Vec<Namespace>,
    host_pns_inode: u64,
    owner: Option<Owner>,
    members: Vec<Member>,
}

/// Prints whose something is.
///
/// Returns 0 when that is known, also where it is the host's own; 1 when there is no such thing, or several, or the
/// output cannot be written; 64, 69 and 77 as `list` does.
pub async fn run(
    args: &WhoisArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> u8 {
    let overrides = Overrides {
        endpoints: args.endpoint.clone(),
        procfs: args.procfs.clone(),
        ..Overrides::default()
    };
    let mut here = match Here::look(&overrides, err).await {
        Ok(here) => here,
        Err(code) => return code,
    };
    let answer = match find(&mut here, &args.wanted) {
        Ok(answer) => answer,
        Err(message) => return told(&Failure::new(EXIT_FAILURE, message), err),
    };
    let result = match args.format {
        WhoisFormat::Text => write_text(&answer, out),
        WhoisFormat::Json => serde_json::to_writer_pretty(&mut *out, &answer_json(&answer))
            .map_err(Into::into)
            .and_then(|()| writeln!(out)),
    };
    written(result.and_then(|()| out.flush()), err)
}

fn find(here: &mut Here, wanted: &str) -> Result<Answer, String> {
    let number: Option<u64> = wanted.parse().ok();
    let namespace = wanted
        .strip_prefix("pid:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .map_or_else(
            || number.filter(|number| *number > PID_MAX),
            |n| n.parse().ok(),
        );
    if let Some(inode) = namespace {
        let processes = here.scene.processes.iter();
        let inside = processes.filter(|row| row.pns_inode == Some(inode));
        let process = inside.min_by_key(|row| (row.ns_pid != Some(1), row.pid));
        let process = process.ok_or_else(|| {
            format!(
                "no process that can be seen lives in the PID namespace {}",
                pns_text(inode)
            )
        })?;
        return Ok(of_process(here, process.clone()));
    }
    let pid = number.and_then(|number| u32::try_from(number).ok());
    let process = pid.and_then(|pid| here.scene.process(pid)).cloned();
    if let Some(process) = process {
        let is_called = |name: &str| name == wanted;
        let mut found = here.gathered.found.iter();
        if let Some(twin) = found.find(|found| is_called(&found.container.name)) {
            return Err(format!(
                "`{wanted}` may mean any of these:\n  the process {} ({})\n  the container {}",
                process.pid,
                text::escaped(&process.comm),
                twin.container.id
            ));
        }
        return Ok(of_process(here, process));
    }
    of_container(here, wanted).map_err(|error| match pid {
        Some(pid) => format!("no process {pid} lives, and {error}"),
        None => error,
    })
}

fn of_process(here: &mut Here, process: ProcessRow) -> Answer {
    let table = Arc::clone(&here.table);
    let owner = here.scene.tenants.owner(&process, &look(&table));
    let pns_inode = owner.as_ref().map(|owner| owner.pns_inode);
    answer(here, Some(process), owner, pns_inode)
}

fn of_container(here: &Here, wanted: &str) -> Result<Answer, String> {
    let chosen = choose(&here.gathered.found, wanted, &|_| true)?;
    let container = &chosen.container;
    let pid = container.pid.filter(|_| container.state.is_live());
    let process = pid.and_then(|pid| here.scene.process(pid)).cloned();
    let pns_inode = process.as_ref().and_then(|process| process.pns_inode);
    let is_host = pns_inode == Some(here.table.host_pns_inode());
    let owner = Owner {
        container: Arc::new(container.clone()),
        how: if is_host { How::Cgroup } else { How::Namespace },
        pns_inode: pns_inode.unwrap_or_default(),
    };
    Ok(answer(here, process, Some(owner), pns_inode))
}

fn answer(
    here: &Here,
    process: Option<ProcessRow>,
    owner: Option<Owner>,
    pns_inode: Option<u64>,
) -> Answer {
    let host_pns_inode = here.table.host_pns_inode();
    let chain = process
        .as_ref()
        .map(|process| nsfs::chain(&here.table, process.pid));
    let members = pns_inode.filter(|inode| *inode != host_pns_inode);
    let members = members.map(|inode| here.scene.tenants.members(inode).cloned().collect());
    Answer {
        process,
        // A process that has just ended has none any more.
        namespaces: chain.and_then(Result::ok).unwrap_or_default(),
        host_pns_inode,
        owner,
        members: members.unwrap_or_default(),
    }
}

fn write_text(answer: &Answer, out: &mut dyn Write) -> std::io::Result<()> {
    let mut lines: Vec<(&str, String)> = Vec::new();
    match &answer.owner {
        Some(owner) => {
            let it = &owner.container;
            lines.push(("container", it.id.to_string()));
            lines.push(("name", it.name.clone()));
            lines.push(("kind", it.kind.as_str().to_owned()));
            lines.push(("state", it.state.as_str().to_owned()));
            lines.push(("image", it.image_name.clone()));
            lines.push((
                "runtime",
                format!("{} {}", it.runtime_name, it.runtime_version),
            ));
            lines.push(("pod", super::table::pod(it)));
        }
        None => lines.push(("container", why_none(answer).to_owned())),
    }
    if let Some(process) = &answer.process {
        let inside = process.ns_pid.filter(|pid| *pid != process.pid);
        let inside = inside
            .map(|pid| format!(", {pid} inside"))
            .unwrap_or_default();
        lines.push((
            "process",
            format!("{} ({}){inside}", process.pid, process.comm),
        ));
        lines.push(("program", process.exe.clone()));
    }
    for (index, namespace) in answer.namespaces.iter().enumerate() {
        let word = if index == 0 { "namespace" } else { "below" };
        lines.push((
            word,
            format!("{}{}", pns_text(namespace.inode), whose(answer, namespace)),
        ));
    }
    if answer.members.len() > 1 {
        for member in &answer.members {
            let text = format!(
                "{} {} (pid {})",
                member.container_id, member.container_name, member.pid
            );
            lines.push(("shared by", text));
        }
    }
    lines.retain(|(_, value)| !value.is_empty());
    for (key, value) in lines {
        writeln!(out, "{key:<10} {}", text::escaped(&value))?;
    }
    Ok(())
}

/// What is special about a namespace of the chain.
fn whose(answer: &Answer, namespace: &Namespace) -> &'static str {
    let is_owners = answer
        .owner
        .as_ref()
        .is_some_and(|owner| owner.pns_inode == namespace.inode);
    match (namespace.inode == answer.host_pns_inode, is_owners) {
        (true, _) => " (the host's own)",
        (false, true) => " (the container's)",
        (false, false) => "",
    }
}

fn why_none(answer: &Answer) -> &'static str {
    let own = answer
        .process
        .as_ref()
        .and_then(|process| process.pns_inode);
    match own {
        Some(inode) if inode == answer.host_pns_inode => "none: it is the host's own",
        Some(_) => "none: no runtime that was asked knows its namespace, or one above it",
        None => {
            "none: its namespace cannot be read (is it a zombie, or is CAP_SYS_PTRACE missing?)"
        }
    }
}

fn answer_json(answer: &Answer) -> Value {
    let process = answer.process.as_ref().map(|process| {
        json!({
            "pid": process.pid,
            "ns_pid": process.ns_pid,
            "ppid": process.ppid,
            "comm": process.comm,
            "exe": process.exe,
            "uid": process.uid,
            "started_at_ms": process.started_at_ms,
            "mnt_ns": process.mnt_ns,
        })
    });
    let namespaces: Vec<Value> = answer
        .namespaces
        .iter()
        .map(|namespace| {
            json!({
                "pns": pns_text(namespace.inode),
                "pns_inode": namespace.inode,
                "pns_id": namespace.id.map(|id| id.to_string()).unwrap_or_default(),
                "is_host": namespace.inode == answer.host_pns_inode,
            })
        })
        .collect();
    let members: Vec<Value> = answer
        .members
        .iter()
        .map(|member| {
            json!({
                "container_id": member.container_id.as_str(),
                "container_name": member.container_name,
                "kind": member.kind.as_str(),
                "pid": member.pid,
                "mnt_ns": member.mnt_ns,
                "cgroup": member.cgroup,
            })
        })
        .collect();
    let container = answer.owner.as_ref().map(|owner| {
        let pns = (owner.pns_inode != 0).then(|| pns_text(owner.pns_inode));
        Value::Object(fields(&owner.container, &pns.unwrap_or_default()))
    });
    json!({
        "container": container,
        "how": answer.owner.as_ref().map(|owner| owner.how.as_str()),
        "process": process,
        "namespaces": namespaces,
        "members": members,
    })
}
