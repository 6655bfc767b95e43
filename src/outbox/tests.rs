//! The outbox on a real file.

mod flips;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::reconcile::{Identity, Observation, Settings};

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
            value: (!text.is_empty()).then(|| Arc::from(text.as_bytes())),
            ce_id: format!("host:epoch:{row}").into(),
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
    Owed {
        seq,
        ..message(outbox, Topic::Deltas, "", text)
    }
}

fn gap(seq_from: u64, seq: u64, row: u64) -> Outgoing {
    Outgoing {
        row,
        topic: Topic::Deltas,
        host_id: "host".into(),
        item: "".into(),
        op: "gap".into(),
        value: Some(format!("{seq_from}-{seq}").into_bytes().into()),
        ce_id: "".into(),
        ce_type: crate::wire::ce_type(Topic::Deltas),
        ce_source: crate::wire::ce_source("host"),
        time_ms: 7,
    }
}

fn commit(outbox: &mut Outbox, batch: Batch) -> Option<(u64, u64)> {
    outbox
        .commit(batch, &reconciler(), NOW_MS, &gap)
        .expect("it can be committed")
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
    let expected: BTreeSet<_> = [(4_026_532_000, 1), (4_026_532_000, 2)].into();
    assert_eq!(outbox.owed_mappings(), expected);
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
    let acked = vec![rows[0], rows[0], 999_999];
    commit(
        &mut outbox,
        Batch {
            acked,
            ..Batch::default()
        },
    );
    assert_eq!(texts(&outbox), ["two"]);
    assert!(outbox.has_unsynced_acks());
    outbox
        .sync(&reconciler(), NOW_MS)
        .expect("it can be synced");
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
    let rejected = vec![(row, "message too large".to_owned())];
    commit(
        &mut outbox,
        Batch {
            rejected,
            ..Batch::default()
        },
    );
    assert_eq!(outbox.totals().messages, 0);
    assert_eq!(outbox.quarantined(), 1);
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

#[test]
fn an_acknowledgement_that_went_with_a_failed_commit_revives_nothing() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let old = message(&mut outbox, Topic::Records, "a", "old");
    let row = old.outgoing.row;
    let mut buffer = Vec::new();
    let bytes = encode("messages", &MessageToStore::from(&old), &mut buffer)
        .expect("it can be encoded")
        .to_vec();
    let put = Batch {
        messages: vec![old],
        ..Batch::default()
    };
    commit(&mut outbox, put);
    let acked = Batch {
        acked: vec![row],
        ..Batch::default()
    };
    commit(&mut outbox, acked);

    // What a file is that was opened again after an error: the acknowledgement was never synced.
    {
        let guard = outbox.database.read().expect("nobody panicked");
        let database = guard.as_ref().expect("the database is open");
        let transaction = database.begin_write().expect("it can be written");
        let mut table = transaction
            .open_table(MESSAGES)
            .expect("the table is there");
        table
            .insert(row, bytes.as_slice())
            .expect("a row can be put");
        drop(table);
        transaction.commit().expect("it can be committed");
    }
    outbox.recover().expect("it can be opened again");
    let tombstone = message(&mut outbox, Topic::Records, "a", "");
    let put = Batch {
        messages: vec![tombstone],
        ..Batch::default()
    };
    commit(&mut outbox, put);
    drop(outbox);

    let reopened = open(folder.path(), u64::MAX).outbox;
    let owed: Vec<_> = stored(&reopened)
        .into_iter()
        .map(|found| found.value)
        .collect();
    assert_eq!(
        owed,
        [None],
        "the old record would stand after the tombstone"
    );
}

#[test]
fn a_commit_that_failed_and_is_in_the_file_all_the_same_is_owed() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut outbox = open(folder.path(), u64::MAX).outbox;
    let old = message(&mut outbox, Topic::Records, "a", "old");
    let old_row = old.outgoing.row;
    let put = Batch {
        messages: vec![old],
        ..Batch::default()
    };
    commit(&mut outbox, put);

    let new = message(&mut outbox, Topic::Records, "a", "new");
    let new_row = new.outgoing.row;
    let mut buffer = Vec::new();
    let bytes = encode("messages", &MessageToStore::from(&new), &mut buffer)
        .expect("it can be encoded")
        .to_vec();
    {
        let guard = outbox.database.read().expect("nobody panicked");
        let database = guard.as_ref().expect("the database is open");
        let transaction = database.begin_write().expect("it can be written");
        let mut table = transaction
            .open_table(MESSAGES)
            .expect("the table is there");
        table.remove(old_row).expect("a row can be taken");
        table
            .insert(new_row, bytes.as_slice())
            .expect("a row can be put");
        drop(table);
        transaction.commit().expect("it can be committed");
    }
    outbox.recover().expect("it can be opened again");
    assert_eq!(outbox.totals().messages, 1);
    commit(&mut outbox, Batch::default());
    assert_eq!(texts(&outbox), ["new"]);
    let acked = Batch {
        acked: vec![new_row],
        ..Batch::default()
    };
    commit(&mut outbox, acked);
    assert_eq!(outbox.totals(), Totals::default());
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
