//! Snapshots that are deleted while their volume is re-keyed: the volume and what is left of the family read what they held, and
//! the old key opens what still needs it, and nothing else.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::Value;

/// A volume `v` of 16 MiB, attached, and what it and its snapshots `v@a`, `v@b`, `v@c` hold.
fn family(daemon: &Daemon<'_>) -> [Vec<u8>; 4] {
    daemon.volume("v", "16M");
    let mut content = pattern::bytes(1, 12 << 20);
    daemon.write("v", 0, &content);
    content.resize(16 << 20, 0);
    let mut held = Vec::new();
    for (number, name) in (0..).zip(["v@a", "v@b", "v@c"]) {
        daemon.sealvol(&["snapshot", "create", name]).succeeded();
        held.push(content.clone());
        let at = (2 + 3 * number) << 20;
        let newer = pattern::bytes(7 + number as u64, 1 << 20);
        daemon.write("v", at as u64, &newer);
        content[at..at + (1 << 20)].copy_from_slice(&newer);
    }
    held.push(content);
    held.try_into().expect("three snapshots and a volume")
}

fn layers(place: &Place) -> usize {
    place.layer_files("data").len()
}

#[test]
fn a_snapshot_deleted_in_the_middle_of_a_rekey_is_gone_and_nothing_else_is() {
    for attached in [true, false] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        let [a, b, _, v] = family(&daemon);
        if !attached {
            daemon.detach("v");
        }
        let begun = daemon.sealvol_json(&["volume", "rekey", "v", "--rate", "3M"]);
        let id = begun["id"].to_string();
        wait_for("some of the copy", || {
            let job = daemon.sealvol_json(&["job", "show", &id]);
            assert_ne!(job["state"], "done", "it was faster than its rate");
            (job["bytes_done"].as_u64() > Some(1 << 20)).then_some(())
        });
        // The newest, which lies right below what is copied from, and the one in the middle.
        for name in ["v@c", "v@b"] {
            daemon.sealvol(&["snapshot", "delete", name]).succeeded();
        }
        if attached {
            assert!(daemon.content("v") == v, "meanwhile");
            daemon.attach("v@a");
            assert!(daemon.content("v@a") == a, "meanwhile");
            daemon.detach("v@a");
        }
        let watched = daemon.sealvol(&["job", "watch", &id]).succeeded();
        let last = watched.stdout.lines().last().expect("a last word");
        let last: Value = serde_json::from_str(last).expect("JSON");
        let opened = last["result"]["rekey"]["old_keys_open"].to_string();
        assert!(opened.contains("v@a"), "{last}");
        assert!(!opened.contains("v@b") && !opened.contains("v@c"), "{last}");
        if !attached {
            daemon.attach("v");
        }
        assert_eq!(daemon.sealvol_json(&["volume", "show", "v"])["depth"], 1);
        assert!(daemon.content("v") == v, "under the new key");
        daemon.attach("v@a");
        assert!(daemon.content("v@a") == a, "under the old one");
        assert!(a != b, "else it would prove nothing");
        // What is left: the volume's layer and the snapshot's. Nobody stands on the others.
        wait_for("the layers of the deleted snapshots to go", || {
            (layers(&place) == 2).then_some(())
        });
        daemon.detach("v@a");
        daemon.sealvol(&["snapshot", "delete", "v@a"]).succeeded();
        daemon.stop();
        let daemon = Daemon::start(&place);
        wait_for("the volume", || {
            let shown = daemon.sealvol_json(&["volume", "show", "v"]);
            (shown["state"] == "attached").then_some(())
        });
        assert!(daemon.content("v") == v, "after a restart");
        assert_eq!(layers(&place), 1, "nothing under the old key is left");
        daemon.stop();
    }
}
