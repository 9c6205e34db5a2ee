//! `sealvol bench`: what it says, and that nothing of it stays, however it ends.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{self, Running, wait_for};
use serde_json::Value;

/// What is in the directories that a temporary volume has files in.
fn left_in(place: &Place) -> Vec<PathBuf> {
    let directories = [
        place.state().join("layers"),
        place.runtime().join("volumes"),
    ];
    let entries = directories.iter().flat_map(|directory| {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path())
    });
    entries.collect()
}

#[track_caller]
fn nothing_is_left(place: &Place) {
    let left = left_in(place);
    assert!(left.is_empty(), "{left:?}");
}

/// A benchmark whose temporary volume is in use.
fn running(place: &Place) -> Running {
    let mut command = Command::new(programs::ours("sealvol"));
    command
        .arg("--control")
        .arg(place.runtime().join("control.sock"))
        .args(["bench", "--seconds", "0.4"])
        .stdout(std::process::Stdio::null());
    let running = Running::start(&mut command);
    wait_for("the temporary volume", || {
        (!left_in(place).is_empty()).then_some(())
    });
    running
}

#[track_caller]
fn positive(value: &Value, field: &str) {
    let number = value[field].as_u64();
    assert!(number.is_some_and(|number| number > 0), "{field}: {value}");
}

#[test]
fn every_row_is_measured_and_the_temporary_volume_is_gone() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let report = daemon.sealvol_json(&["bench", "--seconds", "0.05"]);

    let cipher = &report["cipher"];
    positive(cipher, "copy_bytes_per_second");
    let ciphers = cipher["ciphers"].as_array().expect("rows");
    let units: Vec<_> = ciphers.iter().map(|row| row["unit"].as_u64()).collect();
    assert_eq!(units, [Some(512), Some(4096)]);
    for row in ciphers {
        positive(row, "encrypt_bytes_per_second");
        positive(row, "decrypt_bytes_per_second");
    }

    let volume = &report["volume"];
    positive(volume, "size");
    let loads = volume["loads"].as_array().expect("rows");
    let shapes: Vec<_> = loads
        .iter()
        .map(|row| {
            (
                row["operation"].as_str(),
                row["block"].as_u64(),
                row["depth"].as_u64(),
            )
        })
        .collect();
    let shape = |operation, block, depth| (Some(operation), Some(block), Some(depth));
    assert_eq!(
        shapes,
        [
            shape("read", 4096, 32),
            shape("write", 4096, 32),
            shape("read", 1 << 20, 8),
            shape("write", 1 << 20, 8),
        ]
    );
    for row in loads {
        positive(row, "iops");
        positive(row, "bytes_per_second");
        let limits = [
            "client",
            "server",
            "processors",
            "turns",
            "store",
            "unknown",
        ];
        let limit = row["limit"].as_str();
        assert!(limit.is_some_and(|limit| limits.contains(&limit)), "{row}");
    }

    nothing_is_left(&place);
    let status = daemon.sealvol_json(&["status"]);
    assert_eq!(status["key_memory"]["keys"], 0, "{status}");
    assert_eq!(status["volumes"], serde_json::json!({}));
    assert_eq!(status["failures"], serde_json::json!([]));
    daemon.stop();
}

#[test]
fn ctrl_c_ends_it_and_nothing_of_it_stays() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let mut bench = running(&place);
    let list = daemon.sealvol_json(&["volume", "list"]);
    assert_eq!(list["volumes"], serde_json::json!([]), "it is nobody's");
    daemon
        .sealvol(&["bench", "--seconds", "0.05"])
        .failed_with(5, &["another measurement"]);
    rustix::process::kill_process(bench.pid(), Signal::INT).expect("Ctrl-C");
    assert!(!bench.child().wait().expect("its end").success());
    wait_for("the temporary volume to go", || {
        left_in(&place).is_empty().then_some(())
    });
    let text = daemon.sealvol(&["bench", "--seconds", "0.05"]).succeeded();
    for word in ["memory copy", "aes-256-xts", "read 4K random", "LIMIT"] {
        assert!(text.stdout.contains(word), "{word}: {text}");
    }
    daemon.stop();
}

#[test]
fn a_daemon_that_is_told_to_stop_ends_it_first() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let mut bench = running(&place);
    daemon.stop();
    assert!(!bench.child().wait().expect("its end").success());
    nothing_is_left(&place);
}

#[test]
fn a_daemon_that_was_killed_meanwhile_removes_it_when_it_starts() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let mut bench = running(&place);
    wait_for("the temporary volume to be in use", || {
        (left_in(&place).len() > 1).then_some(())
    });
    daemon.kill();
    assert!(!bench.child().wait().expect("its end").success());
    assert!(!left_in(&place).is_empty(), "nobody was there to remove it");
    let daemon = Daemon::start(&place);
    // Answered when what was left is cleaned up.
    let list = daemon.sealvol_json(&["volume", "list"]);
    assert_eq!(list["volumes"], serde_json::json!([]));
    nothing_is_left(&place);
    daemon.stop();
}

#[test]
fn a_time_out_of_bounds_is_a_usage_error() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["bench", "--seconds", "0"])
        .failed_with(2, &["0.05 to 30"]);
    daemon.stop();
}
