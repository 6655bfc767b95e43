//! `quaymaster ports`: the listening sockets of all network namespaces, each with its process and container; or these
//! as messages of data type 5051.

use std::io::Write;
use std::sync::Arc;

use super::list::Format;
use super::local::{Here, SnapshotArgs, told};
use super::table::{self, cell, short_id};
use super::{EXIT_FAILURE, Failure, written};
use crate::local::ports::{PortRow, listening};
use crate::local::scan::{ProcessRow, look};
use crate::model::{Container, Topic};

/// Prints all listening sockets to `out`, or sends them. Returns what [`super::processes::run`] returns.
pub async fn run(
    args: &SnapshotArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> u8 {
    let mut here = match Here::look(&args.overrides, err).await {
        Ok(here) => here,
        Err(code) => return code,
    };
    let table = Arc::clone(&here.table);
    let processes = std::mem::take(&mut here.scene.processes);
    let looked = tokio::task::spawn_blocking(move || (listening(&table, &processes), processes));
    let (ports, processes) = match looked.await {
        Ok(looked) => looked,
        Err(error) => return told(&Failure::new(EXIT_FAILURE, error.to_string()), err),
    };
    here.scene.processes = processes;
    let owned = owned(&mut here, &ports);
    let rows = ports
        .iter()
        .zip(&owned)
        .map(|(port, (process, container))| (port, process.as_ref(), container.as_deref()));
    if !args.publish && args.format == Format::Table {
        let head = [
            "PROTO",
            "ADDRESS",
            "PORT",
            "PID",
            "UID",
            "NET NS",
            "CONTAINER ID",
            "CONTAINER",
            "POD",
            "PROGRAM",
        ];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(rows.map(|(port, process, container)| cells(port, process, container)));
        return written(table::write(&lines, out).and_then(|()| out.flush()), err);
    }
    let snapshot = match here.snapshot() {
        Ok(snapshot) => snapshot,
        Err(failure) => return told(&failure, err),
    };
    if args.publish {
        let messages = rows
            .map(|(port, process, container)| snapshot.port_message(port, process, container))
            .collect();
        return here.publish(Topic::Ports, messages, err).await;
    }
    let mut lines = rows.map(|(port, process, container)| snapshot.port(port, process, container));
    let result = lines.try_for_each(|line| {
        out.write_all(&line)?;
        out.write_all(b"\n")
    });
    written(result.and_then(|()| out.flush()), err)
}

/// The process and the container of each socket.
fn owned(here: &mut Here, ports: &[PortRow]) -> Vec<(Option<ProcessRow>, Option<Arc<Container>>)> {
    let table = Arc::clone(&here.table);
    let look = look(&table);
    ports
        .iter()
        .map(|port| {
            let process = port.pid.and_then(|pid| here.scene.process(pid)).cloned();
            let owner = process
                .as_ref()
                .and_then(|process| here.scene.tenants.owner(process, &look));
            (process, owner.map(|owner| owner.container))
        })
        .collect()
}

fn cells(
    row: &PortRow,
    process: Option<&ProcessRow>,
    container: Option<&Container>,
) -> [String; 10] {
    [
        row.protocol.as_str().to_owned(),
        row.address.to_string(),
        row.port.to_string(),
        row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        row.uid.to_string(),
        row.net_ns.to_string(),
        container
            .map(|it| short_id(it.id.as_str()))
            .unwrap_or_default(),
        container.map(|it| cell(&it.name)).unwrap_or_default(),
        container
            .map(|it| cell(&table::pod(it)))
            .unwrap_or_default(),
        process
            .map(|process| cell(&process.exe))
            .unwrap_or_default(),
    ]
}
