//! Volumes whose data is a block device, on loop devices.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{client, run};

const SIZE: u64 = 64 << 20;
const USAGE: i32 = 2;
const CONFLICT: i32 = 5;

/// A loop device over a file in a place; it goes with the value.
struct Loop(String);

impl Loop {
    fn new(place: &Place, name: &str, size: u64) -> Self {
        let file = place.file(name);
        let made = std::fs::File::create(&file).expect("a file");
        made.set_len(size).expect("its length");
        let said = run("losetup", &["--find", "--show", path(&file)]).succeeded();
        Self(said.stdout.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = client("losetup").args(["--detach", &self.0]).output();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn adopt(daemon: &Daemon<'_>, layer: &Path, more: &[&str]) -> Outcome {
    let arguments = ["volume", "adopt", "found", "--layer-dir", path(layer)];
    let key = ["--key", "local:default"];
    daemon.sealvol(&[&arguments[..], &key, more].concat())
}

#[test]
fn a_volume_on_a_device_comes_back_by_adoption_when_the_registry_is_lost() {
    needs_root("make loop devices");
    let place = Place::new();
    let device = Loop::new(&place, "device", SIZE);
    let [smaller, twin] =
        [("smaller", SIZE / 2), ("twin", SIZE)].map(|(name, size)| Loop::new(&place, name, size));
    let content = place.file("content");
    std::fs::write(&content, pattern::bytes(4, 1 << 20)).expect("a file");

    let daemon = Daemon::start(&place);
    let size = SIZE.to_string();
    let create = ["volume", "create", "lost", "--size", &size, "--backing"];
    daemon
        .sealvol(&[&create[..], &[&device.0]].concat())
        .succeeded();
    let uri = daemon.attach("lost");
    run("nbdcopy", &["--flush", path(&content), &uri]).succeeded();
    daemon.detach("lost");
    daemon.stop();
    let start = std::fs::read(place.file("device")).expect("the device's file");
    assert!(
        start[..1 << 20].iter().any(|byte| *byte != 0)
            && !start.starts_with(&pattern::bytes(4, 4096)),
        "the device does not hold the ciphertext"
    );
    for file in std::fs::read_dir(place.state()).expect("the state directory") {
        let file = file.expect("an entry").path();
        if path(&file).contains("registry.db") {
            std::fs::remove_file(file).expect("removed");
        }
    }
    let meta = place.layer_files("meta").remove(0);
    let layer: PathBuf = meta.parent().expect("a directory").to_owned();

    let daemon = Daemon::start(&place);
    adopt(&daemon, &layer, &[]).failed_with(1, &["data", "no such file"]);
    adopt(&daemon, &layer, &["--device", &smaller.0]).failed_with(USAGE, &[&smaller.0]);
    adopt(&daemon, &layer, &["--device", path(&content)]).failed_with(USAGE, &["block device"]);
    adopt(&daemon, &layer, &["--device", &device.0]).succeeded();
    let shown = daemon.sealvol_json(&["volume", "show", "found"]);
    assert_eq!(shown["backing"], device.0.as_str());
    let uri = daemon.attach("found");
    let copy = place.file("copy");
    run("nbdcopy", &[&uri, path(&copy)]).succeeded();
    let copy = std::fs::read(copy).expect("the copy");
    assert!(
        copy.starts_with(&pattern::bytes(4, 1 << 20))
            && copy[1 << 20..].iter().all(|byte| *byte == 0),
        "the content is another"
    );
    // It is its volume's device again: no other volume may be put on it, also not after a restart.
    daemon.detach("found");
    daemon.stop();
    let daemon = Daemon::start(&place);
    let create = ["volume", "create", "second", "--size", &size, "--backing"];
    daemon
        .sealvol(&[&create[..], &[&device.0]].concat())
        .failed_with(CONFLICT, &[&device.0, "found"]);
    daemon
        .sealvol(&[&create[..], &[&twin.0]].concat())
        .succeeded();
    daemon.attach("found");
    daemon.stop();
}
