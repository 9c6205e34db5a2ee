//! The life of a daemon and its volumes under one key service; at each turn of it all of the daemon is searched.
//!
//! ```text
//! attached ─ used, idle ─ under load ─ attached anew ─ rewrapped ─ attach refused ─ re-keyed ─ revoked ─ detached ─ files
//! ```
//! One volume, the witness, is attached all the time and under `hold`: what came with it as its key came is found in each pass.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{Running, client, ours, run, wait_for};
use sealvol_tests::superblock::{edit_both, field};

use crate::image::script;
use crate::pattern::{Kind, Patterns};
use crate::scan::Place as Found;
use crate::services::KeyService;
use crate::watched::{Moment, Watched, random};

/// Volumes of both sector sizes: their names.
pub(crate) const VOLUMES: [&str; 2] = ["scan-512", "scan-4096"];

/// The volume that stays.
const WITNESS: &str = "witness";

/// What the daemon has to keep keys in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// What this kernel has.
    AsItIs,
    /// A kernel without secret memory.
    WithoutSecretMemory,
}

/// Leads a daemon through its life.
///
/// # Panics
/// If a key is found where none may be, or a control is not found.
pub(crate) fn with(service: &KeyService, protection: Protection) {
    needs_root("read another process's memory and registers");
    let place = Place::new();
    let config = place.file("sealvold.toml");
    std::fs::write(&config, service.configuration()).expect("a configuration");
    let mut command = match protection {
        Protection::AsItIs => Daemon::command(&place),
        Protection::WithoutSecretMemory => {
            let mut command = script("without_secret_memory.py");
            command
                .arg(ours("sealvold"))
                .args(Daemon::arguments(&place));
            command
        }
    };
    command.arg("--config").arg(&config);
    let watched = Watched::start(&place, service, command);
    let (found, _) = watched.key_memory();
    if protection == Protection::WithoutSecretMemory {
        assert_eq!(found, "mlock", "the protection of key memory");
    }
    if found == "mlock" {
        println!(
            "not claimed: with mlock, root reads keys in the arena; elsewhere there must be none"
        );
    }
    live(&watched, &place, service);
    watched.daemon.stop();
}

fn live(watched: &Watched<'_>, place: &Place, service: &KeyService) {
    let daemon = &watched.daemon;
    make(daemon, WITNESS, "4096", service);
    let uris = VOLUMES.map(|name| make(daemon, name, name.trim_start_matches("scan-"), service));
    assert_no_child(daemon);
    let witness = watched.behind(WITNESS);
    let [first, second] = VOLUMES.map(|name| watched.behind(name));
    let patterns = watched.patterns(&[&witness, &first, &second], Some(&witness));
    let keys = patterns
        .secrets()
        .iter()
        .filter(|secret| secret.kind == Kind::Key)
        .count();
    assert!(keys > 200, "only {keys} secrets to look for");
    watched.scan(&patterns, Moment::AtRest, "attached, not used");

    copy_both_ways(place, &uris);
    let mut clients = lingering(&uris);
    std::thread::sleep(Duration::from_secs(1));
    watched.scan(
        &patterns,
        Moment::AtRest,
        "used, clients connected and idle",
    );
    leave(&mut clients);

    under_load(watched, &patterns, &uris);
    for name in VOLUMES {
        daemon
            .sealvol(&["volume", "resize", name, "--size", "64M"])
            .succeeded();
        for _ in 0..5 {
            daemon.detach(name);
            daemon.attach(name);
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    watched.scan(
        &patterns,
        Moment::AtRest,
        "after load, resize and new attaches",
    );

    service.rotate(daemon);
    daemon.sealvol(&["key", "rewrap", VOLUMES[0]]).succeeded();
    // Wrapped by another version, whose material is looked for as well.
    let first = watched.behind(VOLUMES[0]);
    let patterns = watched.patterns(&[&witness, &first, &second], Some(&witness));
    watched.scan(&patterns, Moment::AtRest, "rewrapped");

    // Its key comes to the daemon, and then its superblock is found to be changed.
    let flip = |slot: &mut [u8]| slot[field::MAC] ^= 1;
    let meta = watched.meta(VOLUMES[1]);
    daemon.detach(VOLUMES[1]);
    edit_both(&meta, true, flip);
    daemon
        .sealvol(&["volume", "attach", VOLUMES[1]])
        .failed_with(3, &[VOLUMES[1]]);
    let refused = watched.patterns(&[&second], Some(&witness));
    watched.scan(
        &refused,
        Moment::Gone,
        "an attach was refused by what the key proves",
    );
    edit_both(&meta, true, flip);
    service.revoke(daemon);
    daemon
        .sealvol(&["volume", "attach", VOLUMES[1]])
        .failed_with(3, &[VOLUMES[1]]);
    watched.scan(
        &refused,
        Moment::Gone,
        "an attach was refused by the key service",
    );
    service.permit(daemon);
    daemon.attach(VOLUMES[1]);

    daemon
        .sealvol(&["volume", "rekey", VOLUMES[0], "--wait"])
        .succeeded();
    let renewed = watched.behind(VOLUMES[0]);
    assert_ne!(
        renewed.keys[0].bytes, first.keys[0].bytes,
        "another data key"
    );
    let present = watched.patterns(&[&witness, &renewed, &second], Some(&witness));
    watched.scan(&present, Moment::AtRest, "re-keyed: the new key");
    let former = watched.patterns(&[&first], Some(&witness));
    watched.scan(&former, Moment::Gone, "re-keyed: the old key");

    let enforce = [
        "volume",
        "on-revoke",
        VOLUMES[0],
        "enforce",
        "--every",
        "1s",
        "--grace",
        "1h",
    ];
    daemon.sealvol(&enforce).succeeded();
    service.revoke(daemon);
    wait_for("the volume to be detached", || {
        let shown = daemon.sealvol_json(&["volume", "show", VOLUMES[0]]);
        (shown["state"] == "available").then_some(())
    });
    let revoked = watched.patterns(&[&renewed], Some(&witness));
    watched.scan(&revoked, Moment::Gone, "revoked");
    watched.assert_no_key_is_written(
        &watched.patterns(&[&witness, &first, &second, &renewed], Some(&witness)),
    );
    service.permit(daemon);
    if !matches!(service, KeyService::Local) {
        // Last, and once: a debugger reads every page that could be there, and they are there from then on.
        watched
            .scan_core(&watched.patterns(&[&witness, &first, &second, &renewed], Some(&witness)));
    }

    for name in [VOLUMES[1], WITNESS] {
        daemon.detach(name);
    }
    let keys = &daemon.sealvol_json(&["status"])["key_memory"]["keys"];
    assert_eq!(keys, 0, "keys after the last detach");
    let all = watched.patterns(&[&witness, &first, &second, &renewed], None);
    watched.scan(&all, Moment::Gone, "detached");
}

/// What crosses the whole daemon: every byte of a volume written, synced and read by nbdcopy over four connections.
fn copy_both_ways(place: &Place, uris: &[String]) {
    let [content, copy] = ["content", "copy"].map(|name| place.file(name));
    let [content, copy] = [&content, &copy].map(|path| path.to_str().expect("a UTF-8 path"));
    std::fs::write(content, random(32 << 20)).expect("a file");
    for uri in uris {
        run("nbdcopy", &["--flush", "--connections=4", content, uri]).succeeded();
        run("nbdcopy", &["--connections=4", uri, copy]).succeeded();
        run("cmp", &[content, copy]).succeeded();
    }
}

/// Clients that have asked for everything there is to ask for, and stay.
fn lingering(uris: &[String]) -> Child {
    let mut clients = script("linger.py")
        .args(uris)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python");
    let mut line = String::new();
    BufReader::new(clients.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("a line");
    assert_eq!(line, "idle\n", "the clients failed");
    clients
}

fn leave(clients: &mut Child) {
    drop(clients.stdin.take());
    assert!(clients.wait().expect("their end").success());
}

fn under_load(watched: &Watched<'_>, patterns: &Patterns, uris: &[String]) {
    let mut fio = client("fio");
    fio.stdout(Stdio::null());
    for (name, uri) in VOLUMES.iter().zip(uris) {
        fio.args([
            &format!("--name={name}"),
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--size=16M",
            "--rw=randrw",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--iodepth=16",
            "--fsync=64",
            "--thread", // one process, so that its end ends the load
            "--time_based",
            "--runtime=3600",
        ]);
    }
    let mut load = Running::start(&mut fio);
    std::thread::sleep(Duration::from_secs(1));
    let rounds =
        std::env::var("SEALVOL_ROUNDS").map_or(5, |rounds| rounds.parse().expect("a number"));
    let (mut by_place, mut with_keys) = (BTreeMap::new(), 0);
    for number in 1..=rounds {
        let report = watched.scan(patterns, Moment::UnderLoad, &format!("under load {number}"));
        let found = report
            .by_place(|hit| patterns.kind(hit.piece) == Kind::Key && hit.place != Found::Arena);
        with_keys += usize::from(!found.is_empty());
        for (place, count) in found {
            *by_place.entry(place).or_insert(0) += count;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("under load: pieces of keys in {with_keys} of {rounds} passes");
    for (place, count) in by_place {
        println!("    {count:7} in {place}");
    }
    let ended = load.child().try_wait().expect("its status");
    assert!(
        ended.is_none(),
        "the load ended before the scans did: {ended:?}"
    );
}

/// An attached volume under the key service; its URI.
fn make(daemon: &Daemon<'_>, name: &str, sector: &str, service: &KeyService) -> String {
    let create = [
        "volume",
        "create",
        name,
        "--size",
        "32M",
        "--sector-size",
        sector,
        "--key",
        service.key(),
    ];
    daemon.sealvol(&create).succeeded();
    daemon.attach(name)
}

/// The key child ends before its key is used: there is nobody else to search.
#[track_caller]
fn assert_no_child(daemon: &Daemon<'_>) {
    let tasks = format!("/proc/{}/task", daemon.pid());
    for task in std::fs::read_dir(tasks).expect("its threads") {
        let children = task.expect("a thread").path().join("children");
        let children = std::fs::read_to_string(children).expect("its children");
        assert_eq!(children, "", "children of the daemon after an attach");
    }
}
