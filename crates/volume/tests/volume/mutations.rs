//! The list of mutations that `tools/mutate` tries fits the tree: each names code that is there and a test that is there.

use std::path::Path;
use std::process::Command;

#[test]
fn every_mutation_of_the_list_fits_the_tree_and_names_a_test() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/mutate");
    let checked = Command::new("python3")
        .arg(tool)
        .arg("--check")
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
