//! The kernel's random number generator: `getrandom(2)`, which blocks until it is seeded.

/// The kernel's generator failed.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's random number generator failed: {0}; without it no key can be made")]
pub struct RandomError(#[from] getrandom::Error);

/// Fills `bytes` with random bytes that are not secret: ids and nonces.
///
/// # Panics
/// When the kernel has no random number generator: nothing that needs an id can go on.
pub fn random(bytes: &mut [u8]) {
    fill(bytes).expect("getrandom(2) does not fail on a kernel this program can run on");
}

/// Fills `bytes`, which may lie in a slot, straight from the kernel.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), RandomError> {
    Ok(getrandom::fill(bytes)?)
}
