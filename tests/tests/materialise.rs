//! `volume flatten`: encrypted zeros in every block without data, so that `data` alone is the volume.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{Running, check, ours, run, wait_for};

const FAILED: i32 = 1;
const CONFLICT: i32 = 5;

/// Fills a part of a volume, trims some of it and zeroes some.
fn fill(uri: &str) {
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    for command in [
        "write -P 0xa1 0 1M",
        "write -P 0xa2 6M 3M",
        "discard 7M 64k",
        "write -z 8M 64k",
        "write -P 0xa3 8193k 512",
        "flush",
    ] {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    run("qemu-io", &arguments).succeeded();
}

fn copy(place: &Place, uri: &str, name: &str) -> Vec<u8> {
    let file = place.file(name);
    run("nbdcopy", &[uri, file.to_str().expect("a UTF-8 path")]).succeeded();
    std::fs::read(file).expect("the copy")
}

#[test]
fn every_block_holds_data_afterwards_and_reads_as_before() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for sector_size in ["512", "4096"] {
        let name = format!("v{sector_size}");
        daemon
            .sealvol(&[
                "volume",
                "create",
                &name,
                "--size",
                "72M",
                "--sector-size",
                sector_size,
            ])
            .succeeded();
        let uri = daemon.attach(&name);
        fill(&uri);
        let before = copy(&place, &uri, "before");

        let said = daemon
            .sealvol(&["volume", "flatten", &name, "--materialise"])
            .succeeded();
        assert!(
            said.stdout.contains("of encrypted zeros to be written"),
            "{said}"
        );
        assert!(said.stdout.contains("holds data in every block"), "{said}");
        let map = daemon.sealvol_json(&["volume", "map", &name]);
        assert_eq!(map["runs"].as_array().expect("runs").len(), 1, "{map}");
        assert_eq!(map["runs"][0]["state"], "data");
        assert!(
            copy(&place, &uri, "after") == before,
            "{name} reads otherwise"
        );

        let again = daemon.sealvol(&["--json", "volume", "flatten", &name, "--materialise"]);
        let again = again.succeeded();
        let lines: Vec<serde_json::Value> = again
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect();
        assert_eq!(lines[0]["zeros"], 0, "{again}");
        let last = lines.last().expect("a line");
        assert_eq!((&last["done"], &last["written"]), (&true.into(), &0.into()));
        daemon.detach(&name);
    }
    // The bytes on disk, by somebody else's AES.
    let [meta, data] = ["meta", "data"].map(|name| place.layer_files(name));
    for (meta, data) in meta.iter().zip(&data) {
        let allocated = data.metadata().expect("a file").blocks() * 512;
        assert!(allocated >= 72 << 20, "{} has holes", data.display());
        check(
            "recover.py",
            &[&place.state(), meta, data, &place.file("before")]
                .map(|path| path.to_str().expect("a UTF-8 path")),
        );
    }
    daemon.stop();
}

#[test]
fn one_layer_is_flat_already() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["volume", "create", "v", "--size", "8M"])
        .succeeded();
    let said = daemon.sealvol(&["volume", "flatten", "v"]).succeeded();
    assert_eq!(
        said.stdout,
        "Volume v has one layer: there is nothing to flatten\n"
    );
    daemon
        .sealvol(&["volume", "flatten", "v", "--materialise"])
        .failed_with(CONFLICT, &["not attached", "attach it first"]);
    daemon
        .sealvol(&["volume", "flatten", "none"])
        .failed_with(4, &["none of that name"]);
    daemon.stop();
}

#[test]
fn what_there_is_no_room_for_is_refused_before_a_byte_is_written() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("huge", "8T");
    let outcome = daemon.sealvol(&["volume", "flatten", "huge", "--materialise"]);
    assert!(outcome.stdout.contains("8796093022208 bytes"), "{outcome}");
    outcome.failed_with(FAILED, &["bytes are free", "make room"]);
    let data = place.layer_files("data").remove(0);
    assert_eq!(
        data.metadata().expect("a file").blocks(),
        0,
        "something was written"
    );
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 1 0 4k", &daemon.uri("huge")],
    )
    .succeeded();
    daemon.stop();
}

#[test]
fn an_interruption_leaves_a_good_volume_and_the_next_run_goes_on() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "1G");
    fill(&uri);
    let before = daemon.sealvol_json(&["volume", "map", "v"]);
    let log = place.file("progress");
    let mut command = Command::new(ours("sealvol"));
    command
        .args(["--json", "--control"])
        .arg(place.runtime().join("control.sock"))
        .args(["volume", "flatten", "v", "--materialise"])
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log).expect("a file"))
        .stderr(std::fs::File::create(place.file("stopped")).expect("a file"));
    let mut running = Running::start(&mut command);
    wait_for("the first part", || {
        let lines = std::fs::read_to_string(&log).expect("the progress");
        lines.contains("\"written\"").then_some(())
    });
    rustix::process::kill_process(running.pid(), rustix::process::Signal::INT).expect("SIGINT");
    let status = running.child().wait().expect("its end");
    let said = std::fs::read_to_string(place.file("stopped")).expect("its last words");
    assert_eq!(status.code(), Some(FAILED), "{said}");
    assert!(said.contains("stopped with"), "{said}");

    let holes = |map: &serde_json::Value| {
        let runs = map["runs"].as_array().expect("runs");
        let lengths = runs
            .iter()
            .filter(|run| run["state"] != "data")
            .map(|run| run["length"].as_u64().expect("a length"));
        lengths.sum::<u64>()
    };
    // Detached and attached again: what was done is durable.
    daemon.detach("v");
    daemon.attach("v");
    let left = holes(&daemon.sealvol_json(&["volume", "map", "v"]));
    assert!(left > 0 && left < holes(&before), "{left} bytes left");
    let rest = daemon
        .sealvol(&["volume", "flatten", "v", "--materialise"])
        .succeeded();
    assert!(rest.stdout.contains(&format!("({left} bytes)")), "{rest}");
    assert_eq!(holes(&daemon.sealvol_json(&["volume", "map", "v"])), 0);
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "read -P 0xa1 0 1M",
            "-c",
            "read -P 0 1M 5M",
            &uri,
        ],
    )
    .succeeded();
    daemon.stop();
}

#[test]
fn writes_that_come_meanwhile_stay() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "512M");
    let mut fio = Running::start(
        Command::new("fio")
            .args([
                "--name=load",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bs=4k",
                "--size=512M",
                "--number_ios=20000",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--iodepth=16",
                "--verify_state_save=0",
            ])
            .arg(format!("--uri={uri}"))
            .current_dir(place.root())
            .stdout(std::fs::File::create(place.file("fio")).expect("a file")),
    );
    let said = daemon.sealvol(&["volume", "flatten", "v", "--materialise"]);
    let status = fio.child().wait().expect("its end");
    let output = std::fs::read_to_string(place.file("fio")).expect("its words");
    assert!(
        status.success(),
        "fio found other data than it wrote: {output}"
    );
    said.succeeded();
    Outcome::of(
        Command::new("fio")
            .args([
                "--name=load",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bs=4k",
                "--size=512M",
                "--number_ios=20000",
                "--verify=crc32c",
                "--verify_only=1",
                "--verify_fatal=1",
                "--iodepth=16",
                "--verify_state_save=0",
            ])
            .arg(format!("--uri={uri}"))
            .current_dir(place.root()),
    )
    .succeeded();
    daemon.stop();
}
