//! Any bytes as a superblock slot: `tools/fuzz 60 superblock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealvol_volume::fuzzing::superblock(data));
