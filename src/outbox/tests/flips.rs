//! One byte of the file is another, anywhere: it is as it was, or it is set aside; never a panic, never another text.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Messages in the state.
const MESSAGES: u64 = 40;
/// Flips that are tried: spread over the file, a different byte of a page each time.
const FLIPS: usize = 120;

#[test]
fn a_byte_that_flips_anywhere_is_noticed_or_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let mut outbox = open(directory.path(), 1 << 30).outbox;
        for seq in 1..=MESSAGES {
            let text = format!("delta {seq} {}", "x".repeat(200));
            let message = delta(&mut outbox, seq, &text);
            let batch = Batch {
                messages: vec![message],
                ..Batch::default()
            };
            commit(&mut outbox, batch);
        }
    }
    let file = directory.path().join(STATE_FILE);
    let whole = std::fs::read(&file).expect("it can be read");
    let expected = texts(&open(directory.path(), 1 << 30).outbox);
    let (mut panics, mut silent, mut aside, mut same) = (Vec::new(), Vec::new(), 0, 0);
    for flip in 0..FLIPS {
        let at = flip * whole.len() / FLIPS + flip % 97;
        let Some(byte) = whole.get(at) else { continue };
        let mut bytes = whole.clone();
        bytes[at] = byte ^ 0x10;
        std::fs::write(&file, &bytes).expect("it can be written");
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let opened = Outbox::open(
                directory.path(),
                &owner("host"),
                Options { bytes_max: 1 << 30 },
            );
            opened.map(|opened| (opened.set_aside.is_some(), texts(&opened.outbox)))
        }));
        match looked {
            Err(_) => panics.push(at),
            Ok(Err(_)) => silent.push((at, "an error".to_owned())),
            Ok(Ok((true, _))) => aside += 1,
            Ok(Ok((false, found))) if found == expected => same += 1,
            Ok(Ok((false, found))) => silent.push((at, format!("{} texts", found.len()))),
        }
    }
    let size = whole.len();
    assert!(
        panics.is_empty() && silent.is_empty(),
        "of {FLIPS} flips in {size} bytes {aside} were set aside and {same} changed nothing; panics at {panics:?}, \
         unnoticed at {silent:?}"
    );
}
