//! Volumes under keys that a token or a TPM holds: how they live, and that no PIN is anywhere but in its file.

use std::path::Path;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::onlookers::{holds, seen_of_children};
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::softhsm::{MODULE, SoftHsm, TOKEN};
use sealvol_tests::swtpm::Swtpm;
use serde_json::Value;

const SIZE: usize = 4 << 20;

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().expect("UTF-8"))
}

/// The token as the provider `hsm`, configured as the manual has it.
fn configure(place: &Place, token: &SoftHsm) {
    let configuration = quoted(&token.configuration());
    let text = format!(
        "key-deadline-s = 4\n[providers.hsm]\ntype = \"pkcs11\"\nmodule = \"{MODULE}\"\n\
         token = \"pkcs11:token={}\"\npin-file = {}\nsingle-credential = true\n\
         environment = {{ SOFTHSM2_CONF = {configuration} }}\nread = [{configuration}]\nwrite = [{}]\n",
        TOKEN.replace(' ', "%20"),
        quoted(&token.pin_file()),
        quoted(&token.tokens())
    );
    std::fs::write(place.file("sealvold.toml"), text).expect("a configuration");
}

fn start(place: &Place) -> Daemon<'_> {
    let mut command = Daemon::command(place);
    command.arg("--config").arg(place.file("sealvold.toml"));
    Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
}

fn create<'a>(name: &'a str, key: &'a str) -> [&'a str; 7] {
    ["volume", "create", name, "--size", "4M", "--key", key]
}

fn attach(daemon: &Daemon<'_>) -> Outcome {
    daemon.sealvol(&["volume", "attach", "v"])
}

#[test]
fn volumes_live_under_a_tokens_keys_and_the_pin_is_nowhere_but_in_its_file() {
    let (place, token) = (Place::new(), SoftHsm::start());
    configure(&place, &token);
    let daemon = start(&place);
    let mut told = String::new();
    let mut content = pattern::bytes(1, 1 << 20);
    let seen = seen_of_children(daemon.pid().as_raw_nonzero().get(), || {
        for name in ["hsm:volumes", "hsm:other"] {
            daemon.sealvol(&["key", "create", name]).succeeded();
        }
        daemon.sealvol(&create("v", "hsm:volumes")).succeeded();
        daemon.attach("v");
        daemon.write("v", 0, &content);
        content.resize(SIZE, 0);
        daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
        let clone = [
            &create("c", "hsm:other")[..3],
            &["--from-snapshot", "v@s", "--key", "hsm:other"],
        ]
        .concat();
        daemon.sealvol(&clone).succeeded();
        daemon.attach("c");
        daemon
            .sealvol(&["key", "rewrap", "v", "--key", "hsm:other"])
            .succeeded();
        for name in ["v", "c"] {
            daemon.detach(name);
            daemon.attach(name);
            assert_eq!(daemon.content(name), content, "{name}");
        }
        for asked in [
            &["status"][..],
            &["doctor"],
            &["key", "list"],
            &["key", "show", "hsm:other"],
            &["volume", "show", "v"],
            &["volume", "list"],
        ] {
            for form in [&[][..], &["--json"]] {
                let outcome = daemon.sealvol(&[form, asked].concat());
                told += &format!("{outcome}");
            }
        }
        // What is wrong with a name is told before it is written anywhere.
        for key in [
            "pkcs11:object=volumes?pin-value=",
            "pkcs11:object=volumes;pin-value=",
        ] {
            let key = format!("hsm:{key}{}", token.pin());
            let refused = daemon
                .sealvol(&create("x", &key))
                .failed_with(2, &["pin-value"]);
            assert!(!refused.stderr.contains(token.pin()), "{}", refused.stderr);
        }
    });

    assert!(told.contains("one credential for everything"), "{told}");
    assert!(
        told.contains("an unknown time"),
        "a token tells no time: {told}"
    );
    assert!(!told.contains(token.pin()), "{told}");
    assert!(
        !seen.iter().any(|text| holds(text, token.pin().as_bytes())),
        "{seen:?}"
    );
    // The search sees what is there: the child's name, and as root its environment.
    assert!(
        seen.iter().any(|text| holds(text, b"sealvol-keys")),
        "{seen:?}"
    );
    if rustix::process::geteuid().is_root() {
        assert!(
            seen.iter().any(|text| holds(text, b"SOFTHSM2_CONF")),
            "{seen:?}"
        );
    }
    let logs = place.log();
    let found = files_with(token.pin(), &[&place.state(), &place.runtime(), &logs]);
    assert!(found.is_empty(), "{found:?}");
    assert!(
        !files_with("hsm:volumes", &[&place.state()]).is_empty(),
        "the search finds what is there"
    );
}

#[test]
fn a_token_that_is_away_delays_an_attach_and_a_wrong_pin_refuses_it_once() {
    let (place, token) = (Place::new(), SoftHsm::start());
    configure(&place, &token);
    let daemon = start(&place);
    daemon
        .sealvol(&["key", "create", "hsm:volumes"])
        .succeeded();
    daemon.sealvol(&create("v", "hsm:volumes")).succeeded();
    token.pull_out();
    attach(&daemon).failed_with(1, &["hsm", "none is there"]);
    assert!(daemon.log().contains("trying again"), "{}", daemon.log());
    token.put_back();
    attach(&daemon).succeeded();
    daemon.detach("v");

    // Other than an outage it is not tried again, not even by the next attach.
    token.put_pin("0000-s3cr3t");
    let tries = daemon.log().matches("trying again").count();
    attach(&daemon).failed_with(3, &["CKR_PIN_INCORRECT", "pin-file"]);
    attach(&daemon).failed_with(3, &["CKR_PIN_INCORRECT", "not given again"]);
    assert_eq!(daemon.log().matches("trying again").count(), tries);
    assert_eq!(
        daemon.sealvol_json(&["volume", "show", "v"])["state"],
        "available"
    );
    let logs = place.log();
    assert!(files_with("s3cr3t", &[&place.state(), &logs]).is_empty());
    token.put_pin(token.pin());
    attach(&daemon).succeeded();
}

#[test]
fn a_configuration_that_does_not_say_what_one_pin_means_is_refused() {
    let (place, token) = (Place::new(), SoftHsm::start());
    configure(&place, &token);
    let path = place.file("sealvold.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    for (without, named) in [
        (
            text.replace("single-credential = true\n", ""),
            "single-credential",
        ),
        (text.replace("SOFTHSM2_CONF", "LD_PRELOAD"), "LD_PRELOAD"),
        (
            text.replace("pkcs11:token=", "pkcs11:pin-value="),
            "pin-value",
        ),
    ] {
        std::fs::write(&path, without).expect("written");
        let mut command = Daemon::command(&place);
        command.arg("--config").arg(&path);
        let refused = Daemon::start_by(&place, command).expect_err("refused");
        assert!(refused.stderr.contains(named), "{refused}");
    }
    std::fs::write(&path, text).expect("written");
    let status = start(&place).sealvol_json(&["status"]);
    assert_eq!(status["key_services"][0]["kind"], "pkcs11");
    assert_eq!(
        status["key_services"][0]["single_credential"],
        Value::Bool(true)
    );
}

#[test]
fn volumes_live_under_a_tpms_keys_as_long_as_the_machine_is_in_the_state_they_were_sealed_to() {
    let (place, mut tpm) = (Place::new(), Swtpm::start());
    let text = format!(
        "key-deadline-s = 4\n[providers.tpm]\ntype = \"tpm2\"\ndevice = {}\ndirectory = {}\npcrs = [0, 7]\nsingle-credential = true\n",
        quoted(&tpm.socket()),
        quoted(&place.state().join("tpm"))
    );
    std::fs::write(place.file("sealvold.toml"), text).expect("a configuration");
    let daemon = start(&place);
    daemon
        .sealvol(&["key", "create", "tpm:volumes"])
        .succeeded();
    daemon.sealvol(&create("v", "tpm:volumes")).succeeded();
    daemon.attach("v");
    let mut content = pattern::bytes(1, 1 << 20);
    daemon.write("v", 0, &content);
    content.resize(SIZE, 0);
    daemon.detach("v");
    daemon.attach("v");
    assert_eq!(daemon.content("v"), content);

    // What is attached is attached; the next attach is refused.
    tpm.extend(7);
    assert_eq!(daemon.content("v"), content);
    daemon.detach("v");
    attach(&daemon).failed_with(3, &["TPM_RC_POLICY_FAIL", "sealed to"]);
    let key = daemon.sealvol_json(&["key", "show", "tpm:volumes"]);
    assert_eq!(key["state"], "disabled");
    tpm.switch_off();
    attach(&daemon).failed_with(1, &["tpm:", "device"]);
    tpm.switch_on();
    attach(&daemon).succeeded();
    assert_eq!(daemon.content("v"), content);
    let status = daemon.sealvol_json(&["status"]);
    assert_eq!(status["key_services"][1]["kind"], "tpm2");
    assert_eq!(
        status["key_services"][1]["single_credential"],
        Value::Bool(true)
    );
}
