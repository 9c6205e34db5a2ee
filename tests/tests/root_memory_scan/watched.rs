//! A daemon under watch: with a control planted in it by its environment, its volumes' secrets made by other programs, and what
//! each pass over it must and must not find.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place as Directory;

use crate::image::{from_hex, script};
use crate::pattern::{FORMS, Patterns, Secret};
use crate::scan::{Hit, Place, Report};

/// The name of the secret that is planted in each daemon, and of the variable that carries it.
const CONTROL: &str = "SEALVOL_SCAN_CONTROL";

/// What must be in the arena for a volume that is attached, if the arena can be read.
const HELD: [&str; 5] = [
    "volume key K",
    "K1 encryption round key",
    "K1 decryption round key",
    "K2 encryption round key",
    "mac key",
];

/// How the daemon's threads that serve clients are called.
const WORKER: &str = "worker-";

/// A daemon and what is searched for in it.
pub(crate) struct Watched<'a> {
    /// The daemon.
    pub(crate) daemon: Daemon<'a>,
    place: &'a Directory,
    control: Secret,
}

/// What a pass may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Volumes are attached, nothing is asked of them.
    AtRest,
    /// Requests are under way: the stacks and registers of workers may hold keys.
    UnderLoad,
    /// No volume is attached.
    Detached,
}

impl<'a> Watched<'a> {
    /// Starts a daemon by `command` with the control in its environment.
    pub(crate) fn start(place: &'a Directory, mut command: Command) -> Self {
        let control = control();
        command.env(CONTROL, in_every_form(&control));
        let daemon = Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"));
        Self {
            daemon,
            place,
            control,
        }
    }

    /// The protection of key memory and its bytes, as the daemon tells them.
    pub(crate) fn key_memory(&self) -> (String, u64) {
        let status = self.daemon.sealvol_json(&["status"]);
        let memory = &status["key_memory"];
        let protection = memory["protection"].as_str().expect("a protection");
        let bytes = memory["locked_bytes"].as_u64().expect("a number");
        (protection.to_owned(), bytes)
    }

    /// All that must not be found: the secrets of every volume there is, and the control.
    pub(crate) fn patterns(&self) -> Patterns {
        let mut secrets = vec![self.control.clone()];
        for meta in self.place.layer_files("meta") {
            secrets.extend(secrets_of(self.place, &meta));
        }
        Patterns::new(secrets)
    }

    /// One pass over the daemon, checked for what always holds and what holds at `moment`.
    pub(crate) fn scan(&self, patterns: &Patterns, moment: Moment, when: &str) -> Report {
        let (protection, locked_bytes) = self.key_memory();
        let report = Report::of(self.daemon.pid().as_raw_nonzero().get(), patterns);
        let secret = |hit: &Hit| patterns.pieces()[hit.piece].secret != 0;
        println!(
            "{when} ({protection}): {} threads, {:.1} MiB searched in {:.2} s, {} arena bytes",
            report.threads,
            report.searched as f64 / f64::from(1 << 20),
            report.stopped.as_secs_f64(),
            report.arena_bytes,
        );
        for (place, count) in report.by_place(secret) {
            println!("    {count:5} pieces of keys in {place}");
        }
        Self::assert_reached_everything(&report, patterns, &protection, locked_bytes);
        let allowed = |place: &Place| match place {
            Place::Arena => protection == "mlock" && moment != Moment::Detached,
            Place::Stack { thread } | Place::Registers { thread, .. } => {
                moment == Moment::UnderLoad && thread.starts_with(WORKER)
            }
            Place::Mapping { .. } => false,
        };
        let leaked = report.table(patterns, |hit| secret(hit) && !allowed(&hit.place));
        assert!(leaked.is_empty(), "{when}: {leaked:#?}");
        if protection == "mlock" && moment != Moment::Detached {
            assert_arena_holds_schedules(&report, patterns);
        }
        report
    }

    /// That a key could not have hidden: all was searched but the arenas, which are as large as the daemon says and lie between
    /// guards.
    fn assert_reached_everything(
        report: &Report,
        patterns: &Patterns,
        protection: &str,
        locked_bytes: u64,
    ) {
        assert_searched(report, patterns);
        let secret: u64 = report
            .unreadable
            .iter()
            .filter(|mapping| mapping.is_secret())
            .map(|mapping| mapping.len())
            .sum();
        let expected = if protection == "secretmem" {
            locked_bytes
        } else {
            0
        };
        assert_eq!(secret, expected, "bytes of secret memory out of reach");
        assert_eq!(report.arena_bytes, locked_bytes, "locked bytes");
        assert_ne!(locked_bytes, 0, "no memory for keys");
        assert_eq!(report.unguarded, 0, "arenas without guards");
    }
}

/// That the control, the first secret, is found in every form, and nothing was out of reach but secret memory and the kernel's
/// own pages.
pub(crate) fn assert_searched(report: &Report, patterns: &Patterns) {
    let forms: BTreeSet<usize> = report
        .hits
        .iter()
        .map(|hit| &patterns.pieces()[hit.piece])
        .filter(|piece| piece.secret == 0)
        .map(|piece| piece.form)
        .collect();
    let missed: Vec<_> = (0..FORMS.len())
        .filter(|form| !forms.contains(form))
        .map(|form| FORMS[form])
        .collect();
    assert!(missed.is_empty(), "the control was not found in {missed:?}");
    let strange: Vec<_> = report
        .unreadable
        .iter()
        .filter(|mapping| !mapping.is_secret() && !mapping.is_kernels())
        .collect();
    assert!(strange.is_empty(), "not searched: {strange:#?}");
}

/// The same search finds what it looks for where the kernel lets it: so finding nothing elsewhere says something.
fn assert_arena_holds_schedules(report: &Report, patterns: &Patterns) {
    let found: BTreeSet<usize> = report
        .hits
        .iter()
        .filter(|hit| hit.place == Place::Arena)
        .map(|hit| hit.piece)
        .collect();
    let missed: Vec<_> = patterns
        .pieces()
        .iter()
        .enumerate()
        .filter(|(number, piece)| {
            let name = &patterns.secrets()[piece.secret].name;
            FORMS[piece.form] == "raw"
                && HELD.iter().any(|held| name.contains(held))
                && !name.contains("HMAC state")
                && !found.contains(number)
        })
        .map(|(_, piece)| &patterns.secrets()[piece.secret].name)
        .collect();
    assert!(missed.is_empty(), "not in the arena: {missed:#?}");
}

/// What is behind one volume, as programs tell it that are none of ours.
pub(crate) fn secrets_of(place: &Directory, meta: &std::path::Path) -> Vec<Secret> {
    let keys = place.state().join("keys");
    let told = Outcome::of(
        script("secrets_of.py")
            .arg("--database")
            .arg(keys.join("local.db"))
            .arg("--master-key-file")
            .arg(keys.join("local.master"))
            .arg(meta),
    );
    let mut secrets = Vec::new();
    for line in told.succeeded().stdout.lines() {
        let (name, bytes) = line.rsplit_once(": ").expect("a name and bytes");
        secrets.push(Secret {
            name: name.to_owned(),
            bytes: from_hex(bytes),
        });
    }
    secrets
}

/// 24 random bytes that no form of theirs has a zero in, which no environment variable can carry.
pub(crate) fn control() -> Secret {
    let mut bytes = random(256);
    bytes.retain(|byte| ![0, 0x36, 0x5c].contains(byte));
    bytes.truncate(24);
    Secret {
        name: CONTROL.to_owned(),
        bytes,
    }
}

/// `len` random bytes.
pub(crate) fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .expect("random bytes");
    bytes
}

/// A secret in each form, as text without zeros if the secret allows it.
pub(crate) fn in_every_form(secret: &Secret) -> std::ffi::OsString {
    let patterns = Patterns::new(vec![secret.clone()]);
    let pieces = patterns.pieces().iter();
    std::ffi::OsString::from_vec(
        pieces
            .flat_map(|piece| [&piece.bytes[..], b"-"].concat())
            .collect(),
    )
}
