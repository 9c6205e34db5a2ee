//! Another data key for a volume: in use, at rest, with snapshots, cut short in every way; and what the old key opens after it.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, client, run, wait_for};
use serde_json::Value;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A volume `v` of 16 MiB with a pattern in it, attached; the pattern.
fn volume(daemon: &Daemon<'_>, place: &Place) -> Vec<u8> {
    daemon.volume("v", "16M");
    // The last MiB was never written.
    let mut content = pattern::bytes(7, 15 << 20);
    let file = place.file("content");
    std::fs::write(&file, &content).expect("written");
    run("nbdcopy", &["--flush", path(&file), &daemon.uri("v")]).succeeded();
    content.resize(16 << 20, 0);
    content
}

/// A whole export, as nbdcopy reads it.
fn content(daemon: &Daemon<'_>, place: &Place, name: &str) -> Vec<u8> {
    let file = place.file("copy");
    let _ = std::fs::remove_file(&file);
    run("nbdcopy", &[&daemon.uri(name), path(&file)]).succeeded();
    std::fs::read(&file).expect("the copy")
}

fn shown(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn job(daemon: &Daemon<'_>, id: &str) -> Value {
    daemon.sealvol_json(&["job", "show", id])
}

/// Begins a re-key that goes on beside the test; the number of its job.
fn begin(daemon: &Daemon<'_>, more: &[&str]) -> String {
    let arguments = [&["volume", "rekey", "v"], more].concat();
    daemon.sealvol_json(&arguments)["id"].to_string()
}

/// Waits until the job is so.
fn wait_until(daemon: &Daemon<'_>, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || {
        let job = job(daemon, id);
        is_so(&job).then_some(job)
    })
}

/// Waits until some of the copying is done, and not all of it.
fn wait_until_under_way(daemon: &Daemon<'_>, id: &str) {
    wait_until(daemon, id, "some of the copy", |job| {
        assert_ne!(job["state"], "done", "it was faster than its rate");
        job["bytes_done"].as_u64() > Some(1 << 20)
    });
}

/// The plain data key of the volume's one layer, by the tool that knows only the formats.
fn plain_key(place: &Place, name: &str) -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/plain-key");
    let (keys, out) = (place.state().join("keys"), place.file(name));
    let mut command = client("/usr/bin/python3");
    command.arg(tool).arg("--with-holes");
    for (option, path) in [
        ("--meta", place.layer_files("meta").remove(0)),
        ("--database", keys.join("local.db")),
        ("--master-key-file", keys.join("local.master")),
        ("--out", out.clone()),
    ] {
        command.arg(option).arg(path);
    }
    Outcome::of(&mut command).succeeded();
    out
}

/// How many blocks of all layers are known content under a key.
fn blocks_under(place: &Place, key: &Path, known: &Path) -> u64 {
    let data = place.layer_files("data");
    let mut arguments = vec![path(key), path(known)];
    arguments.extend(data.iter().map(|file| path(file)));
    let counted = check("blocks_under_key.py", &arguments);
    counted.stdout.trim().parse().expect("a number")
}

#[test]
fn a_volume_gets_another_key_under_load_and_the_old_one_opens_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let mut expected = volume(&daemon, &place);
    let known = place.file("content");
    let before = shown(&daemon, "v");
    daemon.detach("v");
    let old_key = plain_key(&place, "old.key");
    assert_eq!(blocks_under(&place, &old_key, &known), (15 << 20) / 4096);
    daemon.attach("v");
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();

    // Half of it is written anew, again and again, while it is copied; the first half is only read.
    let uri = format!("--uri={}", daemon.uri("v"));
    let load = std::thread::spawn(move || {
        let arguments = [
            "--name=load",
            "--ioengine=nbd",
            &uri,
            "--offset=8M",
            "--size=7M",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--fsync=32",
            "--loops=3",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
        ];
        run("fio", &arguments).succeeded();
    });
    let rekey = ["volume", "rekey", "v", "--key", "local:other", "--wait"];
    let watched = daemon.sealvol(&rekey).succeeded();
    load.join().expect("fio verified what it wrote");
    let lines: Vec<Value> = watched
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON lines, for no terminal is there"))
        .collect();
    let last = lines.last().expect("a last word");
    assert_eq!(last["state"], "done", "{last}");
    let result = &last["result"]["rekey"];
    assert_eq!(result["old_keys_open"], serde_json::json!([]));
    assert_eq!(
        result["old_data_keys"],
        serde_json::json!([before["layers"][0]["data_key"]])
    );

    let after = shown(&daemon, "v");
    assert_eq!(
        (&after["depth"], &after["key"]),
        (&1.into(), &"local:other".into())
    );
    assert_ne!(after["key_id"], before["key_id"]);
    assert_eq!(after["layers"][0]["data_key"], result["data_key"]);
    assert_ne!(result["data_key"], result["old_data_keys"][0]);
    let read = content(&daemon, &place, "v");
    assert!(read[..8 << 20] == expected[..8 << 20], "what nobody wrote");
    expected[8 << 20..15 << 20].copy_from_slice(&read[8 << 20..15 << 20]);
    assert!(read == expected, "and what was never written");

    // Nothing is left of it on disk, and it needs nothing of it.
    assert_eq!(place.layer_files("data").len(), 1);
    assert_eq!(blocks_under(&place, &old_key, &known), 0);
    daemon.detach("v");
    let new_key = plain_key(&place, "new.key");
    assert_ne!(std::fs::read(&new_key).ok(), std::fs::read(&old_key).ok());
    std::fs::write(&known, &expected).expect("written");
    assert!(blocks_under(&place, &new_key, &known) >= (15 << 20) / 4096);
    daemon.stop();
    let daemon = Daemon::start(&place);
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected, "after a restart");
    let record = place.audit().into_iter().find(|record| {
        record["operation"] == "rekey"
            && record["result"]
                .as_str()
                .is_some_and(|text| text.contains("still open is: nothing"))
    });
    assert!(record.is_some(), "{:?}", place.audit());
    let listed = daemon.sealvol_json(&["job", "list"]);
    assert_eq!(listed["jobs"][0]["state"], "done");
    assert!(listed["jobs"][0]["ended"].is_string());
}

#[test]
fn a_volume_that_nobody_has_attached_gets_another_key_too() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    daemon.detach("v");
    let old_key = plain_key(&place, "old.key");
    daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    let after = shown(&daemon, "v");
    assert_eq!(
        (&after["state"], &after["depth"]),
        (&"available".into(), &1.into())
    );
    assert_eq!(blocks_under(&place, &old_key, &place.file("content")), 0);
    assert_eq!(place.layer_files("data").len(), 1);
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected);
    // One of which nothing was ever written has nothing to be copied.
    daemon
        .sealvol(&["volume", "create", "empty", "--size", "1T"])
        .succeeded();
    daemon
        .sealvol(&["volume", "rekey", "empty", "--wait"])
        .succeeded();
    assert_eq!(shown(&daemon, "empty")["depth"], 1);
    daemon.stop();
}

#[test]
fn snapshots_keep_their_keys_and_are_named_at_the_end() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    let old = shown(&daemon, "v")["layers"][0]["data_key"].clone();
    daemon
        .sealvol(&["snapshot", "create", "v@before"])
        .succeeded();
    let id = begin(&daemon, &["--rate", "4M"]);
    wait_until_under_way(&daemon, &id);
    // And one in the middle of it.
    daemon
        .sealvol(&["snapshot", "create", "v@between"])
        .succeeded();
    let last = daemon.sealvol(&["job", "watch", &id]).succeeded();
    let last: Value =
        serde_json::from_str(last.stdout.lines().last().expect("a last word")).expect("JSON");
    let opened = serde_json::json!([
        { "name": "v@before", "data_key": old },
        { "name": "v@between", "data_key": old },
    ]);
    assert_eq!(last["result"]["rekey"]["old_keys_open"], opened, "{last}");
    assert_eq!(shown(&daemon, "v")["depth"], 1);
    assert!(content(&daemon, &place, "v") == expected);
    for name in ["v@before", "v@between"] {
        daemon.attach(name);
        assert!(content(&daemon, &place, name) == expected, "{name}");
        daemon.detach(name);
    }
    // The next one has to copy only the new layer; what the snapshots need is named again.
    let last = daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    let last: Value =
        serde_json::from_str(last.stdout.lines().last().expect("a last word")).expect("JSON");
    let opened = &last["result"]["rekey"]["old_keys_open"];
    assert_eq!(opened.as_array().map(Vec::len), Some(1), "{last}");
    assert_eq!(
        opened[0]["name"], "v@between",
        "its newest layer is of the first re-key: {last}"
    );
    daemon.attach("v@between");
    assert!(content(&daemon, &place, "v@between") == expected);
    daemon.stop();
}

#[test]
fn a_cancelled_rekey_leaves_its_layer_and_another_one_begins_anew() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    let id = begin(&daemon, &["--rate", "1M"]);
    wait_until_under_way(&daemon, &id);
    assert_eq!(job(&daemon, &id)["rate_max"], 1 << 20);
    daemon
        .sealvol(&["volume", "rekey", "v"])
        .failed_with(5, &["volume v", &format!("job {id}"), "job cancel"]);
    let cancelled = daemon.sealvol_json(&["job", "cancel", &id]);
    assert_eq!(cancelled["state"], "cancelled");
    daemon
        .sealvol(&["job", "cancel", &id])
        .failed_with(5, &["it has ended already"]);
    daemon
        .sealvol(&["job", "watch", &id])
        .failed_with(1, &["cancelled"]);
    assert_eq!(shown(&daemon, "v")["depth"], 2, "its layer stays");
    assert!(content(&daemon, &place, "v") == expected);
    daemon.stop();
    let daemon = Daemon::start(&place);
    wait_for("the volume", || {
        (shown(&daemon, "v")["state"] == "attached").then_some(())
    });
    assert!(content(&daemon, &place, "v") == expected, "after a restart");
    daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    assert_eq!(shown(&daemon, "v")["depth"], 1);
    assert!(
        content(&daemon, &place, "v") == expected,
        "under the third key"
    );
    daemon.stop();
}

#[test]
fn a_rekey_goes_on_after_a_stop_and_a_detach_holds_it_until_somebody_says_so() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    let id = begin(&daemon, &["--rate", "1M"]);
    wait_until_under_way(&daemon, &id);
    daemon.stop();
    let daemon = Daemon::start(&place);
    wait_until(&daemon, &id, "the job", |job| job["state"] == "running");
    daemon.detach("v");
    let waits = wait_until(&daemon, &id, "the job to wait", |job| {
        job["state"] == "waiting"
    });
    let reason = waits["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("detached before its re-key was done"),
        "{reason}"
    );
    let failures = daemon.sealvol_json(&["status"])["failures"].to_string();
    assert!(failures.contains(&format!("job {id}")), "{failures}");
    daemon
        .sealvol(&["volume", "delete", "v"])
        .failed_with(5, &["volume v", &format!("job {id}")]);
    // Attached again it goes on; and so it does, detached, when it is asked for once more.
    daemon.attach("v");
    wait_until(&daemon, &id, "the job", |job| job["state"] == "running");
    assert!(content(&daemon, &place, "v") == expected, "meanwhile");
    daemon.detach("v");
    wait_until(&daemon, &id, "the job to wait", |job| {
        job["state"] == "waiting"
    });
    assert_eq!(begin(&daemon, &[]), id, "the same job");
    wait_until(&daemon, &id, "the job", |job| job["state"] == "running");
    // And somebody who attaches it in the middle of that is not held up.
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected);
    daemon.detach("v");
    daemon.sealvol(&["job", "watch", &id]).succeeded();
    assert_eq!(shown(&daemon, "v")["depth"], 1);
    assert_eq!(place.layer_files("data").len(), 1);
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected, "at the end");
    daemon.stop();
}

#[test]
fn what_cannot_begin_leaves_nothing_behind() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    let before = shown(&daemon, "v");
    daemon
        .sealvol(&["volume", "rekey", "v", "--key", "local:nowhere"])
        .failed_with(4, &["local:nowhere"]);
    daemon
        .sealvol(&["volume", "rekey", "v", "--key", "elsewhere:default"])
        .failed_with(4, &["elsewhere", "not configured"]);
    daemon
        .sealvol(&["volume", "rekey", "v", "--rate", "512K"])
        .failed_with(2, &["1048576"]);
    daemon
        .sealvol(&["volume", "rekey", "w"])
        .failed_with(4, &["volume w"]);
    daemon
        .sealvol(&["job", "show", "1"])
        .failed_with(4, &["job 1", "job list"]);
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "attach", "v", "--read-only"])
        .succeeded();
    daemon
        .sealvol(&["volume", "rekey", "v"])
        .failed_with(5, &["volume v", "read-only"]);
    daemon.detach("v");
    daemon.attach("v");
    let after = shown(&daemon, "v");
    assert_eq!(after["layers"][0]["id"], before["layers"][0]["id"]);
    assert_eq!(after["key"], before["key"]);
    assert_eq!(place.layer_files("meta").len(), 1, "no files");
    assert!(content(&daemon, &place, "v") == expected);
    let listed = daemon.sealvol_json(&["job", "list"]);
    assert_eq!(listed["jobs"], serde_json::json!([]));
    daemon.stop();
}

#[test]
fn a_key_service_that_refuses_half_way_holds_it_and_loses_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = volume(&daemon, &place);
    daemon.detach("v");
    let id = begin(&daemon, &["--rate", "1M"]);
    wait_until_under_way(&daemon, &id);
    daemon.stop();
    let master = place.state().join("keys/local.master");
    let away = place.file("away");
    std::fs::rename(&master, &away).expect("moved");
    let daemon = Daemon::start(&place);
    let waits = wait_until(&daemon, &id, "the job to wait", |job| {
        job["state"] == "waiting"
    });
    let reason = waits["reason"].as_str().expect("a reason");
    assert!(reason.contains("local.master"), "{reason}");
    assert_eq!(shown(&daemon, "v")["depth"], 2);
    std::fs::rename(&away, &master).expect("moved back");
    daemon.sealvol(&["job", "watch", &id]).succeeded();
    assert_eq!(shown(&daemon, "v")["depth"], 1);
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected);
    daemon.stop();
}
