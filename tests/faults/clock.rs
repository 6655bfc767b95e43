//! A host whose clock steps by an hour, forth and back, as one does that finds its time server late.
//!
//! The collector sees the step by libfaketime, which reads its offset from a file that the test changes; what the
//! kernel counts since boot goes on. The runtimes and the truth are on the same host: their times step with it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use crate::course::{Course, Setup, can_unshare};
use crate::lab::report;
use crate::life::step_clock;

/// How far, in seconds.
const STEP_S: i64 = 3_600;
/// Until the collector's clock is the one of the file: the library looks at it when more than a second has passed.
const REREAD: Duration = Duration::from_millis(2_200);

/// Where Debian's libfaketime is; `None` where it is not, which is no error but in CI.
fn libfaketime() -> anyhow::Result<Option<PathBuf>> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        if std::env::var("CI").is_ok_and(|value| value == "true") {
            bail!("no libfaketime: `lab install faults` brings it");
        }
        report("SKIPPED, as there is no libfaketime");
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_by_an_hour_leaves_the_truth() -> anyhow::Result<()> {
    let Some(library) = libfaketime()? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("offset");
    let set = |offset_s: i64| -> anyhow::Result<()> {
        let next = file.with_extension("next");
        std::fs::write(&next, format!("{offset_s:+}s\n"))?;
        Ok(std::fs::rename(&next, &file)?)
    };
    set(0)?;
    let mut setup = Setup::new("clock", None);
    setup.environment = vec![
        ("LD_PRELOAD", library.into_os_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.clone().into_os_string()),
        // It is not made for threads: where each call reads the file, one now and then meets another that is at it.
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let _right_again = RightAgain;
    let mut course = Course::start(setup).await?;
    for (fault, offset_s) in [
        ("clock stepped forth by an hour", STEP_S),
        ("clock stepped back by an hour", 0),
        ("clock stepped back by an hour", -STEP_S),
        ("clock stepped forth by an hour", 0),
    ] {
        course.live(20).await?;
        course.count(fault);
        set(offset_s)?;
        tokio::time::sleep(REREAD).await;
        course.world.step_clock(offset_s);
        course.live(20).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

/// Other courses of this process have the machine's clock, however this one ends.
struct RightAgain;

impl Drop for RightAgain {
    fn drop(&mut self) {
        step_clock(0);
    }
}
