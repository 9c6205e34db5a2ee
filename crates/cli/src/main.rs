//! `sealvol`: the command line of sealvol.
//!
//! It turns words into calls of the control API and answers into text or JSON. It depends on
//! `sealvol-control` and `sealvol-audit` alone: it cannot hold a data key, open a volume, or map an error to anything but the
//! exit code that the API names.

mod alias;
mod args;
mod audit;
mod backup;
mod doctor;
mod flatten;
mod import;
mod jobs;
mod key;
mod key_set;
mod policy;
mod render;
mod rewrap;
mod run;
mod snapshot;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run::run(args::Cli::parse()).await
}
