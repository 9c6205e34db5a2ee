//! A harness for tests that drive the real programs: `sealvold`, `sealvol` and `sealvol-keys` as they were built, and clients
//! that nobody here wrote (libnbd, QEMU, fio, the kernel).
//!
//! What always holds:
//! - each test has its own state and runtime directory and its own daemon, so tests run side by side;
//! - what a test starts ends with it: every process and mount here is owned by a value whose `Drop` ends it;
//! - a test fails with the command line, exit code and output of what it ran, and with the daemon's log.
//!
//! What it never does: link any crate of the daemon. A test here knows what a user can know.

pub mod aws;
pub mod block_device;
pub mod certificates;
pub mod crowd;
pub mod daemon;
pub mod evidence;
pub mod key_material;
pub mod key_vault;
pub mod kms_gate;
pub mod load;
pub mod machine;
pub mod moto;
pub mod onlookers;
pub mod openbao;
pub mod outcome;
pub mod pattern;
pub mod peer;
pub mod place;
pub mod plain_http;
pub mod programs;
pub mod recovery;
pub mod resident;
pub mod serial;
pub mod softhsm;
pub mod superblock;
pub mod swtpm;
pub mod victim;
