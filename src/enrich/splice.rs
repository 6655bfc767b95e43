//! Adds an object to the end of an event's JSON, and leaves all its other bytes as they are: no number is written anew,
//! no field moves.

use std::ops::Range;

use super::event::{Shape, TAKEN_SUFFIX};

/// A text with what was added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spliced {
    /// The whole text.
    pub text: Vec<u8>,
    /// Where the addition stands; empty where there is none.
    pub added: Range<usize>,
}

/// The text with `,"name":value` (or `"name":value` in an empty object) before its last brace. `value` is JSON.
///
/// `text` is an object's JSON, as the reader has found; what is none is given back as it is.
pub(super) fn added(text: &[u8], shape: Shape, name: &str, value: &[u8]) -> Spliced {
    let end = text.trim_ascii_end();
    let Some(body) = end.strip_suffix(b"}") else {
        return Spliced::unaltered(text);
    };
    // Room for the quotes, the colon, the comma, and a name that has to be escaped.
    let mut out = Vec::with_capacity(text.len() + value.len() + 2 * name.len() + 16);
    out.extend_from_slice(body);
    if !shape.is_empty {
        out.push(b',');
    }
    if shape.is_taken {
        push_text(&mut out, &format!("{name}{TAKEN_SUFFIX}"));
    } else {
        push_text(&mut out, name);
    }
    out.push(b':');
    out.extend_from_slice(value);
    let added = body.len()..out.len();
    out.extend_from_slice(&text[body.len()..]);
    Spliced { text: out, added }
}

impl Spliced {
    /// A text without an addition.
    pub(super) fn unaltered(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            added: 0..0,
        }
    }

    /// Takes the addition out again.
    pub fn take_back(&mut self) {
        self.text.drain(std::mem::take(&mut self.added));
    }
}

/// Writes a text as JSON.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is written to memory");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;
    use crate::enrich::event::EventReader;
    use crate::enrich::fields::Preset;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// Blanks that JSON allows around a text.
    fn blanks() -> impl Strategy<Value = String> {
        "[ \t\r\n]{0,3}"
    }

    proptest! {
        #[test]
        fn all_that_was_there_stays_byte_by_byte(
            fields in prop::collection::vec(("[a-z]{1,3}|container", json()), 0..5),
            (before, after) in (blanks(), blanks()),
            pretty in any::<bool>(),
        ) {
            let object: Map<String, Value> = fields.into_iter().collect();
            let text = if pretty {
                serde_json::to_string_pretty(&object)
            } else {
                serde_json::to_string(&object)
            };
            let text = format!("{before}{}{after}", text.expect("a value can be written"));
            let reader = EventReader::new(Preset::Quaymaster.fields(), "container").expect("a preset");
            let shape = reader.read(text.as_bytes(), b"", 0).shape;
            let out = added(text.as_bytes(), shape, "container", br#"{"match":"x"}"#);
            let mut back = out.clone();
            back.take_back();
            prop_assert_eq!(&back.text, text.as_bytes());
            let out = String::from_utf8(out.text).expect("it was UTF-8");

            let read: Map<String, Value> = serde_json::from_str(&out).expect("it is an object");
            let name = if object.contains_key("container") { "container_quaymaster" } else { "container" };
            prop_assert_eq!(&read[name]["match"], "x");
            prop_assert_eq!(read.len(), object.len() + 1);
            let brace = text.rfind('}').expect("an object has one");
            prop_assert!(out.starts_with(&text[..brace]));
            prop_assert!(out.ends_with(&text[brace..]));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let reader = EventReader::new(Preset::Tetragon.fields(), "container").expect("a preset");
            let event = reader.read(&bytes, &bytes, 0);
            added(&bytes, event.shape, "container", b"{}");
        }
    }

    #[test]
    fn numbers_are_not_written_anew() {
        let text = br#"{"a":1.0,"b":1e400,"c":123456789012345678901234567890,"d":-0}"#;
        let out = added(text, Shape::default(), "x", b"1").text;
        let expected = br#"{"a":1.0,"b":1e400,"c":123456789012345678901234567890,"d":-0,"x":1}"#;
        assert_eq!(out, expected);
        let out = added(
            b" {} \n",
            Shape {
                is_empty: true,
                is_taken: false,
            },
            "x\"y",
            b"1",
        );
        let out = out.text;
        assert_eq!(out, b" {\"x\\\"y\":1} \n");
    }
}
