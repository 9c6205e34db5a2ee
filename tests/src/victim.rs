//! A volume that somebody attacks through its store: what it held, what became of it, and what a refusal must look like.
//!
//! A refusal is asserted whole, each time: the exit code and the words, that nothing is served, that nothing of a volume or a
//! key was written, that a record with the cause stands in the audit log, and that the same volume with its own files back is
//! served as before: so the change was what was refused.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::daemon::Daemon;
use crate::evidence::fingerprints;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::programs::run;

/// The exit code of what policy, key service or a tamper check refuses.
pub const REFUSED: i32 = 3;

/// A page of the map covers so much.
pub const PAGE: u64 = 64 << 20;

/// How much was written at the start of each page.
const WRITTEN: u64 = 64 << 10;

/// A volume `victim` with content in each of its map pages, detached, its daemon stopped.
#[derive(Debug)]
pub struct Victim {
    /// Its daemon's directories.
    pub place: Place,
    /// The directory of its layer.
    pub layer: PathBuf,
    size: u64,
    /// What the start of each page reads.
    fill: &'static str,
}

impl Victim {
    /// A victim of `size` bytes.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let victim = Self {
            fill: "0x5c",
            ..Self::never_attached(size)
        };
        let daemon = Daemon::start(&victim.place);
        let uri = daemon.attach("victim");
        for page in victim.pages() {
            let write = format!("write -P {} {} {WRITTEN}", victim.fill, page * PAGE);
            qemu_io(&uri, &[], &write).succeeded();
        }
        daemon.detach("victim");
        daemon.stop();
        victim
    }

    /// One that was made and no more: nothing is pinned yet, and it reads zeros.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn never_attached(size: u64) -> Self {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        let bytes = size.to_string();
        daemon
            .sealvol(&["volume", "create", "victim", "--size", &bytes])
            .succeeded();
        let layer = layer_of(&daemon, "victim");
        daemon.stop();
        Self {
            layer: place.state().join("layers").join(layer),
            place,
            size,
            fill: "0",
        }
    }

    /// The layer's `meta`.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.layer.join("meta")
    }

    /// The layer's `data`.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.layer.join("data")
    }

    fn pages(&self) -> std::ops::Range<u64> {
        0..self.size.div_ceil(PAGE)
    }

    /// A copy of the layer as it is now.
    ///
    /// # Panics
    /// If it cannot be copied.
    #[must_use]
    pub fn copy_of_layer(&self, name: &str) -> PathBuf {
        let copy = self.place.file(name);
        run("cp", &["--archive", path(&self.layer), path(&copy)]).succeeded();
        copy
    }

    /// Another volume of the same size, written, detached; the directory of its layer.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn other_volume(&self) -> PathBuf {
        let daemon = Daemon::start(&self.place);
        let uri = daemon.volume("other", &self.size.to_string());
        qemu_io(&uri, &[], &format!("write -P 0x77 0 {WRITTEN}")).succeeded();
        let layer = layer_of(&daemon, "other");
        daemon.detach("other");
        daemon.stop();
        self.place.state().join("layers").join(layer)
    }

    /// Changes things, and asserts that attaching is refused with these words on the terminal and in the audit log.
    ///
    /// # Panics
    /// If it is not, or not as the module says.
    #[track_caller]
    pub fn refuses(&self, case: &str, change: impl FnOnce(), words: &[&str]) {
        eprintln!("case: {case}");
        let kept = self.keep();
        change();
        let before = self.what_counts();
        let recorded = self.place.audit().len();
        let daemon = Daemon::start(&self.place);
        for more in [&[][..], &["--read-only"]] {
            let outcome = daemon.sealvol(&[&["volume", "attach", "victim"], more].concat());
            let served = run("nbdinfo", &["--size", &daemon.uri("victim")]);
            assert_ne!(served.code, Some(0), "{case}: the volume is served");
            outcome.failed_with(REFUSED, words);
        }
        daemon.stop();
        assert_eq!(self.what_counts(), before, "{case}: something was written");
        let records = self.place.audit().split_off(recorded);
        let refusals: Vec<_> = records
            .iter()
            .filter(|record| says(record, words))
            .collect();
        assert_eq!(refusals.len(), 2, "{case}: a refusal each: {records:?}");
        self.put_back(&kept);
        self.serves();
    }

    /// Changes things, and asserts that these pages of the map answer with errors, in both ways of attaching, and the rest of
    /// the volume as ever; and that each page stands in the audit log with this word, once an attach.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn refuses_pages(&self, case: &str, change: impl FnOnce(), pages: &[u64], word: &str) {
        eprintln!("case: {case}");
        let bytes_of = |page: &u64| crate::superblock::read_page(&self.meta(), *page);
        let own: Vec<_> = pages.iter().map(bytes_of).collect();
        change();
        let before = self.what_counts();
        self.reads_around(case, &["--read-only"], pages, word);
        assert_eq!(self.what_counts(), before, "{case}: something was written");
        let before: Vec<_> = pages.iter().map(bytes_of).collect();
        self.reads_around(case, &[], pages, word);
        let after: Vec<_> = pages.iter().map(bytes_of).collect();
        assert!(before == after, "{case}: a damaged page was written");
        // That attach has moved the layer on, so it is the pages alone that come back.
        for (page, own) in pages.iter().zip(own) {
            crate::superblock::write_page(&self.meta(), *page, &own);
        }
        self.serves();
    }

    fn reads_around(&self, case: &str, how: &[&str], pages: &[u64], word: &str) {
        let recorded = self.place.audit().len();
        let daemon = Daemon::start(&self.place);
        daemon
            .sealvol(&[&["volume", "attach", "victim"], how].concat())
            .succeeded();
        let uri = daemon.uri("victim");
        for page in self.pages() {
            let at = page * PAGE;
            if !pages.contains(&page) {
                qemu_io(
                    &uri,
                    &["-r"],
                    &format!("read -P {} {at} {WRITTEN}", self.fill),
                )
                .succeeded();
                continue;
            }
            for len in [WRITTEN, 512] {
                fails(&qemu_io(&uri, &["-r"], &format!("read {at} {len}")));
            }
            if how.is_empty() {
                fails(&qemu_io(&uri, &[], &format!("write -P 1 {at} 4096")));
            }
        }
        daemon.detach("victim");
        daemon.stop();
        let mut records = self.place.audit().split_off(recorded);
        records.retain(|record| record["operation"] == "damage");
        assert_eq!(records.len(), pages.len(), "{case}: {records:?}");
        for page in pages {
            let range = format!("map of bytes {} to {}", page * PAGE, (page + 1) * PAGE);
            let told = records.iter().any(|record| says(record, &[&range, word]));
            assert!(told, "{case}: {records:?}");
        }
    }

    /// Changes things, and asserts that the volume is served as ever, that reading only repairs nothing, and that attaching
    /// for writing repairs both slots and leaves a record with this word.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn is_repaired(&self, case: &str, change: impl FnOnce(), word: &str) {
        eprintln!("case: {case}");
        change();
        let before = self.what_counts();
        let daemon = Daemon::start(&self.place);
        daemon
            .sealvol(&["volume", "attach", "victim", "--read-only"])
            .succeeded();
        self.reads(&daemon);
        daemon.detach("victim");
        daemon.stop();
        assert_eq!(self.what_counts(), before, "{case}: something was written");
        let recorded = self.place.audit().len();
        self.serves();
        let records = self.place.audit().split_off(recorded);
        let mut repairs = records.iter().filter(|r| r["operation"] == "repair");
        let repair = repairs.next();
        assert!(
            repair.is_some_and(|record| says(record, &[word])) && repairs.next().is_none(),
            "{case}: {records:?}"
        );
        let [first, second] =
            crate::superblock::SLOTS.map(|slot| crate::superblock::read_slot(&self.meta(), slot));
        assert!(first == second, "{case}: the slots differ");
    }

    /// Attaches it for writing, compares its content, and detaches it.
    ///
    /// # Panics
    /// If it is not served with its content.
    pub fn serves(&self) {
        let daemon = Daemon::start(&self.place);
        daemon.attach("victim");
        self.reads(&daemon);
        daemon.detach("victim");
        daemon.stop();
    }

    fn reads(&self, daemon: &Daemon<'_>) {
        for page in self.pages() {
            let read = format!("read -P {} {} {WRITTEN}", self.fill, page * PAGE);
            qemu_io(&daemon.uri("victim"), &["-r"], &read).succeeded();
        }
    }

    /// The layers and the keys; the daemon's log, audit log and registry may note that somebody tried.
    #[must_use]
    pub fn what_counts(&self) -> Vec<(PathBuf, (u64, u64))> {
        ["layers", "keys"]
            .iter()
            .flat_map(|directory| fingerprints(&self.place.state().join(directory)))
            .collect()
    }

    fn keep(&self) -> PathBuf {
        let kept = self.place.file("kept");
        for name in ["layers", "keys"] {
            let to = kept.join(name);
            std::fs::create_dir_all(&to).expect("a directory");
            copy_tree(&self.place.state().join(name), &to);
        }
        kept
    }

    fn put_back(&self, kept: &Path) {
        for name in ["layers", "keys"] {
            let to = self.place.state().join(name);
            std::fs::remove_dir_all(&to).expect("a removed directory");
            run("mv", &[path(&kept.join(name)), path(&to)]).succeeded();
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    run(
        "cp",
        &["--archive", "--no-target-directory", path(from), path(to)],
    )
    .succeeded();
}

/// Whether a record of the audit log is about the victim and has all these words.
fn says(record: &Value, words: &[&str]) -> bool {
    let result = record["result"].as_str().unwrap_or_default();
    let result = result.to_lowercase();
    let all = words
        .iter()
        .all(|word| result.contains(&word.to_lowercase()));
    record["name"] == "victim" && result != "ok" && all
}

fn layer_of(daemon: &Daemon<'_>, name: &str) -> String {
    let shown = daemon.sealvol_json(&["volume", "show", name]);
    shown["layers"][0]["id"].as_str().expect("an id").to_owned()
}

fn qemu_io(uri: &str, how: &[&str], command: &str) -> Outcome {
    run(
        "qemu-io",
        &[how, &["-f", "raw", "-c", command, uri]].concat(),
    )
}

/// Asserts that it was an I/O error.
fn fails(outcome: &Outcome) {
    let error = "Input/output error";
    let said = outcome.stdout.contains(error) || outcome.stderr.contains(error);
    assert!(said && outcome.code != Some(0), "no I/O error: {outcome}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
