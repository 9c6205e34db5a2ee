//! The key child.
fn main() {}
