//! Process events of any tool, and mappings that a collector did not write.

use serde_json::Value;

use super::clock::Now;
use super::event::EventReader;
use super::fields::Preset;
use super::joiner::{Action, Incoming, JoinSettings, Joiner, OnInvalid};
use super::table::TableKey;
use super::testing::{key_text, mapping_text};
use crate::fuzzing::feed;

const INODE: u64 = 4_026_532_448;
const NOW: Now = Now {
    wall_ms: 2_000_000,
    steady_ms: 0,
};
const EVENTS: [&str; 5] = [
    r#"{"host_id":"h","pns_inode":4026532448,"time_ms":1000000,"pid":7,"big":18446744073709551615}"#,
    r#"{"data_type":59,"timestamp":1000,"fields":{"host_id":"h","pns_inode":"4026532448","pid_ns":"pid:[4026532448]","exe":"/bin/sh"}}"#,
    r#"{"agent_id":"h","timestamp":"1000","data_type":"59","pns":"4026532448","root_pns":"4026531836","container":{"a":1}}"#,
    r#"{"process_exec":{"process":{"ns":{"pid":{"inum":4026532448,"is_host":false}},"pid":7}},"node_name":"h","time":"1970-01-01T00:16:40.5Z"}"#,
    " { \"hostIdentifier\" : \"h\", \"columns\":{\"pid_namespace\":\"4026532448\",\"cmdline\":\"\\u0000\\ud83d\\ude00\"},\"unixTime\":1000 } \n",
];

fn joiner(preset: Preset) -> Joiner<()> {
    let settings = JoinSettings {
        added_field: preset.added_field().to_owned(),
        grace_ms: 0,
        waiting_max: 10,
        waiting_bytes_max: 1 << 16,
        on_invalid: OnInvalid::Pass,
    };
    let reader = EventReader::new(preset.fields(), &settings.added_field);
    Joiner::new(settings, reader.expect("a preset"))
}

fn samples(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What goes on is what came, with one object more: JSON where it was JSON, and the rest untouched.
#[test]
fn fuzz_process_events() {
    let joiners = Preset::ALL.map(|preset| {
        let mut joiner = joiner(preset);
        let (key, mapping) = (
            key_text("h", INODE),
            mapping_text("h", INODE, "abc", 0, None),
        );
        let key = TableKey::parse(key.as_bytes());
        joiner.put(key.as_ref(), Some(mapping.as_bytes()), NOW, &mut Vec::new());
        std::cell::RefCell::new(joiner)
    });
    feed("process events", &samples(&EVENTS), |payload| {
        for joiner in &joiners {
            let (mut joiner, mut done) = (joiner.borrow_mut(), Vec::new());
            let incoming = Incoming {
                token: (),
                payload,
                key: b"h",
                message_ms: 1_000_000,
            };
            joiner.take(incoming, NOW, &mut done);
            let later = Now {
                steady_ms: 60_000,
                ..NOW
            };
            joiner.tick(later, &mut done);
            assert_eq!(done.len(), 1, "an event comes out once");
            for done in done {
                if let Action::Send { mut payload, .. } = done.action {
                    if serde_json::from_slice::<Value>(&payload.text).is_err() {
                        payload.take_back();
                        let was = serde_json::from_slice::<Value>(&payload.text);
                        assert!(was.is_err(), "it made bad JSON of good");
                    }
                    payload.take_back();
                }
            }
        }
    });
}

#[test]
fn fuzz_mappings() {
    let mappings = [
        mapping_text("h", INODE, "abc", 1, None),
        mapping_text("h", INODE, "abc", 1, Some(2)),
        mapping_text("h", INODE, "abc", 1, None).replace(
            "\"members\":[]",
            r#""members":[{"container_id":"abc","container_name":"n","kind":"container","pid":7,"mnt_ns":4026532449,"cgroup":"/docker/abc"}]"#,
        ),
    ];
    let texts = mappings.each_ref().map(String::as_str);
    let key = key_text("h", INODE);
    let table = std::cell::RefCell::new(super::table::Table::new());
    feed("mappings", &samples(&texts), |value| {
        let mut table = table.borrow_mut();
        if let Some(key) = TableKey::parse(value) {
            drop(format!("{key:?}"));
        }
        if let Some(key) = TableKey::parse(key.as_bytes()) {
            table.apply(&key, Some(value));
        }
        table.sweep(NOW.wall_ms);
        assert!(table.len() <= 1, "one key has {} rows", table.len());
    });
}
