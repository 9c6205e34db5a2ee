//! What is `pkcs11`'s own: names of keys, PINs, tokens that are away, and what a module may do in the child.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use sealvol_control::keychild::{
    Batch, Call, CallResult, Done, FailureClass, KeyChange, KeyDescription, KeyFailure, Landlock,
    Origin, Pkcs11Service, Right, WrapMechanism,
};

use crate::hsm::{Hsm, provider};
use crate::place::{change, child, context, generate, rewrap, set_mode, unwrap};
use crate::softhsm::SoftHsm;
use crate::subject::{answer, call, opened, wrapped};

/// One call to a token that is configured so.
async fn asked(service: &Pkcs11Service, right: Right, call: Call) -> CallResult {
    let batch = Batch {
        right,
        principal: sealvol_control::keychild::Principal::Daemon,
        provider: provider(service.clone()),
        require_secretmem: false,
        calls: vec![call],
        relied_on: None,
    };
    let mut answer = child().call(&batch).await.expect("the child replies");
    answer.results.remove(0)
}

async fn listed(service: &Pkcs11Service) -> Result<Vec<KeyDescription>, KeyFailure> {
    match asked(service, Right::Attach, Call::ListKeys).await? {
        Done::ListKeys(keys) => Ok(keys),
        other => panic!("another answer: {other:?}"),
    }
}

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
async fn a_key_is_named_by_label_or_id_or_both_and_means_the_same() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let made = wrapped(&hsm, "default", &ctx).await;
    assert!(made.key_id.starts_with("pkcs11:id=%"), "{}", made.key_id);
    let id = made.key_id.strip_prefix("pkcs11:").unwrap();
    for name in [
        "default".to_owned(),
        made.key_id.clone(),
        "pkcs11:object=default".to_owned(),
        format!("pkcs11:token=sealvol%20test;object=%64efault;type=secret-key;{id}"),
    ] {
        opened(&hsm, &name, &made.blob, &ctx).await.expect(&name);
    }
    for name in [
        format!("pkcs11:object=other;{id}"),
        format!("pkcs11:token=another;{id}"),
        "pkcs11:object=Default".to_owned(),
        "pkcs11:id=%00".to_owned(),
    ] {
        let refused = opened(&hsm, &name, &made.blob, &ctx).await.unwrap_err();
        is(&refused, FailureClass::GoneForEver, "NotFoundException");
    }
}

#[tokio::test]
async fn a_name_that_would_load_code_or_give_a_pin_is_refused_before_a_module_is_loaded() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let blob = wrapped(&hsm, "default", &ctx).await.blob;
    // Were this module loaded, that would be told: it is none.
    let service = Pkcs11Service {
        module: "/lib/x86_64-linux-gnu/libc.so.6".into(),
        ..hsm.service()
    };
    let failure = listed(&service).await.unwrap_err();
    is(&failure, FailureClass::Transient, "ModuleUnusable");
    for (attribute, told) in [
        ("module-path=/tmp/s3cr3t.so", "module-path"),
        ("module-name=s3cr3t", "module-name"),
        ("pin-source=file:/s3cr3t", "pin-source"),
        ("pin-value=s3cr3t", "pin-value"),
        ("slot-id=7", "slot-id"),
    ] {
        for key in [
            format!("pkcs11:object=default;{attribute}"),
            format!("pkcs11:object=default?{attribute}"),
        ] {
            for (right, asks) in [
                (Right::Create, generate(&key, &ctx)),
                (Right::Attach, unwrap(&key, &blob, &ctx)),
                (
                    Right::Create,
                    rewrap((&key, &blob, &ctx), ("default", &ctx)),
                ),
                (
                    Right::Create,
                    rewrap(("default", &blob, &ctx), (&key, &ctx)),
                ),
                (Right::Attach, Call::Describe { key: key.clone() }),
                (
                    Right::Administer,
                    Call::CreateKey {
                        name: key.clone(),
                        origin: Origin::Local,
                    },
                ),
            ] {
                let refused = asked(&service, right, asks.clone()).await.unwrap_err();
                // The side that is asked for first is the one that is told of; the other never came to the module either.
                let rewraps = matches!(&asks, Call::Rewrap { key: from, .. } if *from == key);
                if rewraps && refused.provider_error == "ModuleUnusable" {
                    continue;
                }
                is(&refused, FailureClass::CallerBug, "ValidationException");
                assert!(!refused.to_string().contains("s3cr3t"), "{refused}");
                if !matches!(asks, Call::CreateKey { .. }) {
                    assert!(refused.message.contains(told), "{refused}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_wrapped_key_is_opened_without_this_program() {
    for hsm in [Hsm::start().await, Hsm::without_gcm().await] {
        let ctx = context("1");
        let blob = wrapped(&hsm, "default", &ctx).await.blob;
        assert_eq!(
            blob[5],
            if hsm.mechanism == WrapMechanism::AesGcm {
                1
            } else {
                2
            }
        );
        let mut answer = answer(&hsm, Right::Attach, vec![unwrap("default", &blob, &ctx)]).await;
        let mut key = Vec::new();
        answer.keys.read_to_end(&mut key).unwrap();
        assert_eq!(key.len(), 64);
        let file = hsm.token.configuration().with_file_name("blob");
        fs::write(&file, &blob).unwrap();
        let pairs = serde_json::to_string(&ctx).unwrap();
        let file = file.to_str().unwrap();
        let opened = hsm.operate(&["open", "default", file, "--context", &pairs]);
        assert!(opened.stdout == key, "another key than the child's");
    }
}

#[tokio::test]
async fn a_token_with_aes_gcm_can_be_told_to_wrap_otherwise_and_opens_what_it_wrapped_before() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let before = wrapped(&hsm, "default", &ctx).await.blob;
    let service = Pkcs11Service {
        mechanism: Some(WrapMechanism::AesKeyWrapPad),
        ..hsm.service()
    };
    // The key was made for the other one: its attributes don't allow this.
    let refused = asked(&service, Right::Create, generate("default", &ctx)).await;
    is(
        &refused.unwrap_err(),
        FailureClass::KeyUnusable,
        "CKR_KEY_FUNCTION_NOT_PERMITTED",
    );
    let _ = hsm.operate(&["allow", "default", "wrap,unwrap", "yes"]);
    let Ok(Done::Generate(after)) = asked(&service, Right::Create, generate("default", &ctx)).await
    else {
        panic!("no wrapped key");
    };
    for blob in [&before, &after.blob] {
        asked(&service, Right::Attach, unwrap("default", blob, &ctx))
            .await
            .expect("opened");
        opened(&hsm, "default", blob, &ctx).await.expect("opened");
    }
}

#[tokio::test]
async fn a_wrong_pin_is_not_permitted_and_given_once_for_a_whole_batch() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let blob = wrapped(&hsm, "default", &ctx).await.blob;
    hsm.token.put_pin("wrong-pin-s3cr3t");
    let calls = vec![
        unwrap("default", &blob, &ctx),
        Call::ListKeys,
        unwrap("other", &blob, &ctx),
    ];
    let answer = answer(&hsm, Right::Attach, calls).await;
    for result in answer.results {
        let failure = result.unwrap_err();
        is(&failure, FailureClass::NotPermitted, "CKR_PIN_INCORRECT");
        assert!(!failure.may_pass(), "it is not tried again: {failure}");
        assert!(!format!("{failure:?}").contains("s3cr3t"), "{failure:?}");
    }
    hsm.token.put_pin(hsm.token.pin());
    opened(&hsm, "default", &blob, &ctx)
        .await
        .expect("the right one opens");
}

#[tokio::test]
async fn what_is_missing_for_a_moment_says_nothing_of_any_key() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let blob = wrapped(&hsm, "default", &ctx).await.blob;
    hsm.token.pull_out();
    let failure = opened(&hsm, "default", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::Transient, "TokenNotPresent");
    assert!(failure.may_pass() && !failure.is_revocation(), "{failure}");
    hsm.token.put_back();
    opened(&hsm, "default", &blob, &ctx)
        .await
        .expect("it is back");

    fs::remove_file(hsm.token.pin_file()).unwrap();
    let failure = opened(&hsm, "default", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::Transient, "CredentialMissing");
    hsm.token.put_pin(hsm.token.pin());
    set_mode(&hsm.token.pin_file(), 0o644);
    let failure = opened(&hsm, "default", &blob, &ctx).await.unwrap_err();
    is(&failure, FailureClass::NotPermitted, "UnsafePlace");
    assert!(!failure.is_revocation(), "{failure}");

    let service = Pkcs11Service {
        module: "/usr/lib/nothing.so".into(),
        ..hsm.service()
    };
    let failure = listed(&service).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient, "{failure}");
}

#[tokio::test]
async fn a_module_that_others_could_have_written_is_not_loaded() {
    let hsm = Hsm::start().await;
    let directory = tempfile::tempdir().unwrap();
    let module = directory.path().join("module.so");
    let service = Pkcs11Service {
        module: module.clone(),
        ..hsm.service()
    };
    let put = |mode: u32| {
        let _ = fs::remove_file(&module);
        fs::copy(&hsm.service().module, &module).unwrap();
        set_mode(&module, mode);
    };
    put(0o755);
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            listed(&service)
                .await
                .expect("root's, and nobody else's")
                .len(),
            2
        );
        std::os::unix::fs::chown(&module, Some(65534), None).unwrap();
    }
    let failure = listed(&service).await.unwrap_err();
    is(&failure, FailureClass::NotPermitted, "UnsafePlace");
    assert!(failure.message.contains("belongs to user"), "{failure}");
    for mode in [0o775, 0o757] {
        put(mode);
        is(
            &listed(&service).await.unwrap_err(),
            FailureClass::NotPermitted,
            "UnsafePlace",
        );
    }
    put(0o755);
    let above = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), above).unwrap();
    is(
        &listed(&service).await.unwrap_err(),
        FailureClass::NotPermitted,
        "UnsafePlace",
    );
}

#[tokio::test]
async fn a_module_reaches_only_what_the_configuration_names() {
    let hsm = Hsm::start().await;
    let answer = answer(&hsm, Right::Attach, vec![Call::ListKeys]).await;
    if answer.confinement.landlock != Landlock::Full {
        return; // this kernel enforces less
    }
    for service in [
        Pkcs11Service {
            write: Vec::new(),
            ..hsm.service()
        },
        Pkcs11Service {
            read: Vec::new(),
            ..hsm.service()
        },
        Pkcs11Service {
            environment: [].into(),
            ..hsm.service()
        },
    ] {
        let failure = listed(&service).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Transient, "{failure}");
    }
}

#[tokio::test]
async fn keys_that_could_leave_the_token_or_are_meant_by_one_name_are_not_used() {
    let hsm = Hsm::start().await;
    let ctx = context("1");
    let blob = wrapped(&hsm, "default", &ctx).await;
    let _ = hsm.operate(&["exposed", "leaky"]);
    for asks in [
        generate("leaky", &ctx),
        rewrap(("default", &blob.blob, &ctx), ("leaky", &ctx)),
    ] {
        let failure = call(&hsm, Right::Create, asks).await.unwrap_err();
        is(
            &failure,
            FailureClass::CallerBug,
            "InvalidKeyUsageException",
        );
        assert!(failure.message.contains("taken out"), "{failure}");
    }
    let _ = hsm.operate(&["twin", "default"]);
    let failure = opened(&hsm, "default", &blob.blob, &ctx).await.unwrap_err();
    is(
        &failure,
        FailureClass::CallerBug,
        "InvalidKeyUsageException",
    );
    assert!(!failure.is_revocation(), "{failure}");
    opened(&hsm, &blob.key_id, &blob.blob, &ctx)
        .await
        .expect("its id means one");
    let names: Vec<_> = listed(&hsm.service())
        .await
        .unwrap()
        .into_iter()
        .map(|key| key.name)
        .collect();
    assert_eq!(
        names,
        ["default", "default", "other"],
        "and no key that could leave"
    );
}

#[tokio::test]
async fn keys_are_made_once_under_a_label_and_changed_by_the_tokens_own_tools() {
    let hsm = Hsm::start().await;
    for (name, class, error) in [
        ("default", FailureClass::CallerBug, "AlreadyExistsException"),
        (
            "pkcs11:object=new",
            FailureClass::CallerBug,
            "ValidationException",
        ),
        ("", FailureClass::CallerBug, "ValidationException"),
        (
            &"n".repeat(65),
            FailureClass::CallerBug,
            "ValidationException",
        ),
    ] {
        let create = Call::CreateKey {
            name: name.to_owned(),
            origin: Origin::Local,
        };
        let refused = call(&hsm, Right::Administer, create).await;
        is(&refused.unwrap_err(), class, error);
    }
    for how in [KeyChange::Disable, KeyChange::Enable, KeyChange::Rotate] {
        let refused = call(&hsm, Right::Administer, change("default", how)).await;
        is(
            &refused.unwrap_err(),
            FailureClass::CallerBug,
            "UnsupportedOperationException",
        );
    }
}

#[tokio::test]
async fn a_pin_stands_in_no_answer() {
    let hsm = Hsm::start().await;
    let calls = vec![
        Call::ListKeys,
        generate("nothing", &context("1")),
        Call::Tend,
    ];
    for right in [Right::Create, Right::Attach, Right::Administer] {
        let answer = answer(&hsm, right, calls.clone()).await;
        let told = format!("{:?} {:?}", answer.results, answer.confinement);
        assert!(
            !told.contains(hsm.token.pin())
                && !format!("{:?}", hsm.service()).contains(hsm.token.pin())
        );
    }
    // As long as it is asked for by name, it can be found.
    assert_eq!(SoftHsm::start().pin().len(), "pin-".len() + 16);
}
