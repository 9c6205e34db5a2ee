//! The key service that a scanned daemon has its keys from: how the daemon is told of it, what is done to its key, and how the
//! scanner asks it for the same keys by itself.
//!
//! A provider joins the scan by a variant here and a function in `secrets_of.py`.

use std::ffi::OsString;
use std::path::PathBuf;

use sealvol_tests::aws;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::moto::{Moto, REGION};
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::place::Place;
use serde_json::json;

/// What the `attach` credential may do.
pub(crate) const ATTACH: &str = r#"path "transit/decrypt/volumes" { capabilities = ["update"] }"#;

/// What the `create` credential may do.
pub(crate) const CREATE: &str = r#"
path "transit/datakey/wrapped/volumes" { capabilities = ["update"] }
path "transit/rewrap/volumes" { capabilities = ["update"] }
path "transit/keys/volumes" { capabilities = ["read"] }
"#;

/// A key service with one key.
pub(crate) enum KeyService {
    /// The embedded one, which is always there.
    Local,
    /// A server of its own, over TLS.
    OpenBao(OpenBao),
    /// AWS KMS, as moto plays it in the clear: what TLS would leave in the key child is not looked for with it.
    Aws(Aws),
}

/// AWS KMS with a key. Its key-encryption key never leaves it, so there is no pattern of that; and it tells no versions, so that a
/// rewrap shows by a new wrapped key alone.
pub(crate) struct Aws {
    moto: Moto,
    /// The key's id: moto takes nothing else where it changes one.
    key: String,
    /// An access key of the scanner's own, which may do what `attach` may.
    scanner: PathBuf,
}

impl Aws {
    /// Asks the service about its key as its administrator.
    fn of_key(&self, call: &str) {
        self.moto.admin(call, &json!({ "KeyId": self.key }));
    }
}

impl KeyService {
    /// A server with a key, and two credentials.
    pub(crate) fn openbao() -> Self {
        let server = OpenBao::start();
        server.make_key("volumes");
        Self::OpenBao(server)
    }

    /// A service with a key, and access keys of three users.
    pub(crate) fn aws() -> Self {
        let moto = Moto::start();
        let arn = moto.make_key("volumes");
        let id = arn.rsplit('/').next().map(str::to_owned);
        let key = id.expect("an ARN ends with the key's id");
        let scanner = moto.credentials("scanner", &aws::policy("attach"));
        Self::Aws(Aws { moto, key, scanner })
    }

    /// The key, as `--key` takes it.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Local => "local:default",
            Self::OpenBao(_) => "bao:volumes",
            Self::Aws(_) => "aws:volumes",
        }
    }

    /// The daemon's configuration.
    pub(crate) fn configuration(&self) -> String {
        match self {
            Self::Local => String::new(),
            Self::OpenBao(server) => format!(
                "key-deadline-s = 100\n[providers.bao]\ntimeout-s = 50\ntype = \"transit\"\naddress = \"{}\"\nca-file = {:?}\n\
                 create = {{ token-file = {:?} }}\nattach = {{ token-file = {:?} }}\n",
                server.address(),
                server.authority(),
                server.token_file("create", CREATE),
                server.token_file("attach", ATTACH),
            ),
            Self::Aws(Aws { moto, .. }) => {
                let [create, attach] =
                    ["create", "attach"].map(|role| moto.credentials(role, &aws::policy(role)));
                let provider = aws::provider(moto, &create, &attach);
                format!("key-deadline-s = 100\n{provider}timeout-s = 50\n")
            }
        }
    }

    /// The words by which `secrets_of.py` asks it.
    pub(crate) fn words(&self, place: &Place) -> Vec<OsString> {
        match self {
            Self::Local => {
                let keys = place.state().join("keys");
                vec![
                    "local".into(),
                    "--database".into(),
                    keys.join("local.db").into(),
                    "--master-key-file".into(),
                    keys.join("local.master").into(),
                ]
            }
            Self::OpenBao(server) => vec![
                "transit".into(),
                "--address".into(),
                format!("http://127.0.0.1:{}", server.plain_port()).into(),
                "--token-file".into(),
                server.token_file("scanner", ATTACH).into(),
            ],
            Self::Aws(Aws { moto, scanner, .. }) => vec![
                "aws_kms".into(),
                "--endpoint".into(),
                format!("http://127.0.0.1:{}", moto.gate().port()).into(),
                "--region".into(),
                REGION.into(),
                "--credentials".into(),
                scanner.into(),
            ],
        }
    }

    /// A file in the daemon's directories where the operator keeps a key.
    pub(crate) fn key_file(&self, place: &Place) -> Option<PathBuf> {
        match self {
            Self::Local => Some(place.state().join("keys/local.master")),
            Self::OpenBao(_) | Self::Aws(_) => None,
        }
    }

    /// Gives the key another version.
    pub(crate) fn rotate(&self, daemon: &Daemon<'_>) {
        match self {
            Self::Local => drop(daemon.sealvol(&["key", "rotate", self.key()]).succeeded()),
            Self::OpenBao(server) => {
                server.admin("POST", "transit/keys/volumes/rotate", &json!({}));
            }
            // moto writes it down and keeps the key's material, which nobody here could see anyway.
            Self::Aws(aws) => aws.of_key("RotateKeyOnDemand"),
        }
    }

    /// Says no to every attach from now on.
    pub(crate) fn revoke(&self, daemon: &Daemon<'_>) {
        match self {
            Self::Local => drop(daemon.sealvol(&["key", "disable", self.key()]).succeeded()),
            Self::OpenBao(server) => {
                server.admin("DELETE", "sys/policies/acl/attach", &json!({}));
            }
            Self::Aws(aws) => aws.of_key("DisableKey"),
        }
    }

    /// Says yes again.
    pub(crate) fn permit(&self, daemon: &Daemon<'_>) {
        match self {
            Self::Local => drop(daemon.sealvol(&["key", "enable", self.key()]).succeeded()),
            Self::OpenBao(server) => {
                let policy = json!({ "policy": ATTACH });
                server.admin("PUT", "sys/policies/acl/attach", &policy);
            }
            Self::Aws(aws) => aws.of_key("EnableKey"),
        }
    }
}
