//! The same search in files: what the daemon writes, and a core of it that a debugger makes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use sealvol_tests::evidence::files_under;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::client;

use crate::pattern::{FORMS, Kind, Patterns};

/// Bytes that are read at once.
const CHUNK: usize = 4 << 20;

/// More bytes than the longest form of a piece has.
const OVERLAP: usize = 64;

/// How often pieces of each secret were found in a file, by the secret's kind and name and the form.
pub(crate) type Found = BTreeMap<(Kind, String), usize>;

/// Searches one file whole.
pub(crate) fn search_file(path: &Path, patterns: &Patterns) -> Found {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found = Found::new();
    let mut bytes = vec![0; CHUNK + OVERLAP];
    let mut kept = 0;
    loop {
        let read = file.read(&mut bytes[kept..]).expect("a readable file");
        if read == 0 {
            return found;
        }
        let filled = &bytes[..kept + read];
        // Most of a sparse file is nothing.
        if filled.iter().any(|&byte| byte != 0) {
            patterns.search(filled, |at, piece| {
                let piece = &patterns.pieces()[piece];
                // What lies in the part that is kept whole is found with what follows it.
                if at + piece.bytes.len() > kept {
                    let secret = &patterns.secrets()[piece.secret];
                    let name = format!("{} ({})", secret.name, FORMS[piece.form]);
                    *found.entry((secret.kind, name)).or_default() += 1;
                }
            });
        }
        let end = kept + read;
        kept = OVERLAP.min(end);
        bytes.copy_within(end - kept..end, 0);
    }
}

/// Asserts that no key stands in anything that the daemon has written: its state directory, runtime directory and logs. `except`
/// is a file where the operator keeps one.
pub(crate) fn assert_no_key_is_written(place: &Place, patterns: &Patterns, except: Option<&Path>) {
    let mut all = Found::new();
    let mut searched = 0;
    for directory in [place.state(), place.runtime(), place.log()] {
        for path in files_under(&directory) {
            if Some(path.as_path()) == except {
                continue;
            }
            searched += 1;
            let found = search_file(&path, patterns);
            let keys: Vec<_> = found
                .iter()
                .filter(|((kind, _), _)| *kind == Kind::Key)
                .collect();
            assert!(keys.is_empty(), "{}: {keys:#?}", path.display());
            all.extend(found);
        }
    }
    assert!(
        all.keys().any(|(kind, _)| *kind == Kind::SameWay),
        "the wrapped key, which is on disk, was not found: the search says nothing"
    );
    println!("    no key in {searched} files that the daemon has written");
}

/// Has a debugger write a core of a process, all mappings of it, and gives what is found in it.
pub(crate) fn search_core(process: Pid, place: &Place, patterns: &Patterns) -> Found {
    let prefix = place.file("core");
    let made = Outcome::of(
        client("gcore")
            .arg("-a")
            .arg("-o")
            .arg(&prefix)
            .arg(process.to_string()),
    )
    .succeeded();
    let core = PathBuf::from(format!("{}.{process}", prefix.display()));
    let len = std::fs::metadata(&core)
        .unwrap_or_else(|_| panic!("no core: {made}"))
        .len();
    let found = search_file(&core, patterns);
    println!("    a core of {} MiB searched", len >> 20);
    std::fs::remove_file(core).expect("removed");
    found
}
