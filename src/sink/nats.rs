//! The nats sink.
