//! What may be typed about keys.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser};
use clap::{ArgGroup, Args, Subcommand};
use sealvol_control::api::{KeySetName, RewrapWhen, VolumeName};
use sealvol_control::keychild::{
    DELETION_WINDOW, Origin, ROTATION_PERIOD, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_control::timestamp::seconds;

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Create a key-encryption key
    Create {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
        /// external: its material is imported, and it refuses every use until then
        #[arg(long, value_name = "ORIGIN", default_value = "local",
              value_parser = PossibleValuesParser::new(["local", "external"]).map(|word| origin(&word)))]
        origin: Origin,
    },
    /// List the keys of the configured providers
    List {
        /// Only those of this provider
        #[arg(long)]
        provider: Option<String>,
    },
    /// Show one key: its state, its versions, and the volumes that need it
    Show {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Allow the use of a disabled key again
    Enable {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Refuse every use of a key until it is enabled
    ///
    /// Volumes that are attached stay so: they need their key again at the next attach.
    Disable {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Give a key a new version now, at most 25 times
    ///
    /// The versions before it stay and go on to open what they wrapped. Nothing is wrapped anew by it:
    /// see `key rewrap`.
    Rotate {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Have a key rotated by itself, or not any more
    #[command(group(ArgGroup::new("when").required(true)))]
    Rotation {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
        /// Every so many days, 90 to 2560, from now on
        #[arg(long, value_name = "DAYS", group = "when", value_parser = days(ROTATION_PERIOD))]
        every: Option<u32>,
        /// Not any more
        #[arg(long, group = "when")]
        off: bool,
    },
    /// Destroy a key when a waiting period is over; until then it refuses every use
    ///
    /// What it wrapped can never be opened again then: the volumes are lost. The period is over when
    /// the calendar says so and the host has run as long.
    ScheduleDeletion {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
        /// Days to wait, 7 to 30
        #[arg(long, value_name = "DAYS", default_value = "30", value_parser = days(DELETION_WINDOW))]
        window: u32,
        /// Although volumes need it
        #[arg(long)]
        even_if_used: bool,
    },
    /// Take back the deletion of a key: it is disabled then
    CancelDeletion {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Go on from a provider's table of keys that is older than, or other than, the one used before
    ///
    /// After the key database was restored from a backup. Keys, versions and states are those of the
    /// backup from then on; what was changed since is lost, such as that a key was disabled.
    AcceptTable {
        /// The provider, such as local
        provider: String,
    },
    /// Write all keys of a provider, with what seals them, to a file that only a recovery key opens
    ///
    /// Of the embedded key service. The private half of the recovery key belongs on no host of this kind:
    /// whoever has it and the file has every key. `sealvol-keys restore` opens it, without a daemon.
    Backup(Backup),
    /// Get a public key to encrypt the material of a key to, and a token that goes with it
    ///
    /// For keys that were created with --origin external. Both are good for a day, and until they are
    /// asked for again.
    ImportParameters(ImportParameters),
    /// Give a key its material: 32 bytes that were encrypted to the public key of `import-parameters`
    ///
    /// What is imported again, after it was deleted or expired, must be the same material.
    Import(Import),
    /// Destroy the imported material of a key now: it refuses every use until it is imported again
    DeleteMaterial {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Who may use a key, and for what
    #[command(subcommand)]
    Policy(Policy),
    /// Second names of keys
    #[command(subcommand)]
    Alias(Alias),
    /// Wrap the data keys of a volume anew: by the newest version of its key, or by another key
    ///
    /// The volume stays as it is and in use: no block changes, and its data keys stay the same. So it
    /// does not help against whoever has an old superblock and the old key. What still has copies
    /// under the former key is told.
    Rewrap(Rewrap),
    /// Names for keys that many volumes share, and go over to another one together
    #[command(subcommand)]
    Set(KeySet),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeySet {
    /// Name a key that volumes share: `volume create --key-set`, `key rewrap --key-set`
    Create {
        /// Its name: 1 to 64 letters, digits, `.`, `_`, `-`
        name: KeySetName,
        /// The key, as PROVIDER:KEY
        #[arg(long, value_name = "KEYREF")]
        key: String,
        /// When volumes are wrapped anew by the same key: on-rotate, once it has a newer version; or never
        #[arg(long, value_name = "WHEN", default_value = "never", value_parser = rewrap_when())]
        rewrap: RewrapWhen,
    },
    /// List the key sets
    List,
    /// Show one: its key, and what wraps the data keys of each volume in it
    Show {
        /// Its name
        name: KeySetName,
    },
    /// Point a set at another key of the same provider: each volume in it is wrapped anew, in use or not
    ///
    /// A job for each of them goes on by itself, waits where the key service is away, and goes on
    /// after a restart; `key set show` and `job list` tell how far they are. No block changes.
    #[command(group(ArgGroup::new("what").required(true).multiple(true)))]
    Update {
        /// Its name
        name: KeySetName,
        /// The other key, as PROVIDER:KEY
        #[arg(long, value_name = "KEYREF", group = "what")]
        key: Option<String>,
        /// on-rotate, or never
        #[arg(long, value_name = "WHEN", group = "what", value_parser = rewrap_when())]
        rewrap: Option<RewrapWhen>,
    },
    /// Delete a set that no volume is in
    Delete {
        /// Its name
        name: KeySetName,
    },
}

fn rewrap_when() -> impl TypedValueParser<Value = RewrapWhen> {
    PossibleValuesParser::new(["on-rotate", "never"]).map(|text| match text.as_str() {
        "on-rotate" => RewrapWhen::OnRotate,
        _ => RewrapWhen::Never,
    })
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Show the policy of a key, as JSON
    Show {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Give a key another policy: what it does not allow is denied
    ///
    /// Whoever sets it must be allowed to administer the key by it, so that it can be changed again.
    #[command(group(ArgGroup::new("policy").required(true)))]
    Set {
        /// PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
        /// The policy, in JSON
        #[arg(long, value_name = "FILE", group = "policy")]
        file: Option<PathBuf>,
        /// No policy: whoever holds a right by the daemon's configuration may use the key
        #[arg(long, group = "policy")]
        none: bool,
        /// Also if you could not set another one after it: only root could, then
        #[arg(long)]
        bypass_lockout_check: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The provider, such as local
    pub(crate) provider: String,
    /// The public key of an RSA pair of 3072 or 4096 bits, in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) recovery_key: PathBuf,
    /// Where to put the backup; a file that is not there yet
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ImportParameters {
    /// PROVIDER:KEY
    #[arg(value_name = "KEYREF")]
    pub(crate) key: String,
    /// Where to put the public key, in PEM; a file that is not there yet
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key: PathBuf,
    /// Where to put the token; a file that is not there yet
    #[arg(long, value_name = "FILE")]
    pub(crate) token: PathBuf,
    /// Bits of the public key
    #[arg(long, value_name = "BITS", default_value = "4096",
          value_parser = PossibleValuesParser::new(["2048", "3072", "4096"]).map(|bits| spec(&bits)))]
    pub(crate) bits: WrappingKeySpec,
    /// How the material will be encrypted
    #[arg(long, value_name = "ALGORITHM", default_value = WrappingAlgorithm::ALL[0].as_str(),
          value_parser = PossibleValuesParser::new(WrappingAlgorithm::ALL.map(WrappingAlgorithm::as_str))
              .map(|word| algorithm(&word)))]
    pub(crate) algorithm: WrappingAlgorithm,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("until").required(true)))]
pub(crate) struct Import {
    /// PROVIDER:KEY
    #[arg(value_name = "KEYREF")]
    pub(crate) key: String,
    /// The encrypted material
    #[arg(long, value_name = "FILE")]
    pub(crate) material: PathBuf,
    /// The token that came with the public key
    #[arg(long, value_name = "FILE")]
    pub(crate) token: PathBuf,
    /// When the material is to expire, as 2026-02-03T04:05:06Z, within 365 days
    #[arg(long, value_name = "TIME", group = "until", value_parser = time)]
    pub(crate) expires: Option<String>,
    /// It is not to expire
    #[arg(long, group = "until")]
    pub(crate) no_expiry: bool,
}

fn origin(word: &str) -> Origin {
    if word == "external" {
        Origin::External
    } else {
        Origin::Local
    }
}

fn spec(bits: &str) -> WrappingKeySpec {
    match bits {
        "2048" => WrappingKeySpec::Rsa2048,
        "3072" => WrappingKeySpec::Rsa3072,
        _ => WrappingKeySpec::Rsa4096,
    }
}

fn algorithm(word: &str) -> WrappingAlgorithm {
    let mut all = WrappingAlgorithm::ALL.into_iter();
    all.find(|algorithm| algorithm.as_str() == word)
        .unwrap_or_default()
}

fn time(text: &str) -> Result<String, String> {
    match seconds(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("write it as 2026-02-03T04:05:06Z".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Alias {
    /// Give a key a second name, at most 50 to each
    ///
    /// Whoever makes a volume may name a key by it. The volume is bound to the key that it means then,
    /// also if the alias comes to mean another one.
    Create {
        /// PROVIDER:alias/NAME
        #[arg(value_name = "ALIAS")]
        alias: String,
        /// The key, as PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// List the aliases of the keys of the configured providers
    List {
        /// Only those of this provider
        #[arg(long)]
        provider: Option<String>,
    },
    /// Have an alias mean another key from now on: volumes that exist keep theirs
    Update {
        /// PROVIDER:alias/NAME
        #[arg(value_name = "ALIAS")]
        alias: String,
        /// The key, as PROVIDER:KEY
        #[arg(value_name = "KEYREF")]
        key: String,
    },
    /// Take an alias away; its key stays as it is
    Delete {
        /// PROVIDER:alias/NAME
        #[arg(value_name = "ALIAS")]
        alias: String,
    },
}

fn days(range: std::ops::RangeInclusive<u32>) -> RangedI64ValueParser<u32> {
    let (low, high) = range.into_inner();
    RangedI64ValueParser::new().range(i64::from(low)..=i64::from(high))
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true)))]
pub(crate) struct Rewrap {
    /// The volume's name
    #[arg(value_name = "VOLUME", group = "which")]
    pub(crate) name: Option<VolumeName>,
    /// Every volume, one after the other
    #[arg(long, group = "which")]
    pub(crate) all: bool,
    /// The key that is to wrap them, as PROVIDER:KEY, of the same provider; a volume leaves its key set
    /// by that [default: that of its key set, or its own]
    #[arg(long, value_name = "KEYREF")]
    pub(crate) key: Option<String>,
    /// The key set that it is to be in, whose key is to wrap them
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key", "all"])]
    pub(crate) key_set: Option<KeySetName>,
}
