//! The host is safe: what a collector costs the start of a container, alive, with nowhere to go, and hung.
//!
//! Nothing is timed here but by limits that only a start that is held passes; the figures are printed, and those of a
//! quiet machine stand in docs/guarantees.md.

use anyhow::{Result, ensure};

use crate::collector::Setup;
use crate::host::{BusKind, Host};
use crate::world::Times;

/// Lives whose times are taken.
const LIVES: usize = 10;
/// Most lives until a collector that is frozen holds one back: an event queue of 100 in containerd, and what the
/// connection buffers.
const LIVES_UNTIL_HELD_MAX: usize = 120;
/// Labels of a pod's container, in bytes each: with them a few lives fill an outbox.
const LABEL_BYTES: usize = 3_900;

#[test]
fn starts_go_on_beside_a_collector_that_has_nowhere_to_go_and_after_one_that_hung() -> Result<()> {
    let Some(mut host) = Host::usual(BusKind::Nats)? else {
        return Ok(());
    };
    let args = ["--outbox-max-bytes", "1MiB"];
    host.setup = std::mem::replace(&mut host.setup, Setup::new(&host.lab, "stdout:", &[]))
        .with(&args)
        .expecting(&["the outbox is full"]);
    let pod = host.cri().pod("pod", &[])?;
    let alone = host.cri().times(&pod, "alone", LIVES, &[])?;

    let collector = host.setup.start()?;
    host.converged("the start")?;
    let beside = host.cri().times(&pod, "beside", LIVES, &[])?;

    host.lab.stop(&["nats"])?;
    let value = "x".repeat(LABEL_BYTES);
    let labels: Vec<_> = (0..15).map(|n| format!("label{n}={value}")).collect();
    let mut full = Times::default();
    while !collector.log()?.contains("the outbox is full") {
        ensure!(full.count() < LIVES * 60, "the outbox does not fill");
        let name = format!("filling-{}", full.count());
        full.add(host.cri().times(&pod, &name, LIVES, &labels)?);
    }
    let at_limit = host.cri().times(&pod, "full", LIVES, &labels)?;
    for (times, what) in [
        (&alone, "alone"),
        (&beside, "live"),
        (&full, "bus away"),
        (&at_limit, "at its limit"),
    ] {
        ensure!(!times.is_held, "{what}: a start was held");
    }

    host.lab.start(&["nats"])?;
    collector.freeze()?;
    let frozen = host
        .cri()
        .times(&pod, "frozen", LIVES_UNTIL_HELD_MAX, &[])?;
    // What systemd does when WATCHDOG=1 does not come.
    collector.kill()?;
    let after = host.cri().times(&pod, "after", LIVES, &[])?;
    ensure!(
        !after.is_held,
        "a start is held by a collector that is dead"
    );
    let text = format!(
        "create and start of a CRI container, p50 and max: alone {alone}; beside a collector {beside}; its bus away \
         {full}; its outbox at its limit {at_limit}; frozen {frozen}; after its SIGKILL {after}"
    );
    crate::lab::tell(&text);
    Ok(())
}
