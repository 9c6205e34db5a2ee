//! The promises that the layout makes, kept by a test: who may import whom, where `unsafe` may stand, and what may not be left
//! lying about. ARCHITECTURE.md says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Our crates and the ones of ours that each may import, for any kind of dependency.
const IMPORTS: [(&str, &[&str]); 10] = [
    ("sealvol-audit", &[]),
    ("sealvol-crypto", &[]),
    ("sealvol-store", &[]),
    ("sealvol-nbd", &[]),
    ("sealvol-control", &[]),
    ("sealvol-kms", &["sealvol-control", "sealvol-crypto"]),
    ("sealvol-volume", &["sealvol-crypto", "sealvol-store"]),
    (
        "sealvol-daemon",
        &[
            "sealvol-audit",
            "sealvol-control",
            "sealvol-crypto",
            "sealvol-nbd",
            "sealvol-store",
            "sealvol-volume",
        ],
    ),
    ("sealvol-cli", &["sealvol-audit", "sealvol-control"]),
    ("sealvol-tests", &[]),
];

/// Crates of others that would break what one of ours promises, outside its tests.
const BANNED: [(&str, &[&str]); 5] = [
    ("sealvol-crypto", &["tokio", "rusqlite", "serde", "hyper"]),
    ("sealvol-store", &["tokio", "aes", "hkdf", "hyper"]),
    ("sealvol-volume", &["tokio", "rusqlite", "hyper"]),
    ("sealvol-nbd", &["tokio", "rustix", "libc", "futures-util"]),
    ("sealvol-cli", &["aes", "aes-gcm", "hkdf", "rusqlite"]),
];

/// The only files that may say `unsafe`: seven of the product, and one that calls a C library to be
/// compared with, in a program that is measured and never installed.
const UNSAFE: [&str; 8] = [
    "crates/crypto/src/locked/sys.rs",
    "crates/crypto/src/residue.rs",
    "crates/crypto/src/xts/avx2.rs",
    "crates/crypto/src/xts/avx512.rs",
    "crates/crypto/src/xts/schedule.rs",
    "crates/store/src/mapped.rs",
    "crates/store/src/sys.rs",
    "bench/cipher/src/rivals.rs",
];

/// Other implementations and directories that the table of promises names.
const NOT_OURS: [&str; 4] = ["xts-mode", "cryptography", "tests/", "tools/fuzz"];

const LONGEST_FILE: usize = 700;

/// Names for drawers: whatever is put there has a home by its own name.
const DRAWERS: [&str; 8] = [
    "utils", "util", "common", "helpers", "helper", "manager", "misc", "types",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Every file of ours with one of these endings, by its path in the repository, with its text.
fn sources(endings: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "tests", "tools", "bench", "systemd"]
        .iter()
        .map(|directory| root.join(directory))
        .collect();
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue; // a part that this checkout does not have
        };
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                // What the benchmark of the cipher was built into has files of others.
                if !path.ends_with("target") {
                    open.push(path);
                }
            } else if endings
                .iter()
                .any(|ending| path.to_string_lossy().ends_with(ending))
            {
                let text = std::fs::read_to_string(&path).expect("a text file");
                let name = path.strip_prefix(&root).expect("a path in the repository");
                found.push((name.to_string_lossy().into_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no file ends in {endings:?}");
    found.sort();
    found
}

/// What cargo knows of the workspace: its members, without what they depend on.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// (member, dependency, whether it is for tests only), for every dependency of every member.
fn dependencies() -> Vec<(String, String, bool)> {
    let metadata = metadata();
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            found.push((name(package), name(dependency), dependency["kind"] == "dev"));
        }
    }
    found
}

#[test]
fn each_crate_imports_only_what_its_place_allows() {
    let members: BTreeSet<_> = metadata()["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| package["name"].as_str().expect("a name").to_owned())
        .collect();
    let allowed = BTreeMap::from(IMPORTS);
    assert_eq!(
        members.iter().map(String::as_str).collect::<Vec<_>>(),
        allowed.keys().copied().collect::<Vec<_>>(),
        "the members of the workspace"
    );
    for (importer, imported, _) in dependencies() {
        if members.contains(&imported) {
            assert!(
                allowed[importer.as_str()].contains(&imported.as_str()),
                "{importer} must not import {imported}"
            );
        }
    }
}

#[test]
fn no_crate_depends_on_what_would_break_its_promise() {
    let banned = BTreeMap::from(BANNED);
    for (importer, imported, for_tests) in dependencies() {
        let banned = banned.get(importer.as_str()).copied().unwrap_or_default();
        assert!(
            for_tests || !banned.contains(&imported.as_str()),
            "{importer} must not depend on {imported} outside its tests"
        );
    }
}

#[test]
fn unsafe_stands_in_the_files_that_are_named_and_nowhere_else() {
    for (name, text) in sources(&[".rs"]) {
        if UNSAFE.contains(&name.as_str()) || name.ends_with("tests/architecture.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let says = code
                .split(|character: char| !character.is_alphanumeric() && character != '_')
                .any(|word| word == "unsafe");
            assert!(!says, "{name}:{}: unsafe: {line}", number + 1);
            assert!(
                !code.contains("allow(unsafe_code)"),
                "{name}:{}: {line}",
                number + 1
            );
        }
    }
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let words = [
        "todo!(",
        "unimplemented!(",
        "#[ignore",
        "FIXME",
        "XXX",
        "allow(dead_code)",
    ];
    for (name, text) in sources(&[".rs", ".py", ".sh", ".toml"]) {
        if name.ends_with("tests/architecture.rs") {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_bear() {
    for (name, text) in sources(&[".rs", ".py", ".sh"]) {
        let lines = text.lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{name} has {lines} lines, more than {LONGEST_FILE}: split it by subject"
        );
    }
}

#[test]
fn no_module_is_a_drawer() {
    for (name, _) in sources(&[".rs"]) {
        let path = Path::new(&name);
        for part in path.with_extension("").iter().skip(1) {
            let part = part.to_string_lossy();
            assert!(
                !DRAWERS
                    .iter()
                    .any(|drawer| part == *drawer || part.ends_with(&format!("_{drawer}"))),
                "{name}: put what is in '{part}' where its subject is"
            );
        }
    }
}

#[test]
fn every_file_begins_with_what_it_is() {
    for (name, text) in sources(&[".rs"]) {
        assert!(
            text.starts_with("//!"),
            "{name} has no module documentation"
        );
    }
}

#[test]
fn every_member_and_dependency_has_its_reason_beside_it() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let section = |from: &str, to: &str| {
        let start = text.find(from).unwrap_or_else(|| panic!("no {from}")) + from.len();
        let end = text[start..].find(to).unwrap_or_else(|| panic!("no {to}")) + start;
        text[start..end].to_owned()
    };
    for line in section("members = [", "\n]")
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        assert!(
            line.contains(" # ") || line.contains("\t# "),
            "a member without a reason: {line}"
        );
    }
    // A heading comment may carry the reason of a short block; a blank line ends it.
    let mut reason_above = false;
    for line in section("[workspace.dependencies]", "\n[").lines() {
        if line.trim().is_empty() {
            reason_above = false;
        } else if line.starts_with('#') {
            reason_above = true;
        } else {
            assert!(
                reason_above || line.contains(" # "),
                "a dependency without a reason: {line}"
            );
        }
    }
}

#[test]
fn errors_become_nbd_errnos_in_one_file_of_the_daemon() {
    let mut files = BTreeSet::new();
    for (name, text) in sources(&[".rs"]) {
        let production = text.split("#[cfg(test)]").next().unwrap_or_default();
        if name.starts_with("crates/daemon/src/") && production.contains("Errno::E") {
            files.insert(name);
        }
    }
    assert!(
        files
            .iter()
            .all(|name| name == "crates/daemon/src/export.rs"),
        "errnos are chosen in {files:?}"
    );
}

#[test]
fn the_name_of_a_test_is_a_sentence() {
    for (name, text) in sources(&[".rs"]) {
        if !name.starts_with("tests/") {
            continue; // beside the code, the module may carry half of the sentence
        }
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if !matches!(line, "#[test]" | "#[tokio::test]") {
                continue;
            }
            let signature = lines
                .find(|line| line.contains("fn "))
                .expect("a function after #[test]");
            let test = signature
                .split("fn ")
                .nth(1)
                .and_then(|rest| rest.split(['(', '<']).next())
                .expect("its name");
            assert!(
                test.split('_').count() >= 3 && !test.starts_with("test_"),
                "{name}: '{test}' does not say what holds"
            );
        }
    }
}

/// What stands in backquotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let sources = sources(&[".rs"]);
    let crates = metadata();
    let crates = crates["packages"].as_array().expect("packages").iter();
    let crates: Vec<_> = crates
        .filter_map(|package| package["name"].as_str()?.strip_prefix("sealvol-"))
        .collect();
    // A module of tests: its file's name, or its directory's.
    let of_module = |module: &str| {
        let file = format!("/{module}.rs");
        let directory = format!("/{module}/");
        let is_in = |name: &str| name.ends_with(&file) || name.contains(&directory);
        let found = sources.iter().filter(move |(name, _)| is_in(name));
        found.map(|(_, text)| text).collect::<Vec<_>>()
    };
    let text = std::fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let promises = text
        .split("\n## ")
        .find(|section| section.starts_with("What is promised"))
        .expect("the section of the promises");
    let rows = promises
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1);
    let mut tests = 0;
    for row in rows {
        let kept_by = row.rsplit(" | ").next().expect("a last column");
        assert!(
            quoted(kept_by).next().is_some(),
            "a promise that nothing keeps: {row}"
        );
        for name in quoted(kept_by) {
            let known = crates.contains(&name)
                || NOT_OURS.contains(&name)
                || !of_module(name).is_empty()
                || root().join(name).exists();
            assert!(name.contains("::") || known, "SECURITY.md: no `{name}`");
        }
    }
    let tampering = include_str!("tampering.rs");
    let head: Vec<_> = tampering
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect();
    for (file, text) in [("SECURITY.md", text), ("tampering.rs", head.join("\n"))] {
        for name in quoted(&text) {
            let Some((module, test)) = name.split_once("::") else {
                continue;
            };
            if module == "sealvol_tests" {
                continue; // the harness
            }
            let function = format!("fn {test}(");
            let found = of_module(module)
                .iter()
                .any(|text| text.contains(&function));
            assert!(found, "{file}: there is no test `{name}`");
            tests += 1;
        }
    }
    for name in quoted(&head.join("\n")).filter(|name| !name.contains("::") && name.contains('_')) {
        let function = format!("fn {name}(");
        assert!(tampering.contains(&function), "there is no test `{name}`");
        tests += 1;
    }
    assert!(tests > 15, "only {tests} tests are named");
}
