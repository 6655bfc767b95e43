//! The pure modules stay pure: they name no clock, no I/O and no randomness.

use std::path::Path;

/// Words that have no place there, each with its reason.
const FORBIDDEN: [(&str, &str); 14] = [
    ("SystemTime", "`now` is an argument"),
    ("Instant", "`now` is an argument"),
    ("std::fs", "it does no I/O"),
    ("std::net", "it does no I/O"),
    ("std::os", "it does no I/O"),
    ("std::env", "it reads no environment"),
    ("std::process", "it starts nothing"),
    ("std::thread", "it owns no thread"),
    ("std::sync::Mutex", "it shares nothing"),
    ("tokio", "it awaits nothing"),
    ("rustix", "it does no I/O"),
    ("tracing", "what is worth a line is an effect or a counter"),
    ("HashMap", "order shows"),
    ("rand", "it has no randomness"),
];

/// Folders whose own files are pure; what lies in folders below is not looked at. The last is what is allowed there.
const PURE: [(&str, &[&str]); 3] = [
    ("src/model", &[]),
    ("src/reconcile", &[]),
    // Millions of rows, whose order never shows.
    ("src/enrich", &["HashMap"]),
];

#[test]
fn the_model_the_reconciler_and_the_join_are_pure() {
    let mut files = 0;
    for (folder, allowed) in PURE {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(&folder).expect("the folder is part of the package");
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            files += 1;
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for (word, why) in FORBIDDEN {
                    assert!(
                        allowed.contains(&word) || !names(code, word),
                        "{}:{}: `{word}`: {why}",
                        path.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(files >= 10, "the folders hold the modules");
}

/// Whether a line has the word as a word of its own.
fn names(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}
