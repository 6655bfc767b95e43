//! The outbox on a real file.

mod flips;

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::reconcile::{Identity, Observation, Settings};
use crate::wire::{Host, Refresh, Renderer};

const NOW_MS: u64 = 1_700_000_000_000;

fn owner(host: &str) -> Owner {
    Owner {
        host_id: host.into(),
        boot_id: "boot".into(),
        new_epoch: "epoch-1".to_owned(),
    }
}

fn reconciler() -> Reconciler {
    let identity = Identity {
        boot_id: "boot".into(),
        host_pns_inode: 1,
        previous_epoch: None,
    };
    Reconciler::new(identity, Settings::default(), Restored::default())
}

fn open(directory: &Path, bytes_max: u64) -> Opened {
    Outbox::open(directory, &owner("host"), Options { bytes_max }).expect("the outbox opens")
}

fn message(outbox: &mut Outbox, topic: Topic, item: &str, text: &str) -> Owed {
    let row = outbox.take_row();
    Owed {
        outgoing: Outgoing {
            row,
            topic,
            host_id: "host".into(),
            item: item.into(),
            op: "".into(),
            value: (!text.is_empty()).then(|| bytes::Bytes::copy_from_slice(text.as_bytes())),
            ce_id: wire::state_id("host", "epoch-1", row),
            ce_type: crate::wire::ce_type(topic),
            ce_source: crate::wire::ce_source("host"),
            time_ms: 7,
        },
        generation: 0,
        seq: 0,
        stage: Stage::None,
    }
}

fn delta(outbox: &mut Outbox, seq: u64, text: &str) -> Owed {
    let mut owed = message(outbox, Topic::Deltas, "", text);
    owed.outgoing.ce_id = wire::delta_id("host", "epoch-1", seq);
    Owed { seq, ..owed }
}

fn deltas(outbox: &mut Outbox, seqs: std::ops::RangeInclusive<u64>, text: &str) -> Batch {
    Batch {
        messages: seqs.map(|seq| delta(outbox, seq, text)).collect(),
        ..Batch::default()
    }
}

pub(super) fn renderer() -> Renderer {
    let host = Host {
        host_id: "host".into(),
        host_name: "name".into(),
        boot_id: "boot".into(),
        epoch: "epoch-1".into(),
    };
    let refresh = Refresh {
        records_ms: 1,
        pns_ms: 1,
        status_ms: 1,
    };
    Renderer::new(host, refresh)
}

fn acked(row: u64) -> Report {
    let position = Position {
        partition: 3,
        offset: i64::try_from(row).unwrap_or(0) + 1_000,
    };
    Report {
        row,
        outcome: Outcome::Acked(position),
    }
}

fn acks(rows: impl IntoIterator<Item = u64>) -> Batch {
    Batch {
        reports: rows.into_iter().map(acked).collect(),
        ..Batch::default()
    }
}

fn rejected(row: u64) -> Batch {
    Batch {
        reports: vec![Report {
            row,
            outcome: Outcome::Rejected("message too large".to_owned()),
        }],
        ..Batch::default()
    }
}

fn gap(gap: &Gap) -> Outgoing {
    Outgoing {
        row: gap.row,
        topic: Topic::Deltas,
        host_id: "host".into(),
        item: "".into(),
        op: "gap".into(),
        value: Some(format!("{}-{}", gap.seq_from, gap.seq).into_bytes().into()),
        ce_id: "".into(),
        ce_type: crate::wire::ce_type(Topic::Deltas),
        ce_source: crate::wire::ce_source("host"),
        time_ms: 7,
    }
}

fn commit_at(outbox: &mut Outbox, batch: Batch, now_ms: u64) -> Committed {
    outbox
        .commit(batch, &reconciler(), now_ms, &gap)
        .expect("it can be committed")
}

fn commit(outbox: &mut Outbox, batch: Batch) -> Option<(u64, u64)> {
    commit_at(outbox, batch, NOW_MS).dropped
}

fn stored(outbox: &Outbox) -> Vec<Outgoing> {
    outbox
        .reader()
        .read(
            0,
            10_000,
            1 << 30,
            &"host".into(),
            &"/quaymaster/host".into(),
        )
        .expect("it can be read")
}

fn texts(outbox: &Outbox) -> Vec<String> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    stored(outbox)
        .iter()
        .map(|message| {
            message
                .value
                .as_deref()
                .map_or("tombstone".to_owned(), text)
        })
        .collect()
}

#[test]
fn messages_come_back_whole_and_in_order_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let messages = vec![
        delta(&mut outbox, 1, "one"),
        message(&mut outbox, Topic::Records, "a", "record"),
        delta(&mut outbox, 2, "two"),
        message(&mut outbox, Topic::Pns, "4026532000", ""),
    ];
    let sent: Vec<_> = messages.iter().map(|owed| owed.outgoing.clone()).collect();
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    let totals = outbox.totals();
    drop(outbox);
    let opened = open(directory.path(), 1 << 30);
    assert_eq!(stored(&opened.outbox), sent);
    assert_eq!(opened.outbox.totals().messages, totals.messages);
    assert_eq!(opened.outbox.meta().epoch, "epoch-1");
    assert_eq!(opened.last_alive_ms, NOW_MS);
}

#[test]
fn only_the_newest_message_of_a_state_key_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let messages = vec![
        message(&mut outbox, Topic::Records, "a", "old"),
        message(&mut outbox, Topic::Records, "b", "other"),
        message(&mut outbox, Topic::Records, "a", "newer"),
    ];
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    assert_eq!(texts(&outbox), ["other", "newer"]);
    let messages = vec![message(&mut outbox, Topic::Records, "a", "")];
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    assert_eq!(texts(&outbox), ["other", "tombstone"]);
    assert_eq!(outbox.totals().messages, 2);
}

#[test]
fn namespaces_of_one_number_are_never_coalesced() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let mut messages = Vec::new();
    for (generation, text) in [(1, "live"), (1, "ended"), (2, "another")] {
        let owed = message(&mut outbox, Topic::Pns, "4026532000", text);
        messages.push(Owed {
            generation,
            stage: Stage::Mapping,
            ..owed
        });
    }
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    assert_eq!(texts(&outbox), ["ended", "another"]);
    let rows: Vec<_> = stored(&outbox).iter().map(|message| message.row).collect();
    let settled = commit_at(&mut outbox, acks([1].into_iter().chain(rows)), NOW_MS).settled;
    let done = |generation| StageDone {
        pns_inode: 4_026_532_000,
        generation,
        stage: Stage::Mapping,
    };
    assert_eq!(settled, [done(1), done(2)], "each once, by its newest put");
}

#[test]
fn what_the_bus_has_leaves_and_a_row_is_never_used_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let messages = vec![delta(&mut outbox, 1, "one"), delta(&mut outbox, 2, "two")];
    let rows: Vec<_> = messages.iter().map(|owed| owed.outgoing.row).collect();
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    commit(&mut outbox, acks([rows[0], rows[0], 999_999]));
    assert_eq!(texts(&outbox), ["two"]);
    assert!(outbox.has_unsynced_acks());
    commit(&mut outbox, Batch::default());
    assert!(!outbox.has_unsynced_acks());
    drop(outbox);
    let mut opened = open(directory.path(), 1 << 30);
    assert_eq!(texts(&opened.outbox), ["two"]);
    assert!(opened.outbox.take_row() > rows[1] + 1_000);
}

#[test]
fn the_oldest_deltas_go_and_one_gap_stands_in_their_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 10_000).outbox;
    let text = "x".repeat(500);
    let mut dropped = Vec::new();
    for seq in 1..=60 {
        let messages = vec![
            delta(&mut outbox, seq, &text),
            message(&mut outbox, Topic::Records, "a", "kept"),
        ];
        dropped.extend(commit(
            &mut outbox,
            Batch {
                messages,
                ..Batch::default()
            },
        ));
    }
    assert!(dropped.len() > 1, "it was full more than once: {dropped:?}");
    assert!(outbox.totals().bytes <= 10_000 + 1_000);
    let messages = stored(&outbox);
    let gaps: Vec<_> = messages
        .iter()
        .filter(|message| &*message.op == "gap")
        .collect();
    assert_eq!(gaps.len(), 1, "gaps are merged");
    assert_eq!(
        messages[0].row, gaps[0].row,
        "the gap is the oldest message"
    );
    let (_, last) = dropped.last().copied().expect("something was dropped");
    assert_eq!(texts(&outbox)[0], format!("1-{last}"));
    let deltas_left = messages
        .iter()
        .filter(|m| m.topic == Topic::Deltas && &*m.op != "gap")
        .count();
    assert_eq!(
        deltas_left as u64,
        60 - last,
        "what the gap does not cover is there"
    );
    assert!(
        texts(&outbox).contains(&"kept".to_owned()),
        "state is never dropped"
    );
}

#[test]
fn what_is_in_flight_is_not_dropped() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 10_000).outbox;
    let text = "x".repeat(500);
    let messages: Vec<_> = (1..=10).map(|seq| delta(&mut outbox, seq, &text)).collect();
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    assert_eq!(stored(&outbox).len(), 10, "ten are handed to the publisher");
    let messages: Vec<_> = (11..=40)
        .map(|seq| delta(&mut outbox, seq, &text))
        .collect();
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    let messages: Vec<_> = (41..=50)
        .map(|seq| delta(&mut outbox, seq, &text))
        .collect();
    let dropped = commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    let (seq_from, _) = dropped.expect("the limit is passed");
    assert_eq!(seq_from, 11);
}

#[test]
fn a_refused_message_goes_to_quarantine() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let messages = vec![delta(&mut outbox, 1, "too large")];
    let row = messages[0].outgoing.row;
    commit(
        &mut outbox,
        Batch {
            messages,
            ..Batch::default()
        },
    );
    commit(&mut outbox, rejected(row));
    assert_eq!(outbox.quarantined(), 1);
    assert_eq!(texts(&outbox), ["1-1"], "a gap tells of it");
    let gap_row = stored(&outbox)[0].row;
    commit(&mut outbox, rejected(gap_row));
    assert_eq!(outbox.totals().messages, 0, "and none of that one");
}

#[test]
fn a_second_process_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = open(directory.path(), 1 << 30);
    let second = Outbox::open(directory.path(), &owner("host"), Options::default());
    let error = second
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("another quaymaster"), "{error}");
    drop(first);
}

#[test]
fn the_state_of_another_host_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    commit(&mut outbox, Batch::default());
    drop(outbox);
    let other = Outbox::open(directory.path(), &owner("other"), Options::default());
    let error = other
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("belongs to host `host`"), "{error}");
}

#[test]
fn a_damaged_file_is_set_aside_and_a_new_epoch_begins() {
    for damage in [Damage::Garbage, Damage::Truncated] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut outbox = open(directory.path(), 1 << 30).outbox;
        let messages: Vec<_> = (1..=100)
            .map(|seq| delta(&mut outbox, seq, "text"))
            .collect();
        commit(
            &mut outbox,
            Batch {
                messages,
                ..Batch::default()
            },
        );
        drop(outbox);
        let file = directory.path().join(STATE_FILE);
        match damage {
            Damage::Garbage => std::fs::write(&file, vec![0xA5; 100_000]).expect("written"),
            Damage::Truncated => {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(&file)
                    .expect("opened");
                file.set_len(5_000).expect("truncated");
            }
        }
        let owner = Owner {
            new_epoch: "epoch-2".to_owned(),
            ..owner("host")
        };
        let opened = Outbox::open(directory.path(), &owner, Options::default())
            .expect("a new state is made");
        assert!(opened.set_aside.is_some(), "{damage:?}");
        assert_eq!(opened.outbox.meta().epoch, "epoch-2");
        let aside = std::fs::read_dir(directory.path())
            .expect("readable")
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("damaged"));
        assert!(aside, "{damage:?}: the damaged file is kept");
    }
}

#[derive(Debug)]
enum Damage {
    Garbage,
    Truncated,
}

#[test]
fn the_state_is_committed_with_its_messages() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut outbox = open(directory.path(), 1 << 30).outbox;
    let mut reconciler = reconciler();
    reconciler.handle(
        Observation::Began {
            last_alive_ms: 0,
            owed: BTreeSet::new(),
        },
        NOW_MS,
    );
    let messages = vec![delta(&mut outbox, 1, "epoch")];
    outbox
        .commit(
            Batch {
                messages,
                ..Batch::default()
            },
            &reconciler,
            NOW_MS,
            &gap,
        )
        .expect("it can be committed");
    drop(outbox);
    let opened = open(directory.path(), 1 << 30);
    assert_eq!(opened.restored.seq, reconciler.seq());
    assert_eq!(opened.outbox.totals().deltas, 1);
}

/// Puts an earlier content of the file in place, as after a commit that failed, and opens it again.
fn go_back_to(outbox: &mut Outbox, file: &Path, content: &[u8]) {
    outbox.lose_file();
    std::fs::write(file, content).expect("it can be written");
    outbox.recover().expect("it can be opened again");
}

#[test]
fn an_acknowledgement_that_went_with_a_failed_commit_revives_nothing() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join(STATE_FILE);
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let old = message(&mut outbox, Topic::Records, "a", "old");
    let mut messages: Vec<_> = (1..=3).map(|seq| delta(&mut outbox, seq, "x")).collect();
    let rows: Vec<_> = messages.iter().map(|owed| owed.outgoing.row).collect();
    let row = old.outgoing.row;
    messages.push(old);
    let put = Batch {
        messages,
        ..Batch::default()
    };
    commit(&mut outbox, put);
    // The second delta is acknowledged ahead of the first, durably; the file knows nothing of that.
    commit(&mut outbox, acks([rows[1]]));
    commit(&mut outbox, Batch::default());
    let earlier = std::fs::read(&file).expect("it can be read");
    commit(&mut outbox, acks([row, rows[0]]));
    assert_eq!(texts(&outbox), ["x"]);

    go_back_to(&mut outbox, &file, &earlier);
    assert_eq!(texts(&outbox).len(), 4, "the file has them all again");
    let tombstone = message(&mut outbox, Topic::Records, "a", "");
    let put = Batch {
        messages: vec![tombstone],
        ..Batch::default()
    };
    commit(&mut outbox, put);
    drop(outbox);

    let reopened = open(folder.path(), u64::MAX).outbox;
    assert_eq!(texts(&reopened), ["x", "tombstone"]);
    assert_eq!(stored(&reopened)[0].row, rows[2]);
    assert_eq!(reopened.totals().messages, 2);
}

#[test]
fn a_commit_that_failed_and_is_in_the_file_all_the_same_is_owed() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let old = message(&mut outbox, Topic::Records, "a", "old");
    let put = Batch {
        messages: vec![old],
        ..Batch::default()
    };
    commit(&mut outbox, put);
    let earlier = outbox.books.clone();
    let new = message(&mut outbox, Topic::Records, "a", "new");
    let new_row = new.outgoing.row;
    let put = Batch {
        messages: vec![new],
        ..Batch::default()
    };
    commit(&mut outbox, put);
    outbox.books = earlier;

    outbox.recover().expect("it can be opened again");
    assert_eq!(outbox.totals().messages, 1);
    assert!(outbox.take_row() > new_row);
    commit(&mut outbox, Batch::default());
    assert_eq!(texts(&outbox), ["new"]);
    commit(&mut outbox, acks([new_row]));
    assert_eq!(outbox.totals(), Totals::default());
}

#[test]
fn deltas_that_are_acknowledged_out_of_order_leave_in_order() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let batch = deltas(&mut outbox, 1..=4, "x");
    let rows: Vec<_> = batch
        .messages
        .iter()
        .map(|owed| owed.outgoing.row)
        .collect();
    commit(&mut outbox, batch);
    let batch = deltas(&mut outbox, 5..=5, "x");
    let last_row = batch.messages[0].outgoing.row;
    commit(&mut outbox, batch);
    let owed = |outbox: &Outbox| outbox.totals().deltas;
    commit(&mut outbox, acks([rows[1], last_row]));
    assert_eq!(owed(&outbox), 5);
    commit(&mut outbox, acks([rows[0]]));
    assert_eq!(owed(&outbox), 3);
    assert_eq!(outbox.last_acked().map(|acked| acked.seq), Some(2));
    commit(&mut outbox, acks([rows[3], rows[2]]));
    assert_eq!(owed(&outbox), 0);
    assert_eq!(outbox.totals(), Totals::default());
    let newest = outbox.last_acked().expect("one is acknowledged");
    assert_eq!((newest.seq, newest.row), (5, last_row));
    assert_eq!(newest.position, acked_position(last_row));
}

fn acked_position(row: u64) -> Position {
    match acked(row).outcome {
        Outcome::Acked(position) => position,
        Outcome::Rejected(_) | Outcome::Replaced { .. } => unreachable!("it is acknowledged"),
    }
}

#[test]
fn the_oldest_message_has_waited_since_its_commit() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    assert_eq!(outbox.oldest_ms(), 0);
    let batch = deltas(&mut outbox, 1..=2, "x");
    let (first, second) = (
        batch.messages[0].outgoing.row,
        batch.messages[1].outgoing.row,
    );
    commit_at(&mut outbox, batch, NOW_MS);
    let state = message(&mut outbox, Topic::Records, "a", "x");
    let state_row = state.outgoing.row;
    let batch = Batch {
        messages: vec![state],
        ..Batch::default()
    };
    commit_at(&mut outbox, batch, NOW_MS + 5_000);
    assert_eq!(outbox.oldest_ms(), NOW_MS);
    commit_at(&mut outbox, acks([first]), NOW_MS + 6_000);
    assert_eq!(
        outbox.oldest_ms(),
        NOW_MS,
        "a chunk that is acknowledged in part"
    );
    commit_at(&mut outbox, acks([second]), NOW_MS + 7_000);
    assert_eq!(outbox.oldest_ms(), NOW_MS + 5_000);
    commit_at(&mut outbox, acks([state_row]), NOW_MS + 8_000);
    assert_eq!(outbox.oldest_ms(), 0);
    // Long quiet, then a delta: it is not as old as what went before it.
    let batch = deltas(&mut outbox, 3..=3, "x");
    commit_at(&mut outbox, batch, NOW_MS + 90_000);
    assert_eq!(outbox.oldest_ms(), NOW_MS + 90_000);
    drop(outbox);

    let mut outbox = open(folder.path(), u64::MAX).outbox;
    assert_eq!(
        outbox.oldest_ms(),
        NOW_MS + 90_000,
        "the last moment of the earlier life"
    );
}

#[test]
fn a_large_first_commit_makes_room_and_leaves_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    assert!(outbox.file_bytes() < ROOM_BYTES as u64);
    let batch = deltas(&mut outbox, 1..=300, &"x".repeat(1_024));
    let owed: Vec<_> = batch
        .messages
        .iter()
        .map(|owed| owed.outgoing.row)
        .collect();
    commit(&mut outbox, batch);
    assert!(outbox.file_bytes() >= ROOM_BYTES as u64);
    let before = stored(&outbox);
    let rows: Vec<_> = before.iter().map(|message| message.row).collect();
    assert_eq!(rows, owed);
    drop(outbox);

    let mut outbox = open(folder.path(), u64::MAX).outbox;
    assert_eq!(stored(&outbox), before);
    commit(&mut outbox, acks(owed));
    assert_eq!(outbox.totals(), Totals::default());
}

#[test]
fn where_the_newest_acknowledged_delta_is_outlives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    outbox.set_bus("cluster".into());
    let batch = deltas(&mut outbox, 1..=3, "x");
    let row = batch.messages[1].outgoing.row;
    commit(&mut outbox, batch);
    assert_eq!(outbox.last_acked(), None);
    let reader = outbox.reader();
    commit(&mut outbox, acks([row - 1, row]));
    let expected = LastAcked {
        bus: "cluster".into(),
        position: acked_position(row),
        ce_id: wire::delta_id("host", "epoch-1", 2),
        seq: 2,
        row,
    };
    assert_eq!(reader.last_acked().as_ref(), Some(&expected));
    commit(&mut outbox, Batch::default());
    drop((outbox, reader));
    let outbox = open(folder.path(), u64::MAX).outbox;
    assert_eq!(outbox.last_acked().as_ref(), Some(&expected));
    assert_eq!(outbox.reader().last_acked(), Some(expected));
}

#[test]
fn what_the_bus_lost_is_owed_again_as_it_was() {
    for (lost_from, expected) in [(None, 1..=5), (Some(3), 3..=5), (Some(5), 5..=5)] {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut outbox = open(folder.path(), u64::MAX).outbox;
        for seq in 1..=2 {
            let batch = deltas(&mut outbox, seq * 2 - 1..=seq * 2, "x");
            commit(&mut outbox, batch);
        }
        let first = stored(&outbox);
        commit(&mut outbox, acks(first.iter().map(|message| message.row)));
        let batch = deltas(&mut outbox, 5..=5, "x");
        commit(&mut outbox, batch);
        let last = stored(&outbox);
        assert_eq!(last.len(), 1);
        outbox
            .owe_again(lost_from, NOW_MS, &gap)
            .expect("it can be committed");
        let all: Vec<_> = first.into_iter().chain(last).collect();
        let from = *expected.start() as usize - 1;
        assert_eq!(stored(&outbox), all[from..], "{lost_from:?}");
        let totals = outbox.totals();
        assert_eq!(
            (totals.deltas, totals.messages),
            (all.len() as u64 - from as u64, totals.deltas)
        );
        assert!(!outbox.take_snapshot_due(), "nothing is missing");
        assert_eq!(outbox.last_acked(), None);
        commit(&mut outbox, acks(all.iter().map(|message| message.row)));
        assert_eq!(outbox.totals(), Totals::default());
    }
}

#[test]
fn an_acknowledgement_of_before_a_failed_commit_does_not_outlive_a_loss() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join(STATE_FILE);
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let batch = deltas(&mut outbox, 1..=5, "x");
    commit(&mut outbox, batch);
    let all = stored(&outbox);
    let earlier = std::fs::read(&file).expect("it can be read");
    commit(&mut outbox, acks(all.iter().map(|message| message.row)));
    go_back_to(&mut outbox, &file, &earlier);

    outbox
        .owe_again(Some(3), NOW_MS, &gap)
        .expect("it can be committed");
    commit(&mut outbox, Batch::default());
    assert_eq!(stored(&outbox), all, "the bus has lost the last three");
}

#[test]
fn where_the_kept_tail_does_not_reach_a_gap_stands_before_it() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let later_ms = NOW_MS + KEPT_MS + 60_000;
    let batch = deltas(&mut outbox, 1..=10, "old");
    commit(&mut outbox, batch);
    let old = stored(&outbox);
    commit(&mut outbox, acks(old.iter().map(|message| message.row)));
    commit(&mut outbox, Batch::default());
    let batch = deltas(&mut outbox, 11..=12, "new");
    commit_at(&mut outbox, batch, later_ms);
    let new = stored(&outbox);
    let batch = acks(new.iter().map(|message| message.row));
    commit_at(&mut outbox, batch, later_ms);
    commit_at(&mut outbox, Batch::default(), later_ms);
    assert_eq!(outbox.totals(), Totals::default());

    for (lost_from, expected) in [(Some(7), "7-10"), (None, "1-10")] {
        // The second time the first gap is still owed.
        outbox
            .owe_again(lost_from, later_ms, &gap)
            .expect("it can be committed");
        assert_eq!(texts(&outbox), [expected, "new", "new"]);
        assert_eq!(outbox.totals().deltas, 3);
    }
    assert!(outbox.take_snapshot_due(), "a snapshot follows");
    let rows: Vec<_> = stored(&outbox).iter().map(|message| message.row).collect();
    assert!(rows.is_sorted() && rows[0] < new[0].row);
    commit(&mut outbox, acks(rows));
    assert_eq!(outbox.totals(), Totals::default());
    outbox
        .owe_again(Some(11), later_ms, &gap)
        .expect("it can be committed");
    assert_eq!(texts(&outbox), ["new", "new"], "no gap where all is there");
}

#[test]
fn the_kept_tail_is_bounded_in_bytes() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let text = "x".repeat(1024 * 1024);
    for seq in 1..=80 {
        let batch = deltas(&mut outbox, seq..=seq, &text);
        let row = batch.messages[0].outgoing.row;
        commit(&mut outbox, batch);
        commit(&mut outbox, acks([row]));
    }
    commit(&mut outbox, Batch::default());
    let kept = outbox.books.meta.kept_bytes;
    assert!(
        kept <= KEPT_BYTES_MAX && kept > KEPT_BYTES_MAX / 2,
        "{kept}"
    );
    outbox
        .owe_again(None, NOW_MS, &gap)
        .expect("it can be committed");
    let left = outbox.totals();
    let (first, gone) = (texts(&outbox)[0].clone(), 80 - (left.deltas - 1));
    assert_eq!(first, format!("1-{gone}"));
}

#[test]
fn a_delta_with_a_gap_in_its_place_needs_none_behind_it() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let batch = deltas(&mut outbox, 1..=2, "x");
    let row = batch.messages[0].outgoing.row;
    commit(&mut outbox, batch);
    let position = acked_position(row);
    let reason = "too large".to_owned();
    let outcome = Outcome::Replaced { reason, position };
    let reports = vec![Report { row, outcome }, acked(row + 1)];
    commit(
        &mut outbox,
        Batch {
            reports,
            ..Batch::default()
        },
    );
    assert_eq!(outbox.totals(), Totals::default());
    assert_eq!(outbox.quarantined(), 1);
    assert!(outbox.take_snapshot_due());
}

#[test]
fn the_state_of_a_newer_version_is_left_to_it() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    outbox.books.meta.format = FORMAT + 1;
    commit(&mut outbox, Batch::default());
    drop(outbox);
    for _ in 0..2 {
        let refused = Outbox::open(folder.path(), &owner("host"), Options::default());
        assert!(matches!(
            refused.err(),
            Some(OutboxError::Format { found, .. }) if found == FORMAT + 1
        ));
    }
}

#[test]
fn nobody_else_reads_a_state_in_a_directory_that_others_enter() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| {
        let metadata = std::fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let shared = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), shared).expect("it is ours");
    drop(open(folder.path(), u64::MAX));
    assert_eq!(mode(&folder.path().join(STATE_FILE)), 0o600);
    // The directory may be one that others need: `--state-dir /tmp`.
    assert_eq!(mode(folder.path()), 0o755);
}

#[test]
fn the_state_of_another_format_is_set_aside() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    outbox.books.meta.format = 1;
    commit(&mut outbox, Batch::default());
    drop(outbox);
    assert!(matches!(
        Holdings::open(folder.path()).err(),
        Some(OutboxError::Format { found: 1, .. })
    ));
    let other = Owner {
        new_epoch: "epoch-2".to_owned(),
        ..owner("host")
    };
    let opened = Outbox::open(folder.path(), &other, Options::default()).expect("it opens");
    let reason = opened.set_aside.expect("it is set aside");
    assert!(reason.contains("format 1"), "{reason}");
    assert_eq!(opened.outbox.meta().epoch, "epoch-2");
}

#[test]
fn a_state_that_has_gone_back_is_set_aside_and_its_epoch_is_remembered() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let state = folder.path().join(STATE_FILE);
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    commit(&mut outbox, Batch::default());
    drop(outbox);
    let earlier = std::fs::read(&state).expect("it can be read");
    let outbox = open(folder.path(), u64::MAX).outbox;
    outbox.mark.note("epoch-1", 7);
    drop(outbox);
    std::fs::write(&state, earlier).expect("it can be written");

    let other = Owner {
        new_epoch: "epoch-2".to_owned(),
        ..owner("host")
    };
    let opened = Outbox::open(folder.path(), &other, Options::default()).expect("it opens");
    let reason = opened.set_aside.expect("it is set aside");
    assert!(reason.contains("gone back from delta 7 to 0"), "{reason}");
    let meta = opened.outbox.meta();
    assert_eq!(meta.epoch, "epoch-2");
    assert_eq!(meta.previous_epoch.as_deref(), Some("epoch-1"));
}
