//! `key`: key-encryption keys, and what becomes of them.

use sealvol_control::api::{self, VolumeName};
use sealvol_control::client::Client;
use sealvol_control::keychild::KeyChange;

use crate::args::Key;
use crate::run::{CommandError, Printer};
use crate::table::{fields, left, right, table};
use crate::{alias, backup, import, key_set, policy, rewrap};

pub(crate) async fn run(client: &Client, print: &Printer, verb: Key) -> Result<(), CommandError> {
    let (key, change, even_if_used) = match verb {
        Key::Create { key, origin } => {
            let request = api::CreateKey { key, origin };
            return print.answer(&client.create_key(&request).await?, created);
        }
        Key::List { provider } => {
            return print.answer(&client.keys(provider.as_deref()).await?, list);
        }
        Key::Policy(verb) => return policy::run(client, print, verb).await,
        Key::Alias(verb) => return alias::run(client, print, verb).await,
        Key::Rewrap(options) => return rewrap::run(client, print, options).await,
        Key::Set(verb) => return key_set::run(client, print, verb).await,
        Key::Show { key } => return print.answer(&client.key(&key).await?, show),
        Key::AcceptTable { provider } => {
            return print.answer(&client.accept_key_table(&provider).await?, accepted);
        }
        Key::Backup(options) => return backup::run(client, print, options).await,
        Key::ImportParameters(options) => return import::parameters(client, print, options).await,
        Key::Import(options) => return import::material(client, print, options).await,
        Key::DeleteMaterial { key } => (key, KeyChange::DeleteMaterial, false),
        Key::Enable { key } => (key, KeyChange::Enable, false),
        Key::Disable { key } => (key, KeyChange::Disable, false),
        Key::Rotate { key } => (key, KeyChange::Rotate, false),
        Key::Rotation { key, every, .. } => (key, KeyChange::SetRotation { days: every }, false),
        Key::ScheduleDeletion {
            key,
            window,
            even_if_used,
        } => {
            let change = KeyChange::ScheduleDeletion { days: window };
            (key, change, even_if_used)
        }
        Key::CancelDeletion { key } => (key, KeyChange::CancelDeletion, false),
    };
    let request = api::ChangeKey {
        change,
        even_if_used,
    };
    let changed = client.change_key(&key, &request).await?;
    print.answer(&changed, |key| self::changed(key, &request.change))
}

fn list(list: &api::KeyList) -> String {
    let row = |key: &api::Key| {
        [
            key.key.clone(),
            key.version.to_string(),
            key.state.clone(),
            key.key_id.clone(),
        ]
    };
    let rows: Vec<_> = list.keys.iter().map(row).collect();
    table(
        [left("KEY"), right("VERSION"), left("STATE"), left("ID")],
        &rows,
    )
}

fn show(key: &api::Key) -> String {
    let mut pairs = vec![
        ("key", key.key.clone()),
        ("id", key.key_id.clone()),
        ("state", key.state.clone()),
        ("created", moment(&key.created)),
        (
            "creates-without-plaintext",
            if key.creates_without_plaintext {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ),
    ];
    pairs.extend(
        key.deletion
            .iter()
            .map(|when| ("destroyed", format!("not before {when}"))),
    );
    if let Some(origin) = &key.origin {
        let until = key.material_expires.as_ref();
        let until = until.map(|when| format!(", its material expires {when}"));
        pairs.push(("origin", format!("{origin}{}", until.unwrap_or_default())));
    }
    if let (Some(days), Some(next)) = (key.rotation_days, &key.next_rotation) {
        pairs.push(("rotation", format!("every {days} days, next {next}")));
    }
    let line = |version: &api::KeyVersion| {
        let (version, created) = (version.version, moment(&version.created));
        format!("{version} of {created}")
    };
    pairs.extend(
        key.versions
            .iter()
            .map(|version| ("version", line(version))),
    );
    pairs.extend(key.aliases.iter().map(|alias| ("alias", alias.clone())));
    pairs.extend(
        key.volumes
            .iter()
            .flatten()
            .map(|name| ("volume", name.to_string())),
    );
    fields(&pairs)
}

/// Some key services don't tell when a key was made.
fn moment(created: &str) -> String {
    if created.is_empty() {
        "an unknown time".to_owned()
    } else {
        created.to_owned()
    }
}

fn created(key: &api::Key) -> String {
    if key.state == "pending-import" {
        return format!(
            "Key {} created: id {}, pending import of its material\n",
            key.key, key.key_id
        );
    }
    format!(
        "Key {} created: id {} version {}\n",
        key.key, key.key_id, key.version
    )
}

fn accepted(table: &api::KeyTable) -> String {
    format!(
        "The keys of {} are as its database {} says; states before change {} of it are refused\n",
        table.provider, table.database, table.changes
    )
}

pub(crate) fn changed(key: &api::Key, change: &KeyChange) -> String {
    let name = &key.key;
    match change {
        KeyChange::Rotate => format!("Key {name} wraps by version {} now\n", key.version),
        KeyChange::SetRotation { .. } => match (key.rotation_days, &key.next_rotation) {
            (Some(days), Some(next)) => {
                format!("Key {name} is rotated every {days} days, next {next}\n")
            }
            _ => format!("Key {name} is not rotated by itself any more\n"),
        },
        _ => {
            let mut text = format!("Key {name} is {} now", key.state);
            if let Some(when) = &key.deletion {
                text += &format!(", and destroyed after {when} unless that is cancelled");
            }
            text.push('\n');
            let names: Vec<_> = key
                .volumes
                .iter()
                .flatten()
                .map(VolumeName::as_str)
                .collect();
            if key.state != "enabled" && !names.is_empty() {
                text += &format!(
                    "  volumes that can't be attached then: {}\n",
                    names.join(", ")
                );
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> api::Key {
        let version = |version, created: &str| api::KeyVersion {
            version,
            created: created.into(),
        };
        api::Key {
            key: "local:default".into(),
            key_id: "0d7c".into(),
            version: 2,
            state: "enabled".into(),
            created: "2026-02-03T04:05:06Z".into(),
            versions: vec![
                version(1, "2026-02-03T04:05:06Z"),
                version(2, "2026-05-04T04:05:06Z"),
            ],
            volumes: Some(
                ["db", "www"]
                    .map(|name| name.parse().expect("a name"))
                    .into(),
            ),
            ..api::Key::default()
        }
    }

    #[test]
    fn keys_are_a_table_and_one_is_a_record() {
        assert_eq!(
            list(&api::KeyList { keys: vec![key()] }),
            "\
KEY            VERSION  STATE    ID
local:default        2  enabled  0d7c
"
        );
        let rotated = api::Key {
            rotation_days: Some(90),
            next_rotation: Some("2026-08-02T04:05:06Z".into()),
            aliases: vec!["local:alias/www".into()],
            ..key()
        };
        assert_eq!(
            show(&rotated),
            "\
key:                        local:default
id:                         0d7c
state:                      enabled
created:                    2026-02-03T04:05:06Z
creates-without-plaintext:  no
rotation:                   every 90 days, next 2026-08-02T04:05:06Z
version:                    1 of 2026-02-03T04:05:06Z
version:                    2 of 2026-05-04T04:05:06Z
alias:                      local:alias/www
volume:                     db
volume:                     www
"
        );
        let by_service = api::Key {
            creates_without_plaintext: true,
            ..key()
        };
        assert!(show(&by_service).contains("creates-without-plaintext:  yes\n"));
        assert_eq!(
            created(&key()),
            "Key local:default created: id 0d7c version 2\n"
        );
        assert_eq!(
            changed(&rotated, &KeyChange::SetRotation { days: Some(90) }),
            "Key local:default is rotated every 90 days, next 2026-08-02T04:05:06Z\n"
        );
    }

    #[test]
    fn a_key_whose_material_is_imported_says_so() {
        let pending = api::Key {
            state: "pending-import".into(),
            origin: Some("external".into()),
            ..key()
        };
        assert_eq!(
            created(&pending),
            "Key local:default created: id 0d7c, pending import of its material\n"
        );
        assert!(show(&pending).contains("origin:                     external\n"));
        let deleted = changed(&pending, &KeyChange::DeleteMaterial);
        assert_eq!(
            deleted,
            "\
Key local:default is pending-import now
  volumes that can't be attached then: db, www
"
        );
        let imported = api::Key {
            material_expires: Some("2026-08-02T04:05:06Z".into()),
            state: "enabled".into(),
            ..pending
        };
        let line =
            "origin:                     external, its material expires 2026-08-02T04:05:06Z\n";
        assert!(show(&imported).contains(line));
    }

    #[test]
    fn a_key_that_is_not_enabled_names_what_needs_it() {
        let pending = api::Key {
            state: "pending-deletion".into(),
            deletion: Some("2026-06-03T04:05:06Z".into()),
            ..key()
        };
        assert_eq!(
            changed(&pending, &KeyChange::ScheduleDeletion { days: 30 }),
            "\
Key local:default is pending-deletion now, and destroyed after 2026-06-03T04:05:06Z unless that is cancelled
  volumes that can't be attached then: db, www
"
        );
        assert!(
            show(&pending)
                .contains("destroyed:                  not before 2026-06-03T04:05:06Z\n")
        );
        assert_eq!(
            changed(&key(), &KeyChange::Enable),
            "Key local:default is enabled now\n"
        );
    }
}
