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

/// From how many messages on a group is committed by a thread of its own: some milliseconds of work, against some ten
/// microseconds for the thread. Only storms and cold starts come to so many in one commit.
const LARGE_MIN: usize = 1_024;

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
        // Without a state nothing may count as committed. Where nothing came but the clock's tick, what a crash would send twice is a second's worth. An event that has
        // nothing to commit yet is not to wait for the disk: its inspect is asked for now.
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
