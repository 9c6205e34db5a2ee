//! A layer older than what was relied on: refused, accepted by the operator, and on record either way.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::run;
use sealvol_tests::superblock::{edit_both, field};

const REFUSED: i32 = 3;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn write(uri: &str, fill: &str) {
    run(
        "qemu-io",
        &["-f", "raw", "-c", &format!("write -f -P {fill} 0 64k"), uri],
    )
    .succeeded();
}

fn reads(uri: &str, fill: &str) {
    run(
        "qemu-io",
        &[
            "-r",
            "-f",
            "raw",
            "-c",
            &format!("read -P {fill} 0 64k"),
            uri,
        ],
    )
    .succeeded();
}

/// Audit records of one operation.
fn audit(place: &Place, operation: &str) -> Vec<String> {
    let records = place.audit().into_iter();
    let wanted = records.filter(|record| record["operation"] == operation);
    wanted
        .map(|record| record["result"].as_str().expect("a result").to_owned())
        .collect()
}

/// A volume `v` with old content, new content, and its layer as it was with the old one, beside it.
fn volume() -> (Place, PathBuf, PathBuf) {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    write(&daemon.volume("v", "8M"), "0x0a");
    daemon.detach("v");
    let layer = place
        .layer_files("meta")
        .remove(0)
        .parent()
        .expect("a directory")
        .to_owned();
    let old = place.file("old");
    run("cp", &["--archive", path(&layer), path(&old)]).succeeded();
    for _ in 0..3 {
        write(&daemon.attach("v"), "0x0b");
        daemon.detach("v");
    }
    daemon.stop();
    (place, layer, old)
}

fn put_back(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).expect("removed");
    run("cp", &["--archive", path(from), path(to)]).succeeded();
}

#[test]
fn a_rollback_is_accepted_only_by_name_and_stands_in_the_audit_log() {
    let (place, layer, old) = volume();
    let new = place.file("new");
    run("cp", &["--archive", path(&layer), path(&new)]).succeeded();
    put_back(&old, &layer);
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["volume", "attach", "v"])
        .failed_with(REFUSED, &["older", "rolled back", "--accept-rollback"]);
    let refusals = audit(&place, "attach");
    assert!(
        refusals.len() == 1 && refusals[0].contains("rolled back"),
        "{refusals:?}"
    );

    let uri = daemon.uri("v");
    daemon
        .sealvol(&["volume", "attach", "v", "--accept-rollback"])
        .succeeded();
    reads(&uri, "0x0a");
    let accepted = audit(&place, "accept-rollback");
    assert!(
        accepted.len() == 1 && accepted[0].starts_with("accepted: superblock generation"),
        "{accepted:?}"
    );
    write(&uri, "0x0c");
    daemon.detach("v");

    // It goes on without being told again, also after a restart; what was given up never comes back.
    daemon.attach("v");
    reads(&uri, "0x0c");
    daemon.detach("v");
    daemon.stop();
    let kept = place.file("kept");
    run("cp", &["--archive", path(&layer), path(&kept)]).succeeded();
    for past in [&old, &new] {
        put_back(past, &layer);
        let daemon = Daemon::start(&place);
        daemon
            .sealvol(&["volume", "attach", "v"])
            .failed_with(REFUSED, &["rolled back"]);
        daemon.stop();
    }
    put_back(&kept, &layer);
    let daemon = Daemon::start(&place);
    reads(&daemon.attach("v"), "0x0c");
    daemon.stop();
}

#[test]
fn a_look_at_the_past_changes_nothing() {
    let (place, layer, old) = volume();
    let new = place.file("new");
    run("cp", &["--archive", path(&layer), path(&new)]).succeeded();
    put_back(&old, &layer);
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["volume", "attach", "v", "--accept-rollback", "--read-only"])
        .succeeded();
    reads(&daemon.uri("v"), "0x0a");
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "attach", "v"])
        .failed_with(REFUSED, &["rolled back"]);
    daemon.stop();
    put_back(&new, &layer);
    let daemon = Daemon::start(&place);
    reads(&daemon.attach("v"), "0x0b");
    daemon.stop();
}

#[test]
fn accepting_a_rollback_accepts_nothing_else() {
    let (place, layer, old) = volume();
    let meta = layer.join("meta");
    let kept = place.file("kept");
    run("cp", &["--archive", path(&layer), path(&kept)]).succeeded();
    let cases: [(&str, &dyn Fn()); 3] = [
        ("tampered", &|| {
            edit_both(&old.join("meta"), true, |slot| {
                slot[field::GENERATION] ^= 0x80
            })
        }),
        ("tampered", &|| {
            edit_both(&meta, true, |slot| slot[field::MAC] ^= 1)
        }),
        ("neither superblock slot", &|| {
            edit_both(&meta, false, |slot| slot.fill(0))
        }),
    ];
    for (number, (word, change)) in cases.into_iter().enumerate() {
        change();
        if number == 0 {
            put_back(&old, &layer);
        }
        let daemon = Daemon::start(&place);
        daemon
            .sealvol(&["volume", "attach", "v", "--accept-rollback"])
            .failed_with(REFUSED, &[word]);
        daemon.stop();
        put_back(&kept, &layer);
    }
    let daemon = Daemon::start(&place);
    // Nothing to accept: attached as ever, and nothing on record.
    daemon
        .sealvol(&["volume", "attach", "v", "--accept-rollback"])
        .succeeded();
    reads(&daemon.uri("v"), "0x0b");
    daemon.stop();
}

#[test]
fn each_refusal_to_attach_leaves_a_record_with_its_cause() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for name in ["v", "w"] {
        write(&daemon.volume(name, "8M"), "0x0a");
        daemon.detach(name);
    }
    let id = daemon.sealvol_json(&["volume", "show", "v"])["layers"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    daemon.stop();
    let layer = place.state().join("layers").join(id);
    let kept = place.file("kept");
    run("cp", &["--archive", path(&layer), path(&kept)]).succeeded();
    let meta = layer.join("meta");
    let other = place
        .layer_files("meta")
        .into_iter()
        .find(|path| *path != meta)
        .expect("w's");
    let cases: [(&str, &dyn Fn()); 7] = [
        ("tampered", &|| {
            edit_both(&meta, true, |slot| slot[field::SIZE + 3] ^= 1)
        }),
        ("neither superblock slot", &|| {
            edit_both(&meta, false, |slot| slot.fill(0))
        }),
        ("format version", &|| {
            edit_both(&meta, true, |slot| slot[field::VERSION] = 9)
        }),
        // Another volume's header: it holds no copy of this one's data key.
        ("no wrapped copy", &|| {
            _ = std::fs::copy(&other, &meta).expect("copied")
        }),
        ("truncated", &|| {
            let data = std::fs::File::options()
                .write(true)
                .open(layer.join("data"));
            data.and_then(|data| data.set_len(4096)).expect("cut");
        }),
        ("meta", &|| std::fs::remove_file(&meta).expect("removed")),
        ("unwrap", &|| {
            // The last bytes of the only wrapped key: its tag.
            edit_both(&meta, true, |slot| {
                let used = u32::from_le_bytes(slot[140..144].try_into().expect("four bytes"));
                slot[used as usize - 1] ^= 1;
            });
        }),
    ];
    for (number, (word, change)) in cases.into_iter().enumerate() {
        change();
        let daemon = Daemon::start(&place);
        let outcome = daemon.sealvol(&["volume", "attach", "v"]);
        assert_ne!(outcome.code, Some(0), "{word}: {outcome}");
        daemon.stop();
        if word == "unwrap" {
            let refused = audit(&place, "unwrap");
            assert!(
                refused.last().is_some_and(|result| result != "ok"),
                "{refused:?}"
            );
        } else {
            let refusals = audit(&place, "attach");
            assert_eq!(refusals.len(), number + 1, "{word}: {refusals:?}");
            assert!(refusals[number].contains(word), "{word}: {refusals:?}");
        }
        put_back(&kept, &layer);
    }
    let daemon = Daemon::start(&place);
    reads(&daemon.attach("v"), "0x0a");
    daemon.stop();
}
