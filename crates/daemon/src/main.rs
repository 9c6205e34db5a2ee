//! `sealvold`: reads its arguments and runs the daemon.

use std::process::ExitCode;

use clap::Parser as _;
use sealvol_daemon::args::Args;
use sealvol_daemon::serve;

fn main() -> ExitCode {
    match serve::run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealvold: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
