//! Volumes of the embedded key service whose master key is in shares, or protected by a token or a TPM: how they live, what is
//! refused while it is not at hand, and that no share of it is anywhere but in its file.

use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_under;
use sealvol_tests::onlookers::{holds, seen_of_children};
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{ours, wait_for};
use sealvol_tests::softhsm::{MODULE, SoftHsm, TOKEN};
use sealvol_tests::swtpm::Swtpm;
use serde_json::Value;

const SIZE: usize = 4 << 20;

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().expect("UTF-8"))
}

fn start(place: &Place) -> Daemon<'_> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
}

fn configure(place: &Place, text: &str) {
    let text = format!("key-deadline-s = 4\n{text}");
    std::fs::write(place.file("sealvold.toml"), text).expect("a configuration");
}

/// Starts it again, and waits until it has attached the volume again by itself.
fn start_again(place: &Place) -> Daemon<'_> {
    let daemon = start(place);
    wait_for("the volume to be attached again", || {
        let volume = daemon.sealvol_json(&["volume", "show", "v"]);
        (volume["state"] == "attached").then_some(())
    });
    daemon
}

fn attach(daemon: &Daemon<'_>) -> Outcome {
    daemon.sealvol(&["volume", "attach", "v"])
}

/// A `local` provider with this master key.
fn guarded(place: &Place, name: &str, master_key: &str) -> String {
    let database = quoted(&place.state().join(format!("keys/{name}.db")));
    format!(
        "[providers.{name}]\ntype = \"local\"\ndatabase = {database}\nmaster-key = {master_key}\ncreate = true\n"
    )
}

/// One that a key of another provider protects.
fn wrapped(place: &Place, by: &str) -> String {
    let file = quoted(&place.state().join("keys/guarded.wrapped"));
    let master_key = format!("{{ wrapped = {{ by = \"{by}\", file = {file} }} }}");
    guarded(place, "guarded", &master_key)
}

/// What is written to a new volume `v` under `key`.
fn write(daemon: &Daemon<'_>, key: &str) -> Vec<u8> {
    let create = ["volume", "create", "v", "--size", "4M", "--key", key];
    daemon.sealvol(&create).succeeded();
    daemon.attach("v");
    let mut content = pattern::bytes(1, 1 << 20);
    daemon.write("v", 0, &content);
    content.resize(SIZE, 0);
    content
}

fn master_key_of(daemon: &Daemon<'_>, name: &str) -> Value {
    let status = daemon.sealvol_json(&["status"]);
    let services = status["key_services"].as_array().expect("services").iter();
    let mut services = services.filter(|service| service["name"] == name);
    services.next().expect("it is told")["master_key"].clone()
}

/// Each in a directory of its own, as a stick is mounted.
fn shares(place: &Place) -> [PathBuf; 3] {
    ["red", "green", "blue"].map(|name| place.file(name).join("share"))
}

/// Splits the embedded provider's master key into three shares, any two of which are needed, and destroys it.
fn split(place: &Place) -> Vec<u8> {
    let file = place.state().join("keys/local.master");
    let key = std::fs::read(&file).expect("the master key");
    let mut command = Command::new(ours("sealvol-keys"));
    command.args(["split", "--threshold", "2", "--master-key"]);
    command.arg(&file);
    for share in shares(place) {
        std::fs::create_dir(share.parent().expect("a directory")).expect("made");
        command.arg("--to").arg(share);
    }
    let split = Outcome::of(&mut command).succeeded();
    assert!(split.stdout.contains("any 2 of these 3"), "{split}");
    std::fs::remove_file(file).expect("removed");
    key
}

/// The directory `place/name`, out of the machine or back in.
fn plug(place: &Place, name: &str, there: bool) {
    let (from, to) = (place.file(name), place.file(&format!("pulled.{name}")));
    let (from, to) = if there { (to, from) } else { (from, to) };
    std::fs::rename(from, to).expect("moved");
}

#[test]
fn a_volume_goes_over_from_a_master_key_in_a_file_to_shares_of_it_and_is_refused_without_enough_of_them()
 {
    let place = Place::new();
    configure(&place, "");
    let daemon = start(&place);
    let content = write(&daemon, "local:default");
    assert_eq!(master_key_of(&daemon, "local"), "file");
    daemon.stop();

    split(&place);
    let names = shares(&place).map(|share| quoted(&share)).join(", ");
    let text = guarded(&place, "local", &format!("{{ shares = [{names}] }}"));
    configure(&place, &text);
    let daemon = start_again(&place);
    assert_eq!(daemon.content("v"), content);
    assert_eq!(master_key_of(&daemon, "local"), "shares in 3 files");

    plug(&place, "red", false);
    daemon.detach("v");
    daemon.attach("v");
    plug(&place, "blue", false);
    // What is attached stays so; the next attach is refused, and not tried again.
    assert_eq!(daemon.content("v"), content);
    daemon.detach("v");
    let (red, blue) = ("red/share", "blue/share");
    let words = ["1 share", "2 are needed", red, blue, "plug in or mount"];
    attach(&daemon).failed_with(3, &words);
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
    daemon.sealvol(&["doctor"]).failed_with(1, &["failures"]);
    plug(&place, "blue", true);
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);

    // Without them at the start the volume waits, and is there as soon as they are.
    daemon.stop();
    plug(&place, "blue", false);
    let daemon = start(&place);
    wait_for("the failure to be told", || {
        let failures = daemon.sealvol_json(&["status"])["failures"].to_string();
        failures.contains("2 are needed").then_some(())
    });
    plug(&place, "blue", true);
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
}

#[test]
fn no_share_and_no_key_that_comes_of_them_is_anywhere_but_in_its_file() {
    let place = Place::new();
    configure(&place, "");
    let daemon = start(&place);
    daemon.volume("v", "4M");
    daemon.stop();
    let key = split(&place);
    let names = shares(&place).map(|share| quoted(&share)).join(", ");
    let text = guarded(&place, "local", &format!("{{ shares = [{names}] }}"));
    configure(&place, &text);
    let daemon = start_again(&place);
    let mut told = String::new();
    let seen = seen_of_children(daemon.pid().as_raw_nonzero().get(), || {
        daemon.detach("v");
        daemon.attach("v");
        daemon
            .sealvol(&["key", "create", "local:second"])
            .succeeded();
        plug(&place, "red", false);
        plug(&place, "green", false);
        daemon.detach("v");
        for asked in [
            &["volume", "attach", "v"][..],
            &["status"],
            &["doctor"],
            &["key", "list"],
            &["key", "show", "local:default"],
            &["volume", "show", "v"],
        ] {
            for form in [&[][..], &["--json"]] {
                let outcome = daemon.sealvol(&[form, asked].concat());
                told += &format!("{outcome}");
            }
        }
        plug(&place, "red", true);
        plug(&place, "green", true);
        // One that was damaged is told by its name, and by nothing that is in it.
        let share = &shares(&place)[0];
        let whole = std::fs::read(share).expect("read");
        let mut damaged = whole.clone();
        damaged[60] ^= 1;
        std::fs::write(share, &damaged).expect("written");
        let refused = attach(&daemon).failed_with(3, &["red/share", "checksum"]);
        told += &refused.stderr;
        std::fs::write(share, whole).expect("written");
        daemon.attach("v");
    });
    assert!(told.contains("2 are needed"), "{told}");

    let mut secrets = vec![key];
    for share in shares(&place) {
        // The value alone: what is around it is no secret.
        secrets.push(std::fs::read(share).expect("read")[56..88].to_vec());
    }
    let places = [place.state(), place.runtime(), place.log()];
    let files: Vec<_> = places.iter().flat_map(|place| files_under(place)).collect();
    assert!(files.len() > 5, "{files:?}");
    for secret in &secrets {
        for form in forms(secret) {
            assert!(!holds(told.as_bytes(), &form), "{told}");
            assert!(!seen.iter().any(|text| holds(text, &form)));
            for file in &files {
                let content = std::fs::read(file).unwrap_or_default();
                assert!(!holds(&content, &form), "{}", file.display());
            }
        }
    }
    assert!(seen.iter().any(|text| holds(text, b"sealvol-keys")));
    let database = std::fs::read(place.state().join("keys/local.db")).expect("read");
    assert!(
        holds(&database, b"second"),
        "the search finds what is there"
    );
}

/// As it is, in hexadecimal and as a list of numbers; what it would be in JSON or in a message by mistake.
fn forms(secret: &[u8]) -> [Vec<u8>; 3] {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = secret.iter().map(u8::to_string).collect::<Vec<_>>();
    [
        secret.to_vec(),
        hex.into_bytes(),
        numbers[..8].join(", ").into_bytes(),
    ]
}

/// The token as the provider `hsm`, configured as the manual has it.
fn hsm(token: &SoftHsm) -> String {
    let configuration = quoted(&token.configuration());
    format!(
        "[providers.hsm]\ntype = \"pkcs11\"\nmodule = \"{MODULE}\"\ntoken = \"pkcs11:token={}\"\npin-file = {}\n\
         single-credential = true\nenvironment = {{ SOFTHSM2_CONF = {configuration} }}\nread = [{configuration}]\nwrite = [{}]\n",
        TOKEN.replace(' ', "%20"),
        quoted(&token.pin_file()),
        quoted(&token.tokens())
    )
}

#[test]
fn a_master_key_that_a_token_protects_is_there_as_long_as_the_token_is() {
    let (place, token) = (Place::new(), SoftHsm::start());
    configure(&place, &(hsm(&token) + &wrapped(&place, "hsm:master")));
    let daemon = start(&place);
    // Not before there is a key to protect it by.
    let early = daemon.sealvol(&["key", "create", "guarded:default"]);
    assert_ne!(early.code, Some(0), "{early}");
    early.says(&["wrapped by hsm:master", "does not exist"]);
    daemon.sealvol(&["key", "create", "hsm:master"]).succeeded();
    daemon
        .sealvol(&["key", "create", "guarded:default"])
        .succeeded();
    let content = write(&daemon, "guarded:default");
    assert_eq!(master_key_of(&daemon, "guarded"), "wrapped by hsm:master");
    daemon.stop();
    let daemon = start_again(&place);
    assert_eq!(daemon.content("v"), content);
    daemon.detach("v");

    token.pull_out();
    attach(&daemon).failed_with(1, &["wrapped by hsm:master", "none is there"]);
    assert!(daemon.log().contains("trying again"), "{}", daemon.log());
    token.put_back();
    attach(&daemon).succeeded();
    daemon.detach("v");

    // A PIN that was refused on this way is given again on none.
    token.put_pin("0000-s3cr3t");
    attach(&daemon).failed_with(3, &["CKR_PIN_INCORRECT"]);
    attach(&daemon).failed_with(3, &["CKR_PIN_INCORRECT", "not given again"]);
    daemon
        .sealvol(&["key", "show", "hsm:master"])
        .failed_with(3, &["not given again"]);
    token.put_pin(token.pin());
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
}

#[test]
fn a_volume_goes_over_from_a_master_key_in_a_file_to_one_that_a_token_protects() {
    let (place, token) = (Place::new(), SoftHsm::start());
    configure(&place, &hsm(&token));
    let daemon = start(&place);
    let content = write(&daemon, "local:default");
    daemon.sealvol(&["key", "create", "hsm:master"]).succeeded();
    daemon.stop();

    let plain = place.state().join("keys/local.master");
    let file = place.state().join("keys/local.wrapped");
    let by = |more: &str| {
        let file = quoted(&file);
        let wrapped = format!("{{ wrapped = {{ by = \"hsm:master\", file = {file}{more} }} }}");
        hsm(&token) + &guarded(&place, "local", &wrapped)
    };
    configure(&place, &by(&format!(", from = {}", quoted(&plain))));
    let daemon = start_again(&place);
    assert_eq!(daemon.content("v"), content);
    assert!(file.exists(), "it is wrapped");
    let health = daemon.sealvol(&["doctor"]);
    assert!(health.stdout.contains("lies in plain in"), "{health}");
    daemon.stop();

    std::fs::remove_file(&plain).expect("removed");
    configure(&place, &by(""));
    let daemon = start_again(&place);
    assert_eq!(daemon.content("v"), content);
    let health = daemon.sealvol(&["doctor"]);
    assert!(
        health.stdout.contains("wrapped by hsm:master") && !health.stdout.contains("in plain"),
        "{health}"
    );
}

#[test]
fn a_master_key_that_a_tpm_protects_is_there_in_the_state_of_the_machine_that_it_was_made_in() {
    let (place, mut tpm) = (Place::new(), Swtpm::start());
    let provider = format!(
        "[providers.tpm]\ntype = \"tpm2\"\ndevice = {}\ndirectory = {}\npcrs = [0, 7]\nsingle-credential = true\n",
        quoted(&tpm.socket()),
        quoted(&place.state().join("tpm"))
    );
    configure(&place, &(provider + &wrapped(&place, "tpm:master")));
    let daemon = start(&place);
    for key in ["tpm:master", "guarded:default"] {
        daemon.sealvol(&["key", "create", key]).succeeded();
    }
    let content = write(&daemon, "guarded:default");
    daemon.stop();
    let daemon = start_again(&place);
    assert_eq!(daemon.content("v"), content);
    daemon.detach("v");

    tpm.extend(7);
    let words = ["wrapped by tpm:master", "TPM_RC_POLICY_FAIL", "sealed to"];
    attach(&daemon).failed_with(3, &words);
    tpm.switch_off();
    attach(&daemon).failed_with(1, &["wrapped by tpm:master", "device"]);
    tpm.switch_on();
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
}

#[test]
fn a_master_key_is_not_wrapped_by_what_is_not_configured_or_would_lead_in_a_circle() {
    let place = Place::new();
    for (by, why) in [
        ("hsm:master", "no such provider"),
        ("guarded:master", "is itself of the type `local`"),
        ("local:default", "is itself of the type `local`"),
    ] {
        configure(&place, &wrapped(&place, by));
        let mut command = Daemon::command(&place);
        command.arg("--config").arg(place.file("sealvold.toml"));
        let refused = Daemon::start_by(&place, command).expect_err("refused");
        assert!(refused.stderr.contains(why), "{refused}");
        assert!(refused.stderr.contains(by), "{refused}");
    }
}
