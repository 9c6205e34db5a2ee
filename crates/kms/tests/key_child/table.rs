//! The table of keys: what somebody without the master key changes in it, and an older copy of it, are refused.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use sealvol_control::keychild::{
    AliasChange, Batch, Call, FailureClass, KeyChange, KeyFailure, Right, TableState,
};

use crate::place::{Place, change, child, context, tombstone, unwrap};

const TAMPER: FailureClass = FailureClass::WrongKeyOrTamper;

fn named(failure: KeyFailure) -> (FailureClass, String) {
    (failure.class, failure.provider_error)
}

impl Place {
    /// One call by a daemon that has seen `relied_on`; with the answer, what the table is known by after it.
    async fn relying(
        &self,
        relied_on: Option<&TableState>,
        right: Right,
        call: Call,
    ) -> (Result<(), KeyFailure>, Option<TableState>) {
        let batch = Batch {
            relied_on: relied_on.cloned(),
            ..self.batch(right, vec![call])
        };
        let mut answer = child().call(&batch).await.expect("a reply");
        (answer.results.remove(0).map(|_| ()), answer.table)
    }
}

#[tokio::test]
async fn whatever_is_changed_in_the_table_without_the_master_key_is_refused() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let rotation = KeyChange::SetRotation { days: Some(90) };
    place.change("default", rotation).await.unwrap();
    let schedule = KeyChange::ScheduleDeletion { days: 7 };
    place.change("other", schedule).await.unwrap();
    let to_default = AliasChange::Create {
        key: "default".to_owned(),
    };
    place.change_alias("alias/a", to_default).await.unwrap();
    let put = tombstone(&["gone"], &["key"]);
    place.call(Right::Administer, put).await.unwrap();
    let sound = fs::read(place.database()).unwrap();
    for change in [
        "UPDATE keys SET state = 'enabled' WHERE name = 'other'",
        "UPDATE keys SET delete_wall = delete_wall - 604800 WHERE name = 'other'",
        "UPDATE keys SET delete_counted = 0 WHERE name = 'other'",
        "UPDATE keys SET rotate_wall = NULL, rotate_counted = NULL, rotation_days = NULL WHERE name = 'default'",
        "UPDATE keys SET name = CASE name WHEN 'default' THEN 'o' ELSE name END",
        "DELETE FROM versions WHERE key_id = (SELECT id FROM keys WHERE name = 'other')",
        "UPDATE versions SET version = 2",
        "UPDATE versions SET cause = 'on-demand'",
        "UPDATE aliases SET key_id = (SELECT id FROM keys WHERE name = 'other')",
        "UPDATE aliases SET name = 'alias/b'",
        "DELETE FROM aliases",
        "DELETE FROM tombstones",
        "DELETE FROM tombstones WHERE name = 'sealvol:data-key'",
        "UPDATE tombstones SET value = 'another' WHERE value = 'gone'",
        "UPDATE tombstones SET name = 'sealvol:data-key' WHERE value = 'gone'",
        "UPDATE tombstones SET created = created - 1",
        "INSERT INTO tombstones (name, value, created) VALUES ('sealvol:volume', 'another', 1)",
        "UPDATE meta SET counted = counted + 1",
        "UPDATE meta SET changes = changes + 1",
        "UPDATE meta SET seen_wall = 0",
        "UPDATE meta SET mac = x''",
        "UPDATE meta SET mac = zeroblob(32)",
    ] {
        place.sql(change);
        for (right, call) in [
            (Right::Attach, Call::ListKeys),
            (Right::Administer, Call::Tend),
            (Right::Administer, Call::AcceptTable),
        ] {
            let refusal = place.refusal(right, call).await;
            assert_eq!(refusal, (TAMPER, "TableChanged".to_owned()), "{change}");
        }
        fs::write(place.database(), &sound).unwrap();
    }
    place.call(Right::Attach, Call::ListKeys).await.unwrap();
}

#[tokio::test]
async fn an_older_table_is_refused_until_it_is_accepted_and_the_given_up_one_from_then_on() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let use_it = || unwrap("default", &blob, &context("1"));
    let old = fs::read(place.database()).unwrap();
    let disable = change("default", KeyChange::Disable);
    let (done, newest) = place.relying(None, Right::Administer, disable).await;
    done.unwrap();
    let newest = newest.expect("a table");
    let given_up = fs::read(place.database()).unwrap();

    // The key was disabled; whoever puts the old file back enables it.
    fs::write(place.database(), &old).unwrap();
    for (right, call) in [(Right::Attach, use_it()), (Right::Administer, Call::Tend)] {
        let (refused, table) = place.relying(Some(&newest), right, call).await;
        let refused = named(refused.unwrap_err());
        assert_eq!(refused, (TAMPER, "TableRolledBack".to_owned()));
        assert_eq!(table, None);
    }
    assert_eq!(
        fs::read(place.database()).unwrap(),
        old,
        "and nothing is written"
    );

    let accept = Call::AcceptTable;
    let (done, accepted) = place
        .relying(Some(&newest), Right::Administer, accept)
        .await;
    done.unwrap();
    let accepted = accepted.expect("a table");
    assert!(accepted.version > newest.version);
    let (done, _) = place
        .relying(Some(&accepted), Right::Attach, use_it())
        .await;
    done.unwrap();
    fs::write(place.database(), &given_up).unwrap();
    let (refused, _) = place
        .relying(Some(&accepted), Right::Attach, Call::ListKeys)
        .await;
    assert_eq!(named(refused.unwrap_err()).1, "TableRolledBack");
}

#[tokio::test]
async fn another_table_of_the_same_age_and_another_database_are_refused() {
    let place = Place::with_default_key().await;
    let old = fs::read(place.database()).unwrap();
    let step = |how| place.relying(None, Right::Administer, change("default", how));
    let newest = step(KeyChange::Disable).await.1.expect("a table");
    fs::write(place.database(), &old).unwrap();
    let other = step(KeyChange::Rotate).await.1.expect("a table");
    assert_eq!(other.version, newest.version);
    let (refused, _) = place
        .relying(Some(&newest), Right::Attach, Call::ListKeys)
        .await;
    assert_eq!(named(refused.unwrap_err()).1, "TableRolledBack");

    let elsewhere = Place::with_default_key().await;
    let (refused, _) = elsewhere
        .relying(Some(&newest), Right::Attach, Call::ListKeys)
        .await;
    assert_eq!(
        named(refused.unwrap_err()),
        (TAMPER, "OtherDatabase".to_owned())
    );
    let accept = Call::AcceptTable;
    let (done, table) = elsewhere
        .relying(Some(&newest), Right::Administer, accept)
        .await;
    done.unwrap();
    assert!(table.expect("a table").version > newest.version);
}

#[tokio::test]
async fn to_accept_a_table_is_a_batch_of_its_own() {
    let place = Place::with_default_key().await;
    let calls = vec![Call::ListKeys, Call::AcceptTable];
    let results = place.answer(Right::Administer, calls).await.results;
    assert_eq!(
        results[1].clone().unwrap_err().provider_error,
        "ValidationException"
    );
}

/// The database as an earlier release made it, under the same master key.
fn make_format_1(place: &Place) {
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection
        .execute_batch(
            "DROP TABLE tombstones; DROP TABLE policies; DROP TABLE import_keys; DROP TABLE external_keys; DROP TABLE aliases;
             CREATE TABLE meta_1 AS SELECT one, 1 AS format, id, created, master_key, argon2_salt, argon2_memory, \
                 argon2_passes, argon2_lanes, master_check FROM meta;
             CREATE TABLE keys_1 (id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created INTEGER NOT NULL) STRICT;
             CREATE TABLE versions_1 (key_id BLOB NOT NULL REFERENCES keys_1 (id), version INTEGER NOT NULL, created INTEGER NOT NULL,
                 sealed BLOB NOT NULL, PRIMARY KEY (key_id, version)) STRICT;
             INSERT INTO keys_1 SELECT id, name, state, created FROM keys;
             INSERT INTO versions_1 SELECT key_id, version, created, sealed FROM versions;
             DROP TABLE versions; DROP TABLE keys; DROP TABLE meta;
             ALTER TABLE meta_1 RENAME TO meta; ALTER TABLE keys_1 RENAME TO keys; ALTER TABLE versions_1 RENAME TO versions;",
        )
        .unwrap();
}

#[tokio::test]
async fn a_database_of_the_first_format_is_taken_over_once() {
    let place = Place::with_default_key().await;
    let wrapped = place.generate("default", &context("1")).await;
    let known = place
        .answer(Right::Attach, vec![Call::ListKeys])
        .await
        .table;
    make_format_1(&place);
    // Its states have no MAC. Whoever makes one of a table that had one is seen.
    let (refused, _) = place
        .relying(known.as_ref(), Right::Attach, Call::ListKeys)
        .await;
    assert_eq!(named(refused.unwrap_err()).1, "TableRolledBack");

    let call = || unwrap("default", &wrapped.blob, &context("1"));
    let (done, table) = place.relying(None, Right::Attach, call()).await;
    done.unwrap();
    assert_eq!(table.expect("a table").version, 1);
    place.change("default", KeyChange::Rotate).await.unwrap();
    place.unwrap(call()).await.expect("as before");
}

impl Place {
    /// The tables as an earlier format had them, whose MAC is to be made anew.
    pub(crate) fn make_format(&self, format: u32) {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        for (since, table) in [
            (6, "tombstones"),
            (5, "policies"),
            (4, "import_keys"),
            (4, "external_keys"),
            (3, "aliases"),
        ] {
            if since > format {
                let sql = format!("DROP TABLE {table}");
                connection.execute_batch(&sql).unwrap();
            }
        }
        let sql = "UPDATE meta SET format = ?1";
        connection.execute(sql, [format]).unwrap();
    }

    /// The MAC that a release of that format would have made, by another implementation than ours.
    pub(crate) fn mac_anew(&self, format: u32) {
        let output = table_mac(self, &["--write", "--format", &format.to_string()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

#[tokio::test]
async fn a_database_of_the_second_format_is_taken_over_if_its_mac_is_sound() {
    let place = Place::with_default_key().await;
    place.change("default", KeyChange::Rotate).await.unwrap();
    let wrapped = place.generate("default", &context("1")).await;
    let answer = place.answer(Right::Attach, vec![Call::ListKeys]).await;
    let known = answer.table.expect("a table");
    place.make_format(2);
    place.sql("UPDATE keys SET state = 'disabled'");
    for right in [Right::Attach, Right::Administer] {
        let refusal = place.refusal(right, Call::ListKeys).await;
        assert_eq!(refusal, (TAMPER, "TableChanged".to_owned()));
    }
    place.sql("UPDATE keys SET state = 'enabled'");
    place.mac_anew(2);
    let call = || unwrap("default", &wrapped.blob, &context("1"));
    // Older than what was relied on, it stays as it is.
    let newer = TableState {
        version: known.version + 1,
        ..known.clone()
    };
    let before = fs::read(place.database()).unwrap();
    let (refused, _) = place.relying(Some(&newer), Right::Attach, call()).await;
    assert_eq!(named(refused.unwrap_err()).1, "TableRolledBack");
    assert_eq!(fs::read(place.database()).unwrap(), before);

    let (done, table) = place.relying(None, Right::Attach, call()).await;
    done.unwrap();
    assert_eq!(table.expect("a table").version, known.version + 1);
    place.unwrap(call()).await.expect("as before");
    let alias = AliasChange::Create {
        key: "default".to_owned(),
    };
    place.change_alias("alias/new", alias).await.unwrap();
}

#[tokio::test]
async fn a_database_of_the_third_format_keeps_its_aliases() {
    let place = Place::with_default_key().await;
    let alias = AliasChange::Create {
        key: "default".to_owned(),
    };
    place.change_alias("alias/a", alias).await.unwrap();
    let blob = place.generate("alias/a", &context("1")).await.blob;
    place.make_format(3);
    place.sql("UPDATE aliases SET name = 'alias/b'");
    let refusal = place.refusal(Right::Attach, Call::ListKeys).await;
    assert_eq!(refusal, (TAMPER, "TableChanged".to_owned()));
    place.mac_anew(3);
    let call = unwrap("alias/b", &blob, &context("1"));
    place.unwrap(call).await.expect("taken over");
    place.create_external_key("own").await;
}

#[tokio::test]
async fn the_keys_of_a_database_of_the_fourth_format_have_no_policy_yet() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    place.import("own", 1).await.unwrap();
    place.make_format(4);
    place.sql("UPDATE external_keys SET expires_wall = 1, expires_counted = 1");
    let refusal = place.refusal(Right::Attach, Call::ListKeys).await;
    assert_eq!(refusal, (TAMPER, "TableChanged".to_owned()));
    place.sql("UPDATE external_keys SET expires_wall = NULL, expires_counted = NULL");
    place.mac_anew(4);
    place.generate("own", &context("1")).await;
    let call = Call::Policy {
        key: "own".to_owned(),
    };
    let told = place.call(Right::Administer, call).await;
    assert_eq!(told, Ok(sealvol_control::keychild::Done::Policy(None)));
}

#[tokio::test]
async fn the_volumes_of_a_database_of_the_fifth_format_can_be_shredded() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let answer = place.answer(Right::Attach, vec![Call::ListKeys]).await;
    let known = answer.table.expect("a table");
    place.make_format(5);
    place.sql("UPDATE keys SET created = created + 1");
    let refusal = place.refusal(Right::Attach, Call::ListKeys).await;
    assert_eq!(refusal, (TAMPER, "TableChanged".to_owned()));
    place.mac_anew(5);
    let opened = unwrap("default", &blob, &context("1"));
    let (done, table) = place.relying(None, Right::Attach, opened.clone()).await;
    done.expect("taken over, and nothing is refused for ever yet");
    assert_eq!(table.expect("a table").version, known.version + 1);

    let put = tombstone(&["1"], &[]);
    place.call(Right::Administer, put).await.expect("put");
    let refusal = place.refusal(Right::Attach, opened).await;
    assert_eq!(refusal.0, FailureClass::GoneForEver);
}

/// What `tests/table_mac.py` says of a database.
fn table_mac(place: &Place, arguments: &[&str]) -> Output {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/table_mac.py");
    Command::new("python3")
        .arg(script)
        .arg("--database")
        .arg(place.database())
        .arg("--master-key-file")
        .arg(place.master_key_file())
        .args(arguments)
        .output()
        .expect("python3 runs")
}

#[tokio::test]
async fn another_implementation_makes_the_same_mac() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let rotation = KeyChange::SetRotation { days: Some(365) };
    place.change("other", rotation).await.unwrap();
    place.change("other", KeyChange::Rotate).await.unwrap();
    let alias = AliasChange::Create {
        key: "other".to_owned(),
    };
    place.change_alias("alias/a", alias).await.unwrap();
    let put = tombstone(&["b", "a"], &["k"]);
    place.call(Right::Administer, put).await.unwrap();
    let output = table_mac(&place, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "sound\n");
    place.sql("UPDATE keys SET created = created + 1");
    let refusal = place.refusal(Right::Attach, Call::ListKeys).await;
    assert_eq!(refusal.1, "TableChanged");
}
