//! The key child of sealvold. See [`sealvol_kms::child`].

use std::process::ExitCode;

fn main() -> ExitCode {
    sealvol_kms::child::main()
}
