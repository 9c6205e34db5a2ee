//! What `sealvol doctor` says of a daemon that is well, and of one that is not.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use serde_json::Value;

/// Subject and health of everything that was looked at.
fn healths(daemon: &Daemon<'_>) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let outcome = daemon.sealvol(&["--json", "doctor"]);
    let checks = outcome.json()["checks"].clone();
    let checks = checks.as_array().expect("checks").iter();
    checks
        .map(|check| (text(&check["subject"]), text(&check["health"])))
        .collect()
}

fn health(daemon: &Daemon<'_>, subject: &str) -> String {
    let found = healths(daemon)
        .into_iter()
        .find(|(name, _)| name == subject);
    found.expect("it was looked at").1
}

#[test]
fn a_daemon_that_is_well_has_no_failures() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "1M");
    daemon.sealvol(&["doctor"]).succeeded();
    for (subject, health) in healths(&daemon) {
        assert_ne!(health, "failure", "{subject}");
    }
    for subject in [
        "core dumps",
        "state directory",
        "clock",
        "key service local",
        "volumes' keys",
    ] {
        assert_eq!(health(&daemon, subject), "ok", "{subject}");
    }
    assert_eq!(health(&daemon, "audit log"), "warning");
    std::fs::rename(
        place.state().join("audit.verification-key"),
        place.file("away"),
    )
    .expect("moved");
    assert_eq!(health(&daemon, "audit log"), "ok");
}

#[test]
fn what_keeps_a_daemon_from_its_work_is_a_failure_with_an_advice() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "1M");
    daemon.detach("v");
    let database = place.state().join("keys/local.db");
    std::fs::set_permissions(&database, Permissions::from_mode(0o644)).expect("set");
    let outcome = daemon.sealvol(&["doctor"]).failed_with(1, &["failures"]);
    assert!(
        outcome.stdout.contains("FAILURE  state directory"),
        "{outcome}"
    );
    assert!(outcome.stdout.contains("chmod"), "{outcome}");
    std::fs::set_permissions(&database, Permissions::from_mode(0o600)).expect("set");
    std::fs::rename(&database, place.file("away")).expect("moved");
    assert_eq!(health(&daemon, "key service local"), "failure");
}
