//! Any text as the configuration file: `tools/fuzz 60 config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealvol_daemon::fuzzing::config(data));
