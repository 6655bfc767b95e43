//! `quaymaster processes`: the host's processes, each with its container; or these as messages of data type 5050.

use std::io::Write;

use super::list::Format;
use super::local::{Here, SnapshotArgs, told};
use super::table::{self, cell, short_id};
use super::written;
use crate::local::scan::{ProcessRow, look};
use crate::model::record::pns_text;
use crate::model::{Container, Topic};

/// Prints all processes to `out`, or sends them.
///
/// Returns 0 when that was done, 1 when the output cannot be written or the bus does not have all of them, 64 for a
/// setting that is wrong, 69 when no runtime or bus answers, 77 when we may not connect to any runtime.
pub async fn run(
    args: &SnapshotArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> u8 {
    let here = Here::look(&args.overrides, err).await;
    let mut here = match here {
        Ok(here) => here,
        Err(code) => return code,
    };
    let look = look(&here.table);
    let rows = std::mem::take(&mut here.scene.processes);
    let tenants = &mut here.scene.tenants;
    let owners: Vec<_> = rows.iter().map(|row| tenants.owner(row, &look)).collect();
    drop(look);
    let rows = rows.iter().zip(
        owners
            .iter()
            .map(|owner| owner.as_ref().map(|owner| &*owner.container)),
    );
    if !args.publish && args.format == Format::Table {
        let head = [
            "PID",
            "PPID",
            "UID",
            "STATE",
            "PNS",
            "CONTAINER ID",
            "CONTAINER",
            "POD",
            "COMMAND",
        ];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(rows.map(|(row, container)| cells(row, container)));
        return written(table::write(&lines, out).and_then(|()| out.flush()), err);
    }
    let snapshot = match here.snapshot() {
        Ok(snapshot) => snapshot,
        Err(failure) => return told(&failure, err),
    };
    if args.publish {
        let messages = rows.map(|(row, container)| snapshot.process_message(row, container));
        let messages = messages.collect();
        return here.publish(Topic::Processes, messages, err).await;
    }
    let mut lines = rows.map(|(row, container)| snapshot.process(row, container));
    let result = lines.try_for_each(|line| {
        out.write_all(&line)?;
        out.write_all(b"\n")
    });
    written(result.and_then(|()| out.flush()), err)
}

fn cells(row: &ProcessRow, container: Option<&Container>) -> [String; 9] {
    // As `ps` does for what has no arguments.
    let command = if row.cmdline.is_empty() {
        format!("[{}]", row.comm)
    } else {
        row.cmdline.clone()
    };
    [
        row.pid.to_string(),
        row.ppid.to_string(),
        row.uid.map(|uid| uid.to_string()).unwrap_or_default(),
        row.state.to_string(),
        row.pns_inode.map(pns_text).unwrap_or_default(),
        container
            .map(|it| short_id(it.id.as_str()))
            .unwrap_or_default(),
        container.map(|it| cell(&it.name)).unwrap_or_default(),
        container
            .map(|it| cell(&table::pod(it)))
            .unwrap_or_default(),
        cell(&command),
    ]
}
