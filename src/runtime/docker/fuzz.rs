//! Docker's answers and events as nobody writes them.

use std::sync::Arc;

use super::events::{Lines, parse_line};
use super::normalise;
use super::wire::{Details, ExecDetails, Row, Version};
use crate::fuzzing::feed;
use crate::runtime::lenient::Lenient;

const DETAILS: [&str; 8] = [
    include_str!("fixtures/docker-28-created.json"),
    include_str!("fixtures/docker-28-exited.json"),
    include_str!("fixtures/docker-28-oom-killed.json"),
    include_str!("fixtures/docker-28-paused.json"),
    include_str!("fixtures/docker-28-running.json"),
    include_str!("fixtures/docker-28-start-failed.json"),
    include_str!("fixtures/podman-4-exited.json"),
    include_str!("fixtures/podman-4-running.json"),
];
const EVENTS: [&str; 3] = [
    r#"{"status":"die","id":"a4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab","from":"nginx","Type":"container","Action":"die","Actor":{"ID":"a4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab","Attributes":{"exitCode":"137","image":"nginx","name":"web"}},"scope":"local","time":1640000000,"timeNano":1640000000123456789}"#,
    r#"{"Type":"container","Action":"rename","Actor":{"ID":"a4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab","Attributes":{"name":"new","oldName":"/old"}},"timeNano":1640000000123456789}"#,
    "{\"status\":\"create\"}\r\n{}\n{\"Type\":\"container\"",
];
const VERSION: &str = r#"{"Platform":{"Name":""},"Components":[{"Name":"Engine","Version":"28.5.2"}],"Version":"28.5.2","ApiVersion":"1.51","MinAPIVersion":"1.24"}"#;

fn samples(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn fuzz_docker_inspect() {
    feed("docker inspect", &samples(&DETAILS), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(details) = serde_json::from_str::<Details>(&text) {
            drop(normalise::container(
                details,
                &"docker".into(),
                &"28".into(),
            ));
        }
        drop(serde_json::from_str::<ExecDetails>(&text));
    });
}

#[test]
fn fuzz_docker_list() {
    let list = include_str!("fixtures/docker-28-list.json");
    feed("docker list", &samples(&[list]), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(rows) = serde_json::from_str::<Vec<Lenient<Row>>>(&text) {
            drop(normalise::labelled_as_exit_code(&rows));
            drop(normalise::listing(rows));
        }
    });
}

#[test]
fn fuzz_docker_version() {
    feed("docker version", &samples(&[VERSION]), |bytes| {
        if let Ok(version) = serde_json::from_str::<Version>(&String::from_utf8_lossy(bytes)) {
            let _ = normalise::engine(&version);
        }
    });
}

#[test]
fn fuzz_docker_events() {
    let labels = Arc::new(super::exit_labels::ExitLabels::default());
    feed("docker events", &samples(&EVENTS), |bytes| {
        let mut lines = Lines::default();
        let half = bytes.len() / 2;
        let mut found = lines.push(&bytes[..half]);
        found.extend(lines.push(&bytes[half..]));
        found.extend(lines.finish());
        for line in found.into_iter().flatten() {
            if let Ok(Some(event)) = parse_line(&line) {
                drop(labels.screen(event));
            }
        }
    });
}
