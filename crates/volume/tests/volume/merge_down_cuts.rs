//! A merge down that is cut short: by a power cut at each change of the disk, by two, by a kill between any two steps. Whoever comes next goes on with
//! what the registry was told, or was not, and everybody reads what they read.

use sealvol_crypto::UnitSize;
use sealvol_volume::{LayerId, VolumeId};

use crate::merge::{check, four_layers, snapshot_of};
use crate::merge_down::check_all;
use crate::rig::Tower;

/// What a registry that was told before the power went, or was not, makes of a merge down that was cut short.
fn go_on(tower: &mut Tower, id: VolumeId, stack: &[LayerId], handed_down: bool) {
    if handed_down {
        tower.remove(&stack[1..2]);
    }
    let volume = tower.open(id).unwrap();
    check(tower, &volume, 3);
    if !handed_down {
        let snapshot = snapshot_of(tower, &volume, stack[1]);
        check(tower, &snapshot, 1);
        drop(snapshot);
        tower.merge_down(&volume, stack[0]).unwrap();
    }
    check_all(tower, &volume, stack);
    tower.close(volume).unwrap();
    tower.restart();
    let volume = tower.open(id).unwrap();
    check_all(tower, &volume, stack);
}

#[test]
fn it_can_be_cut_anywhere() {
    let mut changes = 0;
    for nth in 1.. {
        let mut cut = false;
        for seed in 0..4 {
            let (mut tower, id, volume) = four_layers(seed + nth * 1000, UnitSize::B4096);
            tower.flush(&volume).unwrap();
            let stack = tower.stack(id).to_vec();
            tower.disk.cut_power_at(nth);
            let merge = tower.start_merge_down(&volume, stack[0]);
            let ended = tower.executor.finish(&merge);
            // The registry may be told, and no more.
            let told = ended.is_ok() && tower.disk.is_powered();
            if told {
                tower.hand_down(stack[0]);
                if let Ok(merge) = &ended
                    && seed > 1
                {
                    tower.leave_out_handed_down(&[&volume], merge, stack[1]);
                }
            }
            cut |= !tower.disk.is_powered();
            drop((volume, ended));
            tower.restart();
            go_on(&mut tower, id, &stack, told);
        }
        if !cut {
            break;
        }
        changes = nth;
    }
    assert!(changes >= 16, "{changes}");
}

#[test]
fn it_can_be_cut_twice() {
    for first in (1..20).step_by(3) {
        for second in 1..20 {
            let seed = first * 100 + second;
            let (mut tower, id, mut volume) = four_layers(seed, UnitSize::B4096);
            tower.flush(&volume).unwrap();
            let stack = tower.stack(id).to_vec();
            for nth in [first, second] {
                tower.disk.cut_power_at(nth);
                let merge = tower.start_merge_down(&volume, stack[0]);
                drop(tower.executor.finish(&merge));
                drop(volume);
                tower.restart();
                volume = tower.open(id).unwrap();
            }
            drop(volume);
            tower.restart();
            go_on(&mut tower, id, &stack, false);
        }
    }
}

#[test]
fn it_can_be_killed_anywhere() {
    for steps in (0..400).step_by(5) {
        let (mut tower, id, volume) = four_layers(steps, UnitSize::B4096);
        tower.close(volume).unwrap();
        tower.most = 1;
        let volume = tower.open(id).unwrap();
        let stack = tower.stack(id).to_vec();
        let merge = tower.start_merge_down(&volume, stack[0]);
        tower.executor.steps(steps);
        let told = merge.is_done();
        if told {
            tower.hand_down(stack[0]);
        }
        drop((merge, volume));
        tower.kill();
        go_on(&mut tower, id, &stack, told);
    }
}
