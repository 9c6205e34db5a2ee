//! The parts of the benchmark that can be wrong without a server: its arithmetic, its drawings, its list of rows. What it
//! measures is for `bench/run`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sealvol_tests::outcome::Outcome;
use sealvol_tests::programs::client;

fn bench() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench")
}

fn python(arguments: &[&str]) -> Outcome {
    let mut command = client("/usr/bin/python3");
    command
        .current_dir(bench())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(arguments);
    Outcome::of(&mut command).succeeded()
}

#[test]
fn medians_ratios_goals_and_drawings_are_right() {
    let said = python(&["-m", "unittest", "discover", "-s", "measure", "-t", "."]);
    assert!(said.stderr.contains("OK"), "{said}");
    assert!(!said.stderr.contains("Ran 0 tests"), "{said}");
}

#[test]
fn each_row_has_its_job_file_and_each_job_file_its_row() {
    let said = python(&["run", "--full", "--list"]);
    let job = |row: &str| row.split('.').next().unwrap_or_default().to_owned();
    let rows: BTreeSet<String> = said.stdout.lines().map(job).collect();
    let files = std::fs::read_dir(bench().join("jobs")).expect("bench/jobs");
    let files = files.map(|file| {
        let name = file.expect("an entry").file_name();
        let name = name.to_string_lossy();
        name.strip_suffix(".fio").expect("a job file").to_owned()
    });
    assert_eq!(rows, files.collect());
}
