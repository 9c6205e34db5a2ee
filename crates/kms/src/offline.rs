//! `sealvol-keys` by hand: what is done with keys while no daemon asks for anything.
//!
//! ```text
//! sealvol-keys restore --backup FILE --recovery-key PRIVATE.pem --database PATH [--master-key PATH] | --check
//! ```
//! It is this program since it is the one that may hold keys outside the daemon. With no argument at all it is the key child.
//!
//! What always holds: the process is hardened before it reads anything; a secret comes from a file or standard input and goes to
//! a file, and is never an argument, in the environment, or printed; no file is written over.

mod restore;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sealvol_crypto::harden_process;

use crate::confinement;

#[derive(Parser)]
#[command(
    name = "sealvol-keys",
    version,
    about = "The key child of sealvold, and what is done with keys by hand",
    after_help = "Run it as the daemon's user: files with secrets are taken from their owner alone, and made for that user."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a key database and its master key back from a backup
    Restore(restore::Arguments),
}

/// Whether somebody asks by hand: the daemon gives no arguments.
#[must_use]
pub fn is_asked_for() -> bool {
    std::env::args_os().len() > 1
}

/// The whole program.
pub fn main() -> ExitCode {
    if let Err(error) = harden_process() {
        say(&error);
        return ExitCode::FAILURE;
    }
    if let Err(error) = confinement::forbid_new_privileges() {
        say(&format!("cannot give up new privileges: {error}"));
        return ExitCode::FAILURE;
    }
    match Arguments::parse().command {
        Command::Restore(arguments) => restore::run(arguments),
    }
}

/// Tells what went wrong. That nobody listens is no reason to fail otherwise.
fn say(what: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "sealvol-keys: {what}");
}
