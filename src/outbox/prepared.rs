//! What is to be committed, taken down so that the reconciler may go on; and committing it while it does.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::ledger::RenderGap;
use super::{Batch, Committed, Outbox, OutboxError, Owed};
use crate::reconcile::{Reconciler, Row, RowKey};
use crate::sink::{Outcome, Report};

/// A batch with the reconciler's state at its end.
#[derive(Debug)]
pub struct Prepared {
    pub(super) rows: StoredRows,
    pub(super) pace: Pace,
    pub(super) messages: Vec<Owed>,
    pub(super) reports: Vec<Report>,
}

/// What the reconciler counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) seq: u64,
    pub(super) package_seq: u64,
    pub(super) generation: u64,
    pub(super) opened: bool,
}

/// The reconciler's rows as they are stored; one that is gone has no bytes.
#[derive(Debug, Default)]
pub(super) struct StoredRows {
    rows: Vec<(RowKey, Option<Range<usize>>)>,
    bytes: Vec<u8>,
}

impl Prepared {
    /// Takes down what a batch changes.
    ///
    /// # Errors
    /// When a row cannot be encoded.
    pub fn new(batch: Batch, reconciler: &Reconciler) -> Result<Self, OutboxError> {
        let mut rows = StoredRows::default();
        for key in batch.rows {
            rows.add(key, reconciler)?;
        }
        Ok(Self {
            rows,
            pace: Pace {
                seq: reconciler.seq(),
                package_seq: reconciler.package_seq(),
                generation: reconciler.generation(),
                opened: reconciler.opened(),
            },
            messages: batch.messages,
            reports: batch.reports,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.rows.is_empty() && self.messages.is_empty() && self.reports.is_empty()
    }

    /// Whether it only takes messages away.
    pub(super) fn is_only_acks(&self) -> bool {
        let is_ack = |report: &Report| match report.outcome {
            Outcome::Acked(_) => true,
            Outcome::Rejected(_) | Outcome::Replaced { .. } => false,
        };
        self.rows.rows.is_empty() && self.messages.is_empty() && self.reports.iter().all(is_ack)
    }
}

impl StoredRows {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RowKey, Option<&[u8]>)> {
        self.rows.iter().map(|(key, range)| {
            let bytes = range.clone().and_then(|range| self.bytes.get(range));
            (key, bytes)
        })
    }

    fn add(&mut self, key: RowKey, reconciler: &Reconciler) -> Result<(), OutboxError> {
        let begin = self.bytes.len();
        let bytes = std::mem::take(&mut self.bytes);
        let (table, encoded) = match reconciler.row(&key) {
            Some(Row::Container(row)) if row.is_told() => {
                ("containers", postcard::to_extend(row, bytes))
            }
            Some(Row::Namespace(row)) => ("namespaces", postcard::to_extend(row, bytes)),
            Some(Row::Source(row)) => ("sources", postcard::to_extend(row, bytes)),
            Some(Row::Container(_)) | None => {
                self.bytes = bytes;
                self.rows.push((key, None));
                return Ok(());
            }
        };
        self.bytes = encoded.map_err(|source| OutboxError::Encoding { table, source })?;
        self.rows.push((key, Some(begin..self.bytes.len())));
        Ok(())
    }
}

impl Outbox {
    /// [Commits](Self::commit_prepared) on a thread of its own, while `meanwhile` is done here; where the system has no
    /// thread left, one after the other.
    ///
    /// # Errors
    /// When nothing was committed: the caller goes back to [`Outbox::recover`].
    pub fn commit_while<T>(
        &mut self,
        prepared: Prepared,
        now_ms: u64,
        gap: &RenderGap<'_>,
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<Committed, OutboxError>, T) {
        let job = Mutex::new(Some((self, prepared)));
        let commit = || {
            let mut job = job.lock().unwrap_or_else(PoisonError::into_inner);
            let (outbox, prepared) = job.take().expect("it is committed once");
            outbox.commit_prepared(prepared, now_ms, gap)
        };
        thread::scope(|scope| {
            let committer = thread::Builder::new()
                .name("committer".to_owned())
                .spawn_scoped(scope, commit);
            let done = meanwhile();
            match committer.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(committed)) => (committed, done),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => (commit(), done),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::renderer;
    use super::super::{Gap, Options, Owner, render};
    use super::*;
    use crate::reconcile::{Effect, Identity, Observation, Restored, Settings};

    #[test]
    fn what_was_prepared_is_committed_as_it_was_though_the_reconciler_has_gone_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let owner = Owner {
            host_id: "host".into(),
            boot_id: "boot".into(),
            new_epoch: "epoch".to_owned(),
        };
        let opened = Outbox::open(directory.path(), &owner, Options::default());
        let mut outbox = opened.expect("the outbox opens").outbox;
        let identity = Identity {
            boot_id: "boot".into(),
            host_pns_inode: 1,
            previous_epoch: None,
        };
        let mut reconciler = Reconciler::new(identity, Settings::default(), Restored::default());
        let effects = reconciler.handle(
            Observation::Began {
                last_alive_ms: 0,
                owed: BTreeSet::new(),
            },
            1,
        );
        let messages = effects.into_iter().filter_map(|effect| match effect {
            Effect::Publish(message) => Some((outbox.take_row(), message)),
            Effect::SaveRow(_)
            | Effect::List { .. }
            | Effect::Inspect { .. }
            | Effect::ReadProcess { .. }
            | Effect::FindNested(_)
            | Effect::ReleaseNamespace(_) => None,
        });
        let batch = Batch {
            messages: render(messages.collect(), &renderer(), 1),
            ..Batch::default()
        };
        let seq = reconciler.seq();
        let prepared = Prepared::new(batch, &reconciler).expect("it can be encoded");
        let renderer = renderer();
        let gap = |gap: &Gap| renderer.render_gap(gap, 1);

        let (committed, told) = outbox.commit_while(prepared, 1, &gap, || {
            reconciler.handle(Observation::SnapshotDue, 1).len()
        });

        committed.expect("it can be committed");
        assert!(told > 0 && reconciler.seq() > seq, "it has gone on");
        assert_eq!((outbox.meta().seq, outbox.totals().deltas), (seq, seq));
        drop(outbox);
        let opened = Outbox::open(directory.path(), &owner, Options::default());
        assert_eq!(opened.expect("the outbox opens").restored.seq, seq);
    }
}
