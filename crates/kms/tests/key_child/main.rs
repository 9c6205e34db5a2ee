//! `sealvol-keys` as the daemon uses it: every test starts the real program.

mod aliases;
mod aws;
mod aws_kms;
mod aws_kms_outages;
mod azure;
mod backup;
mod bao;
mod calls;
#[path = "../../../../tests/src/certificates.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod certificates;
mod conformance;
mod files;
mod hsm;
mod import;
#[path = "../../../../tests/src/key_vault.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod key_vault;
#[path = "../../../../tests/src/kms_gate.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod kms_gate;
mod lifecycle;
mod master_keys;
#[path = "../../../../tests/src/moto.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod moto;
mod offline;
#[path = "../../../../tests/src/openbao.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod openbao;
mod pkcs11;
mod place;
#[path = "../../../../tests/src/plain_http.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod plain_http;
mod policy;
mod proxy;
mod recovery;
mod secrecy;
#[path = "../../../../tests/src/softhsm.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod softhsm;
mod subject;
#[path = "../../../../tests/src/swtpm.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod swtpm;
mod table;
mod tombstones;
mod tpm;
mod tpm2;
mod transit;
mod vault;
mod wire;
