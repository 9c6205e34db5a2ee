//! `sealvol snapshot …`, and attaching and detaching a snapshot: calls and their answers as text.

use std::os::fd::AsFd as _;

use sealvol_control::api::{self, SnapshotRef};
use sealvol_control::client::Client;
use sealvol_control::size::Size;
use serde::Serialize;

use crate::args::{Attach, Copy, Snapshot};
use crate::jobs;
use crate::render::{size_with_bytes, uids};
use crate::run::{CommandError, Printer};
use crate::table::{fields, left, right, table};

pub(crate) async fn run(
    client: &Client,
    print: &Printer,
    verb: Snapshot,
) -> Result<(), CommandError> {
    match verb {
        Snapshot::Create { names } => {
            let request = api::CreateSnapshots { snapshots: names };
            print.answer(&client.create_snapshots(&request).await?, created)
        }
        Snapshot::List { volume } => print.answer(&client.snapshots(volume.as_ref()).await?, list),
        Snapshot::Show {
            name,
            extents: false,
        } => print.answer(&client.snapshot(&name).await?, show),
        Snapshot::Show {
            name,
            extents: true,
        } => {
            let answer = Shown {
                snapshot: client.snapshot(&name).await?,
                changes: client.snapshot_changes(&name).await?,
            };
            print.answer(&answer, |shown| {
                format!("{}\n{}", show(&shown.snapshot), changes(&shown.changes))
            })
        }
        Snapshot::Copy(options) => copy(client, print, options).await,
        Snapshot::Delete { name } => print.answer(&client.delete_snapshot(&name).await?, deleted),
    }
}

async fn copy(client: &Client, print: &Printer, options: Copy) -> Result<(), CommandError> {
    let request = api::CopySnapshot {
        to: options.to,
        key: options.key,
        rate: options.rate.map(Size::bytes),
    };
    let copy = client.copy_snapshot(&options.name, &request).await?;
    match &copy.job {
        Some(job) if options.wait => jobs::watch(client, print, job.id).await,
        _ => print.answer(&copy, copied),
    }
}

/// A snapshot and what changed with it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    snapshot: api::Snapshot,
    changes: api::SnapshotChanges,
}

pub(crate) async fn attach(
    client: &Client,
    print: &Printer,
    name: &SnapshotRef,
    options: Attach,
) -> Result<(), CommandError> {
    if options.accept_loss || options.accept_rollback {
        return Err(CommandError::NotForSnapshots(name.clone()));
    }
    let request = api::AttachSnapshot {
        direct: options.direct,
        allow: options.allow,
    };
    let exported = match options.given.open()? {
        Some(key) => {
            let key = key.as_fd();
            client.attach_snapshot_with_key(name, &request, key).await
        }
        None => client.attach_snapshot(name, &request).await,
    };
    print.answer(&exported?, attached)
}

pub(crate) async fn detach(
    client: &Client,
    print: &Printer,
    name: &SnapshotRef,
    force: bool,
) -> Result<(), CommandError> {
    let request = api::DetachVolume { force };
    print.answer(&client.detach_snapshot(name, &request).await?, detached)
}

fn attached(snapshot: &api::Snapshot) -> String {
    let attachment = snapshot.attachment.as_ref();
    attachment.map_or_else(String::new, |a| format!("{}\n", a.uri))
}

fn detached(snapshot: &api::Snapshot) -> String {
    format!("Snapshot {} detached\n", snapshot.name)
}

fn created(list: &api::SnapshotList) -> String {
    let line = |snapshot: &api::Snapshot| {
        let pending = match snapshot.state {
            api::SnapshotState::Pending => ", to be sealed by the next attach",
            _ => "",
        };
        format!("Snapshot {} created{pending}\n", snapshot.name)
    };
    list.snapshots.iter().map(line).collect()
}

fn list(list: &api::SnapshotList) -> String {
    let rows: Vec<_> = list
        .snapshots
        .iter()
        .map(|snapshot| {
            [
                snapshot.name.to_string(),
                Size(snapshot.size).to_string(),
                Size(snapshot.own_bytes).to_string(),
                snapshot.state.to_string(),
                snapshot.created.clone(),
            ]
        })
        .collect();
    table(
        [
            left("NAME"),
            right("SIZE"),
            right("OWN"),
            left("STATE"),
            left("CREATED"),
        ],
        &rows,
    )
}

fn show(snapshot: &api::Snapshot) -> String {
    let mut pairs = vec![
        ("name", snapshot.name.to_string()),
        ("state", snapshot.state.to_string()),
        ("created", snapshot.created.clone()),
        ("size", size_with_bytes(snapshot.size)),
        ("own bytes", size_with_bytes(snapshot.own_bytes)),
        ("layer", snapshot.layer.clone()),
        ("depth", snapshot.depth.to_string()),
    ];
    let previous = snapshot.previous.as_ref();
    pairs.extend(previous.map(|previous| ("previous", previous.to_string())));
    if let Some(attachment) = &snapshot.attachment {
        pairs.extend([
            ("uri", attachment.uri.clone()),
            ("allowed", uids(&attachment.allow)),
            ("attached by", format!("uid {}", attachment.attached_by)),
            ("connections", attachment.connections.to_string()),
        ]);
    }
    let failure = snapshot.attach_failure.as_ref();
    pairs.extend(failure.map(|why| ("attach failure", why.clone())));
    fields(&pairs)
}

fn copied(copy: &api::SnapshotCopy) -> String {
    let (from, to, key) = (&copy.from, &copy.to, &copy.key);
    match &copy.job {
        Some(job) => format!(
            "Job {0}: {from} is copied to {to}, under key {key}. Watch it with `sealvol job watch {0}`\n",
            job.id
        ),
        None => format!("Snapshot {to} is there, under key {key}: it shares layers with {from}\n"),
    }
}

fn changes(changes: &api::SnapshotChanges) -> String {
    let rows: Vec<_> = changes
        .extents
        .iter()
        .map(|extent| {
            [
                extent.offset.to_string(),
                extent.length.to_string(),
                if extent.zero { "zero" } else { "data" }.to_owned(),
            ]
        })
        .collect();
    table(
        [right("OFFSET"), right("LENGTH"), left("CHANGED TO")],
        &rows,
    )
}

fn deleted(deleted: &api::SnapshotDeleted) -> String {
    let layer = match deleted.layer {
        api::DeletedLayer::Merging => {
            "its layer is being merged with the one above it, then its space is free"
        }
        api::DeletedLayer::WaitsForAttach => {
            "its layer is merged, and its space free, once the volume has been attached for writing"
        }
        api::DeletedLayer::Needed => "its layer is kept as long as several others stand on it",
    };
    format!("Snapshot {} deleted; {layer}\n", deleted.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str) -> api::Snapshot {
        api::Snapshot {
            name: name.parse().expect("a name"),
            layer: "0d0c".to_owned(),
            state: api::SnapshotState::Completed,
            created: "2026-02-03T04:05:06Z".to_owned(),
            size: 10 << 30,
            own_bytes: 3 << 20,
            depth: 2,
            previous: Some("web@monday".parse().expect("a name")),
            attachment: None,
            attach_failure: None,
        }
    }

    #[test]
    fn snapshots_are_listed_and_shown_for_people() {
        let snapshots = api::SnapshotList {
            snapshots: vec![snapshot("web@tuesday")],
        };
        assert_eq!(
            list(&snapshots),
            "NAME         SIZE  OWN  STATE      CREATED\n\
             web@tuesday   10G   3M  completed  2026-02-03T04:05:06Z\n"
        );
        assert_eq!(created(&snapshots), "Snapshot web@tuesday created\n");
        let pending = api::SnapshotList {
            snapshots: vec![api::Snapshot {
                state: api::SnapshotState::Pending,
                ..snapshot("web@tuesday")
            }],
        };
        assert_eq!(
            created(&pending),
            "Snapshot web@tuesday created, to be sealed by the next attach\n"
        );
        assert_eq!(
            show(&snapshots.snapshots[0]),
            "name:       web@tuesday\n\
             state:      completed\n\
             created:    2026-02-03T04:05:06Z\n\
             size:       10G (10737418240 bytes)\n\
             own bytes:  3M (3145728 bytes)\n\
             layer:      0d0c\n\
             depth:      2\n\
             previous:   web@monday\n"
        );
    }

    #[test]
    fn a_copy_is_there_or_a_job_is_told() {
        let mut copy = api::SnapshotCopy {
            from: "web@monday".parse().expect("a name"),
            to: "safe@monday".parse().expect("a name"),
            key: "local:safe".to_owned(),
            job: None,
            snapshot: Some(snapshot("safe@monday")),
        };
        assert_eq!(
            copied(&copy),
            "Snapshot safe@monday is there, under key local:safe: it shares layers with web@monday\n"
        );
        copy.job = Some(jobs::tests::job());
        assert_eq!(
            copied(&copy),
            "Job 7: web@monday is copied to safe@monday, under key local:safe. Watch it with `sealvol job watch 7`\n"
        );
    }

    #[test]
    fn what_changed_says_whether_it_is_data_or_zeros() {
        let found = api::SnapshotChanges {
            extents: vec![
                api::ChangedExtent {
                    offset: 0,
                    length: 4096,
                    zero: false,
                },
                api::ChangedExtent {
                    offset: 8192,
                    length: 16384,
                    zero: true,
                },
            ],
            next: None,
        };
        assert_eq!(
            changes(&found),
            "OFFSET  LENGTH  CHANGED TO\n     0    4096  data\n  8192   16384  zero\n"
        );
    }
}
