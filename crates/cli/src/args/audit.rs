//! `audit verify`: what it is told.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealvol_audit::{Anchor, BYTES, from_hex};

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that nobody has changed, dropped, moved or written anew a line of the audit log
    ///
    /// Needs no daemon when logs are named, and is best done on another machine, by a copy of the log.
    /// Without a verification key it finds whatever breaks the chain of lines; with the key also lines
    /// that somebody made anew from some place on; with an anchor also an end that was cut off; with where
    /// the TPM's index stands also an older log that was put back. Exit code 3 if something is found.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// A verification key of the log; again for each other time its chain was begun
    #[arg(long = "key", value_name = "FILE")]
    pub(crate) keys: Vec<PathBuf>,
    /// A record that `status` or the daemon's own log told once; as often as wanted
    #[arg(long = "anchor", value_name = "NUMBER:MAC")]
    pub(crate) anchors: Vec<Anchor>,
    /// Where the TPM's index for this log stands, as `tpm2_nvread INDEX | xxd -p -c 32` prints it
    #[arg(long, value_name = "HEX", value_parser = tpm_value)]
    pub(crate) tpm_value: Option<[u8; BYTES]>,
    /// The log, and before it what it was rotated into, oldest first [default: the daemon's]
    #[arg(value_name = "LOG")]
    pub(crate) logs: Vec<PathBuf>,
}

fn tpm_value(text: &str) -> Result<[u8; BYTES], String> {
    let digits = text.to_ascii_lowercase();
    from_hex(&digits).ok_or_else(|| "it is not 64 hexadecimal digits".to_owned())
}
