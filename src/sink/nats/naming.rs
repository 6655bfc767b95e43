//! NATS's names: the subject of each message, streams, buckets. Rules: design §3.
//!
//! A token of a subject has letters, digits, `-` and `_`; every other byte is written `=XX` in hex, so that
//! distinct names stay distinct and no name brings a `.`, `*` or `>` of its own. KV keys allow `=`.

use std::fmt::Write as _;

use crate::model::Topic;
use crate::sink::{Outgoing, TopicSettings};

/// The names under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    prefix: String,
    /// The prefix where no `.` may be: in the names of streams and buckets.
    flat_prefix: String,
}

impl Naming {
    pub(crate) fn new(settings: &TopicSettings) -> Self {
        Self {
            prefix: settings.prefix.clone(),
            flat_prefix: settings.prefix.replace('.', "_"),
        }
    }

    /// The stream that holds a topic: `QUAYMASTER_DELTAS`, `KV_quaymaster-records`.
    pub(crate) fn stream(&self, topic: Topic) -> String {
        match topic {
            Topic::Deltas | Topic::Processes | Topic::Ports => {
                format!("{}_{}", self.flat_prefix, topic.as_str()).to_uppercase()
            }
            Topic::Records | Topic::Pns | Topic::Status => format!("KV_{}", self.bucket(topic)),
        }
    }

    /// The KV bucket of a compacted topic: `quaymaster-records`.
    pub(super) fn bucket(&self, topic: Topic) -> String {
        format!("{}-{}", self.flat_prefix, topic.as_str())
    }

    /// What the stream of a topic listens to.
    pub(crate) fn subjects(&self, topic: Topic) -> String {
        format!("{}>", self.subject_start(topic))
    }

    /// Where a message goes.
    pub(super) fn subject(&self, message: &Outgoing) -> String {
        let mut subject = self.subject_start(message.topic);
        push_token(&mut subject, &message.host_id);
        let last = match message.topic {
            Topic::Deltas => &message.op,
            Topic::Records | Topic::Pns | Topic::Status | Topic::Processes | Topic::Ports => {
                &message.item
            }
        };
        if !last.is_empty() {
            subject.push('.');
            push_token(&mut subject, last);
        }
        subject
    }

    /// Where the status of a host goes.
    pub(super) fn host_subject(&self, topic: Topic, host_id: &str) -> String {
        let mut subject = self.subject_start(topic);
        push_token(&mut subject, host_id);
        subject
    }

    /// Where all other messages of a host go.
    pub(super) fn host_subjects(&self, topic: Topic, host_id: &str) -> String {
        format!("{}.>", self.host_subject(topic, host_id))
    }

    /// The item of a state message's subject, as it was before it became a token.
    pub(super) fn item(&self, topic: Topic, host_id: &str, subject: &str) -> Option<String> {
        let start = self.host_subject(topic, host_id);
        token_text(subject.strip_prefix(&start)?.strip_prefix('.')?)
    }

    fn subject_start(&self, topic: Topic) -> String {
        match topic {
            Topic::Deltas | Topic::Processes | Topic::Ports => {
                format!("{}.{}.", self.prefix, topic.as_str())
            }
            Topic::Records | Topic::Pns | Topic::Status => format!("$KV.{}.", self.bucket(topic)),
        }
    }
}

fn push_token(subject: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            subject.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(subject, "={byte:02X}");
        }
    }
}

/// The text that a token was made of; `None` for what is no such token.
pub(crate) fn token_text(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn message(topic: Topic, host: &str, item: &str, op: &str) -> Outgoing {
        Outgoing {
            row: 1,
            topic,
            host_id: Arc::from(host),
            item: Arc::from(item),
            op: Arc::from(op),
            value: None,
            ce_id: Arc::from(""),
            ce_type: "",
            ce_source: Arc::from(""),
            time_ms: 0,
        }
    }

    #[test]
    fn hostile_tokens_are_encoded_and_stay_distinct() {
        let naming = Naming::new(&TopicSettings::default());
        for (topic, host, item, op, subject) in [
            (
                Topic::Deltas,
                "h1",
                "",
                "start",
                "quaymaster.deltas.h1.start",
            ),
            (Topic::Status, "h1", "", "", "$KV.quaymaster-status.h1"),
            (
                Topic::Pns,
                "h1",
                "4026532448",
                "",
                "$KV.quaymaster-pns.h1.4026532448",
            ),
            (
                Topic::Records,
                "a.b",
                "moby:x.>*",
                "",
                "$KV.quaymaster-records.a=2Eb.moby=3Ax=2E=3E=2A",
            ),
            (
                Topic::Status,
                "a=2Eb",
                "",
                "",
                "$KV.quaymaster-status.a=3D2Eb",
            ),
            (
                Topic::Status,
                "ü \r\n",
                "",
                "",
                "$KV.quaymaster-status.=C3=BC=20=0D=0A",
            ),
        ] {
            let made = naming.subject(&message(topic, host, item, op));
            assert_eq!(made, subject);
            let tokens: Vec<_> = made.split('.').filter_map(token_text).collect();
            assert_eq!(tokens.get(2).map(String::as_str), Some(host));
            if !item.is_empty() {
                let read = naming.item(topic, host, subject);
                assert_eq!(read.as_deref(), Some(item), "and back");
            }
        }
    }

    #[test]
    fn what_is_no_token_has_no_text() {
        for token in ["=", "=4", "=ZZ", "=FF", "a=2"] {
            assert_eq!(token_text(token), None, "{token}");
        }
    }

    #[test]
    fn a_prefix_with_dots_is_flat_in_streams_and_buckets() {
        let naming = Naming::new(&TopicSettings {
            prefix: "corp.quay".to_owned(),
            ..TopicSettings::default()
        });
        assert_eq!(naming.stream(Topic::Deltas), "CORP_QUAY_DELTAS");
        assert_eq!(naming.subjects(Topic::Deltas), "corp.quay.deltas.>");
        assert_eq!(naming.stream(Topic::Records), "KV_corp_quay-records");
        assert_eq!(naming.subjects(Topic::Pns), "$KV.corp_quay-pns.>");
    }
}
