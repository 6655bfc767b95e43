//! Finds the sockets of runtimes.
