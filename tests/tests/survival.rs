//! What is left after the daemon dies, stops or starts again.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{self, Running, check, run};

/// Kills the daemon after so many FLUSHes under load, starts it again and judges what it kept.
fn kill_under_load(flushes: &str, sector: &str) {
    let place = Place::new();
    let record = place.file("record");
    let record = record.to_str().expect("a UTF-8 path");
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&[
            "volume",
            "create",
            "loaded",
            "--size",
            "64M",
            "--sector-size",
            sector,
        ])
        .succeeded();
    let uri = daemon.attach("loaded");

    let mut load = Running::start(
        programs::script("versions.py")
            .args(["write", &uri, record, flushes])
            .stdout(Stdio::piped()),
    );
    let output = load.child().stdout.take().expect("its output");
    let reached = format!("flushed {flushes}");
    let mut lines = BufReader::new(output)
        .lines()
        .map(|line| line.expect("a line"));
    assert!(
        lines.any(|line| line == reached),
        "the load ended by itself"
    );
    daemon.kill();
    let summary = lines.last();
    assert!(
        load.child().wait().expect("its end").success(),
        "{summary:?}"
    );

    let daemon = Daemon::start(&place);
    check("versions.py", &["check", &uri, record]);
    daemon.stop();
}

#[test]
fn a_daemon_killed_early_under_load_keeps_what_it_acknowledged() {
    kill_under_load("2", "4096");
}

#[test]
fn a_daemon_killed_under_load_keeps_what_it_acknowledged() {
    kill_under_load("60", "4096");
}

#[test]
fn a_daemon_killed_under_load_keeps_small_sectors_too() {
    kill_under_load("30", "512");
}

#[test]
fn what_was_attached_is_attached_again_after_a_restart() {
    let place = Place::new();
    let content = place.file("content");
    let content = content.to_str().expect("a UTF-8 path");
    std::fs::write(content, pattern::bytes(1, 4 << 20)).expect("a file");
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("kept", "64M");
    daemon.volume("released", "64M");
    daemon.detach("released");
    run("nbdcopy", &["--flush", content, &uri]).succeeded();
    daemon.stop();

    let compare = "import sys, check; check.same(check.connect(sys.argv[1]).pread(4 << 20, 0), open(sys.argv[2], 'rb').read(), 'the content')";
    let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
    for turn in 0..2 {
        let daemon = Daemon::start(&place);
        sealvol_tests::outcome::Outcome::of(
            programs::client("/usr/bin/python3")
                .env("PYTHONPATH", clients)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .args(["-c", compare, &uri, content]),
        )
        .succeeded();
        let released = run("nbdinfo", &["--size", &daemon.uri("released")]);
        assert_ne!(
            released.code,
            Some(0),
            "a detached volume is served: {released}"
        );
        // Once in good order, once not.
        if turn == 0 {
            daemon.stop();
        } else {
            daemon.kill();
        }
    }
    Daemon::start(&place).stop();
}

#[test]
fn sigterm_answers_what_is_in_flight_and_keeps_it() {
    let place = Place::new();
    let record = place.file("record");
    let record = record.to_str().expect("a UTF-8 path");
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("stopped", "64M");
    let mut load = Running::start(
        programs::script("versions.py")
            .args(["write", &uri, record, "1"])
            .stdout(Stdio::piped()),
    );
    let output = load.child().stdout.take().expect("its output");
    let mut lines = BufReader::new(output)
        .lines()
        .map(|line| line.expect("a line"));
    assert!(
        lines.any(|line| line == "flushed 20"),
        "the load ended by itself"
    );
    daemon.stop();
    let summary = lines.last();
    assert!(
        load.child().wait().expect("its end").success(),
        "{summary:?}"
    );

    let daemon = Daemon::start(&place);
    check("versions.py", &["check", &uri, record]);
    daemon.stop();
}
