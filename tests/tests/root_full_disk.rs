//! A full disk: the write that meets it gets ENOSPC, nothing acknowledged is lost, and the volume goes on once there is space.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::check;

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_recovers() {
    let place = Place::with_small_state("32M");
    let record = place.file("record");
    let record = record.to_str().expect("a UTF-8 path");
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("thin", "256M");

    check("fill.py", &["until-full", &uri, record]);
    check("fill.py", &["verify", &uri, record]);
    place.resize_state("128M");
    check("fill.py", &["more", &uri, record]);
    check("fill.py", &["verify", &uri, record]);

    // What a restart finds is what was acknowledged.
    daemon.stop();
    let daemon = Daemon::start(&place);
    check("fill.py", &["verify", &uri, record]);
    daemon.stop();
}

#[test]
fn a_daemon_killed_on_a_full_disk_keeps_what_it_acknowledged() {
    let place = Place::with_small_state("32M");
    let record = place.file("record");
    let record = record.to_str().expect("a UTF-8 path");
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("thin", "256M");
    check("fill.py", &["until-full", &uri, record]);
    daemon.kill();

    place.resize_state("128M");
    let daemon = Daemon::start(&place);
    check("fill.py", &["verify", &uri, record]);
    check("fill.py", &["more", &uri, record]);
    check("fill.py", &["verify", &uri, record]);
    daemon.stop();
}
