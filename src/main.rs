//! The `quaymaster` command.

fn main() {}
