//! What sealvol refuses, on the real programs: keys, files and directories that are not what they were. For a volume
//! `sealvol_tests::victim` asserts each time what a refusal is. What somebody changes in a store on purpose is in `tampering`.

use std::path::Path;
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::fingerprints;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{ours, run};
use sealvol_tests::superblock::{edit_both, field};
use sealvol_tests::victim::{REFUSED, Victim};

const CONFLICT: i32 = 5;

#[test]
fn a_newer_format_is_refused_as_such() {
    let victim = Victim::new(8 << 20);
    victim.refuses(
        "a newer format",
        || edit_both(&victim.meta(), true, |slot| slot[field::VERSION] = 2),
        &["format version 2", "newer sealvol"],
    );
}

#[test]
fn truncated_files_are_refused() {
    let victim = Victim::new(8 << 20);
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
            || cut(&victim.meta(), len),
            &["meta"],
        );
    }
    for len in [0, 4096, (8 << 20) - 4096] {
        victim.refuses(
            &format!("data of {len} bytes"),
            || cut(&victim.data(), len),
            &["data", "truncated"],
        );
    }
}

#[test]
fn a_wrong_missing_or_exposed_master_key_is_refused() {
    let victim = Victim::new(8 << 20);
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
    let victim = Victim::new(8 << 20);
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
    let victim = Victim::new(8 << 20);
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
