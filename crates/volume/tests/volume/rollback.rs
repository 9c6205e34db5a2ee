//! A rollback that the operator accepts: what may be older, what still may not, and that the lost openings never come back.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Directory as _;
use sealvol_volume::{
    Access, DATA_FILE, LayerParts, META_FILE, Volume, VolumeError, open_rolled_back, read_layer,
};

use crate::rig::{Disk, Machine, OTHER_KEY, RegistryHost, Scattered, cipher};

const SIZE: u64 = 8 << 20;
/// All of `meta` that the tests use: both slots, the directory page, the map page.
const META_LEN: usize = (64 << 20) + 8192;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A layer with a first and a second opening behind it, and its `meta` as the first one left it.
fn rolled_back() -> (Machine, Vec<u8>, Vec<u8>) {
    let mut machine = Machine::new(3, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.close(volume).unwrap();
    let old = machine.raw("meta", 0, META_LEN);
    for fill in 2..5 {
        let volume = machine.open().unwrap();
        machine
            .write(&volume, 4096 * u64::from(fill), &block(fill))
            .unwrap();
        machine.close(volume).unwrap();
    }
    let new = machine.raw("meta", 0, META_LEN);
    machine.patch("meta", 0, &old);
    (machine, old, new)
}

fn accept(machine: &mut Machine, access: Access) -> Result<Arc<Volume<Disk>>, VolumeError> {
    let (directory, random, registry) = (
        machine.directory(),
        machine.random.clone(),
        Arc::clone(&machine.registry),
    );
    let key = machine.key;
    machine.executor.run(async move {
        let pins = registry.pins();
        let writable = sealvol_store::Access::Writable;
        let data = directory.open(DATA_FILE, writable).await?;
        let meta = directory.open(META_FILE, writable).await?;
        let [data, meta] = [data, meta].map(|file| Scattered::new(file, random.clone(), 0));
        let host = Arc::new(RegistryHost(registry));
        let top = LayerParts {
            data,
            meta,
            cipher: Arc::new(cipher(&key)),
            pins,
            host,
        };
        open_rolled_back(Vec::new(), top, access).await
    })
}

#[test]
fn whatever_writes_a_superblock_makes_the_one_before_a_rollback() {
    type Step = fn(&mut Machine, Arc<Volume<Disk>>);
    let steps: [(&str, Step); 3] = [
        ("a new directory page", |machine, volume| {
            machine.write(&volume, 0, &block(1)).unwrap();
            machine.flush(&volume).unwrap();
        }),
        ("growing", |machine, volume| {
            machine
                .executor
                .run(async move { volume.grow(2 * SIZE).await })
                .unwrap();
        }),
        ("a detach", |machine, volume| {
            machine.close(volume).unwrap();
        }),
    ];
    for (what, step) in steps {
        // The same machine twice: one shows what the other one's slots were before the step.
        let [mut earlier, mut machine] =
            [3, 3].map(|seed| Machine::new(seed, SIZE, UnitSize::B4096));
        drop(earlier.open().unwrap());
        let before = earlier.raw("meta", 0, 1 << 20);
        let volume = machine.open().unwrap();
        step(&mut machine, volume);
        machine.restart();
        machine.patch("meta", 0, &before);
        let refused = machine.open().map(drop);
        assert!(
            matches!(refused, Err(VolumeError::RolledBack { .. })),
            "{what}: {refused:?}"
        );
    }
}

#[test]
fn an_accepted_rollback_goes_on_above_what_was_lost() {
    let (mut machine, old, new) = rolled_back();
    let pinned = machine.registry.pins().generation;
    let refused = machine.open().map(drop);
    let Err(VolumeError::RolledBack {
        found,
        pinned: said,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert!(found < pinned && said == pinned);
    let volume = accept(&mut machine, Access::Writable).unwrap();
    assert!(volume.generation() > pinned);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1));
    assert_eq!(machine.read(&volume, 8192, 4096).unwrap(), block(0), "lost");
    machine.write(&volume, 4096, &block(7)).unwrap();
    machine.close(volume).unwrap();
    let kept = machine.raw("meta", 0, META_LEN);

    // From here on it is a layer like any other, and neither past is taken for it.
    for other in [old, new] {
        machine.patch("meta", 0, &other);
        let refused = machine.open().map(drop);
        assert!(
            matches!(refused, Err(VolumeError::RolledBack { .. })),
            "{refused:?}"
        );
    }
    machine.patch("meta", 0, &kept);
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 4096, 4096).unwrap(), block(7));
}

#[test]
fn map_pages_of_what_was_lost_are_refused_after_an_accepted_rollback() {
    let (mut machine, _, new) = rolled_back();
    // The superblock is the old one, the map and directory pages are those of the lost openings.
    machine.patch("meta", 1 << 20, &new[1 << 20..]);
    let volume = accept(&mut machine, Access::Writable).unwrap();
    let read = machine.read(&volume, 0, 4096);
    assert!(
        matches!(read, Err(VolumeError::DamagedMap { .. })),
        "{read:?}"
    );
}

#[test]
fn reading_only_changes_nothing() {
    let (mut machine, old, _) = rolled_back();
    let pinned = machine.registry.pins().generation;
    let volume = accept(&mut machine, Access::ReadOnly).unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1));
    drop(volume);
    assert_eq!(machine.registry.pins().generation, pinned);
    assert!(machine.raw("meta", 0, META_LEN) == old, "meta was written");
    let refused = machine.open().map(drop);
    assert!(matches!(refused, Err(VolumeError::RolledBack { .. })));
}

#[test]
fn nothing_but_the_generation_is_accepted() {
    let (mut machine, old, _) = rolled_back();
    machine.key = OTHER_KEY;
    let refused = accept(&mut machine, Access::Writable).map(drop);
    assert!(matches!(refused, Err(VolumeError::WrongKey)), "{refused:?}");
    machine.key = crate::rig::KEY;
    for slot in [0, 262_144] {
        let mut torn = old[slot..slot + 64].to_vec();
        torn[32] ^= 1;
        machine.patch("meta", slot as u64, &torn);
    }
    let refused = accept(&mut machine, Access::Writable).map(drop);
    assert!(
        matches!(refused, Err(VolumeError::NoSuperblock { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_a_layer_says_of_itself_needs_no_key() {
    let (mut machine, _, _) = rolled_back();
    let directory = machine.directory();
    let pins = machine.registry.pins();
    let said = machine.executor.run(async move {
        let meta = directory
            .open(META_FILE, sealvol_store::Access::ReadOnly)
            .await
            .unwrap();
        read_layer(&meta).await.unwrap()
    });
    assert_eq!(said.params, pins.params);
    assert!(said.bound && said.clean && !said.sealed);
    assert!(said.generation < pins.generation);
}
