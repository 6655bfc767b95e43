//! End-to-end tests against real runtimes and real brokers.
