//! The real binary under faults: SIGKILL, brokers that die, runtimes that lie, disks that are full.
//!
//! A course is a generated history. `world.rs` knows the truth and has it told by fakes of Docker and CRI;
//! `oracle.rs` reads the bus as a stranger would and compares. Each run prints its seed; `QUAYMASTER_FAULTS_SEED`
//! repeats it (the history is then the same, the interleaving is the machine's).

#[path = "../sink/admin.rs"]
mod admin;
#[path = "../it/fake_cri.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod fake_cri;
#[path = "../it/fake_docker.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod fake_docker;
#[path = "../sink/lab.rs"]
#[allow(dead_code, reason = "tests/sink uses the rest")]
mod lab;

mod brokers;
mod bus;
mod clock;
mod connections;
mod course;
mod daemon;
mod life;
mod oracle;
mod prng;
mod proxy;
mod world;

mod disks;
mod kills;
mod lost;
mod mixed;
mod refused;
mod runtimes;
mod same_host;
