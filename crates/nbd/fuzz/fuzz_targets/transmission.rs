//! Any bytes as a client's side of transmission: `cargo +nightly fuzz run transmission` in
//! `crates/nbd`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target runs one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((terms, data)) = data.split_first_chunk() else {
        return;
    };
    bodies::transmission(data, u16::from_be_bytes(*terms));
});
