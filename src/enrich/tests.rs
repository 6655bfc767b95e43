//! The join as a whole.

use super::clock::Now;
use super::event::EventReader;
use super::fields::Preset;
use super::joiner::{Action, Done, Incoming, JoinSettings, Joiner, OnInvalid};
use super::table::TableKey;
use super::testing::{key_text, mapping_text};

struct World {
    joiner: Joiner<u64>,
    now: Now,
    token: u64,
    done: Vec<Done<u64>>,
}

impl World {
    fn new(change: impl FnOnce(&mut JoinSettings)) -> Self {
        let mut settings = JoinSettings {
            added_field: "container".to_owned(),
            grace_ms: 5_000,
            waiting_max: 100,
            waiting_bytes_max: 1 << 20,
            on_invalid: OnInvalid::Pass,
        };
        change(&mut settings);
        let reader = EventReader::new(Preset::Quaymaster.fields(), &settings.added_field);
        Self {
            joiner: Joiner::new(settings, reader.expect("a preset")),
            now: Now {
                wall_ms: 1_000_000,
                steady_ms: 0,
            },
            token: 0,
            done: Vec::new(),
        }
    }

    fn put(&mut self, inode: u64, value: Option<&str>) {
        let key = key_text("h", inode);
        let key = TableKey::parse(key.as_bytes());
        let value = value.map(str::as_bytes);
        self.joiner
            .put(key.as_ref(), value, self.now, &mut self.done);
    }

    fn map(&mut self, inode: u64, id: &str, from_ms: u64, to_ms: Option<u64>) {
        self.put(inode, Some(&mapping_text("h", inode, id, from_ms, to_ms)));
    }

    fn take(&mut self, payload: &str) -> u64 {
        self.token += 1;
        let incoming = Incoming {
            token: self.token,
            payload: payload.as_bytes(),
            key: b"",
            message_ms: 0,
        };
        self.joiner.take(incoming, self.now, &mut self.done);
        self.token
    }

    fn event(&mut self, inode: u64, at_ms: u64) -> u64 {
        self.take(&format!(
            r#"{{"host_id":"h","pns_inode":{inode},"time_ms":{at_ms}000000}}"#
        ))
    }

    fn pass(&mut self, ms: u64) {
        self.now.wall_ms += ms;
        self.now.steady_ms += ms;
        self.joiner.tick(self.now, &mut self.done);
    }

    /// Token and added object of what came out since the last call.
    fn out(&mut self) -> Vec<(u64, serde_json::Value)> {
        let done = std::mem::take(&mut self.done);
        let read = |one: Done<u64>| match one.action {
            Action::Send { payload, .. } => {
                let value: serde_json::Value =
                    serde_json::from_slice(&payload.text).expect("an object comes out");
                (one.token, value["container"].clone())
            }
            other @ (Action::Aside { .. } | Action::Drop) => unreachable!("{other:?}"),
        };
        done.into_iter().map(read).collect()
    }

    fn matches(&mut self) -> Vec<(u64, String)> {
        let word = |value: &serde_json::Value| {
            let text = value["container_id"].as_str().or(value["match"].as_str());
            text.unwrap_or_default().to_owned()
        };
        let out = self.out();
        out.iter()
            .map(|(token, value)| (*token, word(value)))
            .collect()
    }
}

/// 2001, in seconds, so that its nanoseconds are read as such.
const AT: u64 = 1_000_000_000_000;

#[test]
fn an_event_gets_its_container() {
    let mut world = World::new(|_| {});
    world.map(5, "a", AT, None);
    world.event(5, AT + 1);
    let out = world.out();
    assert_eq!(
        out[0].1,
        serde_json::json!({"match":"matched","container_id":"a","container_name":"name-a","image_name":"image",
            "runtime":"docker","pod_name":"","pod_namespace":"","pod_uid":"","shared":false})
    );
    let counts = *world.joiner.counts();
    assert_eq!((counts.events, counts.matched, counts.waited), (1, 1, 0));
}

#[test]
fn a_namespace_below_its_containers_is_told_as_such() {
    let mut world = World::new(|_| {});
    let own = mapping_text("h", 5, "a", AT, None);
    let below = own.replace(r#""shared":false"#, r#""shared":false,"nested":true"#);
    for (mapping, expected) in [(own, None), (below, Some(true))] {
        world.put(5, Some(&mapping));
        world.event(5, AT + 1);
        let out = world.out();
        assert_eq!(out[0].1["container_id"], "a");
        assert_eq!(
            out[0].1.get("nested"),
            expected.map(serde_json::Value::from).as_ref()
        );
    }
}

#[test]
fn an_early_event_waits_for_its_mapping_and_no_other_waits_for_it() {
    let mut world = World::new(|_| {});
    world.map(6, "other", AT, None);
    let early = world.event(5, AT);
    let second = world.event(5, AT + 1);
    let other = world.event(6, AT);
    assert_eq!(world.matches(), [(other, "other".to_owned())]);
    world.pass(4_999);
    assert_eq!(world.matches(), []);
    world.map(5, "a", AT, None);
    assert_eq!(
        world.matches(),
        [(early, "a".to_owned()), (second, "a".to_owned())]
    );
    let counts = *world.joiner.counts();
    assert_eq!((counts.waited, counts.waited_matched), (2, 2));
    assert_eq!(world.joiner.waiting(), (0, 0));
}

#[test]
fn an_event_without_a_mapping_is_passed_on_marked_after_the_grace() {
    let mut world = World::new(|_| {});
    let first = world.event(5, AT);
    world.pass(3_000);
    let second = world.event(5, AT);
    assert_eq!(world.joiner.next_tick_ms(), Some(5_000));
    world.pass(2_000);
    assert_eq!(world.matches(), [(first, "unmatched".to_owned())]);
    world.pass(3_000);
    assert_eq!(world.matches(), [(second, "unmatched".to_owned())]);
    assert_eq!(world.joiner.counts().unmatched, 2);
}

#[test]
fn events_of_one_namespace_keep_their_order() {
    let mut world = World::new(|_| {});
    world.map(5, "a", AT, Some(AT + 10_000));
    // After the end of the one that is known: a new one's, whose mapping is not there yet.
    let early = world.event(5, AT + 60_000);
    let late = world.event(5, AT + 5_000);
    assert_eq!(world.matches(), []);
    world.map(5, "b", AT + 59_000, None);
    assert_eq!(
        world.matches(),
        [(early, "b".to_owned()), (late, "a".to_owned())]
    );
    let late = world.event(5, AT + 9_000);
    assert_eq!(world.matches(), [(late, "a".to_owned())]);
    world.put(5, None);
    let gone = world.event(5, AT + 9_000);
    world.pass(5_000);
    assert_eq!(world.matches(), [(gone, "unmatched".to_owned())]);
}

#[test]
fn when_too_many_wait_the_oldest_goes_first() {
    let mut world = World::new(|settings| settings.waiting_max = 2);
    let tokens: Vec<_> = (0..4).map(|inode| world.event(10 + inode, AT)).collect();
    let unmatched = "unmatched".to_owned();
    assert_eq!(
        world.matches(),
        [(tokens[0], unmatched.clone()), (tokens[1], unmatched)]
    );
    assert_eq!(world.joiner.counts().cut_short, 2);

    let mut world = World::new(|settings| settings.waiting_bytes_max = 1_000);
    let token = world.take(&format!(
        r#"{{"host_id":"h","pns_inode":5,"text":"{}"}}"#,
        "x".repeat(2_000)
    ));
    assert_eq!(world.matches(), [(token, "unmatched".to_owned())]);
    assert_eq!(world.joiner.waiting(), (0, 0));
}

#[test]
fn an_expired_mapping_is_told_as_such() {
    let mut world = World::new(|_| {});
    world.map(5, "a", AT, None);
    world.now.wall_ms = super::testing::EXPIRES_AT_MS + 1;
    let token = world.event(5, AT);
    world.pass(5_000);
    assert_eq!(world.matches(), [(token, "expired".to_owned())]);
}

#[test]
fn a_nested_namespace_has_the_container_that_its_mapping_names() {
    let mut world = World::new(|_| {});
    let nested = |id: &str| {
        mapping_text("h", 5, id, AT, None).replace(
            r#""members":[]"#,
            r#""members":[{"container_id":"x","container_name":"x","kind":"container","pid":7,"mnt_ns":70,"cgroup":"/x"}],"nested":true"#,
        )
    };
    world.put(5, Some(&nested("outer")));
    let event = format!(r#"{{"host_id":"h","pns_inode":5,"time_ms":{AT}000000,"mnt_ns":99}}"#);
    let first = world.take(&event);
    assert_eq!(world.matches(), [(first, "outer".to_owned())]);

    // An inner runtime that is watched by now names it for its container's own.
    world.map(5, "inner", AT, None);
    let second = world.take(&event);
    assert_eq!(world.matches(), [(second, "inner".to_owned())]);
}

#[test]
fn the_member_of_a_shared_namespace_is_told_by_mount_namespace_or_cgroup() {
    let mut world = World::new(|_| {});
    let text = mapping_text("h", 5, "pause", AT, None).replace(
        r#""shared":false,"members":[]"#,
        r#""shared":true,"members":[{"container_id":"pause","container_name":"p","kind":"sandbox","pid":1,"mnt_ns":70,"cgroup":"/pod/p"},
            {"container_id":"web","container_name":"w","image_name":"nginx","kind":"container","pid":2,"mnt_ns":71,"cgroup":"/pod/w"}]"#,
    );
    world.put(5, Some(&text));
    for (more, id, by) in [
        (r#""mnt_ns":71"#, "web", "mnt_ns"),
        (r#""mnt_ns":"mnt:[71]""#, "web", "mnt_ns"),
        (r#""cgroup":"/pod/w""#, "web", "cgroup"),
        (r#""cgroup":"/pod/w/sub""#, "web", "cgroup"),
        (r#""cgroup":"/pod/wx""#, "pause", "top"),
        (r#""mnt_ns":99,"cgroup":"/pod/p""#, "pause", "cgroup"),
        (r#""mnt_ns":99"#, "pause", "top"),
        (r#""mnt_ns":0"#, "pause", "top"),
    ] {
        world.take(&format!(
            r#"{{"host_id":"h","pns_inode":5,"time_ms":{AT}000000,{more}}}"#
        ));
        let out = world.out();
        let told = (&out[0].1["container_id"], &out[0].1["by"]);
        assert_eq!(
            (told.0.as_str(), told.1.as_str()),
            (Some(id), Some(by)),
            "{more}"
        );
        assert_eq!(out[0].1["shared"], true);
    }
}

#[test]
fn invalid_events_are_passed_on_dropped_or_put_aside() {
    let object = r#"{"host_id":"h","pns_inode":"soon"}"#;
    for (on_invalid, payload, expected) in [
        (
            OnInvalid::Pass,
            object,
            Some(
                r#"{"host_id":"h","pns_inode":"soon","container":{"match":"invalid","reason":"bad_pns"}}"#,
            ),
        ),
        (OnInvalid::Pass, "not json", Some("not json")),
        (OnInvalid::Drop, object, None),
    ] {
        let mut world = World::new(|settings| settings.on_invalid = on_invalid);
        world.take(payload);
        let told = match world.done.pop().expect("it is done").action {
            Action::Send { payload, .. } => String::from_utf8(payload.text).ok(),
            Action::Aside { .. } => unreachable!("nothing goes aside"),
            Action::Drop => None,
        };
        assert_eq!(told.as_deref(), expected);
        assert_eq!(world.joiner.counts().invalid.iter().sum::<u64>(), 1);
    }
    let mut world = World::new(|settings| settings.on_invalid = OnInvalid::Topic);
    world.take(object);
    let action = world.done.pop().expect("it is done").action;
    assert!(matches!(action, Action::Aside { payload, .. } if payload == object.as_bytes()));
}

#[test]
fn an_event_that_has_such_a_field_keeps_it() {
    let mut world = World::new(|_| {});
    world.map(5, "a", AT, None);
    world.take(&format!(
        r#"{{"container":"mine","host_id":"h","pns_inode":5,"time_ms":{AT}000000}}"#
    ));
    let Action::Send { payload, .. } = &world.done[0].action else {
        unreachable!("it is sent");
    };
    let value: serde_json::Value = serde_json::from_slice(&payload.text).expect("JSON");
    assert_eq!(value["container"], "mine");
    assert_eq!(value["container_quaymaster"]["container_id"], "a");
    assert_eq!(world.joiner.counts().field_taken, 1);
}

#[test]
fn what_is_forgotten_does_not_come_out() {
    let mut world = World::new(|_| {});
    let (first, second) = (world.event(5, AT), world.event(5, AT));
    world.joiner.forget(|token| *token != first);
    world.pass(5_000);
    assert_eq!(world.matches(), [(second, "unmatched".to_owned())]);
}
