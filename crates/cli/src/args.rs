//! What may be typed. Names and defaults only: what a word does is in [`crate::run`].

mod audit;
mod key;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use sealvol_control::api::bench::MILLISECONDS;
use sealvol_control::api::{
    self, BadSnapshotName, BadVolumeName, KeySetName, SnapshotRef, VolumeName,
};
use sealvol_control::size::Size;

pub(crate) use audit::{Audit, Verify};
pub(crate) use key::{Alias, Backup, Import, ImportParameters, Key, KeySet, Policy, Rewrap};

/// Encrypted block volumes: create, attach, detach, and look at them.
///
/// Sizes take suffixes: K, M, G, T, P are powers of 1024 (10G = 10GiB), KB, MB, GB, TB, PB powers
/// of 1000. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by policy, key service or tamper check,
/// 4 not found, 5 conflict.
#[derive(Debug, Parser)]
#[command(
    name = "sealvol",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Control socket of the daemon
    #[arg(long, global = true, env = "SEALVOL_CONTROL", value_name = "SOCKET",
          default_value = api::DEFAULT_SOCKET)]
    pub(crate) control: PathBuf,
    /// Print JSON, errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Encrypted volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots of volumes
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Work that goes on by itself, through restarts of the daemon
    #[command(subcommand)]
    Job(Job),
    /// Key-encryption keys
    #[command(subcommand)]
    Key(Key),
    /// The log of what keys were used for
    #[command(subcommand)]
    Audit(Audit),
    /// Show how the daemon is
    Status,
    /// Look at the machine, the daemon's files and the key services, and say what to do
    ///
    /// Changes nothing. Exit code 1 if volumes can't be attached or a protection does not hold;
    /// warnings are about what could be better.
    Doctor,
    /// Have the daemon end in good order, unless ephemeral volumes are attached
    ///
    /// SIGTERM and the service manager end it too, but without asking: what ephemeral volumes hold is
    /// gone then.
    Stop {
        /// Also if ephemeral volumes are attached: what they hold is gone
        #[arg(long)]
        drop_ephemeral: bool,
    },
    /// Run the daemon's known-answer tests of every algorithm
    Selftest,
    /// Measure the cipher and the daemon on this machine
    ///
    /// First the cipher, AES-256-XTS, on one core and in its caches, beside a plain copy of the same
    /// bytes. Then a temporary volume of 256 MiB in the state directory, over the daemon's own NBD
    /// socket with one connection: 4 KiB at random places with 32 requests in flight, 1 MiB one after
    /// the other with 8; writes are not flushed. For each it says what held it up:
    ///
    ///   client      the client's thread ran all the time: more clients would get more
    ///   server CPU  the connection's worker ran all the time: more connections would get more
    ///   store       neither did: the store had to answer
    ///   client and server by turns, busy processors: they waited for each other, or for a core
    ///
    /// The volume is deleted afterwards, also after Ctrl-C, and is gone with the next start if the
    /// daemon dies meanwhile. Needs the right to administer. Other work on the machine makes
    /// everything slower.
    #[command(verbatim_doc_comment)]
    Bench {
        /// How long each of the nine rows is measured, 0.05 to 30
        #[arg(long, value_name = "N", default_value = "1", value_parser = milliseconds)]
        seconds: u64,
    },
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Seconds, with a fraction, as milliseconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if MILLISECONDS.contains(&milliseconds) {
        Ok(milliseconds)
    } else {
        Err("it is not from 0.05 to 30".to_owned())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume; its data key is generated wrapped, nobody sees it
    Create(Create),
    /// List the volumes
    List,
    /// Show one volume
    Show {
        /// Its name
        name: VolumeName,
    },
    /// Unwrap the keys of a volume, or of a snapshot, and export it; prints the NBD URI
    Attach(Attach),
    /// Commit a volume, close its export and wipe its key; or close the export of a snapshot
    Detach {
        /// Its name: VOLUME, or VOLUME@SNAPSHOT
        name: Exported,
        /// Close the connections of clients that are still there
        #[arg(long)]
        force: bool,
    },
    /// Make a volume larger, attached or not
    Resize {
        /// Its name
        name: VolumeName,
        /// The new size, such as 20G; a multiple of 4096 bytes, not below the present one
        #[arg(long)]
        size: Size,
    },
    /// Limit how many requests and bytes a second a volume takes, attached or not
    ///
    /// What is over a limit waits, in the order of its connections; nothing is refused. A request of
    /// up to 256 KiB counts as one, a larger one as one for each 256 KiB; FLUSH is not counted. The
    /// limits hold for all connections together, from now on and after every later attach.
    Limit(Limit),
    /// Say what becomes of an attached volume when its key is revoked
    ///
    /// hold: nothing, until it is attached again. enforce: while it is attached its key service is
    /// asked again and again whether the key may still be used; once it says no, the volume is
    /// detached by force and its key wiped. A key service that can't be asked is no revocation,
    /// until the grace is over.
    OnRevoke(OnRevoke),
    /// Bring a volume's content into one layer, while it is attached
    Flatten {
        /// Its name
        name: VolumeName,
        /// Write encrypted zeros into every block that holds no data, so that `data` alone is the
        /// whole volume; what is left when this is interrupted is done when it is run again
        #[arg(long)]
        materialise: bool,
    },
    /// Give a volume another data key: every block is encrypted again, in use or not
    ///
    /// It begins a job that goes on by itself; clients may read and write all the while. What was
    /// encrypted with the old key and nobody needs is destroyed at its end. Clones keep their keys,
    /// and so do snapshots without --with-snapshots: the job's last word names all that the old key
    /// still opens.
    Rekey(Rekey),
    /// Register a volume again from its layer, when the registry that knew it is lost
    Adopt(Adopt),
    /// Delete a volume that is not attached
    Delete {
        /// Its name
        name: VolumeName,
        /// Overwrite its wrapped keys first, and have its key service refuse every copy of them, if it can
        #[arg(long)]
        shred: bool,
        /// Delete nothing unless no copy can be opened any more: exit code 5 says what could
        #[arg(long, requires = "shred")]
        require_proof: bool,
        /// Delete its snapshots with it
        #[arg(long)]
        snapshots: bool,
    },
    /// Show the runs of absent, zero and data blocks, and the layer each comes from
    Map {
        /// Its name; it must be attached
        name: VolumeName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Rekey {
    /// Its name
    pub(crate) name: VolumeName,
    /// The key that wraps its new data key, as PROVIDER:KEY [default: the one that wraps the old]
    #[arg(long, value_name = "KEYREF")]
    pub(crate) key: Option<String>,
    /// Copy so many bytes a second at most, such as 200M; 1M or more
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<Size>,
    /// Its snapshots too, each layer copied as it is: what only the old key opened is then nothing
    #[arg(long)]
    pub(crate) with_snapshots: bool,
    /// Watch the job until it has ended, as `job watch` does
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OnRevoke {
    /// Its name
    pub(crate) name: VolumeName,
    /// What is to happen
    #[arg(value_enum)]
    pub(crate) mode: RevokeMode,
    /// How often to ask: seconds, or such as 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = seconds)]
    pub(crate) every: u32,
    /// For how long the key service may be away: seconds, or such as 30m, 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
    pub(crate) grace: u32,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum RevokeMode {
    /// Nothing, until it is attached again
    Hold,
    /// Detach it by force and wipe its key
    Enforce,
}

/// A time: a number of seconds, minutes (m), hours (h) or days (d).
fn seconds(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    let number: u32 = digits
        .parse()
        .map_err(|_| "it is no time, such as 90, 5m, 24h, 7d".to_owned())?;
    number
        .checked_mul(unit)
        .ok_or_else(|| "it is too long".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Limit {
    /// Its name
    pub(crate) name: VolumeName,
    #[command(flatten)]
    pub(crate) rates: Rates,
}

/// What is not named stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Rates {
    /// Requests a second, or none
    #[arg(long, value_name = "N|none", value_parser = iops)]
    pub(crate) iops: Option<u64>,
    /// Bytes a second, such as 200M, or none
    #[arg(long, value_name = "RATE|none", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<u64>,
    /// So many seconds' worth is saved up while less is used, and may be used at once [default: 1]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) burst: Option<u32>,
}

/// Requests a second; 0 stands for none.
fn iops(text: &str) -> Result<u64, String> {
    rate(text, |text| {
        text.parse().map_err(|_| "it is no number".to_owned())
    })
}

/// Bytes a second; 0 stands for none.
fn bandwidth(text: &str) -> Result<u64, String> {
    rate(text, |text| {
        let size = text.parse::<Size>().map_err(|error| error.to_string())?;
        Ok(size.bytes())
    })
}

fn rate(text: &str, number: impl FnOnce(&str) -> Result<u64, String>) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    match number(text)? {
        0 => Err("with 0 nothing would ever pass; say none for no limit".to_owned()),
        rate => Ok(rate),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: 1 to 64 letters, digits, `.`, `_`, `-`
    pub(crate) name: VolumeName,
    /// Such as 10G; a multiple of 4096 bytes [default for a clone: the snapshot's]
    #[arg(long, required_unless_present = "from_snapshot")]
    pub(crate) size: Option<Size>,
    /// Begin as this snapshot: a clone, there at once, which shares the snapshot's layers
    #[arg(long, value_name = "VOLUME@SNAPSHOT")]
    pub(crate) from_snapshot: Option<SnapshotRef>,
    /// And copy all that it shares under its own data key, by a job, while it is there already: at
    /// the end it stands alone
    #[arg(long, requires = "from_snapshot")]
    pub(crate) fresh_key: bool,
    /// Copy so many bytes a second at most, such as 200M; 1M or more
    #[arg(long, value_name = "RATE", requires = "fresh_key")]
    pub(crate) rate: Option<Size>,
    /// The key that wraps its data keys, as PROVIDER:KEY [default: local:default, for a clone that
    /// of the snapshot's volume]; or provided: for a data key that is given now and at each attach
    #[arg(long, value_name = "KEYREF")]
    pub(crate) key: Option<String>,
    /// The key set whose key wraps them, now and whatever it names later
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    pub(crate) key_set: Option<KeySetName>,
    #[command(flatten)]
    pub(crate) given: GivenKey,
    /// Make its data key in memory at each attach and nowhere else: what it holds is gone when it is
    /// detached, or the daemon ends
    #[arg(long, conflicts_with_all = ["key", "key_set", "from_snapshot", "layers_dir"])]
    pub(crate) ephemeral: bool,
    /// Bytes of a data unit of the cipher: 4096 or 512 [default: 4096, for a clone as it is]
    #[arg(long, value_name = "BYTES",
          value_parser = PossibleValuesParser::new(["512", "4096"])
              .map(|text| if text == "512" { 512_u32 } else { 4096 }))]
    pub(crate) sector_size: Option<u32>,
    /// Where the ciphertext goes: a directory, or a block device [default: the state directory]
    #[arg(long, value_name = "STORE")]
    pub(crate) backing: Option<PathBuf>,
    /// The directory for the layers that snapshots put on the first one; a volume on a block device
    /// can't have any without it [default: where the first layer is]
    #[arg(long, value_name = "DIR")]
    pub(crate) layers_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Fix what volumes hold now, all at one moment; attached or not, in use or not
    Create {
        /// VOLUME@SNAPSHOT, one or several
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        names: Vec<SnapshotRef>,
    },
    /// List the snapshots
    List {
        /// Only those of this volume
        volume: Option<VolumeName>,
    },
    /// Show one snapshot
    Show {
        /// Its name
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        name: SnapshotRef,
        /// And which parts changed since the snapshot before it; it or its volume must be attached
        #[arg(long)]
        extents: bool,
    },
    /// Copy a snapshot, under its key or another one, into a new volume that needs nothing of the source
    ///
    /// Under the key that wraps the snapshot's data keys the two share layers: the copy is there at
    /// once, and no data moves. Under another one, of any provider, a job encrypts every block again
    /// under a data key of the copy's own; the new volume can't be attached before it has ended.
    /// The source stays as it is, and may be deleted.
    Copy(Copy),
    /// Delete a snapshot that is not attached
    Delete {
        /// Its name
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        name: SnapshotRef,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The snapshot to be copied
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) name: SnapshotRef,
    /// The copy: a snapshot of a volume that is not there yet
    #[arg(value_name = "NEW@SNAPSHOT")]
    pub(crate) to: SnapshotRef,
    /// The key that wraps the copy's data keys, as PROVIDER:KEY [default: that of the source's volume]
    #[arg(long, value_name = "KEYREF")]
    pub(crate) key: Option<String>,
    /// Copy so many bytes a second at most, such as 200M; 1M or more
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<Size>,
    /// Watch the job, if there is one, until it has ended, as `job watch` does
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// List the jobs, the oldest first
    List,
    /// Show one job, and what came of it
    Show {
        /// Its number
        id: u64,
    },
    /// Tell how a job goes on until it has ended: a bar on a terminal, JSON lines otherwise
    Watch {
        /// Its number
        id: u64,
    },
    /// End a job early; what it has done stays, in good order
    Cancel {
        /// Its number
        id: u64,
    },
}

/// What can be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exported {
    Volume(VolumeName),
    Snapshot(SnapshotRef),
}

/// A text that is neither a volume's name nor a snapshot's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadExported {
    #[error(transparent)]
    Volume(#[from] BadVolumeName),
    #[error(transparent)]
    Snapshot(#[from] BadSnapshotName),
}

impl FromStr for Exported {
    type Err = BadExported;

    fn from_str(text: &str) -> Result<Self, BadExported> {
        Ok(if text.contains('@') {
            Self::Snapshot(text.parse()?)
        } else {
            Self::Volume(text.parse()?)
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Its name: VOLUME, or VOLUME@SNAPSHOT, which is read-only
    pub(crate) name: Exported,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Reach the store past the page cache (O_DIRECT), until it is detached
    #[arg(long)]
    pub(crate) direct: bool,
    /// User ids that may open the export [default: yours, and root]
    #[arg(long, value_name = "UID,...", value_delimiter = ',')]
    pub(crate) allow: Option<Vec<u32>>,
    /// Go on after a failed sync: acknowledged writes may be gone
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// Go on from a layer that is older than the registry relies on: what was written since is gone
    #[arg(long)]
    pub(crate) accept_rollback: bool,
    #[command(flatten)]
    pub(crate) given: GivenKey,
}

/// The data key of a volume under `provided:`, 64 bytes and nothing else. The daemon reads it, not this program.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct GivenKey {
    /// For a volume under `provided:`: the file with its key, exactly 64 bytes, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The same, by an open descriptor
    #[arg(long, value_name = "N")]
    pub(crate) key_fd: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The name it is to have
    pub(crate) name: VolumeName,
    /// The directory with the layer's `meta` and `data`, called by the layer's id
    #[arg(long, value_name = "PATH")]
    pub(crate) layer_dir: PathBuf,
    /// The key that is trusted to have wrapped its data key, as PROVIDER:KEY
    #[arg(long, value_name = "KEYREF")]
    pub(crate) key: String,
    /// The block device with its data, if that is not in the directory
    #[arg(long, value_name = "PATH")]
    pub(crate) device: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            "sealvol --json --control /x volume list",
            "sealvol volume list --json --control /x",
        ] {
            let cli = parse(line).expect(line);
            assert!(cli.json);
            assert_eq!(cli.control, PathBuf::from("/x"));
        }
    }

    #[test]
    fn create_reads_sizes_and_sector_sizes() {
        let cli = parse("sealvol volume create v --size 10G --sector-size 512").expect("valid");
        let Noun::Volume(Volume::Create(create)) = cli.noun else {
            panic!("another command")
        };
        let size = create.size.map(Size::bytes);
        assert_eq!((size, create.sector_size), (Some(10 << 30), Some(512)));
        let cli = parse("sealvol volume create v --from-snapshot w@s").expect("valid");
        let Noun::Volume(Volume::Create(create)) = cli.noun else {
            panic!("another command")
        };
        assert_eq!((create.size.is_none(), create.sector_size), (true, None));
        for wrong in [
            "sealvol volume create v",
            "sealvol volume create v --size 1G --fresh-key",
            "sealvol volume create v --from-snapshot w@s --rate 2M",
            "sealvol volume create v --size ten",
            "sealvol volume create v --size 1G --sector-size 1024",
            "sealvol volume create a/b --size 1G",
            "sealvol volume snapshot v",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_limit_is_a_rate_or_none_and_one_has_to_be_named() {
        let limit = |line: &str| match parse(&format!("sealvol volume limit v {line}")) {
            Ok(Cli {
                noun: Noun::Volume(Volume::Limit(limit)),
                ..
            }) => Some((limit.rates.iops, limit.rates.bandwidth, limit.rates.burst)),
            _ => None,
        };
        assert_eq!(
            limit("--iops 3000 --bandwidth 125M --burst 60"),
            Some((Some(3000), Some(125 << 20), Some(60)))
        );
        assert_eq!(limit("--iops none"), Some((Some(0), None, None)));
        for wrong in ["", "--iops 0", "--bandwidth 0", "--iops -1", "--burst none"] {
            assert_eq!(limit(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_time_of_a_measurement_has_bounds() {
        let time = |line: &str| match parse(line).map(|cli| cli.noun) {
            Ok(Noun::Bench { seconds }) => Some(seconds),
            _ => None,
        };
        assert_eq!(time("sealvol bench"), Some(1000));
        assert_eq!(time("sealvol bench --seconds 0.25"), Some(250));
        for wrong in ["0", "-1", "31", "nan", "inf", "x", "0.01"] {
            assert_eq!(time(&format!("sealvol bench --seconds {wrong}")), None);
        }
    }

    #[test]
    fn a_snapshot_is_attached_by_its_full_name() {
        let cli = parse("sealvol volume attach v@s").expect("valid");
        let Noun::Volume(Volume::Attach(attach)) = cli.noun else {
            panic!("another command")
        };
        let snapshot = "v@s".parse().expect("a name");
        assert_eq!(attach.name, Exported::Snapshot(snapshot));
        let cli = parse("sealvol snapshot create a@s b@s").expect("valid");
        let Noun::Snapshot(Snapshot::Create { names }) = cli.noun else {
            panic!("another command")
        };
        assert_eq!(names.len(), 2);
        for wrong in [
            "sealvol snapshot create",
            "sealvol snapshot create v",
            "sealvol snapshot show v",
            "sealvol volume detach v@",
            "sealvol volume delete v@s",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_rotation_is_every_so_many_days_or_off() {
        let days = |line: &str| match parse(&format!("sealvol key rotation local:k {line}")) {
            Ok(Cli {
                noun: Noun::Key(Key::Rotation { every, .. }),
                ..
            }) => Some(every),
            _ => None,
        };
        assert_eq!(days("--every 90"), Some(Some(90)));
        assert_eq!(days("--off"), Some(None));
        for wrong in [
            "",
            "--every 90 --off",
            "--every 89",
            "--every 2561",
            "--every x",
        ] {
            assert_eq!(days(wrong), None, "{wrong}");
        }
        let window = |line: &str| match parse(&format!("sealvol key schedule-deletion k:k {line}"))
        {
            Ok(Cli {
                noun: Noun::Key(Key::ScheduleDeletion { window, .. }),
                ..
            }) => Some(window),
            _ => None,
        };
        assert_eq!(window(""), Some(30));
        assert_eq!(window("--window 7 --even-if-used"), Some(7));
        assert_eq!((window("--window 6"), window("--window 31")), (None, None));
    }

    #[test]
    fn allow_takes_a_list() {
        let cli =
            parse("sealvol volume attach v --allow 0,107 --read-only --direct").expect("valid");
        let Noun::Volume(Volume::Attach(attach)) = cli.noun else {
            panic!("another command")
        };
        assert_eq!(attach.allow, Some(vec![0, 107]));
        assert!(
            attach.read_only && attach.direct && !attach.accept_loss && !attach.accept_rollback
        );
    }
}
