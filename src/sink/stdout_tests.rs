//! The stdout sink over pipes.

use std::io::{BufRead as _, BufReader};
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::model::Topic;
use crate::sink::Report;

const WAIT: Duration = Duration::from_secs(10);

fn message(row: u64, topic: Topic, item: &str, value: Option<&str>) -> Outgoing {
    Outgoing {
        row,
        topic,
        host_id: Arc::from("h\"1"),
        item: Arc::from(item),
        op: Arc::from(""),
        value: value.map(|text| bytes::Bytes::copy_from_slice(text.as_bytes())),
        ce_id: Arc::from("h:e:1"),
        ce_type: "io.quaymaster.delta.v1",
        ce_source: Arc::from("quaymaster"),
        time_ms: 0,
    }
}

struct Running {
    requests: mpsc::Sender<Outgoing>,
    reports: mpsc::Receiver<Report>,
    health: watch::Receiver<SinkHealth>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<Ended, SinkError>>,
}

fn start(writer: impl Write + Send + 'static) -> Running {
    let (requests, request_receiver) = mpsc::channel(16);
    let (report_sender, reports) = mpsc::channel(4);
    let (health_sender, health) = watch::channel(SinkHealth::default());
    let stop = CancellationToken::new();
    let mut sink = StdoutSink::with_writer(&TopicSettings::default(), Box::new(writer));
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        sink.run(request_receiver, report_sender, health_sender, stopped)
            .await
    });
    Running {
        requests,
        reports,
        health,
        stop,
        task,
    }
}

#[tokio::test]
async fn every_message_is_one_json_object_on_one_line_and_reported_in_order() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut running = start(writer);
    let sent = [
        message(
            1,
            Topic::Deltas,
            "",
            Some("{\"op\": \n\r \"start\",\"n\":1.50}"),
        ),
        message(0, Topic::Status, "", Some("{}")),
        message(2, Topic::Pns, "4026532448", None),
        message(3, Topic::Records, "abc", Some("{\"broken\":")),
        message(
            4,
            Topic::Records,
            "abc",
            Some("{\"name\":\"line\\nbreak\"}"),
        ),
    ];
    for one in sent {
        running.requests.send(one).await.expect("it runs");
    }
    drop(running.requests);
    let mut outcomes = Vec::new();
    while let Some(report) = running.reports.recv().await {
        outcomes.push((report.row, matches!(report.outcome, Outcome::Acked(_))));
    }
    assert_eq!(outcomes, [(1, true), (2, true), (3, false), (4, true)]);
    running.task.await.expect("no panic").expect("no error");
    assert!(running.health.borrow().up);

    let lines: Vec<String> = BufReader::new(reader)
        .lines()
        .collect::<Result<_, _>>()
        .expect("text");
    let values: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("one JSON object"))
        .collect();
    assert_eq!(values.len(), 4);
    assert_eq!(values[0]["topic"], "quaymaster.deltas");
    assert_eq!(values[0]["key"], "h\"1");
    assert_eq!(values[0]["value"]["op"], "start");
    assert!(lines[0].contains("1.50"), "the value is embedded as it is");
    assert_eq!(values[2]["key"], "h\"1/4026532448");
    assert!(values[2]["value"].is_null());
    assert_eq!(values[3]["value"]["name"], "line\nbreak");
}

#[tokio::test]
async fn a_closed_pipe_ends_the_run_with_an_error() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let running = start(writer);
    running
        .requests
        .send(message(1, Topic::Deltas, "", Some("{}")))
        .await
        .expect("it runs");
    let ended = tokio::time::timeout(WAIT, running.task)
        .await
        .expect("it ends by itself");
    let error = ended.expect("no panic").expect_err("the pipe is closed");
    assert!(chain(&error).contains("failed to write to stdout"));
    assert!(!running.health.borrow().up);
}

#[tokio::test]
async fn a_reader_that_reads_nothing_holds_up_neither_runtime_nor_stop() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut running = start(writer);
    let big = format!("\"{}\"", "x".repeat(1 << 20));
    running
        .requests
        .send(message(1, Topic::Deltas, "", Some(&big)))
        .await
        .expect("it runs");
    // The test's runtime has one thread: were it blocked, this timer would never fire.
    let nothing = tokio::time::timeout(Duration::from_millis(50), running.reports.recv()).await;
    assert!(nothing.is_err(), "what is not read is not acknowledged");
    running.stop.cancel();
    tokio::time::timeout(WAIT, running.task)
        .await
        .expect("stopped at once")
        .expect("no panic")
        .expect("no error");
    drop(reader);
}

/// Takes a few bytes at a time and is often not ready.
struct Fitful {
    inner: io::PipeWriter,
    calls: usize,
}

impl Write for Fitful {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls % 2 == 1 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.inner.write(&bytes[..bytes.len().min(20)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[tokio::test]
async fn lines_stay_whole_where_stdout_takes_them_piecewise() {
    let (reader, inner) = io::pipe().expect("a pipe");
    let mut running = start(Fitful { inner, calls: 0 });
    for row in 1..=3 {
        running
            .requests
            .send(message(row, Topic::Deltas, "", Some("{\"op\":\"start\"}")))
            .await
            .expect("it runs");
    }
    drop(running.requests);
    for row in 1..=3 {
        let report = running.reports.recv().await.expect("a report");
        assert_eq!(report.row, row);
    }
    running.task.await.expect("no panic").expect("no error");
    for line in BufReader::new(reader).lines() {
        let line = line.expect("text");
        serde_json::from_str::<Value>(&line).expect("one JSON object");
    }
}
