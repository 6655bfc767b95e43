//! What was decided, on its way to the disk. Nothing of it is acted on before it is durable, and what is decided
//! meanwhile waits for its own turn: the reconciler may be ahead of the outbox by one group, and nobody sees it.

use std::sync::Arc;

use super::{Collector, gap_renderer};
use crate::model::SourceId;
use crate::outbox::{self, Committed, Outbox, OutboxError, Prepared};
use crate::procfs::FirstLook;
use crate::reconcile::{FdToken, NestedQuery, RowKey};
use crate::runtime::watch::{Request, now_ms};
use crate::sink::{OwnKey, Report};
use crate::wire::Renderer;

/// From how many messages on a group is committed by a thread of its own: two milliseconds of work, against some ten
/// microseconds for the thread. Storms and cold starts come to so many in one commit, and the resync of so many containers.
const LARGE_MIN: usize = 256;

/// One group: what is committed of it, and what follows when it is durable.
pub(super) struct Decided {
    pub(super) now_ms: u64,
    /// `None` where nothing is to be committed, or it was already.
    prepared: Option<Result<Prepared, OutboxError>>,
    messages: usize,
    /// The last message's row.
    pub(super) last_row: Option<u64>,
    /// The bus's reports in it: what the bus has it says once, and that outlives a commit that fails.
    pub(super) reports: Vec<Report>,
    /// The numbers of the namespaces whose rows are in it.
    pub(super) saved: Vec<u64>,
    pub(super) read_back: Option<Vec<OwnKey>>,
    pub(super) requests: Vec<(SourceId, Request)>,
    pub(super) query: Option<Box<NestedQuery>>,
    pub(super) released: Vec<FdToken>,
}

impl Decided {
    /// Nothing to commit, and nothing that follows.
    pub(super) fn nothing(now_ms: u64) -> Self {
        Self {
            now_ms,
            prepared: None,
            messages: 0,
            last_row: None,
            reports: Vec::new(),
            saved: Vec::new(),
            read_back: None,
            requests: Vec::new(),
            query: None,
            released: Vec::new(),
        }
    }

    pub(super) fn is_large(&self) -> bool {
        self.messages >= LARGE_MIN
    }

    /// Commits it, once.
    pub(super) fn commit(
        &mut self,
        outbox: &mut Outbox,
        renderer: &Renderer,
    ) -> Result<Committed, OutboxError> {
        let gap = gap_renderer(renderer, self.now_ms);
        match self.prepared.take() {
            Some(prepared) => outbox.commit_prepared(prepared?, self.now_ms, &gap),
            None => Ok(Committed::default()),
        }
    }

    /// Commits it, once, while something else is done.
    pub(super) fn commit_while<T>(
        &mut self,
        outbox: &mut Outbox,
        renderer: &Renderer,
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<Committed, OutboxError>, T) {
        let gap = gap_renderer(renderer, self.now_ms);
        match self.prepared.take() {
            Some(Ok(prepared)) => outbox.commit_while(prepared, self.now_ms, &gap, meanwhile),
            Some(Err(error)) => (Err(error), meanwhile()),
            None => (Ok(Committed::default()), meanwhile()),
        }
    }
}

impl Collector {
    /// Takes what was decided so far out of the collector's hands, rendered and ready to be committed.
    pub(super) fn hand_over(&mut self, outbox: &mut Outbox) -> Decided {
        let now = now_ms();
        self.is_ahead = false;
        if let Some(bus) = self.bus.take() {
            outbox.set_bus(bus);
        }
        self.bury_what_no_longer_holds();
        let mut batch = std::mem::take(&mut self.batch);
        let messages = std::mem::take(&mut self.messages).into_iter();
        let messages = messages.map(|message| (outbox.take_row(), message));
        batch.messages = outbox::render(messages.collect(), &self.parts.renderer, now);
        let namespaces = RowKey::Namespace(0)..=RowKey::Namespace(u64::MAX);
        let saved = batch.rows.range(namespaces).filter_map(|key| match key {
            RowKey::Namespace(inode) => Some(*inode),
            RowKey::Container(_) | RowKey::Source(_) => None,
        });
        let saved = saved.collect();
        // Without a state nothing may count as committed. Where nothing came but the clock's tick, what a crash would send
        // twice is a second's worth. An event that has nothing to commit yet is not to wait for the disk: its inspect is
        // asked for now.
        let has_ticked = std::mem::take(&mut self.has_ticked);
        let is_due =
            !batch.is_empty() || (has_ticked && outbox.has_unsynced_acks()) || self.has_no_state;
        if self.reconciler.opened() {
            self.first_look = None;
        }
        let sketches = std::mem::take(&mut self.sketches).into_iter();
        let sketches = sketches.map(|(source, wanted)| {
            let begin = || Arc::new(FirstLook::begin(&self.parts.processes));
            let look = Arc::clone(self.first_look.get_or_insert_with(begin));
            (source, Request::Sketch { wanted, look })
        });
        let mut requests = std::mem::take(&mut self.requests);
        requests.extend(sketches);
        Decided {
            messages: batch.messages.len(),
            last_row: batch.messages.last().map(|owed| owed.outgoing.row),
            reports: batch.reports.clone(),
            saved,
            read_back: self.read_back.take(),
            requests,
            query: self.query.take(),
            released: std::mem::take(&mut self.released),
            prepared: is_due.then(|| Prepared::new(batch, &self.reconciler)),
            now_ms: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::{Notify, mpsc, watch};

    use super::super::{Parts, Snapshot};
    use super::*;
    use crate::fdstore::FdStore;
    use crate::model::message::RuntimeSource;
    use crate::model::{Container, ContainerId, ContainerKind, ListRow, RuntimeType, State, Topic};
    use crate::outbox::{Options, Owner};
    use crate::procfs::ProcessTable;
    use crate::reconcile::{
        Identity, InspectOutcome, ListOutcome, Observation, Phase, Process, ProcessReading,
        Settings,
    };
    use crate::sink::{Outcome, Outgoing, Position};
    use crate::wire::{Host, Refresh};

    const INODE: u64 = 4_026_532_448;

    /// A collector with one container, whose namespace is mapped, and what it has told of itself.
    struct Fixture {
        collector: Collector,
        outbox: Outbox,
        renderer: Renderer,
        statuses: mpsc::Receiver<Outgoing>,
        _folder: tempfile::TempDir,
    }

    fn source() -> SourceId {
        SourceId::new("docker=unix:///run/docker.sock")
    }

    fn running() -> Container {
        Container {
            name: "web".to_owned(),
            runtime_name: "docker".into(),
            runtime_version: "1".into(),
            state: State::Running,
            image_name: "busybox".to_owned(),
            pid: Some(7),
            created_at_ns: 1,
            started_at_ns: Some(2),
            ..Container::bare(
                ContainerId::parse("web").expect("letters are an id"),
                ContainerKind::Container,
                RuntimeType::Docker,
            )
        }
    }

    fn alive() -> ProcessReading {
        ProcessReading::Alive(Box::new(Process {
            pid: 7,
            start_ticks: 70,
            started_at_ms: 1,
            pns_inode: INODE,
            pns_id: None,
            mnt_ns: 1,
            cgroup: "/".into(),
            is_init: true,
            fd: None,
        }))
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder can be made");
            let owner = Owner {
                host_id: "host".into(),
                boot_id: "boot".into(),
                new_epoch: "epoch".to_owned(),
            };
            let opened = Outbox::open(folder.path(), &owner, Options::default());
            let opened = opened.expect("the outbox opens");
            let host = Host {
                host_id: "host".into(),
                host_name: "name".into(),
                boot_id: "boot".into(),
                epoch: "epoch".into(),
            };
            let refresh = Refresh {
                records_ms: 1,
                pns_ms: 1,
                status_ms: 1,
            };
            let renderer = Renderer::new(host, refresh);
            let processes = ProcessTable::open(Path::new("/proc"));
            let (status, statuses) = mpsc::channel(64);
            let parts = Parts {
                outbox: opened.outbox,
                restored: opened.restored,
                owed: opened.owed,
                last_alive_ms: opened.last_alive_ms,
                identity: Identity {
                    boot_id: "boot".into(),
                    host_pns_inode: 1,
                    previous_epoch: None,
                },
                settings: Settings::default(),
                renderer: renderer.clone(),
                processes: Arc::new(processes.expect("a process table is mounted")),
                first_look: None,
                fd_store: FdStore::default(),
                committed: Arc::new(Notify::new()),
                status,
                snapshot: watch::channel(Snapshot::default()).0,
                nested: mpsc::channel(1).0,
            };
            let (collector, outbox) = Collector::new(parts);
            let mut fixture = Self {
                collector,
                outbox,
                renderer,
                statuses,
                _folder: folder,
            };
            fixture.map_a_container();
            fixture
        }

        fn map_a_container(&mut self) {
            let (source, container) = (source(), running());
            let id = container.id.clone();
            let runtime = RuntimeSource {
                runtime: RuntimeType::Docker,
                name: "docker".into(),
                version: "1".into(),
                endpoint: "unix:///run/docker.sock".into(),
                uid: 0,
            };
            let row = ListRow {
                id: id.clone(),
                kind: container.kind,
                state: container.state,
                fingerprint: 1,
            };
            for observation in [
                Observation::SourceUp {
                    source: source.clone(),
                    runtime,
                    streaming: true,
                    is_listing: false,
                },
                Observation::ListBegan {
                    source: source.clone(),
                },
                Observation::ListDone {
                    source: source.clone(),
                    outcome: ListOutcome::Complete(vec![row]),
                },
                Observation::Inspected {
                    source,
                    id,
                    outcome: InspectOutcome::Found {
                        container: Box::new(container),
                        process: Some(alive()),
                    },
                },
            ] {
                self.collector.observe(observation);
            }
            self.collector.commit(&mut self.outbox);
            assert_eq!(self.phase(), Phase::Live);
        }

        fn phase(&self) -> Phase {
            let row = self
                .collector
                .reconciler
                .namespaces()
                .find(|row| row.mapping().pns_inode == INODE);
            row.expect("it is mapped").phase()
        }

        /// The bus has the newest message of the mapping.
        fn acknowledge_mapping(&mut self) {
            let (host, ce_source) = (Arc::from("host"), Arc::from("source"));
            let owed = self
                .outbox
                .reader()
                .read(0, 1_000, 1 << 20, &host, &ce_source)
                .expect("the outbox can be read");
            let mut mappings = owed.iter().filter(|one| one.topic == Topic::Pns);
            let row = mappings.next_back().expect("it is owed").row;
            let position = Position {
                partition: 0,
                offset: 1,
            };
            self.collector.reported(vec![Report {
                row,
                outcome: Outcome::Acked(position),
            }]);
        }

        /// Commits what was decided while something else is observed.
        fn commit_while(&mut self, observation: Observation) {
            let mut decided = self.collector.hand_over(&mut self.outbox);
            let collector = &mut self.collector;
            let (result, ()) = decided.commit_while(&mut self.outbox, &self.renderer, || {
                collector.observe(observation);
                collector.status_due = true;
            });
            assert!(result.is_ok(), "{result:?}");
            self.collector.finish(&mut self.outbox, decided, result);
        }
    }

    #[test]
    fn an_acknowledgement_of_what_was_put_before_is_not_that_of_the_end_that_was_decided_meanwhile()
    {
        let mut fixture = Fixture::new();
        fixture.acknowledge_mapping();
        let source = source();
        fixture.commit_while(Observation::SourceForgotten { source });
        assert_eq!(fixture.phase(), Phase::Ended, "the bus has no end of it");

        fixture.collector.commit(&mut fixture.outbox);
        assert_eq!(fixture.phase(), Phase::Ended, "nor now");
        fixture.acknowledge_mapping();
        fixture.collector.commit(&mut fixture.outbox);
        let phase = fixture.phase();
        assert!(matches!(phase, Phase::Lingering(_)), "{phase:?}");
    }

    #[test]
    fn the_status_names_no_delta_that_is_not_committed() {
        let mut fixture = Fixture::new();
        let source = source();
        fixture.commit_while(Observation::SourceForgotten { source });
        let committed = fixture.outbox.meta().seq;
        assert!(
            fixture.collector.reconciler.seq() > committed,
            "it is ahead"
        );
        let mut newest = None;
        while let Ok(status) = fixture.statuses.try_recv() {
            newest = status.value;
        }
        let newest = newest.expect("a status was due");
        let status: serde_json::Value = serde_json::from_slice(&newest).expect("it is JSON");
        assert_eq!(status["seq"], committed);
    }
}
