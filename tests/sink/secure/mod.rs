//! The real binary at brokers that speak TLS and ask who it is: right, wrong and expired certificates, users and
//! passwords, and users who may do just what is documented, or less; and that no secret is found in anything that it says.

mod acl;
mod certificates;
mod jwt;
mod kafka;
mod nats;
mod rights;
mod rights_kafka;
mod rights_nats;
mod run;
mod secure_lab;
