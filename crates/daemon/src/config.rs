//! What the daemon is told: defaults, then the configuration file, then its arguments.
//!
//! The file is TOML and trusted: it names key services and who may do what. So it is read only if
//! root or the daemon's own user owns it and nobody else may write it. It never holds a secret.
//!
//! ```toml
//! require-secretmem = true                # refuse to hold keys where memfd_secret is missing
//! workers = 4                             # engine threads; one a processor if absent
//! backing = ["/srv/volumes", "/dev/vg0"]  # where holders of `create` may put ciphertext
//! key-child = "/usr/libexec/sealvol-keys" # beside sealvold if absent
//! key-deadline-s = 10                     # for one batch of calls to a key service
//! # what holders of `administer` may have backups of keys encrypted to (SHA-256); root and the daemon's own user may choose
//! recovery-keys = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
//!
//! [nbd]
//! allow = [107]                           # user ids that may open an export, if attach names none
//!
//! [rights]                                # root and the daemon's own user where absent
//! create = { uids = [0], gids = [36] }
//! attach = { uids = [0, 107] }
//! administer = { uids = [0] }
//!
//! [providers.local]                       # this one is there without being named
//! type = "local"
//! database = "/var/lib/sealvol/keys/local.db"
//! master-key = { file = { path = "/var/lib/sealvol/keys/local.master" } }
//! create = true
//!
//! [providers.shared]                      # a master key that somebody with three of its shares can have
//! type = "local"
//! database = "/var/lib/sealvol/keys/shared.db"
//! master-key = { shares = ["/run/shares/1", "/run/shares/2", "/run/shares/3"] }
//!
//! [providers.guarded]                     # one that a token protects
//! type = "local"
//! database = "/var/lib/sealvol/keys/guarded.db"
//! master-key = { wrapped = { by = "hsm:master", file = "/var/lib/sealvol/keys/guarded.wrapped" } }
//! create = true
//!
//! [providers.bao]                         # an OpenBao or Vault server; its keys are `bao:NAME`
//! type = "transit"
//! address = "https://bao.example:8200"
//! ca-file = "/etc/sealvol/bao-ca.pem"
//! create = { token-file = "/etc/sealvol/bao-create.token" }
//! attach = { approle = { role-id-file = "/etc/sealvol/role", secret-id-file = "/etc/sealvol/secret" } }
//! keys = ["volumes"]                      # any if absent
//!
//! [providers.hsm]                         # a token; its keys are `hsm:LABEL`
//! type = "pkcs11"
//! module = "/usr/lib/softhsm/libsofthsm2.so"
//! token = "pkcs11:token=vol"
//! pin-file = "/run/credentials/sealvold.service/hsm-pin"
//! single-credential = true                # a token has one PIN
//! environment = { SOFTHSM2_CONF = "/etc/softhsm/softhsm2.conf" }
//! read = ["/etc/softhsm/softhsm2.conf"]   # what the module reads, besides libraries
//! write = ["/var/lib/softhsm/tokens"]     # ... and writes
//!
//! [providers.tpm]                         # this machine's TPM; its keys are `tpm:NAME`
//! type = "tpm2"
//! directory = "/var/lib/sealvol/tpm"
//! pcrs = [7]                              # what new keys are sealed to
//! single-credential = true
//!
//! [providers.azure]                       # an Azure Key Vault; its keys are `azure:NAME`
//! type = "azure-kv"
//! vault = "https://volumes.vault.azure.net"
//! ca-file = "/etc/ssl/certs/ca-certificates.crt"
//! create = { client-secret = { tenant = "T", client-id = "C", secret-file = "/etc/sealvol/azure-create" } }
//! attach = { managed-identity = { client-id = "A" } }
//!
//! [providers.aws]                         # AWS KMS; its keys are `aws:ALIAS` or `aws:ARN`
//! type = "aws-kms"
//! region = "eu-west-1"
//! ca-file = "/etc/ssl/certs/ca-certificates.crt"
//! create = { file = "/etc/sealvol/aws-create.credentials" }
//! attach = { file = "/etc/sealvol/aws-attach.credentials" }
//! ```

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealvol_control::key_ref::{self, KeyRef, KeyRefError};
use sealvol_control::keychild::{LocalService, MasterKey, Provider, Service};
use serde::Deserialize;
use thiserror::Error;

use crate::rights::{Holders, Rights};

/// The name of the provider that is there without configuration.
pub(crate) const LOCAL: &str = "local";

/// Everything that policy depends on.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Refuse to hold keys in `mlock` memory where memfd_secret is missing.
    pub require_secretmem: bool,
    /// Engine threads.
    pub workers: usize,
    /// Where holders of *create* may put ciphertext besides the state directory.
    pub backing: Vec<PathBuf>,
    /// The program of the key child.
    pub key_child: PathBuf,
    /// Time that one batch of calls to a key service has.
    pub key_deadline: Duration,
    /// User ids that may open an export when attach names none; the caller and root if `None`.
    pub nbd_allow: Option<Vec<u32>>,
    /// Who may ask for what.
    pub rights: Rights,
    /// What holders of *administer* may have backups encrypted to besides root and the daemon's user, who may choose: SHA-256 of
    /// public keys, in hexadecimal digits.
    pub recovery_keys: Vec<String>,
    /// The key services, by name.
    pub providers: BTreeMap<String, Provider>,
}

/// Why there is no configuration to go by.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}. Name an existing file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody other than root and the daemon could have written it.
    #[error(
        "{}: {cause}, so it cannot be trusted. Let root or the daemon's user own it, mode 0644 or less",
        path.display()
    )]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Whom it would trust.
        cause: String,
    },
    /// It is not TOML, or has a field that is unknown or wrong.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A provider cannot be named so.
    #[error("{}: provider `{name}`: {source}", path.display())]
    ProviderName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// What is wrong with it.
        source: KeyRefError,
    },
    /// What is to wrap a master key cannot.
    #[error("{}: provider `{name}`: master key wrapped by {by}: {reason}", path.display())]
    MasterKeyService {
        /// The file.
        path: PathBuf,
        /// The provider whose master key it is.
        name: String,
        /// The key that is to wrap it.
        by: KeyRef,
        /// Why it cannot.
        reason: &'static str,
    },
    /// Not the digest of a public key.
    #[error("{}: {field}: {found:?} is no SHA-256. Write its 64 hexadecimal digits", path.display())]
    NoDigest {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        field: &'static str,
        /// What it says.
        found: String,
    },
    /// A number is outside its range.
    #[error("{}: {field} is {found}. Give a number from {low} to {high}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        field: &'static str,
        /// What it says.
        found: u64,
        /// The least possible.
        low: u64,
        /// The most possible.
        high: u64,
    },
    /// A path must be absolute: the daemon's working directory is none of the operator's.
    #[error("{}: {field}: {} is not absolute. Write it from the root", path.display(), found.display())]
    RelativePath {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        field: &'static str,
        /// What it says.
        found: PathBuf,
    },
    /// Where the daemon lies is not known, so neither is the key child.
    #[error(
        "cannot tell where sealvold lies, to find sealvol-keys beside it: {0}. Name it as key-child in the configuration"
    )]
    OwnPath(io::Error),
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    require_secretmem: bool,
    workers: Option<u64>,
    backing: Vec<PathBuf>,
    key_child: Option<PathBuf>,
    key_deadline_s: Option<u64>,
    recovery_keys: Vec<String>,
    nbd: Nbd,
    rights: RightsTable,
    providers: BTreeMap<String, Service>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Nbd {
    allow: Option<Vec<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RightsTable {
    create: Option<Holders>,
    attach: Option<Holders>,
    administer: Option<Holders>,
}

impl Config {
    /// The configuration of a daemon that keeps its state in `state_dir`, by the file at `path` if
    /// there is one. `passphrase` says that the embedded provider's master key comes from one.
    ///
    /// # Errors
    /// When the file is there and cannot be used in whole; nothing of it is used in part.
    pub(crate) fn load(
        path: Option<&Path>,
        state_dir: &Path,
        passphrase: bool,
    ) -> Result<Self, ConfigError> {
        let euid = rustix::process::geteuid().as_raw();
        let file = match path {
            Some(path) => parse(path, &read_trusted(path, euid)?)?,
            None => File::default(),
        };
        let path = path.map(Path::to_owned).unwrap_or_default();
        let every = Rights::of_root_and(euid);
        let mut services = file.providers;
        services
            .entry(LOCAL.to_owned())
            .or_insert_with(|| Service::Local(embedded(state_dir, passphrase)));
        let key_child = match file.key_child {
            Some(program) => absolute(&path, "key-child", program)?,
            None => beside_this_program(KEY_CHILD).map_err(ConfigError::OwnPath)?,
        };
        let mut backing = Vec::new();
        for root in file.backing {
            backing.push(absolute(&path, "backing", root)?);
        }
        let deadline = within(
            &path,
            "key-deadline-s",
            file.key_deadline_s,
            KEY_DEADLINE_S,
            1..=120,
        )?;
        Ok(Self {
            require_secretmem: file.require_secretmem,
            workers: workers(&path, file.workers)?,
            backing,
            key_child,
            key_deadline: Duration::from_secs(deadline),
            recovery_keys: digests(&path, file.recovery_keys)?,
            nbd_allow: file.nbd.allow,
            rights: Rights {
                create: file.rights.create.unwrap_or(every.create),
                attach: file.rights.attach.unwrap_or(every.attach),
                administer: file.rights.administer.unwrap_or(every.administer),
            },
            providers: named(&path, services)?,
        })
    }
}

/// The text of a file that nobody but root and `euid` could have written.
fn read_trusted(path: &Path, euid: u32) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let untrusted = |cause| ConfigError::Untrusted {
        path: path.to_owned(),
        cause,
    };
    // What was checked is what is read: both through this one descriptor. Non-blocking, so that a
    // FIFO in its place does not stop the daemon.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(untrusted("it is not a regular file".to_owned()));
    }
    if metadata.uid() != 0 && metadata.uid() != euid {
        return Err(untrusted(format!("user {} owns it", metadata.uid())));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(untrusted(format!(
            "others may write it (mode {:04o})",
            metadata.mode() & 0o7777
        )));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(untrusted(format!(
            "it is longer than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Format {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The embedded provider: its database and master key in the state directory, made when missing.
fn embedded(state_dir: &Path, passphrase: bool) -> LocalService {
    let keys = state_dir.join("keys");
    let master_key = if passphrase {
        MasterKey::Passphrase
    } else {
        MasterKey::File {
            path: keys.join("local.master"),
        }
    };
    LocalService {
        database: keys.join("local.db"),
        master_key,
        create: true,
    }
}

fn named(
    path: &Path,
    services: BTreeMap<String, Service>,
) -> Result<BTreeMap<String, Provider>, ConfigError> {
    let mut providers = BTreeMap::new();
    for (name, service) in services {
        key_ref::check_provider(&name).map_err(|source| ConfigError::ProviderName {
            path: path.to_owned(),
            name: name.clone(),
            source,
        })?;
        providers.insert(name.clone(), Provider { name, service });
    }
    provide_master_keys(path, &mut providers)?;
    Ok(providers)
}

/// Gives each provider whose master key another one wraps that other one.
fn provide_master_keys(
    path: &Path,
    providers: &mut BTreeMap<String, Provider>,
) -> Result<(), ConfigError> {
    let configured = providers.clone();
    for (name, provider) in providers {
        let Service::Local(LocalService {
            master_key: MasterKey::Wrapped(wrapped),
            ..
        }) = &mut provider.service
        else {
            continue;
        };
        let found = configured.get(wrapped.by.provider());
        wrapped
            .provide(found)
            .map_err(|reason| ConfigError::MasterKeyService {
                path: path.to_owned(),
                name: name.clone(),
                by: wrapped.by.clone(),
                reason,
            })?;
    }
    Ok(())
}

/// In lower case, as digests are told.
fn digests(path: &Path, texts: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let checked = texts.into_iter().map(|text| {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(text.to_ascii_lowercase());
        }
        Err(ConfigError::NoDigest {
            path: path.to_owned(),
            field: "recovery-keys",
            found: text,
        })
    });
    checked.collect()
}

fn workers(path: &Path, asked: Option<u64>) -> Result<usize, ConfigError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = within(path, "workers", asked, processors as u64, 1..=1024)?;
    Ok(usize::try_from(workers).unwrap_or(processors))
}

fn within(
    path: &Path,
    field: &'static str,
    asked: Option<u64>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    let found = asked.unwrap_or(default);
    if asked.is_none() || range.contains(&found) {
        return Ok(found);
    }
    let (low, high) = range.into_inner();
    Err(ConfigError::OutOfRange {
        path: path.to_owned(),
        field,
        found,
        low,
        high,
    })
}

fn absolute(path: &Path, field: &'static str, found: PathBuf) -> Result<PathBuf, ConfigError> {
    if found.is_absolute() {
        Ok(found)
    } else {
        Err(ConfigError::RelativePath {
            path: path.to_owned(),
            field,
            found,
        })
    }
}

fn beside_this_program(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

const KEY_CHILD: &str = "sealvol-keys";
const KEY_DEADLINE_S: u64 = 10;
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        load_with_mode(text, 0o600)
    }

    fn load_with_mode(text: &str, mode: u32) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sealvold.toml");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
        Config::load(Some(&path), Path::new("/var/lib/sealvol"), false)
    }

    #[test]
    fn nothing_said_is_the_embedded_provider_and_root() {
        let config = Config::load(None, Path::new("/s"), false).expect("defaults");
        let euid = rustix::process::geteuid().as_raw();
        assert_eq!(config.rights, Rights::of_root_and(euid));
        assert!(!config.require_secretmem && config.workers >= 1);
        assert_eq!(config.key_child.file_name(), Some("sealvol-keys".as_ref()));
        let provider = &config.providers[LOCAL];
        let Service::Local(local) = &provider.service else {
            panic!("{provider:?}");
        };
        assert_eq!(local.database, Path::new("/s/keys/local.db"));
        assert_eq!(
            local.master_key,
            MasterKey::File {
                path: "/s/keys/local.master".into()
            }
        );
        assert!(local.create);
    }

    #[test]
    fn a_passphrase_takes_the_place_of_the_master_key_file() {
        let config = Config::load(None, Path::new("/s"), true).expect("defaults");
        let Service::Local(local) = &config.providers[LOCAL].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!(local.master_key, MasterKey::Passphrase);
    }

    #[test]
    fn the_documented_file_is_understood() {
        let example: String = include_str!("config.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!").trim_start()))
            .collect();
        let config = load(&example).expect("the example is valid");
        assert!(config.require_secretmem);
        assert_eq!(config.workers, 4);
        assert_eq!((config.backing.len(), config.recovery_keys.len()), (2, 1));
        assert_eq!(config.key_deadline, Duration::from_secs(10));
        let master_key = |name: &str| match &config.providers[name].service {
            Service::Local(local) => local.master_key.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(master_key("shared"), "shares in 3 files");
        assert_eq!(master_key("guarded"), "wrapped by hsm:master");
        let Service::Local(guarded) = &config.providers["guarded"].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!(guarded.asks(), Some(&config.providers["hsm"]));
        let Service::Transit(bao) = &config.providers["bao"].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!(
            (bao.mount.as_str(), bao.single_credential),
            ("transit", false)
        );
        let Service::Pkcs11(hsm) = &config.providers["hsm"].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!((hsm.write.len(), hsm.mechanism), (1, None));
        assert!(matches!(config.providers["tpm"].service, Service::Tpm2(_)));
        let Service::AzureKv(azure) = &config.providers["azure"].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!(
            azure.authority.origin(),
            "https://login.microsoftonline.com"
        );
        let Service::AwsKms(aws) = &config.providers["aws"].service else {
            panic!("{:?}", config.providers);
        };
        assert_eq!((aws.region.as_str(), aws.fips), ("eu-west-1", false));
        assert_eq!(config.nbd_allow, Some(vec![107]));
        assert_eq!(
            config.rights.create,
            Holders {
                uids: vec![0],
                gids: vec![36]
            }
        );
        assert_eq!(config.rights.attach.uids, [0, 107]);
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        for mode in [0o620, 0o602, 0o666, 0o777] {
            let error = load_with_mode("", mode).expect_err("not to be trusted");
            assert!(
                matches!(error, ConfigError::Untrusted { .. }),
                "{mode:o}: {error}"
            );
        }
        for mode in [0o400, 0o600, 0o644] {
            assert!(load_with_mode("", mode).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sealvold.toml");
        std::fs::write(&path, "").expect("written");
        let owner = std::fs::metadata(&path).expect("there").uid();
        let read = read_trusted(&path, owner.wrapping_add(1));
        if owner == 0 {
            assert!(read.is_ok(), "root's file is trusted by everybody");
            std::os::unix::fs::chown(&path, Some(65534), None).expect("root may");
            let error = read_trusted(&path, 0).expect_err("a file of nobody");
            assert!(error.to_string().contains("user 65534 owns it"), "{error}");
        } else {
            assert!(matches!(read, Err(ConfigError::Untrusted { .. })));
        }
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let error = Config::load(Some(Path::new("/dev/null")), Path::new("/s"), false);
        assert!(matches!(error, Err(ConfigError::Untrusted { .. })));
        let error = Config::load(Some(Path::new("/nonexistent")), Path::new("/s"), false);
        assert!(matches!(error, Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn mistakes_are_refused_by_name() {
        for (text, named) in [
            ("worker = 3", "worker"),
            ("workers = 0", "workers"),
            ("workers = 5000", "workers"),
            ("key-deadline-s = 0", "key-deadline-s"),
            ("key-child = \"keys\"", "key-child"),
            ("backing = [\"volumes\"]", "backing"),
            ("[rights]\ndelete = { uids = [0] }", "delete"),
            ("[rights.create]\nusers = [0]", "users"),
            (
                "[providers.Local]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = \"passphrase\"",
                "Local",
            ),
            ("recovery-keys = [\"9f86\"]", "recovery-keys"),
            ("[providers.x]\ntype = \"martian\"", "martian"),
            (
                "[providers.provided]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = \"passphrase\"",
                "provided",
            ),
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = \"passphrase\"\npassword = \"p\"",
                "password",
            ),
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = { shares = [\"/a\"] }",
                "from 2 to 10 shares",
            ),
            // Circles, chains, and what is not there.
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = { wrapped = { by = \"x:k\", file = \"/w\" } }",
                "is itself of the type `local`",
            ),
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = { wrapped = { by = \"local:k\", file = \"/w\" } }",
                "is itself of the type `local`",
            ),
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = { wrapped = { by = \"hsm:k\", file = \"/w\" } }",
                "no such provider",
            ),
            (
                "[providers.x]\ntype = \"local\"\ndatabase = \"/d\"\nmaster-key = { wrapped = { by = \"provided:\", file = \"/w\" } }",
                "no such provider",
            ),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
