//! Any text where a size, a key reference or a volume's name is asked for: `tools/fuzz 60 names`.
#![no_main]

#[path = "../bodies.rs"]
#[expect(dead_code, reason = "each target runs one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::names(data));
