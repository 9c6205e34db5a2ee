//! `key rewrap`: one volume, or one after the other.

use sealvol_control::api::{self, ErrorKind, Rewrapped, VolumeName};
use sealvol_control::client::{Client, ClientError};
use sealvol_control::key_ref::KeyRef;
use serde::Serialize;

use crate::args::Rewrap;
use crate::run::{CommandError, Printer};

/// What became of each volume that was asked for.
#[derive(Serialize)]
struct Report {
    rewrapped: Vec<Rewrapped>,
    failed: Vec<Failed>,
}

/// A volume that is under its former key still.
#[derive(Serialize)]
struct Failed {
    name: VolumeName,
    error: api::ApiError,
}

pub(crate) async fn run(
    client: &Client,
    print: &Printer,
    options: Rewrap,
) -> Result<(), CommandError> {
    let request = api::RewrapVolume {
        key: options.key,
        key_set: options.key_set,
    };
    if let Some(name) = options.name {
        let rewrapped = vec![client.rewrap_volume(&name, &request).await?];
        let failed = Vec::new();
        return print.answer(&Report { rewrapped, failed }, render);
    }
    let (mut rewrapped, mut failed, mut first) = (Vec::new(), Vec::new(), None);
    // An ephemeral volume has no wrapped key, nor has one whose key is given.
    let given = KeyRef::provided().to_string();
    let mut volumes = client.volumes().await?.volumes;
    volumes.retain(|volume| !volume.ephemeral && volume.key != given);
    let count = volumes.len();
    for volume in volumes {
        match client.rewrap_volume(&volume.name, &request).await {
            Ok(done) => rewrapped.push(done),
            Err(error) => {
                first = first.or_else(|| Some(error.kind()));
                failed.push(failure(volume.name, &error));
            }
        }
    }
    let left = failed.len();
    print.answer(&Report { rewrapped, failed }, render)?;
    first.map_or(Ok(()), |kind: ErrorKind| {
        Err(CommandError::NotAll { left, count, kind })
    })
}

fn failure(name: VolumeName, error: &ClientError) -> Failed {
    let error = api::ApiError {
        kind: error.kind(),
        message: error.to_string(),
        next_step: error.next_step(),
    };
    Failed { name, error }
}

fn render(report: &Report) -> String {
    let mut text: String = report.rewrapped.iter().map(one).collect();
    for failed in &report.failed {
        let next_step = failed.error.next_step.as_ref();
        let next_step = next_step.map_or_else(String::new, |step| format!(". {step}"));
        text += &format!(
            "Volume {} is not rewrapped: {}{next_step}\n",
            failed.name, failed.error.message
        );
    }
    text
}

pub(crate) fn one(done: &Rewrapped) -> String {
    let keys = match done.data_keys {
        1 => "1 data key".to_owned(),
        count => format!("{count} data keys"),
    };
    let mut text = format!(
        "Volume {} rewrapped: {keys} under {} version {}, before under {}\n",
        done.name,
        done.key,
        done.key_version,
        done.before.join(" and ")
    );
    if !done.layers_left.is_empty() {
        text += &format!(
            "  {} of its sealed layers are in use and keep their former copies: detach what uses them and run it again\n",
            done.layers_left.len()
        );
    }
    if !done.volumes_left.is_empty() {
        let names: Vec<_> = done.volumes_left.iter().map(VolumeName::as_str).collect();
        text += &format!(
            "  the former key still wraps these data keys for: {}\n",
            names.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(name: &str) -> Rewrapped {
        Rewrapped {
            name: name.parse().expect("a name"),
            key: "local:new".into(),
            key_id: "0d7c".into(),
            key_version: 2,
            data_keys: 1,
            before: vec!["local:9a11 version 1".into()],
            layers_left: Vec::new(),
            volumes_left: Vec::new(),
        }
    }

    #[test]
    fn what_the_former_key_still_opens_is_told() {
        let shared = Rewrapped {
            data_keys: 3,
            layers_left: vec!["8a1b".into(), "9e2f".into()],
            volumes_left: ["c", "d"].map(|name| name.parse().expect("a name")).into(),
            before: vec!["local:9a11 version 1".into(), "local:9a11 version 2".into()],
            ..done("v")
        };
        let error = api::ApiError {
            kind: ErrorKind::NotFound,
            message: "volume x: key local:new: does not exist".into(),
            next_step: Some("Name another".into()),
        };
        let name = "x".parse().expect("a name");
        let report = Report {
            rewrapped: vec![done("a"), shared],
            failed: vec![Failed { name, error }],
        };
        assert_eq!(
            render(&report),
            "\
Volume a rewrapped: 1 data key under local:new version 2, before under local:9a11 version 1
Volume v rewrapped: 3 data keys under local:new version 2, before under local:9a11 version 1 and local:9a11 version 2
  2 of its sealed layers are in use and keep their former copies: detach what uses them and run it again
  the former key still wraps these data keys for: c, d
Volume x is not rewrapped: volume x: key local:new: does not exist. Name another
"
        );
    }
}
