//! The policy of a key, as other users meet it: each of the three actions, allowed and denied, by a real call of that user.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{self, client, wait_for};
use serde_json::{Value, json};

const DENIED: i32 = 3;

/// Each holds all three rights by the daemon's configuration; the key's policy tells them apart.
const MAKER: u32 = 64_991;
const USER: u32 = 64_992;
const ADMIN: u32 = 64_993;
const STRANGER: u32 = 64_994;

const KEY: &str = "local:guarded";

fn start(place: &Place) -> Daemon<'_> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
}

/// What other users reach a daemon by: its socket, and a copy of the command line that they can run.
struct Users<'a> {
    place: &'a Place,
    copy: std::path::PathBuf,
}

impl<'a> Users<'a> {
    fn of(place: &'a Place) -> Self {
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .expect("a changed mode");
        };
        open(place.root(), 0o755);
        open(&place.runtime(), 0o755);
        open(&place.runtime().join("control.sock"), 0o777);
        let copy = place.file("sealvol");
        std::fs::copy(programs::ours("sealvol"), &copy).expect("a copy of sealvol");
        open(&copy, 0o755);
        Self { place, copy }
    }

    fn run(&self, uid: u32, words: &[&str]) -> Outcome {
        let control = self.place.runtime().join("control.sock");
        Outcome::of(
            client("setpriv")
                .args([
                    &format!("--reuid={uid}"),
                    &format!("--regid={uid}"),
                    "--clear-groups",
                    "--inh-caps=-all",
                ])
                .arg(&self.copy)
                .arg("--control")
                .arg(&control)
                .args(words),
        )
    }

    #[track_caller]
    fn denied(&self, uid: u32, words: &[&str]) {
        let who = format!("does not allow user {uid} to");
        self.run(uid, words)
            .failed_with(DENIED, &[&who, "AccessDeniedException"]);
    }
}

#[test]
fn each_action_is_for_whom_the_policy_of_the_key_allows_it() {
    needs_root("become other users");
    let place = Place::new();
    let everybody = [0, MAKER, USER, ADMIN, STRANGER].map(|uid| uid.to_string());
    let holders = format!("uids = [{}]", everybody.join(", "));
    let rights =
        ["create", "attach", "administer"].map(|right| format!("[rights.{right}]\n{holders}\n"));
    std::fs::write(place.file("sealvold.toml"), rights.concat()).expect("a configuration");
    let daemon = start(&place);
    let users = Users::of(&place);
    for user in [MAKER, USER, ADMIN, STRANGER] {
        // Without a policy it is as the configuration says.
        users.run(user, &["key", "list"]).succeeded();
    }
    daemon.sealvol(&["key", "create", KEY]).succeeded();
    for name in ["mine", "others"] {
        let words = ["volume", "create", name, "--size", "4M", "--key", KEY];
        users.run(STRANGER, &words).succeeded();
    }
    let mine = daemon.sealvol_json(&["volume", "show", "mine"])["id"].clone();
    let policy = json!({"version": 1, "statements": [
        {"uids": [MAKER], "actions": ["create"]},
        {"uids": [USER], "actions": ["attach"], "context": {"sealvol:volume": mine}},
        {"uids": [ADMIN], "actions": ["administer"]},
    ]});
    let file = place.file("policy.json");
    std::fs::write(&file, policy.to_string()).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("readable");
    let file = file.to_str().expect("a UTF-8 path");
    let set = ["key", "policy", "set", KEY, "--file", file];
    // Whoever would lock himself out is told so, and nothing is set.
    let lockout = [
        "could not set another one",
        "MalformedPolicyDocumentException",
    ];
    users.run(MAKER, &set).failed_with(2, &lockout);
    users.run(ADMIN, &set).succeeded();

    // create
    let create = |name| ["volume", "create", name, "--size", "4M", "--key", KEY];
    users.run(MAKER, &create("made")).succeeded();
    for uid in [USER, ADMIN, STRANGER, 0] {
        users.denied(uid, &create("denied"));
    }
    // attach, in the context of one volume
    for uid in [MAKER, ADMIN, STRANGER, 0] {
        users.denied(uid, &["volume", "attach", "mine"]);
    }
    users.run(USER, &["volume", "attach", "mine"]).succeeded();
    for uid in [USER, MAKER, ADMIN, STRANGER, 0] {
        users.denied(uid, &["volume", "attach", "others"]);
    }
    // administer
    for uid in [MAKER, USER, STRANGER] {
        users.denied(uid, &["key", "disable", KEY]);
        users.denied(uid, &["key", "rotate", KEY]);
        users.denied(uid, &["key", "schedule-deletion", KEY, "--even-if-used"]);
        users.denied(uid, &["key", "alias", "create", "local:alias/a", KEY]);
        users.denied(uid, &["key", "policy", "show", KEY]);
        users.denied(uid, &["key", "policy", "set", KEY, "--none"]);
        users.denied(uid, &["key", "rewrap", "mine"]);
    }
    users.run(ADMIN, &["key", "rotate", KEY]).succeeded();
    let shown = users
        .run(ADMIN, &["key", "policy", "show", KEY])
        .succeeded()
        .stdout;
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), policy);

    // What is attached is attached again by the daemon itself after a restart, as it was allowed.
    daemon.stop();
    let daemon = start(&place);
    wait_for("the volume to be attached again", || {
        let volume = daemon.sealvol_json(&["volume", "show", "mine"]);
        (volume["state"] == "attached").then_some(())
    });
    // Root may administer, so no key is lost; each setting is on record, with who and what.
    daemon
        .sealvol(&["key", "policy", "set", KEY, "--none"])
        .succeeded();
    daemon.attach("others");
    let records = place.audit();
    let set: Vec<[&Value; 3]> = records
        .iter()
        .filter(|record| record["operation"] == "set-key-policy" && record["result"] == "ok")
        .map(|record| [&record["caller"]["uid"], &record["key"], &record["policy"]])
        .collect();
    let key = json!(KEY);
    let text = json!(policy.to_string());
    assert_eq!(
        set,
        [
            [&json!(ADMIN), &key, &text],
            [&json!(0), &key, &json!("none")]
        ]
    );
    let denied = records.iter().filter(|record| {
        let result = record["result"].as_str().unwrap_or_default();
        result.contains("AccessDeniedException") && record["caller"]["uid"] == STRANGER
    });
    assert!(denied.count() >= 8, "each refusal is on record");
}
