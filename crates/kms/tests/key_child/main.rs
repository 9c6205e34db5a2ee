//! `sealvol-keys` as the daemon uses it: every test starts the real program.

mod bao;
mod calls;
mod conformance;
mod files;
mod lifecycle;
#[path = "../../../../tests/src/openbao.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod openbao;
mod place;
mod proxy;
mod secrecy;
mod subject;
mod table;
mod transit;
mod wire;
