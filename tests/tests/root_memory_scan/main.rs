//! A key that nobody finds: the memory of a real daemon, searched from outside as root, every mapping and every register.
//!
//! ```text
//!   freeze.py      stops all threads by ptrace and reads their registers
//!   this process   reads every mapping through /proc/PID/mem and searches all of it
//!   secrets_of.py  knows what to look for: keys, key schedules and MAC keys, made by Python of what it asks the key service for
//! ```
//!
//! What always holds: a pass says nothing unless it has found, in the same daemon at the same moment, the control that was planted
//! there in every form, the one at the end of each worker's stack, the one in freed memory, and the wrapped key, which came
//! from the key service as the key did; and nothing was out of reach but secret memory and the kernel's own pages. With `mlock` the
//! same pass must find the keys in the arena, and nowhere else: that shows what finding none elsewhere is worth.

mod child;
mod files;
mod image;
mod life;
mod pattern;
mod scan;
mod services;
mod told;
mod watched;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{self, needs_root};
use sealvol_tests::programs::{Running, client, ours, run, wait_for};

use image::source;
use life::{Protection, VOLUMES};
use pattern::{FORMS, Kind, Patterns, Secret};
use scan::{Place, Report};
use services::KeyService;
use watched::{Moment, Watched, behind, random};

/// Bytes that the control process loads into registers, in its own order: five general ones, eight masks, 32 vectors.
const REGISTER_BYTES: usize = 5 * 8 + 8 * 8 + 32 * 64;

/// What a daemon may lock in the test of the limit: one arena.
const ONE_ARENA: usize = 256 << 10;
/// Keys that one arena holds.
const KEYS_OF_ONE_ARENA: usize = 256;

#[test]
fn no_key_is_anywhere_outside_secret_memory() {
    life::with(&KeyService::Local, Protection::AsItIs);
}

#[test]
fn no_key_that_a_server_gave_is_anywhere_outside_secret_memory() {
    life::with(&KeyService::openbao(), Protection::AsItIs);
}

#[test]
fn no_key_that_aws_kms_gave_is_anywhere_outside_secret_memory() {
    life::with(&KeyService::aws(), Protection::AsItIs);
}

#[test]
fn without_secret_memory_keys_are_in_the_locked_arena_only() {
    life::with(&KeyService::Local, Protection::WithoutSecretMemory);
}

#[test]
fn without_secret_memory_keys_that_a_server_gave_are_in_the_locked_arena_only() {
    life::with(&KeyService::openbao(), Protection::WithoutSecretMemory);
}

#[test]
fn without_secret_memory_keys_that_aws_kms_gave_are_in_the_locked_arena_only() {
    life::with(&KeyService::aws(), Protection::WithoutSecretMemory);
}

#[test]
fn a_daemon_that_attaches_again_after_a_crash_keeps_no_key_outside() {
    needs_root("read another process's memory and registers");
    let place = place::Place::new();
    let daemon = Daemon::start(&place);
    let content = place.file("content");
    std::fs::write(&content, random(8 << 20)).expect("a file");
    for name in VOLUMES {
        let uri = daemon.volume(name, "64M");
        run("nbdcopy", &[text(&content), &uri]).succeeded();
    }
    daemon.kill();
    let service = KeyService::Local;
    let watched = Watched::start(&place, &service, Daemon::command(&place));
    for name in VOLUMES {
        let uri = watched.daemon.uri(name);
        wait_for("the volume to be attached again", || {
            (run("nbdinfo", &["--size", &uri]).code == Some(0)).then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(1));
    let behind = VOLUMES.map(|name| watched.behind(name));
    let patterns = watched.patterns(&[&behind[0], &behind[1]], Some(&behind[0]));
    watched.scan(&patterns, Moment::AtRest, "attached again");
    watched.daemon.stop();
}

#[test]
fn the_scan_finds_whatever_a_process_holds() {
    needs_root("read another process's memory and registers");
    let place = place::Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("held", "8M");
    let secrets = behind(&place, &KeyService::Local, &place.layer_files("meta")[0]).keys;
    let registers = random(REGISTER_BYTES);
    let mut all = secrets.clone();
    let loaded = registers.as_chunks::<16>().0.iter().enumerate();
    all.extend(loaded.map(|(number, bytes)| Secret {
        name: format!("register bytes from {}", number * 16),
        bytes: bytes.to_vec(),
        kind: Kind::Key,
    }));
    let patterns = Patterns::new(all);

    let copies: Vec<u8> = patterns
        .pieces()
        .iter()
        .filter(|piece| piece.secret < secrets.len())
        .flat_map(|piece| [&piece.bytes[..], b" "].concat())
        .collect();
    let (mut holder, copied) = hold(&place, &registers, &copies);
    let process = i32::try_from(holder.child().id()).expect("a process id");
    let report = Report::of(process, &patterns);

    let mut kinds = BTreeSet::new();
    for (kind, start) in &copied {
        kinds.insert(kind.as_str());
        let inside = *start..*start + copies.len() as u64;
        let found: BTreeSet<usize> = report
            .hits
            .iter()
            .filter(|hit| !matches!(hit.place, Place::Registers { .. }) && inside.contains(&hit.at))
            .map(|hit| hit.piece)
            .collect();
        let expected = patterns.pieces().iter().enumerate();
        let missed: Vec<_> = expected
            .filter(|(number, piece)| piece.secret < secrets.len() && !found.contains(number))
            .map(|(_, piece)| {
                format!(
                    "{} {}",
                    patterns.secrets()[piece.secret].name,
                    FORMS[piece.form]
                )
            })
            .collect();
        if kind == "secret" {
            assert_eq!(found.len(), 0, "secret memory was read");
            assert!(
                report
                    .unreadable
                    .iter()
                    .any(|mapping| mapping.start == *start)
            );
        } else {
            assert!(
                missed.is_empty(),
                "on {kind}: {} missed: {missed:?}",
                missed.len()
            );
        }
    }
    println!(
        "found all of {} pieces in each of {kinds:?}",
        found_pieces(&patterns, secrets.len())
    );
    for kind in ["heap", "freed", "closed", "stack"] {
        assert!(
            kinds.contains(kind),
            "nothing was held on {kind}: {kinds:?}"
        );
    }
    assert_registers_found(&report, &patterns, secrets.len());
    daemon.stop();
}

fn found_pieces(patterns: &Patterns, secrets: usize) -> usize {
    let pieces = patterns.pieces().iter();
    pieces.filter(|piece| piece.secret < secrets).count()
}

/// Starts the control process; gives the kinds of places it holds a copy in and their addresses.
fn hold(place: &place::Place, registers: &[u8], copies: &[u8]) -> (Running, Vec<(String, u64)>) {
    let [program, input] = ["holder", "held"].map(|name| place.file(name));
    let warnings = ["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"];
    Outcome::of(
        Command::new("cc")
            .args(warnings)
            .arg(&program)
            .arg(source("holder.c")),
    )
    .succeeded();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(input)
        .expect("a file");
    file.write_all(registers).expect("a written file");
    file.write_all(copies).expect("a written file");
    file.rewind().expect("a file");
    let mut holder = Running::start(Command::new(program).stdin(file).stdout(Stdio::piped()));
    let output = holder.child().stdout.take().expect("a pipe");
    let mut copied = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.expect("a line");
        if line == "ready" {
            return (holder, copied);
        }
        let words: Vec<_> = line.split(' ').collect();
        let [kind, start, _] = words[..] else {
            panic!("what is {line}?");
        };
        let start = u64::from_str_radix(start, 16).expect("an address");
        copied.push((kind.to_owned(), start));
    }
    panic!("the control process ended");
}

/// Every piece that the control process has loaded is found in the registers of one of its threads.
fn assert_registers_found(report: &Report, patterns: &Patterns, first: usize) {
    let found: BTreeSet<usize> = report
        .hits
        .iter()
        .filter(|hit| matches!(hit.place, Place::Registers { .. }))
        .map(|hit| hit.piece)
        .collect();
    let flags = std::fs::read_to_string("/proc/cpuinfo").expect("the processor");
    let (avx512, avx) = (flags.contains(" avx512bw"), flags.contains(" avx "));
    let is_loaded = |at: usize| match at.checked_sub(5 * 8) {
        None => true,
        Some(_) if avx512 => true,
        Some(at) => {
            // sixteen registers, of which the lower 32 or 16 bytes
            let (register, byte) = ((at.wrapping_sub(64)) / 64, (at.wrapping_sub(64)) % 64);
            at >= 64 && register < 16 && byte < if avx { 32 } else { 16 }
        }
    };
    let mut loaded = 0;
    for (number, piece) in patterns.pieces().iter().enumerate() {
        if piece.secret < first || FORMS[piece.form] != "raw" {
            continue;
        }
        let secret = &patterns.secrets()[piece.secret];
        let half = usize::from(secret.bytes[8..] == piece.bytes[..]) * 8;
        let at = (piece.secret - first) * 16 + half;
        if is_loaded(at) {
            loaded += 1;
            assert!(
                found.contains(&number),
                "register bytes {at} to {} were not found",
                at + 8
            );
        }
    }
    println!("found all of {loaded} pieces in registers");
}

#[test]
fn a_daemon_that_crashes_leaves_no_core() {
    needs_root("raise the limit of core dumps");
    let place = place::Place::new();
    let start = |command: &Command| {
        let mut unlimited = Command::new("prlimit");
        unlimited
            .arg("--core=unlimited:unlimited")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .current_dir(place.root());
        Running::start(&mut unlimited)
    };
    let mut control = start(Command::new("sleep").arg("60"));
    let is_there = || is_named(control.pid(), "sleep").then_some(());
    wait_for("the control to run", is_there);
    assert!(
        crash(&mut control),
        "nothing is dumped here at all, so that this test says nothing"
    );

    let mut daemon = start(&Daemon::command(&place));
    let socket = place.runtime().join("nbd.sock");
    wait_for("sealvold", || UnixStream::connect(&socket).ok());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid()));
    let limits = limits.expect("its limits");
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .expect("a limit of core dumps");
    let core: Vec<_> = core.split_whitespace().collect();
    assert_eq!(core, ["0", "0", "bytes"], "the limit of core dumps");
    assert!(!crash(&mut daemon), "a core was dumped");
}

/// Has a process abort; gives whether the kernel dumped a core.
fn crash(process: &mut Running) -> bool {
    kill_process(process.pid(), Signal::ABORT).expect("SIGABRT");
    let status = process.child().wait().expect("its end");
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    status.core_dumped()
}

fn is_named(pid: Pid, name: &str) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end() == name
}

#[test]
fn its_own_user_cannot_look_into_the_daemon() {
    needs_root("become another user");
    const NOBODY: u32 = 65534;
    let place = place::Place::new();
    // The build may lie where nobody else can go.
    for name in ["sealvold", "sealvol-keys"] {
        std::fs::copy(ours(name), place.file(name)).expect("a copy of the program");
    }
    run("chown", &["--recursive", "65534:65534", text(place.root())]).succeeded();
    let as_nobody = || {
        let mut command = client("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ]);
        command
    };
    let mut command = as_nobody();
    command
        .arg(place.file("sealvold"))
        .args(Daemon::arguments(&place));
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|ended| panic!("{ended}"));
    daemon.volume("closed", "8M");
    let control = Running::start(as_nobody().args(["sleep", "60"]));
    wait_for("the control to run", || {
        is_named(control.pid(), "sleep").then_some(())
    });

    for (pid, owner, readable) in [(control.pid(), NOBODY, true), (daemon.pid(), 0, false)] {
        let process = std::fs::metadata(format!("/proc/{pid}/status")).expect("its status");
        assert_eq!(
            process.uid(),
            owner,
            "who owns the files of a process that cannot be dumped"
        );
        for name in ["environ", "maps", "mem"] {
            let file = format!("if=/proc/{pid}/{name}");
            let outcome = Outcome::of(as_nobody().args(["dd", &file, "of=/dev/null", "count=0"]));
            assert_eq!(outcome.code == Some(0), readable, "{outcome}");
        }
    }
    daemon.stop();
}

#[test]
fn attach_is_refused_by_name_when_no_more_memory_may_be_locked() {
    needs_root("give a capability away");
    let place = place::Place::new();
    let limited = |bytes: usize| {
        let mut command = client("prlimit");
        command
            .arg(format!("--memlock={bytes}:{bytes}"))
            .args([
                "setpriv",
                "--bounding-set=-ipc_lock",
                "--inh-caps=-ipc_lock",
            ])
            .arg(ours("sealvold"))
            .args(Daemon::arguments(&place));
        Daemon::start_by(&place, command)
    };
    let daemon = limited(ONE_ARENA).unwrap_or_else(|ended| panic!("{ended}"));
    assert_cannot_lock_freely(daemon.pid());
    let names: Vec<_> = (0..=KEYS_OF_ONE_ARENA)
        .map(|number| format!("v{number}"))
        .collect();
    for name in &names {
        daemon
            .sealvol(&["volume", "create", name, "--size", "64K"])
            .succeeded();
    }
    let (last, others) = names.split_last().expect("names");
    for name in others {
        daemon.attach(name);
    }
    let attach = || daemon.sealvol(&["volume", "attach", last]);
    let refused = attach();
    println!("{refused}");
    assert!(matches!(refused.code, Some(1 | 3)), "{refused}");
    refused.says(&["RLIMIT_MEMLOCK is 262144", "LimitMEMLOCK="]);
    // What is attached is served, and room that is made is used.
    run("nbdinfo", &["--size", &daemon.uri("v0")]).succeeded();
    daemon.detach("v0");
    attach().succeeded();
    daemon.stop();

    // Less than one arena: nothing can be attached, and both the daemon and its status say why.
    match limited(ONE_ARENA / 4) {
        Err(ended) => {
            ended.says(&["RLIMIT_MEMLOCK is 65536", "LimitMEMLOCK="]);
        }
        Ok(daemon) => {
            assert_cannot_lock_freely(daemon.pid());
            daemon
                .sealvol(&["volume", "attach", "v0"])
                .says(&["RLIMIT_MEMLOCK is 65536", "LimitMEMLOCK="]);
            daemon.stop();
        }
    }
}

/// Root's capability to lock memory beyond the limit is gone: with it, no limit would hold and the test would say nothing.
#[track_caller]
fn assert_cannot_lock_freely(pid: Pid) {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .expect("its capabilities");
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).expect("a number");
    assert_eq!(
        capabilities >> CAP_IPC_LOCK & 1,
        0,
        "CAP_IPC_LOCK is still there"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
