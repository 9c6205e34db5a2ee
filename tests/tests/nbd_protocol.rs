//! What the NBD specification asks of a server, asked by libnbd and by raw sockets. The scripts are in `tests/clients`.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{self, check};

/// Runs a script against a new volume of each sector size: to a client they must look the same.
#[track_caller]
fn for_each_sector_size(script: &str) {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for sector in ["512", "4096"] {
        let name = format!("sectors-of-{sector}");
        daemon
            .sealvol(&[
                "volume",
                "create",
                &name,
                "--size",
                "64M",
                "--sector-size",
                sector,
            ])
            .succeeded();
        check(script, &[&daemon.attach(&name)]);
        daemon.detach(&name);
    }
    daemon.stop();
}

#[test]
fn reads_come_whole_in_structured_and_simple_replies() {
    for_each_sector_size("replies.py");
}

#[test]
fn fua_and_flush_are_honoured_on_every_command_and_connection() {
    for_each_sector_size("durability_flags.py");
}

#[test]
fn ranges_are_kept_to_the_byte_and_refused_past_the_end() {
    for_each_sector_size("ranges.py");
}

#[test]
fn zeroes_and_trims_show_in_block_status() {
    for_each_sector_size("zeroes_and_map.py");
}

#[test]
fn several_exports_share_one_listener_and_keep_apart() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let names = ["alpha", "beta", "gamma"];
    for name in names {
        daemon.volume(name, "64M");
    }
    let socket = daemon.socket();
    let mut arguments = vec![socket.to_str().expect("a UTF-8 path")];
    arguments.extend(names);
    check("options.py", &arguments);
    daemon.detach("beta");
    check("options.py", &[arguments[0], "alpha", "gamma"]);
    daemon.stop();
}

#[test]
fn hostile_bytes_harm_nobody_else() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("target", "64M");
    check(
        "hostile.py",
        &[daemon.socket().to_str().expect("a UTF-8 path"), "target"],
    );
    daemon.stop();
}

#[test]
fn a_read_only_attachment_refuses_whatever_would_change_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = place.file("content");
    std::fs::write(&content, pattern::bytes(1, 1 << 20)).expect("a file");
    let uri = daemon.volume("archive", "64M");
    Outcome::of(
        programs::client("nbdcopy")
            .arg("--flush")
            .arg(&content)
            .arg(&uri),
    )
    .succeeded();
    daemon.detach("archive");
    daemon
        .sealvol(&["volume", "attach", "archive", "--read-only"])
        .succeeded();
    check(
        "read_only.py",
        &[
            &daemon.uri("archive"),
            content.to_str().expect("a UTF-8 path"),
        ],
    );
    daemon.stop();
}
