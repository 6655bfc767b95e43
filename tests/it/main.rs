//! Integration tests against fakes that speak the real protocols over unix sockets.
