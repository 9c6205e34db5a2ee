//! The fuzz targets' bodies on inputs from a fixed seed and on the kept corpus: what continuous integration runs of them.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use proptest::prelude::*;

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
    fn any_bytes_as_a_wrapped_key(data in prop::collection::vec(any::<u8>(), 0..200)) {
        bodies::wrapped_key(&data);
        bodies::wrapped_key(&[b"SVwk\x01", &data[..]].concat());
    }

    #[test]
    fn any_change_of_a_wrapped_key(at in any::<u8>(), change in prop::collection::vec(any::<u8>(), 0..8)) {
        bodies::wrapped_key(&[&[0, at], &change[..]].concat());
    }

    #[test]
    fn any_bytes_as_a_share(data in prop::collection::vec(any::<u8>(), 0..140)) {
        bodies::share(&data);
        bodies::share(&[b"SVss\x01", &data[..]].concat());
    }

    #[test]
    fn any_change_of_a_share(sums in 0..2_u8, at in 0..120_u8, change in prop::collection::vec(any::<u8>(), 0..8)) {
        bodies::share(&[&[sums, at], &change[..]].concat());
    }

    #[test]
    fn any_pairs_as_a_context(texts in prop::collection::vec("[ab\u{0}\u{1}]{0,3}", 0..12)) {
        let data: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
        bodies::context(&data.join(&0xff));
    }
}

type Body = fn(&[u8]);

#[test]
fn the_kept_corpus() {
    for (target, body) in [
        ("context", bodies::context as Body),
        ("share", bodies::share),
        ("wrapped_key", bodies::wrapped_key),
    ] {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let inputs: Vec<_> = std::fs::read_dir(&folder).expect(&folder).collect();
        assert!(!inputs.is_empty(), "{folder} is empty");
        for input in inputs {
            body(&std::fs::read(input.expect("an entry").path()).expect("an input"));
        }
    }
}
