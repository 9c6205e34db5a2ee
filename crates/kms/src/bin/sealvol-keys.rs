//! The key child of sealvold, and what is done with its keys by hand. See [`sealvol_kms::child`] and [`sealvol_kms::offline`].

use std::alloc::System;
use std::process::ExitCode;

use sealvol_kms::{child, offline};
use zeroizing_alloc::ZeroAlloc;

/// A key service's answer passes through buffers of TLS and HTTP: what they free is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    if offline::is_asked_for() {
        offline::main()
    } else {
        child::main()
    }
}
