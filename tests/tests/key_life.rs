//! The life of a key-encryption key, as an operator leads it: rotation and rewrap, states, deletion, a key database that was
//! restored from a backup; each with its records.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::peer::Peer;
use sealvol_tests::place::Place;
use serde_json::{Value, json};

const REFUSED: i32 = 3;
const CONFLICT: i32 = 5;

const KEY: &str = "local:default";

/// Asserts that a command did what it was to do, and told so.
trait Prints {
    fn prints(self, words: &[&str]);
}

impl Prints for Outcome {
    #[track_caller]
    fn prints(self, words: &[&str]) {
        let said = self.succeeded();
        for word in words {
            assert!(said.stdout.contains(word), "{word}: {said}");
        }
    }
}

fn show(daemon: &Daemon<'_>) -> Value {
    daemon.sealvol_json(&["key", "show", KEY])
}

fn key_version(daemon: &Daemon<'_>, volume: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", volume])["key_version"].clone()
}

/// Operation and result of each record about a key, without those of its uses.
fn recorded(place: &Place) -> Vec<(String, String)> {
    let text = |record: &Value, field: &str| record[field].as_str().unwrap_or_default().to_owned();
    let uses = ["generate", "unwrap", "rewrap", "create-key"];
    let records = place.audit();
    let of_keys = records.iter().filter(|record| record["key"].is_string());
    of_keys
        .map(|record| (text(record, "operation"), text(record, "result")))
        .filter(|(operation, _)| !uses.contains(&operation.as_str()))
        .collect()
}

#[test]
fn after_a_rotation_a_rewrap_raises_the_version_and_no_block_changes() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon.volume("b", "4M");
    let content = pattern::bytes(1, 1 << 20);
    daemon.write("a", 0, &content);
    let data = place.layer_files("data");
    let before: Vec<_> = data
        .iter()
        .map(|file| std::fs::read(file).expect("there"))
        .collect();

    daemon
        .sealvol(&["key", "rotate", KEY])
        .prints(&["version 2 now"]);
    let key = show(&daemon);
    assert_eq!(
        (&key["version"], &key["state"]),
        (&json!(2), &json!("enabled"))
    );
    assert_eq!(key["versions"].as_array().map(Vec::len), Some(2));
    assert_eq!(key["volumes"], json!(["a", "b"]));
    // Nothing was wrapped anew by that, and the old version opens what it wrapped.
    assert_eq!(key_version(&daemon, "a"), 1);
    daemon.detach("a");
    daemon.attach("a");

    let done = daemon.sealvol_json(&["key", "rewrap", "a"]);
    assert_eq!(done["rewrapped"][0]["key_version"], 2);
    let id = key["key_id"].as_str().expect("an id");
    assert_eq!(
        done["rewrapped"][0]["before"],
        json!([format!("local:{id} version 1")])
    );
    assert_eq!(
        (key_version(&daemon, "a"), key_version(&daemon, "b")),
        (json!(2), json!(1))
    );
    daemon.detach("a");
    daemon.attach("a");
    let mut peer = Peer::open(&daemon.address(), "a").expect("attached");
    assert_eq!(peer.read(0, 1 << 20).expect("read"), content);
    drop(peer);

    daemon.sealvol(&["key", "rotate", KEY]).succeeded();
    let done = daemon.sealvol_json(&["key", "rewrap", "--all"]);
    assert_eq!(done["rewrapped"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (key_version(&daemon, "a"), key_version(&daemon, "b")),
        (json!(3), json!(3))
    );
    for volume in ["a", "b"] {
        daemon.detach(volume);
        daemon.attach(volume);
    }
    let after: Vec<_> = data
        .iter()
        .map(|file| std::fs::read(file).expect("there"))
        .collect();
    assert!(before == after, "no block changed");
    let ok = |operation: &str| (operation.to_owned(), "ok".to_owned());
    assert_eq!(recorded(&place), [ok("rotate-key"), ok("rotate-key")]);
}

#[test]
fn a_disabled_key_keeps_volumes_from_being_attached_and_made_until_it_is_enabled() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon
        .sealvol(&["key", "disable", KEY])
        .prints(&["disabled", "a"]);
    // What is attached stays so, over the daemon's restarts it does not.
    daemon.write("a", 0, &[7; 4096]);
    daemon.detach("a");
    let words = &["is disabled", "DisabledException", "sealvol key enable"];
    daemon
        .sealvol(&["volume", "attach", "a"])
        .failed_with(REFUSED, words);
    let create = ["volume", "create", "b", "--size", "4M"];
    daemon.sealvol(&create).failed_with(REFUSED, words);
    daemon
        .sealvol(&["key", "rewrap", "a"])
        .failed_with(REFUSED, words);
    daemon
        .sealvol(&["key", "rotate", KEY])
        .failed_with(REFUSED, words);
    daemon.sealvol(&["key", "enable", KEY]).prints(&["enabled"]);
    daemon.attach("a");
    assert_eq!(daemon.content("a")[..4096], [7; 4096]);
    let operations: Vec<_> = recorded(&place)
        .into_iter()
        .map(|record| record.0)
        .collect();
    assert_eq!(operations, ["disable-key", "rotate-key", "enable-key"]);
}

#[test]
fn a_key_that_volumes_need_is_given_up_only_by_name_and_comes_back_disabled() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon.detach("a");
    let schedule = ["key", "schedule-deletion", KEY];
    let words = &["volumes need it: a", "--even-if-used"];
    daemon.sealvol(&schedule).failed_with(CONFLICT, words);
    assert_eq!(show(&daemon)["state"], "enabled");
    let given_up = daemon.sealvol(&[&schedule[..], &["--window", "7", "--even-if-used"]].concat());
    given_up.prints(&["pending-deletion", "can't be attached then: a"]);
    assert!(show(&daemon)["deletion"].is_string());
    let words = &[
        "is pending deletion",
        "KMSInvalidStateException",
        "cancel-deletion",
    ];
    daemon
        .sealvol(&["volume", "attach", "a"])
        .failed_with(REFUSED, words);
    // Nobody can ask for the destruction itself.
    let request = r#"{"change":"destroy"}"#;
    let socket = place.runtime().join("control.sock");
    let answer = std::process::Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(&socket)
        .args([
            "-X",
            "POST",
            "-d",
            request,
            "http://localhost/v1/keys/local:default/change",
        ])
        .output()
        .expect("curl runs");
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.contains("waiting period"), "{answer}");

    daemon
        .sealvol(&["key", "cancel-deletion", KEY])
        .prints(&["is disabled now"]);
    daemon.sealvol(&["key", "enable", KEY]).succeeded();
    daemon.attach("a");
    let records = place.audit();
    let scheduled = records
        .iter()
        .find(|record| record["operation"] == "schedule-key-deletion");
    assert_eq!(scheduled.expect("a record")["days"], 7);

    // A key that nobody needs is not asked about.
    daemon.sealvol(&["key", "create", "local:idle"]).succeeded();
    daemon
        .sealvol(&["key", "schedule-deletion", "local:idle"])
        .succeeded();
    daemon
        .sealvol(&["key", "rotation", KEY, "--every", "90"])
        .prints(&["every 90 days"]);
    assert_eq!(show(&daemon)["rotation_days"], 90);
    daemon
        .sealvol(&["key", "rotation", KEY, "--off"])
        .succeeded();
    assert_eq!(show(&daemon)["rotation_days"], Value::Null);
}

#[test]
fn a_key_database_from_a_backup_is_refused_until_it_is_accepted_on_record() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("a", "4M");
    daemon.detach("a");
    let database = place.state().join("keys/local.db");
    let backup = std::fs::read(&database).expect("there");
    daemon.sealvol(&["key", "disable", KEY]).succeeded();
    daemon.stop();
    std::fs::write(&database, &backup).expect("restored");

    // The backup would enable what was disabled since, also for a daemon that starts anew.
    let daemon = Daemon::start(&place);
    let words = &[
        "was relied on",
        "TableRolledBack",
        "sealvol key accept-table",
    ];
    daemon
        .sealvol(&["volume", "attach", "a"])
        .failed_with(REFUSED, words);
    daemon.sealvol(&["key", "list"]).failed_with(REFUSED, words);
    assert_eq!(std::fs::read(&database).expect("there"), backup);
    daemon
        .sealvol(&["key", "accept-table", "local"])
        .succeeded();
    daemon.attach("a");
    daemon.stop();
    let daemon = Daemon::start(&place);
    assert_eq!(show(&daemon)["state"], "enabled");
    let accepted = ("accept-key-table".to_owned(), "ok".to_owned());
    assert!(recorded(&place).contains(&accepted));
}
