//! Key sets: volumes that share a key by name, and go over to another one together: in use, at rest, with the daemon killed in the
//! middle, with the key service away; and after a rotation, if that is wanted.

use std::path::Path;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::pattern;
use sealvol_tests::peer::Peer;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::{Value, json};

const CONFLICT: i32 = 5;
const NOT_FOUND: i32 = 4;
const USAGE: i32 = 2;

/// Members of the larger set.
const MEMBERS: usize = 8;

fn member(number: usize) -> String {
    format!("v{number}")
}

fn set(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["key", "set", "show", name])
}

fn members(set: &Value) -> Vec<Value> {
    set["members"].as_array().expect("members").clone()
}

/// Waits until every member is under this key and version, and no job is left.
fn wait_until_all(daemon: &Daemon<'_>, name: &str, key: &str, version: u64) {
    wait_for("all members to be under the key of the set", || {
        let all = members(&set(daemon, name)).iter().all(|member| {
            member["key"] == key && member["key_version"] == version && member["job"].is_null()
        });
        all.then_some(())
    });
}

fn create(daemon: &Daemon<'_>, name: &str, key_set: &str) {
    let words = [
        "volume",
        "create",
        name,
        "--size",
        "1M",
        "--key-set",
        key_set,
    ];
    daemon.sealvol(&words).succeeded();
}

#[test]
fn a_set_goes_over_to_another_key_while_its_volumes_are_used_and_the_daemon_is_killed() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for key in ["local:a", "local:b"] {
        daemon.sealvol(&["key", "create", key]).succeeded();
    }
    daemon
        .sealvol(&["key", "set", "create", "prod", "--key", "local:a"])
        .succeeded();
    let content = |number: usize| pattern::bytes(u64::try_from(number).expect("small"), 1 << 20);
    for number in 0..MEMBERS {
        let name = member(number);
        create(&daemon, &name, "prod");
        daemon.attach(&name);
        daemon.write(&name, 0, &content(number));
        if number % 2 == 1 {
            daemon.detach(&name);
        }
    }
    assert_eq!(
        daemon.sealvol_json(&["volume", "show", "v0"])["key_set"],
        "prod"
    );

    // Pointed elsewhere while one of them is written to; killed when the first members have gone over and others have not.
    let under_b = |daemon: &Daemon<'_>| {
        let members = members(&set(daemon, "prod"));
        members
            .iter()
            .filter(|member| member["key"] == "local:b")
            .count()
    };
    let mut peer = Peer::open(&daemon.address(), "v0").expect("attached");
    let updated = daemon.sealvol_json(&["key", "set", "update", "prod", "--key", "local:b"]);
    assert_eq!(members(&updated).len(), MEMBERS);
    let mut writes = 0;
    wait_for("some members to have gone over", || {
        peer.write(
            writes % 16 * 4096,
            &[u8::try_from(writes % 200).expect("small"); 4096],
        )
        .expect("written under load");
        writes += 1;
        (under_b(&daemon) > 0).then_some(())
    });
    drop(peer);
    let before = under_b(&daemon);
    daemon.kill();
    assert!(before < MEMBERS, "nothing was left to be gone on with");

    let daemon = Daemon::start(&place);
    wait_until_all(&daemon, "prod", "local:b", 1);
    let jobs = daemon.sealvol_json(&["job", "list"]);
    let jobs = jobs["jobs"].as_array().expect("jobs");
    assert_eq!(
        jobs.len(),
        MEMBERS,
        "a job for each, not one more: {jobs:?}"
    );
    assert!(
        jobs.iter()
            .all(|job| job["kind"] == "rewrap" && job["state"] == "done"),
        "{jobs:?}"
    );

    // The former key is of no use to anybody any more.
    daemon.sealvol(&["key", "disable", "local:a"]).succeeded();
    for number in 0..MEMBERS {
        let name = member(number);
        if number % 2 == 0 {
            daemon.detach(&name);
        }
        daemon.attach(&name);
        let expected = content(number);
        let from = if number == 0 { 16 * 4096 } else { 0 };
        assert!(daemon.content(&name)[from..] == expected[from..], "{name}");
    }
    let updates = place.audit();
    let of_set = updates.iter().filter(|record| {
        record["operation"]
            .as_str()
            .is_some_and(|operation| operation.ends_with("key-set"))
    });
    let of_set: Vec<_> = of_set
        .map(|record| (&record["operation"], &record["name"], &record["key"]))
        .collect();
    assert_eq!(
        of_set,
        [
            (&json!("create-key-set"), &json!("prod"), &json!("local:a")),
            (&json!("update-key-set"), &json!("prod"), &json!("local:b")),
        ]
    );
}

#[test]
fn a_rotation_is_followed_if_that_is_wanted_and_a_clone_is_in_the_set_of_its_source() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.sealvol(&["key", "create", "local:k"]).succeeded();
    for (name, when) in [("follows", "on-rotate"), ("stays", "never")] {
        let words = [
            "key", "set", "create", name, "--key", "local:k", "--rewrap", when,
        ];
        daemon.sealvol(&words).succeeded();
        create(&daemon, &format!("of-{name}"), name);
    }
    daemon.attach("of-follows");
    daemon
        .sealvol(&["snapshot", "create", "of-follows@s"])
        .succeeded();
    daemon
        .sealvol(&[
            "volume",
            "create",
            "clone",
            "--from-snapshot",
            "of-follows@s",
        ])
        .succeeded();
    assert_eq!(
        daemon.sealvol_json(&["volume", "show", "clone"])["key_set"],
        "follows"
    );

    daemon.sealvol(&["key", "rotate", "local:k"]).succeeded();
    wait_until_all(&daemon, "follows", "local:k", 2);
    assert_eq!(members(&set(&daemon, "follows")).len(), 2);
    wait_until_all(&daemon, "stays", "local:k", 1);
    daemon
        .sealvol(&["key", "set", "update", "stays", "--rewrap", "on-rotate"])
        .succeeded();
    wait_until_all(&daemon, "stays", "local:k", 2);
    for name in ["of-follows", "clone"] {
        if name == "of-follows" {
            daemon.detach(name);
        }
        daemon.attach(name);
    }
}

#[test]
fn volumes_enter_and_leave_sets_and_what_would_contradict_one_is_refused() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for key in ["local:a", "local:b"] {
        daemon.sealvol(&["key", "create", key]).succeeded();
    }
    let make = ["key", "set", "create", "s", "--key", "local:a"];
    daemon.sealvol(&make).succeeded();
    daemon.sealvol(&make).failed_with(CONFLICT, &["key set s"]);
    daemon
        .sealvol(&["key", "set", "create", "t", "--key", "local:nowhere"])
        .failed_with(NOT_FOUND, &["local:nowhere"]);
    daemon
        .sealvol(&["key", "set", "create", "t", "--key", "elsewhere:a"])
        .failed_with(NOT_FOUND, &["elsewhere"]);
    daemon
        .sealvol(&["volume", "create", "v", "--size", "1M", "--key-set", "t"])
        .failed_with(NOT_FOUND, &["key set t"]);
    daemon
        .sealvol(&[
            "volume",
            "create",
            "v",
            "--size",
            "1M",
            "--key-set",
            "s",
            "--key",
            "local:a",
        ])
        .failed_with(USAGE, &["--key"]);

    daemon.volume("v", "1M");
    let volume = || daemon.sealvol_json(&["volume", "show", "v"]);
    daemon
        .sealvol(&["key", "rewrap", "v", "--key-set", "s"])
        .succeeded();
    assert_eq!(
        (&volume()["key"], &volume()["key_set"]),
        (&json!("local:a"), &json!("s"))
    );
    daemon
        .sealvol(&["volume", "rekey", "v", "--key", "local:b"])
        .failed_with(CONFLICT, &["volume v", "key set s"]);
    daemon
        .sealvol(&["key", "set", "delete", "s"])
        .failed_with(CONFLICT, &["key set s", "v"]);
    // Another data key is no contradiction.
    daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    assert_eq!(
        (&volume()["key"], &volume()["key_set"]),
        (&json!("local:a"), &json!("s"))
    );

    daemon
        .sealvol(&["key", "rewrap", "v", "--key", "local:b"])
        .succeeded();
    assert_eq!(
        (&volume()["key"], &volume()["key_set"]),
        (&json!("local:b"), &Value::Null)
    );
    daemon
        .sealvol(&["key", "set", "update", "s", "--key", "local:b"])
        .succeeded();
    daemon.sealvol(&["key", "set", "delete", "s"]).succeeded();
    daemon
        .sealvol(&["key", "set", "show", "s"])
        .failed_with(NOT_FOUND, &["key set s"]);
    assert_eq!(
        daemon.sealvol_json(&["key", "set", "list"])["key_sets"],
        json!([])
    );
    // A volume that goes takes its place in a set with it.
    daemon.sealvol(&make).succeeded();
    create(&daemon, "w", "s");
    daemon.sealvol(&["volume", "delete", "w"]).succeeded();
    daemon.sealvol(&["key", "set", "delete", "s"]).succeeded();
}

/// A server with the keys `volumes` and `other`, and the daemon's configuration for it.
fn server(place: &Place) -> OpenBao {
    let manual = include_str!("../../docs/key-services.md");
    let policy = |role: &str| {
        let begin = format!("```hcl\n# {role}\n");
        let policy = manual.split(&begin).nth(1).expect("a policy of that name");
        let policy = policy.split("```").next().expect("its end");
        policy.to_owned() + &policy.replace("/volumes\"", "/other\"")
    };
    let server = OpenBao::start();
    server.make_key("volumes");
    server.make_key("other");
    let text = |path: &Path| format!("{:?}", path.to_str().expect("UTF-8"));
    let config = format!(
        "key-deadline-s = 2\n[providers.bao]\ntype = \"transit\"\naddress = \"{}\"\nca-file = {}\n\
         create = {{ token-file = {} }}\nattach = {{ token-file = {} }}\n",
        server.address(),
        text(&server.authority()),
        text(&server.token_file("create", &policy("create"))),
        text(&server.token_file("attach", &policy("attach"))),
    );
    std::fs::write(place.file("sealvold.toml"), config).expect("a configuration");
    server
}

fn started(place: &Place) -> Daemon<'_> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"))
}

#[test]
fn the_jobs_of_a_set_wait_for_a_server_that_is_away_and_follow_what_was_rotated_there() {
    let place = Place::new();
    let server = server(&place);
    let daemon = started(&place);
    let make = [
        "key",
        "set",
        "create",
        "s",
        "--key",
        "bao:volumes",
        "--rewrap",
        "on-rotate",
    ];
    daemon.sealvol(&make).succeeded();
    for name in ["v0", "v1"] {
        create(&daemon, name, "s");
    }
    daemon.attach("v0");
    // A key service wraps anew only what it wrapped itself.
    daemon
        .sealvol(&["key", "set", "update", "s", "--key", "local:default"])
        .failed_with(USAGE, &["v0", "local:default"]);

    // Rotated by somebody else: seen within the hour, or at the next start.
    server.admin("POST", "transit/keys/volumes/rotate", &json!({}));
    daemon.stop();
    let daemon = started(&place);
    wait_until_all(&daemon, "s", "bao:volumes", 2);

    // The attach credential may not open what is under the former key: each job tries, waits, and says why.
    server.admin("DELETE", "sys/policies/acl/attach", &json!({}));
    daemon
        .sealvol(&["key", "set", "update", "s", "--key", "bao:other"])
        .succeeded();
    let job_of = |name: &str| {
        let members = members(&set(&daemon, "s"));
        let member = members.iter().find(|member| member["volume"] == name);
        member.expect("a member")["job"].to_string()
    };
    let [first, second] = ["v0", "v1"].map(job_of);
    for job in [&first, &second] {
        wait_for("the job to wait", || {
            let job = daemon.sealvol_json(&["job", "show", job]);
            (job["state"] == "waiting").then_some(())
        });
    }
    let failures = daemon.sealvol_json(&["status"])["failures"].to_string();
    assert!(failures.contains("permission denied"), "{failures}");
    // One of them is ended: it stays as it is, and what becomes of it is said.
    let cancelled = daemon.sealvol(&["job", "cancel", &second]).succeeded();
    assert!(cancelled.stdout.contains("key set s"), "{cancelled}");
    assert_eq!(
        daemon.sealvol_json(&["volume", "show", "v1"])["key"],
        "bao:volumes"
    );
    // Sealed, it says nothing at all. When it comes back, what waits goes on by itself.
    server.seal();
    daemon.stop();
    let daemon = started(&place);
    server.unseal();
    permit(&server);
    wait_until_all(&daemon, "s", "bao:other", 1);
    daemon.attach("v1");
}

/// Lets the attach credential open volumes again.
fn permit(server: &OpenBao) {
    let path = |key: &str| {
        format!(
            "path \"transit/decrypt/{key}\" {{ capabilities = [\"update\"] }}\n\
             path \"transit/encrypt/{key}\" {{ capabilities = [\"update\"] }}\n"
        )
    };
    let policy = json!({ "policy": path("volumes") + &path("other") });
    server.admin("PUT", "sys/policies/acl/attach", &policy);
}
