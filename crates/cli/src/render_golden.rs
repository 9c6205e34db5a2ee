//! What people see, to the letter.

use sealvol_control::api;

use super::*;

fn volume_fixture(name: &str, state: api::VolumeState) -> api::Volume {
    api::Volume {
        id: "6f2c0e46-8f0f-4d2e-9a37-2f1f6d0c9b11".into(),
        name: name.parse().expect("a valid name"),
        size: 10 << 30,
        sector_size: 4096,
        state,
        created: "2026-02-03T04:05:06Z".into(),
        key: "local:default".into(),
        key_id: "0d7c".into(),
        key_version: 1,
        key_set: None,
        ephemeral: false,
        backing: "/var/lib/sealvol/layers".into(),
        limits: None,
        enforcement: None,
        attachment: None,
        loss: None,
        attach_failure: None,
        layers: vec![api::Layer {
            id: "8a1b".into(),
            data_key: "c3d4".into(),
            generation: 7,
            sealed: false,
            backing: "/var/lib/sealvol/layers".into(),
            from_volume: None,
            snapshot: None,
        }],
        depth: 1,
        origin: None,
        job: None,
    }
}

fn attached_fixture(name: &str) -> api::Volume {
    let attachment = api::Attachment {
        uri: format!("nbd+unix:///{name}?socket=/run/sealvol/nbd.sock"),
        read_only: false,
        allow: vec![0, 1000],
        attached_by: 1000,
        connections: 2,
        access: "plain calls inline".into(),
        waits: api::Waits {
            count: 3,
            p99: 87_041,
            longest: 1_250_000,
            histogram: Vec::new(),
        },
    };
    let attachment = Some(attachment);
    api::Volume {
        attachment,
        ..volume_fixture(name, api::VolumeState::Attached)
    }
}

#[test]
fn volume_list_aligns_its_columns() {
    let mut small = volume_fixture("a", api::VolumeState::Available);
    small.size = 1536 << 20;
    let list = api::VolumeList {
        volumes: vec![small, attached_fixture("database")],
    };
    assert_eq!(
        volume_list(&list),
        "\
NAME      SIZE  STATE      KEY            URI
a         1.5G  available  local:default
database   10G  attached   local:default  nbd+unix:///database?socket=/run/sealvol/nbd.sock
"
    );
}

#[test]
fn volume_show_lists_what_is_known() {
    let mut shown = attached_fixture("database");
    shown.loss = Some("fdatasync of data failed: I/O error".into());
    assert_eq!(
        volume(&shown),
        "\
name:         database
id:           6f2c0e46-8f0f-4d2e-9a37-2f1f6d0c9b11
state:        attached
size:         10G (10737418240 bytes)
sector size:  4096
created:      2026-02-03T04:05:06Z
key:          local:default
key id:       0d7c version 1
backing:      /var/lib/sealvol/layers
uri:          nbd+unix:///database?socket=/run/sealvol/nbd.sock
mode:         read-write
allowed:      uid 0, uid 1000
attached by:  uid 1000
connections:  2
access:       plain calls inline
waits:        3 requests for changes of its layers, 99 % of them at most 0.087 ms, the longest 1.250 ms
loss:         fdatasync of data failed: I/O error
depth:        1
layer:        8a1b data key c3d4 generation 7
"
    );
}

#[test]
fn attach_prints_the_uri_alone() {
    assert_eq!(
        attached(&attached_fixture("v")),
        "nbd+unix:///v?socket=/run/sealvol/nbd.sock\n"
    );
}

#[test]
fn actions_say_what_they_did() {
    let volume = volume_fixture("v", api::VolumeState::Available);
    assert_eq!(
        created(&volume),
        "Volume v created: 10G, key local:default version 1\n"
    );
    assert_eq!(limited(&volume), "Volume v has no limits\n");
    let limits = api::Limits {
        iops: Some(3000),
        bandwidth: Some(125 << 20),
        burst_seconds: 60,
    };
    let slow = api::Volume {
        limits: Some(limits),
        enforcement: Some(api::Enforcement {
            every_seconds: 300,
            grace_seconds: 86_400,
            away_seconds: 7,
        }),
        ..volume.clone()
    };
    let said = "Volume v is limited to 3000 IOPS, 125M/s, burst 60 s\n";
    assert_eq!(limited(&slow), said);
    assert_eq!(
        on_revoke(&volume),
        "Volume v, if its key is revoked while it is attached: hold\n"
    );
    assert_eq!(
        on_revoke(&slow),
        "Volume v, if its key is revoked while it is attached: enforce, asked for every 300 s, grace 86400 s; its key \
         service has been away for 7 s\n"
    );
    assert_eq!(detached(&volume), "Volume v detached\n");
    assert_eq!(
        resized(&volume),
        "Volume v is 10G (10737418240 bytes) now\n"
    );
    let gone = api::Deleted {
        name: volume.name,
        shredded: true,
        layers_kept: 0,
        proof: None,
    };
    assert_eq!(
        deleted(&gone),
        "Volume v deleted, its wrapped keys overwritten\n"
    );
    let shared = api::Deleted {
        shredded: false,
        layers_kept: 2,
        ..gone
    };
    assert_eq!(
        deleted(&shared),
        "Volume v deleted; 2 of its layers stay, other volumes stand on them\n"
    );
}

#[test]
fn a_shred_says_who_refuses_copies_and_what_alone_ends_others() {
    let gone = api::Deleted {
        name: "v".parse().expect("a valid name"),
        shredded: true,
        layers_kept: 0,
        proof: Some(api::ShredProof {
            complete: true,
            tombstones: vec![api::VolumeTombstone {
                provider: "local".into(),
                database: "0d7c".into(),
                changes: 7,
            }],
            ends: Vec::new(),
            layers_left: 0,
        }),
    };
    assert_eq!(
        deleted(&gone),
        "Volume v deleted, its wrapped keys overwritten\n\
         Refused for ever by local, wherever copies are (key database 0d7c, change 7)\n"
    );
    let unproved = api::Deleted {
        proof: Some(api::ShredProof {
            ends: vec![api::OnlyEnd {
                key: "bao:volumes".into(),
                cause: "its key service forgets no single wrapped key".into(),
                end: "delete the key, which ends every volume under it".into(),
                command: Some("bao delete transit/keys/volumes".into()),
            }],
            layers_left: 2,
            ..api::ShredProof::default()
        }),
        ..gone
    };
    assert_eq!(
        deleted(&unproved),
        "Volume v deleted, its wrapped keys overwritten\n\
         No proof: copies elsewhere open under bao:volumes, since its key service forgets no single wrapped key. \
         To end them, delete the key, which ends every volume under it\n    \
         bao delete transit/keys/volumes\n\
         No proof: 2 layers that were made for it stay, other volumes stand on them\n"
    );
}

#[test]
fn a_volume_of_several_layers_shows_what_each_is() {
    let mut stacked = volume_fixture("v", api::VolumeState::Available);
    stacked.layers.push(api::Layer {
        id: "9e2f".into(),
        data_key: "c3d4".into(),
        generation: 12,
        sealed: true,
        backing: "/srv".into(),
        from_volume: Some("b7a0".into()),
        snapshot: Some("monday".parse().expect("a name")),
    });
    stacked.depth = 2;
    let text = volume(&stacked);
    let end = "\
depth:        2
layer:        8a1b data key c3d4 generation 7
layer:        9e2f data key c3d4 generation 12 sealed snapshot monday from volume b7a0
";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_clone_says_what_it_was_made_from() {
    let mut clone = volume_fixture("c", api::VolumeState::Available);
    clone.origin = Some(api::Origin {
        layer: "9e2f".into(),
        volume: "b7a0".into(),
        snapshot: Some("v@monday".parse().expect("a name")),
    });
    assert_eq!(
        created(&clone),
        "Volume c created from v@monday: 10G, key local:default version 1\n"
    );
    clone.job = Some(3);
    assert_eq!(
        created(&clone),
        "Volume c created from v@monday: 10G, key local:default version 1\n\
         Job 3 copies what it shares into it; see `sealvol job watch 3`\n"
    );
    let text = volume(&clone);
    assert!(text.contains("\njob:          3\nlayer:"), "{text}");
    clone.job = None;
    let line = "\norigin:       snapshot v@monday (layer 9e2f of volume b7a0)\nlayer:";
    let text = volume(&clone);
    assert!(text.contains(line), "{text}");
    clone.origin.as_mut().expect("an origin").snapshot = None;
    let line = "\norigin:       a snapshot that is deleted (layer 9e2f of volume b7a0)\n";
    let text = volume(&clone);
    assert!(text.contains(line), "{text}");
}

#[test]
fn map_lists_its_runs() {
    let data = api::MapRun {
        offset: 0,
        length: 8192,
        state: "data".into(),
        layer: Some("8a1b".into()),
    };
    let absent = api::MapRun {
        offset: 8192,
        length: 1 << 20,
        state: "absent".into(),
        layer: None,
    };
    assert_eq!(
        volume_map(&api::VolumeMap {
            runs: vec![data, absent],
            next: None
        }),
        "\
OFFSET   LENGTH  STATE   LAYER
     0     8192  data    8a1b
  8192  1048576  absent
"
    );
}

#[test]
fn status_names_protection_and_failures() {
    let shown = api::Status {
        version: "0.1.0".into(),
        pid: 42,
        state: "ready".into(),
        started: "2026-02-03T04:05:06Z".into(),
        state_dir: "/var/lib/sealvol".into(),
        listening: vec!["nbd+unix:///?socket=/run/sealvol/nbd.sock".into()],
        audit: api::AuditStatus {
            log: "/var/lib/sealvol/audit.log".into(),
            head: Some("7:c0ffee".into()),
            verification_key: Some("/var/lib/sealvol/audit.verification-key".into()),
        },
        ephemeral: Vec::new(),
        key_memory: api::KeyMemoryStatus {
            protection: "secretmem".into(),
            locked_bytes: 65536,
            keys: 2,
            failure: None,
        },
        key_services: vec![
            api::KeyServiceStatus {
                name: "bao".into(),
                kind: "transit".into(),
                at: "https://bao.example:8200".into(),
                master_key: None,
                single_credential: true,
            },
            api::KeyServiceStatus {
                name: "local".into(),
                kind: "local".into(),
                at: "/var/lib/sealvol/keys/local.db".into(),
                master_key: Some("wrapped by hsm:master".into()),
                single_credential: false,
            },
        ],
        selftest: api::SelfTest {
            passed: true,
            tests: vec!["AES-256-XTS 4096".into(), "SHA-256".into()],
            failure: None,
        },
        volumes: [("attached".to_owned(), 1), ("available".to_owned(), 3)].into(),
        failures: vec![api::Failure {
            subject: "database".into(),
            message: "key disabled".into(),
        }],
    };
    assert_eq!(
        status(&shown),
        "\
state:            ready
version:          0.1.0
pid:              42
started:          2026-02-03T04:05:06Z
state directory:  /var/lib/sealvol
listening:        nbd+unix:///?socket=/run/sealvol/nbd.sock
key memory:       secretmem, 2 keys in 64K locked
key services:     bao (transit, https://bao.example:8200; one credential for everything), local (local, /var/lib/sealvol/keys/local.db; master key: wrapped by hsm:master)
audit log:        last record 7:c0ffee; move /var/lib/sealvol/audit.verification-key to another machine
self-test:        passed (2 tests)
volumes:          1 attached, 3 available
failure:          database: key disabled
"
    );
}

#[test]
fn a_failed_selftest_stands_out() {
    let report = api::SelfTest {
        passed: false,
        tests: vec!["SHA-256".into()],
        failure: Some("AES-256-XTS 512: ciphertext differs".into()),
    };
    assert_eq!(
        selftest(&report),
        "ok      SHA-256\nFAILED  AES-256-XTS 512: ciphertext differs\n"
    );
}

#[test]
fn adopted_says_what_was_proved_and_what_not() {
    let mut answer = api::Adopted {
        volume: volume_fixture("found", api::VolumeState::Available),
        authenticated: true,
        generation: 7,
        clean: true,
        forgeable: false,
    };
    assert_eq!(
        adopted(&answer),
        "\
adopted:      found
volume id:    6f2c0e46-8f0f-4d2e-9a37-2f1f6d0c9b11
layer:        8a1b (proved by the MAC under its data key)
size:         10G (10737418240 bytes)
sector size:  4096
key:          local:default (0d7c version 1)
generation:   7, closed in good order
not proved:   that this is its newest state: an older copy of the layer looks the same
"
    );
    answer.authenticated = false;
    answer.clean = false;
    let text = adopted(&answer);
    assert!(text.contains("8a1b (without a MAC: it was never attached, and its data is empty)"));
    assert!(text.contains("7, not closed in good order"));
    answer.forgeable = true;
    assert!(adopted(&answer).contains("8a1b (not proved: its data key is wrapped by a public key"));
}

#[test]
fn flattened_says_that_one_layer_is_flat() {
    let answer = api::Flattened {
        layers: 1,
        written: 0,
        next: None,
    };
    let name = "v".parse().expect("a valid name");
    assert_eq!(
        flattened(&name, &answer),
        "Volume v has one layer: there is nothing to flatten\n"
    );
}
