//! Answers of the daemon as text for people. Scripts use `--json`, which is the answer as it came.

pub(crate) mod bench;

use std::time::Duration;

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::size::Size;

use crate::table::{fields, left, right, table};

pub(crate) fn volume_list(list: &api::VolumeList) -> String {
    let rows: Vec<_> = list
        .volumes
        .iter()
        .map(|volume| {
            [
                volume.name.to_string(),
                Size(volume.size).to_string(),
                volume.state.to_string(),
                key_of(volume),
                volume
                    .attachment
                    .as_ref()
                    .map_or_else(String::new, |a| a.uri.clone()),
            ]
        })
        .collect();
    table(
        [
            left("NAME"),
            right("SIZE"),
            left("STATE"),
            left("KEY"),
            left("URI"),
        ],
        &rows,
    )
}

fn key_of(volume: &api::Volume) -> String {
    if volume.ephemeral {
        "none (ephemeral)".to_owned()
    } else if is_given(volume) {
        format!("{} (given at each attach)", volume.key)
    } else {
        volume.key.clone()
    }
}

/// Whether nobody wraps its data key, and whoever attaches it gives it.
fn is_given(volume: &api::Volume) -> bool {
    volume.key == KeyRef::provided().to_string()
}

pub(crate) fn stopping(stopping: &api::Stopping) -> String {
    let names: Vec<&str> = stopping
        .dropped
        .iter()
        .map(api::VolumeName::as_str)
        .collect();
    if names.is_empty() {
        return "The daemon stops\n".to_owned();
    }
    format!(
        "The daemon stops; gone is what these held: {}\n",
        names.join(", ")
    )
}

pub(crate) fn volume(volume: &api::Volume) -> String {
    let mut pairs = vec![
        ("name", volume.name.to_string()),
        ("id", volume.id.clone()),
        ("state", volume.state.to_string()),
        ("size", size_with_bytes(volume.size)),
        ("sector size", volume.sector_size.to_string()),
        ("created", volume.created.clone()),
        ("key", key_of(volume)),
    ];
    if !volume.ephemeral && !is_given(volume) {
        let id = format!("{} version {}", volume.key_id, volume.key_version);
        pairs.push(("key id", id));
    }
    pairs.extend(
        volume
            .key_set
            .iter()
            .map(|set| ("key set", set.to_string())),
    );
    pairs.push(("backing", volume.backing.display().to_string()));
    pairs.extend(volume.limits.iter().map(|l| ("limits", limits(l))));
    if let Some(attachment) = &volume.attachment {
        pairs.extend([
            ("uri", attachment.uri.clone()),
            (
                "mode",
                if attachment.read_only {
                    "read-only"
                } else {
                    "read-write"
                }
                .to_owned(),
            ),
            ("allowed", uids(&attachment.allow)),
            ("attached by", format!("uid {}", attachment.attached_by)),
            ("connections", attachment.connections.to_string()),
            ("access", attachment.access.clone()),
        ]);
        let waits = &attachment.waits;
        if waits.count > 0 {
            pairs.push(("waits", waits_line(waits)));
        }
    }
    pairs.extend(volume.loss.iter().map(|loss| ("loss", loss.clone())));
    pairs.extend(
        volume
            .attach_failure
            .iter()
            .map(|why| ("attach failure", why.clone())),
    );
    if let Some(found) = &volume.enforcement {
        pairs.push(("on revoke", revocation(Some(found))));
    }
    pairs.push(("depth", volume.depth.to_string()));
    pairs.extend(volume.origin.iter().map(|from| ("origin", origin(from))));
    pairs.extend(volume.job.iter().map(|job| ("job", job.to_string())));
    for layer in &volume.layers {
        pairs.push(("layer", layer_line(layer)));
    }
    fields(&pairs)
}

/// How long requests waited for snapshots.
fn waits_line(waits: &api::Waits) -> String {
    let millis = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1000.0;
    format!(
        "{} requests for changes of its layers, 99 % of them at most {:.3} ms, the longest {:.3} ms",
        waits.count,
        millis(waits.p99),
        millis(waits.longest)
    )
}

pub(crate) fn on_revoke(volume: &api::Volume) -> String {
    let what = revocation(volume.enforcement.as_ref());
    format!(
        "Volume {}, if its key is revoked while it is attached: {what}\n",
        volume.name
    )
}

fn revocation(enforcement: Option<&api::Enforcement>) -> String {
    let Some(found) = enforcement else {
        return "hold".to_owned();
    };
    let api::Enforcement {
        every_seconds,
        grace_seconds,
        away_seconds,
    } = found;
    let away = match away_seconds {
        0 => String::new(),
        seconds => format!("; its key service has been away for {seconds} s"),
    };
    format!("enforce, asked for every {every_seconds} s, grace {grace_seconds} s{away}")
}

pub(crate) fn limited(volume: &api::Volume) -> String {
    let name = &volume.name;
    match &volume.limits {
        None => format!("Volume {name} has no limits\n"),
        Some(found) => format!("Volume {name} is limited to {}\n", limits(found)),
    }
}

fn limits(limits: &api::Limits) -> String {
    let iops = limits.iops.map(|iops| format!("{iops} IOPS"));
    let bandwidth = limits.bandwidth.map(|rate| format!("{}/s", Size(rate)));
    let both: Vec<_> = iops.into_iter().chain(bandwidth).collect();
    format!("{}, burst {} s", both.join(", "), limits.burst_seconds)
}

fn origin(origin: &api::Origin) -> String {
    let snapshot = match &origin.snapshot {
        Some(snapshot) => format!("snapshot {snapshot}"),
        None => "a snapshot that is deleted".to_owned(),
    };
    format!(
        "{snapshot} (layer {} of volume {})",
        origin.layer, origin.volume
    )
}

fn layer_line(layer: &api::Layer) -> String {
    let mut line = format!(
        "{} data key {} generation {}",
        layer.id, layer.data_key, layer.generation
    );
    if layer.sealed {
        line += " sealed";
    }
    if let Some(snapshot) = &layer.snapshot {
        line += &format!(" snapshot {snapshot}");
    }
    if let Some(volume) = &layer.from_volume {
        line += &format!(" from volume {volume}");
    }
    line
}

pub(crate) fn created(volume: &api::Volume) -> String {
    let size = Size(volume.size);
    let from = volume.origin.as_ref().and_then(|o| o.snapshot.as_ref());
    let from = from.map_or_else(String::new, |from| format!(" from {from}"));
    let mut text = format!(
        "Volume {} created{from}: {size}, key {}",
        volume.name,
        key_of(volume)
    );
    if !volume.ephemeral && !is_given(volume) {
        text += &format!(" version {}", volume.key_version);
    }
    text += "\n";
    if let Some(job) = volume.job {
        text +=
            &format!("Job {job} copies what it shares into it; see `sealvol job watch {job}`\n");
    }
    text
}

pub(crate) fn attached(volume: &api::Volume) -> String {
    volume
        .attachment
        .as_ref()
        .map_or_else(String::new, |a| format!("{}\n", a.uri))
}

pub(crate) fn detached(volume: &api::Volume) -> String {
    format!("Volume {} detached\n", volume.name)
}

pub(crate) fn resized(volume: &api::Volume) -> String {
    format!(
        "Volume {} is {} now\n",
        volume.name,
        size_with_bytes(volume.size)
    )
}

pub(crate) fn flattened(name: &api::VolumeName, flattened: &api::Flattened) -> String {
    match flattened.layers {
        1 => format!("Volume {name} has one layer: there is nothing to flatten\n"),
        layers => format!("Volume {name} has {layers} layers\n"),
    }
}

pub(crate) fn adopted(adopted: &api::Adopted) -> String {
    let volume = &adopted.volume;
    let proof = if adopted.forgeable {
        "not proved: its data key is wrapped by a public key, and whoever has that could have made it"
    } else if adopted.authenticated {
        "proved by the MAC under its data key"
    } else {
        "without a MAC: it was never attached, and its data is empty"
    };
    let layer = volume
        .layers
        .first()
        .map_or_else(String::new, |layer| layer.id.clone());
    let closed = if adopted.clean {
        "closed in good order"
    } else {
        "not closed in good order"
    };
    let generation = adopted.generation;
    fields(&[
        ("adopted", volume.name.to_string()),
        ("volume id", volume.id.clone()),
        ("layer", format!("{layer} ({proof})")),
        ("size", size_with_bytes(volume.size)),
        ("sector size", volume.sector_size.to_string()),
        (
            "key",
            format!(
                "{} ({} version {})",
                volume.key, volume.key_id, volume.key_version
            ),
        ),
        ("generation", format!("{generation}, {closed}")),
        (
            "not proved",
            "that this is its newest state: an older copy of the layer looks the same".to_owned(),
        ),
    ])
}

pub(crate) fn deleted(deleted: &api::Deleted) -> String {
    let how = if deleted.shredded {
        ", its wrapped keys overwritten"
    } else {
        ""
    };
    let kept = match deleted.layers_kept {
        0 => String::new(),
        count => format!("; {count} of its layers stay, other volumes stand on them"),
    };
    let mut text = format!("Volume {} deleted{how}{kept}\n", deleted.name);
    if let Some(proof) = &deleted.proof {
        shred_proof(&mut text, proof);
    }
    text
}

/// What holds of copies that are elsewhere.
fn shred_proof(text: &mut String, proof: &api::ShredProof) {
    for stands in &proof.tombstones {
        text.push_str(&format!(
            "Refused for ever by {}, wherever copies are (key database {}, change {})\n",
            stands.provider, stands.database, stands.changes
        ));
    }
    for end in &proof.ends {
        text.push_str(&format!(
            "No proof: copies elsewhere open under {}, since {}. To end them, {}\n",
            end.key, end.cause, end.end
        ));
        if let Some(command) = &end.command {
            text.push_str(&format!("    {command}\n"));
        }
    }
    if proof.layers_left > 0 {
        text.push_str(&format!(
            "No proof: {} layers that were made for it stay, other volumes stand on them\n",
            proof.layers_left
        ));
    }
}

pub(crate) fn volume_map(map: &api::VolumeMap) -> String {
    let rows: Vec<_> = map
        .runs
        .iter()
        .map(|run| {
            [
                run.offset.to_string(),
                run.length.to_string(),
                run.state.clone(),
                run.layer.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(
        [
            right("OFFSET"),
            right("LENGTH"),
            left("STATE"),
            left("LAYER"),
        ],
        &rows,
    )
}

pub(crate) fn status(status: &api::Status) -> String {
    let volumes: Vec<_> = status
        .volumes
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let memory = &status.key_memory;
    let protection = match &memory.failure {
        Some(why) => format!("{}: {why}", memory.protection),
        None => format!(
            "{}, {} keys in {} locked",
            memory.protection,
            memory.keys,
            Size(memory.locked_bytes as u64)
        ),
    };
    let mut pairs = vec![
        ("state", status.state.clone()),
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("started", status.started.clone()),
        ("state directory", status.state_dir.display().to_string()),
        ("listening", status.listening.join(" ")),
        ("key memory", protection),
        ("key services", key_services(&status.key_services)),
        ("audit log", audit_log(&status.audit)),
        ("self-test", selftest_result(&status.selftest)),
        (
            "volumes",
            if volumes.is_empty() {
                "none".to_owned()
            } else {
                volumes.join(", ")
            },
        ),
    ];
    if !status.ephemeral.is_empty() {
        let names: Vec<&str> = status
            .ephemeral
            .iter()
            .map(api::VolumeName::as_str)
            .collect();
        pairs.push(("gone with a stop", names.join(", ")));
    }
    let failures = status.failures.iter();
    pairs.extend(failures.map(|f| ("failure", format!("{}: {}", f.subject, f.message))));
    fields(&pairs)
}

fn key_services(services: &[api::KeyServiceStatus]) -> String {
    let service = |service: &api::KeyServiceStatus| {
        let api::KeyServiceStatus { name, kind, at, .. } = service;
        let master_key = service.master_key.as_ref();
        let master_key =
            master_key.map_or_else(String::new, |kind| format!("; master key: {kind}"));
        let everything = if service.single_credential {
            "; one credential for everything"
        } else {
            ""
        };
        format!("{name} ({kind}, {at}{master_key}{everything})")
    };
    services.iter().map(service).collect::<Vec<_>>().join(", ")
}

fn audit_log(audit: &api::AuditStatus) -> String {
    let head = match &audit.head {
        Some(head) => format!("last record {head}"),
        None => "no record yet".to_owned(),
    };
    match &audit.verification_key {
        Some(path) => format!("{head}; move {} to another machine", path.display()),
        None => head,
    }
}

pub(crate) fn selftest(report: &api::SelfTest) -> String {
    let mut text: String = report
        .tests
        .iter()
        .map(|name| format!("ok      {name}\n"))
        .collect();
    if let Some(failure) = &report.failure {
        text.push_str(&format!("FAILED  {failure}\n"));
    }
    text
}

fn selftest_result(report: &api::SelfTest) -> String {
    match &report.failure {
        None => format!("passed ({} tests)", report.tests.len()),
        Some(failure) => format!("FAILED: {failure}"),
    }
}

pub(crate) fn size_with_bytes(size: u64) -> String {
    format!("{} ({size} bytes)", Size(size))
}

pub(crate) fn uids(allow: &[u32]) -> String {
    let texts: Vec<_> = allow.iter().map(|uid| format!("uid {uid}")).collect();
    texts.join(", ")
}

#[cfg(test)]
#[path = "render_golden.rs"]
mod golden;
