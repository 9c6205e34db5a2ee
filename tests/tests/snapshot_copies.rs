//! `snapshot copy`: under another key nothing of the copy is the source's, block or key; under the same one no data moves; and
//! neither changes the source.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, client, run, wait_for};
use serde_json::Value;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

/// Of each layer of a volume, from the top down.
fn of_layers(volume: &Value, field: &str) -> Vec<String> {
    let layers = volume["layers"].as_array().expect("layers").iter();
    layers.map(|layer| text(&layer[field])).collect()
}

fn layer_file(place: &Place, layer: &str, name: &str) -> PathBuf {
    place.state().join("layers").join(layer).join(name)
}

/// The plain data key of a volume of one layer, by the tool that knows only the formats.
fn plain_key(place: &Place, volume: &Value) -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/plain-key");
    let (keys, out) = (place.state().join("keys"), place.file("old.key"));
    let mut command = client("/usr/bin/python3");
    command.arg(tool).arg("--with-holes");
    for (option, path) in [
        (
            "--meta",
            layer_file(place, &of_layers(volume, "id")[0], "meta"),
        ),
        ("--database", keys.join("local.db")),
        ("--master-key-file", keys.join("local.master")),
        ("--out", out.clone()),
    ] {
        command.arg(option).arg(path);
    }
    Outcome::of(&mut command).succeeded();
    out
}

/// How many blocks of a volume's layers are known content under a key.
fn blocks_under(place: &Place, volume: &Value, key: &Path, known: &Path) -> u64 {
    let layers = of_layers(volume, "id");
    let data: Vec<PathBuf> = layers
        .iter()
        .map(|layer| layer_file(place, layer, "data"))
        .collect();
    let mut arguments = vec![path(key), path(known)];
    arguments.extend(data.iter().map(|file| path(file)));
    let counted = check("blocks_under_key.py", &arguments);
    counted.stdout.trim().parse().expect("a number")
}

/// Whether any superblock of a volume's layers has a record of a data key.
fn has_record(place: &Place, volume: &Value, data_key: &str) -> bool {
    let digits: Vec<u8> = data_key.bytes().filter(|&digit| digit != b'-').collect();
    let key: Vec<u8> = digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex digits");
            u8::from_str_radix(pair, 16).expect("hex digits")
        })
        .collect();
    of_layers(volume, "id").iter().any(|layer| {
        let meta = std::fs::read(layer_file(place, layer, "meta")).expect("superblocks");
        meta.windows(key.len()).any(|window| window == key)
    })
}

/// A volume `v` of 16 MiB, attached, and its snapshot `v@s` of 12 MiB of data; what that holds is the file `known`.
fn source(daemon: &Daemon<'_>, place: &Place) -> Vec<u8> {
    daemon.volume("v", "16M");
    let mut content = pattern::bytes(3, 12 << 20);
    daemon.write("v", 0, &content);
    content.resize(16 << 20, 0);
    std::fs::write(place.file("known"), &content).expect("written");
    daemon.detach("v");
    plain_key(place, &show(daemon, "v"));
    daemon.attach("v");
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    content
}

fn copy(daemon: &Daemon<'_>, to: &str, more: &[&str]) -> Outcome {
    let arguments = ["--json", "snapshot", "copy", "v@s", to];
    daemon.sealvol(&[&arguments, more].concat())
}

/// Waits until some of the copying is done, and not all of it.
fn wait_until_under_way(daemon: &Daemon<'_>, id: &str) {
    wait_for("some of the copy", || {
        let job = daemon.sealvol_json(&["job", "show", id]);
        assert_ne!(job["state"], "done", "it was faster than its rate");
        (job["bytes_done"].as_u64() > Some(1 << 20)).then_some(())
    });
}

/// Watches a job to its good end; what came of it.
fn finish(daemon: &Daemon<'_>, id: &str) -> Value {
    let watched = daemon.sealvol(&["job", "watch", id]).succeeded();
    let last = watched.stdout.lines().last().expect("a last word");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["kind"], "snapshot-copy");
    last["result"]["snapshot-copy"].clone()
}

/// What every copy under another key has to be, and stays without its source.
fn check_copy(daemon: Daemon<'_>, place: &Place, expected: &[u8], source_keys: &[String]) {
    let c = show(&daemon, "c");
    assert_eq!((&c["depth"], &c["job"]), (&2.into(), &Value::Null), "{c}");
    assert_eq!(c["origin"], Value::Null, "nothing of it is the source's");
    let (key, known) = (place.file("old.key"), place.file("known"));
    assert_ne!(
        blocks_under(place, &show(&daemon, "v"), &key, &known),
        0,
        "the source is under the old key"
    );
    assert_eq!(blocks_under(place, &c, &key, &known), 0, "a shared block");
    for key in source_keys {
        assert!(
            !has_record(place, &c, key),
            "a wrapped key {key} of the source"
        );
        assert!(!of_layers(&c, "data_key").contains(key));
    }
    assert!(has_record(place, &c, &of_layers(&c, "data_key")[0]));
    let snapshot = daemon.sealvol_json(&["snapshot", "show", "c@t"]);
    assert_eq!(snapshot["state"], "completed");
    let listed = daemon.sealvol_json(&["snapshot", "list", "c"]);
    assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(1));

    daemon.sealvol(&["volume", "detach", "v"]);
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
        .succeeded();
    for name in ["c", "c@t"] {
        daemon.attach(name);
        assert!(daemon.content(name) == expected, "{name}");
    }
    daemon.write("c", 0, &[9; 4096]);
    assert!(daemon.content("c@t") == expected, "the snapshot stays");
    daemon.stop();
    let daemon = Daemon::start(place);
    wait_for("the copy", || {
        let shown = daemon.sealvol_json(&["snapshot", "show", "c@t"]);
        (shown["state"] == "attached").then_some(())
    });
    assert!(daemon.content("c@t") == expected, "after a restart");
    daemon.stop();
    let recorded = place.audit().iter().any(|record| {
        record["operation"] == "copy-snapshot"
            && record["name"] == "c@t"
            && record["result"]
                .as_str()
                .is_some_and(|text| text.contains("a data key of its own"))
    });
    assert!(recorded, "{:?}", place.audit());
}

#[test]
fn a_copy_under_another_key_beside_clients_of_its_source_has_nothing_of_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = source(&daemon, &place);
    daemon.sealvol(&["key", "create", "local:safe"]).succeeded();
    let uri = format!("--uri={}", daemon.uri("v"));
    let load = std::thread::spawn(move || {
        let arguments = [
            "--name=load",
            "--ioengine=nbd",
            &uri,
            "--size=8M",
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
    let words = daemon.sealvol(&[
        "snapshot",
        "copy",
        "v@s",
        "c@t",
        "--key",
        "local:safe",
        "--wait",
    ]);
    let words = words.succeeded().stdout;
    load.join().expect("fio verified what it wrote");
    let last: Value =
        serde_json::from_str(words.lines().last().expect("a last word")).expect("JSON");
    let result = &last["result"]["snapshot-copy"];
    assert_eq!(result["snapshot"], "c@t", "{last}");
    let c = show(&daemon, "c");
    assert_eq!(c["key"], "local:safe");
    assert_eq!(result["data_key"], c["layers"][0]["data_key"]);
    daemon.attach("v@s");
    assert!(daemon.content("v@s") == expected, "what was copied");
    daemon.detach("v@s");
    let keys = result["source_data_keys"].as_array().expect("keys");
    let mut keys: Vec<String> = keys.iter().map(text).collect();
    keys.extend(of_layers(&show(&daemon, "v"), "data_key"));
    check_copy(daemon, &place, &expected, &keys);
}

#[test]
fn a_copy_goes_on_after_a_kill_and_nobody_uses_it_before_it_is_there() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = source(&daemon, &place);
    daemon.detach("v");
    daemon.sealvol(&["key", "create", "local:safe"]).succeeded();
    let more = ["--key", "local:safe", "--rate", "1M"];
    let begun = copy(&daemon, "c@t", &more).succeeded().json();
    assert_eq!(
        (&begun["from"], &begun["to"]),
        (&"v@s".into(), &"c@t".into())
    );
    assert_eq!(begun["snapshot"], Value::Null);
    let id = begun["job"]["id"].to_string();
    wait_until_under_way(&daemon, &id);
    daemon.kill();
    let daemon = Daemon::start(&place);
    let job = format!("job {id}");
    for arguments in [
        &["volume", "attach", "c"][..],
        &["volume", "resize", "c", "--size", "20M"],
        &["volume", "delete", "c"],
        &["volume", "rekey", "c"],
        &["snapshot", "create", "c@x"],
        &["key", "rewrap", "c"],
    ] {
        daemon
            .sealvol(arguments)
            .failed_with(5, &["volume c", &job]);
    }
    daemon
        .sealvol(&["snapshot", "show", "c@t"])
        .failed_with(4, &["c@t"]);
    // Its own key opens nothing of what its source is under, not even for the while.
    let other = text(&daemon.sealvol_json(&["key", "show", "local:safe"])["key_id"]);
    let c = show(&daemon, "c");
    let inherited: Vec<Value> = place
        .audit()
        .into_iter()
        .filter(|record| record["operation"] == "rewrap" && record["volume"] == c["id"])
        .collect();
    assert!(!inherited.is_empty());
    for record in inherited {
        assert_eq!(record["key"], record["from"], "{record}");
        assert!(!text(&record["key"]).contains(&other), "{record}");
    }
    let result = finish(&daemon, &id);
    let mut keys: Vec<String> = result["source_data_keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(text)
        .collect();
    keys.extend(of_layers(&show(&daemon, "v"), "data_key"));
    check_copy(daemon, &place, &expected, &keys);
}

#[test]
fn a_copy_killed_anywhere_is_made_once() {
    const ROUNDS: u64 = 10;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    let expected = source(&daemon, &place);
    daemon.detach("v");
    daemon.sealvol(&["key", "create", "local:safe"]).succeeded();
    let mut copies = 0;
    for round in 0..ROUNDS {
        let (name, to) = (format!("c{round}"), format!("c{round}@t"));
        // Half of them are copied, the others share.
        let key = ["--key", "local:safe"];
        let more = if round % 2 == 0 { &key[..] } else { &[] };
        std::thread::scope(|scope| {
            let command = scope.spawn(|| copy(&daemon, &to, more));
            std::thread::sleep(Duration::from_millis(round / 2 * 60));
            daemon.kill_now();
            command.join().expect("it ended");
        });
        drop(daemon);
        daemon = Daemon::start(&place);
        wait_for("the jobs to end", || {
            // What a killed daemon was starting may hold its sockets for a moment more.
            let listed = daemon.sealvol(&["--json", "job", "list"]);
            if listed.code != Some(0) {
                return None;
            }
            let jobs = listed.json();
            let jobs = jobs["jobs"].as_array().expect("jobs").clone();
            jobs.iter().all(|job| job["state"] == "done").then_some(())
        });
        if daemon.sealvol(&["volume", "show", &name]).code != Some(0) {
            continue;
        }
        copies += 1;
        let listed = daemon.sealvol_json(&["snapshot", "list", &name]);
        assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(1));
        daemon.attach(&to);
        assert!(daemon.content(&to) == expected, "{to}");
        daemon.detach(&to);
    }
    println!("{copies} of {ROUNDS} copies were begun");
    daemon.stop();
}

#[test]
fn a_copy_under_the_same_key_moves_no_data_and_needs_nothing_of_its_source() {
    for asked in [&[][..], &["--key", "local:default", "--wait"]] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        let expected = source(&daemon, &place);
        let made = copy(&daemon, "c@t", asked).succeeded().json();
        assert_eq!(made["job"], Value::Null, "{made}");
        assert_eq!(made["snapshot"]["name"], "c@t");
        let listed = daemon.sealvol_json(&["job", "list"]);
        assert_eq!(listed["jobs"], serde_json::json!([]));
        let c = show(&daemon, "c");
        let layers = of_layers(&c, "id");
        assert_eq!(layers.len(), 3, "its top, its snapshot, and what it shares");
        for own in &layers[..2] {
            let data = layer_file(&place, own, "data").metadata().expect("there");
            assert_eq!(data.blocks(), 0, "nothing was copied");
        }
        daemon.detach("v");
        let deleted = daemon.sealvol_json(&["volume", "delete", "v", "--snapshots"]);
        assert_eq!(deleted["layers_kept"], 1);
        for name in ["c@t", "c"] {
            daemon.attach(name);
            assert!(daemon.content(name) == expected, "{name}");
        }
        daemon.stop();
    }
}

#[test]
fn a_copy_may_be_under_a_key_of_another_provider() {
    let place = Place::new();
    let config = place.file("sealvold.toml");
    let second = place.file("second");
    std::fs::create_dir(&second).expect("a directory");
    let provider = format!(
        "[providers.second]\ntype = \"local\"\ndatabase = {:?}\ncreate = true\nmaster-key = {{ file = {{ path = {:?} }} }}\n",
        path(&second.join("k.db")),
        path(&second.join("k.master"))
    );
    std::fs::write(&config, provider).expect("a configuration");
    let mut command = Daemon::command(&place);
    command.arg("--config").arg(&config);
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    let expected = source(&daemon, &place);
    // A clone that keeps what it shares can't be.
    daemon
        .sealvol(&[
            "volume",
            "create",
            "d",
            "--from-snapshot",
            "v@s",
            "--key",
            "second:default",
        ])
        .failed_with(2, &["local", "second:default", "snapshot copy"]);
    let begun = copy(&daemon, "c@t", &["--key", "second:default"]);
    let id = begun.succeeded().json()["job"]["id"].to_string();
    finish(&daemon, &id);
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
        .succeeded();
    daemon.stop();
    // The first provider is not asked for anything any more.
    std::fs::rename(place.state().join("keys"), place.file("away")).expect("moved");
    let mut command = Daemon::command(&place);
    command.arg("--config").arg(&config);
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    daemon.attach("c@t");
    assert!(daemon.content("c@t") == expected);
    daemon.stop();
}

#[test]
fn a_cancelled_copy_says_what_is_left_and_what_cannot_be_copied_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = source(&daemon, &place);
    daemon.sealvol(&["key", "create", "local:safe"]).succeeded();
    let before = place.layer_files("meta").len();
    copy(&daemon, "v@t", &[]).failed_with(5, &["volume v", "another name"]);
    copy(&daemon, "c", &[]).failed_with(2, &["VOLUME@SNAPSHOT"]);
    copy(&daemon, "c@t", &["--rate", "512K"]).failed_with(2, &["1048576"]);
    copy(&daemon, "c@t", &["--key", "local:none"]).failed_with(4, &["local:none"]);
    copy(&daemon, "c@t", &["--key", "aws:k"]).failed_with(4, &["aws"]);
    daemon
        .sealvol(&["snapshot", "copy", "v@none", "c@t"])
        .failed_with(4, &["v@none", "snapshot list"]);
    assert_eq!(place.layer_files("meta").len(), before, "no files");
    let volumes = daemon.sealvol_json(&["volume", "list"]);
    assert_eq!(volumes["volumes"].as_array().map(Vec::len), Some(1));

    let more = ["--key", "local:safe", "--rate", "1M"];
    let id = copy(&daemon, "c@t", &more).succeeded().json()["job"]["id"].to_string();
    wait_until_under_way(&daemon, &id);
    let cancelled = daemon.sealvol(&["job", "cancel", &id]).succeeded();
    for words in [
        "c@t was not made",
        "volume c is left",
        "`sealvol volume delete c`",
    ] {
        assert!(cancelled.stdout.contains(words), "{cancelled}");
    }
    let shown = daemon.sealvol_json(&["job", "show", &id]);
    assert_eq!(shown["state"], "cancelled");
    daemon.attach("c");
    assert!(daemon.content("c") == expected, "a clone like any");
    daemon.detach("c");
    daemon.sealvol(&["volume", "delete", "c"]).succeeded();
    // And then it can be made.
    copy(&daemon, "c@t", &["--key", "local:safe", "--wait"]).succeeded();
    daemon.attach("c@t");
    assert!(daemon.content("c@t") == expected);
    daemon.stop();
}
