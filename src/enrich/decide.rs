//! Whose an event is: the one place that decides it.
//!
//! An event belongs to the mapping of its (host, number) whose time holds the event's, give or take [`TOLERANCE_MS`]. Where
//! two would do within the tolerance, the one that has the time strictly wins; where that does not tell either, nobody
//! gets it: better no owner than a wrong one.

use super::event::Question;
use super::table::{Candidate, Table};

/// How far the clocks of collector and event may be apart (design §3.3).
pub const TOLERANCE_MS: u64 = 2_000;

/// The number of a host's own PID namespace: `PROC_PID_INIT_INO` of the kernel's `include/linux/proc_ns.h`.
pub const HOST_PNS_INODE: u64 = 0xEFFF_FFFC;

/// What the table says now.
#[derive(Debug)]
pub(super) enum Decision<'t> {
    /// It belongs to this one.
    Matched(Candidate<'t>),
    /// It belongs to one of these, and which one cannot be told.
    Ambiguous(Vec<&'t str>),
    /// It is the host's own.
    Host,
    /// A mapping that has the time has expired; one that renews it may come.
    Expired,
    /// No mapping has it yet; one may come.
    Unknown,
    /// No mapping has it, and none will.
    Never,
}

/// Decides at `now_ms`, unix milliseconds.
pub(super) fn decide<'t>(table: &'t Table, question: &Question<'_>, now_ms: u64) -> Decision<'t> {
    if question.pns_inode == HOST_PNS_INODE {
        return Decision::Host;
    }
    let candidates = || table.candidates(&question.host, question.pns_inode);
    for tolerance_ms in [0, TOLERANCE_MS] {
        let mut holding = candidates().filter(|one| one.has(question.time, tolerance_ms));
        let Some(first) = holding.next() else {
            continue;
        };
        let others: Vec<_> = holding.map(|one| one.container_id()).collect();
        if others.is_empty() {
            return if first.is_expired(now_ms) {
                Decision::Expired
            } else {
                Decision::Matched(first)
            };
        }
        let mut all = vec![first.container_id()];
        all.extend(others);
        return Decision::Ambiguous(all);
    }
    // Asked after the table: to a sensor that runs in a container, that one's namespace may be the root.
    if question.is_root {
        return Decision::Host;
    }
    match candidates().next() {
        // Messages of one key come in order: behind a newer namespace no older one's mapping comes any more.
        Some(newest) if !newest.may_be_followed_by(question.time) => Decision::Never,
        Some(_) | None => Decision::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::EventTime;
    use super::super::table::TableKey;
    use super::super::testing::{EXPIRES_AT_MS, key_text, mapping_text};
    use super::*;

    fn table(rows: &[(&str, u64, Option<u64>)]) -> Table {
        let mut table = Table::new();
        for (id, from, to) in rows {
            let text = mapping_text("h", 5, id, *from, *to);
            let key = key_text("h", 5);
            let key = TableKey::parse(key.as_bytes()).expect("a good key");
            table.apply(&key, Some(text.as_bytes()));
        }
        table
    }

    fn question(from_ms: u64, to_ms: u64) -> Question<'static> {
        Question {
            host: "h".into(),
            pns_inode: 5,
            time: EventTime { from_ms, to_ms },
            mnt_ns: 0,
            cgroup: None,
            is_root: false,
        }
    }

    fn word(decision: &Decision<'_>) -> String {
        match decision {
            Decision::Matched(one) => one.container_id().to_owned(),
            Decision::Ambiguous(ids) => format!("ambiguous {}", ids.join(" ")),
            Decision::Host => "host".to_owned(),
            Decision::Expired => "expired".to_owned(),
            Decision::Unknown => "unknown".to_owned(),
            Decision::Never => "never".to_owned(),
        }
    }

    #[test]
    fn an_event_belongs_to_whoever_had_the_number_then() {
        let alone = [("a", 100_000, None)];
        let ended = [("a", 100_000, Some(200_000))];
        let reused = [("a", 100_000, Some(200_000)), ("b", 300_000, None)];
        // The collector was killed: the first one's end is not known, and the second begins at once.
        let killed = [("a", 100_000, None), ("b", 200_000, None)];
        // One millisecond between them.
        let quick = [("a", 100_000, Some(199_999)), ("b", 200_001, None)];
        let three = [
            ("a", 1_000, Some(2_000)),
            ("b", 3_000, Some(4_000)),
            ("c", 5_000, None),
        ];
        for (rows, at, expected) in [
            (&alone[..], 97_999, "never"),
            (&alone, 98_000, "a"),
            (&alone, 100_000, "a"),
            (&alone, 900_000, "a"),
            (&ended, 200_000, "a"),
            (&ended, 202_000, "a"),
            (&ended, 202_001, "unknown"),
            (&reused, 199_000, "a"),
            (&reused, 201_000, "a"),
            (&reused, 250_000, "never"),
            (&reused, 299_000, "b"),
            (&reused, 300_000, "b"),
            (&reused, 50_000, "never"),
            (&killed, 199_999, "a"),
            (&killed, 200_000, "b"),
            (&quick, 199_999, "a"),
            (&quick, 200_000, "ambiguous b a"),
            (&quick, 200_001, "b"),
            (&three, 1_500, "a"),
            (&three, 3_500, "b"),
            (&three, 6_000, "c"),
            (&[], 1, "unknown"),
        ] {
            let table = table(rows);
            let decision = decide(&table, &question(at, at), 0);
            assert_eq!(word(&decision), expected, "{rows:?} at {at}");
        }
    }

    #[test]
    fn a_time_in_whole_seconds_is_all_of_that_second() {
        let reused = table(&[("a", 100_000, Some(200_400)), ("b", 200_600, None)]);
        for (from, expected) in [(199_000, "a"), (200_000, "ambiguous b a"), (201_000, "b")] {
            let decision = decide(&reused, &question(from, from + 999), 0);
            assert_eq!(word(&decision), expected, "{from}");
        }
    }

    #[test]
    fn what_has_expired_is_nobodys() {
        let table = table(&[("a", 100_000, None)]);
        let question = question(150_000, 150_000);
        assert_eq!(word(&decide(&table, &question, EXPIRES_AT_MS)), "a");
        assert_eq!(
            word(&decide(&table, &question, EXPIRES_AT_MS + 1)),
            "expired"
        );
    }

    #[test]
    fn the_hosts_own_namespace_is_known_without_a_mapping() {
        let table = Table::new();
        let kernel = Question {
            pns_inode: HOST_PNS_INODE,
            ..question(1, 1)
        };
        let told = Question {
            is_root: true,
            ..question(1, 1)
        };
        for question in [kernel, told] {
            assert_eq!(word(&decide(&table, &question, 0)), "host");
        }
    }

    #[test]
    fn a_container_that_its_own_sensor_takes_for_the_host_is_no_host() {
        let table = table(&[("sensor", 100_000, None)]);
        for (at, expected) in [(150_000, "sensor"), (50_000, "host")] {
            let question = Question {
                is_root: true,
                ..question(at, at)
            };
            assert_eq!(word(&decide(&table, &question, 0)), expected, "{at}");
        }
    }

    #[test]
    fn another_hosts_number_is_another_one() {
        let table = table(&[("a", 100_000, None)]);
        let other = Question {
            host: "other".into(),
            ..question(150_000, 150_000)
        };
        assert_eq!(word(&decide(&table, &other, 0)), "unknown");
    }
}
