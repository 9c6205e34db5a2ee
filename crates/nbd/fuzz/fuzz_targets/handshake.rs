//! Any bytes as a client's side of the handshake, whole and piece by piece:
//! `cargo +nightly fuzz run handshake` in `crates/nbd`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target runs one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let whole = bodies::handshake(data, usize::MAX);
    assert_eq!(
        whole,
        bodies::handshake(data, usize::from(step)),
        "chunking changed the events"
    );
});
