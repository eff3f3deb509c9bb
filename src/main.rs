//! The `srp` command.
fn main() {}
