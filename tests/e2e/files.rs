//! A collector that has no open file left.

use anyhow::{Context as _, Result, ensure};

use crate::consume::Message;
use crate::fold::field;
use crate::host::{BusKind, Host};
use crate::lab::Lab;
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
    let before = resyncs(&host.converged("what runs")?)?;

    collector.limit_files(Some(NO_MORE))?;
    collector.resync()?;
    host.told("a resync without files", |messages| {
        ensure!(resyncs(messages)? > before, "it has not ended");
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

/// The newest resync that has ended.
fn resyncs(messages: &[Message]) -> Result<u64> {
    let mut newest = 0;
    for message in messages.iter().filter(|message| message.topic == "status") {
        let status = message.value.as_ref().context("a status without a value")?;
        let resync = &status["resync"];
        if field(resync, "state") == "end" {
            let number = resync["package_seq"].as_u64();
            newest = newest.max(number.context("no package_seq")?);
        }
    }
    Ok(newest)
}
