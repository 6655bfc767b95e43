//! Events that came before their mapping, in the order in which they came, and in that order for each (host, number).

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::event::{Question, Shape};

/// What an event that waits costs besides its text, about: two map entries, its question, its token.
const ROW_BYTES: usize = 400;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) token: T,
    pub(super) payload: Vec<u8>,
    pub(super) question: Question<'static>,
    pub(super) shape: Shape,
    /// When it came, by the steady clock.
    pub(super) since_ms: u64,
}

impl<T> Waiting<T> {
    fn bytes(&self) -> usize {
        let cgroup = self.question.cgroup.as_ref().map_or(0, |path| path.len());
        ROW_BYTES + self.payload.len() + self.question.host.len() + cgroup
    }
}

/// The queue. Its bounds are its owner's to keep.
#[derive(Debug)]
pub(super) struct WaitingQueue<T> {
    rows: BTreeMap<u64, Waiting<T>>,
    /// By host and number; no empty ones.
    lines: HashMap<Box<str>, BTreeMap<u64, VecDeque<u64>>>,
    next: u64,
    bytes: usize,
}

impl<T> WaitingQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            lines: HashMap::new(),
            next: 0,
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// What its events take, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether an event of that (host, number) waits.
    pub(super) fn has(&self, host: &str, pns_inode: u64) -> bool {
        let line = self.lines.get(host);
        line.is_some_and(|line| line.contains_key(&pns_inode))
    }

    pub(super) fn push(&mut self, waiting: Waiting<T>) {
        let (host, inode) = (&*waiting.question.host, waiting.question.pns_inode);
        if !self.lines.contains_key(host) {
            self.lines.insert(host.into(), BTreeMap::new());
        }
        if let Some(line) = self.lines.get_mut(host) {
            line.entry(inode).or_default().push_back(self.next);
        }
        self.bytes += waiting.bytes();
        self.rows.insert(self.next, waiting);
        self.next += 1;
    }

    /// The one that has waited longest.
    pub(super) fn oldest(&self) -> Option<&Waiting<T>> {
        self.rows.values().next()
    }

    /// Takes that one; it is the first of its (host, number) too.
    pub(super) fn pop_oldest(&mut self) -> Option<Waiting<T>> {
        let (number, waiting) = self.rows.pop_first()?;
        self.forget(number, &waiting);
        Some(waiting)
    }

    /// The first one of a (host, number).
    pub(super) fn front(&self, host: &str, pns_inode: u64) -> Option<&Waiting<T>> {
        let number = self.lines.get(host)?.get(&pns_inode)?.front()?;
        self.rows.get(number)
    }

    /// Takes the first one of a (host, number).
    pub(super) fn pop_front(&mut self, host: &str, pns_inode: u64) -> Option<Waiting<T>> {
        let number = *self.lines.get(host)?.get(&pns_inode)?.front()?;
        let waiting = self.rows.remove(&number)?;
        self.forget(number, &waiting);
        Some(waiting)
    }

    /// Drops those whose token `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let unwanted = self
            .rows
            .iter()
            .filter(|(_, waiting)| !keep(&waiting.token));
        let numbers: Vec<u64> = unwanted.map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(waiting) = self.rows.remove(&number) {
                self.forget(number, &waiting);
            }
        }
    }

    fn forget(&mut self, number: u64, waiting: &Waiting<T>) {
        self.bytes = self.bytes.saturating_sub(waiting.bytes());
        let (host, inode) = (&*waiting.question.host, waiting.question.pns_inode);
        let Some(lines) = self.lines.get_mut(host) else {
            return;
        };
        if let Some(line) = lines.get_mut(&inode) {
            line.retain(|other| *other != number);
            if line.is_empty() {
                lines.remove(&inode);
            }
        }
        if lines.is_empty() {
            self.lines.remove(host);
        }
    }
}
