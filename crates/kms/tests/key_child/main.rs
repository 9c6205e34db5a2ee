//! `sealvol-keys` as the daemon uses it: every test starts the real program.

mod bao;
mod calls;
mod conformance;
mod files;
mod hsm;
mod lifecycle;
#[path = "../../../../tests/src/openbao.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod openbao;
mod pkcs11;
mod place;
mod proxy;
mod secrecy;
#[path = "../../../../tests/src/softhsm.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod softhsm;
mod subject;
#[path = "../../../../tests/src/swtpm.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod swtpm;
mod table;
mod tpm;
mod tpm2;
mod transit;
mod wire;
