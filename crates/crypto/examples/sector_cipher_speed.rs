//! Speed of the sector cipher beside `xts-mode`, on one core: GB/s (10^9 bytes a second) by data
//! unit, direction and bytes per call.
//!
//! `cargo run --release -p sealvol-crypto --example sector_cipher_speed`
//!
//! Implementations take turns for several rounds and the median counts; only ratios within one run
//! mean anything.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes::Aes256;
use aes::cipher::{Array, KeyInit};
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{UnitSize, VolumeKey, clear_residue, random};
use xts_mode::{Xts128, get_tweak_default};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(60);

fn main() {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    let mut key = [0; 64];
    random(&mut key);
    let cipher = VolumeKey::read_from(&memory, &mut key.as_slice())
        .expect("a key")
        .expand();
    let half = |at: usize| Aes256::new(&Array::try_from(&key[at..at + 32]).expect("32 bytes"));
    let xts_mode = Xts128::new(half(0), half(32));

    println!(
        "{:>6} {:>8} {:>9} | {:>8} {:>9} {:>6}",
        "unit", "call", "", "sealvol", "xts-mode", ""
    );
    for (unit, call) in [
        (UnitSize::B512, 512),
        (UnitSize::B512, 4096),
        (UnitSize::B512, 65536),
        (UnitSize::B4096, 4096),
        (UnitSize::B4096, 65536),
        (UnitSize::B4096, 1 << 20),
    ] {
        let mut plain = vec![0; call];
        random(&mut plain);
        let mut out = vec![0; call];
        let mut theirs = plain.clone();
        let [encrypt, their_encrypt] = alternate(
            call,
            [
                &mut || cipher.encrypt(unit, 7, &plain, black_box(&mut out)),
                &mut || {
                    xts_mode.encrypt_area(
                        black_box(&mut theirs),
                        unit.bytes(),
                        7,
                        get_tweak_default,
                    );
                },
            ],
        );
        row(unit, call, "encrypt", encrypt, their_encrypt);
        let [decrypt, their_decrypt] = alternate(
            call,
            [
                &mut || cipher.decrypt_in_place(unit, 7, black_box(&mut out)),
                &mut || {
                    xts_mode.decrypt_area(
                        black_box(&mut theirs),
                        unit.bytes(),
                        7,
                        get_tweak_default,
                    );
                },
            ],
        );
        row(unit, call, "decrypt", decrypt, their_decrypt);
    }
    let residue = median(&mut || clear_residue(), 1);
    println!("clear_residue: {:.0} ns", 1.0 / residue);
}

fn row(unit: UnitSize, call: usize, direction: &str, ours: f64, theirs: f64) {
    let ratio = ours / theirs;
    println!("{unit:>6} {call:>8} {direction:>9} | {ours:>8.2} {theirs:>9.2} {ratio:>5.1}x");
}

/// GB/s of each, taking turns.
fn alternate<const N: usize>(bytes: usize, mut runs: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut speeds = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (run, speeds) in runs.iter_mut().zip(&mut speeds) {
            speeds.push(speed(*run, bytes));
        }
    }
    speeds.map(|mut speeds| {
        speeds.sort_by(f64::total_cmp);
        speeds[ROUNDS / 2]
    })
}

fn median(run: &mut dyn FnMut(), bytes: usize) -> f64 {
    let [speed] = alternate(bytes, [run]);
    speed
}

#[expect(clippy::cast_precision_loss, reason = "a speed of three digits")]
fn speed(run: &mut dyn FnMut(), bytes: usize) -> f64 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < ROUND {
        for _ in 0..64 {
            run();
        }
        calls += 64;
    }
    (calls * bytes) as f64 / start.elapsed().as_nanos() as f64
}
