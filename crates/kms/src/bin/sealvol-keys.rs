//! The key child of sealvold ([`sealvol_kms::child`]), and what is done with master keys by hand ([`sealvol_kms::offline`]).

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// A key service's answer passes through buffers of TLS and HTTP: what they free is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    if sealvol_kms::offline::is_asked_for() {
        sealvol_kms::offline::main()
    } else {
        sealvol_kms::child::main()
    }
}
