//! What a fuzzer does with the text of a configuration file. It is there under `cfg(fuzzing)` and in this crate's own tests,
//! which run the same function on a fixed seed, and in no other build.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::config::Config;

/// `data` is the configuration file.
///
/// # Panics
/// If a configuration is taken with a number out of its range or a path that is relative.
pub fn config(data: &[u8]) {
    let file = memfd_create("config", MemfdFlags::CLOEXEC)
        .map(File::from)
        .expect("memory");
    file.set_permissions(Permissions::from_mode(0o600))
        .expect("ours");
    file.write_all_at(data, 0).expect("written");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let Ok(config) = Config::load(Some(&path), "/state".as_ref(), false) else {
        return;
    };
    assert!((1..=1024).contains(&config.workers));
    assert!((1..=120).contains(&config.key_deadline.as_secs()));
    assert!(config.key_child.is_absolute());
    assert!(config.backing.iter().all(|root| root.is_absolute()));
    assert!(config.providers.contains_key("local"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Pieces of a configuration, so that random texts of them are understood now and then.
    const WORDS: [&str; 18] = [
        "workers = ",
        "key-deadline-s = ",
        "key-child = ",
        "backing = [",
        "]",
        "\n",
        "[nbd]\n",
        "[rights]\n",
        "allow = [",
        "create = { uids = [0] }\n",
        "[providers.a]\n",
        "type = \"local\"\n",
        "\"/x\"",
        "\"x\"",
        "1",
        "0",
        "-1",
        ",",
    ];

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::with_cases(500)
        })]

        #[test]
        fn any_text_as_the_configuration(words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..12)) {
            super::config(words.concat().as_bytes());
        }
    }

    #[test]
    fn the_kept_corpus() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/config");
        let inputs: Vec<_> = std::fs::read_dir(folder).expect(folder).collect();
        assert!(!inputs.is_empty(), "{folder} is empty");
        for input in inputs {
            super::config(&std::fs::read(input.expect("an entry").path()).expect("an input"));
        }
    }
}
