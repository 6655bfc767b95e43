//! Pids that are learned early: of each the process is read once, its namespace held, and told to the reconciler.
//!
//! The shims' bundles (`bundles.rs`) and containerd's events (`hints.rs`) name the same processes, one after the other;
//! whichever comes first is told, and the other is let go unread. What does not fit into the collector's queue is lost,
//! as a hint may be, and is taken again when it comes from elsewhere.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::model::ContainerId;
use crate::procfs::ProcessTable;
use crate::reconcile::{Observation, ProcessReading};
use crate::runtime::watch::{WatchContext, names_other};

/// How many pids are remembered as told. The second word of one comes within a second or two, and a machine makes some
/// hundred containers in that time at most.
const TOLD_MAX: usize = 1_024;

/// Where a pid was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `init.pid` in a shim's bundle.
    Bundle,
    /// containerd's `/tasks/create`.
    Event,
}

/// The pids that were learned early, by all readers of a process.
#[derive(Debug, Default)]
pub struct EarlyPids {
    /// Each with the user who named it: what one says keeps nobody else's word away.
    told: Mutex<VecDeque<(ContainerId, u32, u32)>>,
    of_bundles: AtomicU64,
    of_events: AtomicU64,
    skipped: AtomicU64,
}

impl EarlyPids {
    /// How many live processes were learned of by bundles, first.
    pub fn of_bundles(&self) -> u64 {
        self.of_bundles.load(Ordering::Relaxed)
    }

    /// How many by events, first.
    pub fn of_events(&self) -> u64 {
        self.of_events.load(Ordering::Relaxed)
    }

    /// How many bundles had something else than a pid where one belongs, or no id.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Counts a bundle that is not understood.
    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads a container's process, and tells the collector of it without ever waiting. `uid` is who names it.
    pub(super) fn tell(
        &self,
        origin: Origin,
        (id, pid): (ContainerId, u32),
        uid: u32,
        context: &WatchContext,
    ) {
        if !self.remember(&id, pid, uid) {
            return;
        }
        let reading = context.processes.read_of_user(pid, uid);
        let fd = match &reading {
            ProcessReading::Alive(process) => process.fd,
            ProcessReading::Dead | ProcessReading::Denied => None,
        };
        tracing::debug!(%id, pid, ?origin, alive = fd.is_some(), "hint");
        // The process had ended before it was read, and its pid was given to another container's.
        let is_taken = names_other(&reading, &id);
        let named = id.clone();
        let observation = if ProcessTable::is_trusted(uid) {
            Observation::Process {
                id: named,
                pid,
                reading,
            }
        } else {
            Observation::ProcessOf {
                uid,
                id: named,
                pid,
                reading,
            }
        };
        let sent = !is_taken && context.observations.try_send(observation);
        if !sent {
            self.forget(&id, pid, uid);
            if let Some(fd) = fd {
                context.processes.fds().release(fd);
            }
        } else if fd.is_some() {
            let count = match origin {
                Origin::Bundle => &self.of_bundles,
                Origin::Event => &self.of_events,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `false` where it was told already.
    fn remember(&self, id: &ContainerId, pid: u32, uid: u32) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = |(of, is, by): &(ContainerId, u32, u32)| *is == pid && *by == uid && of == id;
        if told.iter().any(is_this) {
            return false;
        }
        if told.len() >= TOLD_MAX {
            told.pop_front();
        }
        told.push_back((id.clone(), pid, uid));
        true
    }

    fn forget(&self, id: &ContainerId, pid: u32, uid: u32) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(of, is, by)| *is != pid || *by != uid || of != id);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::collector::{Input, ObservationSender};
    use crate::procfs::ProcessTable;
    use crate::runtime::Options;

    fn context(inputs: mpsc::Sender<Input>) -> WatchContext {
        let processes = ProcessTable::open(Path::new("/proc")).expect("a process table is mounted");
        WatchContext {
            observations: ObservationSender::new(inputs),
            options: Options::default(),
            processes: Arc::new(processes),
            stop: CancellationToken::new(),
        }
    }

    fn id(name: &str) -> ContainerId {
        ContainerId::parse(name).expect("a name of letters is an id")
    }

    #[test]
    fn a_process_is_read_and_told_once_by_whoever_comes_first() {
        let (inputs, mut queue) = mpsc::channel(8);
        let context = context(inputs);
        let (pids, uid) = (EarlyPids::default(), rustix::process::geteuid().as_raw());
        let ours = std::process::id();
        for origin in [Origin::Bundle, Origin::Event, Origin::Bundle] {
            pids.tell(origin, (id("a"), ours), uid, &context);
        }
        pids.tell(Origin::Event, (id("b"), ours), uid, &context);
        let mut told = Vec::new();
        while let Ok(Input::Observed(Observation::Process { id, pid, .. })) = queue.try_recv() {
            told.push((id.as_str().to_owned(), pid));
        }
        assert_eq!(told, [("a".to_owned(), ours), ("b".to_owned(), ours)]);
        assert_eq!((pids.of_bundles(), pids.of_events()), (1, 1));
        assert_eq!(context.processes.fds().count(), 2);
    }

    #[test]
    fn what_found_no_room_is_let_go_and_taken_again() {
        let (inputs, mut queue) = mpsc::channel(1);
        let context = context(inputs);
        let (pids, uid) = (EarlyPids::default(), rustix::process::geteuid().as_raw());
        let ours = std::process::id();
        pids.tell(Origin::Bundle, (id("a"), ours), uid, &context);
        pids.tell(Origin::Bundle, (id("b"), ours), uid, &context);
        assert_eq!(context.processes.fds().count(), 1, "one has room");
        assert!(queue.try_recv().is_ok());
        pids.tell(Origin::Event, (id("b"), ours), uid, &context);
        assert!(queue.try_recv().is_ok(), "the event tells what was lost");
        assert_eq!((pids.of_bundles(), pids.of_events()), (1, 1));
    }

    #[test]
    fn what_was_told_long_ago_is_forgotten() {
        let pids = EarlyPids::default();
        for pid in 0..=u32::try_from(TOLD_MAX).expect("it is small") {
            assert!(pids.remember(&id("a"), pid, 0));
        }
        assert!(pids.remember(&id("a"), 0, 0), "the first had to go");
        assert!(!pids.remember(&id("a"), 7, 0));
        assert!(pids.remember(&id("a"), 7, 1_000), "another user's word");
    }
}
