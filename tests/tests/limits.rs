//! `sealvol volume limit`, as clients of the volume see it.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{ChildStdout, Stdio};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{Running, check, script};

/// So many reads, at one a second: a test that waited for them would never end.
const READS: u64 = 500;

fn limit(daemon: &Daemon<'_>, options: &[&str]) {
    let mut arguments = vec!["volume", "limit", "v"];
    arguments.extend(options);
    daemon.sealvol(&arguments).succeeded();
}

/// A client with [`READS`] reads in flight, of which one was answered, and its lines.
fn held(uri: &str) -> (Running, Lines<BufReader<ChildStdout>>) {
    let mut client = Running::start(
        script("limited.py")
            .args(["hold", uri, &READS.to_string()])
            .stdout(Stdio::piped()),
    );
    let output = client.child().stdout.take().expect("its output");
    let mut lines = BufReader::new(output).lines();
    assert_eq!(next(&mut lines), ["waiting"]);
    (client, lines)
}

/// The words of the next line.
fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Vec<String> {
    let line = lines.next().expect("a line").expect("text");
    line.split(' ').map(str::to_owned).collect()
}

fn count(words: &[String]) -> u64 {
    words[1].parse().expect("a number")
}

#[test]
fn limits_are_shown_kept_and_changed_one_by_one() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "16M");
    let limits =
        |daemon: &Daemon<'_>| daemon.sealvol_json(&["volume", "show", "v"])["limits"].clone();
    assert_eq!(limits(&daemon), serde_json::Value::Null);
    limit(&daemon, &["--iops", "3000", "--bandwidth", "125M"]);
    limit(&daemon, &["--burst", "60"]);
    let all = serde_json::json!({"iops": 3000, "bandwidth": 125 << 20, "burst_seconds": 60});
    assert_eq!(limits(&daemon), all);
    let text = daemon.sealvol(&["volume", "show", "v"]).succeeded().stdout;
    assert!(text.contains("3000 IOPS, 125M/s, burst 60 s"), "{text}");

    daemon.stop();
    let daemon = Daemon::start(&place);
    assert_eq!(limits(&daemon), all);
    limit(&daemon, &["--iops", "none", "--bandwidth", "none"]);
    assert_eq!(limits(&daemon), serde_json::Value::Null);
    daemon
        .sealvol(&["volume", "limit", "v", "--bandwidth", "1K"])
        .failed_with(2, &["4096"]);
    daemon
        .sealvol(&["volume", "limit", "w", "--iops", "1"])
        .failed_with(4, &["volume w"]);
    daemon.stop();
}

#[test]
fn no_client_gets_more_than_the_limit_and_what_was_saved_up() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "16M");
    let milliseconds = |reads: &str| {
        let outcome = check("limited.py", &["pace", &uri, reads]);
        let time: u64 = outcome.stdout.trim().parse().expect("a number");
        time
    };
    // The least that the promise allows, however fast the machine is: no slow one can fail this.
    limit(&daemon, &["--iops", "100", "--burst", "0"]);
    assert!(milliseconds("60") >= 590, "one at once, 59 at 100 a second");
    limit(&daemon, &["--iops", "none", "--bandwidth", "1M"]);
    // 100 blocks of 4 KiB; the bucket holds 10 ms, of 10485 bytes.
    assert!(milliseconds("100") >= 370, "380 KiB at 1 MiB a second");
    daemon.stop();
}

#[test]
fn connections_take_turns_however_deep_their_queues_are() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "16M");
    limit(&daemon, &["--iops", "100", "--burst", "0"]);
    let outcome = check("limited.py", &["turns", &uri]);
    let done: Vec<u64> = outcome
        .stdout
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    assert!(done.iter().all(|&done| done >= 40), "{outcome}");
    daemon.stop();
}

#[test]
fn a_flush_of_another_client_and_a_detach_wait_for_no_limit() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "16M");
    limit(&daemon, &["--iops", "1", "--burst", "0"]);
    let (mut client, mut lines) = held(&uri);
    let flushed = next(&mut lines);
    assert!(count(&flushed) < READS, "{flushed:?}");
    daemon
        .sealvol(&["volume", "detach", "v", "--force"])
        .succeeded();
    let replies = next(&mut lines);
    assert!(count(&replies) < READS, "{replies:?}");
    client.child().wait().expect("its end");
    daemon.stop();
}

#[test]
fn a_stop_of_the_daemon_waits_for_no_limit() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "16M");
    limit(&daemon, &["--iops", "1", "--burst", "0"]);
    let (mut client, mut lines) = held(&uri);
    next(&mut lines);
    daemon.stop();
    let replies = next(&mut lines);
    assert!(count(&replies) < READS, "{replies:?}");
    client.child().wait().expect("its end");
}

#[test]
fn a_limit_that_is_taken_away_lets_go_who_waits() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "16M");
    limit(&daemon, &["--iops", "1", "--burst", "0"]);
    let (mut client, mut lines) = held(&uri);
    next(&mut lines);
    limit(&daemon, &["--iops", "none"]);
    let replies = next(&mut lines);
    assert_eq!(count(&replies), READS, "{replies:?}");
    assert!(client.child().wait().expect("its end").success());
    daemon.stop();
}
