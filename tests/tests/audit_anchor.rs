//! Heads of the audit log in a TPM: an older log that is put back, with the key that it had then, shows to the next daemon and to
//! whoever verifies.

use std::path::Path;
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{ours, wait_for};
use sealvol_tests::swtpm::Swtpm;
use serde_json::Value;

const INDEX: &str = "0x01500010";

/// The files that make the log go on.
const FILES: [&str; 2] = ["audit.log", "audit.next-key"];

fn machine() -> (Place, Swtpm) {
    let (place, tpm) = (Place::new(), Swtpm::start());
    define(&tpm, "nt=extend");
    let quoted = |path: &Path| format!("{:?}", path.to_str().expect("UTF-8"));
    let text = format!(
        "key-deadline-s = 2\n[providers.tpm]\ntype = \"tpm2\"\ndevice = {}\ndirectory = {}\npcrs = [7]\naudit = {INDEX}\n\
         single-credential = true\n",
        quoted(&tpm.socket()),
        quoted(&place.state().join("tpm"))
    );
    std::fs::write(place.file("sealvold.toml"), text).expect("a configuration");
    (place, tpm)
}

fn define(tpm: &Swtpm, kind: &str) {
    let attributes = format!("authread|authwrite|no_da|{kind}");
    let what = ["-C", "o", "-g", "sha256", "-a", &attributes, INDEX];
    tpm.tool("tpm2_nvdefine", &what);
}

fn start(place: &Place) -> Daemon<'_> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
}

/// Where the index stands, as tpm2-tools read it.
fn value(tpm: &Swtpm) -> String {
    tpm.tool("tpm2_nvread", &["-o", "value", INDEX]);
    let bytes = std::fs::read(tpm.place("value")).expect("a value");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn verify(place: &Place, value: &str) -> Outcome {
    let state = place.state();
    let mut command = Command::new(ours("sealvol"));
    command
        .args(["audit", "verify", "--tpm-value", value, "--key"])
        .arg(state.join("audit.verification-key"))
        .arg(state.join("audit.log"));
    Outcome::of(&mut command)
}

#[track_caller]
fn finds(place: &Place, tpm: &Swtpm, words: &str) {
    let found = verify(place, &value(tpm));
    assert!(found.stdout.contains(words), "no '{words}': {found}");
    found.failed_with(3, &["1 findings"]);
}

/// The lines about the index: their results, and where it stood.
fn told(place: &Place) -> Vec<(String, String)> {
    let lines = place.audit().into_iter();
    let text = |line: &Value, name: &str| line[name].as_str().expect("a text").to_owned();
    let about = lines.filter(|line| line["operation"] == "anchor");
    about
        .map(|line| (text(&line, "result"), text(&line, "tpm-value")))
        .collect()
}

/// A daemon runs, and does something that is recorded.
fn session(place: &Place, volume: &str) {
    let daemon = start(place);
    daemon.volume(volume, "1M");
    daemon.stop();
}

fn failure(daemon: &Daemon<'_>, words: &str) {
    wait_for("it to be told", || {
        let failures = daemon.sealvol_json(&["status"])["failures"].to_string();
        failures.contains(words).then_some(())
    });
}

#[test]
fn an_older_log_that_is_put_back_with_its_key_shows() {
    let (place, tpm) = machine();
    session(&place, "a");
    let lines = told(&place);
    assert_eq!(lines.last().expect("a line").1, value(&tpm));
    assert!(lines.iter().all(|(result, _)| result == "ok"), "{lines:?}");
    verify(&place, &value(&tpm)).succeeded();
    let older = FILES.map(|name| std::fs::read(place.state().join(name)).expect("there"));

    session(&place, "b");
    verify(&place, &value(&tpm)).succeeded();
    let put_back = || {
        for (name, content) in FILES.iter().zip(&older) {
            std::fs::write(place.state().join(name), content).expect("written");
        }
    };
    put_back();
    finds(&place, &tpm, "does not stand where this log");
    // The next daemon goes on from there, which makes no difference to who verifies.
    let daemon = start(&place);
    failure(&daemon, "it does not stand where the log says");
    daemon.volume("c", "1M");
    daemon.stop();
    finds(&place, &tpm, "did not come there by this line");
    assert!(
        told(&place)
            .iter()
            .any(|(result, _)| result.contains("does not stand"))
    );
}

#[test]
fn a_head_that_went_in_and_was_not_told_is_told_by_the_next_daemon() {
    let (place, tpm) = machine();
    session(&place, "a");
    // As a daemon does that dies between the two: the last line's number and MAC go in.
    let last = place.audit().pop().expect("a line");
    let seq = last["seq"].as_u64().expect("a number").to_be_bytes();
    let mac = last["mac"].as_str().expect("a MAC");
    let digits = (0..mac.len()).step_by(2);
    let mac = digits.map(|at| u8::from_str_radix(&mac[at..at + 2], 16).expect("digits"));
    let extension: Vec<u8> = seq.into_iter().chain(mac).collect();
    std::fs::write(tpm.place("extension"), extension).expect("written");
    tpm.tool("tpm2_nvextend", &["-i", "extension", INDEX]);
    let between = value(&tpm);
    verify(&place, &between).succeeded();

    let before = told(&place).len();
    session(&place, "b");
    let lines = told(&place);
    assert_eq!(lines[before], ("ok".to_owned(), between));
    assert!(lines[before..].iter().all(|(result, _)| result == "ok"));
    verify(&place, &value(&tpm)).succeeded();
}

#[test]
fn a_tpm_that_is_away_or_has_another_index_is_told_and_holds_up_nothing() {
    let (place, mut tpm) = machine();
    tpm.switch_off();
    let daemon = start(&place);
    failure(&daemon, "audit log's anchor");
    daemon.volume("a", "1M");
    daemon.stop();
    tpm.switch_on();
    session(&place, "b");
    verify(&place, &value(&tpm)).succeeded();

    tpm.tool("tpm2_nvundefine", &["-C", "o", INDEX]);
    let daemon = start(&place);
    failure(&daemon, "see `parent`, `counter` and `audit`");
    daemon.stop();
    define(&tpm, "nt=counter");
    let daemon = start(&place);
    failure(&daemon, "nt=extend");
    daemon.stop();
    // Made anew it begins with zeros, which no log of before says.
    tpm.tool("tpm2_nvundefine", &["-C", "o", INDEX]);
    define(&tpm, "nt=extend");
    let daemon = start(&place);
    failure(&daemon, "it does not stand where the log says");
    daemon.stop();
}
