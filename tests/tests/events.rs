//! What befalls a key leaves a record in the audit log, a line in the daemon's own, and, while somebody has to see to it, a word in
//! `status`: an attach that is refused, a revocation, a rotation, a deletion that is scheduled, and one that is taken back.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::Value;

/// Which records the audit log has since `from`, as operation and whether they say `ok`; those of the questions whether a key may
/// still be used left out.
fn records(place: &Place, from: usize) -> Vec<(String, bool)> {
    let told = |record: &Value| {
        let operation = record["operation"].as_str().expect("an operation");
        (operation.to_owned(), record["result"] == "ok")
    };
    let mut told: Vec<_> = place.audit().iter().skip(from).map(told).collect();
    told.retain(|(operation, _)| operation != "check" && operation != "generate");
    told
}

fn state(daemon: &Daemon<'_>) -> String {
    let shown = daemon.sealvol_json(&["volume", "show", "v"]);
    shown["state"].as_str().expect("a state").to_owned()
}

#[test]
fn what_befalls_a_key_is_recorded_logged_and_told() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "1M");
    daemon
        .sealvol(&[
            "volume",
            "on-revoke",
            "v",
            "enforce",
            "--every",
            "1s",
            "--grace",
            "1h",
        ])
        .succeeded();
    let failures = || daemon.sealvol_json(&["status"])["failures"].to_string();
    let from = place.audit().len();

    // Rotated: on record, in the log.
    daemon
        .sealvol(&["key", "rotate", "local:default"])
        .succeeded();
    // To be deleted, so revoked for what is attached, and refused for what is to be.
    let schedule = [
        "key",
        "schedule-deletion",
        "local:default",
        "--even-if-used",
    ];
    daemon.sealvol(&schedule).succeeded();
    wait_for("the volume to be detached", || {
        (state(&daemon) == "available").then_some(())
    });
    assert!(failures().contains("revoked"), "{}", failures());
    daemon
        .sealvol(&["volume", "attach", "v"])
        .failed_with(3, &["pending deletion"]);
    // Restored: the deletion is taken back, the key enabled, and the volume attached again.
    daemon
        .sealvol(&["key", "cancel-deletion", "local:default"])
        .succeeded();
    daemon
        .sealvol(&["key", "enable", "local:default"])
        .succeeded();
    daemon.attach("v");
    assert!(!failures().contains("revoked"), "{}", failures());

    let expected = [
        ("rotate-key", true),
        ("schedule-key-deletion", true),
        ("revoke", false),
        ("unwrap", false),
        ("cancel-key-deletion", true),
        ("enable-key", true),
        ("unwrap", true),
    ];
    let expected = expected.map(|(operation, is_ok)| (operation.to_owned(), is_ok));
    let mut found = records(&place, from);
    // Whoever watches the key may see that it is to be deleted before whoever had that done is answered.
    if found[1].0 == "revoke" {
        found.swap(1, 2);
    }
    assert_eq!(found, expected);
    let log = daemon.log();
    assert!(log.contains("change=\"ScheduleKeyDeletion\""), "{log}");
    let mut rest = log.as_str();
    for line in [
        "change=\"RotateKeyOnDemand\"",
        "revoked volume=v",
        "/v1/volumes/v/attach",
        "change=\"CancelKeyDeletion\"",
        "change=\"EnableKey\"",
        "attached volume=v",
    ] {
        let at = rest.find(line);
        let at = at.unwrap_or_else(|| panic!("no line, or not in its place: {line} in {log}"));
        rest = &rest[at + line.len()..];
    }
}
