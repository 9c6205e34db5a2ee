//! The policy of a key: each call in the name of each user, allowed and denied, in its own context and in another.

use std::fs;

use sealvol_control::keychild::{
    AliasChange, Call, CallResult, Done, FailureClass, KeyChange, Right, WrappingAlgorithm,
    WrappingKeySpec,
};

use crate::place::{Place, change, context, generate, import_parameters, rewrap, unwrap};

const ROOT: u32 = 0;
const MAKER: u32 = 1;
const USER: u32 = 2;
const ADMIN: u32 = 3;
const STRANGER: u32 = 4;

/// Each of the three may do one thing with the key; the user only with one volume.
const POLICY: &str = r#"{"version":1,"statements":[
    {"uids":[1],"actions":["create"]},
    {"uids":[2],"actions":["attach"],"context":{"sealvol:volume":"mine"}},
    {"uids":[3],"actions":["administer"]}]}"#;

fn set(policy: Option<&str>) -> Call {
    Call::SetPolicy {
        key: "default".to_owned(),
        policy: policy.map(str::to_owned),
        bypass_lockout_check: false,
    }
}

fn show() -> Call {
    Call::Policy {
        key: "default".to_owned(),
    }
}

#[track_caller]
fn is_denied(result: CallResult, cell: &str) -> bool {
    match result {
        Ok(_) => false,
        Err(failure) if failure.provider_error == "AccessDeniedException" => {
            assert_eq!(
                failure.class,
                FailureClass::NotPermitted,
                "{cell}: {failure}"
            );
            true
        }
        Err(failure) => panic!("{cell}: {failure}"),
    }
}

#[tokio::test]
async fn what_the_policy_of_a_key_does_not_allow_is_denied_call_by_call() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let (mine, others) = (context("mine"), context("others"));
    let blob_of_mine = place.generate("default", &mine).await.blob;
    let blob_of_others = place.generate("default", &others).await.blob;
    let of_other_key = place.generate("other", &mine).await.blob;
    place
        .call_as(ADMIN, Right::Administer, set(Some(POLICY)))
        .await
        .unwrap();
    let check = |blob: &[u8], ctx| match unwrap("default", blob, ctx) {
        Call::Unwrap {
            key,
            wrapped,
            context,
        } => Call::Check {
            key,
            wrapped,
            context,
        },
        other => other,
    };
    let alias = |name: &str, change| Call::ChangeAlias {
        alias: format!("alias/{name}"),
        change,
    };
    let to = |key: &str| AliasChange::Create {
        key: key.to_owned(),
    };
    let to_other = rewrap(("default", &blob_of_mine, &mine), ("other", &mine));
    let from_other = rewrap(("other", &of_other_key, &mine), ("default", &mine));
    let (create, attach, administer) = (Right::Create, Right::Attach, Right::Administer);
    // Who may; the daemon's rights, which come first, are held by everybody here.
    for (right, call, allowed) in [
        (create, generate("default", &mine), &[MAKER][..]),
        (create, generate("default", &others), &[MAKER]),
        (create, to_other.clone(), &[MAKER]),
        (create, from_other.clone(), &[MAKER]),
        (attach, unwrap("default", &blob_of_mine, &mine), &[USER]),
        (attach, unwrap("default", &blob_of_others, &others), &[]),
        (attach, check(&blob_of_mine, &mine), &[USER]),
        (attach, check(&blob_of_others, &others), &[]),
        (administer, to_other, &[ADMIN, ROOT]),
        (administer, from_other, &[ADMIN, ROOT]),
        (
            administer,
            change("default", KeyChange::Enable),
            &[ADMIN, ROOT],
        ),
        (
            administer,
            change("default", KeyChange::Rotate),
            &[ADMIN, ROOT],
        ),
        (
            administer,
            change("default", KeyChange::SetRotation { days: None }),
            &[ADMIN, ROOT],
        ),
        (administer, show(), &[ADMIN, ROOT]),
        (administer, set(Some(POLICY)), &[ADMIN, ROOT]),
        // What uses no key of that policy.
        (
            attach,
            Call::Describe {
                key: "default".to_owned(),
            },
            &[ROOT, MAKER, USER, ADMIN, STRANGER],
        ),
        (
            attach,
            Call::ListKeys,
            &[ROOT, MAKER, USER, ADMIN, STRANGER],
        ),
        (
            create,
            generate("other", &mine),
            &[ROOT, MAKER, USER, ADMIN, STRANGER],
        ),
        (
            administer,
            change("other", KeyChange::Enable),
            &[ROOT, MAKER, USER, ADMIN, STRANGER],
        ),
    ] {
        for uid in [ROOT, MAKER, USER, ADMIN, STRANGER] {
            let cell = format!("{uid}: {call:?}");
            let denied = is_denied(place.call_as(uid, right, call.clone()).await, &cell);
            assert_eq!(!denied, allowed.contains(&uid), "{cell}");
        }
        // The daemon for itself.
        place
            .call(right, call)
            .await
            .expect("the daemon is denied nothing");
    }
    // Aliases: of the key that one meant and of the key that it is to mean.
    for uid in [MAKER, USER, STRANGER] {
        let made = place
            .call_as(uid, administer, alias("a", to("default")))
            .await;
        assert!(is_denied(made, "create"));
    }
    place
        .call_as(ADMIN, administer, alias("a", to("default")))
        .await
        .unwrap();
    for change in [
        AliasChange::Delete,
        AliasChange::Update {
            key: "other".to_owned(),
        },
    ] {
        let changed = place
            .call_as(STRANGER, administer, alias("a", change))
            .await;
        assert!(is_denied(changed, "away from the key"));
    }
    // By an alias, too, it is the key's policy.
    let by_alias = place
        .call_as(STRANGER, create, generate("alias/a", &mine))
        .await;
    assert!(is_denied(by_alias, "by an alias"));
    let refused = place
        .call_as(MAKER, administer, change("default", KeyChange::Disable))
        .await;
    assert!(is_denied(refused, "disable"));
    place.change("default", KeyChange::Disable).await.unwrap();
    // Who is not allowed does not learn the state.
    let refused = place
        .call_as(STRANGER, create, generate("default", &mine))
        .await;
    assert!(is_denied(refused, "disabled"));
    place
        .change("default", KeyChange::ScheduleDeletion { days: 7 })
        .await
        .unwrap();
    let cancel = change("default", KeyChange::CancelDeletion);
    assert!(is_denied(
        place.call_as(STRANGER, administer, cancel.clone()).await,
        "cancel"
    ));
    place
        .call_as(ROOT, administer, cancel)
        .await
        .expect("root administers");
}

#[tokio::test]
async fn imports_of_a_key_are_for_whom_its_policy_lets_administer_it() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    let call = Call::SetPolicy {
        key: "own".to_owned(),
        policy: Some(POLICY.to_owned()),
        bypass_lockout_check: false,
    };
    place.call_as(ADMIN, Right::Administer, call).await.unwrap();
    let (spec, algorithm) = (WrappingKeySpec::Rsa2048, WrappingAlgorithm::RsaesOaepSha256);
    let asked = import_parameters("own", spec, algorithm);
    let made = place.import_parameters("own").await;
    let import = made.import("own", made.encrypt(&[1; 32]));
    for call in [import, change("own", KeyChange::DeleteMaterial), asked] {
        for (uid, allowed) in [
            (MAKER, false),
            (USER, false),
            (STRANGER, false),
            (ADMIN, true),
        ] {
            let cell = format!("{uid} {call:?}");
            let result = place.call_as(uid, Right::Administer, call.clone()).await;
            assert_eq!(!is_denied(result, &cell), allowed, "{cell}");
        }
    }
}

#[tokio::test]
async fn whoever_sets_a_policy_can_set_another_one_unless_he_says_he_need_not() {
    let place = Place::with_default_key().await;
    let administer = Right::Administer;
    for text in [
        r#"{"version":1,"statements":[]}"#,
        r#"{"version":1,"statements":[{"uids":[3],"actions":["create","attach"]}]}"#,
        r#"{"version":1,"statements":[{"uids":[3],"actions":["administer"],"context":{"sealvol:volume":"mine"}}]}"#,
        "{",
        r#"{"version":2,"statements":[]}"#,
    ] {
        let refused = place
            .call_as(ADMIN, administer, set(Some(text)))
            .await
            .unwrap_err();
        assert_eq!(
            refused.provider_error, "MalformedPolicyDocumentException",
            "{text}"
        );
        assert_eq!(refused.class, FailureClass::CallerBug);
    }
    assert_eq!(place.call(administer, show()).await, Ok(Done::Policy(None)));
    place
        .call_as(ADMIN, administer, set(Some(POLICY)))
        .await
        .unwrap();
    let told = place.call_as(ADMIN, administer, show()).await;
    assert_eq!(told, Ok(Done::Policy(Some(POLICY.to_owned()))));
    // Somebody else takes it over, and the former one is out.
    let others = POLICY.replace("[3]", "[4]");
    let bypassing = Call::SetPolicy {
        key: "default".to_owned(),
        policy: Some(others),
        bypass_lockout_check: true,
    };
    assert!(is_denied(
        place.call_as(STRANGER, administer, bypassing.clone()).await,
        "not yet"
    ));
    place.call_as(ADMIN, administer, bypassing).await.unwrap();
    assert!(is_denied(
        place.call_as(ADMIN, administer, set(None)).await,
        "no more"
    ));
    place
        .call_as(
            STRANGER,
            administer,
            set(Some(&POLICY.replace("[3]", "[4]"))),
        )
        .await
        .unwrap();
    // A policy that lets nobody administer leaves that to root, who need not be named.
    let nobody = r#"{"version":1,"statements":[]}"#;
    place
        .call_as(ROOT, administer, set(Some(nobody)))
        .await
        .unwrap();
    assert!(is_denied(
        place.call_as(STRANGER, administer, set(None)).await,
        "nobody"
    ));
    let use_it = generate("default", &context("1"));
    let used = place.call_as(ROOT, Right::Create, use_it.clone()).await;
    assert!(is_denied(used, "root administers and does no more"));
    place.call_as(ROOT, administer, set(None)).await.unwrap();
    place
        .call_as(STRANGER, Right::Create, use_it)
        .await
        .expect("no policy any more");
}

#[tokio::test]
async fn a_policy_cannot_be_changed_without_the_master_key() {
    let place = Place::with_default_key().await;
    place
        .call_as(ADMIN, Right::Administer, set(Some(POLICY)))
        .await
        .unwrap();
    let sound = fs::read(place.database()).unwrap();
    for change in [
        "DELETE FROM policies",
        "UPDATE policies SET policy = replace(policy, '[3]', '[4]')",
    ] {
        place.sql(change);
        let refused = place.refusal(Right::Attach, Call::ListKeys).await;
        assert_eq!(refused.1, "TableChanged", "{change}");
        fs::write(place.database(), &sound).unwrap();
    }
    crate::subject::Subject::destroy(&place, "default");
    place.create_key("default").await.unwrap();
    let told = place.call(Right::Administer, show()).await;
    assert_eq!(
        told,
        Ok(Done::Policy(None)),
        "a key of the same name has none"
    );
}
