//! Volumes of up to 64 TiB: nothing takes time or memory by their size.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_volume::{BLOCK, BlockState, MAX_SIZE, MapRun, Zeroing};

use crate::rig::{Machine, pattern};

const PAGE: u64 = 64 << 20;

fn block(version: u64) -> Vec<u8> {
    (0..8).flat_map(|piece| pattern(version, piece)).collect()
}

#[test]
fn the_largest_volume_is_created_in_a_few_operations_and_used_at_both_ends() {
    let mut machine = Machine::new(1, MAX_SIZE, UnitSize::B512);
    assert!(
        machine.disk.journal().len() < 16,
        "{:?}",
        machine.disk.journal()
    );
    assert!(machine.disk.used() < 1 << 20);
    let volume = machine.open().unwrap();
    let ends = [
        0,
        512,
        MAX_SIZE / 2 - 2048,
        MAX_SIZE - BLOCK - 512,
        MAX_SIZE - 512,
    ];
    for (version, offset) in (1..).zip(ends) {
        machine
            .write(&volume, offset, &pattern(version, offset / 512))
            .unwrap();
    }
    machine.flush(&volume).unwrap();
    machine.close(volume).unwrap();
    machine.restart();
    let volume = machine.open().unwrap();
    for (version, offset) in (1..).zip(ends) {
        assert_eq!(
            machine.read(&volume, offset, 512).unwrap(),
            pattern(version, offset / 512)
        );
    }
    assert!(volume.prepare_write(MAX_SIZE - 512, &[0; 513]).is_err());
    assert!(machine.read(&volume, MAX_SIZE - 1, 2).is_err());
    assert!(machine.read(&volume, u64::MAX - 5, 10).is_err());
    assert!(machine.disk.used() < 4 << 20, "{}", machine.disk.used());
}

#[test]
fn all_of_the_largest_volume_is_trimmed_and_mapped_without_taking_space() {
    let mut machine = Machine::new(2, MAX_SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    for offset in [0, MAX_SIZE / 2, MAX_SIZE - BLOCK] {
        machine.write(&volume, offset, &block(1)).unwrap();
    }
    machine.flush(&volume).unwrap();
    let mapped = Arc::clone(&volume);
    let map: Vec<MapRun> = machine.executor.run(async move {
        let mut map: Vec<MapRun> = Vec::new();
        while let Some(run) = {
            let at = map.last().map_or(0, |run| run.offset + run.len);
            mapped.map(at, 1).await.unwrap().pop()
        } {
            map.push(run);
        }
        map
    });
    let states: Vec<_> = map.iter().map(|run| (run.offset, run.state)).collect();
    assert_eq!(
        states,
        [
            (0, BlockState::Data),
            (BLOCK, BlockState::Absent),
            (MAX_SIZE / 2, BlockState::Data),
            (MAX_SIZE / 2 + BLOCK, BlockState::Absent),
            (MAX_SIZE - BLOCK, BlockState::Data),
        ]
    );
    machine.disk.forget_journal();
    let used = machine.disk.used();
    let trimmed = Arc::clone(&volume);
    machine
        .executor
        .run(async move { trimmed.trim(0, MAX_SIZE, true).await })
        .unwrap();
    machine.executor.idle();
    let journal = machine.disk.journal();
    assert!(journal.len() < 60, "{} operations", journal.len());
    assert_eq!(
        journal
            .iter()
            .filter(|record| record.operation == Operation::Punch)
            .count(),
        3
    );
    assert!(machine.disk.used() < used);
    let zeroed = Arc::clone(&volume);
    machine
        .executor
        .run(async move { zeroed.zero(1, MAX_SIZE - 2, Zeroing::MayFree, false).await })
        .unwrap();
    assert_eq!(
        machine.read(&volume, MAX_SIZE / 2, 4096).unwrap(),
        vec![0; 4096]
    );
}

#[test]
fn pages_that_left_memory_come_back_as_they_were() {
    // More pages than stay resident, so that clean ones are dropped while others have changes.
    const PAGES: u64 = 4096 + 600;
    let mut machine = Machine::new(3, (PAGES + 10) * PAGE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    let offset = |page: u64| page * PAGE + page % 100 * BLOCK;
    for page in 0..PAGES {
        machine
            .write(&volume, offset(page), &block(page + 1))
            .unwrap();
    }
    // Again in pages that are gone, and come back from disk with what they had.
    for page in (0..PAGES).step_by(7) {
        machine.trim(&volume, offset(page), BLOCK).unwrap();
        machine
            .write(&volume, offset(page) + 200 * BLOCK, &block(page + 1))
            .unwrap();
    }
    let check = |machine: &mut Machine, volume: &_| {
        for page in 0..PAGES {
            let moved = page % 7 == 0;
            let (there, gone) = (block(page + 1), vec![0; 4096]);
            let found = machine.read(volume, offset(page), 4096).unwrap();
            assert!(
                found == if moved { &gone } else { &there }[..],
                "page {page}"
            );
            let found = machine
                .read(volume, offset(page) + 200 * BLOCK, 4096)
                .unwrap();
            assert!(
                found == if moved { &there } else { &gone }[..],
                "page {page}"
            );
        }
    };
    check(&mut machine, &volume);
    machine.flush(&volume).unwrap();
    drop(volume);
    machine.restart();
    let volume = machine.open().unwrap();
    check(&mut machine, &volume);
    machine.close(volume).unwrap();
}
