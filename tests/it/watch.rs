//! The watch of one endpoint, over a whole session with a fake runtime.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use quaymaster::collector::{Input, ObservationSender};
use quaymaster::procfs::ProcessTable;
use quaymaster::reconcile::{ListOutcome, Observation};
use quaymaster::runtime::watch::{Request, WatchContext, Watched, watch};
use quaymaster::runtime::{Endpoint, Options};
use serde_json::json;
use tempfile::tempdir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fake_cri::{self, FakeCri};
use crate::fake_docker::{FakeContainer, FakeDocker};
use crate::{ID, ID_B, PATIENCE, SANDBOX_ID};

/// Longest answer that is taken here: room for some rows, and for an event.
const BYTES_MAX: usize = 16 * 1024;

/// A watch, and what it tells.
struct Watch {
    watched: Watched,
    told: mpsc::Receiver<Input>,
    stop: CancellationToken,
    watching: JoinHandle<()>,
}

impl Watch {
    fn start(endpoint: Endpoint) -> Result<Self> {
        let (inputs, told) = mpsc::channel(1_000);
        let stop = CancellationToken::new();
        let context = WatchContext {
            observations: ObservationSender::new(inputs),
            options: Options {
                message_bytes_max: BYTES_MAX,
                ..Options::default()
            },
            processes: Arc::new(ProcessTable::open(Path::new("/proc"))?),
            stop: stop.clone(),
        };
        let (watched, watching) = watch(endpoint, context);
        let watching = tokio::spawn(watching);
        Ok(Self {
            watched,
            told,
            stop,
            watching,
        })
    }

    async fn next(&mut self) -> Result<Observation> {
        let next = tokio::time::timeout(PATIENCE, self.told.recv()).await;
        let next = next.context("nothing is told")?.context("it has ended")?;
        let Input::Observed(observation) = next else {
            anyhow::bail!("only observations are expected: {next:?}");
        };
        Ok(observation)
    }

    /// The outcome of the next list. Nothing else may be told before it.
    async fn list(&mut self) -> Result<ListOutcome> {
        let began = self.next().await?;
        anyhow::ensure!(matches!(began, Observation::ListBegan { .. }), "{began:?}");
        let done = self.next().await?;
        let Observation::ListDone { outcome, .. } = done else {
            anyhow::bail!("a list should be done: {done:?}");
        };
        Ok(outcome)
    }

    fn failed_lists(&self) -> u64 {
        self.watched.figures.failed_lists.load(Ordering::Relaxed)
    }

    fn error(&self) -> String {
        self.watched.error.borrow().clone()
    }

    /// The first list fails, an event is told all the same; what is listed later in a shorter list is taken.
    async fn outlives_a_long_list(
        &mut self,
        event: impl Fn() -> usize,
        shorten: impl FnOnce(),
    ) -> Result<()> {
        let up = self.next().await?;
        assert!(matches!(up, Observation::SourceUp { .. }), "{up:?}");
        let outcome = self.list().await?;
        assert!(matches!(outcome, ListOutcome::Failed), "{outcome:?}");
        assert_eq!(self.failed_lists(), 1);

        assert_eq!(event(), 1, "one has subscribed");
        let next = self.next().await?;
        assert!(matches!(next, Observation::Event { .. }), "{next:?}");
        let error = self.error();
        assert!(error.contains("too long"), "{error}");

        shorten();
        self.watched.requests.send(Request::List)?;
        let outcome = self.list().await?;
        let is_whole = matches!(&outcome, ListOutcome::Complete(rows) if rows.len() == 1);
        assert!(is_whole, "{outcome:?}");
        assert_eq!((self.failed_lists(), self.error()), (1, String::new()));
        assert_eq!(event(), 1, "it is the same session");
        let next = self.next().await?;
        assert!(matches!(next, Observation::Event { .. }), "{next:?}");
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.watching).await??;
        Ok(())
    }
}

#[tokio::test]
async fn a_list_of_docker_s_that_is_too_long_fails_alone_and_the_stream_goes_on() -> Result<()> {
    let folder = tempdir()?;
    let docker = FakeDocker::start(folder.path())?;
    docker.put(&FakeContainer::running(ID, "web", 1));
    let mut long = FakeContainer::running(ID_B, "long", 1);
    long.labels.insert("a".to_owned(), "x".repeat(BYTES_MAX));
    docker.put(&long);
    let mut watch = Watch::start(docker.endpoint())?;
    let event = || docker.push_event(ID, "pause", 1, &json!({}));
    watch
        .outlives_a_long_list(event, || docker.remove(ID_B))
        .await?;
    watch.end().await
}

#[tokio::test]
async fn a_list_of_cri_s_that_is_too_long_fails_alone_and_the_stream_goes_on() -> Result<()> {
    let folder = tempdir()?;
    let cri = FakeCri::start(folder.path())?;
    cri.put_container(fake_cri::running(ID, "web"), SANDBOX_ID, 1);
    let mut long = fake_cri::running(ID_B, "long");
    long.labels = vec![fake_cri::entry("a", &"x".repeat(BYTES_MAX))];
    cri.put_container(long, SANDBOX_ID, 1);
    let mut watch = Watch::start(cri.endpoint())?;
    let kind = quaymaster::runtime::cri::proto::ContainerEventType::ContainerStartedEvent;
    let event = || cri.push(fake_cri::event(ID, kind, 1));
    watch
        .outlives_a_long_list(event, || cri.remove(ID_B))
        .await?;
    watch.end().await
}
