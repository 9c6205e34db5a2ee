//! A lost registry: volumes are registered again from their layers, on the word of a key and of nothing else.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{run, wait_for};
use sealvol_tests::superblock::{edit_both, field};

const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;
const CONFLICT: i32 = 5;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A volume with content whose registry is gone; its key service is there.
fn orphan(sector_size: &str, attach: bool) -> (Place, PathBuf) {
    let place = Place::new();
    std::fs::write(place.file("content"), pattern::bytes(4, 1 << 20)).expect("a file");
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&[
            "volume",
            "create",
            "lost",
            "--size",
            "8M",
            "--sector-size",
            sector_size,
        ])
        .succeeded();
    if attach {
        let uri = daemon.attach("lost");
        run("nbdcopy", &["--flush", path(&place.file("content")), &uri]).succeeded();
        daemon.detach("lost");
    }
    daemon.stop();
    for file in std::fs::read_dir(place.state()).expect("the state directory") {
        let file = file.expect("an entry").path();
        if path(&file).contains("registry.db") {
            std::fs::remove_file(file).expect("removed");
        }
    }
    let meta = place.layer_files("meta").remove(0);
    let layer = meta.parent().expect("a directory").to_owned();
    (place, layer)
}

fn adopt(daemon: &Daemon<'_>, name: &str, layer: &Path, key: &str) -> Outcome {
    daemon.sealvol(&[
        "volume",
        "adopt",
        name,
        "--layer-dir",
        path(layer),
        "--key",
        key,
    ])
}

fn audit(place: &Place) -> Vec<serde_json::Value> {
    let mut records = place.audit();
    records.retain(|record| record["operation"] == "adopt");
    records
}

#[test]
fn a_volume_comes_back_from_its_layer_and_its_key() {
    for sector_size in ["512", "4096"] {
        let (place, layer) = orphan(sector_size, true);
        let daemon = Daemon::start(&place);
        daemon
            .sealvol(&["volume", "show", "lost"])
            .failed_with(NOT_FOUND, &[]);
        let said = adopt(&daemon, "found", &layer, "local:default").succeeded();
        for word in [
            "proved by the MAC",
            "generation",
            "closed in good order",
            "not proved",
            "newest",
        ] {
            assert!(said.stdout.contains(word), "{word}: {said}");
        }
        let shown = daemon.sealvol_json(&["volume", "show", "found"]);
        assert_eq!(shown["sector_size"].to_string(), sector_size);
        assert_eq!(shown["key"], "local:default");
        let records = audit(&place);
        assert_eq!(records.len(), 1, "{records:?}");
        assert_eq!(records[0]["name"], "found");
        assert!(
            records[0]["result"]
                .as_str()
                .expect("text")
                .starts_with("ok: layer")
        );

        let uri = daemon.attach("found");
        run("nbdcopy", &[&uri, path(&place.file("copy"))]).succeeded();
        let copy = std::fs::read(place.file("copy")).expect("the copy");
        assert!(
            copy.starts_with(&pattern::bytes(4, 1 << 20)),
            "the content is another"
        );
        adopt(&daemon, "twice", &layer, "local:default").failed_with(CONFLICT, &[]);
        daemon.detach("found");
        adopt(&daemon, "twice", &layer, "local:default")
            .failed_with(CONFLICT, &["registered already", "as found"]);
        // It is a volume like any other: pinned, resized, attached again after a restart.
        daemon
            .sealvol(&["volume", "resize", "found", "--size", "16M"])
            .succeeded();
        daemon.attach("found");
        daemon.stop();
        let daemon = Daemon::start(&place);
        wait_for("the volume to be attached again", || {
            let shown = daemon.sealvol_json(&["volume", "show", "found"]);
            (shown["state"] == "attached").then_some(())
        });
        daemon.stop();
    }
}

#[test]
fn a_layer_elsewhere_stays_where_it_is() {
    let (place, layer) = orphan("4096", true);
    let elsewhere = place.file("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a directory");
    let moved = elsewhere.join(layer.file_name().expect("a name"));
    std::fs::rename(&layer, &moved).expect("moved");
    let daemon = Daemon::start(&place);
    adopt(&daemon, "found", &moved, "local:default").succeeded();
    let shown = daemon.sealvol_json(&["volume", "show", "found"]);
    assert_eq!(shown["backing"], path(&elsewhere));
    daemon.attach("found");
    daemon.stop();
}

#[test]
fn only_a_configured_key_that_wrapped_it_is_believed() {
    let (place, layer) = orphan("4096", true);
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();
    adopt(&daemon, "v", &layer, "elsewhere:default").failed_with(NOT_FOUND, &["not configured"]);
    adopt(&daemon, "v", &layer, "local:none").failed_with(NOT_FOUND, &["local:none"]);
    adopt(&daemon, "v", &layer, "local:other")
        .failed_with(REFUSED, &["wraps its data key, not local:other"]);
    adopt(&daemon, "v", &layer, "nonsense").failed_with(USAGE, &[]);
    let records = audit(&place);
    assert_eq!(records.len(), 4, "{records:?}");
    assert!(
        records
            .iter()
            .all(|record| record["result"] != "ok" && record["caller"]["uid"].is_number())
    );
    assert_eq!(
        daemon.sealvol_json(&["volume", "list"])["volumes"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    adopt(&daemon, "v", &layer, "local:default").succeeded();
    daemon.stop();
}

#[test]
fn what_the_key_does_not_prove_is_refused() {
    let flip = |at: usize| move |slot: &mut [u8]| slot[at] ^= 1;
    let cases: [(&str, usize, &[&str]); 5] = [
        ("size", field::SIZE + 3, &["tampered"]),
        ("generation", field::GENERATION + 5, &["tampered"]),
        ("MAC", field::MAC, &["tampered"]),
        ("volume id", field::VOLUME, &["refused"]),
        ("layer id", 32, &["layer id"]),
    ];
    for (case, at, words) in cases {
        let (place, layer) = orphan("4096", true);
        edit_both(&layer.join("meta"), true, flip(at));
        let daemon = Daemon::start(&place);
        let outcome = adopt(&daemon, "v", &layer, "local:default");
        assert_eq!(outcome.code, Some(REFUSED), "{case}: {outcome}");
        if case != "volume id" {
            outcome.says(words);
        }
        let listed = daemon.sealvol_json(&["volume", "list"]);
        assert_eq!(
            listed["volumes"].as_array().map(Vec::len),
            Some(0),
            "{case}"
        );
        daemon.stop();
    }
}

#[test]
fn a_layer_that_was_never_attached_is_adopted_only_while_it_is_empty() {
    let (place, layer) = orphan("4096", false);
    let daemon = Daemon::start(&place);
    let said = adopt(&daemon, "fresh", &layer, "local:default").succeeded();
    assert!(said.stdout.contains("without a MAC"), "{said}");
    daemon.attach("fresh");
    daemon.stop();

    // The MAC taken away from a layer with content: it would be opened as an empty one.
    let (place, layer) = orphan("4096", true);
    edit_both(&layer.join("meta"), true, |slot| {
        slot[12] &= !4;
        slot[field::MAC..][..32].fill(0);
    });
    let daemon = Daemon::start(&place);
    adopt(&daemon, "stripped", &layer, "local:default")
        .failed_with(REFUSED, &["no MAC", "would be lost"]);
    daemon.stop();
}

#[test]
fn what_is_no_layer_is_refused() {
    let (place, layer) = orphan("4096", true);
    let daemon = Daemon::start(&place);
    adopt(&daemon, "v", &place.file("nowhere"), "local:default")
        .failed_with(REFUSED, &["no such file"]);
    adopt(&daemon, "v", &place.state(), "local:default")
        .failed_with(REFUSED, &["called by the layer's id"]);
    let renamed = layer.with_file_name("00112233-4455-4677-8899-aabbccddeeff");
    std::fs::rename(&layer, &renamed).expect("renamed");
    adopt(&daemon, "v", &renamed, "local:default").failed_with(REFUSED, &["layer id"]);
    daemon.stop();
}
