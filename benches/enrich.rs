//! The join without a bus: a million mappings, events parsed, joined and rendered, one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use quaymaster::enrich::clock::Now;
use quaymaster::enrich::event::EventReader;
use quaymaster::enrich::fields::Preset;
use quaymaster::enrich::joiner::{Action, Incoming, JoinSettings, Joiner, OnInvalid};
use quaymaster::enrich::table::TableKey;

const HOSTS: usize = 10_000;
const CONTAINERS: usize = 100;
const EVENTS: usize = 500_000;
const NOW_MS: u64 = 1_700_000_000_000;
const FIRST_INODE: usize = 4_026_540_000;

/// Counts what is allocated, as it was asked for.
pub(crate) struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// Whether it counts: the other benchmarks are left alone.
static IS_COUNTING: AtomicBool = AtomicBool::new(false);

fn counted(taken: usize, given_back: usize) {
    if IS_COUNTING.load(Ordering::Relaxed) {
        ALLOCATED.fetch_add(taken, Ordering::Relaxed);
        ALLOCATED.fetch_sub(given_back, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator that counts, in a benchmark")]
// SAFETY: everything is the system allocator's; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        counted(layout.size(), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        counted(0, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        counted(size, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn run() -> anyhow::Result<()> {
    let mappings = HOSTS * CONTAINERS;
    println!(
        "== enrich: {EVENTS} events against {mappings} mappings of {HOSTS} hosts, one thread, no bus"
    );
    let settings = JoinSettings {
        added_field: "container".to_owned(),
        grace_ms: 5_000,
        waiting_max: 100_000,
        waiting_bytes_max: 64 << 20,
        on_invalid: OnInvalid::Pass,
    };
    let reader = EventReader::new(Preset::Quaymaster.fields(), "container");
    let mut joiner = Joiner::new(settings, reader.map_err(anyhow::Error::msg)?);
    let now = Now {
        wall_ms: NOW_MS,
        steady_ms: 0,
    };
    let mut done = Vec::new();
    IS_COUNTING.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let mut texts = 0;
    for host in 0..HOSTS {
        for container in 0..CONTAINERS {
            let (key, value, text) = mapping(host, container);
            texts += text;
            joiner.put(
                TableKey::parse(key.as_bytes()).as_ref(),
                Some(value.as_bytes()),
                now,
                &mut done,
            );
        }
    }
    let filled = began.elapsed().as_secs_f64();
    IS_COUNTING.store(false, Ordering::Relaxed);
    let bytes = ALLOCATED.load(Ordering::Relaxed) as f64;
    anyhow::ensure!(joiner.table_len() == mappings, "a mapping is missing");
    let (bytes_each, texts_each) = (bytes / mappings as f64, texts as f64 / mappings as f64);
    println!(
        "filled in {filled:.1} s ({:.0} mappings/s, making their JSON included)",
        mappings as f64 / filled
    );
    println!(
        "memory: {bytes_each:.0} bytes a mapping, of which {texts_each:.0} are texts of its own: {:.0} beside them (goal 250, ratio {:.2})",
        bytes_each - texts_each,
        (bytes_each - texts_each) / 250.0
    );

    let events: Vec<_> = (0..EVENTS).map(event).collect();
    let length = events.iter().map(String::len).sum::<usize>() / EVENTS;
    let mut rendered = 0;
    let began = Instant::now();
    for (token, event) in events.iter().enumerate() {
        let incoming = Incoming {
            token,
            payload: event.as_bytes(),
            key: b"",
            message_ms: NOW_MS,
        };
        joiner.take(incoming, now, &mut done);
        for one in done.drain(..) {
            if let Action::Send { payload, .. } = one.action {
                rendered += payload.text.len();
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let matched = joiner.counts().matched;
    anyhow::ensure!(matched == EVENTS as u64, "only {matched} were matched");
    let rate = EVENTS as f64 / seconds;
    println!(
        "joined: {rate:.0} events/s of {length} bytes, {} bytes out (goal 100,000, ratio {:.2}; {:.2} µs an event)",
        rendered / EVENTS,
        rate / 100_000.0,
        1e6 / rate
    );
    Ok(())
}

/// Key, value, and the bytes of the texts that are this mapping's own.
fn mapping(host: usize, container: usize) -> (String, String, usize) {
    let inode = FIRST_INODE + container;
    let id = format!("{:064x}", host * CONTAINERS + container);
    let name = format!("service-{container}");
    let pod = format!("service-{container}-7d9f8b6c5d-{host:05}");
    let uid = format!(
        "6f1d2c3b-0000-4000-8000-{:012x}",
        host * CONTAINERS + container
    );
    let value = format!(
        r#"{{"schema_version":1,"host_id":"{host:032x}","boot_id":"b0074b4d-0000-4000-8000-{host:012x}","pns":"pid:[{inode}]","pns_inode":{inode},"pns_id":"{inode}","container_id":"{id}","container_name":"{name}","runtime":"cri","image_name":"registry.local/team/service-{}:1.21","pod_name":"{pod}","pod_namespace":"team-{}","pod_uid":"{uid}","pid":12345,"valid_from_ms":{},"valid_to_ms":null,"expires_at_ms":{},"shared":false,"members":[{{"container_id":"{id}","container_name":"{name}","kind":"container","pid":12345,"mnt_ns":4026532449,"cgroup":"/kubepods/{id}"}}],"epoch":"e","seq":1}}"#,
        container % 50,
        container % 20,
        NOW_MS - 1_000_000,
        NOW_MS + 10_000_000,
    );
    let texts = id.len() + name.len() + pod.len() + uid.len();
    (format!("{host:032x}/{inode}"), value, texts)
}

/// An event of data type 5050; hosts and containers in no order.
fn event(number: usize) -> String {
    let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let (host, container) = (scattered % HOSTS, scattered / HOSTS % CONTAINERS);
    let inode = FIRST_INODE + container;
    format!(
        r#"{{"schema_version":1,"data_type":5050,"timestamp":{},"fields":{{"pid":"{number}","ppid":"1","ns_pid":"7","exe":"/usr/bin/python3.11","cmdline":"python3 -m service --port 8080 --config /etc/service/config.yaml","uid":"1000","gid":"1000","comm":"python3","state":"S","start_time":"1699999000","session":"1","tty":"0","pid_ns":"pid:[{inode}]","pns_inode":"{inode}","mnt_ns":"4026532449","host_id":"{host:032x}","host_name":"worker-{host}","boot_id":"b0074b4d-0000-4000-8000-{host:012x}"}}}}"#,
        NOW_MS / 1_000,
    )
}
