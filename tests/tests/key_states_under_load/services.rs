//! Key services with one key, and what their operators do to it: by `sealvol key` wherever it has a command for that, else at the
//! service itself.
//!
//! Of moto it is known that it uses keys in every state; the gate before it refuses as AWS KMS does, and says what it plays.

use std::path::PathBuf;

use sealvol_tests::aws;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::key_material::{encrypt, in_seconds};
use sealvol_tests::kms_gate::KeyState;
use sealvol_tests::moto::Moto;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use serde_json::{Value, json};

/// What the `create` credential of OpenBao may do.
const CREATE: &str = r#"
path "transit/datakey/wrapped/volumes" { capabilities = ["update"] }
path "transit/rewrap/volumes" { capabilities = ["update"] }
path "transit/keys/volumes" { capabilities = ["read"] }
"#;

/// What the `attach` credential of OpenBao may do.
const ATTACH: &str = r#"path "transit/decrypt/volumes" { capabilities = ["update"] }"#;

/// What the manual has `create` allowed in addition where `sealvol key` is to change keys.
const CHANGES: [&str; 5] = [
    "kms:DisableKey",
    "kms:EnableKey",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:CancelKeyDeletion",
];

/// What an operator does to the key.
#[derive(Clone, Copy)]
pub(crate) enum Deed {
    Disable,
    Enable,
    Rotate,
    ScheduleDeletion,
    CancelDeletion,
    DeleteMaterial,
    /// Brings the material, for good.
    Import,
    /// Brings it with an expiry that comes soon.
    ImportForAMoment,
    SoftDelete,
    Restore,
    /// Takes the version that wrapped all there is out of use; there is another one.
    RetireVersion,
    ReadmitVersion,
    /// For good.
    Destroy,
    /// What no call of `sealvol` brings about in AWS KMS, and moto does not play: the gate alone knows of it.
    Becomes(KeyState),
}

/// Of the operator's own key material, each byte.
const MATERIAL: u8 = 7;

/// Where the key is.
pub(crate) enum Service {
    /// On this host, made there.
    Local,
    /// On this host, with material that the operator brings.
    External,
    /// In an OpenBao server.
    OpenBao(OpenBao),
    /// In AWS KMS, by its ARN.
    Aws(Moto, String),
}

/// A service, and the daemon that has its keys from there.
pub(crate) struct Operator<'a> {
    pub(crate) service: &'a Service,
    pub(crate) place: &'a Place,
    pub(crate) daemon: &'a Daemon<'a>,
}

impl Service {
    /// A server with a key.
    pub(crate) fn openbao() -> Self {
        let server = OpenBao::start();
        server.make_key("volumes");
        Self::OpenBao(server)
    }

    /// A service with a key.
    pub(crate) fn aws() -> Self {
        let moto = Moto::start();
        let key = moto.make_key("volumes");
        Self::Aws(moto, key)
    }

    /// The key, as the command line names it.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Local => "local:used",
            Self::External => "local:own",
            Self::OpenBao(_) => "bao:volumes",
            Self::Aws(..) => "aws:volumes",
        }
    }

    /// Writes the daemon's configuration.
    pub(crate) fn configure(&self, place: &Place) {
        let provider = match self {
            Self::Local | Self::External => String::new(),
            Self::OpenBao(server) => format!(
                "[providers.bao]\ntype = \"transit\"\naddress = \"http://127.0.0.1:{}\"\n\
                 create = {{ token-file = {:?} }}\nattach = {{ token-file = {:?} }}\n",
                server.plain_port(),
                server.token_file("create", CREATE),
                server.token_file("attach", ATTACH),
            ),
            Self::Aws(moto, _) => {
                let mut create = aws::policy("create");
                let allowed = create["Statement"][0]["Action"].as_array_mut();
                allowed.expect("calls").extend(CHANGES.map(Value::from));
                let create = moto.credentials("create", &create);
                let attach = moto.credentials("attach", &aws::policy("attach"));
                aws::provider(moto, &create, &attach)
            }
        };
        let text = if provider.is_empty() {
            provider
        } else {
            // A busy machine is no outage.
            format!("key-deadline-s = 25\n{provider}timeout-s = 10\n")
        };
        std::fs::write(Self::configuration(place), text).expect("a configuration");
    }

    /// Whoever changes the key, at a daemon.
    pub(crate) fn operator<'a>(&'a self, place: &'a Place, daemon: &'a Daemon<'a>) -> Operator<'a> {
        Operator {
            service: self,
            place,
            daemon,
        }
    }

    fn configuration(place: &Place) -> PathBuf {
        place.file("sealvold.toml")
    }

    /// A daemon with that configuration.
    pub(crate) fn daemon<'a>(place: &'a Place) -> Daemon<'a> {
        let mut command = Daemon::command(place);
        command.arg("--config").arg(Self::configuration(place));
        Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"))
    }
}

impl Operator<'_> {
    /// Has the key made, if the service has it not.
    pub(crate) fn make_key(&self) {
        match self.service {
            Service::Local => self.key("create", &[]),
            Service::External => {
                self.key("create", &["--origin", "external"]);
                self.import();
            }
            Service::OpenBao(_) | Service::Aws(..) => {}
        }
    }

    /// `sealvol key CHANGE KEY …`.
    #[track_caller]
    fn key(&self, change: &str, more: &[&str]) {
        let words = ["key", change, self.service.key()];
        let done = self.daemon.sealvol(&[&words, more].concat());
        done.succeeded();
    }

    /// Does it, and has it done when this returns.
    pub(crate) fn does(&self, deed: Deed) {
        match deed {
            Deed::Disable => self.key("disable", &[]),
            Deed::Enable => self.key("enable", &[]),
            Deed::Rotate if matches!(self.service, Service::OpenBao(_)) => {
                self.of_bao("POST", "/rotate", &json!({}));
            }
            Deed::Rotate => self.key("rotate", &[]),
            Deed::ScheduleDeletion => {
                self.key("schedule-deletion", &["--window", "7", "--even-if-used"]);
            }
            Deed::CancelDeletion => self.key("cancel-deletion", &[]),
            Deed::DeleteMaterial => self.key("delete-material", &[]),
            Deed::Import => self.import(),
            Deed::ImportForAMoment => self.import_for_a_moment(),
            Deed::SoftDelete => self.of_bao("DELETE", "/soft-delete", &Value::Null),
            Deed::Restore => self.of_bao("POST", "/soft-delete-restore", &json!({})),
            Deed::RetireVersion => {
                self.of_bao("POST", "/rotate", &json!({}));
                self.of_bao("POST", "/config", &json!({ "min_decryption_version": 2 }));
            }
            Deed::ReadmitVersion => {
                self.of_bao("POST", "/config", &json!({ "min_decryption_version": 1 }));
            }
            Deed::Destroy => {
                self.of_bao("POST", "/config", &json!({ "deletion_allowed": true }));
                self.of_bao("DELETE", "", &Value::Null);
            }
            Deed::Becomes(state) => {
                let Service::Aws(moto, key) = self.service else {
                    panic!("a key of another service");
                };
                moto.gate().set_state(key, state);
            }
        }
    }

    /// Brings the key's material, for good.
    fn import(&self) {
        let files = self.encrypted();
        self.imported(&files, &["--no-expiry"]).succeeded();
    }

    /// Brings it for as short as it takes to bring it: a few seconds, more where those are over before it is there.
    fn import_for_a_moment(&self) {
        let files = self.encrypted();
        let mut seconds = 2;
        loop {
            let imported = self.imported(&files, &["--expires", &in_seconds(seconds)]);
            if imported.code == Some(0) {
                return;
            }
            assert!(seconds < 60, "{imported}");
            seconds *= 2;
        }
    }

    fn imported(&self, [material, token]: &[String; 2], until: &[&str]) -> Outcome {
        let words = ["key", "import", self.service.key()];
        let files = ["--material", material, "--token", token];
        self.daemon.sealvol(&[&words[..], &files, until].concat())
    }

    /// Material and token, in files.
    fn encrypted(&self) -> [String; 2] {
        let files = ["own.pem", "own.token", "own.enc"].map(|name| self.place.file(name));
        for file in &files {
            let _ = std::fs::remove_file(file); // of the last time
        }
        let [public, token, material] = files.each_ref().map(|file| file.display().to_string());
        let names = ["--public-key", &public, "--token", &token];
        let size = ["--bits", "2048"];
        self.key("import-parameters", &[&names[..], &size].concat());
        encrypt(&files[0], MATERIAL, &files[2]);
        [material, token]
    }

    /// Asks OpenBao about its key, as its administrator.
    fn of_bao(&self, method: &str, call: &str, body: &Value) {
        let Service::OpenBao(server) = self.service else {
            panic!("a key of another service");
        };
        server.admin(method, &format!("transit/keys/volumes{call}"), body);
    }
}
