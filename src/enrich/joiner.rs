//! The join itself, without any I/O: events and mappings in, events out.
//!
//! Events of one (host, number) come out in the order in which they went in; one that waits lets those of others pass.
//! Each event that goes in comes out exactly once, unless its owner lets go of it ([`Joiner::forget`]).

use super::clock::Now;
use super::decide::{Decision, decide};
use super::event::{Defect, EventReader, Question, Shape};
use super::splice::{Spliced, added, push_text};
use super::table::{Applied, Container, SharedBy, Table, TableKey};
use super::waiting::{Waiting, WaitingQueue};

/// What to do with an event that cannot be joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInvalid {
    /// It goes to the output, marked where it is an object.
    #[default]
    Pass,
    /// It is counted, and goes nowhere.
    Drop,
    /// It goes to a topic of its own, unaltered.
    Topic,
}

impl OnInvalid {
    /// The word of the setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Topic => "topic",
        }
    }
}

impl std::str::FromStr for OnInvalid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = [Self::Pass, Self::Drop, Self::Topic].into_iter();
        let found = all.find(|one| one.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is none of `pass`, `drop`, `topic`"))
    }
}

/// How to join.
#[derive(Clone, Debug)]
pub struct JoinSettings {
    /// The name of the object that is added.
    pub added_field: String,
    /// How long an event waits for its mapping, in milliseconds.
    pub grace_ms: u64,
    /// Most events that wait.
    pub waiting_max: usize,
    /// Most bytes that they take.
    pub waiting_bytes_max: usize,
    /// What to do with events that cannot be joined.
    pub on_invalid: OnInvalid,
}

/// An event as it comes.
#[derive(Debug)]
pub struct Incoming<'a, T> {
    /// Its owner's mark, which comes out with it.
    pub token: T,
    /// Its text.
    pub payload: &'a [u8],
    /// Its message's key; empty where there is none.
    pub key: &'a [u8],
    /// Its message's time, in unix milliseconds.
    pub message_ms: u64,
}

/// Where an event goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the output.
    Send {
        /// Its text.
        payload: Spliced,
        /// Its host, where it has told one.
        host: Option<Box<str>>,
    },
    /// To the topic of the invalid ones.
    Aside {
        /// Its text, unaltered.
        payload: Vec<u8>,
        /// What is wrong with it.
        defect: Defect,
    },
    /// Nowhere.
    Drop,
}

/// An event that is done with.
#[derive(Debug)]
pub struct Done<T> {
    /// Its owner's mark.
    pub token: T,
    /// Where it goes.
    pub action: Action,
}

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that came.
    pub events: u64,
    /// Events that got their container.
    pub matched: u64,
    /// Events that found no mapping.
    pub unmatched: u64,
    /// Events whose mapping had expired.
    pub expired: u64,
    /// Events that two containers could have.
    pub ambiguous: u64,
    /// Events of a host's own namespace.
    pub host: u64,
    /// Events that could not be joined, by [`Defect::ALL`].
    pub invalid: [u64; Defect::ALL.len()],
    /// Events that had to wait.
    pub waited: u64,
    /// Among them, those that found their mapping by that.
    pub waited_matched: u64,
    /// Those that were let go before their time, as too many waited.
    pub cut_short: u64,
    /// Events that had a field of the added object's name.
    pub field_taken: u64,
    /// Mappings that were put or renewed.
    pub mappings_put: u64,
    /// Tombstones.
    pub mappings_removed: u64,
    /// Messages of the mapping topic that are no mappings.
    pub mappings_foreign: u64,
}

/// How an event that is no longer undecided is marked.
enum Mark<'t> {
    Matched(Container<'t>, Option<SharedBy>),
    Ambiguous(Vec<&'t str>),
    Host,
    Unmatched,
    Expired,
}

/// The join.
#[derive(Debug)]
pub struct Joiner<T> {
    settings: JoinSettings,
    reader: EventReader,
    table: Table,
    waiting: WaitingQueue<T>,
    counts: Counts,
}

impl<T> Joiner<T> {
    /// A join with an empty table.
    pub fn new(settings: JoinSettings, reader: EventReader) -> Self {
        Self {
            settings,
            reader,
            table: Table::new(),
            waiting: WaitingQueue::new(),
            counts: Counts::default(),
        }
    }

    /// What has been counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many mappings there are.
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    /// How many events wait, and what they take in bytes, about.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting.bytes())
    }

    /// Takes a message of the mapping topic; `key` is `None` where it could not be read. Events that waited for it are done.
    pub fn put(
        &mut self,
        key: Option<&TableKey<'_>>,
        value: Option<&[u8]>,
        now: Now,
        done: &mut Vec<Done<T>>,
    ) {
        let Some(key) = key else {
            self.counts.mappings_foreign += 1;
            return;
        };
        match self.table.apply(key, value) {
            Applied::Put => {
                self.counts.mappings_put += 1;
                self.settle(&key.host, key.pns_inode, now, done);
            }
            Applied::Removed => self.counts.mappings_removed += 1,
            Applied::Foreign => self.counts.mappings_foreign += 1,
        }
    }

    /// Takes an event. It is done at once, or waits for its mapping.
    pub fn take(&mut self, incoming: Incoming<'_, T>, now: Now, done: &mut Vec<Done<T>>) {
        let Incoming {
            token,
            payload,
            key,
            message_ms,
        } = incoming;
        self.counts.events += 1;
        let event = self.reader.read(payload, key, message_ms);
        self.counts.field_taken += u64::from(event.shape.is_taken);
        let question = match event.question {
            Ok(question) => question,
            Err(defect) => {
                let action = self.invalid(payload, event.shape, defect);
                done.push(Done { token, action });
                return;
            }
        };
        // None overtakes another one of its namespace.
        let follows =
            self.waiting.len() > 0 && self.waiting.has(&question.host, question.pns_inode);
        let mark = if follows {
            None
        } else {
            settled(decide(&self.table, &question, now.wall_ms), &question)
        };
        let Some(mark) = mark else {
            let question = question.into_owned();
            self.counts.waited += 1;
            self.waiting.push(Waiting {
                token,
                payload: payload.to_vec(),
                question,
                shape: event.shape,
                since_ms: now.steady_ms,
            });
            self.cut_short(now, done);
            return;
        };
        count(&mut self.counts, &mark);
        let action = Action::Send {
            payload: added(
                payload,
                event.shape,
                &self.settings.added_field,
                &rendered(&mark),
            ),
            host: Some(question.host.as_ref().into()),
        };
        done.push(Done { token, action });
    }

    /// Lets go of what has waited long enough.
    pub fn tick(&mut self, now: Now, done: &mut Vec<Done<T>>) {
        let grace_ms = self.settings.grace_ms;
        while let Some(oldest) = self.waiting.oldest()
            && now.steady_ms.saturating_sub(oldest.since_ms) >= grace_ms
        {
            self.release_oldest(now, done);
        }
    }

    /// When [`Self::tick`] has something to do, by the steady clock.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let oldest = self.waiting.oldest()?;
        Some(oldest.since_ms.saturating_add(self.settings.grace_ms))
    }

    /// Forgets what expired long ago.
    pub fn sweep(&mut self, now: Now) {
        self.table.sweep(now.wall_ms);
    }

    /// Lets go of the events that wait whose token `keep` does not want; they do not come out.
    pub fn forget(&mut self, keep: impl Fn(&T) -> bool) {
        self.waiting.retain(keep);
    }

    fn cut_short(&mut self, now: Now, done: &mut Vec<Done<T>>) {
        while self.waiting.len() > self.settings.waiting_max
            || self.waiting.bytes() > self.settings.waiting_bytes_max
        {
            self.counts.cut_short += 1;
            self.release_oldest(now, done);
        }
    }

    /// The oldest one goes as it is; those behind it may have their mapping.
    fn release_oldest(&mut self, now: Now, done: &mut Vec<Done<T>>) {
        let Some(waiting) = self.waiting.pop_oldest() else {
            return;
        };
        let question = &waiting.question;
        let decision = decide(&self.table, question, now.wall_ms);
        let mark = match decision {
            Decision::Expired => Mark::Expired,
            Decision::Unknown | Decision::Never => Mark::Unmatched,
            other @ (Decision::Matched(_) | Decision::Ambiguous(_) | Decision::Host) => {
                settled(other, question).unwrap_or(Mark::Unmatched)
            }
        };
        count(&mut self.counts, &mark);
        done.push(finished(&waiting, &mark, &self.settings.added_field).of(waiting.token));
        let (host, inode) = (waiting.question.host, waiting.question.pns_inode);
        self.settle(&host, inode, now, done);
    }

    /// Lets go of those of a (host, number) that need not wait any more, in their order.
    fn settle(&mut self, host: &str, pns_inode: u64, now: Now, done: &mut Vec<Done<T>>) {
        while let Some(front) = self.waiting.front(host, pns_inode) {
            let decision = decide(&self.table, &front.question, now.wall_ms);
            let Some(mark) = settled(decision, &front.question) else {
                return;
            };
            count(&mut self.counts, &mark);
            if let Mark::Matched(..) = mark {
                self.counts.waited_matched += 1;
            }
            let finished = finished(front, &mark, &self.settings.added_field);
            let Some(waiting) = self.waiting.pop_front(host, pns_inode) else {
                return;
            };
            done.push(finished.of(waiting.token));
        }
    }

    fn invalid(&mut self, payload: &[u8], shape: Shape, defect: Defect) -> Action {
        let number = Defect::ALL.iter().position(|one| *one == defect);
        if let Some(count) = number.and_then(|number| self.counts.invalid.get_mut(number)) {
            *count += 1;
        }
        match self.settings.on_invalid {
            OnInvalid::Drop => Action::Drop,
            OnInvalid::Topic => Action::Aside {
                payload: payload.to_vec(),
                defect,
            },
            OnInvalid::Pass => {
                let payload = if defect.has_object() {
                    let mark = format!(r#"{{"match":"invalid","reason":"{}"}}"#, defect.as_str());
                    added(payload, shape, &self.settings.added_field, mark.as_bytes())
                } else {
                    Spliced::unaltered(payload)
                };
                Action::Send {
                    payload,
                    host: None,
                }
            }
        }
    }
}

/// An event's end, still without its token.
struct Finished(Action);

impl Finished {
    fn of<T>(self, token: T) -> Done<T> {
        Done {
            token,
            action: self.0,
        }
    }
}

fn finished<T>(waiting: &Waiting<T>, mark: &Mark<'_>, added_field: &str) -> Finished {
    Finished(Action::Send {
        payload: added(
            &waiting.payload,
            waiting.shape,
            added_field,
            &rendered(mark),
        ),
        host: Some(waiting.question.host.as_ref().into()),
    })
}

/// The mark of what needs not wait; `None` for what may still find its mapping.
fn settled<'t>(decision: Decision<'t>, question: &Question<'_>) -> Option<Mark<'t>> {
    match decision {
        Decision::Matched(candidate) => {
            let (container, by) = candidate.container(question.mnt_ns, question.cgroup.as_deref());
            Some(Mark::Matched(container, by))
        }
        Decision::Ambiguous(ids) => Some(Mark::Ambiguous(ids)),
        Decision::Host => Some(Mark::Host),
        Decision::Never => Some(Mark::Unmatched),
        Decision::Expired | Decision::Unknown => None,
    }
}

fn count(counts: &mut Counts, mark: &Mark<'_>) {
    match mark {
        Mark::Matched(..) => counts.matched += 1,
        Mark::Ambiguous(_) => counts.ambiguous += 1,
        Mark::Host => counts.host += 1,
        Mark::Unmatched => counts.unmatched += 1,
        Mark::Expired => counts.expired += 1,
    }
}

/// The added object.
fn rendered(mark: &Mark<'_>) -> Vec<u8> {
    let (container, by) = match mark {
        Mark::Matched(container, by) => (container, *by),
        Mark::Host => return br#"{"match":"host"}"#.to_vec(),
        Mark::Unmatched => return br#"{"match":"unmatched"}"#.to_vec(),
        Mark::Expired => return br#"{"match":"expired"}"#.to_vec(),
        Mark::Ambiguous(ids) => {
            let mut out = br#"{"match":"ambiguous","candidates":"#.to_vec();
            serde_json::to_writer(&mut out, ids).expect("texts are written to memory");
            out.push(b'}');
            return out;
        }
    };
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(br#"{"match":"matched""#);
    for (name, text) in [
        ("container_id", container.container_id),
        ("container_name", container.container_name),
        ("image_name", container.image_name),
        ("runtime", container.runtime),
        ("pod_name", container.pod_name),
        ("pod_namespace", container.pod_namespace),
        ("pod_uid", container.pod_uid),
    ] {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        push_text(&mut out, text);
    }
    match by {
        None => out.extend_from_slice(br#","shared":false"#),
        Some(by) => {
            out.extend_from_slice(br#","shared":true,"by":""#);
            out.extend_from_slice(by.as_str().as_bytes());
            out.push(b'"');
        }
    }
    if container.is_nested {
        out.extend_from_slice(br#","nested":true"#);
    }
    out.push(b'}');
    out
}
