//! What a shred proves of copies that were saved before it: with the key service `local` that they open for nobody any more, however
//! they are put back; with another one nothing, and that is said before anything is deleted if a proof is required.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use serde_json::{Value, json};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;
const CONFLICT: i32 = 5;

/// What everybody is told who asks for a volume that was shredded.
const FOR_EVER: [&str; 3] = ["was shredded", "VolumeShredded", "nothing brings it back"];

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn attach(daemon: &Daemon<'_>, name: &str) -> Outcome {
    daemon.sealvol(&["volume", "attach", name])
}

fn shred<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["volume", "delete", name, "--shred"], more].concat()
}

fn adopt(daemon: &Daemon<'_>, name: &str, layer: &Path, key: &str) -> Outcome {
    let layer = layer.to_str().expect("UTF-8");
    let words = ["volume", "adopt", name, "--layer-dir", layer, "--key", key];
    daemon.sealvol(&words)
}

/// A detached volume with content, which is given.
fn volume(daemon: &Daemon<'_>, name: &str, seed: u64) -> Vec<u8> {
    daemon.volume(name, "4M");
    let mut content = pattern::bytes(seed, 1 << 20);
    daemon.write(name, 0, &content);
    daemon.detach(name);
    content.resize(4 << 20, 0);
    content
}

/// The directory of the volume's first layer.
fn layer(place: &Place, volume: &Value) -> PathBuf {
    let id = volume["layers"][0]["id"].as_str().expect("an id");
    place.state().join("layers").join(id)
}

fn copy(from: &Path, to: &Path) {
    Outcome::of(Command::new("cp").arg("-a").arg(from).arg(to)).succeeded();
}

/// All that is in the state directory but the key service's own, as a backup of the volumes has it.
const OF_THE_VOLUMES: [&str; 2] = ["layers", "registry.db"];

fn save(place: &Place) {
    let saved = place.file("saved");
    std::fs::create_dir(&saved).expect("a directory");
    for name in OF_THE_VOLUMES {
        copy(&place.state().join(name), &saved.join(name));
    }
}

/// Puts back what [`save`] saved, while no daemon runs.
fn put_back(place: &Place) {
    for file in std::fs::read_dir(place.state()).expect("the state directory") {
        let path = file.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if name == "layers" {
            std::fs::remove_dir_all(&path).expect("removed");
        } else if name.starts_with("registry.db") {
            std::fs::remove_file(&path).expect("removed");
        }
    }
    for name in OF_THE_VOLUMES {
        copy(&place.file("saved").join(name), &place.state().join(name));
    }
}

/// The results of the records of shreds.
fn recorded(place: &Place) -> Vec<String> {
    let records = place.audit();
    let shreds = records
        .iter()
        .filter(|record| record["operation"] == "shred");
    shreds
        .map(|record| record["result"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn a_saved_copy_of_a_shredded_volume_opens_for_nobody_however_it_is_put_back() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    volume(&daemon, "v", 1);
    let neighbour = volume(&daemon, "w", 2);
    let v = show(&daemon, "v");
    daemon.stop();
    save(&place);
    let daemon = Daemon::start(&place);

    let deleted = daemon.sealvol_json(&shred("v", &["--require-proof"]));
    let proof = &deleted["proof"];
    assert_eq!(
        (&proof["complete"], &proof["ends"]),
        (&json!(true), &json!([]))
    );
    let stands = &proof["tombstones"][0];
    assert_eq!(stands["provider"], "local");
    let records = recorded(&place);
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(records[0], "begun");
    for word in [
        "ok: local",
        "refuses for ever",
        stands["database"].as_str().expect("an id"),
        v["id"].as_str().expect("an id"),
        v["layers"][0]["data_key"].as_str().expect("an id"),
    ] {
        assert!(records[1].contains(word), "{word}: {records:?}");
    }

    // Its files alone.
    let files = layer(&place, &v);
    let name = files.file_name().expect("a name");
    copy(&place.file("saved").join("layers").join(name), &files);
    adopt(&daemon, "again", &files, "local:default").failed_with(NOT_FOUND, &FOR_EVER);
    std::fs::remove_dir_all(&files).expect("removed");
    daemon.stop();

    // The registry with them, which has never heard of a shred.
    put_back(&place);
    let daemon = Daemon::start(&place);
    attach(&daemon, "v").failed_with(NOT_FOUND, &FOR_EVER);
    daemon
        .sealvol(&["key", "rewrap", "v"])
        .failed_with(NOT_FOUND, &FOR_EVER);
    // Under another key of the same key service neither.
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();
    daemon
        .sealvol(&["key", "rewrap", "v", "--key", "local:other"])
        .failed_with(NOT_FOUND, &FOR_EVER);
    daemon.attach("w");
    assert!(daemon.content("w") == neighbour, "a volume beside it");
    // The advice holds, and the name is free.
    let said = daemon.sealvol(&shred("v", &[])).succeeded().stdout;
    assert!(said.contains("Refused for ever by local"), "{said}");
    volume(&daemon, "v", 3);
    daemon.stop();
}

#[test]
fn a_clones_copies_of_a_shredded_data_key_are_refused_and_no_volume_that_is_there_loses_anything() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = volume(&daemon, "v", 1);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    let clone = |name| ["volume", "create", name, "--from-snapshot", "v@s"];
    for name in ["c", "d"] {
        daemon.sealvol(&clone(name)).succeeded();
        daemon.attach(name);
        daemon.write(name, 2 << 20, &[7; 4096]);
        daemon.detach(name);
    }
    daemon.stop();
    save(&place);
    let daemon = Daemon::start(&place);

    // A clone goes, with all that was its own: its source and its twin don't notice.
    let deleted = daemon.sealvol_json(&shred("d", &["--require-proof"]));
    assert_eq!(deleted["proof"]["complete"], true);
    assert!(deleted["layers_kept"].as_u64() > Some(0), "{deleted}");
    for name in ["v", "c"] {
        daemon.attach(name);
        assert!(daemon.content(name)[..2 << 20] == content[..2 << 20]);
        daemon.detach(name);
    }
    // The other one is deleted without a shred, so only its copies of the source's key can be found by the source's.
    daemon.sealvol(&["volume", "delete", "c"]).succeeded();
    daemon
        .sealvol(&shred("v", &["--snapshots", "--require-proof"]))
        .succeeded();
    daemon.stop();
    put_back(&place);
    let daemon = Daemon::start(&place);
    for name in ["v", "c", "d", "v@s"] {
        attach(&daemon, name).failed_with(NOT_FOUND, &FOR_EVER);
    }
    attach(&daemon, "c").says(&["data key"]);
    daemon.stop();
}

#[test]
fn a_layer_that_others_stand_on_keeps_its_key_and_stands_in_the_way_of_a_proof() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = volume(&daemon, "v", 1);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    let clone = ["volume", "create", "c", "--from-snapshot", "v@s"];
    daemon.sealvol(&clone).succeeded();
    daemon.sealvol(&["snapshot", "delete", "v@s"]).succeeded();
    // It goes on under another data key, on layers of its own; the old ones are the clone's ground.
    daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    assert_eq!(show(&daemon, "v")["depth"], 1);
    daemon
        .sealvol(&shred("v", &["--require-proof"]))
        .failed_with(
            CONFLICT,
            &["volume v", "no proof", "stand on layers", "--require-proof"],
        );
    daemon.attach("v");
    assert!(daemon.content("v") == content, "nothing was deleted");
    daemon.detach("v");
    assert_eq!(recorded(&place), [""; 0], "and nothing begun");

    let deleted = daemon.sealvol_json(&shred("v", &[]));
    let proof = &deleted["proof"];
    assert_eq!(proof["complete"], false);
    assert!(proof["layers_left"].as_u64() > Some(0), "{deleted}");
    daemon.attach("c");
    assert!(daemon.content("c") == content, "its key was not buried");
    daemon.detach("c");
    // With the last that stands on it, it goes.
    let deleted = daemon.sealvol_json(&shred("c", &["--require-proof"]));
    assert_eq!(deleted["layers_kept"], 0);
    daemon.stop();
}

#[test]
fn where_the_key_service_cannot_write_a_shred_is_refused_and_nothing_is_lost() {
    let place = Place::new();
    std::fs::write(place.file("sealvold.toml"), "key-deadline-s = 3\n").expect("a configuration");
    let mut command = Daemon::command(&place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    let content = volume(&daemon, "v", 1);
    let database = place.state().join("keys/local.db");
    let away = place.file("local.db");
    std::fs::rename(&database, &away).expect("moved");
    daemon
        .sealvol(&shred("v", &[]))
        .failed_with(REFUSED, &["local.db", "there is none", "NoDatabase"]);
    std::fs::rename(&away, &database).expect("back");
    daemon.attach("v");
    assert!(daemon.content("v") == content);
    daemon.detach("v");

    // A write version that SQLite does not know: for root, too, it only reads such a file.
    let file = std::fs::File::options().write(true).open(&database);
    let file = file.expect("the key database");
    file.write_at(&[3], 18).expect("written");
    daemon
        .sealvol(&shred("v", &[]))
        .failed_with(FAILED, &["local.db", "readonly"]);
    let failed = recorded(&place).pop().expect("a record");
    assert!(failed.contains("readonly"), "{failed}");
    daemon.attach("v");
    assert!(daemon.content("v") == content);
    daemon.detach("v");
    file.write_at(&[1], 18).expect("written");
    daemon
        .sealvol(&shred("v", &["--require-proof"]))
        .succeeded();
    daemon.stop();
}

#[test]
fn a_shred_that_was_cut_short_leaves_a_volume_that_opens_for_nobody_and_is_ended_by_the_next() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    volume(&daemon, "v", 1);
    // The tombstone comes first; what keeps the files from being overwritten is as good as a power cut in between.
    let files = layer(&place, &show(&daemon, "v"));
    std::fs::rename(&files, place.file("away")).expect("moved");
    daemon
        .sealvol(&shred("v", &[]))
        .failed_with(FAILED, &["volume v"]);
    daemon.kill();
    std::fs::rename(place.file("away"), &files).expect("back");
    let daemon = Daemon::start(&place);
    assert_eq!(show(&daemon, "v")["state"], "available");
    attach(&daemon, "v").failed_with(NOT_FOUND, &FOR_EVER);
    let deleted = daemon.sealvol_json(&shred("v", &["--require-proof"]));
    assert_eq!(deleted["proof"]["complete"], true);
    assert!(!files.exists());
    daemon
        .sealvol(&["volume", "show", "v"])
        .failed_with(NOT_FOUND, &[]);
    daemon.stop();
}

#[test]
fn a_key_database_from_a_backup_gets_the_tombstones_again_when_it_is_accepted() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    volume(&daemon, "v", 1);
    let neighbour = volume(&daemon, "w", 2);
    daemon.stop();
    save(&place);
    let database = place.state().join("keys/local.db");
    copy(&database, &place.file("local.db"));
    let daemon = Daemon::start(&place);
    let v = show(&daemon, "v");
    daemon.sealvol(&shred("v", &[])).succeeded();
    daemon.stop();
    copy(&place.file("local.db"), &database);
    let files = layer(&place, &v);
    let name = files.file_name().expect("a name");
    copy(&place.file("saved").join("layers").join(name), &files);
    let daemon = Daemon::start(&place);
    adopt(&daemon, "again", &files, "local:default").failed_with(REFUSED, &["TableRolledBack"]);
    daemon
        .sealvol(&["key", "accept-table", "local"])
        .succeeded();
    adopt(&daemon, "again", &files, "local:default").failed_with(NOT_FOUND, &FOR_EVER);
    daemon.attach("w");
    assert!(daemon.content("w") == neighbour);
    daemon.stop();
}

/// The policies that the manual gives.
fn policy(role: &str) -> &'static str {
    let manual = include_str!("../../docs/key-services.md");
    let begin = format!("```hcl\n# {role}\n");
    let policy = manual.split(&begin).nth(1).expect("a policy of that name");
    policy.split("```").next().expect("its end")
}

/// A daemon that calls an OpenBao server with the key `volumes` by the name `bao`.
fn start_beside<'a>(place: &'a Place, server: &OpenBao) -> Daemon<'a> {
    let config = place.file("sealvold.toml");
    if !config.exists() {
        server.make_key("volumes");
        let [create, attach] =
            ["create", "attach"].map(|role| server.token_file(role, policy(role)));
        let text = format!(
            "key-deadline-s = 8\n[providers.bao]\ntype = \"transit\"\naddress = \"{}\"\nca-file = {:?}\n\
             create = {{ token-file = {create:?} }}\nattach = {{ token-file = {attach:?} }}\n",
            server.address(),
            server.authority(),
        );
        std::fs::write(&config, text).expect("a configuration");
    }
    let mut command = Daemon::command(place);
    command.arg("--config").arg(config);
    Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
}

/// A detached volume under `bao:volumes` with content, which is given.
fn volume_under_bao(daemon: &Daemon<'_>, name: &str) -> Vec<u8> {
    let create = ["volume", "create", name, "--size", "4M"];
    let key = ["--key", "bao:volumes"];
    daemon.sealvol(&[&create[..], &key].concat()).succeeded();
    daemon.attach(name);
    let mut content = pattern::bytes(5, 1 << 20);
    daemon.write(name, 0, &content);
    daemon.detach(name);
    content.resize(4 << 20, 0);
    content
}

#[test]
fn where_a_key_service_keeps_no_tombstones_nothing_is_deleted_that_needs_a_proof_and_the_end_is_told()
 {
    let server = OpenBao::start();
    let place = Place::new();
    let daemon = start_beside(&place, &server);
    let content = volume_under_bao(&daemon, "v");
    let files = layer(&place, &show(&daemon, "v"));
    let end = "bao write transit/keys/volumes/config deletion_allowed=true && bao delete transit/keys/volumes";
    daemon
        .sealvol(&shred("v", &["--require-proof"]))
        .failed_with(
            CONFLICT,
            &[
                "volume v",
                "bao:volumes",
                "--require-proof",
                "every volume",
                end,
            ],
        );
    daemon
        .sealvol(&["volume", "delete", "v", "--require-proof"])
        .failed_with(USAGE, &["--shred"]);
    assert_eq!(recorded(&place), [""; 0], "nothing was begun");
    daemon.attach("v");
    assert!(daemon.content("v") == content, "it is as it was");
    daemon.detach("v");

    copy(&files, &place.file("saved"));
    let deleted = daemon.sealvol_json(&shred("v", &[]));
    let proof = &deleted["proof"];
    assert_eq!(
        (&proof["complete"], &proof["tombstones"]),
        (&json!(false), &json!([]))
    );
    assert_eq!(proof["ends"][0]["key"], "bao:volumes");
    assert_eq!(proof["ends"][0]["command"], end);
    let records = recorded(&place);
    assert_eq!(records, ["ok: copies still open under bao:volumes"]);
    // It is true: the copy opens until that is done, and then for nobody.
    copy(&place.file("saved"), &files);
    adopt(&daemon, "again", &files, "bao:volumes").succeeded();
    daemon.attach("again");
    assert!(daemon.content("again") == content);
    daemon.detach("again");
    let path = "transit/keys/volumes";
    server.admin(
        "POST",
        &format!("{path}/config"),
        &json!({ "deletion_allowed": true }),
    );
    server.admin("DELETE", path, &Value::Null);
    attach(&daemon, "again").failed_with(NOT_FOUND, &["bao:volumes"]);
    let said = daemon.sealvol(&shred("again", &[])).succeeded().stdout;
    assert!(said.contains("No proof") && said.contains(end), "{said}");
    daemon.stop();
}

#[test]
fn what_another_key_service_has_wrapped_once_stands_in_the_way_of_a_proof_also_after_a_rekey() {
    let server = OpenBao::start();
    let place = Place::new();
    let daemon = start_beside(&place, &server);
    let content = volume_under_bao(&daemon, "v");
    let rekey = ["volume", "rekey", "v", "--key", "local:default", "--wait"];
    daemon.sealvol(&rekey).succeeded();
    assert_eq!(show(&daemon, "v")["key"], "local:default");
    daemon
        .sealvol(&shred("v", &["--require-proof"]))
        .failed_with(CONFLICT, &["bao:volumes"]);
    daemon.attach("v");
    assert!(daemon.content("v") == content);
    daemon.detach("v");
    let deleted = daemon.sealvol_json(&shred("v", &[]));
    let proof = &deleted["proof"];
    assert_eq!(proof["tombstones"][0]["provider"], "local");
    assert_eq!(proof["ends"][0]["key"], "bao:volumes");
    // A volume that was under this key service alone is not held up by the other one.
    volume(&daemon, "w", 2);
    daemon
        .sealvol(&shred("w", &["--require-proof"]))
        .succeeded();
    daemon.stop();
}

#[test]
fn of_a_key_that_was_in_memory_only_everything_is_proved_and_of_a_given_one_nothing_can_be() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let create = ["volume", "create", "e", "--size", "4M", "--ephemeral"];
    daemon.sealvol(&create).succeeded();
    let deleted = daemon.sealvol_json(&shred("e", &["--require-proof"]));
    let proof = json!({ "complete": true, "tombstones": [], "ends": [] });
    assert_eq!(deleted["proof"], proof);

    let key = place.file("given.key");
    std::fs::write(&key, pattern::bytes(9, 64)).expect("a key");
    let create = [
        "volume",
        "create",
        "p",
        "--size",
        "4M",
        "--key",
        "provided:",
    ];
    let given = ["--key-file", key.to_str().expect("UTF-8")];
    daemon.sealvol(&[&create[..], &given].concat()).succeeded();
    daemon
        .sealvol(&shred("p", &["--require-proof"]))
        .failed_with(CONFLICT, &["destroy yours"]);
    assert_eq!(show(&daemon, "p")["state"], "available");
    daemon.stop();
}
