//! What anybody can come to know beside the memory: arguments and environments of all processes, what commands print, failures
//! among them, logs, and files. No secret is in any of it, in no form.
//!
//! What always holds: a name that must be in all of these places is found in each of them, or nothing is said.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::openbao::OpenBao;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{Place, needs_root};
use serde_json::{Value, json};

use crate::files::assert_no_key_is_written;
use crate::pattern::{FORMS, Kind, Patterns, Secret};
use crate::services::{ATTACH, CREATE, KeyService};
use crate::watched::{behind, control, in_every_form, random};

/// What the daemon is told of an OpenBao server: a token makes volumes, an AppRole attaches them.
struct Credentials {
    configuration: String,
    secrets: Vec<Secret>,
    /// The file with the secret id.
    secret_id: std::path::PathBuf,
}

impl Credentials {
    fn on(server: &OpenBao) -> Self {
        let attach = server.token_file("attach", ATTACH); // makes the policy
        server.admin("POST", "sys/auth/approle", &json!({ "type": "approle" }));
        let role =
            json!({ "token_policies": ["attach"], "token_ttl": "1m", "token_type": "batch" });
        server.admin("POST", "auth/approle/role/host", &role);
        let told =
            |value: &Value, name: &str| value["data"][name].as_str().expect("text").to_owned();
        let role_id = server.admin("GET", "auth/approle/role/host/role-id", &Value::Null);
        let role_id = told(&role_id, "role_id");
        let secret_id = server.admin("POST", "auth/approle/role/host/secret-id", &json!({}));
        let secret_id = told(&secret_id, "secret_id");
        let create = server.token_file("create", CREATE);
        let token = std::fs::read_to_string(&create).expect("a token");
        let secret_id_file = server.secret_file("secret-id", &secret_id);
        let configuration = format!(
            "key-deadline-s = 10\n[providers.bao]\ntype = \"transit\"\naddress = \"{}\"\nca-file = {:?}\n\
             create = {{ token-file = {create:?} }}\nattach = {{ approle = {{ role-id-file = {:?}, \
             secret-id-file = {secret_id_file:?} }} }}\n",
            server.address(),
            server.authority(),
            server.secret_file("role-id", &role_id),
        );
        drop(attach);
        Self {
            configuration,
            secrets: vec![
                secret("token", token.trim().as_bytes(), Kind::Key),
                secret("secret id", secret_id.as_bytes(), Kind::Key),
            ],
            secret_id: secret_id_file,
        }
    }
}

fn secret(name: &str, bytes: &[u8], kind: Kind) -> Secret {
    Secret {
        name: name.to_owned(),
        bytes: bytes[..bytes.len() / 8 * 8].to_vec(),
        kind,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name, arguments and environment of a process.
type Process = (String, Vec<u8>, Vec<u8>);

/// Arguments and environments of all processes of ours that are seen while somebody looks.
#[derive(Default)]
struct Seen {
    processes: Mutex<BTreeSet<Process>>,
    stop: AtomicBool,
}

impl Seen {
    fn look(&self) {
        while !self.stop.load(Ordering::Acquire) {
            for entry in std::fs::read_dir("/proc").expect("the processes").flatten() {
                let process = entry.path();
                let Ok(name) = std::fs::read_to_string(process.join("comm")) else {
                    continue; // no process, or one that has ended
                };
                if !name.starts_with("sealvol") {
                    continue;
                }
                let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
                let found = (name.trim_end().to_owned(), read("cmdline"), read("environ"));
                self.processes.lock().expect("no panic").insert(found);
            }
        }
    }
}

/// Everything that a command has told, failed or not.
struct Told<'a> {
    daemon: &'a Daemon<'a>,
    text: Vec<u8>,
}

impl Told<'_> {
    /// Runs a command as people read its output.
    fn run(&mut self, arguments: &[&str]) -> Outcome {
        let outcome = self.daemon.sealvol(arguments);
        self.keep(&outcome);
        outcome
    }

    /// Runs one as programs do.
    fn json(&mut self, arguments: &[&str]) -> Outcome {
        self.run(&[&["--json"], arguments].concat())
    }

    fn keep(&mut self, outcome: &Outcome) {
        self.text.extend(outcome.stdout.as_bytes());
        self.text.extend(outcome.stderr.as_bytes());
    }
}

#[test]
fn no_secret_is_in_arguments_environments_output_logs_or_files() {
    needs_root("read the environment of a process that cannot be dumped");
    let server = OpenBao::start();
    server.make_key("volumes");
    let credentials = Credentials::on(&server);
    let service = KeyService::OpenBao(server);
    let place = Place::new();
    let config = place.file("sealvold.toml");
    std::fs::write(&config, &credentials.configuration).expect("a configuration");
    let passphrase = hex(&random(24));
    let passphrase_file = place.file("passphrase");
    std::fs::write(&passphrase_file, format!("{passphrase}\n")).expect("a file");
    let planted = control();
    let name = format!("v{}", hex(&random(23)));

    let daemon = started(&place, &passphrase_file, &config, &in_every_form(&planted));
    let mut told = Told {
        daemon: &daemon,
        text: Vec::new(),
    };
    let seen = Seen::default();
    let keys = std::thread::scope(|scope| {
        scope.spawn(|| seen.look());
        let keys = whole_life(&mut told, &name, &service, &place, &credentials.secret_id);
        seen.stop.store(true, Ordering::Release);
        keys
    });
    let text = std::mem::take(&mut told.text);
    daemon.stop();
    let mut secrets = vec![
        planted,
        secret("name", name.as_bytes(), Kind::SameWay),
        secret("passphrase", passphrase.as_bytes(), Kind::Key),
    ];
    secrets.extend(credentials.secrets);
    secrets.extend(keys);
    let patterns = Patterns::new(secrets);

    assert!(
        of_kind(&patterns, &text, Kind::SameWay),
        "the name in what was printed"
    );
    assert_no_key(&patterns, &text, "what commands printed");
    let processes = seen.processes.into_inner().expect("no panic");
    let arguments: Vec<u8> = processes
        .iter()
        .flat_map(|(_, arguments, _)| arguments.clone())
        .collect();
    let environments: Vec<u8> = processes.iter().flat_map(|(.., all)| all.clone()).collect();
    let names: BTreeSet<&str> = processes.iter().map(|(name, ..)| name.as_str()).collect();
    for program in ["sealvold", "sealvol", "sealvol-keys"] {
        assert!(
            names.contains(program),
            "{program} was never seen: {names:?}"
        );
    }
    assert!(
        of_kind(&patterns, &arguments, Kind::SameWay),
        "the name in arguments"
    );
    assert!(
        of_kind(&patterns, &environments, Kind::Planted),
        "what was planted in an environment"
    );
    assert_no_key(&patterns, &arguments, "the arguments of a process");
    assert_no_key(&patterns, &environments, "the environment of a process");
    // Logs, the audit log, state and runtime directory; the name is in there.
    assert_no_key_is_written(&place, &patterns, None);
    println!(
        "{} processes, {} bytes of output",
        processes.len(),
        text.len()
    );
}

/// A daemon that takes a passphrase from descriptor 3.
fn started<'a>(
    place: &'a Place,
    passphrase: &Path,
    config: &Path,
    planted: &OsString,
) -> Daemon<'a> {
    let sealvold = Daemon::command(place);
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$@\" --passphrase-fd 3 3<\"$0\""])
        .arg(passphrase)
        .arg(sealvold.get_program())
        .args(sealvold.get_args())
        .arg("--config")
        .arg(config)
        .env("SEALVOL_SCAN_CONTROL", planted);
    Daemon::start_by(place, command).unwrap_or_else(|ended| panic!("{ended}"))
}

/// A volume under the server's key and one under the passphrase's, from their creation to their end, and what is refused. The
/// data keys of the first.
fn whole_life(
    told: &mut Told<'_>,
    name: &str,
    service: &KeyService,
    place: &Place,
    secret_id: &Path,
) -> Vec<Secret> {
    let snapshot = format!("{name}@s");
    let made = [
        "volume",
        "create",
        name,
        "--size",
        "4M",
        "--key",
        service.key(),
    ];
    told.run(&made).succeeded();
    told.json(&made).failed_with(5, &[name]);
    let keys = behind(place, service, &place.layer_files("meta")[0]).keys;
    told.json(&["volume", "attach", name]).succeeded();
    told.run(&["volume", "create", "local", "--size", "4M"])
        .succeeded();
    told.run(&["volume", "attach", "local"]).succeeded();
    told.run(&["snapshot", "create", &snapshot]).succeeded();
    told.json(&["key", "rewrap", name]).succeeded();
    for arguments in [
        &["status"][..],
        &["doctor"],
        &["volume", "list"],
        &["volume", "show", name],
        &["snapshot", "list"],
        &["key", "list"],
        &["key", "show", service.key()],
        &["job", "list"],
        &["audit", "verify"],
    ] {
        told.run(arguments);
        told.json(arguments);
    }
    told.run(&["volume", "rekey", name, "--wait"]).succeeded();
    told.run(&["volume", "detach", name]).succeeded();

    // What fails says why, and not by what.
    let right = std::fs::read(secret_id).expect("a secret id");
    std::fs::write(secret_id, "00000000-0000-4000-8000-000000000000\n").expect("written");
    for failed in [
        told.run(&["volume", "attach", name]),
        told.json(&["volume", "attach", name]),
    ] {
        assert_eq!(failed.code, Some(3), "{failed}");
    }
    std::fs::write(secret_id, right).expect("written");
    let daemon = told.daemon;
    service.revoke(daemon);
    told.run(&["volume", "attach", name])
        .failed_with(3, &[name]);
    told.json(&["doctor"]);
    service.permit(daemon);
    told.run(&[
        "volume",
        "create",
        "w",
        "--size",
        "4M",
        "--key",
        "bao:other",
    ])
    .failed_with(3, &["bao:other"]);
    told.run(&["volume", "attach", name]).succeeded();
    told.run(&["volume", "detach", name]).succeeded();
    told.run(&["snapshot", "delete", &snapshot]).succeeded();
    told.json(&["volume", "delete", name, "--shred"])
        .succeeded();
    keys
}

fn of_kind(patterns: &Patterns, text: &[u8], kind: Kind) -> bool {
    let mut found = false;
    patterns.search(text, |_, piece| found |= patterns.kind(piece) == kind);
    found
}

#[track_caller]
fn assert_no_key(patterns: &Patterns, text: &[u8], place: &str) {
    patterns.search(text, |_, number| {
        let piece = &patterns.pieces()[number];
        assert_ne!(
            patterns.kind(number),
            Kind::Key,
            "{} in {place} ({})",
            patterns.secrets()[piece.secret].name,
            FORMS[piece.form]
        );
    });
}
