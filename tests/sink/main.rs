//! The sinks against real brokers.
