//! Every state that a key can come to, met by volumes that are in use and by volumes that are not, under both rules of what a
//! revocation does: disabled, to be deleted, without its material, expired, retired, gone; and what is no revocation: rotated,
//! material brought anew.
//!
//! ```text
//!                       in use, under load                                not attached
//!   on-revoke hold      goes on, untouched; back after a restart only     refused, by the name of the error, until the key
//!                       when the key is                                   is back
//!   on-revoke enforce   ends: I/O errors, nobody let in, the key wiped,   the same
//!                       told in the audit log, `status` and `show`
//! ```
//! What always holds: each walk goes through all four fields with the same key; what was acknowledged to anybody is there at the
//! end, whatever became of the key meanwhile, and the rule is still in force.
//!
//! Never: a clock that was tampered with. What takes a week (the end of a waiting period under `local`) is not met here but with
//! a clock of its own in `kms` `life`; a key that is gone is OpenBao's and AWS KMS's.

mod clients;
mod services;

use sealvol_tests::crowd::keys;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::kms_gate::KeyState;
use sealvol_tests::load::{Record, Survives};
use sealvol_tests::pattern;
use sealvol_tests::peer::Peer;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::{Value, json};

use clients::{Guest, Load, SHARE, SIZE, WRITERS};
use services::{Deed, Operator, Service};

/// In use; under `hold`, and under `enforce`.
const USED: [&str; 2] = ["held", "enforced"];

/// Not attached; the same.
const IDLE: [&str; 2] = ["held-idle", "enforced-idle"];

const REFUSED: i32 = 3;
const GONE: i32 = 4;

/// How an attach is refused: exit code, and words of the message.
type Refusal = (i32, &'static [&'static str]);

/// Something that an operator does, and how an attach is refused from then on, if it is.
type Step = (Deed, Option<Refusal>);

/// What `key show` tells of a key.
#[derive(Clone, Copy)]
enum Shown {
    /// That it is in this state.
    As(&'static str),
    /// That there is none.
    Missing,
    /// What it told before: moto plays the uses of a key in this state and nothing else.
    AsBefore,
}

/// What becomes of a key, and how it comes back.
struct Change {
    first: Step,
    shown: Shown,
    /// The last of these makes it usable; if there is none, nothing does.
    back: &'static [Step],
}

const DISABLED: Refusal = (REFUSED, &["DisabledException", "is disabled", "key enable"]);
const TO_BE_DELETED: Refusal = (REFUSED, &["KMSInvalidStateException", "pending deletion"]);
const WITHOUT_MATERIAL: Refusal = (REFUSED, &["KMSInvalidStateException", "pending import"]);

const IS_DISABLED: Change = Change {
    first: (Deed::Disable, Some(DISABLED)),
    shown: Shown::As("disabled"),
    back: &[(Deed::Enable, None)],
};
const IS_TO_BE_DELETED: Change = Change {
    first: (Deed::ScheduleDeletion, Some(TO_BE_DELETED)),
    shown: Shown::As("pending-deletion"),
    back: &[(Deed::CancelDeletion, Some(DISABLED)), (Deed::Enable, None)],
};
const IS_ROTATED: Change = no_revocation(Deed::Rotate);

const fn no_revocation(deed: Deed) -> Change {
    Change {
        first: (deed, None),
        shown: Shown::As("enabled"),
        back: &[],
    }
}

#[test]
fn a_key_is_disabled_and_enabled() {
    walk(&Service::Local, &IS_DISABLED);
}

#[test]
fn the_deletion_of_a_key_is_scheduled_and_cancelled() {
    walk(&Service::Local, &IS_TO_BE_DELETED);
}

#[test]
fn a_key_is_rotated() {
    walk(&Service::Local, &IS_ROTATED);
}

#[test]
fn the_material_of_a_key_is_deleted_and_brought_again() {
    let change = Change {
        first: (Deed::DeleteMaterial, Some(WITHOUT_MATERIAL)),
        shown: Shown::As("pending-import"),
        back: &[
            (Deed::ScheduleDeletion, Some(TO_BE_DELETED)),
            (Deed::CancelDeletion, Some(WITHOUT_MATERIAL)),
            (Deed::Import, None),
        ],
    };
    walk(&Service::External, &change);
}

#[test]
fn the_material_of_a_key_expires_and_is_brought_again() {
    let change = Change {
        first: (Deed::ImportForAMoment, Some(WITHOUT_MATERIAL)),
        shown: Shown::As("pending-import"),
        back: &[(Deed::Import, None)],
    };
    walk(&Service::External, &change);
}

#[test]
fn the_material_of_a_key_is_brought_anew_while_it_is_there() {
    walk(&Service::External, &no_revocation(Deed::Import));
}

#[test]
fn a_key_of_openbao_is_deleted_softly_and_restored() {
    let change = Change {
        first: (
            Deed::SoftDelete,
            Some((REFUSED, &["soft-deleted", "restore"])),
        ),
        shown: Shown::As("disabled"),
        back: &[(Deed::Restore, None)],
    };
    walk(&Service::openbao(), &change);
}

#[test]
fn a_version_of_a_key_of_openbao_is_retired_and_readmitted() {
    let change = Change {
        first: (
            Deed::RetireVersion,
            Some((REFUSED, &["min_decryption_version"])),
        ),
        shown: Shown::As("enabled"),
        back: &[(Deed::ReadmitVersion, None)],
    };
    walk(&Service::openbao(), &change);
}

#[test]
fn a_key_of_openbao_is_rotated() {
    walk(&Service::openbao(), &IS_ROTATED);
}

#[test]
fn a_key_of_openbao_is_destroyed() {
    let change = Change {
        first: (Deed::Destroy, Some((GONE, &["does not come back"]))),
        shown: Shown::Missing,
        back: &[],
    };
    walk(&Service::openbao(), &change);
}

#[test]
fn a_key_of_aws_kms_is_disabled_and_enabled() {
    walk(&Service::aws(), &IS_DISABLED);
}

#[test]
fn the_deletion_of_a_key_of_aws_kms_is_scheduled_and_cancelled() {
    walk(&Service::aws(), &IS_TO_BE_DELETED);
}

#[test]
fn a_key_of_aws_kms_is_rotated() {
    walk(&Service::aws(), &IS_ROTATED);
}

#[test]
fn a_key_of_aws_kms_loses_its_material_and_has_it_again() {
    let change = Change {
        first: (
            Deed::Becomes(KeyState::PendingImport),
            Some(WITHOUT_MATERIAL),
        ),
        shown: Shown::AsBefore,
        back: &[(Deed::Becomes(KeyState::Enabled), None)],
    };
    walk(&Service::aws(), &change);
}

#[test]
fn a_key_of_aws_kms_is_destroyed() {
    let change = Change {
        first: (
            Deed::Becomes(KeyState::Gone),
            Some((GONE, &["NotFoundException"])),
        ),
        shown: Shown::Missing,
        back: &[],
    };
    walk(&Service::aws(), &change);
}

/// Leads a key through a change and back, and all four volumes with it.
fn walk(service: &Service, change: &Change) {
    let (deed, refusal) = change.first;
    let place = Place::new();
    service.configure(&place);
    let daemon = Service::daemon(&place);
    let address = daemon.address();
    let records = USED.map(|_| Record::new(WRITERS, SHARE));
    let content = four_volumes(&service.operator(&place, &daemon));
    let written = std::thread::scope(|scope| {
        // In here, so that a failure ends it, and with it whoever writes.
        let daemon = daemon;
        let operator = service.operator(&place, &daemon);
        let mut guests = USED.map(|name| Guest::start(&daemon, name));
        let [held, enforced] =
            [0, 1].map(|one| Load::start(scope, &records[one], &address, USED[one]));
        for (load, guest) in [&held, &enforced].into_iter().zip(&mut guests) {
            load.goes_on("before the change");
            guest.is_served("before the change");
        }
        is_asked_for(&operator, 1);

        operator.does(deed);
        if let Some(refusal) = refusal {
            enforced.has_ended();
            guests[1].has_lost_its_disk();
            is_shown(&operator, change.shown);
            is_revoked(&operator, refusal);
        } else {
            is_shown(&operator, change.shown);
            is_no_revocation(&operator, &content);
            enforced.goes_on("after what is no revocation");
            guests[1].is_served("after what is no revocation");
        }
        held.goes_on("under hold");
        guests[0].is_served("under hold");
        assert_eq!(state(&daemon, "held"), "attached");
        assert!(checks(&place, "held").is_empty(), "it is held: nobody asks");
        daemon.stop();
        held.has_ended();
        guests.map(|guest| guest.written())
    });

    let daemon = Service::daemon(&place);
    let operator = service.operator(&place, &daemon);
    if let Some(refusal) = refusal {
        wait_for("what is held to be refused after a restart", || {
            says(&failure(&daemon, "held"), refusal.1).then_some(())
        });
        assert_eq!(state(&daemon, "held"), "error");
        assert_eq!(
            state(&daemon, "enforced"),
            "available",
            "nobody asked for it"
        );
        all_are_refused(&daemon, refusal);
    }
    for &(deed, refusal) in change.back {
        operator.does(deed);
        if let Some(refusal) = refusal {
            all_are_refused(&daemon, refusal);
        }
    }
    if refusal.is_none() || !change.back.is_empty() {
        all_are_whole(&operator, refusal.is_none(), &records, &content, written);
    } else {
        // For good; what is encrypted under it is kept all the same.
        assert_eq!(place.layer_files("data").len(), USED.len() + IDLE.len());
    }
    daemon.stop();
}

/// All four, under the key; those that are used attached, the others filled and detached. What they are filled with.
fn four_volumes(operator: &Operator<'_>) -> Vec<u8> {
    let daemon = operator.daemon;
    operator.make_key();
    let content = pattern::bytes(3, 1 << 20);
    for name in USED.into_iter().chain(IDLE) {
        let is_used = USED.contains(&name);
        let size = if is_used { SIZE } else { "1M" };
        let key = operator.service.key();
        let create = ["volume", "create", name, "--size", size, "--key", key];
        daemon.sealvol(&create).succeeded();
        if is_used {
            // A steady load, and a processor for those who change keys.
            let limit = ["volume", "limit", name, "--iops", "1000", "--burst", "0"];
            daemon.sealvol(&limit).succeeded();
        }
        if name.starts_with("enforced") {
            let often = ["enforce", "--every", "1s", "--grace", "1h"];
            let words = [&["volume", "on-revoke", name][..], &often].concat();
            daemon.sealvol(&words).succeeded();
        }
        daemon.attach(name);
        if !is_used {
            daemon.write(name, 0, &content);
            daemon.detach(name);
        }
    }
    content
}

/// The key service was asked for the key of what is enforced, so many times more, and said yes each time.
#[track_caller]
fn is_asked_for(operator: &Operator<'_>, times: usize) {
    let asked = || checks(operator.place, "enforced");
    let enough = asked().len() + times;
    wait_for("the key to be asked for", || {
        (asked().len() >= enough).then_some(())
    });
    assert!(asked().iter().all(|yes| *yes), "{:?}", asked());
}

/// What `key show` tells, now or soon: material expires by itself.
#[track_caller]
fn is_shown(operator: &Operator<'_>, shown: Shown) {
    let show = ["key", "show", operator.service.key()];
    match shown {
        Shown::As(state) => wait_for("the key's state", || {
            let key = operator.daemon.sealvol_json(&show);
            (key["state"] == state).then_some(())
        }),
        Shown::Missing => drop(operator.daemon.sealvol(&show).failed_with(GONE, &[])),
        Shown::AsBefore => {}
    }
}

/// What is enforced and was in use is detached, its key wiped, and that is told; nothing that is detached is attached.
#[track_caller]
fn is_revoked(operator: &Operator<'_>, refusal: Refusal) {
    let (daemon, place) = (operator.daemon, operator.place);
    wait_for("what is enforced to be detached", || {
        (state(daemon, "enforced") == "available").then_some(())
    });
    assert_eq!(keys(daemon), 1, "keys in memory: that of what is held");
    assert!(Peer::open(&daemon.address(), "enforced").is_err());
    let told = failure(daemon, "enforced");
    assert!(
        told.contains("it was detached: its key is revoked"),
        "{told}"
    );
    let log = daemon.log();
    assert!(
        log.contains("detached, and its key wiped volume=enforced"),
        "{log}"
    );
    let records = place.audit();
    let revoked: Vec<_> = records
        .iter()
        .filter(|record| record["operation"] == "revoke")
        .collect();
    assert_eq!(revoked.len(), 1, "{revoked:?}");
    assert_eq!(revoked[0]["name"], "enforced");
    assert_eq!(revoked[0]["key"], operator.service.key());
    let asked = checks(place, "enforced");
    let noes = asked.iter().filter(|yes| !**yes).count();
    assert_eq!((noes, asked.last()), (1, Some(&false)), "the last was no");
    for name in ["enforced", IDLE[0], IDLE[1]] {
        daemon
            .sealvol(&["volume", "attach", name])
            .failed_with(refusal.0, refusal.1);
    }
}

/// The key goes on to be asked for and to open what it wrapped, and wraps anew what is in use.
#[track_caller]
fn is_no_revocation(operator: &Operator<'_>, content: &[u8]) {
    let daemon = operator.daemon;
    // The first of them may have begun before the change.
    is_asked_for(operator, 2);
    for name in IDLE {
        daemon.attach(name);
        assert_eq!(daemon.content(name), content, "{name}");
    }
    daemon.sealvol(&["key", "rewrap", "--all"]).succeeded();
    is_asked_for(operator, 2);
}

#[track_caller]
fn all_are_refused(daemon: &Daemon<'_>, (code, words): Refusal) {
    for name in USED.into_iter().chain(IDLE) {
        daemon
            .sealvol(&["volume", "attach", name])
            .failed_with(code, words);
    }
    assert_eq!(keys(daemon), 0, "keys of what was refused");
}

/// Each is attached, or comes to be by itself, and holds all that anybody was told it holds; the rule is in force.
#[track_caller]
fn all_are_whole(
    operator: &Operator<'_>,
    comes_by_itself: bool,
    records: &[Record; 2],
    content: &[u8],
    written: [u8; 2],
) {
    let daemon = operator.daemon;
    for name in USED.into_iter().chain(IDLE) {
        if comes_by_itself {
            wait_for("what was attached to be attached again", || {
                (state(daemon, name) == "attached").then_some(())
            });
        } else {
            daemon.attach(name);
        }
    }
    for name in IDLE {
        assert_eq!(daemon.content(name), content, "{name}");
    }
    for ((name, record), written) in USED.into_iter().zip(records).zip(written) {
        record
            .judge(&daemon.address(), name, Survives::Answered)
            .unwrap_or_else(|lost| panic!("{name}: {lost}"));
        let mut guest = Guest::start(daemon, name);
        guest.reads(written, "what it wrote before");
        guest.is_served("after all");
    }
    assert_eq!(keys(daemon), 4);
    assert_eq!(daemon.sealvol_json(&["status"])["failures"], json!([]));
    let asked = || checks(operator.place, "enforced");
    let before = asked().len();
    wait_for("the key to be asked for", || {
        let asked = asked();
        (asked.len() > before && asked.last() == Some(&true)).then_some(())
    });
    assert!(
        checks(operator.place, "held").is_empty(),
        "it is held: nobody asks"
    );
}

/// What the key service said each time that it was asked about a volume's key while that was attached.
fn checks(place: &Place, volume: &str) -> Vec<bool> {
    let records = place.audit();
    let of_volume = records
        .iter()
        .filter(|record| record["operation"] == "check" && record["name"] == volume);
    of_volume.map(|record| record["result"] == "ok").collect()
}

fn state(daemon: &Daemon<'_>, volume: &str) -> String {
    let shown = daemon.sealvol_json(&["volume", "show", volume]);
    shown["state"].as_str().expect("a state").to_owned()
}

/// What `status` has to say of a volume.
fn failure(daemon: &Daemon<'_>, volume: &str) -> String {
    let status = daemon.sealvol_json(&["status"]);
    let failures = status["failures"].as_array().expect("a list").iter();
    let mut of_volume = failures.filter(|failure| failure["subject"] == volume);
    let message = of_volume.next().map(|failure| &failure["message"]);
    message
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn says(text: &str, words: &[&str]) -> bool {
    let text = text.to_lowercase();
    words.iter().all(|word| text.contains(&word.to_lowercase()))
}
