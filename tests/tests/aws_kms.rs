//! Volumes under keys of AWS KMS, played by moto with what the gate corrects: their life, a key that is taken out of use, and many
//! attaches at once against a service that lets few calls pass.
//!
//! `SEALVOL_VOLUMES=1000 cargo nextest run -p sealvol-tests -E 'binary(aws_kms) and test(storm)' --no-capture` is the full form of
//! the last: a thousand volumes, ten calls a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sealvol_tests::aws;
use sealvol_tests::crowd::keys;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::moto::Moto;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use serde_json::json;

/// A service with the keys `volumes` and `other`, and a configuration that names it `aws`.
struct Aws {
    moto: Moto,
    place: Place,
    secrets: Vec<String>,
}

impl Aws {
    fn start() -> Self {
        let moto = Moto::start();
        for name in ["volumes", "other"] {
            let _ = moto.make_key(name);
        }
        let [create, attach] =
            ["create", "attach"].map(|role| moto.credentials(role, &aws::policy(role)));
        let place = Place::new();
        let provider = aws::provider(&moto, &create, &attach);
        let config = format!("key-deadline-s = 4\n{provider}");
        std::fs::write(place.file("sealvold.toml"), config).expect("a configuration");
        let secrets = [create, attach].map(|file| {
            let text = std::fs::read_to_string(file).expect("a credential");
            let last = text.trim().rsplit(' ').next().map(str::to_owned);
            last.expect("a secret")
        });
        Self {
            moto,
            place,
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

    /// How many unwraps the audit log has, that brought a key or not.
    fn unwraps(&self, ok: bool) -> usize {
        let lines = self.place.audit();
        let unwraps = lines.iter().filter(|line| line["operation"] == "unwrap");
        unwraps
            .filter(|line| (line["result"] == "ok") == ok)
            .count()
    }
}

fn create(daemon: &Daemon<'_>, name: &str) {
    let made = [
        "volume",
        "create",
        name,
        "--size",
        "4M",
        "--key",
        "aws:volumes",
    ];
    daemon.sealvol(&made).succeeded();
}

#[test]
fn volumes_live_under_the_keys_of_the_service_and_keep_them() {
    let aws = Aws::start();
    let daemon = aws.daemon();
    create(&daemon, "v");
    daemon.attach("v");
    let mut content = pattern::bytes(1, 1 << 20);
    daemon.write("v", 0, &content);
    content.resize(4 << 20, 0);
    let shown = daemon.sealvol_json(&["volume", "show", "v"]);
    let id = shown["key_id"].as_str().expect("a key's id");
    assert!(
        id.starts_with("arn:aws:kms:eu-west-1:"),
        "the alias is resolved: {id}"
    );

    // Rewrapped, under the same and under another key; cloned.
    daemon.sealvol(&["key", "rewrap", "v"]).succeeded();
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    let clone = [
        "volume",
        "create",
        "c",
        "--from-snapshot",
        "v@s",
        "--key",
        "aws:other",
    ];
    daemon.sealvol(&clone).succeeded();
    daemon.attach("c");
    daemon
        .sealvol(&["key", "rewrap", "v", "--key", "aws:other"])
        .succeeded();
    for name in ["v", "c"] {
        daemon.detach(name);
        daemon.attach(name);
        assert_eq!(daemon.content(name), content, "{name}");
    }
    let calls = aws.moto.gate().calls();
    let opened = calls.iter().filter(|call| *call == "Decrypt").count();
    assert!(calls.iter().any(|call| call == "ReEncrypt"), "{calls:?}");
    // Each attach, each look at what a rewrap made, and the try after each new key: a rewrap itself opens nothing.
    assert_eq!(
        calls
            .iter()
            .filter(|call| *call == "GenerateDataKey")
            .count(),
        0
    );
    println!("{opened} keys opened in {} calls", calls.len());

    // Taken out of use, it stays attached; the next attach is refused at once, and works again when the key does.
    let described = aws
        .moto
        .admin("DescribeKey", &json!({ "KeyId": "alias/other" }));
    let id = json!({ "KeyId": described["KeyMetadata"]["KeyId"] });
    aws.moto.admin("DisableKey", &id);
    assert_eq!(daemon.content("v"), content, "attached is attached");
    daemon.detach("v");
    let refused = ["volume", "attach", "v"];
    daemon.sealvol(&refused).failed_with(
        3,
        &[
            "v",
            "aws:arn:",
            "DisabledException",
            "is disabled",
            "enable the key",
        ],
    );
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
    aws.moto.admin("EnableKey", &id);
    daemon.attach("v");
    assert_eq!(daemon.content("v"), content);

    let listed = daemon.sealvol_json(&["key", "list"]);
    let names: Vec<_> = listed["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| &key["key"])
        .collect();
    assert_eq!(names, ["aws:other", "aws:volumes", "local:default"]);
    let services = &daemon.sealvol_json(&["status"])["key_services"];
    assert_eq!(services[0]["kind"], "aws-kms");

    // No part of an access key stands in what the daemon writes.
    let logs = aws.place.log();
    for secret in &aws.secrets {
        let found = files_with(secret, &[&aws.place.state(), &logs]);
        assert!(found.is_empty(), "{found:?}");
    }
}

/// Attaches all of them at once, as far as the daemon listens to as many callers.
fn attach_all(daemon: &Daemon<'_>, names: &[String]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(60) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    daemon.attach(name);
                }
            });
        }
    });
}

#[test]
fn a_storm_of_attaches_against_a_service_that_lets_few_calls_pass_loses_none() {
    let count: u32 =
        std::env::var("SEALVOL_VOLUMES").map_or(16, |count| count.parse().expect("a number"));
    let names: Vec<_> = (0..count).map(|number| format!("v{number}")).collect();
    let aws = Aws::start();
    let gate = aws.moto.gate();
    let daemon = aws.daemon();
    for name in &names {
        create(&daemon, name);
    }
    // All of them take several times as long as a single batch may, and a busy machine of two cores feels the limit.
    let limit = (count / 100).max(2);
    gate.limit(limit);
    let began = Instant::now();
    attach_all(&daemon, &names);
    println!(
        "{count} attached in {:?} at {limit} calls a second; {} calls were throttled",
        began.elapsed(),
        gate.throttled()
    );
    assert!(gate.throttled() > 0, "the limit was felt");
    assert_eq!(keys(&daemon), u64::from(count), "keys in locked memory");
    let all = names.len();
    assert_eq!(
        (aws.unwraps(true), aws.unwraps(false)),
        (all, 0),
        "each once, and no failure"
    );

    // And so do they all come back when the daemon starts again.
    daemon.stop();
    let before = gate.throttled();
    let began = Instant::now();
    let daemon = aws.daemon();
    wait_for_all(&daemon, count.into());
    println!(
        "started and attached again in {:?}; {} calls were throttled",
        began.elapsed(),
        gate.throttled() - before
    );
    assert_eq!(daemon.sealvol_json(&["status"])["failures"], json!([]));
    assert_eq!(
        (aws.unwraps(true), aws.unwraps(false)),
        (2 * all, 0),
        "each once, and no failure"
    );
}

/// Waits for as many keys in memory: a start answers before it has attached all.
fn wait_for_all(daemon: &Daemon<'_>, count: u64) {
    while keys(daemon) < count {
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn an_outage_is_told_to_everybody_who_waits_within_one_deadline() {
    let mut aws = Aws::start();
    let names: Vec<_> = (0..16).map(|number| format!("v{number}")).collect();
    {
        let daemon = aws.daemon();
        for name in &names {
            create(&daemon, name);
        }
        daemon.stop();
    }
    aws.moto.kill();
    let daemon = aws.daemon();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in &names {
            scope.spawn(|| {
                let name = &names[next.fetch_add(1, Ordering::Relaxed)];
                let outcome = daemon.sealvol(&["volume", "attach", name]);
                // Those that got no turn say so, the others what they were told; each says what to do.
                outcome.failed_with(1, &[name, "see ", "key service"]);
            });
        }
    });
    assert_eq!(keys(&daemon), 0);
    assert_eq!(aws.unwraps(false), names.len(), "a record for each attach");
}
