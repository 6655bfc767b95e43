//! Feeds decoders of foreign bytes with what nobody wrote: arbitrary bytes, and good samples that are cut, changed,
//! repeated and, where they are JSON, given other types.
//!
//! Each decoder has its tests, named `fuzz_…`, beside it. A decoder may refuse what it likes; it must not panic, and
//! must not want more than [`MEMORY_BYTES_MAX`]. `cargo test` gives each some thousand cases, `make fuzz` lets each
//! run for `QUAYMASTER_FUZZ_SECONDS`. What it finds is made as small as it can be, and becomes a test of its own.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

/// Cases of one round; there is one round where nobody says how long.
const CASES: u32 = 4_000;
/// Longest arbitrary input, in bytes.
const ARBITRARY_BYTES_MAX: usize = 600;
/// Most changes of one sample.
const CHANGES_MAX: usize = 6;
/// Room that the process may take. A length that is believed blindly wants more, and ends it.
const MEMORY_BYTES_MAX: u64 = 8 << 30;

/// One change of a sample. Positions are taken modulo what is there.
#[derive(Clone, Debug)]
enum Change {
    Byte(usize, u8),
    Cut(usize),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    /// A piece is put many times.
    Repeat(usize, usize, usize),
    /// One value of a JSON text becomes another kind of value.
    Retype(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<u16>().prop_map(usize::from);
    let small = (1..40_u8).prop_map(usize::from);
    prop_oneof![
        1 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => at.clone().prop_map(Change::Cut),
        1 => (at.clone(), small.clone()).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (at.clone(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at.clone(), small.clone(), small).prop_map(|(at, length, n)| Change::Repeat(at, length, n)),
        4 => (at.clone(), at).prop_map(|(at, which)| Change::Retype(at, which)),
    ]
}

fn input(samples: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let samples = match samples {
        [] => vec![Vec::new()],
        samples => samples.to_vec(),
    };
    let changes = prop::collection::vec(change(), 0..=CHANGES_MAX);
    let changed = (prop::sample::select(samples), changes)
        .prop_map(|(sample, changes)| changes.into_iter().fold(sample, changed));
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..ARBITRARY_BYTES_MAX),
        4 => changed,
    ]
}

fn changed(mut bytes: Vec<u8>, change: Change) -> Vec<u8> {
    let length = bytes.len().max(1);
    match change {
        Change::Byte(at, with) => {
            if let Some(byte) = bytes.get_mut(at % length) {
                *byte = with;
            }
        }
        Change::Cut(at) => bytes.truncate(at % length),
        Change::Remove(at, count) => {
            let from = (at % length).min(bytes.len());
            let to = (from + count).min(bytes.len());
            bytes.drain(from..to);
        }
        Change::Insert(at, new) => {
            let at = (at % length).min(bytes.len());
            bytes.splice(at..at, new);
        }
        Change::Repeat(at, count, times) => {
            let from = (at % length).min(bytes.len());
            let to = (from + count).min(bytes.len());
            let piece = bytes.get(from..to).unwrap_or_default().repeat(times);
            bytes.splice(from..from, piece);
        }
        Change::Retype(at, which) => {
            if let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) {
                let mut left = at % count(&value);
                retype(&mut value, &mut left, which);
                bytes = value.to_string().into_bytes();
            }
        }
    }
    bytes
}

/// Values in a value, with itself.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

fn retype(value: &mut Value, left: &mut usize, which: usize) {
    if *left == 0 {
        *value = odd(which);
    }
    // Wraps after the one that was meant, so that no other is.
    *left = left.wrapping_sub(1);
    match value {
        _ if *left > usize::MAX / 2 => {}
        Value::Array(items) => items.iter_mut().for_each(|item| retype(item, left, which)),
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|item| retype(item, left, which)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn odd(which: usize) -> Value {
    let all = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!("\u{0}\u{1b}[2J\u{202e}"),
        json!("é".repeat(40_000)),
        json!("2024-02-30T25:61:61.999999999999Z"),
        json!("-1"),
        json!("99999999999999999999999999"),
        json!([]),
        json!({}),
        json!([[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]),
        json!({"a": {"a": {"a": {"a": {"a": 1}}}}}),
        json!(vec![Value::Null; 3_000]),
    ];
    all.get(which % all.len()).cloned().unwrap_or_default()
}

/// Gives a decoder inputs without end, or some thousand.
///
/// # Panics
/// When the decoder does, with the smallest input that was found to make it.
pub(crate) fn feed(name: &str, samples: &[Vec<u8>], decode: impl Fn(&[u8])) {
    limit_memory();
    let seconds = std::env::var("QUAYMASTER_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let mut rounds = 0_u64;
    loop {
        let mut runner = TestRunner::new(config.clone());
        let fed = runner.run(&input(samples), |input| {
            decode(&input);
            Ok(())
        });
        assert!(fed.is_ok(), "{name}: {fed:?}");
        rounds += 1;
        if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    if let Some(seconds) = seconds {
        tell(&format!(
            "{name}: {} inputs in {seconds} s, nothing found",
            rounds * u64::from(CASES)
        ));
    }
}

fn limit_memory() {
    let was = getrlimit(Resource::As);
    if was.current.is_none_or(|limit| limit > MEMORY_BYTES_MAX) {
        let current = Some(MEMORY_BYTES_MAX);
        // Where it cannot be set nothing is limited, and all else is tested.
        let _ = setrlimit(Resource::As, Rlimit { current, ..was });
    }
}

/// Past the capture of the test harness.
fn tell(line: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("fuzz: {line}\n").as_bytes());
}

#[test]
fn a_decoder_that_panics_on_one_byte_is_caught() {
    let feeding = || {
        feed("planted", &[b"{\"a\":1}".to_vec()], |bytes| {
            assert!(!bytes.starts_with(b"{\"a\":null"), "planted");
        });
    };
    let caught = std::panic::catch_unwind(feeding);
    assert!(caught.is_err(), "the planted fault was not found");
}
