//! Volumes under the keys of a real OpenBao server: what an outage, a revocation and a rotation mean for them, attached or not.

use std::net::TcpListener;
use std::path::Path;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::peer::Peer;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use sealvol_tests::superblock::edit_both;
use serde_json::{Value, json};

const SIZE: usize = 4 << 20;

/// The policies that the manual gives, for the key `volumes` and, with them, for `other`.
fn policy(role: &str) -> String {
    let manual = include_str!("../../docs/key-services.md");
    let begin = format!("```hcl\n# {role}\n");
    let policy = manual.split(&begin).nth(1).expect("a policy of that name");
    let policy = policy.split("```").next().expect("its end");
    policy.to_owned() + &policy.replace("/volumes\"", "/other\"")
}

/// A server with the keys `volumes` and `other`, and a configuration that names it `bao`.
struct Bao {
    server: OpenBao,
    place: Place,
    attach_token: String,
}

impl Bao {
    fn start() -> Self {
        let server = OpenBao::start_on_raft();
        server.make_key("volumes");
        server.make_key("other");
        let [create, attach] =
            ["create", "attach"].map(|role| server.token_file(role, &policy(role)));
        let place = Place::new();
        let text = |path: &Path| format!("{:?}", path.to_str().expect("UTF-8"));
        let config = format!(
            "key-deadline-s = 8\n[providers.bao]\ntype = \"transit\"\naddress = \"{}\"\nca-file = {}\n\
             create = {{ token-file = {} }}\nattach = {{ token-file = {} }}\n",
            server.address(),
            text(&server.authority()),
            text(&create),
            text(&attach)
        );
        std::fs::write(place.file("sealvold.toml"), config).expect("a configuration");
        let attach_token = std::fs::read_to_string(&attach).expect("a token");
        Self {
            server,
            place,
            attach_token: attach_token.trim().to_owned(),
        }
    }

    fn daemon(&self) -> Daemon<'_> {
        let mut command = Daemon::command(&self.place);
        command
            .arg("--config")
            .arg(self.place.file("sealvold.toml"));
        Daemon::start_by(&self.place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
    }

    /// Makes and attaches `v` with some content, which is given.
    fn volume(&self, daemon: &Daemon<'_>) -> Vec<u8> {
        let made = [
            "volume",
            "create",
            "v",
            "--size",
            "4M",
            "--key",
            "bao:volumes",
        ];
        daemon.sealvol(&made).succeeded();
        daemon.attach("v");
        let mut content = pattern::bytes(1, 1 << 20);
        daemon.write("v", 0, &content);
        content.resize(SIZE, 0);
        content
    }

    /// What the audit log has of an operation, as the results.
    fn audited(&self, operation: &str) -> Vec<String> {
        let lines = self.place.audit();
        let of = lines.iter().filter(|line| line["operation"] == operation);
        of.map(|line| line["result"].as_str().expect("a result").to_owned())
            .collect()
    }
}

fn attach(daemon: &Daemon<'_>) -> Outcome {
    daemon.sealvol(&["volume", "attach", "v"])
}

fn layers(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

#[test]
fn an_outage_does_nothing_to_an_attached_volume_and_delays_the_next_attach() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    let mut content = bao.volume(&daemon);

    bao.server.seal();
    let mut peer = Peer::open(&daemon.address(), "v").expect("attached");
    peer.write(2 << 20, &[7; 8192]).expect("it goes on");
    drop(peer);
    content[2 << 20..(2 << 20) + 8192].fill(7);
    assert_eq!(daemon.content("v"), content);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    daemon.detach("v");

    // It is tried again until the time is over, and nothing says that the key is lost.
    attach(&daemon).failed_with(1, &["bao:volumes", "sealed", "unseal the key service"]);
    assert!(daemon.log().contains("trying again"), "{}", daemon.log());
    assert_eq!(layers(&daemon, "v")["state"], "available");
    assert_eq!(
        bao.audited("unwrap").len(),
        2,
        "one record an attach, not an attempt"
    );

    // What comes back in time is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| attach(&daemon));
        wait_for("a second try", || {
            (daemon.log().matches("trying again").count() > 4).then_some(())
        });
        bao.server.unseal();
        waiting.join().expect("no panic").succeeded();
    });
    assert_eq!(daemon.content("v"), content);
    assert_eq!(bao.audited("unwrap").last().map(String::as_str), Some("ok"));

    bao.server.seal();
    daemon.stop();
    let daemon = bao.daemon();
    assert_eq!(
        layers(&daemon, "v")["state"],
        "error",
        "to be attached, and is not"
    );
    told_to_wait(&daemon, &["v"]);
    bao.server.unseal();
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
}

/// Waits until `status` has a failure for each of these that says that it is tried again.
fn told_to_wait(daemon: &Daemon<'_>, names: &[&str]) {
    wait_for("the failed attaches to be told", || {
        let status = daemon.sealvol_json(&["status"]);
        let failures = status["failures"].as_array().expect("a list").clone();
        let told = |name: &&str| {
            failures.iter().any(|failure| {
                let message = failure["message"].as_str().expect("a message");
                failure["subject"] == **name
                    && message.contains("sealed")
                    && message.contains("tried again by itself")
            })
        };
        names.iter().all(told).then_some(())
    });
}

#[test]
fn what_could_not_be_attached_at_a_start_is_attached_when_the_service_is_back() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    let content = bao.volume(&daemon);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    daemon.attach("v@s");
    for name in ["gone", "detached"] {
        let key = ["--key", "bao:volumes"];
        let made = ["volume", "create", name, "--size", "4M"];
        daemon.sealvol(&[&made[..], &key].concat()).succeeded();
        daemon.attach(name);
    }

    bao.server.seal();
    daemon.stop();
    let daemon = bao.daemon();
    told_to_wait(&daemon, &["v", "v@s", "gone", "detached"]);
    daemon.detach("detached");
    daemon.sealvol(&["volume", "detach", "gone"]).succeeded();
    daemon.sealvol(&["volume", "delete", "gone"]).succeeded();
    bao.server.unseal();
    let failures = || daemon.sealvol_json(&["status"])["failures"].clone();
    wait_for("all that is left to be attached", || {
        failures()
            .as_array()
            .expect("a list")
            .is_empty()
            .then_some(())
    });
    assert_eq!(daemon.content("v"), content);
    assert_eq!(daemon.content("v@s"), content);
    assert_eq!(layers(&daemon, "detached")["state"], "available");
    daemon.stop();
}

#[test]
fn what_is_refused_at_a_start_is_not_asked_for_again() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    bao.volume(&daemon);
    daemon.stop();
    let revoked = json!({ "token": bao.attach_token });
    bao.server.admin("POST", "auth/token/revoke", &revoked);
    let daemon = bao.daemon();
    wait_for("the refusal to be told", || {
        let failures = daemon.sealvol_json(&["status"])["failures"].to_string();
        failures.contains("permission denied").then_some(failures)
    });
    let log = daemon.log();
    assert!(!log.contains("when their key service answers"), "{log}");
    assert!(log.contains("cannot be attached again"), "{log}");
}

#[test]
fn a_revocation_refuses_the_next_attach_at_once_and_harms_nothing() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    let content = bao.volume(&daemon);
    let revoked = json!({ "token": bao.attach_token });
    bao.server.admin("POST", "auth/token/revoke", &revoked);
    assert_eq!(daemon.content("v"), content, "attached is attached");
    daemon.detach("v");
    attach(&daemon).failed_with(
        3,
        &["v", "bao:volumes", "403", "permission denied", "policy"],
    );
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
    let refused = bao.audited("unwrap").pop().expect("a record");
    assert!(refused.contains("permission denied"), "{refused}");

    // A new token in the same file is enough.
    let _ = bao.server.token_file("attach", &policy("attach"));
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);

    bao.server
        .admin("DELETE", "transit/keys/volumes/soft-delete", &Value::Null);
    daemon.detach("v");
    attach(&daemon).failed_with(3, &["soft-deleted", "restore"]);
    bao.server.admin(
        "POST",
        "transit/keys/volumes/soft-delete-restore",
        &json!({}),
    );
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
}

#[test]
fn volumes_are_rewrapped_cloned_and_copied_under_the_servers_keys() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    let content = bao.volume(&daemon);
    assert_eq!(layers(&daemon, "v")["key_version"], 1);
    bao.server
        .admin("POST", "transit/keys/volumes/rotate", &json!({}));
    daemon.sealvol(&["key", "rewrap", "v"]).succeeded();
    assert_eq!(layers(&daemon, "v")["key_version"], 2);
    let least = json!({ "min_decryption_version": 2 });
    bao.server
        .admin("POST", "transit/keys/volumes/config", &least);

    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    let clone = [
        "volume",
        "create",
        "c",
        "--from-snapshot",
        "v@s",
        "--key",
        "bao:other",
    ];
    daemon.sealvol(&clone).succeeded();
    daemon.attach("c");
    daemon
        .sealvol(&["key", "rewrap", "v", "--key", "bao:other"])
        .succeeded();
    for name in ["v", "c"] {
        assert_eq!(layers(&daemon, name)["key"], "bao:other", "{name}");
        daemon.detach(name);
        daemon.attach(name);
        assert_eq!(daemon.content(name), content, "{name}");
    }
    // Under a key of another provider the server wraps nothing: the blocks are copied.
    daemon
        .sealvol(&["key", "rewrap", "v", "--key", "local:default"])
        .failed_with(2, &["bao:", "local:default"]);

    let keys = daemon.sealvol_json(&["key", "list"]);
    let names: Vec<_> = keys["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| &key["key"])
        .collect();
    assert_eq!(names, ["bao:other", "bao:volumes", "local:default"]);
    let services = &daemon.sealvol_json(&["status"])["key_services"];
    assert_eq!(services[0]["kind"], "transit");
    assert_eq!(services[0]["single_credential"], Value::Null);

    // No token, and nothing that the server keeps, stands in what the daemon writes.
    let logs = bao.place.log();
    for secret in [bao.attach_token.as_str(), "client_token"] {
        let found = files_with(secret, &[&bao.place.state(), &logs]);
        assert!(found.is_empty(), "{found:?}");
    }
    for line in bao.place.audit() {
        assert!(
            !line.to_string().contains("vault:v"),
            "no wrapped key: {line}"
        );
    }
}

#[test]
fn a_daemon_whose_create_credential_could_unwrap_makes_no_volume() {
    let bao = Bao::start();
    // The same file, now with a policy that covers both.
    let both = policy("create") + &policy("attach");
    let _ = bao.server.token_file("create", &both);
    let daemon = bao.daemon();
    let made = [
        "volume",
        "create",
        "v",
        "--size",
        "4M",
        "--key",
        "bao:volumes",
    ];
    daemon.sealvol(&made).failed_with(
        3,
        &["create", "must not be able to unwrap", "single-credential"],
    );
    assert_eq!(
        daemon.sealvol_json(&["volume", "list"])["volumes"],
        json!([])
    );

    let config = bao.place.file("sealvold.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let without: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("create"))
        .collect();
    let single =
        without.join("\n").replace("attach.token", "create.token") + "\nsingle-credential = true\n";
    std::fs::write(&config, single).expect("a configuration");
    daemon.stop();
    let daemon = bao.daemon();
    daemon.sealvol(&made).succeeded();
    daemon.attach("v");
    let shown = daemon.sealvol(&["status"]).succeeded();
    assert!(
        shown.stdout.contains("one credential for everything"),
        "{shown}"
    );
}

#[test]
fn a_reference_to_no_configured_provider_is_refused_before_a_packet_is_sent() {
    let bao = Bao::start();
    let daemon = bao.daemon();
    bao.volume(&daemon);
    daemon.detach("v");
    daemon.stop();

    // The only server that the daemon may ask is this one, from here on: whatever it says to anybody arrives here.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    listener.set_nonblocking(true).expect("not blocking");
    let config = bao.place.file("sealvold.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let text = text.replace(&bao.server.address(), &format!("http://127.0.0.1:{port}"));
    std::fs::write(&config, text.replace("ca-file", "timeout-s = 1\n# ca-file")).expect("written");
    let daemon = bao.daemon();
    let asked = || {
        let connection = listener.accept();
        connection.is_ok()
    };

    for arguments in [
        &[
            "volume",
            "create",
            "w",
            "--size",
            "4M",
            "--key",
            "elsewhere:volumes",
        ][..],
        &["key", "rewrap", "v", "--key", "elsewhere:volumes"],
        &["volume", "rekey", "v", "--key", "elsewhere:volumes"],
        &["key", "create", "elsewhere:volumes"],
        &["key", "show", "elsewhere:volumes"],
    ] {
        daemon.sealvol(arguments).failed_with(4, &["elsewhere"]);
    }
    // The header of a layer that says so itself: the registry is asked what it is under, and it says something else.
    let meta = bao.place.layer_files("meta").remove(0);
    let renamed = |from: &'static [u8], to: &'static [u8]| {
        move |slot: &mut [u8]| {
            let at = slot.windows(from.len()).position(|window| window == from);
            let at = at.expect("the provider's name in the key record");
            slot[at..at + from.len()].copy_from_slice(to);
        }
    };
    let (ours, others) = (b"\x03\0bao\x07\0volumes", b"\x03\0xyz\x07\0volumes");
    edit_both(&meta, true, renamed(ours, others));
    attach(&daemon).failed_with(3, &["xyz:volumes", "bao:volumes"]);
    // The same when it is to be registered anew: what its header names is no reason to ask, only what somebody names is.
    let layer = meta.parent().and_then(Path::to_str).expect("its directory");
    let adopt = |key| daemon.sealvol(&["volume", "adopt", "w", "--layer-dir", layer, "--key", key]);
    adopt("xyz:volumes").failed_with(4, &["xyz"]);
    let refused = adopt("bao:volumes");
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(!asked(), "somebody was asked");

    // What would arrive does: the same volume, with its own header.
    edit_both(&meta, true, renamed(others, ours));
    assert_eq!(attach(&daemon).code, Some(1));
    assert!(asked(), "the listener would not have seen a question");
}
