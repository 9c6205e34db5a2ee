//! Clones that a job brings to stand alone: usable at once, and at the end without anything of their source, key or block.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::Value;

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn job(daemon: &Daemon<'_>, id: &str) -> Value {
    daemon.sealvol_json(&["job", "show", id])
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

/// A volume `v` of 16 MiB, attached, whose snapshots `v@r` and `v@s` differ; what `v@s` holds.
fn source(daemon: &Daemon<'_>) -> Vec<u8> {
    daemon.volume("v", "16M");
    let mut content = pattern::bytes(3, 12 << 20);
    daemon.write("v", 0, &content);
    daemon.sealvol(&["snapshot", "create", "v@r"]).succeeded();
    let newer = pattern::bytes(4, 1 << 20);
    daemon.write("v", 6 << 20, &newer);
    content[6 << 20..7 << 20].copy_from_slice(&newer);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    daemon.write("v", 0, &pattern::bytes(5, 1 << 20));
    content.resize(16 << 20, 0);
    content
}

/// Waits until some of the copying is done, and not all of it.
fn wait_until_under_way(daemon: &Daemon<'_>, id: &str) {
    wait_for("some of the copy", || {
        let job = job(daemon, id);
        assert_ne!(job["state"], "done", "it was faster than its rate");
        (job["bytes_done"].as_u64() > Some(1 << 20)).then_some(())
    });
}

/// Watches a job to its good end; what came of it.
fn finish(daemon: &Daemon<'_>, id: &str) -> Value {
    let watched = daemon.sealvol(&["job", "watch", id]).succeeded();
    let last = watched.stdout.lines().last().expect("a last word");
    let last: Value = serde_json::from_str(last).expect("JSON");
    last["result"]["rekey"].clone()
}

/// The data keys of a volume's layers, from the top down.
fn data_keys(volume: &Value) -> Vec<String> {
    let layers = volume["layers"].as_array().expect("layers");
    layers
        .iter()
        .map(|layer| text(&layer["data_key"]))
        .collect()
}

/// Whether the superblocks of a volume's top have a record of a data key.
fn has_record(place: &Place, volume: &Value, data_key: &str) -> bool {
    let id = text(&volume["layers"][0]["id"]);
    let meta = place.state().join("layers").join(id).join("meta");
    let meta = std::fs::read(meta).expect("the top's superblocks");
    let digits: Vec<u8> = data_key.bytes().filter(|&digit| digit != b'-').collect();
    let key: Vec<u8> = digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex digits");
            u8::from_str_radix(pair, 16).expect("hex digits")
        })
        .collect();
    meta.windows(key.len()).any(|window| window == key)
}

#[test]
fn a_clone_with_a_fresh_key_comes_to_stand_alone_and_its_source_can_be_shredded() {
    for attached in [false, true] {
        let place = Place::new();
        let mut daemon = Daemon::start(&place);
        let mut expected = source(&daemon);
        daemon
            .sealvol(&["key", "create", "local:other"])
            .succeeded();
        let mut create = vec!["volume", "create", "c", "--from-snapshot", "v@s"];
        create.extend(["--fresh-key", "--rate", "3M", "--size", "20M"]);
        if attached {
            create.extend(["--key", "local:other"]);
        }
        expected.resize(20 << 20, 0);
        let created = daemon.sealvol_json(&create);
        let id = created["job"].to_string();
        let mut shared = data_keys(&created).split_off(1);
        shared.dedup();
        assert!(shared.iter().all(|key| has_record(&place, &created, key)));
        if attached {
            daemon.attach("c");
            wait_until_under_way(&daemon, &id);
            assert!(daemon.content("c") == expected, "while it is copied");
            let written = pattern::bytes(6, 64 << 10);
            daemon.write("c", 11 << 20, &written);
            expected[11 << 20..(11 << 20) + (64 << 10)].copy_from_slice(&written);
        } else {
            wait_until_under_way(&daemon, &id);
        }
        daemon
            .sealvol(&["volume", "delete", "c"])
            .failed_with(5, &["volume c"]);
        // Killed in the middle, it goes on by itself.
        daemon.kill();
        daemon = Daemon::start(&place);
        if attached {
            wait_for("both exports", || {
                let attached = |name| show(&daemon, name)["state"] == "attached";
                (attached("v") && attached("c")).then_some(())
            });
            assert!(daemon.content("c") == expected, "after the kill");
        }
        let result = finish(&daemon, &id);
        assert_eq!(result["old_data_keys"], serde_json::json!(shared));
        assert_eq!(result["layers_removed"], 0, "they are the source's");
        let open = result["old_keys_open"].to_string();
        assert!(open.contains("v@s") && !open.contains("\"c\""), "{open}");

        let c = show(&daemon, "c");
        assert_eq!((&c["depth"], &c["job"]), (&1.into(), &Value::Null));
        assert_eq!(c["origin"], Value::Null, "nothing of it is the source's");
        assert_eq!(data_keys(&c), data_keys(&created)[..1]);
        assert!(has_record(&place, &c, &data_keys(&c)[0]), "its own");
        let v = show(&daemon, "v");
        for key in shared.iter().chain(&data_keys(&v)) {
            assert!(!has_record(&place, &c, key), "a wrapped key of the source");
        }
        daemon.detach("v");
        daemon
            .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
            .succeeded();
        assert_eq!(place.layer_files("data").len(), 1);
        if !attached {
            daemon.attach("c");
        }
        assert!(daemon.content("c") == expected, "without its source");
        daemon.stop();
        let daemon = Daemon::start(&place);
        wait_for("the clone", || {
            (show(&daemon, "c")["state"] == "attached").then_some(())
        });
        assert!(daemon.content("c") == expected, "after a restart");
        daemon.stop();
    }
}

#[test]
fn a_clone_whose_source_is_deleted_while_it_is_copied_destroys_what_was_left_of_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = source(&daemon);
    daemon.detach("v");
    let create = ["volume", "create", "c", "--from-snapshot", "v@s"];
    let more = ["--fresh-key", "--rate", "3M"];
    let created = daemon.sealvol_json(&[&create[..], &more].concat());
    let id = created["job"].to_string();
    wait_until_under_way(&daemon, &id);
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots"])
        .succeeded();
    let result = finish(&daemon, &id);
    assert_eq!(result["old_keys_open"], serde_json::json!([]), "{result}");
    assert_ne!(result["layers_removed"], 0);
    assert_eq!(place.layer_files("data").len(), 1);
    daemon.attach("c");
    assert!(daemon.content("c") == expected);
    daemon.stop();
}

#[test]
fn a_copy_that_is_cancelled_leaves_a_clone_and_what_cannot_be_copied_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let expected = source(&daemon);
    let create = |name: &str, more: &[&str]| {
        let create = ["volume", "create", name, "--from-snapshot", "v@s"];
        daemon.sealvol(&[&create, more].concat())
    };
    create("c", &["--rate", "1M"]).failed_with(2, &["--fresh-key"]);
    create("c", &["--fresh-key", "--rate", "512K"]).failed_with(2, &["1048576"]);
    daemon
        .sealvol(&["volume", "create", "c", "--size", "1M", "--fresh-key"])
        .failed_with(2, &["--from-snapshot"]);
    create("c", &["--fresh-key", "--key", "aws:k"]).failed_with(4, &["aws"]);
    let listed = daemon.sealvol_json(&["job", "list"]);
    assert_eq!(listed["jobs"], serde_json::json!([]), "and no job");
    let created = create("c", &["--fresh-key", "--rate", "1M"]).succeeded();
    let words = created.stdout;
    assert!(words.contains("`sealvol job watch 1`"), "{words}");
    daemon.sealvol(&["job", "cancel", "1"]).succeeded();
    let c = show(&daemon, "c");
    assert_eq!(
        (&c["origin"]["snapshot"], &c["job"]),
        (&"v@s".into(), &Value::Null)
    );
    daemon.attach("c");
    assert!(daemon.content("c") == expected, "a clone like any");
    // And it can be brought to stand alone later.
    daemon
        .sealvol(&["volume", "rekey", "c", "--wait"])
        .succeeded();
    assert_eq!(show(&daemon, "c")["depth"], 1);
    assert!(daemon.content("c") == expected);
    daemon.stop();
}
