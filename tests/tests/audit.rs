//! The audit log as a whole: its lines are a chain, which whoever has the verification key can check; what is done to it afterwards
//! shows; and a daemon that is killed goes on with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{ours, script};

/// What a daemon that made, attached and detached a volume left.
fn logged(place: &Place) -> Vec<String> {
    let daemon = Daemon::start(place);
    daemon.volume("v", "1M");
    daemon.detach("v");
    let status = daemon.sealvol(&["status"]).succeeded();
    prints(&status, "; move ");
    daemon.stop();
    lines(&log(place))
}

#[track_caller]
fn prints(outcome: &Outcome, words: &str) {
    assert!(outcome.stdout.contains(words), "no '{words}': {outcome}");
}

fn log(place: &Place) -> PathBuf {
    place.state().join("audit.log")
}

fn key(place: &Place) -> PathBuf {
    place.state().join("audit.verification-key")
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("a log");
    text.split_inclusive('\n').map(str::to_owned).collect()
}

/// `sealvol audit verify` without a daemon.
fn verify(place: &Place, content: &[String], more: &[&str]) -> Outcome {
    let copy = place.file("copy.log");
    std::fs::write(&copy, content.concat()).expect("written");
    let mut command = Command::new(ours("sealvol"));
    command
        .args(["audit", "verify", "--key"])
        .arg(key(place))
        .args(more)
        .arg(copy);
    Outcome::of(&mut command)
}

#[test]
fn an_independent_reading_of_the_description_agrees_with_the_log() {
    let place = Place::new();
    let lines = logged(&place);
    assert!(lines.len() >= 3, "{lines:?}");
    let mut command = script("audit_chain.py");
    command.arg(log(&place)).arg(key(&place));
    let told = Outcome::of(&mut command).succeeded();
    prints(&told, &lines.len().to_string());
    let records = format!(
        "{} records checked, each by a verification key",
        lines.len()
    );
    prints(&verify(&place, &lines, &[]).succeeded(), &records);
}

#[test]
fn what_is_done_to_a_log_afterwards_shows() {
    let place = Place::new();
    let lines = logged(&place);
    let last: serde_json::Value =
        serde_json::from_str(lines.last().expect("a line")).expect("JSON");
    let anchor = format!("{}:{}", last["seq"], last["mac"].as_str().expect("a MAC"));

    let mut edited = lines.clone();
    edited[1] = edited[1].replacen("\"result\":\"ok\"", "\"result\":\"no\"", 1);
    assert_ne!(edited[1], lines[1]);
    verify(&place, &edited, &[]).failed_with(3, &["not as the daemon wrote it"]);

    let mut dropped = lines.clone();
    dropped.remove(1);
    verify(&place, &dropped, &[]).failed_with(3, &["1 findings"]);

    let mut swapped = lines.clone();
    swapped.swap(0, 1);
    verify(&place, &swapped, &[]).failed_with(3, &["findings"]);

    let cut = &lines[..lines.len() - 1];
    verify(&place, cut, &[]).succeeded();
    verify(&place, cut, &["--anchor", &anchor]).failed_with(3, &["1 findings"]);
    verify(&place, &lines, &["--anchor", &anchor]).succeeded();
    verify(&place, &lines, &["--anchor", "1"]).failed_with(2, &["NUMBER:MAC"]);
}

/// Says "no" in each line where "ok" was, and links and seals all of them by the key that it is given.
const FORGE: &str = r#"
import hashlib, hmac, re, sys
key, before = bytes.fromhex(sys.argv[1]), "0" * 64
for line in open(sys.argv[2]).read().splitlines():
    body = re.sub(r',"mac":"[0-9a-f]+"}$', "", line).replace('"ok"', '"no"')
    body = re.sub(r'"prev":"[0-9a-f]+"', '"prev":"' + before + '"', body)
    line = body + ',"mac":"' + hmac.new(key, body.encode(), "sha256").hexdigest() + '"}'
    before = hashlib.sha256(line.encode()).hexdigest()
    print(line)
"#;

#[test]
fn a_log_made_anew_with_the_key_that_was_left_shows() {
    let place = Place::new();
    let lines = logged(&place);
    // Whoever takes the machine over has the next key and all that is public: with it lines can be added, none made again.
    let next = std::fs::read_to_string(place.state().join("audit.next-key")).expect("there");
    let digits = next.split_whitespace().nth(2).expect("a key");
    let mut command = Command::new("python3");
    command.args(["-c", FORGE, digits]).arg(log(&place));
    let made = command.output().expect("python3");
    assert!(made.status.success(), "{made:?}");
    let text = String::from_utf8(made.stdout).expect("text");
    let made: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    assert_eq!(made.len(), lines.len());
    verify(&place, &made, &[]).failed_with(3, &["findings"]);
}

#[test]
fn a_killed_daemon_goes_on_with_the_chain() {
    let place = Place::new();
    drop(logged(&place));
    let daemon = Daemon::start(&place);
    daemon.attach("v");
    daemon.kill();
    // Each attaches it again, under a record of its own.
    for _ in 0..3 {
        Daemon::start(&place).kill();
    }
    let daemon = Daemon::start(&place);
    let key = key(&place);
    let key = key.to_str().expect("a path");
    let told = daemon.sealvol(&["audit", "verify", "--key", key]);
    prints(&told.succeeded(), "each by a verification key");
    let head = daemon.sealvol_json(&["status"])["audit"]["head"].clone();
    let head = head.as_str().expect("a head").to_owned();
    daemon
        .sealvol(&["audit", "verify", "--anchor", &head])
        .succeeded();
}
