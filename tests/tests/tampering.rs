//! What whoever can write the store, and has no key, can not bring about. By the real programs, row by row: each is refused
//! (exit code 3 at attach, or an I/O error for just the range), leaves a record in the audit log, writes nothing, and serves
//! nothing false; `sealvol_tests::victim` asserts all of that each time.
//!
//! | what is done to the store | test |
//! |---|---|
//! | (a) header, key, blob and MAC all made anew from what is public | `a_layer_forged_from_public_data_is_refused` |
//! | (b) another volume's whole layer in its place | `another_volumes_layer_is_refused` |
//! | (c) another volume's wrapped key in its header | `another_volumes_wrapped_key_is_refused` |
//! | (d) fields of the superblock changed | `a_changed_superblock_is_refused`; every byte of both slots, with and without a good checksum: `volume` `tampering::no_change_of_a_slot_serves_anything_else` |
//! | (d) bits of the map changed | `a_changed_map_page_answers_with_errors`; every bit of a page, with and without a good checksum: `volume` `tampering::no_changed_bit_of_a_map_page_is_believed` |
//! | (e) the newest slot damaged | `a_damaged_slot_is_served_around_repaired_and_recorded` |
//! | (f) one slot, or both, from yesterday | `a_slot_from_yesterday_is_brought_up_to_date_and_recorded`, `both_slots_from_yesterday_are_refused` |
//! | (g) the whole layer from yesterday | `the_whole_layer_from_yesterday_is_refused`; accepted by name: `rollback` |
//! | (h) pages of the map swapped | `swapped_map_pages_answer_with_errors` |
//! | (i) a page of another layer's map | `a_map_page_of_another_layer_answers_with_errors` |
//!
//! Files cut short, lost or of a newer format are in `refusals`.

use std::path::Path;

use sealvol_tests::programs::{check, run};
use sealvol_tests::superblock::{
    SLOTS, edit_both, edit_page, edit_slot, field, read_page, read_slot, write_page,
};
use sealvol_tests::victim::{PAGE, Victim};

/// One page of the map.
const SMALL: u64 = 8 << 20;
/// Three, the last one in part.
const LARGE: u64 = 2 * PAGE + (8 << 20);

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn flip(at: usize) -> impl Fn(&mut [u8]) {
    move |bytes| bytes[at] ^= 1
}

fn put(from: &Path, to: &Path) {
    for name in ["meta", "data"] {
        run("cp", &[&from.join(name), &to.join(name)]).succeeded();
    }
}

#[test]
fn a_layer_forged_from_public_data_is_refused() {
    let forge = |victim: &Victim| {
        check("forge.py", &[path(&victim.meta()), path(&victim.data())]);
    };
    // Also before anything is pinned: a volume that was made and never attached.
    for victim in [Victim::new(SMALL), Victim::never_attached(SMALL)] {
        victim.refuses("all forged", || forge(&victim), &["wrapped key"]);
    }
}

#[test]
fn another_volumes_layer_is_refused() {
    let victim = Victim::new(SMALL);
    let other = victim.other_volume();
    let change = || put(&other, &victim.layer);
    victim.refuses("another layer", change, &["no wrapped copy"]);
}

#[test]
fn another_volumes_wrapped_key_is_refused() {
    let victim = Victim::new(SMALL);
    let other = victim.other_volume().join("meta");
    let theirs = read_slot(&other, SLOTS[0]);
    victim.refuses(
        "another volume's key record",
        || {
            // Everything outside the authentication code: key generation, the key records, the checksum.
            edit_both(&victim.meta(), true, |mine| {
                mine[128..144].copy_from_slice(&theirs[128..144]);
                mine[264..theirs.len()].copy_from_slice(&theirs[264..]);
            });
        },
        &["no wrapped copy"],
    );
    victim.refuses(
        "another volume's wrapped key under this one's id",
        || {
            edit_both(&victim.meta(), true, |mine| {
                mine[264 + 16..theirs.len()].copy_from_slice(&theirs[264 + 16..]);
            });
        },
        &["wrapped key"],
    );
}

#[test]
fn a_changed_superblock_is_refused() {
    let victim = Victim::new(SMALL);
    let meta = victim.meta();
    for (case, at) in [
        ("size", field::SIZE + 3),
        ("generation of the far future", field::GENERATION + 5),
        ("authentication code", field::MAC),
        ("volume id", field::VOLUME),
        ("sequence of a directory page", 256),
    ] {
        victim.refuses(case, || edit_both(&meta, true, flip(at)), &["tampered"]);
    }
    let sector = |slot: &mut [u8]| {
        slot[field::SECTOR_SIZE..][..4].copy_from_slice(&512_u32.to_le_bytes());
    };
    let change = || edit_both(&meta, true, sector);
    victim.refuses("sector size", change, &["tampered"]);
    for slot in SLOTS {
        let change = || edit_slot(&meta, slot, true, flip(field::SIZE + 3));
        victim.refuses("one slot of the two", change, &["tampered"]);
    }
    let both = &["neither superblock slot", "restore"];
    let change = || edit_both(&meta, false, flip(field::SIZE));
    victim.refuses("damage in both slots", change, both);
    let change = || edit_both(&meta, false, |slot| slot.fill(0));
    victim.refuses("zeros in place of both slots", change, both);
}

#[test]
fn a_changed_map_page_answers_with_errors() {
    let victim = Victim::new(LARGE);
    let meta = victim.meta();
    for at in [8, 24, 32, 48, 64, 4095] {
        let change = || edit_page(&meta, 1, true, flip(at));
        victim.refuses_pages("a bit, with a good checksum", change, &[1], "tampered");
    }
    let change = || edit_page(&meta, 0, false, flip(70));
    victim.refuses_pages("a bit", change, &[0], "damaged");
}

#[test]
fn a_damaged_slot_is_served_around_repaired_and_recorded() {
    let victim = Victim::new(SMALL);
    let yesterday = read_slot(&victim.meta(), SLOTS[0]);
    for slot in SLOTS {
        let damage = |bytes: &mut [u8]| bytes[field::SIZE..][..100].fill(0xff);
        let change = || edit_slot(&victim.meta(), slot, false, damage);
        victim.is_repaired(
            "one slot damaged",
            change,
            "one superblock slot was damaged",
        );
    }
    // The other one is older than what is relied on: nothing is there that may serve.
    victim.refuses(
        "the newest slot damaged and the other from yesterday",
        || {
            let old = |bytes: &mut [u8]| bytes[..yesterday.len()].copy_from_slice(&yesterday);
            edit_slot(&victim.meta(), SLOTS[0], false, old);
            edit_slot(&victim.meta(), SLOTS[1], false, flip(field::SIZE));
        },
        &["rolled back"],
    );
}

#[test]
fn a_slot_from_yesterday_is_brought_up_to_date_and_recorded() {
    let victim = Victim::new(SMALL);
    for slot in SLOTS {
        let yesterday = read_slot(&victim.meta(), slot);
        victim.serves();
        let old = |bytes: &mut [u8]| bytes[..yesterday.len()].copy_from_slice(&yesterday);
        let change = || edit_slot(&victim.meta(), slot, false, old);
        victim.is_repaired("one slot from yesterday", change, "older than the other");
    }
}

#[test]
fn both_slots_from_yesterday_are_refused() {
    let victim = Victim::new(SMALL);
    let yesterday = read_slot(&victim.meta(), SLOTS[0]);
    victim.serves();
    let old = |bytes: &mut [u8]| bytes[..yesterday.len()].copy_from_slice(&yesterday);
    let change = || edit_both(&victim.meta(), false, old);
    victim.refuses("both slots from yesterday", change, &["rolled back"]);
}

#[test]
fn the_whole_layer_from_yesterday_is_refused() {
    let victim = Victim::new(SMALL);
    let yesterday = victim.copy_of_layer("yesterday");
    victim.serves();
    let change = || put(&yesterday, &victim.layer);
    victim.refuses("the layer from yesterday", change, &["rolled back"]);
}

#[test]
fn swapped_map_pages_answer_with_errors() {
    let victim = Victim::new(LARGE);
    let meta = victim.meta();
    let [first, second] = [0, 1].map(|page| read_page(&meta, page));
    let change = || {
        write_page(&meta, 0, &second);
        write_page(&meta, 1, &first);
    };
    victim.refuses_pages("pages 0 and 1 swapped", change, &[0, 1], "tampered");
}

#[test]
fn a_map_page_of_another_layer_answers_with_errors() {
    let victim = Victim::new(LARGE);
    let theirs = read_page(&victim.other_volume().join("meta"), 0);
    let change = || write_page(&victim.meta(), 0, &theirs);
    victim.refuses_pages("page 0 of another layer", change, &[0], "tampered");
}
