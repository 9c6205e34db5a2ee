//! The key service that a scanned daemon has its keys from: how the daemon is told of it, what is done to its key, and how the
//! scanner asks it for the same keys by itself.
//!
//! A provider joins the scan by a variant here and a function in `secrets_of.py`.

use std::ffi::OsString;
use std::path::PathBuf;

use sealvol_tests::daemon::Daemon;
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
}

impl KeyService {
    /// A server with a key, and two credentials.
    pub(crate) fn openbao() -> Self {
        let server = OpenBao::start();
        server.make_key("volumes");
        Self::OpenBao(server)
    }

    /// The key, as `--key` takes it.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Local => "local:default",
            Self::OpenBao(_) => "bao:volumes",
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
        }
    }

    /// A file in the daemon's directories where the operator keeps a key.
    pub(crate) fn key_file(&self, place: &Place) -> Option<PathBuf> {
        match self {
            Self::Local => Some(place.state().join("keys/local.master")),
            Self::OpenBao(_) => None,
        }
    }

    /// Gives the key another version.
    pub(crate) fn rotate(&self, daemon: &Daemon<'_>) {
        match self {
            Self::Local => drop(daemon.sealvol(&["key", "rotate", self.key()]).succeeded()),
            Self::OpenBao(server) => {
                server.admin("POST", "transit/keys/volumes/rotate", &json!({}));
            }
        }
    }

    /// Says no to every attach from now on.
    pub(crate) fn revoke(&self, daemon: &Daemon<'_>) {
        match self {
            Self::Local => drop(daemon.sealvol(&["key", "disable", self.key()]).succeeded()),
            Self::OpenBao(server) => {
                server.admin("DELETE", "sys/policies/acl/attach", &json!({}));
            }
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
        }
    }
}
