//! What an enricher serves over HTTP: the same paths as the daemon.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::stats::{Figures, Phase, Stats};
use crate::enrich::event::Defect;
use crate::http::{LIFE_AGE_MAX, Page};

type Labels = Vec<(&'static str, &'static str)>;

/// The page.
#[derive(Clone, Debug)]
pub struct EnrichPage(pub Arc<Stats>);

impl Page for EnrichPage {
    fn dead(&self) -> Option<String> {
        let age = self.0.heartbeat.age();
        (age > LIFE_AGE_MAX)
            .then(|| format!("the enricher has not gone round for {} s", age.as_secs()))
    }

    fn unready(&self) -> Option<String> {
        let figures = self.0.figures();
        if let Some(reason) = self.dead() {
            Some(reason)
        } else if figures.phase != Phase::Live {
            Some(format!("the enricher is {}", figures.phase.as_str()))
        } else if !figures.error.is_empty() {
            let error = crate::runtime::text::escaped(&figures.error);
            Some(format!("the bus is away: {error}"))
        } else {
            None
        }
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("quaymaster_enrich");
        register(&mut registry, &self.0.figures());
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn status(&self) -> Vec<u8> {
        let figures = self.0.figures();
        serde_json::json!({
            "state": figures.phase.as_str(),
            "error": figures.error,
            "events": figures.counts.events,
            "sent": figures.sent,
            "matched": figures.counts.matched,
            "unmatched": figures.counts.unmatched,
            "mappings": figures.mappings,
            "waiting": figures.waiting,
            "in_flight": figures.in_flight,
            "lag": figures.lag,
        })
        .to_string()
        .into_bytes()
    }
}

fn register(registry: &mut Registry, figures: &Figures) {
    let counts = &figures.counts;
    for (name, help, value) in [
        ("events", "Events taken from the input", counts.events),
        ("sent_events", "Events that the output has", figures.sent),
        (
            "aside_events",
            "Invalid events that their own topic has",
            figures.aside,
        ),
        (
            "dropped_events",
            "Invalid events that were dropped",
            figures.dropped,
        ),
        (
            "unaltered_events",
            "Events that were too large with the addition",
            figures.unaltered,
        ),
        (
            "rejected_events",
            "Events that the bus refuses: they are lost",
            figures.rejected,
        ),
        (
            "waited_events",
            "Events that had to wait for their mapping",
            counts.waited,
        ),
        (
            "waited_matched_events",
            "Among them, those that found it by that",
            counts.waited_matched,
        ),
        (
            "cut_short_events",
            "Those let go early, as too many waited",
            counts.cut_short,
        ),
        (
            "field_taken_events",
            "Events with a field of the added object's name",
            counts.field_taken,
        ),
        (
            "mappings_put",
            "Mappings that were put or renewed",
            counts.mappings_put,
        ),
        (
            "mappings_removed",
            "Tombstones of mappings",
            counts.mappings_removed,
        ),
        (
            "foreign_messages",
            "Messages of the mapping topic that are none",
            counts.mappings_foreign,
        ),
        (
            "restarts",
            "Times that it began anew from what was committed",
            figures.restarts,
        ),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let results = Family::<Labels, Counter>::default();
    for (word, value) in [
        ("matched", counts.matched),
        ("unmatched", counts.unmatched),
        ("expired", counts.expired),
        ("ambiguous", counts.ambiguous),
        ("host", counts.host),
    ] {
        results.get_or_create(&vec![("match", word)]).inc_by(value);
    }
    registry.register("joined_events", "Events by what came of them", results);
    let invalid = Family::<Labels, Counter>::default();
    for (defect, value) in Defect::ALL.iter().zip(counts.invalid) {
        invalid
            .get_or_create(&vec![("reason", defect.as_str())])
            .inc_by(value);
    }
    registry.register(
        "invalid_events",
        "Events that cannot be joined, by why",
        invalid,
    );
    let size = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    for (name, help, value) in [
        (
            "table_mappings",
            "Mappings in the table",
            Some(size(figures.mappings)),
        ),
        (
            "waiting_events",
            "Events that wait for their mapping",
            Some(size(figures.waiting)),
        ),
        (
            "waiting_bytes",
            "The bytes of those, about",
            Some(size(figures.waiting_bytes)),
        ),
        (
            "in_flight_events",
            "Events whose output is not acknowledged",
            Some(size(figures.in_flight)),
        ),
        (
            "lag_events",
            "Events of this member's share of the input that are not done",
            figures.lag,
        ),
        (
            "fill_milliseconds",
            "How long the table took to fill",
            Some(figures.filled_ms),
        ),
        ("up", "Whether it joins and the bus takes and gives", {
            let is_up = figures.phase == Phase::Live && figures.error.is_empty();
            Some(u64::from(is_up))
        }),
    ] {
        let Some(value) = value else { continue };
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
}
