//! The state: torn files, a full disk, and an outbox at its limit.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::brokers::order_while_living;
use crate::bus::Bus;
use crate::course::{Course, Setup, can_unshare};
use crate::lab::{Broker, fresh_topics, report};

/// Room of the small disk: the reserved file has 16 MiB of it.
const DISK: &str = "size=40m";
const STATE_FILE: &str = "state.redb";

/// Damages the state in one of five ways. `false` where there is none: the collector was killed before it had made one.
fn damage(course: &mut Course, kind: u64) -> anyhow::Result<bool> {
    let path = course.state_dir.join(STATE_FILE);
    let length = std::fs::metadata(&path).map_or(0, |about| about.len());
    if length == 0 {
        return Ok(false);
    }
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    match kind % 5 {
        0 => {
            course.count("state truncated");
            file.set_len(course.rng.below(length))?;
        }
        1 => {
            course.count("state emptied");
            file.set_len(0)?;
        }
        2 => {
            course.count("state's head overwritten");
            file.write_all_at(&[0xA5; 512], 0)?;
        }
        3 => {
            course.count("state overwritten with garbage");
            let from = course.rng.below(length);
            let garbage: Vec<u8> = (0..8_192).map(|_| course.rng.next() as u8).collect();
            file.write_all_at(&garbage, from)?;
        }
        _ => {
            course.count("state's bytes flipped");
            for _ in 0..64 {
                let at = course.rng.below(length);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ 0x40], at)?;
            }
        }
    }
    Ok(true)
}

/// Damages the state of a collector that was killed, and starts it again.
pub(crate) async fn tear_state(course: &mut Course, kind: u64) -> anyhow::Result<()> {
    course.kill_only().await?;
    if damage(course, kind)? {
        course.figures.torn_states += 1;
        // A line on stdout is acknowledged when it is written; a bus may not have answered once.
        if !matches!(course.bus, Bus::Stdout { .. }) {
            course.world.lose_state();
        }
    }
    course.daemon.spawn()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_state_is_set_aside_and_a_new_epoch_begins() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let mut course = Course::start(Setup::new("torn state", None)).await?;
    for kind in 0..10 {
        course.live(12).await?;
        tear_state(&mut course, kind).await?;
        course.live(4).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

/// A small file system of its own.
struct Disk {
    path: PathBuf,
    ballast: PathBuf,
}

impl Disk {
    /// `None` where nothing can be mounted, which is no error but in CI.
    fn mount(path: &Path) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(path)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "tmpfs"])
            .arg(path)
            .output()
            .context("failed to run mount")?;
        if mounted.status.success() {
            return Ok(Some(Self {
                path: path.to_owned(),
                ballast: path.join("ballast"),
            }));
        }
        let error = String::from_utf8_lossy(&mounted.stderr).into_owned();
        if std::env::var("CI").is_ok_and(|value| value == "true") {
            bail!("no tmpfs can be mounted: {error}");
        }
        report(&format!("SKIPPED, as no tmpfs can be mounted: {error}"));
        Ok(None)
    }

    /// Takes all room that there is.
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.ballast)?;
        for size in [64 * 1024, 4_096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(&self.ballast)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived_and_what_was_missed_is_found() -> anyhow::Result<()> {
    if !can_unshare()? {
        return Ok(());
    }
    let path = PathBuf::from(format!("/tmp/qfd{}", std::process::id()));
    let Some(disk) = Disk::mount(&path)? else {
        return Ok(());
    };
    let mut setup = Setup::new("full disk", None);
    setup.state_dir = Some(path.join("state"));
    let mut course = Course::start(setup).await?;
    for round in 0..3 {
        course.live(15).await?;
        course.count("state disk full");
        course.disturb();
        disk.fill()?;
        course.world.burst(1_000);
        course.live(30).await?;
        // The reserved file was given up for the room that it takes: that room is taken too.
        disk.fill()?;
        course.world.burst(1_000);
        course.live(30).await?;
        if round == 1 {
            course.kill_only().await?;
            disk.free()?;
            course.daemon.spawn()?;
        } else {
            disk.free()?;
        }
        course.live(5).await?;
        course.converge().await?;
    }
    let failures = course.daemon.log_lines("the state cannot be written").len();
    anyhow::ensure!(failures > 0, "the disk was never full for the collector");
    course.finish()?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_tells_its_gap_and_a_snapshot_follows() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let prefix = fresh_topics().prefix.replace('.', "_");
    let bus = Bus::nats(&broker.servers[0], &prefix);
    let mut setup = Setup::new("full outbox", Some(bus));
    setup.arguments.push("--outbox-max-bytes=1MiB".to_owned());
    let mut course = Course::start(setup).await?;
    for round in 0..3 {
        course.live(15).await?;
        course.converge().await?;
        course.count("outbox at its limit");
        order_while_living(&mut course, &broker, "stop", 5).await?;
        course.disturb();
        course.world.burst(3_000);
        course.live(10).await?;
        if round == 1 {
            course.kill().await?;
            course.live(5).await?;
        }
        course.world.burst(3_000);
        course.live(10).await?;
        order_while_living(&mut course, &broker, "start", 5).await?;
        course.until("a gap", |oracle| oracle.gaps > round).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}
