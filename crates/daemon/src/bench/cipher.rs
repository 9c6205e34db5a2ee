//! The sector cipher beside a plain copy of the same bytes, on one core.
//!
//! Always: the key is a new one, in locked memory, that nothing was or will be encrypted with. What it leaves on the stack and
//! in registers is cleared before the thread is given back.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use sealvol_control::api::bench::{CipherReport, CipherSpeed};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{UnitSize, VolumeKey, clear_residue};

use super::{Measurement, per_second};
use crate::error::Error;

/// What `cryptsetup benchmark` takes; source and destination fit into the second cache of a core.
const BYTES: usize = 64 * 1024;
/// Calls between two looks at the clock.
const CALLS: u64 = 16;

/// Measures; blocks the thread for five times the time of a row.
///
/// # Errors
/// No memory for a key, or [`Error::MeasurementEnded`].
pub(crate) fn measure(
    memory: &Arc<KeyMemory>,
    measurement: &Measurement,
) -> Result<CipherReport, Error> {
    let key = VolumeKey::generate(memory).map_err(|error| Error::Measurement(error.to_string()))?;
    let cipher = key.expand();
    let source: Vec<u8> = (0..=u8::MAX).cycle().take(BYTES).collect();
    let mut destination = vec![0; BYTES];
    let mut ciphers = Vec::new();
    let mut measure = || {
        for unit in [UnitSize::B512, UnitSize::B4096] {
            let encrypt = rate(measurement, || {
                cipher.encrypt(unit, 0, black_box(&source), &mut destination);
                black_box(&destination);
            })?;
            let decrypt = rate(measurement, || {
                cipher.decrypt(unit, 0, black_box(&source), &mut destination);
                black_box(&destination);
            })?;
            ciphers.push(CipherSpeed {
                unit: unit.into(),
                encrypt_bytes_per_second: encrypt,
                decrypt_bytes_per_second: decrypt,
            });
        }
        rate(measurement, || {
            destination.copy_from_slice(black_box(&source));
            black_box(&destination);
        })
    };
    let copied = measure();
    clear_residue();
    Ok(CipherReport {
        bytes_per_call: BYTES as u64,
        copy_bytes_per_second: copied?,
        ciphers,
    })
}

/// Bytes a second.
fn rate(measurement: &Measurement, mut call: impl FnMut()) -> Result<u64, Error> {
    call(); // brings code and data into the caches
    let began = Instant::now();
    let mut calls = 0;
    loop {
        for _ in 0..CALLS {
            call();
        }
        calls += CALLS;
        let elapsed = began.elapsed();
        if elapsed >= measurement.time {
            return Ok(per_second(calls * BYTES as u64, elapsed));
        }
        measurement.check()?;
    }
}
