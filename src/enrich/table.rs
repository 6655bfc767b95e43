//! The table of mappings: (host, PID namespace's number) to the containers that had it, newest first.
//!
//! It is filled from the compacted topic and then follows it; a row is some 170 bytes beside its texts, and texts that
//! many rows share are kept once. The order of the hash map never shows.
//!
//! Invariants: the rows of a key are newest first by `valid_from_ms`; an older one ends before the next newer one begins;
//! there are at most [`EARLIER_MAX`] older ones. A tombstone takes all rows of its key: the collector sends it only when
//! the number is free again.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::clock::EventTime;
use super::interner::{Interner, TextId};
use crate::model::Topic;
use crate::wire::encoding;

/// Earlier namespaces of one number that are remembered. There is one at most while collectors hold their namespaces open;
/// more come only from collectors that were killed.
const EARLIER_MAX: usize = 4;

/// How long a row is kept after it has expired, in milliseconds: its host may only be cut off from the bus.
const EXPIRED_KEPT_MS: u64 = 3_600_000;

/// Members of a shared namespace that are remembered.
const MEMBERS_MAX: usize = 256;

/// What a message of the mapping topic did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A row was put or renewed.
    Put,
    /// The rows of a key are gone, if there were any.
    Removed,
    /// The message is none of a collector's.
    Foreign,
}

/// A key of the mapping topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableKey<'a> {
    /// The host's id.
    pub host: Cow<'a, str>,
    /// The namespace's number.
    pub pns_inode: u64,
}

impl<'a> TableKey<'a> {
    /// Reads `host_id/pns_inode`.
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        let (host, inode) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
        Self::of(Cow::Borrowed(host), inode)
    }

    /// A key of its parts, if they can be any.
    pub fn of(host: Cow<'a, str>, inode: &str) -> Option<Self> {
        let is_decimal = !inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit());
        let pns_inode = is_decimal.then(|| inode.parse().ok()).flatten()?;
        (!host.is_empty()).then_some(Self { host, pns_inode })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pns_inode: u64,
    host: TextId,
}

/// One namespace.
#[derive(Debug)]
struct Row {
    valid_from_ms: u64,
    /// `u64::MAX` while it lives.
    valid_to_ms: u64,
    expires_at_ms: u64,
    /// 0 where it is not known.
    pns_id: u64,
    earlier: Option<Box<Row>>,
    /// Only of a namespace that is shared.
    members: Option<Box<[MemberRow]>>,
    /// Container id, container name, pod name and pod uid, one after another.
    text: Box<str>,
    ends: [u32; 3],
    boot_id: TextId,
    image_name: TextId,
    runtime: TextId,
    pod_namespace: TextId,
    is_shared: bool,
    is_nested: bool,
}

#[derive(Debug)]
struct MemberRow {
    container_id: Box<str>,
    container_name: Box<str>,
    image_name: Box<str>,
    cgroup: Box<str>,
    mnt_ns: u64,
}

impl Row {
    fn part(&self, number: usize) -> &str {
        let from = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let to = self.ends.get(number).copied();
        let to = to.map_or(self.text.len(), |end| end as usize);
        self.text.get(from as usize..to).unwrap_or_default()
    }

    /// Whether another row is about the same namespace, perhaps with another top-level container.
    fn is_same_namespace(&self, other: &Self) -> bool {
        if self.boot_id != other.boot_id {
            return false;
        }
        if self.pns_id != 0 && other.pns_id != 0 {
            return self.pns_id == other.pns_id;
        }
        self.valid_from_ms == other.valid_from_ms || self.part(0) == other.part(0)
    }
}

/// A container of the table, as it is added to events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container<'t> {
    /// Its id.
    pub container_id: &'t str,
    /// Its name.
    pub container_name: &'t str,
    /// Its image's name.
    pub image_name: &'t str,
    /// `docker` or `cri`.
    pub runtime: &'t str,
    /// Its pod's name.
    pub pod_name: &'t str,
    /// Its pod's namespace.
    pub pod_namespace: &'t str,
    /// Its pod's uid.
    pub pod_uid: &'t str,
    /// Whether the event's namespace lies below the container's own.
    pub is_nested: bool,
}

/// How a container of a shared namespace was told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedBy {
    /// By the event's mount namespace.
    MntNs,
    /// By the event's cgroup.
    Cgroup,
    /// It was not: it is the top-level one.
    Top,
}

impl SharedBy {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MntNs => "mnt_ns",
            Self::Cgroup => "cgroup",
            Self::Top => "top",
        }
    }
}

/// A row that an event may belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'t> {
    table: &'t Table,
    row: &'t Row,
    /// The end, at the latest where the next namespace of that number begins.
    ended_ms: u64,
}

impl<'t> Candidate<'t> {
    /// Whether an event of that time is its own, give or take `tolerance_ms`.
    pub(super) fn has(&self, time: EventTime, tolerance_ms: u64) -> bool {
        time.from_ms <= self.ended_ms.saturating_add(tolerance_ms)
            && time.to_ms.saturating_add(tolerance_ms) >= self.row.valid_from_ms
    }

    /// Whether a namespace may follow that has that time, as far as this one tells.
    pub(super) fn may_be_followed_by(&self, time: EventTime) -> bool {
        time.to_ms >= self.ended_ms
    }

    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.row.expires_at_ms < now_ms
    }

    /// Its container: the member that the event's mount namespace or cgroup names, else the top-level one.
    pub(super) fn container(
        &self,
        mnt_ns: u64,
        cgroup: Option<&str>,
    ) -> (Container<'t>, Option<SharedBy>) {
        let (row, table) = (self.row, self.table);
        let top = Container {
            container_id: row.part(0),
            container_name: row.part(1),
            image_name: table.texts.text(row.image_name),
            runtime: table.texts.text(row.runtime),
            pod_name: row.part(2),
            pod_namespace: table.texts.text(row.pod_namespace),
            pod_uid: row.part(3),
            is_nested: row.is_nested,
        };
        if !row.is_shared {
            return (top, None);
        }
        let members = row.members.as_deref().unwrap_or_default();
        let by_mnt_ns = |member: &&MemberRow| mnt_ns != 0 && member.mnt_ns == mnt_ns;
        let by_cgroup = |member: &&MemberRow| {
            cgroup.is_some_and(|path| !member.cgroup.is_empty() && is_below(path, &member.cgroup))
        };
        let found = members
            .iter()
            .find(by_mnt_ns)
            .map(|one| (one, SharedBy::MntNs));
        let found = found.or_else(|| {
            members
                .iter()
                .find(by_cgroup)
                .map(|one| (one, SharedBy::Cgroup))
        });
        match found {
            Some((member, by)) => {
                let container = Container {
                    container_id: &member.container_id,
                    container_name: &member.container_name,
                    image_name: &member.image_name,
                    ..top
                };
                (container, Some(by))
            }
            None => (top, Some(SharedBy::Top)),
        }
    }

    pub(super) fn container_id(&self) -> &'t str {
        self.row.part(0)
    }
}

/// Whether a path is another one or lies below it.
fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || parent.ends_with('/'))
}

/// All mappings.
#[derive(Debug, Default)]
pub struct Table {
    rows: HashMap<Key, Box<Row>>,
    texts: Interner,
}

impl Table {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many (host, number) have a mapping.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes a message of the mapping topic; `value` is `None` for a tombstone.
    pub fn apply(&mut self, key: &TableKey<'_>, value: Option<&[u8]>) -> Applied {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            self.remove(key);
            return Applied::Removed;
        };
        let Ok(json) = encoding::to_json(Topic::Pns, value) else {
            return Applied::Foreign;
        };
        let Ok(message) = serde_json::from_slice::<MappingMessage<'_>>(&json) else {
            return Applied::Foreign;
        };
        if message.host_id != key.host || message.pns_inode != key.pns_inode {
            return Applied::Foreign;
        }
        self.put(&message);
        Applied::Put
    }

    fn put(&mut self, message: &MappingMessage<'_>) {
        let host = self.texts.take(&message.host_id);
        let key = Key {
            pns_inode: message.pns_inode,
            host,
        };
        let mut row = Box::new(self.row(message));
        let Some(before) = self.rows.remove(&key) else {
            self.rows.insert(key, row);
            return;
        };
        // The key's own use of the host's text stays with the first row.
        self.texts.release(host);
        if before.is_same_namespace(&row) {
            row.earlier = self.released(*before);
            self.rows.insert(key, row);
        } else if row.valid_from_ms >= before.valid_from_ms {
            row.earlier = Some(before);
            self.shorten(&mut row);
            self.rows.insert(key, row);
        } else {
            // A double of an older message, behind the newer one: an event of that time is still its own.
            let mut newest = before;
            self.insert_earlier(&mut newest, row);
            self.rows.insert(key, newest);
        }
    }

    /// Puts an older row into the rows of a key whose newest one is `newest`.
    fn insert_earlier(&mut self, newest: &mut Row, mut row: Box<Row>) {
        let mut earlier = newest.earlier.take();
        let mut rows = Vec::new();
        while let Some(mut one) = earlier {
            earlier = one.earlier.take();
            rows.push(one);
        }
        if let Some(at) = rows.iter().position(|one| one.is_same_namespace(&row)) {
            std::mem::swap(&mut rows[at], &mut row);
            self.released(*row);
        } else {
            rows.push(row);
        }
        rows.sort_by_key(|one| std::cmp::Reverse(one.valid_from_ms));
        let mut next = None;
        for mut one in rows.into_iter().rev() {
            one.earlier = next;
            next = Some(one);
        }
        newest.earlier = next;
        self.shorten(newest);
    }

    /// Forgets what is beyond [`EARLIER_MAX`].
    fn shorten(&mut self, newest: &mut Row) {
        let mut last = newest;
        for _ in 0..EARLIER_MAX {
            match &mut last.earlier {
                Some(earlier) => last = earlier,
                None => return,
            }
        }
        let mut beyond = last.earlier.take();
        while let Some(row) = beyond {
            beyond = self.released(*row);
        }
    }

    fn remove(&mut self, key: &TableKey<'_>) {
        let Some(host) = self.texts.find(&key.host) else {
            return;
        };
        let key = Key {
            pns_inode: key.pns_inode,
            host,
        };
        if let Some(row) = self.rows.remove(&key) {
            self.texts.release(host);
            self.release_all(*row);
        }
    }

    fn release_all(&mut self, row: Row) {
        let mut earlier = self.released(row);
        while let Some(row) = earlier {
            earlier = self.released(*row);
        }
    }

    /// Gives a row's texts back; what is left are the earlier ones.
    fn released(&mut self, row: Row) -> Option<Box<Row>> {
        for id in [row.boot_id, row.image_name, row.runtime, row.pod_namespace] {
            self.texts.release(id);
        }
        row.earlier
    }

    /// Forgets what expired more than an hour ago; the others of a dead host are ignored until then.
    pub fn sweep(&mut self, now_ms: u64) {
        let is_old = |row: &Row| row.expires_at_ms.saturating_add(EXPIRED_KEPT_MS) < now_ms;
        let old = self.rows.iter().filter(|(_, row)| is_old(row));
        let old: Vec<Key> = old.map(|(key, _)| *key).collect();
        for key in old {
            if let Some(row) = self.rows.remove(&key) {
                self.texts.release(key.host);
                self.release_all(*row);
            }
        }
    }

    fn row(&mut self, message: &MappingMessage<'_>) -> Row {
        let mut text = String::with_capacity(
            message.container_id.len()
                + message.container_name.len()
                + message.pod_name.len()
                + message.pod_uid.len(),
        );
        let mut ends = [0; 3];
        let parts = [
            &message.container_id,
            &message.container_name,
            &message.pod_name,
        ];
        for (end, part) in ends.iter_mut().zip(parts) {
            text.push_str(part);
            *end = u32::try_from(text.len()).unwrap_or(u32::MAX);
        }
        text.push_str(&message.pod_uid);
        let members = message.members.as_slice();
        let member = |member: &MemberMessage<'_>| MemberRow {
            container_id: member.container_id.as_ref().into(),
            container_name: member.container_name.as_ref().into(),
            image_name: member.image_name.as_ref().into(),
            cgroup: member.cgroup.as_ref().into(),
            mnt_ns: member.mnt_ns,
        };
        Row {
            valid_from_ms: message.valid_from_ms,
            valid_to_ms: message.valid_to_ms.unwrap_or(u64::MAX),
            expires_at_ms: message.expires_at_ms,
            pns_id: message.pns_id.parse().unwrap_or(0),
            earlier: None,
            members: (message.shared && !members.is_empty())
                .then(|| members.iter().take(MEMBERS_MAX).map(member).collect()),
            text: text.into(),
            ends,
            boot_id: self.texts.take(&message.boot_id),
            image_name: self.texts.take(&message.image_name),
            runtime: self.texts.take(&message.runtime),
            pod_namespace: self.texts.take(&message.pod_namespace),
            is_shared: message.shared,
            is_nested: message.nested,
        }
    }

    /// The rows of a key, newest first.
    pub(super) fn candidates(
        &self,
        host: &str,
        pns_inode: u64,
    ) -> impl Iterator<Item = Candidate<'_>> {
        let host = self.texts.find(host);
        let newest = host.and_then(|host| self.rows.get(&Key { pns_inode, host }));
        let mut next = newest.map(|row| (&**row, u64::MAX));
        std::iter::from_fn(move || {
            let (row, before_ms) = next?;
            next = row
                .earlier
                .as_deref()
                .map(|earlier| (earlier, row.valid_from_ms.saturating_sub(1)));
            Some(Candidate {
                table: self,
                row,
                ended_ms: row.valid_to_ms.min(before_ms),
            })
        })
    }
}

/// A mapping as it stands on the topic (docs/messages.md), as far as the join wants it.
#[derive(Deserialize)]
struct MappingMessage<'a> {
    #[serde(borrow)]
    host_id: Cow<'a, str>,
    pns_inode: u64,
    #[serde(borrow)]
    container_id: Cow<'a, str>,
    valid_from_ms: u64,
    expires_at_ms: u64,
    #[serde(default)]
    valid_to_ms: Option<u64>,
    #[serde(borrow, default)]
    boot_id: Cow<'a, str>,
    #[serde(borrow, default)]
    pns_id: Cow<'a, str>,
    #[serde(borrow, default)]
    container_name: Cow<'a, str>,
    #[serde(borrow, default)]
    runtime: Cow<'a, str>,
    #[serde(borrow, default)]
    image_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pod_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pod_namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    pod_uid: Cow<'a, str>,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    nested: bool,
    #[serde(borrow, default)]
    members: Vec<MemberMessage<'a>>,
}

#[derive(Deserialize)]
struct MemberMessage<'a> {
    #[serde(borrow)]
    container_id: Cow<'a, str>,
    #[serde(borrow, default)]
    container_name: Cow<'a, str>,
    #[serde(borrow, default)]
    image_name: Cow<'a, str>,
    #[serde(default)]
    mnt_ns: u64,
    #[serde(borrow, default)]
    cgroup: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::testing::{key_text, mapping_text};

    fn apply(table: &mut Table, inode: u64, value: Option<&str>) -> Applied {
        let key = key_text("h", inode);
        let key = TableKey::parse(key.as_bytes()).expect("a good key");
        table.apply(&key, value.map(str::as_bytes))
    }

    fn ids(table: &Table, inode: u64) -> Vec<&str> {
        let candidates = table.candidates("h", inode);
        candidates.map(|one| one.container_id()).collect()
    }

    #[test]
    fn a_tombstone_takes_all_of_a_number_and_frees_its_texts() {
        let mut table = Table::new();
        for (id, from) in [("a", 100), ("b", 200)] {
            let text = mapping_text("h", 5, id, from, None);
            assert_eq!(apply(&mut table, 5, Some(&text)), Applied::Put);
        }
        assert_eq!(ids(&table, 5), ["b", "a"]);
        assert_eq!(apply(&mut table, 5, None), Applied::Removed);
        assert_eq!(apply(&mut table, 6, None), Applied::Removed);
        assert!(table.is_empty());
        assert_eq!(table.texts.len(), 0);
    }

    #[test]
    fn renewed_rows_take_no_more_room() {
        let mut table = Table::new();
        for valid_to in [None, None, Some(300)] {
            let text = mapping_text("h", 5, "a", 100, valid_to);
            apply(&mut table, 5, Some(&text));
        }
        assert_eq!(ids(&table, 5), ["a"]);
        assert_eq!(table.len(), 1);
        apply(&mut table, 5, None);
        assert_eq!(table.texts.len(), 0);
    }

    #[test]
    fn a_double_of_an_older_mapping_does_not_hide_the_newer_one() {
        let mut table = Table::new();
        for (id, from) in [("b", 200), ("a", 100), ("a", 100), ("c", 150)] {
            let text = mapping_text("h", 5, id, from, None);
            apply(&mut table, 5, Some(&text));
        }
        assert_eq!(ids(&table, 5), ["b", "c", "a"]);
    }

    #[test]
    fn only_the_newest_earlier_ones_are_remembered() {
        let mut table = Table::new();
        for number in 0..20_u64 {
            let text = mapping_text("h", 5, &format!("c{number}"), 100 * number, None);
            apply(&mut table, 5, Some(&text));
        }
        assert_eq!(ids(&table, 5), ["c19", "c18", "c17", "c16", "c15"]);
        apply(&mut table, 5, None);
        assert_eq!(table.texts.len(), 0);
    }

    #[test]
    fn foreign_messages_are_told_from_mappings() {
        let mut table = Table::new();
        let other = mapping_text("h", 6, "a", 100, None);
        for text in [
            "not json",
            "[]",
            "{}",
            r#"{"host_id":"h","pns_inode":"5","container_id":"a","valid_from_ms":1,"expires_at_ms":2}"#,
            r#"{"host_id":"h","pns_inode":5,"container_id":7,"valid_from_ms":1,"expires_at_ms":2}"#,
            other.as_str(),
        ] {
            assert_eq!(apply(&mut table, 5, Some(text)), Applied::Foreign, "{text}");
        }
        for key in ["", "h", "h/", "/5", "h/x", "h/-5", "h/5x"] {
            assert_eq!(TableKey::parse(key.as_bytes()), None, "{key}");
        }
        assert!(table.is_empty());
    }

    #[test]
    fn what_expired_long_ago_is_forgotten() {
        let mut table = Table::new();
        let text = mapping_text("h", 5, "a", 100, None);
        apply(&mut table, 5, Some(&text));
        table.sweep(super::super::testing::EXPIRES_AT_MS + EXPIRED_KEPT_MS);
        assert_eq!(table.len(), 1);
        table.sweep(super::super::testing::EXPIRES_AT_MS + EXPIRED_KEPT_MS + 1);
        assert!(table.is_empty());
        assert_eq!(table.texts.len(), 0);
    }
}
