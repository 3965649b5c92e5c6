//! Demo agent.
fn main() {}
