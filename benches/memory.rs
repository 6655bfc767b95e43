//! The memory and the idle CPU of the real binary beside real containers.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::daemon::{cpu_seconds, endpoints, runtime_pids};
use crate::recovery::status_mb;

const SETTLE: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(30);

pub(crate) fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_quaymaster"));
    command
        .args([
            "run",
            "--host-id",
            "bench-memory",
            "--log",
            "warn",
            "--state-dir",
        ])
        .arg(directory.path())
        .stdout(Stdio::null());
    let mut count = 0;
    for endpoint in endpoints()? {
        command
            .arg("--endpoint")
            .arg(format!("{}={}", endpoint.runtime, endpoint.uri()));
        count += count_of(&endpoint)?;
    }
    let mut child = command.spawn()?;
    std::thread::sleep(SETTLE);
    let resident = status_mb(child.id(), "VmRSS:")?;
    let before = cpu_seconds(&[child.id()])?;
    let runtimes_before = cpu_seconds(&runtime_pids()?)?;
    std::thread::sleep(IDLE);
    let idle = cpu_seconds(&[child.id()])? - before;
    let runtimes = cpu_seconds(&runtime_pids()?)? - runtimes_before;
    let peak = status_mb(child.id(), "VmHWM:");
    child.kill()?;
    child.wait()?;
    println!("== memory and idle CPU with {count} real containers");
    let peak = peak?;
    println!(
        "resident: {resident:.1} MB, at its peak {peak:.1} MB (goal 25 MB for 300, 40 MB for 1,000)"
    );
    println!(
        "idle CPU: {:.2} % of a core (goal 0.3 %); the runtimes' meanwhile: {:.2} %",
        idle / IDLE.as_secs_f64() * 100.0,
        runtimes / IDLE.as_secs_f64() * 100.0
    );
    Ok(())
}

fn count_of(endpoint: &quaymaster::runtime::Endpoint) -> anyhow::Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = quaymaster::runtime::connect(endpoint).await?;
        Ok(client.list().await?.rows.len())
    })
}
