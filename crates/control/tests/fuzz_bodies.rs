//! The fuzz targets' bodies on inputs from a fixed seed and on the kept corpus: what continuous integration runs of them.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use proptest::prelude::*;

/// Pieces of messages, so that random texts of them are understood now and then.
const WORDS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"name\"",
    "\"size\"",
    "\"right\"",
    "\"attach\"",
    "\"calls\"",
    "\"list_keys\"",
    "\"provider\"",
    "\"type\"",
    "\"local\"",
    "\"force\"",
    "true",
    "null",
    "1",
    "18446744073709551616",
    "-1",
    "1e9",
    "\"\\ud800\"",
    "\"\u{0}\"",
];

fn settings() -> ProptestConfig {
    ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::with_cases(500)
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn any_text_as_a_message(words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..40)) {
        bodies::messages(words.concat().as_bytes());
    }

    #[test]
    fn any_bytes_as_a_frame(
        version in 0_u32..3,
        length in prop_oneof![0_u32..100, any::<u32>()],
        json in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let frame = [&version.to_be_bytes()[..], &length.to_be_bytes(), &json].concat();
        bodies::frames(&frame);
        bodies::frames(&json);
    }

    #[test]
    fn any_text_as_a_name(text in "[0-9]{0,22}[.]?[0-9]{0,4} ?[kKmMgGtTpPiIbB:a-z-]{0,4}\\PC{0,4}") {
        bodies::names(text.as_bytes());
    }
}

type Body = fn(&[u8]);

#[test]
fn the_kept_corpus() {
    for (target, body) in [
        ("frames", bodies::frames as Body),
        ("messages", bodies::messages),
        ("names", bodies::names),
    ] {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let inputs: Vec<_> = std::fs::read_dir(&folder).expect(&folder).collect();
        assert!(!inputs.is_empty(), "{folder} is empty");
        for input in inputs {
            body(&std::fs::read(input.expect("an entry").path()).expect("an input"));
        }
    }
}
