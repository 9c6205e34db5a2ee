//! Any bytes as a directory or map page: `tools/fuzz 60 pages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealvol_volume::fuzzing::pages(data));
