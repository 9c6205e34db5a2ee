//! The systemd units: that systemd understands them, and how much they leave open to a daemon that has been taken over.

use std::path::{Path, PathBuf};

use sealvol_tests::programs::run;

/// `systemd-analyze security` counts what a unit leaves open, from 0 to 100; it prints a tenth of that. The unit has 7.
const MOST_EXPOSURE: &str = "10";

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../systemd")
        .join(name)
}

/// Copies of the units with a program that exists here in place of the installed one, which `verify` insists on.
fn verifiable(directory: &Path) -> Vec<PathBuf> {
    ["sealvold.service", "sealvold.socket", "sealvold-nbd.socket"]
        .map(|name| {
            let text = std::fs::read_to_string(unit(name)).expect("a unit");
            let copy = directory.join(name);
            std::fs::write(&copy, text.replace("/usr/bin/sealvol", "/bin/true --"))
                .expect("a copy");
            copy
        })
        .into()
}

#[test]
fn systemd_understands_every_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut arguments = vec!["verify".into(), "--man=no".into()];
    arguments.extend(verifiable(directory.path()));
    let outcome = run("systemd-analyze", &arguments).succeeded();
    let complaints: Vec<_> = outcome
        .stderr
        .lines()
        .filter(|line| line.contains("sealvol"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_daemon_taken_over_finds_little_to_do() {
    let service = unit("sealvold.service");
    let threshold = format!("--threshold={MOST_EXPOSURE}");
    let outcome = run(
        "systemd-analyze",
        &[
            "security",
            "--offline=true",
            "--no-pager",
            &threshold,
            service.to_str().expect("a UTF-8 path"),
        ],
    );
    assert_eq!(outcome.code, Some(0), "{outcome}");
}

#[test]
fn locked_memory_and_secret_memory_are_granted_by_name() {
    let text = std::fs::read_to_string(unit("sealvold.service")).expect("the service");
    for line in [
        "SystemCallFilter=@system-service memfd_secret",
        "LimitMEMLOCK=8M",
        "LimitCORE=0",
    ] {
        assert!(text.lines().any(|found| found == line), "no line '{line}'");
    }
}
