//! The key child of sealvold. See [`sealvol_kms::child`].

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// A key service's answer passes through buffers of TLS and HTTP: what they free is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    sealvol_kms::child::main()
}
