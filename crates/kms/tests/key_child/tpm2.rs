//! What is `tpm2`'s own: the state of the machine, boots, other TPMs, a counter, and what is left in the chip.

use std::fs;
use std::io::Read as _;

use sealvol_control::keychild::{
    Call, Done, FailureClass, KeyFailure, KeyState, Right, Tpm2Service,
};

use crate::place::{context, generate, unwrap};
use crate::subject::{answer, opened, wrapped};
use crate::tpm::{RESETTABLE, Tpm, asked, create};

#[track_caller]
fn is(failure: &KeyFailure, class: FailureClass, name: &str) {
    assert_eq!(
        (failure.class, failure.provider_error.as_str()),
        (class, name),
        "{failure}"
    );
    assert!(!failure.next_step.is_empty(), "{failure:?}");
}

#[tokio::test]
async fn a_boot_into_the_same_state_opens_again_what_a_changed_one_refused() {
    let mut tpm = Tpm::start().await;
    let ctx = context("1");
    let blob = wrapped(&tpm, "other", &ctx).await.blob;
    let key = opened(&tpm, "other", &blob, &ctx).await.unwrap();
    tpm.chip.extend(0);
    let failure = opened(&tpm, "other", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::KeyUnusable, "TPM_RC_POLICY_FAIL");
    assert!(
        failure.message.contains("0x99d") && failure.is_revocation(),
        "{failure}"
    );
    // Register 0 can't be reset but by a boot.
    tpm.chip.switch_off();
    let failure = opened(&tpm, "other", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::Transient, "DeviceMissing");
    assert!(failure.may_pass() && !failure.is_revocation(), "{failure}");
    tpm.chip.switch_on();
    assert_eq!(opened(&tpm, "other", &blob, &ctx).await.unwrap(), key);
}

#[tokio::test]
async fn another_tpm_and_one_that_was_cleared_open_nothing_and_call_nothing_tampered() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    let blob = wrapped(&tpm, "default", &ctx).await.blob;
    let others = Tpm::start().await;
    fs::copy(tpm.file("default"), others.file("default")).unwrap();
    let failure = opened(&others, "default", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::KeyUnusable, "TPM_RC_INTEGRITY");
    tpm.chip.tool("tpm2_clear", &["-c", "p"]);
    let failure = opened(&tpm, "default", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::KeyUnusable, "TPM_RC_INTEGRITY");
}

#[tokio::test]
async fn whatever_is_changed_in_the_file_of_a_key_opens_nothing() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    let blob = wrapped(&tpm, "default", &ctx).await.blob;
    let genuine = fs::read_to_string(tpm.file("default")).unwrap();
    let other = fs::read_to_string(tpm.file("other")).unwrap();
    let field = |text: &str, name: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value[name].to_string()
    };
    for name in ["id", "pcrs", "public", "private", "bank", "format"] {
        let (mine, theirs) = (field(&genuine, name), field(&other, name));
        let theirs = match name {
            "bank" => "\"sha384\"".to_owned(),
            "format" => "2".to_owned(),
            _ => theirs,
        };
        assert_ne!(mine, theirs, "{name}");
        let pair = |value: &str| format!("\"{name}\":{value}");
        let changed = genuine.replace(&pair(&mine), &pair(&theirs));
        assert_ne!(changed, genuine, "{name}");
        // Two files with one id would be told apart by nobody.
        fs::write(
            tpm.file("other"),
            if name == "id" { &genuine } else { &other },
        )
        .unwrap();
        fs::write(tpm.file("default"), changed).unwrap();
        let failure = opened(&tpm, "default", &blob, &ctx).await.expect_err(name);
        assert!(
            matches!(
                failure.class,
                FailureClass::KeyUnusable | FailureClass::WrongKeyOrTamper
            ),
            "{name}: {failure}"
        );
    }
    fs::write(tpm.file("default"), genuine).unwrap();
    opened(&tpm, "default", &blob, &ctx)
        .await
        .expect("as it was");

    // What can't be read is not gone, and takes no other key with it.
    let id = wrapped(&tpm, "default", &ctx).await.key_id;
    fs::write(tpm.file("default"), "{").unwrap();
    for key in ["default", &id] {
        let failure = opened(&tpm, key, &blob, &ctx).await.unwrap_err();
        is(&failure, FailureClass::KeyUnusable, "SealedKeyDamaged");
        assert!(!failure.is_revocation(), "{failure}");
    }
    wrapped(&tpm, "other", &ctx).await;
}

#[tokio::test]
async fn a_counter_that_was_moved_on_takes_the_keys_before_it_out_of_use() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    tpm.chip.tool(
        "tpm2_nvdefine",
        &[
            "-Q",
            "-C",
            "o",
            "-s",
            "8",
            "-a",
            "ownerwrite|authread|no_da|nt=counter",
            "0x1500001",
        ],
    );
    let move_on = || {
        tpm.chip
            .tool("tpm2_nvincrement", &["-Q", "-C", "o", "0x1500001"])
    };
    move_on();
    let service = Tpm2Service {
        counter: Some(0x0150_0001),
        ..tpm.service()
    };
    create(&service, "counted").await.expect("created");
    let Ok(Done::Generate(made)) = asked(&service, Right::Create, generate("counted", &ctx)).await
    else {
        panic!("no wrapped key");
    };
    let open = unwrap("counted", &made.blob, &ctx);
    asked(&service, Right::Attach, open.clone())
        .await
        .expect("opened");
    move_on();
    let failure = asked(&service, Right::Attach, open).await.unwrap_err();
    is(&failure, FailureClass::KeyUnusable, "TPM_RC_POLICY");
    let described = Call::Describe {
        key: "counted".to_owned(),
    };
    let Ok(Done::Describe(key)) = asked(&service, Right::Attach, described).await else {
        panic!("not described");
    };
    assert_eq!(key.state, KeyState::Disabled);
    create(&service, "later")
        .await
        .expect("one that is made now is of now");
}

#[tokio::test]
async fn keys_can_be_sealed_under_a_persistent_parent() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    tpm.chip.tool(
        "tpm2_createprimary",
        &["-Q", "-C", "o", "-G", "rsa2048", "-c", "parent"],
    );
    tpm.chip.tool(
        "tpm2_evictcontrol",
        &["-Q", "-C", "o", "-c", "parent", "0x81000001"],
    );
    tpm.chip.tool("tpm2_flushcontext", &["-t"]);
    let service = Tpm2Service {
        parent: Some(0x8100_0001),
        ..tpm.service()
    };
    create(&service, "under").await.expect("created");
    let Ok(Done::Generate(made)) = asked(&service, Right::Create, generate("under", &ctx)).await
    else {
        panic!("no wrapped key");
    };
    let open = unwrap("under", &made.blob, &ctx);
    asked(&service, Right::Attach, open.clone())
        .await
        .expect("opened");
    let refused = asked(&tpm.service(), Right::Attach, open.clone())
        .await
        .unwrap_err();
    is(&refused, FailureClass::KeyUnusable, "TPM_RC_INTEGRITY");
    let nothing = Tpm2Service {
        parent: Some(0x8100_0002),
        ..tpm.service()
    };
    let refused = asked(&nothing, Right::Attach, open).await.unwrap_err();
    is(&refused, FailureClass::KeyUnusable, "TPM_RC_HANDLE");
}

#[tokio::test]
async fn an_index_for_the_audit_log_goes_forward_as_the_specification_has_it() {
    let tpm = Tpm::start().await;
    let define = |index: &str, more: &str| {
        let attributes = format!("authread|authwrite|no_da|{more}");
        let what = ["-Q", "-C", "o", "-g", "sha256", "-a", &attributes, index];
        tpm.chip.tool("tpm2_nvdefine", &what);
    };
    define("0x1500010", "nt=extend");
    define("0x1500011", "nt=counter");
    let with = |index| Tpm2Service {
        audit: Some(index),
        ..tpm.service()
    };
    let extend = |extension: &[u8]| Call::ExtendAudit {
        extension: extension.to_vec(),
    };
    let mut stands = Vec::new();
    for extension in [&b"one"[..], b"two"] {
        let done = asked(&with(0x0150_0010), Right::Administer, extend(extension)).await;
        let Ok(Done::ExtendAudit { before, after }) = done else {
            panic!("{done:?}");
        };
        assert_eq!(before, stands, "what came out the last time");
        // tpm2-tools agree; that it is SHA-256 of both is for who relies on it (`sealvol-audit`).
        tpm.chip.tool("tpm2_nvread", &["-o", "value", "0x1500010"]);
        assert_eq!(fs::read(tpm.chip.place("value")).unwrap(), after);
        stands = after;
    }
    let other = asked(&with(0x0150_0011), Right::Administer, extend(b"x")).await;
    is(
        &other.unwrap_err(),
        FailureClass::CallerBug,
        "TPM_RC_ATTRIBUTES",
    );
    let none = asked(&with(0x0150_0012), Right::Administer, extend(b"x")).await;
    is(
        &none.unwrap_err(),
        FailureClass::KeyUnusable,
        "TPM_RC_HANDLE",
    );
    let none = asked(&tpm.service(), Right::Administer, extend(b"x")).await;
    assert_eq!(none.unwrap_err().class, FailureClass::CallerBug);
    for right in [Right::Attach, Right::Create] {
        let refused = asked(&with(0x0150_0010), right, extend(b"x")).await;
        assert_eq!(refused.unwrap_err().class, FailureClass::NotPermitted);
    }
}

#[tokio::test]
async fn nothing_is_left_in_the_chip_also_where_a_call_fails() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    let blob = wrapped(&tpm, "default", &ctx).await.blob;
    tpm.chip.extend(RESETTABLE);
    // A chip has three places for objects and three for sessions: what were left would soon be too much.
    for _ in 0..8 {
        let failure = opened(&tpm, "default", &blob, &ctx).await.unwrap_err();
        is(&failure, FailureClass::KeyUnusable, "TPM_RC_POLICY_FAIL");
    }
    for kind in ["handles-transient", "handles-loaded-session"] {
        let left = tpm.chip.tool("tpm2_getcap", &[kind]);
        assert_eq!(left.trim(), "", "{kind}");
    }
    wrapped(&tpm, "other", &ctx).await;
}

#[tokio::test]
async fn a_sealed_key_is_opened_without_this_program() {
    let tpm = Tpm::start().await;
    let ctx = context("1");
    let blob = wrapped(&tpm, "default", &ctx).await.blob;
    let mut answer = answer(&tpm, Right::Attach, vec![unwrap("default", &blob, &ctx)]).await;
    let mut key = Vec::new();
    answer.keys.read_to_end(&mut key).unwrap();
    let manual = include_str!("../../TPM2.md");
    let script = manual
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    fs::copy(tpm.file("default"), tpm.chip.place("default.sealed")).unwrap();
    tpm.chip
        .tool("bash", &["-ec", script.expect("the commands")]);
    let kek = fs::read(tpm.chip.place("kek")).unwrap();
    assert_eq!(kek.len(), 32);
    fs::write(tpm.chip.place("blob"), &blob).unwrap();
    // Section 3 of FORMATS.md, by a second implementation.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/open_wrapped.py");
    let pairs = serde_json::to_string(&ctx).unwrap();
    tpm.chip.tool(
        "/usr/bin/python3",
        &["-B", script, "kek", "blob", &pairs, "opened"],
    );
    assert!(
        fs::read(tpm.chip.place("opened")).unwrap() == key,
        "another key"
    );
}
