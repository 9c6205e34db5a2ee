//! Every command on layers, once beside fio that writes and verifies all the while, and once with nobody attached: snapshots, clones, copies,
//! rewraps, re-keys, merges. Each is looked into by itself elsewhere; here they meet each other and a client that nobody here wrote.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{client, wait_for};
use serde_json::Value;

const SIZE: &str = "--size=24M";

/// fio over an export, 4 KiB blocks that carry their own checksums.
fn fio(uri: &str, more: &[&str]) -> Command {
    let mut fio = client("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--bs=4k",
        "--iodepth=16",
        SIZE,
    ])
    .args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ])
    .arg(format!("--uri={uri}"))
    .args(more)
    .stdin(Stdio::null());
    fio
}

/// Every block of an export is one that fio wrote, whole.
#[track_caller]
fn verify(daemon: &Daemon<'_>, name: &str) {
    Outcome::of(&mut fio(&daemon.uri(name), &["--rw=read"])).succeeded();
}

/// The same, of what is attached for it alone.
#[track_caller]
fn attach_and_verify(daemon: &Daemon<'_>, name: &str) {
    daemon.attach(name);
    verify(daemon, name);
    daemon.detach(name);
}

/// Waits for the good end of every job there is.
#[track_caller]
fn jobs_end(daemon: &Daemon<'_>) {
    wait_for("the jobs", || {
        let jobs = daemon.sealvol_json(&["job", "list"]);
        let jobs = jobs["jobs"].as_array().expect("a list");
        let failed = jobs.iter().find(|job| job["state"] == "failed");
        assert_eq!(failed, None);
        let under_way = |job: &&Value| job["state"] != "done" && job["state"] != "cancelled";
        jobs.iter().find(under_way).is_none().then_some(())
    });
}

/// The commands, in an order in which each has something to do.
fn every_command(daemon: &Daemon<'_>) {
    let done = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        daemon.sealvol(&words).succeeded()
    };
    done("snapshot create v@a");
    done("snapshot create v@b w@b");
    done("snapshot list v");
    done("snapshot show v@b");
    daemon.attach("v@b");
    done("snapshot show v@b --extents");
    verify(daemon, "v@b");
    daemon.detach("v@b");

    done("volume create clone --from-snapshot v@a --key local:other");
    attach_and_verify(daemon, "clone");
    done("volume create fresh --from-snapshot v@b --fresh-key");
    done("snapshot copy v@a same@a");
    done("snapshot copy v@b other@b --key local:other --wait");
    jobs_end(daemon);
    for name in ["fresh", "same@a", "other@b"] {
        attach_and_verify(daemon, name);
    }

    done("key rotate local:default");
    done("key rewrap v");
    done("key rewrap --all");
    done("volume rekey v --key local:other --wait");
    attach_and_verify(daemon, "v@a");
    let job = daemon.sealvol_json(&["volume", "rekey", "v", "--rate", "1M"]);
    done(&format!("job cancel {}", job["id"]));
    done("volume rekey v --with-snapshots --wait");
    attach_and_verify(daemon, "v@b");
    // What is deleted is merged with what stands on it.
    done("snapshot delete v@a");
    done("snapshot create v@c");
    done("snapshot delete v@b");
    attach_and_verify(daemon, "v@c");
    attach_and_verify(daemon, "clone");
    done("volume delete clone --shred");
    done("volume delete fresh --shred");
}

fn family(daemon: &Daemon<'_>) {
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();
    daemon.volume("v", "24M");
    daemon.volume("w", "24M");
    Outcome::of(&mut fio(&daemon.uri("v"), &["--rw=write"])).succeeded();
}

#[test]
fn every_command_on_layers_leaves_what_fio_writes_beside_it_whole() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    family(&daemon);
    let (uri, enough) = (daemon.uri("v"), AtomicBool::new(false));
    let rounds = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            // Each round verifies what it wrote, while it goes on writing and at its end.
            let load = [
                "--rw=randwrite",
                "--fsync=64",
                "--verify_backlog=256",
                "--io_size=8M",
            ];
            let mut rounds = 0;
            while !enough.load(Ordering::SeqCst) {
                Outcome::of(&mut fio(&uri, &load)).succeeded();
                rounds += 1;
            }
            rounds
        });
        // Whatever becomes of them, the load is to end.
        let ended =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| every_command(&daemon)));
        enough.store(true, Ordering::SeqCst);
        let rounds = load.join().expect("fio is content");
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        rounds
    });
    println!("{rounds} rounds of fio beside them");
    assert_ne!(rounds, 0);
    verify(&daemon, "v");
    daemon.detach("v");
    daemon.detach("w");
    daemon.stop();

    // And what is on disk says the same to another daemon.
    let daemon = Daemon::start(&place);
    for name in ["v", "v@c", "same", "other"] {
        attach_and_verify(&daemon, name);
    }
    daemon.stop();
}

#[test]
fn every_command_on_layers_works_while_nobody_has_them_attached() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    family(&daemon);
    daemon.detach("v");
    daemon.detach("w");
    every_command(&daemon);
    for name in ["v", "v@c", "same", "other"] {
        attach_and_verify(&daemon, name);
    }
    daemon.stop();
}
