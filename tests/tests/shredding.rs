//! `volume delete --shred` of what has several layers: no wrapped key is left in any slot of a layer that goes, and none is
//! touched in one that stays. Each superblock is looked at through a second link to its file. What becomes of copies that were
//! saved before is in `shred_proof.rs`.

use std::path::PathBuf;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::superblock::{SLOTS, read_slot};
use serde_json::Value;

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

/// A superblock that outlives its layer, and the wrapped keys that it had.
struct Superblock {
    link: PathBuf,
    wrapped: Vec<Vec<u8>>,
}

impl Superblock {
    /// How many of its wrapped keys are anywhere in the file.
    fn left(&self) -> usize {
        let file = std::fs::read(&self.link).expect("a second link");
        // The slots, and all that is reserved for them.
        let slots = &file[..1 << 20];
        let wrapped = self.wrapped.iter();
        let left = wrapped.filter(|key| slots.windows(key.len()).any(|window| window == **key));
        left.count()
    }

    fn is_whole(&self) -> bool {
        self.left() == self.wrapped.len()
    }
}

/// The wrapped keys in a slot (crates/volume/FORMAT.md, section 3.1).
fn wrapped_keys(slot: &[u8]) -> Vec<Vec<u8>> {
    let number = |at: usize| {
        let bytes = slot[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let mut rest = &slot[256 + 8 * number(76)..];
    let mut keys = Vec::new();
    for _ in 0..number(136) {
        rest = &rest[20..];
        let mut field: &[u8] = &[];
        for _ in 0..3 {
            let len = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
            field = &rest[2..2 + len];
            rest = &rest[2 + len..];
        }
        keys.push(field.to_vec());
    }
    keys
}

/// The superblocks of the volume's layers, from the top down.
fn superblocks(place: &Place, volume: &Value) -> Vec<Superblock> {
    let layers = volume["layers"].as_array().expect("layers").iter();
    layers
        .map(|layer| {
            let id = layer["id"].as_str().expect("an id");
            let meta = place.state().join("layers").join(id).join("meta");
            let link = place.file(id);
            let _ = std::fs::remove_file(&link);
            std::fs::hard_link(&meta, &link).expect("a second link");
            let slots = SLOTS.map(|slot| wrapped_keys(&read_slot(&meta, slot)));
            assert_eq!(slots[0], slots[1]);
            let [wrapped, _] = slots;
            assert!(!wrapped.is_empty() && wrapped.iter().all(|key| key.len() > 64));
            Superblock { link, wrapped }
        })
        .collect()
}

/// A volume `v` under two data keys, detached: its top and the snapshots `v@a`, `v@b` and `v@c` below it.
fn family(daemon: &Daemon<'_>) {
    daemon.volume("v", "4M");
    daemon.write("v", 0, &pattern::bytes(1, 3 << 20));
    for name in ["v@a", "v@b"] {
        daemon.sealvol(&["snapshot", "create", name]).succeeded();
        daemon.write("v", 1 << 20, &pattern::bytes(2, 4096));
    }
    let begun = daemon.sealvol_json(&["volume", "rekey", "v", "--rate", "1M"]);
    let id = begun["id"].to_string();
    daemon.sealvol(&["job", "cancel", &id]).succeeded();
    daemon.write("v", 2 << 20, &pattern::bytes(3, 4096));
    daemon.sealvol(&["snapshot", "create", "v@c"]).succeeded();
    daemon.detach("v");
}

#[test]
fn a_shredded_stack_leaves_no_wrapped_key_in_any_slot_of_any_layer() {
    for shred in [true, false] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        family(&daemon);
        let before = superblocks(&place, &show(&daemon, "v"));
        assert!(before.len() >= 4, "three snapshots and a top");
        assert!(before[0].wrapped.len() >= 2, "under two data keys");
        assert!(before.iter().all(Superblock::is_whole));
        let mut delete = vec!["volume", "delete", "v", "--snapshots"];
        delete.extend(shred.then_some("--shred"));
        daemon.sealvol(&delete).succeeded();
        assert!(place.layer_files("meta").is_empty());
        for (number, superblock) in before.iter().enumerate() {
            if shred {
                assert_eq!(superblock.left(), 0, "layer {number} from the top");
            } else {
                assert!(superblock.is_whole(), "nothing else overwrites them");
            }
        }
        daemon.stop();
    }
}

#[test]
fn what_a_clone_stands_on_is_shredded_with_nobody_and_stays_whole() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    family(&daemon);
    daemon
        .sealvol(&["volume", "create", "c", "--from-snapshot", "v@b"])
        .succeeded();
    daemon.attach("c");
    let content = daemon.content("c");
    daemon.detach("c");
    let of_v = superblocks(&place, &show(&daemon, "v"));
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
        .failed_with(5, &["volume v", "other volumes stand"]);
    assert!(of_v.iter().all(Superblock::is_whole), "nothing was touched");
    daemon.attach("c");
    assert!(daemon.content("c") == content);
    daemon.detach("c");

    // The clone's own layer goes, with its copies of the keys that it shares; what it stood on stays.
    let of_c = superblocks(&place, &show(&daemon, "c"));
    let own = of_c.len() - 2;
    let mut twin = vec!["volume", "create", "d", "--from-snapshot", "v@b"];
    twin.extend(["--size", "8M"]);
    daemon.sealvol(&twin).succeeded();
    let deleted = daemon.sealvol_json(&["volume", "delete", "c", "--shred"]);
    assert_eq!(deleted["layers_kept"], 2);
    for (number, superblock) in of_c.iter().enumerate() {
        if number < own {
            assert_eq!(superblock.left(), 0, "the clone's own");
        } else {
            assert!(superblock.is_whole(), "the source's");
        }
    }
    assert!(of_v.iter().all(Superblock::is_whole));
    daemon.attach("v@b");
    assert!(daemon.content("v@b") == content, "the source has its keys");
    daemon.detach("v@b");
    daemon.attach("d");
    assert!(daemon.content("d")[..4 << 20] == content, "so has the twin");
    daemon.detach("d");

    daemon.sealvol(&["volume", "delete", "d"]).succeeded();
    let of_v = superblocks(&place, &show(&daemon, "v"));
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
        .succeeded();
    assert!(of_v.iter().all(|superblock| superblock.left() == 0));
    daemon.stop();
}
