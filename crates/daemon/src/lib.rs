//! `sealvold`: the daemon that attaches encrypted volumes and serves them over NBD.
//!
//! ```text
//! sealvol ─▶ control/ ─▶ operations/ ─▶ registry/, keys ─▶ (key child)
//!                             │
//! NBD client ─▶ engine/ ─▶ exports ─▶ export ─▶ volume
//! ```
//!
//! | question | file |
//! |---|---|
//! | how it starts and stops | `serve.rs` |
//! | what it may be told | `args.rs`, `config.rs` |
//! | who may do what | `rights.rs`, `exports.rs` |
//! | what it trusts | `state_dir.rs`, `registry/` |
//! | what outlives a killed daemon | `working_state.rs` |
//! | commits that no client asked for | `write_back.rs` |
//! | when a key is used, and its record | `keys.rs`, `audit.rs` |
//! | what each command does | `operations/` |
//! | what goes on by itself, through restarts | `jobs/` |
//! | how fast it is | `bench/` |
//! | how fast it may be | `limits/` |
//! | what a failure is called | `error.rs`, `control/reply.rs`, `export.rs` |
//!
//! It is wiring and policy: no format, protocol or cipher is here, and no key-service code is linked.

pub mod args;
mod audit;
mod bench;
mod config;
mod control;
mod daemon;
mod doctor;
pub mod engine;
mod error;
mod export;
pub mod exports;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod hardening;
mod host;
mod jobs;
mod keys;
mod limits;
mod listeners;
mod logging;
mod operations;
mod place;
mod registry;
mod revocation;
mod rights;
pub mod serve;
mod state_dir;
mod timestamp;
mod working_state;
mod write_back;
