//! Who may have keys backed up, and to which recovery key: by real calls of other users.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{self, client};
use sealvol_tests::recovery::RecoveryKey;

const REFUSED: i32 = 3;

const ADMIN: u32 = 64_995;
const ATTACHER: u32 = 64_996;
const STRANGER: u32 = 64_997;

fn start<'a>(place: &'a Place, recovery_keys: &str) -> Daemon<'a> {
    let config = format!(
        "recovery-keys = [{recovery_keys}]\n[rights.attach]\nuids = [0, {ATTACHER}]\n[rights.administer]\nuids = [0, {ADMIN}]\n"
    );
    std::fs::write(place.file("sealvold.toml"), config).expect("a configuration");
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    let daemon = Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    for path in [place.root(), &place.runtime()] {
        open(path, 0o755);
    }
    open(&place.runtime().join("control.sock"), 0o777);
    daemon
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a changed mode");
}

fn as_user(place: &Place, uid: u32, program: &Path, words: &[&str]) -> Outcome {
    Outcome::of(
        client("setpriv")
            .args([
                &format!("--reuid={uid}"),
                &format!("--regid={uid}"),
                "--clear-groups",
                "--inh-caps=-all",
            ])
            .arg(program)
            .arg("--control")
            .arg(place.runtime().join("control.sock"))
            .args(words),
    )
}

/// A copy of the command line that every user can run.
fn copy(place: &Place) -> PathBuf {
    let copy = place.file("sealvol");
    std::fs::copy(programs::ours("sealvol"), &copy).expect("a copy of sealvol");
    open(&copy, 0o755);
    copy
}

#[test]
fn an_administrator_has_backups_made_to_recovery_keys_of_the_configuration_only() {
    needs_root("become other users");
    let place = Place::new();
    let [official, own] = ["official", "own"].map(|name| RecoveryKey::new(&place, name));
    for key in [&official, &own] {
        open(&key.public, 0o644);
    }
    let directory = place.file("backups");
    std::fs::create_dir(&directory).expect("made");
    open(&directory, 0o777);
    let sealvol = copy(&place);
    let daemon = start(&place, "");
    daemon.volume("a", "4M");
    let ask = |uid, key: &RecoveryKey, name: &str| {
        as_user(&place, uid, &sealvol, &key.backup(&directory.join(name)))
    };
    // Without the right to administer nothing is said of keys.
    for uid in [ATTACHER, STRANGER] {
        ask(uid, &official, "refused").failed_with(REFUSED, &[&uid.to_string()]);
    }
    // With it, every key of the provider would be whoever's who names a recovery key.
    let words = ["recovery key", &own.fingerprint(), "recovery-keys"];
    ask(ADMIN, &own, "refused").failed_with(REFUSED, &words);
    daemon
        .sealvol(&official.backup(&directory.join("by-root")))
        .succeeded();
    daemon.stop();

    let daemon = start(
        &place,
        &format!("{:?}", official.fingerprint().to_uppercase()),
    );
    ask(ADMIN, &own, "refused").failed_with(REFUSED, &words);
    ask(ADMIN, &official, "by-admin").succeeded();
    daemon.stop();
    let mut made: Vec<_> = std::fs::read_dir(&directory)
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    made.sort();
    assert_eq!(made, ["by-admin", "by-root"]);
    let records = place.audit();
    let told: Vec<_> = records
        .iter()
        .filter(|record| record["operation"] == "back-up-keys")
        .map(|record| {
            let ok = record["result"] == "ok";
            let uid = record["caller"]["uid"].as_u64().expect("a user");
            (uid, record["recovery_key"] == official.fingerprint(), ok)
        })
        .collect();
    let admin = u64::from(ADMIN);
    let expected = [
        (admin, false, false),
        (0, true, true),
        (admin, false, false),
        (admin, true, true),
    ];
    assert_eq!(told, expected);
}
