//! `sealvol-keys` by hand: what is done with keys while no daemon asks for anything.
//!
//! ```text
//! sealvol-keys split --master-key FILE | --from-share FILE... | --generate  --threshold M --to FILE...
//! sealvol-keys combine --share FILE... --to FILE
//! sealvol-keys restore --backup FILE --recovery-key PRIVATE.pem --database PATH [--master-key PATH] | --check
//! ```
//! It is this program since it is the one that may hold keys outside the daemon. With no argument at all it is the key child.
//!
//! What always holds: the process is hardened before it reads anything; a secret comes from a file or standard input and goes to
//! a file, and is never an argument, in the environment, or printed; no file is written over, and one that could not be made whole
//! is not left behind.

mod combine;
mod restore;
mod split;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use sealvol_control::keychild::{FailureClass, KeyFailure};
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{KeyError, harden_process};
use uuid::Uuid;

use crate::local::place;
use crate::{Refusal, confinement};

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
    /// Split a master key into shares, of which some give it back
    Split(split::Arguments),
    /// Put shares together to the master key that they are of
    Combine(combine::Arguments),
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
    carry_out(std::env::args_os())
}

fn carry_out(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if let Err(error) = harden_process() {
        say(&error);
        return ExitCode::FAILURE;
    }
    if let Err(error) = confinement::forbid_new_privileges() {
        say(&format!("cannot give up new privileges: {error}"));
        return ExitCode::FAILURE;
    }
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let done = match arguments.command {
        Command::Split(arguments) => split::run(arguments),
        Command::Combine(arguments) => combine::run(arguments),
        Command::Restore(arguments) => return restore::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            let failure = KeyFailure::from(&refusal);
            say(&failure);
            exit_code(failure.class)
        }
    }
}

/// The exit codes of `sealvol`.
fn exit_code(class: FailureClass) -> ExitCode {
    ExitCode::from(match class {
        FailureClass::Transient => 1,
        FailureClass::CallerBug => 2,
        FailureClass::KeyUnusable | FailureClass::NotPermitted | FailureClass::WrongKeyOrTamper => {
            3
        }
        FailureClass::GoneForEver => 4,
    })
}

/// Tells what went wrong. That nobody listens is no reason to fail otherwise.
fn say(what: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "sealvol-keys: {what}");
}

/// Tells what was done.
fn tell(what: &str) {
    let _ = writeln!(io::stdout(), "{what}");
}

fn memory() -> Result<Arc<KeyMemory>, Refusal> {
    Ok(KeyMemory::new(Policy::default())?)
}

/// The same file, whatever the working directory.
fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path).map_err(|source| Refusal::system(path, source))
}

fn all_absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Refusal> {
    paths.iter().map(|path| absolute(path)).collect()
}

/// A set of shares as it is told.
fn set_text(set: [u8; 16]) -> Uuid {
    Uuid::from_bytes(set)
}

/// Files that are made, all or none: they go again unless they are kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a file that `write` fills, durable when this returns. Not by way of another name: what sticks are formatted with
    /// does not always know how to rename without writing over.
    fn add(
        &mut self,
        path: &Path,
        write: impl FnOnce(&mut std::fs::File) -> Result<(), KeyError>,
    ) -> Result<(), Refusal> {
        let directory = place::trusted_directory(path)?;
        let system = |source| Refusal::system(path, source);
        let mut file = place::create_private(path).map_err(system)?;
        self.0.push(path.to_owned());
        write(&mut file).map_err(|error| match error {
            KeyError::Write(source) => system(source),
            error => system(io::Error::other(error)),
        })?;
        file.sync_all().map_err(system)?;
        place::sync_directory(&directory)
    }

    /// All is well.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that led here is the one that is told.
            let _ = std::fs::remove_file(path);
        }
    }
}
