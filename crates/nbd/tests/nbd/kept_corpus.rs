//! The fuzz targets' bodies on the inputs that are kept because each reaches something that the others don't.

use crate::bodies;

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let inputs: Vec<_> = std::fs::read_dir(&folder)
        .expect(&folder)
        .map(|entry| std::fs::read(entry.expect("an entry").path()).expect("an input"))
        .collect();
    assert!(!inputs.is_empty(), "{folder} is empty");
    inputs
}

#[test]
fn handshakes_that_are_kept() {
    for input in inputs("handshake") {
        let Some((&step, data)) = input.split_first() else {
            continue;
        };
        let whole = bodies::handshake(data, usize::MAX);
        assert_eq!(whole, bodies::handshake(data, usize::from(step)));
    }
}

#[test]
fn transmissions_that_are_kept() {
    for input in inputs("transmission") {
        if let Some((terms, data)) = input.split_first_chunk() {
            bodies::transmission(data, u16::from_be_bytes(*terms));
        }
    }
}
