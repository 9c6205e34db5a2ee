//! Aliases of keys, as an operator uses them: a volume is bound to the key that an alias meant when the volume was made.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use serde_json::{Value, json};

const NOT_FOUND: i32 = 4;

const ALIAS: &str = "local:alias/www";

fn id_of(daemon: &Daemon<'_>, key: &str) -> String {
    let key = daemon.sealvol_json(&["key", "show", key]);
    key["key_id"].as_str().expect("an id").to_owned()
}

fn volume_key_id(daemon: &Daemon<'_>, volume: &str) -> String {
    let volume = daemon.sealvol_json(&["volume", "show", volume]);
    volume["key_id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_volume_keeps_the_key_that_its_alias_meant_when_it_was_made() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for key in ["local:first", "local:second"] {
        daemon.sealvol(&["key", "create", key]).succeeded();
    }
    let (first, second) = (
        id_of(&daemon, "local:first"),
        id_of(&daemon, "local:second"),
    );
    let create = ["key", "alias", "create", ALIAS, "local:first"];
    let said = daemon.sealvol(&create).succeeded().stdout;
    assert_eq!(said, format!("{ALIAS} means local:first now: id {first}\n"));
    assert_eq!(id_of(&daemon, ALIAS), first);
    let make = |name, more: &[&str]| {
        let words = ["volume", "create", name, "--size", "4M", "--key", ALIAS];
        daemon.sealvol(&[&words[..], more].concat()).succeeded();
    };
    make("old", &[]);
    daemon.attach("old");
    daemon.write("old", 0, &[7; 4096]);
    daemon.sealvol(&["snapshot", "create", "old@s"]).succeeded();

    let moved = daemon.sealvol_json(&["key", "alias", "update", ALIAS, "local:second"]);
    assert_eq!(
        moved,
        json!({"alias": ALIAS, "key": "local:second", "key_id": second, "former": first})
    );
    make("new", &[]);
    assert_eq!(volume_key_id(&daemon, "new"), second);
    // The old one goes on with its key: when it is attached, rewrapped, re-keyed and cloned.
    daemon.detach("old");
    daemon.attach("old");
    daemon.sealvol(&["key", "rewrap", "old"]).succeeded();
    assert_eq!(volume_key_id(&daemon, "old"), first);
    let clone = ["volume", "create", "clone", "--from-snapshot", "old@s"];
    daemon.sealvol(&clone).succeeded();
    assert_eq!(volume_key_id(&daemon, "clone"), first);
    let needed = daemon.sealvol_json(&["key", "show", "local:first"])["volumes"].clone();
    assert_eq!(needed, json!(["clone", "old"]));
    // Named for it again, the alias is what it means now.
    daemon
        .sealvol(&["key", "rewrap", "old", "--key", ALIAS])
        .succeeded();
    assert_eq!(volume_key_id(&daemon, "old"), second);
    assert_eq!(daemon.content("old")[..4096], [7; 4096]);

    // The alias goes, the key stays; what is bound to the key does not miss the alias.
    daemon
        .sealvol(&["key", "alias", "delete", ALIAS])
        .succeeded();
    daemon.detach("old");
    daemon.attach("old");
    let words = ["volume", "create", "c", "--size", "4M", "--key", ALIAS];
    daemon
        .sealvol(&words)
        .failed_with(NOT_FOUND, &["alias/www", "NotFoundException"]);
}

#[test]
fn each_change_of_an_alias_is_told_and_on_record() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["key", "create", "local:second"])
        .succeeded();
    daemon
        .sealvol(&["key", "create", "local:first"])
        .succeeded();
    let [first, second] = ["first", "second"].map(|key| id_of(&daemon, &format!("local:{key}")));
    daemon
        .sealvol(&["key", "alias", "create", ALIAS, "local:first"])
        .succeeded();
    let again = ["key", "alias", "create", ALIAS, "local:second"];
    daemon
        .sealvol(&again)
        .failed_with(5, &["exists already", "AlreadyExistsException"]);
    daemon
        .sealvol(&["key", "alias", "update", ALIAS, "local:second"])
        .succeeded();
    let listed = daemon.sealvol_json(&["key", "alias", "list", "--provider", "local"]);
    let alias = json!({"alias": ALIAS, "key": "local:second", "key_id": second});
    assert_eq!(listed, json!({"aliases": [alias]}));
    assert_eq!(
        daemon.sealvol_json(&["key", "show", "local:second"])["aliases"],
        json!([ALIAS])
    );
    daemon
        .sealvol(&["key", "disable", ALIAS])
        .failed_with(2, &["is an alias", "ValidationException"]);
    daemon
        .sealvol(&["key", "alias", "update", ALIAS, "other:key"])
        .failed_with(2, &["local only"]);
    daemon
        .sealvol(&["key", "alias", "delete", ALIAS])
        .succeeded();
    daemon
        .sealvol(&["key", "alias", "delete", ALIAS])
        .failed_with(NOT_FOUND, &["does not exist"]);

    let records = place.audit();
    let of_aliases = records.iter().filter(|record| record["alias"] == ALIAS);
    let told: Vec<[&Value; 4]> = of_aliases
        .map(|record| ["operation", "key", "from", "caller"].map(|field| &record[field]))
        .collect();
    let of = |id: &String| json!(format!("local:{id}"));
    let caller = json!(rustix::process::getuid().as_raw());
    let expected = [
        ("create-alias", of(&first), Value::Null),
        // Refused, so it tells what was asked for.
        ("create-alias", json!("local:second"), Value::Null),
        ("update-alias", of(&second), of(&first)),
        ("delete-alias", Value::Null, of(&second)),
        ("delete-alias", Value::Null, Value::Null),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ([operation, key, from, by], expected) in told.into_iter().zip(&expected) {
        assert_eq!(
            (operation, key, from),
            (&json!(expected.0), &expected.1, &expected.2)
        );
        assert_eq!(by["uid"], caller);
    }
}

#[test]
fn an_alias_of_a_key_that_waits_for_its_destruction_still_means_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["key", "create", "local:first"])
        .succeeded();
    daemon
        .sealvol(&["key", "alias", "create", ALIAS, "local:first"])
        .succeeded();
    daemon
        .sealvol(&["key", "schedule-deletion", "local:first"])
        .succeeded();
    // While it waits, the alias still means it: nothing new is made under it.
    let words = ["volume", "create", "v", "--size", "4M", "--key", ALIAS];
    daemon.sealvol(&words).failed_with(3, &["pending deletion"]);
    daemon
        .sealvol(&["key", "alias", "create", "local:alias/other", "local:first"])
        .failed_with(3, &["pending deletion", "KMSInvalidStateException"]);
    daemon.stop();
    let daemon = Daemon::start(&place);
    let listed = daemon.sealvol_json(&["key", "alias", "list"]);
    assert_eq!(listed["aliases"][0]["alias"], ALIAS);
}
