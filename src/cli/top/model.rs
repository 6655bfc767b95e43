//! What there is to see: figures of one look, and rates between two. Pure.

use std::time::Duration;

use super::fetch::{Sample, Status};
use crate::runtime::text::escaped;

/// Rates that are kept for the little chart, one a look.
const RATES_MAX: usize = 240;

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) url: String,
    /// Who and in which state.
    pub(super) title: String,
    /// Why what is shown is old; empty where it is not.
    pub(super) trouble: String,
    /// Whether the bus takes messages; `None` where that is not told.
    pub(super) is_bus_up: Option<bool>,
    /// Names and values, from left to right.
    pub(super) figures: Vec<(&'static str, String)>,
    pub(super) runtimes: Vec<[String; 8]>,
    /// Deltas per second, the newest last.
    pub(super) rates: Vec<f64>,
}

impl Shown {
    /// The first look has no rates.
    pub(super) fn first(url: String, sample: &Sample) -> Self {
        let base = Self {
            url,
            ..Self::default()
        };
        base.with(None, sample, 0.0)
    }

    /// A look, `seconds` after the one before.
    pub(super) fn next(&self, before: &Sample, sample: &Sample, seconds: f64) -> Self {
        self.with(Some(before), sample, seconds)
    }

    /// The same as before, with why there is nothing newer.
    pub(super) fn silent(&self, error: &str, since: Duration) -> Self {
        Self {
            trouble: format!("as of {} s ago: {error}", since.as_secs()),
            ..self.clone()
        }
    }

    fn with(&self, before: Option<&Sample>, sample: &Sample, seconds: f64) -> Self {
        let status = &sample.status;
        let same_life = before.filter(|before| before.status.epoch == status.epoch);
        let rate = same_life.and_then(|it| rate(it.status.seq, status.seq, seconds));
        let mut rates = self.rates.clone();
        rates.extend(rate);
        rates.drain(..rates.len().saturating_sub(RATES_MAX));
        Self {
            url: self.url.clone(),
            title: escaped(&format!(
                "{} ({})  quaymaster {}  {}",
                status.host_name, status.host_id, status.version, status.state
            )),
            trouble: String::new(),
            is_bus_up: sample.metrics.get("quaymaster_bus_up").map(|up| *up > 0.0),
            figures: figures(sample, rate),
            runtimes: runtimes(same_life.map(|it| &it.status), status, seconds),
            rates,
        }
    }
}

fn figures(sample: &Sample, rate: Option<f64>) -> Vec<(&'static str, String)> {
    let Status {
        seq,
        containers,
        resync,
        outbox,
        ..
    } = &sample.status;
    let states: Vec<String> = containers
        .iter()
        .map(|(state, count)| format!("{count} {}", escaped(state)))
        .collect();
    let metric = |name: &str| sample.metrics.get(name).copied();
    let count = |name: &str| metric(name).map_or_else(|| "?".to_owned(), |it| format!("{it:.0}"));
    let took = resync.finished_ms.checked_sub(resync.started_ms);
    let took = took.filter(|_| resync.finished_ms > 0);
    vec![
        (
            "containers",
            format!("{} ({})", resync.count, states.join(", ")),
        ),
        (
            "deltas",
            format!(
                "{seq}{}",
                rate.map(|it| format!(", {it:.1}/s")).unwrap_or_default()
            ),
        ),
        (
            "owed to the bus",
            format!("{} messages, {}", outbox.messages, bytes(outbox.bytes)),
        ),
        ("refused by it", outbox.quarantined.to_string()),
        (
            "resync",
            format!(
                "{} {}{}, {} missed",
                resync.package_seq,
                escaped(&resync.state),
                took.map(|ms| format!(" in {ms} ms")).unwrap_or_default(),
                resync.missed
            ),
        ),
        ("namespaces held", count("quaymaster_namespace_fds")),
        ("failed commits", count("quaymaster_failed_commits_total")),
        (
            "last round",
            metric("quaymaster_heartbeat_age_seconds")
                .map_or_else(|| "?".to_owned(), |age| format!("{age:.1} s ago")),
        ),
    ]
}

fn runtimes(before: Option<&Status>, status: &Status, seconds: f64) -> Vec<[String; 8]> {
    let lines = status.runtimes.iter().map(|runtime| {
        let earlier = before.and_then(|before| {
            let same = |it: &&super::fetch::Runtime| it.endpoint == runtime.endpoint;
            before.runtimes.iter().find(same)
        });
        let rate = earlier.and_then(|it| rate(it.events, runtime.events, seconds));
        [
            runtime.name.clone(),
            runtime.version.clone(),
            runtime.stream.clone(),
            runtime.events.to_string(),
            rate.map(|it| format!("{it:.1}")).unwrap_or_default(),
            runtime.dropped.to_string(),
            runtime.endpoint.clone(),
            runtime.error.clone(),
        ]
        .map(|cell| escaped(&cell))
    });
    lines.collect()
}

/// How fast a counter grew; `None` where it was set back, or no time has passed.
fn rate(before: u64, after: u64, seconds: f64) -> Option<f64> {
    let grown = after.checked_sub(before)?;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    (seconds > 0.0).then(|| grown as f64 / seconds)
}

/// A size in the unit that reads best.
fn bytes(count: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(bits, _)| count >> bits > 0);
    match unit {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        Some((bits, unit)) => format!("{:.1} {unit}", count as f64 / (1_u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fetch::Runtime;
    use super::*;

    fn sample(seq: u64, events: u64) -> Sample {
        let runtime = Runtime {
            name: "docker\u{1b}[2J".to_owned(),
            endpoint: "unix:///run/docker.sock".to_owned(),
            stream: "live".to_owned(),
            events,
            ..Runtime::default()
        };
        let status = Status {
            host_id: "h1".to_owned(),
            epoch: "e1".to_owned(),
            state: "live".to_owned(),
            seq,
            runtimes: vec![runtime],
            ..Status::default()
        };
        let metrics = [("quaymaster_bus_up".to_owned(), 0.0)].into();
        Sample { status, metrics }
    }

    fn figure<'a>(shown: &'a Shown, name: &str) -> &'a str {
        let found = shown.figures.iter().find(|(known, _)| *known == name);
        found.map_or("", |(_, value)| value)
    }

    #[test]
    fn rates_come_from_two_looks_of_one_epoch() {
        let (one, two) = (sample(10, 100), sample(30, 140));
        let first = Shown::first("http://a:1".to_owned(), &one);
        assert_eq!(figure(&first, "deltas"), "10");
        assert_eq!(first.runtimes[0][4], "");
        assert_eq!(first.is_bus_up, Some(false));
        let second = first.next(&one, &two, 2.0);
        assert_eq!(figure(&second, "deltas"), "30, 10.0/s");
        assert_eq!(second.runtimes[0][4], "20.0");
        assert_eq!(second.rates, [10.0]);
        let mut other = sample(5, 5);
        other.status.epoch = "e2".to_owned();
        assert_eq!(figure(&second.next(&two, &other, 1.0), "deltas"), "5");
        assert_eq!(second.next(&two, &one, 1.0).runtimes[0][4], "", "set back");
    }

    #[test]
    fn foreign_text_is_made_harmless_and_silence_is_told() {
        let shown = Shown::first("http://a:1".to_owned(), &sample(1, 1));
        assert_eq!(shown.runtimes[0][0], "docker\\u{1b}[2J");
        let silent = shown.silent("refused", Duration::from_secs(7));
        assert_eq!(silent.trouble, "as of 7 s ago: refused");
        assert_eq!(silent.runtimes, shown.runtimes);
    }

    #[test]
    fn sizes_have_their_units() {
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
