//! The text of `/metrics`, in the OpenMetrics format, made when it is asked for.
//!
//! What the collector tells of runtimes is as old as its newest status, 30 s at most. Labels hold endpoints,
//! states and versions, never what a container can choose.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::View;
use crate::collector::Snapshot;
use crate::local::periodic::Figures;
use crate::runtime::containerd::EarlyPids;
use crate::wire::RuntimeStatus;

type Labels = Vec<(&'static str, String)>;

/// All metrics.
///
/// # Errors
/// None that is known: a string takes all that is written.
pub(super) fn text(view: &View) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("quaymaster");
    let snapshot = view.snapshot.borrow().clone();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    registry.register(
        "build",
        "The version that runs",
        Info::new(vec![("version", version)]),
    );
    let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    gauge.set(view.heartbeat.age().as_secs_f64());
    let help = "How long ago the collector last went round";
    registry.register_with_unit("heartbeat_age", help, Unit::Seconds, gauge);
    let is_up = u64::from(view.health.borrow().up);
    one(
        &mut registry,
        "bus_up",
        "Whether the bus takes messages",
        is_up,
    );
    collector(&mut registry, &snapshot);
    runtimes(&mut registry, &snapshot.status.runtimes);
    early(&mut registry, &view.pids);
    if let Some(figures) = &view.processes {
        processes(&mut registry, figures);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn collector(registry: &mut Registry, snapshot: &Snapshot) {
    let (status, totals) = (&snapshot.status, &snapshot.totals);
    let containers = Family::<Labels, Gauge>::default();
    for (state, count) in &status.containers {
        let labels = vec![("state", (*state).to_owned())];
        containers.get_or_create(&labels).set(signed(*count));
    }
    let help = "Containers and sandboxes by state";
    registry.register("containers", help, containers);
    for (name, help, value) in [
        (
            "outbox_messages",
            "Messages that the bus does not have yet",
            totals.messages,
        ),
        ("outbox_bytes", "The bytes of those messages", totals.bytes),
        ("outbox_deltas", "Deltas among them", totals.deltas),
        ("delta_seq", "The newest delta of the epoch", status.seq),
        (
            "namespace_fds",
            "PID namespaces that are held open",
            snapshot.namespace_fds as u64,
        ),
        (
            "nested_namespaces",
            "Nested PID namespaces that are mapped",
            snapshot.nested as u64,
        ),
        (
            "resync_package_seq",
            "The newest resync",
            status.resync.package_seq,
        ),
        (
            "resync_finished_timestamp_seconds",
            "When it ended; 0 while it runs",
            status.resync.finished_ms / 1_000,
        ),
    ] {
        one(registry, name, help, value);
    }
    for (name, help, value) in [
        (
            "quarantined_messages",
            "Messages that the bus refused",
            status.outbox.quarantined,
        ),
        (
            "failed_commits",
            "Commits of the state that failed",
            snapshot.failed_commits,
        ),
        (
            "resync_missed_changes",
            "Changes that resyncs found and no event had told",
            status.resync.missed,
        ),
        (
            "nested_namespaces_skipped",
            "Nested PID namespaces that looks left out because too many were mapped",
            snapshot.nested_skipped,
        ),
        (
            "nested_processes_denied",
            "Processes that looks for nested PID namespaces might not read",
            snapshot.nested_denied,
        ),
    ] {
        count(registry, name, help, value);
    }
}

fn early(registry: &mut Registry, pids: &EarlyPids) {
    let hints = Family::<Labels, Counter>::default();
    for (origin, value) in [("bundle", pids.of_bundles()), ("event", pids.of_events())] {
        let labels = vec![("origin", origin.to_owned())];
        hints.get_or_create(&labels).inc_by(value);
    }
    let help =
        "Processes that were seen ahead of their container's start, by what told of them first";
    registry.register("hints", help, hints);
    let help = "Bundles of containerd's shims that were not understood";
    count(registry, "skipped_bundles", help, pids.skipped());
}

fn processes(registry: &mut Registry, figures: &Figures) {
    for (name, help, value) in [
        (
            "process_snapshots",
            "Snapshots of the processes that the bus has whole",
            &figures.snapshots,
        ),
        (
            "process_records",
            "Records of processes that the bus has",
            &figures.records,
        ),
        (
            "process_records_lost",
            "Records of processes that the bus refused or did not take in time",
            &figures.lost_records,
        ),
        (
            "process_snapshots_failed",
            "Snapshots of the processes that were not taken or not sent at all",
            &figures.failed,
        ),
    ] {
        count(registry, name, help, value.load(Ordering::Relaxed));
    }
}

fn runtimes(registry: &mut Registry, runtimes: &[RuntimeStatus]) {
    let up = Family::<Labels, Gauge>::default();
    let events = Family::<Labels, Counter>::default();
    let dropped = Family::<Labels, Counter>::default();
    let failed_lists = Family::<Labels, Counter>::default();
    let last_event = Family::<Labels, Gauge>::default();
    let last_resync = Family::<Labels, Gauge>::default();
    for runtime in runtimes {
        let labels = vec![("endpoint", runtime.endpoint.clone())];
        let named = vec![
            ("endpoint", runtime.endpoint.clone()),
            ("name", runtime.name.clone()),
            ("stream", runtime.stream.to_owned()),
            ("version", runtime.version.clone()),
        ];
        let is_up = runtime.stream != "down";
        up.get_or_create(&named).set(i64::from(is_up));
        events.get_or_create(&labels).inc_by(runtime.events);
        dropped.get_or_create(&labels).inc_by(runtime.dropped);
        let failed = failed_lists.get_or_create(&labels);
        failed.inc_by(runtime.failed_lists);
        let seconds = |ms: u64| signed(ms / 1_000);
        last_event
            .get_or_create(&labels)
            .set(seconds(runtime.last_event_ms));
        last_resync
            .get_or_create(&labels)
            .set(seconds(runtime.last_resync_ms));
    }
    registry.register("runtime_up", "Whether a runtime answers", up);
    let help = "Events taken from a runtime's stream";
    registry.register("runtime_events", help, events);
    let help = "Events dropped because we were slow; each causes a resync";
    registry.register("runtime_dropped_events", help, dropped);
    let help = "Lists that failed";
    registry.register("runtime_failed_lists", help, failed_lists);
    let help = "When the newest event came; 0 for never";
    registry.register("runtime_last_event_timestamp_seconds", help, last_event);
    let help = "When a runtime was last listed whole; 0 for never";
    registry.register("runtime_last_resync_timestamp_seconds", help, last_resync);
}

fn count(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn one(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value));
    registry.register(name, help, gauge);
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
