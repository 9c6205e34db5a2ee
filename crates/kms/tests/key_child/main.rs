//! `sealvol-keys` as the daemon uses it: every test starts the real program.

mod calls;
mod files;
mod place;
mod secrecy;
mod wire;
