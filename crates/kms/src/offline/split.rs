//! `sealvol-keys split`: shares of a master key, from its file, from shares of it that were made before, or of a new one.
//!
//! What always holds: the key stays what it is, and so whatever gave it before still gives it, which is said; before any of them
//! is called done, the shares were read back from their files and found to give the key.

use std::path::PathBuf;

use sealvol_crypto::{KeyEncryptionKey, KeyError, SHARES_MAX, Share, ShareError, THRESHOLD_MIN};

use super::{Made, absolute, all_absolute, memory, set_text, tell};
use crate::Refusal;
use crate::local::{master_key, shares};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// How many of the shares give the key back
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u8).range(i64::from(THRESHOLD_MIN)..=i64::from(SHARES_MAX)))]
    threshold: u8,
    /// A file to make for a share; once for each share, from the threshold to ten
    #[arg(long, value_name = "FILE", required = true)]
    to: Vec<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The file with the master key
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
    /// A share of the master key; once for each, as many as are needed of it
    #[arg(long, value_name = "FILE")]
    from_share: Vec<PathBuf>,
    /// Make a new master key, which no file ever holds
    #[arg(long)]
    generate: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Refusal> {
    let Arguments {
        source,
        threshold,
        to,
    } = arguments;
    let to = all_absolute(&to)?;
    let memory = memory()?;
    let (key, afterwards) = if let Some(file) = source.master_key {
        let file = absolute(&file)?;
        let key = master_key::read_file(&file, &memory)?;
        let file = file.display();
        (
            key,
            format!(
                "{file} is the same key still: destroy it, with every copy, once the shares are where they belong."
            ),
        )
    } else if source.generate {
        let key = KeyEncryptionKey::generate(&memory).map_err(not_made)?;
        (
            key,
            "No file has the key itself: with fewer shares than that, all that it seals is lost."
                .to_owned(),
        )
    } else {
        let from = all_absolute(&source.from_share)?;
        let gathered = shares::gather(&from, &memory)?;
        let key = gathered.combine(&memory)?;
        let set = gathered.set().map(set_text).unwrap_or_default();
        (
            key,
            format!(
                "The key is the same, so the shares of the former set {set} still give it: destroy them, all of them, with every copy."
            ),
        )
    };
    let count = u8::try_from(to.len()).unwrap_or(u8::MAX);
    let made = key.split(&memory, threshold, count).map_err(not_split)?;
    let mut files = Made::default();
    for (share, path) in made.iter().zip(&to) {
        files.add(path, |file| share.write_to(file))?;
    }
    // Each of them, with as many of its neighbours as it takes.
    for some in to.windows(threshold.into()) {
        shares::gather(some, &memory)?.combine(&memory)?;
    }
    files.keep();
    tell_of(&made, &to, &afterwards);
    Ok(())
}

fn tell_of(shares: &[Share], to: &[PathBuf], afterwards: &str) {
    let (Some(first), count) = (shares.first(), shares.len()) else {
        return;
    };
    for (share, path) in shares.iter().zip(to) {
        tell(&format!(
            "share {} of {count}: {}",
            share.index(),
            path.display()
        ));
    }
    tell(&format!(
        "Set {}: any {} of these {count} give the master key.",
        set_text(first.set()),
        first.threshold()
    ));
    tell(afterwards);
}

fn not_split(error: ShareError) -> Refusal {
    match error {
        ShareError::Key(error) => not_made(error),
        error => Refusal::NotSplit {
            reason: error.to_string(),
        },
    }
}

fn not_made(error: KeyError) -> Refusal {
    match error {
        KeyError::Locked(error) => error.into(),
        error => Refusal::VolumeKey {
            reason: error.to_string(),
        },
    }
}
