//! Volumes whose store is reached past the page cache.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{run, wait_for};

/// Whether the store is reached past the page cache, as `volume show` has it; a memory file system has nothing to go past.
/// A daemon that has just started may still be attaching.
fn is_direct(daemon: &Daemon, name: &str) -> bool {
    let access = wait_for("the volume to be attached", || {
        let shown = daemon.sealvol_json(&["volume", "show", name]);
        shown["attachment"]["access"].as_str().map(str::to_owned)
    });
    access.starts_with("O_DIRECT") || access.contains("memory file system")
}

/// Whether the volume begins with `content`, and is empty after it.
fn holds(place: &Place, daemon: &Daemon, content: &[u8]) -> bool {
    let copy = place.file("copy");
    run("nbdcopy", &[daemon.uri("v").as_ref(), copy.as_os_str()]).succeeded();
    let bytes = std::fs::read(&copy).expect("the copy");
    let (begin, rest) = bytes.split_at(content.len());
    begin == content && rest.iter().all(|&byte| byte == 0)
}

fn direct_volume_survives(sector: &str) {
    let place = Place::new();
    let content = pattern::bytes(1, (3 << 20) + 512);
    let file = place.file("content");
    std::fs::write(&file, &content).expect("a file");

    let daemon = Daemon::start(&place);
    let create = [
        "volume",
        "create",
        "v",
        "--size",
        "16M",
        "--sector-size",
        sector,
    ];
    daemon.sealvol(&create).succeeded();
    daemon
        .sealvol(&["volume", "attach", "v", "--direct"])
        .succeeded();
    assert!(is_direct(&daemon, "v"));
    run("nbdcopy", &[file.as_os_str(), daemon.uri("v").as_ref()]).succeeded();
    assert!(holds(&place, &daemon, &content), "just written");
    daemon.kill();

    let daemon = Daemon::start(&place);
    assert!(is_direct(&daemon, "v"), "attached again as it was");
    assert!(
        holds(&place, &daemon, &content),
        "after the daemon was killed"
    );
    daemon.detach("v");
    daemon.attach("v");
    assert!(holds(&place, &daemon, &content), "through the page cache");
    daemon.stop();
}

#[test]
fn a_direct_volume_stays_direct_and_keeps_its_bytes_when_the_daemon_is_killed() {
    direct_volume_survives("4096");
}

#[test]
fn a_direct_volume_of_small_sectors_does_so_too() {
    direct_volume_survives("512");
}
