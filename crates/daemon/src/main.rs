//! See Cargo.toml for what this program is for.
fn main() {}
