//! The real binary at brokers that speak TLS and ask who it is: right, wrong and expired certificates, users and
//! passwords; and that no secret is found in anything that it says.

mod certificates;
mod jwt;
mod kafka;
mod nats;
mod run;
mod secure_lab;
