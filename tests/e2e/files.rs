//! A collector that has no open file left.

use anyhow::{Context as _, Result, ensure};

use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::story::newest_resync;
use crate::wait::eventually;
use crate::world::Cri;

/// Containers beside their sandbox.
const CONTAINERS: usize = 3;
/// Below every number that is free: what is open stays so, and nothing more can be.
const NO_MORE: u64 = 3;

#[test]
fn a_container_whose_process_cannot_be_read_for_want_of_files_keeps_its_mapping() -> Result<()> {
    let Some(lab) = Lab::up(&["containerd2"])? else {
        return Ok(());
    };
    // One connection for everything; Docker's would have to be made anew, and then is only away.
    let cri = Cri::new(&lab, "LAB_CRI_SOCKET")?;
    let host = Host::of(lab, Vec::new(), vec![cri], BusKind::Stdout)?;
    let pod = host.cri().pod("pod", &[])?;
    for number in 0..CONTAINERS {
        host.cri().run_staying(&pod, &format!("side-{number}"))?;
    }
    let collector = host.setup.start()?;
    host.converged("what runs")?;
    let before = host.told("the first resync's end", newest_resync)?;

    collector.limit_files(Some(NO_MORE))?;
    collector.resync()?;
    host.told("a resync without files", |messages| {
        ensure!(newest_resync(messages)? > before, "it has not ended");
        Ok(())
    })?;
    eventually("the want is told", || {
        let log = collector.log()?;
        ensure!(log.contains("a process cannot be read"), "{log}");
        Ok(())
    })?;
    collector.limit_files(None)?;

    let messages = host.converged("with files again")?;
    collector.stop()?;
    for message in messages.iter().filter(|message| message.topic == "pns") {
        let mapping = message.value.as_ref();
        let mapping = mapping.context("a tombstone for what runs")?;
        ensure!(mapping["valid_to_ms"].is_null(), "it runs: {mapping}");
    }
    Ok(())
}
