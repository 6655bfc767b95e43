//! Integration tests against fakes that speak the real protocols over unix sockets.

mod fake_cri;
mod fake_docker;

mod binary;
mod cli;
mod connect;
mod cri;
mod discover;
mod docker;
mod http;
mod local;
mod privileges;
mod schema;
mod top;
mod watch;
mod watchdog;

use std::time::Duration;

use quaymaster::model::{Container, ContainerId, ContainerKind, RuntimeEvent};
use quaymaster::runtime::{EventStream, Inspection, Options, RuntimeClient, RuntimeError};

/// Ids as runtimes make them.
const ID: &str = "a4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab";
const ID_B: &str = "b4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab";
const SANDBOX_ID: &str = "5b00000000000000000000000000000000000000000000000000000000000005";

/// Longest that a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Options of a test that wants a time limit to pass.
fn hasty() -> Options {
    Options {
        connect_timeout: Duration::from_millis(150),
        version_timeout: Duration::from_millis(150),
        request_timeout: Duration::from_millis(150),
        ..Options::default()
    }
}

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).expect("the test's id is one")
}

async fn found(
    client: &dyn RuntimeClient,
    id_text: &str,
    kind: ContainerKind,
) -> anyhow::Result<Container> {
    match client.inspect(&id(id_text), kind).await? {
        Inspection::Found(container) => Ok(*container),
        Inspection::Gone => anyhow::bail!("{id_text} is gone"),
    }
}

async fn next_event(events: &mut EventStream) -> anyhow::Result<RuntimeEvent> {
    match next_item(events).await? {
        Some(item) => Ok(item?),
        None => anyhow::bail!("the stream has ended"),
    }
}

async fn next_item(
    events: &mut EventStream,
) -> anyhow::Result<Option<Result<RuntimeEvent, RuntimeError>>> {
    use futures::StreamExt as _;
    Ok(tokio::time::timeout(PATIENCE, events.next()).await?)
}

/// Runs a future as a user who may connect to nothing: root may to anything. The kernel keeps users by thread, so
/// a thread of its own becomes someone else.
fn as_nobody<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Runtime) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let thread = std::thread::spawn(move || -> anyhow::Result<T> {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(work(runtime))
    });
    thread.join().expect("the thread does not panic")
}

/// The error of a result that must be one.
fn error_of<T>(result: Result<T, RuntimeError>) -> RuntimeError {
    match result {
        Ok(_) => unreachable!("the runtime should have refused"),
        Err(error) => error,
    }
}
