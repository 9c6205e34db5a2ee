//! `key set`: keys that volumes share by name.

use sealvol_control::api::{self, KeySetName};
use sealvol_control::client::Client;

use crate::args::KeySet;
use crate::run::{CommandError, Printer};
use crate::table::{fields, left, right, table};

pub(crate) async fn run(
    client: &Client,
    print: &Printer,
    verb: KeySet,
) -> Result<(), CommandError> {
    match verb {
        KeySet::Create { name, key, rewrap } => {
            let request = api::CreateKeySet { name, key, rewrap };
            print.answer(&client.create_key_set(&request).await?, created)
        }
        KeySet::List => print.answer(&client.key_sets().await?, list),
        KeySet::Show { name } => print.answer(&client.key_set(&name).await?, show),
        KeySet::Update { name, key, rewrap } => {
            let request = api::UpdateKeySet { key, rewrap };
            print.answer(&client.update_key_set(&name, &request).await?, updated)
        }
        KeySet::Delete { name } => print.answer(&client.delete_key_set(&name).await?, |set| {
            deleted(&set.name)
        }),
    }
}

fn created(set: &api::KeySet) -> String {
    format!("Key set {} created: key {}\n", set.name, set.key)
}

fn deleted(name: &KeySetName) -> String {
    format!("Key set {name} deleted\n")
}

fn list(list: &api::KeySetList) -> String {
    let row = |set: &api::KeySet| {
        [
            set.name.to_string(),
            set.key.clone(),
            set.rewrap.to_string(),
            set.members.len().to_string(),
            under_way(set).to_string(),
        ]
    };
    let rows: Vec<_> = list.key_sets.iter().map(row).collect();
    table(
        [
            left("NAME"),
            left("KEY"),
            left("REWRAP"),
            right("VOLUMES"),
            right("JOBS"),
        ],
        &rows,
    )
}

fn show(set: &api::KeySet) -> String {
    let mut pairs = vec![
        ("name", set.name.to_string()),
        ("key", set.key.clone()),
        ("rewrap", set.rewrap.to_string()),
        ("created", set.created.clone()),
    ];
    pairs.extend(set.members.iter().map(|member| {
        let job = member
            .job
            .map_or_else(String::new, |job| format!(", job {job}"));
        let line = format!(
            "{} under {} version {}{job}",
            member.volume, member.key, member.key_version
        );
        ("volume", line)
    }));
    fields(&pairs)
}

fn updated(set: &api::KeySet) -> String {
    let mut text = format!(
        "Key set {} names key {}, rewrap {}\n",
        set.name, set.key, set.rewrap
    );
    match under_way(set) {
        0 => {}
        jobs => {
            text += &format!(
                "  {jobs} of {} volumes are being wrapped anew: see `sealvol key set show {}`\n",
                set.members.len(),
                set.name
            );
        }
    }
    text
}

fn under_way(set: &api::KeySet) -> usize {
    let members = set.members.iter();
    members.filter(|member| member.job.is_some()).count()
}

#[cfg(test)]
mod tests {
    use sealvol_control::api::RewrapWhen;

    use super::*;

    #[test]
    fn a_set_tells_its_volumes_and_what_is_still_to_be_done() {
        let member = |name: &str, key: &str, job| api::KeySetMember {
            volume: name.parse().expect("a name"),
            key: key.into(),
            key_version: 1,
            job,
        };
        let set = api::KeySet {
            name: "prod".parse().expect("a name"),
            key: "bao:b".into(),
            rewrap: RewrapWhen::OnRotate,
            created: "2026-02-03T04:05:06Z".into(),
            members: vec![member("db", "bao:a", Some(7)), member("www", "bao:b", None)],
        };
        assert_eq!(
            show(&set),
            "\
name:     prod
key:      bao:b
rewrap:   on-rotate
created:  2026-02-03T04:05:06Z
volume:   db under bao:a version 1, job 7
volume:   www under bao:b version 1
"
        );
        assert_eq!(
            updated(&set),
            "\
Key set prod names key bao:b, rewrap on-rotate
  1 of 2 volumes are being wrapped anew: see `sealvol key set show prod`
"
        );
        assert_eq!(
            list(&api::KeySetList {
                key_sets: vec![set]
            }),
            "\
NAME  KEY    REWRAP     VOLUMES  JOBS
prod  bao:b  on-rotate        2     1
"
        );
    }
}
