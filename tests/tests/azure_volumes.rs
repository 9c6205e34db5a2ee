//! Volumes under keys of an Azure Key Vault of our own: what its refusals, an outage and a rotation mean for them, and what
//! somebody with the public key, and nothing else, can not bring about.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::key_vault::{KeyVault, TENANT};
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, run};
use serde_json::{Value, json};

/// A vault with the key `volumes`, and a configuration that names it `azure`.
struct Azure {
    server: KeyVault,
    place: Place,
    /// The public part of its first version.
    jwk: PathBuf,
    secrets: Vec<String>,
}

impl Azure {
    fn start() -> Self {
        let server = KeyVault::start();
        let made = server.operate("create", &json!({ "key": "volumes" }));
        let place = Place::new();
        let jwk = place.file("volumes.jwk");
        std::fs::write(&jwk, made["key"].to_string()).expect("written");
        let create = server.application("create-id", &["get", "list", "wrapKey"]);
        let attach = server.application("attach-id", &["get", "unwrapKey"]);
        let secret = |path: &PathBuf| std::fs::read_to_string(path).expect("a secret");
        let secrets = [&create, &attach].map(|path| secret(path).trim().to_owned());
        let identity = |id: &str, file: &Path| {
            format!(
                "{{ client-secret = {{ tenant = {TENANT:?}, client-id = {id:?}, secret-file = {file:?} }} }}"
            )
        };
        let config = format!(
            "key-deadline-s = 4\n[providers.azure]\ntype = \"azure-kv\"\nvault = {0:?}\nauthority = {0:?}\n\
             ca-file = {1:?}\ncreate = {2}\nattach = {3}\n",
            server.address(),
            server.authority(),
            identity("create-id", &create),
            identity("attach-id", &attach)
        );
        std::fs::write(place.file("sealvold.toml"), config).expect("a configuration");
        Self {
            server,
            place,
            jwk,
            secrets: secrets.into(),
        }
    }

    fn daemon(&self) -> Daemon<'_> {
        let mut command = Daemon::command(&self.place);
        command
            .arg("--config")
            .arg(self.place.file("sealvold.toml"));
        Daemon::start_by(&self.place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
    }

    /// Makes a volume that was never attached; the directory of its layer.
    fn create(&self, daemon: &Daemon<'_>, name: &str) -> PathBuf {
        let made = [
            "volume",
            "create",
            name,
            "--size",
            "8M",
            "--key",
            "azure:volumes",
        ];
        daemon.sealvol(&made).succeeded();
        let shown = daemon.sealvol_json(&["volume", "show", name]);
        let layer = shown["layers"][0]["id"].as_str().expect("an id");
        self.place.state().join("layers").join(layer)
    }

    fn operate(&self, what: &str) {
        self.server.operate(what, &json!({ "key": "volumes" }));
    }
}

fn attach(daemon: &Daemon<'_>, name: &str) -> Outcome {
    daemon.sealvol(&["volume", "attach", name])
}

/// Writes a block of this byte and reads it back after another attach.
fn keeps(daemon: &Daemon<'_>, name: &str, byte: &str) {
    daemon.attach(name);
    let uri = daemon.uri(name);
    let io = |command: String| run("qemu-io", &["-f", "raw", "-c", &command, &uri]).succeeded();
    io(format!("write -P {byte} 0 65536"));
    daemon.detach(name);
    daemon.attach(name);
    io(format!("read -P {byte} 0 65536"));
    daemon.detach(name);
}

#[test]
fn a_layer_forged_with_the_vaults_public_key_is_refused_by_the_pinned_commitment() {
    let azure = Azure::start();
    let daemon = azure.daemon();
    let never = azure.create(&daemon, "never");
    let used = azure.create(&daemon, "used");
    keeps(&daemon, "used", "0x5c");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let forge = |layer: &Path| {
        let (meta, data) = (path(&layer.join("meta")), path(&layer.join("data")));
        check("forge.py", &[&meta, &data, &path(&azure.jwk)]);
    };
    for (name, layer) in [("never", &never), ("used", &used)] {
        let kept = path(&azure.place.file(name));
        run("cp", &["--archive", &path(layer), &kept]).succeeded();
        forge(layer);
        for more in [&[][..], &["--read-only"]] {
            let outcome = daemon.sealvol(&[&["volume", "attach", name], more].concat());
            outcome.failed_with(3, &[name, "commitment differs"]);
            let served = run("nbdinfo", &["--size", &daemon.uri(name)]);
            assert_ne!(served.code, Some(0), "{name}: it is served");
        }
        // The vault has unwrapped the attacker's key, and nothing in the log calls that a failure of the key service.
        let unwraps = azure.place.audit();
        let last = unwraps
            .iter()
            .rfind(|record| record["operation"] == "unwrap");
        assert_eq!(last.expect("a record")["result"], "ok");
        for file in ["meta", "data"] {
            let (from, to) = (format!("{kept}/{file}"), path(&layer.join(file)));
            run("cp", &[&from, &to]).succeeded();
        }
    }
    keeps(&daemon, "used", "0x5d");
    keeps(&daemon, "never", "0x11");
    daemon.stop();

    // It is the commitment that refuses, and nothing else: without it, a volume that was never attached is the attacker's.
    let daemon = azure.daemon();
    let third = azure.create(&daemon, "third");
    daemon.stop();
    forge(&third);
    let forget = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); \
                  n=c.execute('UPDATE layers SET commitment=NULL WHERE bound=0').rowcount; c.commit(); assert n==1";
    run(
        "python3",
        &[
            "-c",
            forget,
            &path(&azure.place.state().join("registry.db")),
        ],
    )
    .succeeded();
    let daemon = azure.daemon();
    attach(&daemon, "third").succeeded();
}

#[test]
fn what_the_vault_refuses_and_an_outage_are_told_apart_and_harm_nothing() {
    let azure = Azure::start();
    let daemon = azure.daemon();
    azure.create(&daemon, "v");
    keeps(&daemon, "v", "0x21");
    let disabled =
        |enabled: bool| json!({ "key": "volumes", "attributes": { "enabled": enabled } });
    azure.server.operate("attributes", &disabled(false));
    attach(&daemon, "v").failed_with(3, &["v", "azure:volumes", "disabled", "enable the key"]);
    azure.server.operate("attributes", &disabled(true));
    azure.operate("delete");
    attach(&daemon, "v").failed_with(3, &["deleted", "recover"]);
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
    azure.operate("recover");
    azure.server.permit("attach-id", &["get"]);
    attach(&daemon, "v").failed_with(3, &["403", "unwrapKey permission"]);
    azure.server.permit("attach-id", &["get", "unwrapKey"]);
    // Throttled twice, it is asked again when it said; then it answers.
    azure.server.operate("throttle", &json!({ "requests": 1 }));
    keeps(&daemon, "v", "0x22");
    assert!(daemon.log().contains("trying again"), "{}", daemon.log());

    let status = daemon.sealvol_json(&["status"]);
    assert_eq!(status["key_services"][0]["kind"], "azure-kv");
    let shown = daemon.sealvol_json(&["key", "show", "azure:volumes"]);
    assert_eq!(shown["creates_without_plaintext"], false);
    assert_eq!(shown["volumes"], json!(["v"]));

    daemon.attach("v");
    azure.server.kill();
    let uri = daemon.uri("v");
    let read = ["-f", "raw", "-c", "read -P 0x22 0 65536", &uri];
    run("qemu-io", &read).succeeded();
    daemon.detach("v");
    attach(&daemon, "v").failed_with(1, &["v", "cannot connect"]);
    assert_eq!(
        daemon.sealvol_json(&["volume", "show", "v"])["state"],
        "available"
    );
    let logs = azure.place.log();
    for secret in &azure.secrets {
        let found = files_with(secret, &[&azure.place.state(), &logs]);
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn volumes_are_rewrapped_to_a_new_version_rekeyed_cloned_and_pinned_from_the_beginning() {
    let azure = Azure::start();
    let daemon = azure.daemon();
    azure.create(&daemon, "v");
    keeps(&daemon, "v", "0x31");
    let id = |name: &str| daemon.sealvol_json(&["volume", "show", name])["key_id"].clone();
    let before = id("v");
    let newest = azure.server.make_key("volumes");
    assert_ne!(before, Value::from(newest.clone()));
    daemon.attach("v");
    daemon.sealvol(&["key", "rewrap", "v"]).succeeded();
    assert_eq!(id("v"), newest);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    let clone = ["volume", "create", "c", "--from-snapshot", "v@s"];
    daemon.sealvol(&clone).succeeded();
    daemon
        .sealvol(&["volume", "rekey", "v", "--wait"])
        .succeeded();
    daemon.detach("v");
    for name in ["v", "c"] {
        daemon.attach(name);
        let uri = daemon.uri(name);
        let read = ["-f", "raw", "-c", "read -P 0x31 0 65536", &uri];
        run("qemu-io", &read).succeeded();
        daemon.detach(name);
    }
}
