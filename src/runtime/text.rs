//! Foreign text and times: what a runtime or the owner of a container wrote is bounded and made harmless here.
//!
//! Pure. Nothing in this module fails: text that is too long is cut, a time that cannot be read is `None`.

use std::collections::BTreeMap;

/// Longest name, image or reason that is kept, in bytes. Kubernetes names have at most 253, image references
/// some hundred; whoever talks to a runtime directly can make them as long as a message.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Most bytes of labels (keys and values together) that are kept of one container. A record must stay far
/// below the 1 MiB that brokers take by default, and JSON escapes may make six bytes of one.
pub const LABELS_BYTES_MAX: usize = 64 * 1024;

/// The label that says how many labels were left out because they passed [`LABELS_BYTES_MAX`].
pub const LABELS_DROPPED_KEY: &str = "io.quaymaster.labels-dropped";

/// The mark at the end of text that was cut.
const CUT_MARK: &str = "…";

/// Takes text as it is, or its beginning and `…` where it is longer than [`TEXT_BYTES_MAX`].
pub fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_MAX - CUT_MARK.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (head, _) = text.split_at(end);
    format!("{head}{CUT_MARK}")
}

/// Takes labels in the order of their keys, as long as they fit into [`LABELS_BYTES_MAX`]. One that does not
/// fit is left out whole, and [`LABELS_DROPPED_KEY`] then says how many were.
pub fn bounded_labels<I>(labels: I) -> BTreeMap<String, String>
where
    I: IntoIterator<Item = (String, String)>,
{
    let mut sorted: BTreeMap<String, String> = labels.into_iter().collect();
    let mut bytes = 0;
    let mut dropped = 0_usize;
    sorted.retain(|key, value| {
        let size = key.len() + value.len();
        let fits = bytes + size <= LABELS_BYTES_MAX;
        if fits {
            bytes += size;
        } else {
            dropped += 1;
        }
        fits
    });
    if dropped > 0 {
        sorted.insert(LABELS_DROPPED_KEY.to_owned(), dropped.to_string());
    }
    sorted
}

/// Makes text fit for a terminal or a log line: control characters, and the characters that change the
/// direction or the look of what follows, are written as `\u{…}`.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Line and paragraph separators, zero-width and bidirectional controls, and tags.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Takes bytes that should be UTF-8; what is not becomes U+FFFD.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A digest without its algorithm: `sha256:ab…` → `ab…`.
pub fn bare_digest(text: &str) -> &str {
    text.strip_prefix("sha256:").unwrap_or(text)
}

/// Whether text is 64 hex digits.
pub fn is_bare_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A 64-bit FNV-1a hash over fields, the same in every build and on every machine, since list rows are kept
/// over restarts. Each field is closed by its length, so that moving text between fields changes the hash.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// An empty hash.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds one field.
    #[must_use]
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.bytes(bytes);
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self
    }

    /// The hash.
    pub fn finish(self) -> u64 {
        self.0
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u64::from(*byte);
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads an RFC 3339 time, as in `2024-01-02T03:04:05.123456789Z` (Docker) or with an offset (Podman), as unix
/// nanoseconds. `None` for what is no time, and for what lies before 1970: Go's zero time,
/// `0001-01-01T00:00:00Z`, with which Docker says "never".
pub fn rfc3339_ns(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let (date, rest) = (text.get(0..10)?, text.get(19..)?);
    let year: i64 = date.get(0..4)?.parse().ok()?;
    let month: i64 = date.get(5..7)?.parse().ok()?;
    let day: i64 = date.get(8..10)?.parse().ok()?;
    let hour: i64 = text.get(11..13)?.parse().ok()?;
    let minute: i64 = text.get(14..16)?.parse().ok()?;
    let second: i64 = text.get(17..19)?.parse().ok()?;
    let separators = [bytes[4], bytes[7], bytes[13], bytes[16]];
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    if separators != *b"--::" || !matches!(bytes[10], b'T' | b't' | b' ') || !in_range {
        return None;
    }

    let (fraction, offset) = match rest.strip_prefix('.') {
        Some(tail) => {
            let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
            (tail.get(..digits)?, tail.get(digits..)?)
        }
        None => ("", rest),
    };
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second
        - offset_seconds(offset)?;
    let total = seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?;
    u64::try_from(total).ok().filter(|ns| *ns > 0)
}

/// Seconds east of UTC: `Z`, `+01:00`.
fn offset_seconds(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match text.get(0..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let hours: i64 = text.get(1..3)?.parse().ok()?;
    let minutes: i64 = text.get(4..6)?.parse().ok()?;
    let fits = text.len() == 6 && text.get(3..4) == Some(":") && hours < 24 && minutes < 60;
    fits.then_some(sign * (hours * 3_600 + minutes * 60))
}

/// Days since 1970-01-01 of a date of the Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_fractions_and_offsets() {
        let cases = [
            ("1970-01-01T00:00:01Z", Some(1_000_000_000)),
            (
                "2024-02-29T12:34:56.123456789Z",
                Some(1_709_210_096_123_456_789),
            ),
            ("2024-02-29T12:34:56.5Z", Some(1_709_210_096_500_000_000)),
            (
                "2024-02-29T13:34:56.5+01:00",
                Some(1_709_210_096_500_000_000),
            ),
            (
                "2024-02-29T07:04:56.5-05:30",
                Some(1_709_210_096_500_000_000),
            ),
            ("0001-01-01T00:00:00Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("9999-12-31T23:59:59Z", None),
            ("2024-13-01T00:00:00Z", None),
            ("2024-02-29T12:34:56", None),
            ("2024-02-29T12:34:56+1", None),
            ("2024-02-29T12:34:5é", None),
            ("", None),
            ("yesterday", None),
        ];
        for (text, expected) in cases {
            assert_eq!(rfc3339_ns(text), expected, "{text}");
        }
    }

    #[test]
    fn text_that_is_too_long_is_cut_between_characters() {
        let long = "ü".repeat(TEXT_BYTES_MAX);
        let cut = bounded(&long);
        assert!(cut.len() <= TEXT_BYTES_MAX);
        assert!(cut.ends_with("ü…"));
        assert_eq!(bounded("nginx"), "nginx");
    }

    #[test]
    fn labels_beyond_the_limit_are_left_out_whole_and_counted() {
        let big = "x".repeat(LABELS_BYTES_MAX);
        let labels = bounded_labels([
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), big),
            ("c".to_owned(), "3".to_owned()),
        ]);
        assert_eq!(labels.get("a").map(String::as_str), Some("1"));
        assert_eq!(labels.get("b"), None);
        assert_eq!(labels.get("c").map(String::as_str), Some("3"));
        assert_eq!(
            labels.get(LABELS_DROPPED_KEY).map(String::as_str),
            Some("1")
        );
    }

    #[test]
    fn control_and_direction_characters_never_reach_a_terminal() {
        assert_eq!(
            escaped("a\x1b[2Jb\u{202e}c\n"),
            "a\\u{1b}[2Jb\\u{202e}c\\u{a}"
        );
        assert_eq!(escaped("straße 容器"), "straße 容器");
    }

    #[test]
    fn a_fingerprint_knows_where_a_field_ends() {
        let one = Fingerprint::new().field(b"ab").field(b"c").finish();
        let other = Fingerprint::new().field(b"a").field(b"bc").finish();
        assert_ne!(one, other);
    }
}
