//! End-to-end tests: real runtimes, real brokers, the real binary, and consumers that are not our code.
//!
//! Everything that runs is private to its test: `tests/lab/lab` starts it in a folder of its own. A machine that
//! lacks something skips loudly, except where `CI=true`.

#[path = "../sink/secure/certificates.rs"]
#[allow(dead_code, reason = "tests/sink uses the rest")]
mod certificates;

mod brokers;
mod cold;
mod collector;
mod consume;
mod contract;
mod cri_dockerd;
mod crio;
mod early;
mod engines;
mod enrich;
mod files;
mod fold;
mod held;
mod host;
mod image;
mod lab;
mod labs;
mod local;
mod nested;
mod older;
mod operator;
mod own;
mod package;
mod pod;
mod protobuf;
mod safety;
mod sight;
mod storms;
mod story;
mod wait;
mod world;
