//! Quaymaster.
