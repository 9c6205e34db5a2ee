//! A daemon under watch: with controls planted in it, its volumes' secrets made by other programs, and what each pass over it
//! must and must not find.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place as Directory;

use crate::files::{self, Found};
use crate::image::{Frozen, from_hex, script};
use crate::pattern::{FORMS, Kind, Patterns, Secret};
use crate::scan::{Hit, Place, Report};
use crate::services::KeyService;

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

/// How much is sent to the daemon to be freed: less than the allocator gives back to the kernel at once.
const FREED_BYTES: usize = 32 << 10;

/// A daemon and what is searched for in it.
pub(crate) struct Watched<'a> {
    /// The daemon.
    pub(crate) daemon: Daemon<'a>,
    place: &'a Directory,
    service: &'a KeyService,
    planted: Secret,
    on_stacks: Secret,
    freed: Secret,
}

/// What is behind one layer, as programs tell it that are none of ours.
#[derive(Clone)]
pub(crate) struct Behind {
    /// Keys, schedules, states.
    pub(crate) keys: Vec<Secret>,
    /// The wrapped key, which is no secret.
    pub(crate) wrapped: Secret,
}

/// What a pass may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Volumes are attached, nothing is asked of them.
    AtRest,
    /// Requests are under way: the stacks and registers of workers may hold keys.
    UnderLoad,
    /// Nobody has a use for any of these keys any more: not even the arena may hold them.
    Gone,
}

impl<'a> Watched<'a> {
    /// Starts a daemon by `command` with the first control in its environment.
    pub(crate) fn start(
        place: &'a Directory,
        service: &'a KeyService,
        mut command: Command,
    ) -> Self {
        let planted = control();
        command.env(CONTROL, in_every_form(&planted));
        let daemon = Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"));
        let other = |name: &str, kind| Secret {
            name: name.to_owned(),
            kind,
            ..control()
        };
        Self {
            daemon,
            place,
            service,
            planted,
            on_stacks: other("control on stacks", Kind::OnStacks),
            freed: other("freed control", Kind::Freed),
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

    /// The `meta` file of a volume's top.
    pub(crate) fn meta(&self, volume: &str) -> PathBuf {
        let shown = self.daemon.sealvol_json(&["volume", "show", volume]);
        let top = shown["layers"][0]["id"].as_str().expect("an id").to_owned();
        let metas = self.place.layer_files("meta").into_iter();
        let mut of_top =
            metas.filter(|path| path.parent().and_then(Path::file_name) == Some(OsStr::new(&top)));
        of_top.next().expect("its files")
    }

    /// What is behind a volume's top, fetched from the key service.
    pub(crate) fn behind(&self, volume: &str) -> Behind {
        behind(self.place, self.service, &self.meta(volume))
    }

    /// All that is to be looked for: these keys, which must not be found, and the controls, which must. `present` is a volume that
    /// is attached.
    pub(crate) fn patterns(&self, keys: &[&Behind], present: Option<&Behind>) -> Patterns {
        let mut all = vec![
            self.planted.clone(),
            self.on_stacks.clone(),
            self.freed.clone(),
        ];
        all.extend(present.map(|behind| behind.wrapped.clone()));
        all.extend(keys.iter().flat_map(|behind| behind.keys.clone()));
        Patterns::new(all)
    }

    /// One pass over the daemon, checked for what always holds and what holds at `moment`.
    pub(crate) fn scan(&self, patterns: &Patterns, moment: Moment, when: &str) -> Report {
        let (protection, locked_bytes) = self.key_memory();
        self.have_freed();
        let frozen = Frozen::running(self.daemon.pid().as_raw_nonzero().get());
        frozen.plant_on_stacks(WORKER, &self.on_stacks.bytes);
        let workers: BTreeSet<String> = frozen
            .threads
            .iter()
            .map(|thread| thread.name.clone())
            .filter(|name| name.starts_with(WORKER))
            .collect();
        let report = Report::of_frozen(frozen, patterns);
        let is_key = |hit: &Hit| patterns.kind(hit.piece) == Kind::Key;
        println!(
            "{when} ({protection}): {} threads, {:.1} MiB searched in {:.2} s, {} arena bytes",
            report.threads,
            report.searched as f64 / f64::from(1 << 20),
            report.stopped.as_secs_f64(),
            report.arena_bytes,
        );
        for (place, count) in report.by_place(is_key) {
            println!("    {count:5} pieces of keys in {place}");
        }
        Self::assert_reached_everything(&report, patterns, &protection, locked_bytes);
        assert_controls_found(&report, patterns, &workers);
        let allowed = |place: &Place| match place {
            Place::Arena => protection == "mlock" && moment != Moment::Gone,
            Place::Stack { thread } | Place::Registers { thread, .. } => {
                moment == Moment::UnderLoad && thread.starts_with(WORKER)
            }
            Place::Mapping { .. } => false,
        };
        let leaked = report.table(patterns, |hit| is_key(hit) && !allowed(&hit.place));
        assert!(leaked.is_empty(), "{when}: {leaked:#?}");
        if protection == "mlock" && moment != Moment::Gone {
            assert_arena_holds_schedules(&report, patterns);
        }
        report
    }

    /// Searches a core of the daemon that a debugger makes, at a moment at which nothing may be found. Nothing is claimed of it
    /// without secret memory.
    pub(crate) fn scan_core(&self, patterns: &Patterns) {
        if self.key_memory().0 != "secretmem" {
            return;
        }
        let found = files::search_core(self.daemon.pid(), self.place, patterns);
        let keys: Found = found
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::Key)
            .map(|(name, count)| (name.clone(), *count))
            .collect();
        assert!(keys.is_empty(), "in a core: {keys:#?}");
        for kind in [Kind::Planted, Kind::OnStacks, Kind::SameWay] {
            let there = found.keys().any(|(found, _)| *found == kind);
            assert!(there, "{kind:?} was not found in a core");
        }
    }

    /// That no key stands in a file that the daemon has written.
    pub(crate) fn assert_no_key_is_written(&self, patterns: &Patterns) {
        let operators = self.service.key_file(self.place);
        files::assert_no_key_is_written(self.place, patterns, operators.as_deref());
    }

    /// Sends the daemon a request that it refuses and forgets: its body lies in freed memory then, all of it over and over the same
    /// bytes, so that enough of them outlives what is written there next.
    fn have_freed(&self) {
        let body = [
            b"!",
            &self
                .freed
                .bytes
                .repeat(FREED_BYTES / self.freed.bytes.len())[..],
        ]
        .concat();
        let head = format!(
            "POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut socket =
            UnixStream::connect(self.place.runtime().join("control.sock")).expect("the daemon");
        socket.write_all(head.as_bytes()).expect("sent");
        socket.write_all(&body).expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
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

/// That the first secret is found in every form, and nothing was out of reach but secret memory and the kernel's own pages.
pub(crate) fn assert_searched(report: &Report, patterns: &Patterns) {
    let forms: BTreeSet<usize> = report
        .hits
        .iter()
        .filter(|hit| patterns.kind(hit.piece) == Kind::Planted)
        .map(|hit| patterns.pieces()[hit.piece].form)
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

/// That the pass has found what lies on each worker's stack, in freed memory, and what came the way that keys come.
fn assert_controls_found(report: &Report, patterns: &Patterns, workers: &BTreeSet<String>) {
    let places = |kind: Kind| {
        let hits = report.hits.iter();
        hits.filter(move |hit| patterns.kind(hit.piece) == kind)
            .map(|hit| &hit.place)
    };
    let stacks: BTreeSet<String> = places(Kind::OnStacks)
        .filter_map(|place| match place {
            Place::Stack { thread } => Some(thread.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(&stacks, workers, "stacks on which the control was found");
    assert!(!workers.is_empty(), "no worker");
    let in_heap = |place: &Place| matches!(place, Place::Mapping { .. });
    assert!(
        places(Kind::Freed).any(in_heap),
        "what was freed was not found"
    );
    let found: BTreeSet<usize> = report.hits.iter().map(|hit| hit.piece).collect();
    let missed = (0..patterns.pieces().len())
        .filter(|&piece| patterns.kind(piece) == Kind::SameWay && !found.contains(&piece))
        .count();
    assert_eq!(missed, 0, "pieces of a wrapped key that were not found");
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

/// What is behind one layer.
pub(crate) fn behind(place: &Directory, service: &KeyService, meta: &Path) -> Behind {
    let told =
        Outcome::of(script("secrets_of.py").arg(meta).args(service.words(place))).succeeded();
    let mut secrets: Vec<Secret> = told
        .stdout
        .lines()
        .map(|line| {
            let (name, bytes) = line.rsplit_once(": ").expect("a name and bytes");
            let mut bytes = from_hex(bytes);
            bytes.truncate(bytes.len() / 8 * 8);
            let is_control = name.starts_with("control");
            Secret {
                name: name.to_owned(),
                bytes,
                kind: if is_control { Kind::SameWay } else { Kind::Key },
            }
        })
        .collect();
    let wrapped = secrets.pop().expect("the wrapped key");
    assert_eq!(
        wrapped.kind,
        Kind::SameWay,
        "the last one is the wrapped key"
    );
    Behind {
        keys: secrets,
        wrapped,
    }
}

/// 24 random bytes that no form of theirs has a zero in, which no environment variable can carry.
pub(crate) fn control() -> Secret {
    let mut bytes = random(256);
    bytes.retain(|byte| ![0, 0x36, 0x5c].contains(byte));
    bytes.truncate(24);
    Secret {
        name: CONTROL.to_owned(),
        bytes,
        kind: Kind::Planted,
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
