//! `sealvol-keys combine`: the file of a master key, from shares of it.

use std::path::PathBuf;

use super::{Made, absolute, all_absolute, memory, set_text, tell};
use crate::Refusal;
use crate::local::shares;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A share of the master key; once for each, as many as are needed of it
    #[arg(long, value_name = "FILE", required = true)]
    share: Vec<PathBuf>,
    /// The file to make, with the 32 bytes of the master key
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Refusal> {
    let (from, to) = (all_absolute(&arguments.share)?, absolute(&arguments.to)?);
    let memory = memory()?;
    let gathered = shares::gather(&from, &memory)?;
    let key = gathered.combine(&memory)?;
    let mut files = Made::default();
    files.add(&to, |file| key.write_to(file))?;
    files.keep();
    let set = gathered.set().map(set_text).unwrap_or_default();
    tell(&format!(
        "{} is the master key of the shares of set {set}, whole: destroy it when it is not needed any more.",
        to.display()
    ));
    Ok(())
}
