//! A host that loses its keys, and gets them back from a backup and a recovery key that was elsewhere; what a backup says, and
//! where it never is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_under;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, run};
use sealvol_tests::recovery::RecoveryKey;
use serde_json::{Value, json};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;

/// Operation, key, recovery key and result of each record of a backup.
fn recorded(place: &Place) -> Vec<[Value; 4]> {
    let records = place.audit();
    let backups = records
        .iter()
        .filter(|record| record["operation"] == "back-up-keys");
    backups
        .map(|record| {
            assert!(record["caller"]["uid"].is_u64());
            ["operation", "key", "recovery_key", "result"].map(|field| record[field].clone())
        })
        .collect()
}

fn lose_the_keys(place: &Place) {
    std::fs::remove_dir_all(place.state().join("keys")).expect("gone");
}

#[test]
fn a_host_that_lost_its_keys_has_its_volumes_again() {
    let place = Place::new();
    let recovery_key = RecoveryKey::new(&place, "recovery");
    let backup = place.file("keys.backup");
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon
        .sealvol(&["key", "rotate", "local:default"])
        .succeeded();
    daemon.sealvol(&["key", "create", "local:own"]).succeeded();
    let create = [
        "volume",
        "create",
        "b",
        "--size",
        "4M",
        "--key",
        "local:own",
    ];
    daemon.sealvol(&create).succeeded();
    daemon.attach("b");
    let [first, second] = [1, 2].map(|seed| pattern::bytes(seed, 1 << 20));
    daemon.write("a", 0, &first);
    daemon.write("b", 0, &second);
    daemon
        .sealvol(&["snapshot", "create", "a@then"])
        .succeeded();

    let made = recovery_key.back_up(&daemon, &backup);
    assert_eq!(made["recovery_key"], json!(recovery_key.fingerprint()));
    assert_eq!(made["master_key"], "raw");
    let content = std::fs::read(&backup).expect("there");
    assert_eq!(made["bytes"], json!(content.len()));
    let sum = run("sha256sum", &[&backup]).succeeded().stdout;
    assert!(sum.starts_with(made["sha256"].as_str().expect("a digest")));
    daemon.stop();
    lose_the_keys(&place);

    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["volume", "attach", "a"])
        .failed_with(REFUSED, &["there is none", "restore it from a backup"]);
    daemon.stop();
    let told = recovery_key.restore(&place, &backup).succeeded().stdout;
    assert!(
        told.contains(made["sha256"].as_str().expect("a digest")),
        "{told}"
    );
    // What was put there stands in nobody's way, and is not put there again.
    recovery_key
        .restore(&place, &backup)
        .failed_with(5, &["is there already"]);

    let daemon = Daemon::start(&place);
    // What was attached when the keys were lost is so again by itself.
    daemon.attach("a@then");
    for (name, expected) in [("a", &first), ("b", &second), ("a@then", &first)] {
        assert_eq!(&daemon.content(name)[..1 << 20], &expected[..], "{name}");
    }
    daemon.sealvol(&["key", "rotate", "local:own"]).succeeded();
    daemon.stop();
}

#[test]
fn an_older_backup_is_accepted_by_name_and_gets_the_tombstones_of_the_registry() {
    let place = Place::new();
    let recovery_key = RecoveryKey::new(&place, "recovery");
    let backup = place.file("keys.backup");
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon.write("a", 0, &[7; 4096]);
    daemon.detach("a");
    daemon.volume("shredded", "4M");
    daemon.detach("shredded");
    recovery_key.back_up(&daemon, &backup);
    daemon
        .sealvol(&["key", "create", "local:later"])
        .succeeded();
    daemon
        .sealvol(&["volume", "delete", "shredded", "--shred"])
        .succeeded();
    daemon.stop();
    lose_the_keys(&place);
    recovery_key.restore(&place, &backup).succeeded();

    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["volume", "attach", "a"])
        .failed_with(REFUSED, &["TableRolledBack", "sealvol key accept-table"]);
    daemon
        .sealvol(&["key", "accept-table", "local"])
        .succeeded();
    daemon.attach("a");
    assert_eq!(daemon.content("a")[..4096], [7; 4096]);
    daemon
        .sealvol(&["key", "show", "local:later"])
        .failed_with(NOT_FOUND, &["does not exist"]);
    daemon.stop();
    let count = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM tombstones').fetchone())";
    let database = place.state().join("keys/local.db").display().to_string();
    let told = run("python3", &["-c", count, &database]).succeeded().stdout;
    assert_ne!(told.trim(), "0", "tombstones of the shredded volume");
}

#[test]
fn a_backup_is_there_whole_and_for_its_owner_alone_or_not_at_all() {
    let place = Place::new();
    let recovery_key = RecoveryKey::new(&place, "recovery");
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    let directory = place.file("backups");
    std::fs::create_dir(&directory).expect("made");
    let to = directory.join("keys.backup");
    let words = recovery_key.backup(&to);
    let told = daemon.sealvol(&words).succeeded().stdout;
    assert!(told.contains(&recovery_key.fingerprint()), "{told}");
    let mode = to.metadata().expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let before = std::fs::read(&to).expect("there");
    daemon
        .sealvol(&words)
        .failed_with(FAILED, &["keys.backup", "exists"]);
    assert!(std::fs::read(&to).expect("there") == before);

    // Whatever goes wrong leaves nothing.
    let other = directory.join("other.backup");
    let mut wrong = recovery_key.backup(&other);
    let no_key = place.file("sealvol.txt");
    std::fs::write(&no_key, "no key").expect("written");
    wrong[4] = no_key.to_str().expect("UTF-8");
    daemon
        .sealvol(&wrong)
        .failed_with(USAGE, &["recovery key", "PEM"]);
    let mut wrong = recovery_key.backup(&other);
    wrong[2] = "elsewhere";
    daemon
        .sealvol(&wrong)
        .failed_with(NOT_FOUND, &["elsewhere"]);
    let small = small_key(&place);
    let mut wrong = recovery_key.backup(&other);
    wrong[4] = &small;
    daemon.sealvol(&wrong).failed_with(USAGE, &["3072", "4096"]);
    let nowhere = place.file("none/keys.backup");
    daemon
        .sealvol(&recovery_key.backup(&nowhere))
        .failed_with(FAILED, &["none"]);
    assert_eq!(files_under(&directory), [to]);

    // Each use of the master key is on record, with whom it is for; so is each that was refused.
    let records = recorded(&place);
    let fingerprint = json!(recovery_key.fingerprint());
    let ok = [
        json!("back-up-keys"),
        json!("local:*"),
        fingerprint,
        json!("ok"),
    ];
    assert_eq!(records[0], ok);
    assert_eq!(records.len(), 3, "{records:?}");
    assert!(
        records[1..]
            .iter()
            .all(|record| record[3] != "ok" && record[2] != ok[2] || record[1] != ok[1])
    );

    // The call without a file, as another client might make it.
    let body = json!({"recovery_key": std::fs::read_to_string(&recovery_key.public).expect("PEM")});
    let mut command = Command::new("curl");
    command
        .args(["-s", "--unix-socket"])
        .arg(place.runtime().join("control.sock"))
        .args(["-X", "POST", "-d", &body.to_string()])
        .arg("http://localhost/v1/keys/local/backup");
    let answer = Outcome::of(&mut command).succeeded().stdout;
    assert!(answer.contains("its file does not come"), "{answer}");

    // And with what is no file to write to.
    let control = place.runtime().join("control.sock");
    let brought = place.file("brought");
    std::fs::create_dir(&brought).expect("made");
    let arguments = [&control, &recovery_key.public, &brought];
    let arguments = arguments.map(|path| path.to_str().expect("UTF-8"));
    check("bring_file.py", &arguments);
    daemon.stop();
}

#[test]
fn who_lost_the_passphrase_has_the_keys_by_the_recovery_key() {
    let place = Place::new();
    let recovery_key = RecoveryKey::new(&place, "recovery");
    let (passphrase, backup) = (place.file("passphrase"), place.file("keys.backup"));
    std::fs::write(&passphrase, "correct horse\n").expect("written");
    let daemon = Daemon::start_with_passphrase(&place, &passphrase);
    daemon.volume("a", "4M");
    daemon.write("a", 0, &[7; 4096]);
    daemon.detach("a");
    let made = recovery_key.back_up(&daemon, &backup);
    assert_eq!(made["master_key"], "passphrase");
    daemon.stop();
    lose_the_keys(&place);
    recovery_key.restore(&place, &backup).succeeded();
    // Its form is a change that the registry takes for what it is: a newer state of the same table.
    let daemon = Daemon::start(&place);
    daemon.attach("a");
    assert_eq!(daemon.content("a")[..4096], [7; 4096]);
    daemon.stop();
}

/// A public key that is too short, in a file.
fn small_key(place: &Place) -> String {
    let [key, public] =
        ["small.key", "small.pub"].map(|name| place.file(name).display().to_string());
    let make = [
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        &key,
    ];
    run("openssl", &make).succeeded();
    run(
        "openssl",
        &["pkey", "-in", &key, "-pubout", "-out", &public],
    )
    .succeeded();
    public
}

#[test]
fn no_key_is_in_a_backup_or_in_what_is_said_of_it() {
    let place = Place::new();
    let recovery_key = RecoveryKey::new(&place, "recovery");
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    let [first, second] = ["first.backup", "second.backup"].map(|name| place.file(name));
    let json = daemon.sealvol(&[&["--json"][..], &recovery_key.backup(&first)].concat());
    let text = daemon.sealvol(&recovery_key.backup(&second));
    daemon.stop();
    let master = std::fs::read(place.state().join("keys/local.master")).expect("there");
    lose_the_keys(&place);
    let restored = recovery_key.restore(&place, &first).succeeded();
    assert!(std::fs::read(place.state().join("keys/local.master")).expect("there") == master);

    let [json, text, restored] = [json, text, restored].map(|outcome| format!("{outcome}"));
    let mut searched = vec![
        ("JSON".to_owned(), json.into_bytes()),
        ("text".to_owned(), text.into_bytes()),
        ("what a restore says".to_owned(), restored.into_bytes()),
    ];
    let mut files = files_under(&place.log());
    files.extend([first, second, place.state().join("audit.log")]);
    for file in files {
        let content = std::fs::read(&file).expect("read");
        searched.push((file.display().to_string(), content));
    }
    for form in forms(&master) {
        for (name, content) in &searched {
            assert!(!contains(content, &form), "the master key is in {name}");
        }
    }
    // The search finds what is there.
    let key = std::fs::read(place.state().join("keys/local.master")).expect("there");
    assert!(contains(&key, &forms(&master)[0]));
    assert!(contains(
        &searched[0].1,
        recovery_key.fingerprint().as_bytes()
    ));
    let name = Path::new("first.backup");
    assert!(
        searched
            .iter()
            .any(|(searched, _)| Path::new(searched).ends_with(name))
    );
}

/// The bytes, and as hexadecimal and Base64 text wherever they stand in a longer one.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let script = "import sys, base64
for skip in range(3):
    print(base64.b64encode(bytes.fromhex(sys.argv[1])[skip:][:27]).decode())";
    let base64 = run("python3", &["-c", script, &hex]).succeeded().stdout;
    let mut forms = vec![secret.to_vec(), hex.to_uppercase().into(), hex.into()];
    forms.extend(base64.lines().map(|line| line.as_bytes().to_vec()));
    forms
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}
