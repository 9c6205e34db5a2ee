//! What the key child holds, for as long as it lives: stopped when it is about to hand a key over, or a backup of all, and at its
//! end.
//!
//! It is given no secret memory here, so that its arena is searched too, and can be told from the rest.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{Place as Directory, needs_root};
use sealvol_tests::programs::ours;
use sealvol_tests::recovery::RecoveryKey;

use crate::image::{Frozen, script, source};
use crate::pattern::{FORMS, Kind, Patterns, Secret};
use crate::scan::{Place, Report};
use crate::services::KeyService;
use crate::watched::{assert_searched, behind, control, in_every_form};

/// How many pieces were found of keys, by place and form.
type Exposure = BTreeMap<(Place, &'static str), usize>;

/// What was found in a key child that unwraps one key.
#[derive(Default)]
struct Found {
    /// Before each system call from its first connection on.
    between: Vec<Exposure>,
    at_hand_over: Exposure,
    at_end: Exposure,
}

/// What a key child is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The key of a volume.
    Attach,
    /// All keys, and the master key, for a recovery key.
    Backup,
}

/// Where the embedded key service has its master key from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MasterKey {
    AsItIs,
    /// Two of three shares. The file stays, for the scanner alone.
    Shares,
}

fn searched(service: &KeyService, asked: Asked, master_key: MasterKey) -> Found {
    needs_root("read another process's memory and registers");
    let place = Directory::new();
    let directory = place.file("child");
    std::fs::create_dir(&directory).expect("a directory");
    let traced = place.file("traced-keys");
    let [tracer, program] = [source("hold_child.py"), ours("sealvol-keys")];
    let words = [&tracer, &directory, &program].map(|path| text(path));
    let line = format!("#!/bin/sh\nexec /usr/bin/python3 -B {}\n", words.join(" "));
    std::fs::write(&traced, line).expect("a file");
    std::fs::set_permissions(&traced, Permissions::from_mode(0o755)).expect("a changed mode");
    let text = format!("key-child = {traced:?}\n{}", service.configuration());
    let mut daemon = start(&place, &text);
    daemon
        .sealvol(&[
            "volume",
            "create",
            "held",
            "--size",
            "8M",
            "--key",
            service.key(),
        ])
        .succeeded();

    let shares = match master_key {
        MasterKey::AsItIs => Vec::new(),
        MasterKey::Shares => {
            daemon.stop();
            let shares = split(&place);
            let database = place.state().join("keys/local.db");
            let provider = format!(
                "[providers.local]\ntype = \"local\"\ndatabase = {database:?}\nmaster-key = {{ shares = {shares:?} }}\n"
            );
            daemon = start(&place, &(text + &provider));
            shares
        }
    };

    let control = control();
    let planted = in_every_form(&control);
    std::fs::write(directory.join("control"), planted.as_encoded_bytes()).expect("a file");
    let mut secrets = vec![control];
    let behind = behind(&place, service, &place.layer_files("meta")[0]);
    if asked == Asked::Attach {
        secrets.push(behind.wrapped);
    }
    secrets.extend(behind.keys);
    secrets.extend(shares.iter().map(|share| Secret {
        name: format!("the value of {}", share.display()),
        bytes: std::fs::read(share).expect("a share")[56..88].to_vec(),
        kind: Kind::Key,
    }));
    let patterns = Patterns::new(secrets);
    std::fs::write(directory.join("armed"), "").expect("a file");
    let found = std::thread::scope(|scope| {
        let asking = scope.spawn(|| match asked {
            Asked::Attach => drop(daemon.attach("held")),
            Asked::Backup => {
                let recovery_key = RecoveryKey::new(&place, "recovery");
                recovery_key.back_up(&daemon, &place.file("keys.backup"));
            }
        });
        let mut found = Found::default();
        let mut calls = 0;
        loop {
            let next = [
                format!("call.{calls}"),
                "hand-over".to_owned(),
                "end".to_owned(),
            ];
            let (moment, frozen) = Frozen::at_one_of(&next, &directory);
            let report = Report::of_frozen(frozen, &patterns);
            assert_searched(&report, &patterns);
            let exposure = exposure(&report, &patterns);
            match moment {
                0 => {
                    calls += 1;
                    found.between.push(exposure);
                }
                1 => {
                    if asked == Asked::Attach {
                        assert_wrapped_key_found(&report, &patterns);
                    }
                    found.at_hand_over = exposure;
                }
                _ => {
                    found.at_end = exposure;
                    break;
                }
            }
        }
        asking.join().expect("it is done");
        found
    });
    found.print(service);
    daemon.stop();
    found
}

fn start<'a>(place: &'a Directory, configuration: &str) -> Daemon<'a> {
    let config = place.file("sealvold.toml");
    std::fs::write(&config, configuration).expect("a file");
    let mut command = script("without_secret_memory.py");
    command.arg(ours("sealvold")).args(Daemon::arguments(place));
    command.arg("--config").arg(&config);
    Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"))
}

/// Three shares of the embedded key service's master key, of which two are needed.
fn split(place: &Directory) -> Vec<PathBuf> {
    let shares: Vec<_> = ["share.1", "share.2", "share.3"]
        .map(|name| place.file(name))
        .into();
    let mut command = Command::new(ours("sealvol-keys"));
    command.args(["split", "--threshold", "2", "--master-key"]);
    command.arg(place.state().join("keys/local.master"));
    for share in &shares {
        command.arg("--to").arg(share);
    }
    Outcome::of(&mut command).succeeded();
    shares
}

impl Found {
    /// What the manual of security states.
    fn print(&self, service: &KeyService) {
        let key = service.key();
        let exposed = self
            .between
            .iter()
            .filter(|exposure| !exposure.is_empty())
            .count();
        println!(
            "{key}: keys in {exposed} of {} looks before the hand-over",
            self.between.len()
        );
        let mut most = Exposure::new();
        for (place, count) in self.between.iter().flatten() {
            let most = most.entry(place.clone()).or_default();
            *most = (*most).max(*count);
        }
        for (moment, exposure) in [
            ("before", &most),
            ("hand-over", &self.at_hand_over),
            ("end", &self.at_end),
        ] {
            for ((place, form), count) in exposure {
                println!("    {moment}: {count} pieces of keys in {place} ({form})");
            }
        }
    }
}

fn exposure(report: &Report, patterns: &Patterns) -> Exposure {
    let mut exposure = Exposure::new();
    for hit in &report.hits {
        if patterns.kind(hit.piece) == Kind::Key {
            let form = FORMS[patterns.pieces()[hit.piece].form];
            *exposure.entry((hit.place.clone(), form)).or_default() += 1;
        }
    }
    exposure
}

/// What the daemon has sent together with the question is still there, or the search says nothing.
fn assert_wrapped_key_found(report: &Report, patterns: &Patterns) {
    let found = report
        .hits
        .iter()
        .any(|hit| patterns.kind(hit.piece) == Kind::SameWay);
    assert!(found, "the wrapped key was not found in the child");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Whether it was found in the arena, decoded.
fn in_arena(((place, form), _): (&(Place, &'static str), &usize)) -> bool {
    *place == Place::Arena && *form == "raw"
}

#[test]
fn the_key_child_ends_with_no_key_in_its_memory() {
    let found = searched(&KeyService::Local, Asked::Attach, MasterKey::AsItIs);
    assert_in_arena_alone(&found);
}

#[test]
fn of_shares_and_the_master_key_that_they_give_nothing_is_outside_the_key_childs_locked_memory() {
    let found = searched(&KeyService::Local, Asked::Attach, MasterKey::Shares);
    assert_in_arena_alone(&found);
}

/// Keys were in the arena when one was handed over, and nowhere else; and nowhere at the end.
#[track_caller]
fn assert_in_arena_alone(found: &Found) {
    assert!(!found.at_hand_over.is_empty(), "no key, nowhere");
    assert!(
        found.at_hand_over.iter().all(in_arena),
        "{:#?}",
        found.at_hand_over
    );
    assert!(found.at_end.is_empty(), "{:#?}", found.at_end);
}

#[test]
fn the_key_child_has_the_master_key_in_its_arena_only_when_it_writes_a_backup() {
    let found = searched(&KeyService::Local, Asked::Backup, MasterKey::AsItIs);
    assert_in_arena_alone(&found);
}

#[test]
fn what_a_server_answers_is_out_of_the_key_childs_memory_before_the_key_is_handed_over() {
    let found = searched(&KeyService::openbao(), Asked::Attach, MasterKey::AsItIs);
    assert_text_alone_was_outside(&found);
}

#[test]
fn what_aws_kms_answers_is_out_of_the_key_childs_memory_before_the_key_is_handed_over() {
    // By AWS's own SDK, which decodes it in ordinary memory: between two system calls, when it can't be looked at.
    let found = searched(&KeyService::aws(), Asked::Attach, MasterKey::AsItIs);
    assert_text_alone_was_outside(&found);
}

/// Text of TLS and HTTP was outside the arena for a while, decoded nothing; and nothing at all from the hand-over on.
#[track_caller]
fn assert_text_alone_was_outside(found: &Found) {
    let met: Vec<_> = found.between.iter().flatten().collect();
    assert!(
        met.iter().any(|met| !in_arena(*met)),
        "the answer was never met: it was not looked for in time"
    );
    let decoded = |((_, form), _): &&(&(Place, &'static str), &usize)| !form.starts_with("base64");
    let decoded: Vec<_> = met.iter().filter(decoded).collect();
    assert!(decoded.iter().all(|met| in_arena(**met)), "{decoded:#?}");
    assert_in_arena_alone(found);
}
