//! What sealvol refuses, on the real programs: keys, metadata and directories that are not what they were. Each case asserts
//! the exit code, the words that name the cause, that nothing of a volume was written, and that the same volume with its own
//! files back is served: so the change was what was refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::fingerprints;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{ours, run};
use sealvol_tests::superblock::{SLOTS, edit_both, edit_slot, field, read_slot};

const REFUSED: i32 = 3;
const CONFLICT: i32 = 5;

/// A volume `victim` with content, detached, its daemon stopped.
struct Victim {
    place: Place,
    meta: PathBuf,
    data: PathBuf,
}

impl Victim {
    fn new() -> Self {
        let place = Place::new();
        std::fs::write(place.file("content"), pattern::bytes(1, 1 << 20)).expect("a file");
        let daemon = Daemon::start(&place);
        let uri = daemon.volume("victim", "8M");
        run("nbdcopy", &["--flush", path(&place.file("content")), &uri]).succeeded();
        daemon.detach("victim");
        daemon.stop();
        let [meta, data] = ["meta", "data"].map(|name| {
            let mut found = place.layer_files(name);
            assert_eq!(found.len(), 1, "the layers of one new volume");
            found.remove(0)
        });
        Self { place, meta, data }
    }

    /// Changes things, and asserts that attaching is refused with these words.
    fn refuses(&self, case: &str, change: impl FnOnce(), words: &[&str]) {
        self.refuses_with(REFUSED, case, change, words);
    }

    fn refuses_with(&self, code: i32, case: &str, change: impl FnOnce(), words: &[&str]) {
        eprintln!("case: {case}");
        let kept = self.place.file("kept");
        run("cp", &["--archive", path(&self.place.state()), path(&kept)]).succeeded();
        change();
        let before = self.what_counts();

        let daemon = Daemon::start(&self.place);
        let outcome = daemon.sealvol(&["volume", "attach", "victim"]);
        let served = run("nbdinfo", &["--size", &daemon.uri("victim")]);
        assert_ne!(served.code, Some(0), "{case}: the volume is served");
        outcome.failed_with(code, words);
        daemon.stop();
        assert_eq!(self.what_counts(), before, "{case}: something was written");

        std::fs::remove_dir_all(self.place.state()).expect("a removed directory");
        run("mv", &[path(&kept), path(&self.place.state())]).succeeded();
        self.serves();
    }

    /// The layers and the keys; the daemon's log, audit log and registry may note that somebody tried.
    fn what_counts(&self) -> Vec<(PathBuf, (u64, u64))> {
        ["layers", "keys"]
            .iter()
            .flat_map(|directory| fingerprints(&self.place.state().join(directory)))
            .collect()
    }

    /// Attaches it and compares its content.
    fn serves(&self) {
        let daemon = Daemon::start(&self.place);
        let uri = daemon.attach("victim");
        let copy = self.place.file("copy");
        run("nbdcopy", &[&uri, path(&copy)]).succeeded();
        let content = std::fs::read(self.place.file("content")).expect("the content");
        assert!(
            std::fs::read(&copy)
                .expect("the copy")
                .starts_with(&content),
            "the content is another"
        );
        daemon.detach("victim");
        daemon.stop();
    }
}

#[test]
fn changed_superblocks_are_refused() {
    let victim = Victim::new();
    let meta = &victim.meta;
    let flip = |at: usize| move |slot: &mut [u8]| slot[at] ^= 1;
    victim.refuses(
        "a changed size under a good checksum",
        || edit_both(meta, true, flip(field::SIZE + 3)),
        &["tampered"],
    );
    victim.refuses(
        "another sector size under a good checksum",
        || {
            edit_both(meta, true, |slot| {
                slot[field::SECTOR_SIZE..][..4].copy_from_slice(&512_u32.to_le_bytes())
            })
        },
        &["tampered"],
    );
    victim.refuses(
        "a generation of the far future under a good checksum",
        || edit_both(meta, true, flip(field::GENERATION + 5)),
        &["tampered"],
    );
    victim.refuses(
        "a changed authentication code under a good checksum",
        || edit_both(meta, true, flip(field::MAC)),
        &["tampered"],
    );
    victim.refuses(
        "one slot changed under a good checksum",
        || edit_slot(meta, SLOTS[1], true, flip(field::SIZE + 3)),
        &["tampered"],
    );
    victim.refuses(
        "another volume's id under a good checksum",
        || edit_both(meta, true, flip(field::VOLUME)),
        &["tampered"],
    );
    victim.refuses(
        "damage in both slots",
        || edit_both(meta, false, flip(field::SIZE)),
        &["neither superblock slot", "restore"],
    );
    victim.refuses(
        "zeros in place of both slots",
        || edit_both(meta, false, |slot| slot.fill(0)),
        &["neither superblock slot", "restore"],
    );
}

#[test]
fn a_newer_format_is_refused_as_such() {
    let victim = Victim::new();
    victim.refuses(
        "a newer format",
        || edit_both(&victim.meta, true, |slot| slot[field::VERSION] = 2),
        &["format version 2", "newer sealvol"],
    );
}

#[test]
fn truncated_files_are_refused() {
    let victim = Victim::new();
    let cut = |file: &Path, len| {
        let file = std::fs::File::options()
            .write(true)
            .open(file)
            .expect("a file");
        file.set_len(len).expect("a shorter file");
    };
    for len in [0, 100, 4096, 300_000, 1 << 20, (64 << 20) + 4096] {
        victim.refuses(
            &format!("meta of {len} bytes"),
            || cut(&victim.meta, len),
            &["meta"],
        );
    }
    for len in [0, 4096, (8 << 20) - 4096] {
        victim.refuses(
            &format!("data of {len} bytes"),
            || cut(&victim.data, len),
            &["data", "truncated"],
        );
    }
}

#[test]
fn one_torn_slot_is_repaired_from_the_other() {
    let victim = Victim::new();
    for slot in SLOTS {
        edit_slot(&victim.meta, slot, false, |bytes| {
            bytes[field::SIZE..][..100].fill(0xff)
        });
        victim.serves();
        assert_eq!(
            read_slot(&victim.meta, SLOTS[0]),
            read_slot(&victim.meta, SLOTS[1])
        );
    }
}

#[test]
fn a_rolled_back_volume_is_refused() {
    let victim = Victim::new();
    let layer = victim.meta.parent().expect("a layer").to_owned();
    let old = victim.place.file("old");
    run("cp", &["--archive", path(&layer), path(&old)]).succeeded();
    victim.serves(); // which makes what was copied old
    victim.refuses(
        "an old copy of the layer",
        || {
            for name in ["meta", "data"] {
                run("cp", &[&old.join(name), &layer.join(name)]).succeeded();
            }
        },
        &["rolled back"],
    );
}

#[test]
fn another_volumes_header_and_keys_are_refused() {
    let victim = Victim::new();
    let daemon = Daemon::start(&victim.place);
    daemon.volume("other", "8M");
    daemon.detach("other");
    daemon.stop();
    let other = victim
        .place
        .layer_files("meta")
        .into_iter()
        .find(|meta| *meta != victim.meta)
        .expect("a second layer");

    victim.refuses(
        "the header of another volume",
        || {
            run("cp", &[&other, &victim.meta]).succeeded();
        },
        &[],
    );
    victim.refuses(
        "the wrapped key of another volume",
        || {
            // Everything outside the authentication code: key generation, the key records, the checksum.
            for slot in SLOTS {
                let theirs = read_slot(&other, slot);
                edit_slot(&victim.meta, slot, true, |mine| {
                    mine[128..144].copy_from_slice(&theirs[128..144]);
                    mine[264..theirs.len()].copy_from_slice(&theirs[264..]);
                });
            }
        },
        &[],
    );
}

#[test]
fn a_wrong_missing_or_exposed_master_key_is_refused() {
    let victim = Victim::new();
    let master = victim.place.state().join("keys/local.master");
    assert!(master.exists(), "the master key file has another name");
    victim.refuses(
        "another master key",
        || std::fs::write(&master, pattern::bytes(7, 32)).expect("a written key"),
        &["master key", "not the master key"],
    );
    victim.refuses(
        "a master key of 31 bytes",
        || std::fs::write(&master, &pattern::bytes(7, 32)[..31]).expect("a written key"),
        &["master key", "31 bytes"],
    );
    victim.refuses(
        "no master key, which must not be made anew",
        || std::fs::remove_file(&master).expect("a removed key"),
        &["master key", "cannot be read", "local.master"],
    );
    victim.refuses(
        "a master key that everybody may read",
        || {
            run("chmod", &["0644", path(&master)]).succeeded();
        },
        &["local.master", "0644"],
    );
}

#[test]
fn a_lost_key_database_is_refused_and_not_made_anew() {
    let victim = Victim::new();
    victim.refuses(
        "no key database",
        || {
            std::fs::remove_file(victim.place.state().join("keys/local.db"))
                .expect("a removed database")
        },
        &["victim"],
    );
}

#[test]
fn a_second_daemon_on_a_state_directory_is_refused() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("kept", "8M");
    let mut second = Command::new(ours("sealvold"));
    second
        .arg("--state-dir")
        .arg(place.state())
        .arg("--runtime-dir")
        .arg(place.file("run2"));
    Outcome::of(&mut second).failed_with(
        CONFLICT,
        &["another sealvold", &place.state().display().to_string()],
    );
    run("nbdinfo", &["--size", &uri]).succeeded();
    daemon.stop();
}

#[test]
fn a_second_daemon_on_a_volume_is_refused() {
    let place = Place::new();
    let backing = place.file("backing");
    std::fs::create_dir(&backing).expect("a directory");
    let config = place.file("sealvold.toml");
    std::fs::write(&config, format!("backing = [{:?}]\n", path(&backing)))
        .expect("a configuration");
    let start = |place| {
        let mut command = Daemon::command(place);
        command.arg("--config").arg(&config);
        Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
    };

    let first = start(&place);
    first
        .sealvol(&[
            "volume",
            "create",
            "shared",
            "--size",
            "8M",
            "--backing",
            path(&backing),
        ])
        .succeeded();
    first.stop();
    // A second daemon that believes it owns the same volume.
    let copy = Place::new();
    run(
        "cp",
        &[
            "--archive",
            "--no-target-directory",
            path(&place.state()),
            path(&copy.state()),
        ],
    )
    .succeeded();
    let first = start(&place);
    let second = start(&copy);
    let uri = first.attach("shared");
    let before = fingerprints(&backing);
    second
        .sealvol(&["volume", "attach", "shared"])
        .failed_with(CONFLICT, &["shared", "lock"]);
    assert_eq!(fingerprints(&backing), before, "something was written");
    run("nbdinfo", &["--size", &uri]).succeeded();
    second.stop();
    first.stop();
}

#[test]
fn a_limit_that_locks_too_little_memory_is_named() {
    let victim = Victim::new();
    let mut command = Command::new("setpriv");
    // Root with CAP_IPC_LOCK is not limited at all.
    if rustix::process::geteuid().is_root() {
        command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
    }
    let sealvold = Daemon::command(&victim.place);
    command
        .args(["prlimit", "--memlock=4096:4096"])
        .arg(sealvold.get_program())
        .args(sealvold.get_args());
    let before = victim.what_counts();
    let daemon =
        Daemon::start_by(&victim.place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    daemon
        .sealvol(&["volume", "attach", "victim"])
        .failed_with(REFUSED, &["RLIMIT_MEMLOCK is 4096", "LimitMEMLOCK"]);
    let status = daemon.sealvol_json(&["status"]);
    assert_eq!(status["key_memory"]["protection"], "none", "{status}");
    daemon.stop();
    assert_eq!(victim.what_counts(), before, "something was written");
    victim.serves();
}

#[test]
fn names_sizes_and_keys_that_make_no_sense_are_refused_with_the_right_code() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("there", "8M");
    for (code, words, says) in [
        (
            2,
            &["volume", "create", "n", "--size", "many"][..],
            &["many"][..],
        ),
        (2, &["volume", "create", "../n", "--size", "8M"], &["../n"]),
        (
            2,
            &[
                "volume",
                "create",
                "n",
                "--size",
                "8M",
                "--sector-size",
                "1024",
            ],
            &["1024"],
        ),
        (2, &["volume", "explode", "there"], &["explode"]),
        (4, &["volume", "attach", "absent"], &["absent"]),
        (4, &["volume", "show", "absent"], &["absent"]),
        (4, &["volume", "detach", "absent"], &["absent"]),
        (
            5,
            &["volume", "create", "there", "--size", "8M"],
            &["there"],
        ),
        (5, &["volume", "attach", "there"], &["there", "attached"]),
        (5, &["volume", "delete", "there"], &["there", "attached"]),
        (
            4,
            &["volume", "create", "n", "--size", "8M", "--key", "vault:k"],
            &["vault", "not configured"],
        ),
        (
            4,
            &[
                "volume",
                "create",
                "n",
                "--size",
                "8M",
                "--key",
                "local:absent",
            ],
            &["absent"],
        ),
    ] {
        daemon.sealvol(words).failed_with(code, says);
    }
    daemon.stop();
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
