//! Keys that are revoked while volumes are attached: what is held goes on, what is enforced ends; an outage is no revocation.

use std::path::PathBuf;
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs;
use serde_json::{Value, json};

const CREATE: &str = r#"
path "transit/datakey/wrapped/volumes" { capabilities = ["update"] }
path "transit/rewrap/volumes" { capabilities = ["update"] }
path "transit/keys/volumes" { capabilities = ["read"] }
"#;
const ATTACH: &str = r#"path "transit/decrypt/volumes" { capabilities = ["update"] }"#;

/// A configuration with a provider `bao` over a key `volumes`.
fn configured(place: &Place, bao: &OpenBao) -> PathBuf {
    bao.make_key("volumes");
    let create = bao.token_file("create", CREATE);
    let attach = bao.token_file("attach", ATTACH);
    let port = bao.plain_port();
    let config = place.file("sealvold.toml");
    let text = format!(
        "key-deadline-s = 3\n[providers.bao]\ntype = \"transit\"\naddress = \"http://127.0.0.1:{port}\"\n\
         create = {{ token-file = {create:?} }}\nattach = {{ token-file = {attach:?} }}\ntimeout-s = 1\n"
    );
    std::fs::write(&config, text).expect("written");
    config
}

fn started<'a>(place: &'a Place, config: &PathBuf) -> Daemon<'a> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(config);
    Daemon::start_by(place, command).expect("a daemon")
}

/// An attached volume under the key service, with content.
fn volume(daemon: &Daemon<'_>, name: &str) -> Vec<u8> {
    let created = [
        "volume",
        "create",
        name,
        "--size",
        "1M",
        "--key",
        "bao:volumes",
    ];
    daemon.sealvol(&created).succeeded();
    daemon.attach(name);
    let content = pattern::bytes(7, 1 << 20);
    daemon.write(name, 0, &content);
    content
}

fn enforce(daemon: &Daemon<'_>, name: &str, every: &str, grace: &str) {
    let words = [
        "volume",
        "on-revoke",
        name,
        "enforce",
        "--every",
        every,
        "--grace",
        grace,
    ];
    daemon.sealvol(&words).succeeded();
}

fn state(daemon: &Daemon<'_>, name: &str) -> String {
    let shown = daemon.sealvol_json(&["volume", "show", name]);
    shown["state"].as_str().expect("a state").to_owned()
}

fn is_detached(daemon: &Daemon<'_>, name: &str) {
    wait_for("the volume is detached", || {
        state(daemon, name) == "available"
    });
}

/// How often the key service was asked for the volume's key while it was attached, and what it said.
fn checks(place: &Place) -> Vec<String> {
    let of_checks = |record: &Value| record["operation"] == "check";
    let result = |record: Value| record["result"].as_str().expect("a result").to_owned();
    place
        .audit()
        .into_iter()
        .filter(of_checks)
        .map(result)
        .collect()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    programs::wait_for(what, || condition().then_some(()));
}

#[test]
fn what_is_enforced_is_detached_and_what_is_held_goes_on() {
    let (place, bao) = (Place::new(), OpenBao::start());
    let config = configured(&place, &bao);
    let daemon = started(&place, &config);
    let content = volume(&daemon, "enforced");
    volume(&daemon, "held");
    daemon
        .sealvol(&["snapshot", "create", "enforced@s"])
        .succeeded();
    daemon.attach("enforced@s");
    enforce(&daemon, "enforced", "1s", "1h");
    wait_for("the key was asked for twice", || checks(&place).len() >= 2);
    assert!(checks(&place).iter().all(|result| result == "ok"));
    assert_eq!(state(&daemon, "enforced"), "attached");

    bao.admin("DELETE", "sys/policies/acl/attach", &json!({}));
    is_detached(&daemon, "enforced");
    let shown = daemon.sealvol_json(&["snapshot", "show", "enforced@s"]);
    assert!(shown["attachment"].is_null(), "{shown}");
    let revoked = |record: &Value| record["operation"] == "revoke";
    let record = place.audit().into_iter().find(revoked).expect("a record");
    assert_eq!(record["name"], "enforced");
    let status = daemon.sealvol(&["status"]).succeeded();
    assert!(status.stdout.contains("revoked"), "{status}");
    daemon
        .sealvol(&["volume", "attach", "enforced"])
        .failed_with(3, &["permission denied"]);

    // As EBS does: what is in memory stays in use, until the next attach.
    assert_eq!(daemon.content("held"), content);
    daemon.detach("held");
    daemon
        .sealvol(&["volume", "attach", "held"])
        .failed_with(3, &["permission denied"]);

    let policy = json!({ "policy": ATTACH });
    bao.admin("PUT", "sys/policies/acl/attach", &policy);
    daemon.attach("enforced");
    assert_eq!(daemon.content("enforced"), content);
    daemon
        .sealvol(&["volume", "on-revoke", "enforced", "hold"])
        .succeeded();
    let asked = checks(&place).len();
    bao.admin("DELETE", "transit/keys/volumes/soft-delete", &json!({}));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        checks(&place).len(),
        asked,
        "it was asked for although it is held"
    );
    enforce(&daemon, "enforced", "1s", "1h");
    is_detached(&daemon, "enforced");
}

#[test]
fn a_key_service_that_is_away_is_no_revocation_until_its_grace_is_over() {
    let (place, mut bao) = (Place::new(), OpenBao::start_on_raft());
    let config = configured(&place, &bao);
    let daemon = started(&place, &config);
    let content = volume(&daemon, "v");
    enforce(&daemon, "v", "1s", "1h");
    wait_for("the key was asked for", || !checks(&place).is_empty());

    bao.seal();
    let away = || {
        let shown = daemon.sealvol_json(&["volume", "show", "v"]);
        shown["enforcement"]["away_seconds"]
            .as_u64()
            .expect("a number")
    };
    wait_for("it is noted how long it is away", || away() > 0);
    bao.unseal();
    wait_for("it is noted that it answers", || away() == 0);
    bao.kill();
    wait_for("it is noted how long it is away", || away() > 0);
    assert_eq!(daemon.content("v"), content);
    let before = away();

    // Time away goes on over a restart, which attaches the volume only when the service is there.
    daemon.stop();
    bao.restart();
    bao.unseal();
    let daemon = started(&place, &config);
    wait_for("the volume is attached again", || {
        state(&daemon, "v") == "attached"
    });
    assert!(before > 0);
    bao.seal();
    enforce(&daemon, "v", "1s", "5s");
    is_detached(&daemon, "v");
    let revoked = |record: &Value| record["operation"] == "revoke";
    let record = place.audit().into_iter().find(revoked).expect("a record");
    let why = record["result"].as_str().expect("a reason");
    assert!(why.contains("grace of 5"), "{why}");
    bao.unseal();
    daemon.attach("v");
    assert_eq!(daemon.content("v"), content);
}
