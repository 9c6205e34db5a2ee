//! A full disk: the write that meets it gets ENOSPC, nothing acknowledged is lost, and the volume goes on once there is space.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, run, wait_for};

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

#[test]
fn a_disk_that_fills_in_the_middle_of_a_rekey_holds_it_until_there_is_space() {
    let place = Place::with_small_state("128M");
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "64M");
    let content = sealvol_tests::pattern::bytes(3, 32 << 20);
    let (file, copy) = (place.file("content"), place.file("copy"));
    std::fs::write(&file, &content).expect("written");
    let paths = [&file, &copy].map(|path| path.to_str().expect("UTF-8"));
    run("nbdcopy", &["--flush", paths[0], &uri]).succeeded();
    let reads_the_same = || {
        let _ = std::fs::remove_file(&copy);
        run("nbdcopy", &[&uri, paths[1]]).succeeded();
        let read = std::fs::read(&copy).expect("the copy");
        assert!(read[..content.len()] == content, "what it held");
        assert!(read[content.len()..].iter().all(|byte| *byte == 0));
    };
    let waits = |daemon: &Daemon<'_>, job: &str| {
        let waits = wait_for("the job to wait", || {
            let job = daemon.sealvol_json(&["job", "show", job]);
            assert_ne!(job["state"], "done");
            (job["state"] == "waiting").then_some(job)
        });
        let reason = waits["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.contains("bytes are free"), "{reason}");
        waits["bytes_done"].as_u64().expect("a number")
    };
    // Somebody else takes the space, but for a few MiB that clients and the registry need.
    let filler = place.state().join("filler");
    let fill = |bytes: usize| std::fs::write(&filler, vec![1; bytes]).expect("room for it");
    fill(80 << 20);
    let job = daemon.sealvol_json(&["volume", "rekey", "v", "--rate", "4M"])["id"].to_string();
    assert_eq!(waits(&daemon, &job), 0, "there is no room for all of it");
    std::fs::remove_file(&filler).expect("there");
    wait_for("some of the copy", || {
        let job = daemon.sealvol_json(&["job", "show", &job]);
        (job["bytes_done"].as_u64() > Some(4 << 20)).then_some(())
    });
    fill(80 << 20);
    assert!(
        waits(&daemon, &job) < 32 << 20,
        "it was faster than its rate"
    );
    reads_the_same();
    // Not even a daemon that is killed then loses anything.
    daemon.kill();
    let daemon = Daemon::start(&place);
    reads_the_same();
    waits(&daemon, &job);
    std::fs::remove_file(&filler).expect("there");
    daemon.sealvol(&["job", "watch", &job]).succeeded();
    reads_the_same();
    assert_eq!(place.layer_files("data").len(), 1);
    daemon.stop();
}
