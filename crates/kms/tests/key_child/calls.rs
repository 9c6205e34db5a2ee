//! What each call of the `local` provider answers and refuses, through the real key child.

use std::io::Read;

use crate::place::{Place, change, child, context, generate, memory, rewrap, unwrap};
use sealvol_control::keychild::{
    CALLS_MAX, Call, Context, Done, FailureClass, KeyChange, KeyChildError, KeyState, Origin, Right,
};
use sealvol_crypto::VolumeKey;

const TAMPER: FailureClass = FailureClass::WrongKeyOrTamper;

fn refused(class: FailureClass, name: &str) -> (FailureClass, String) {
    (class, name.to_owned())
}

#[tokio::test]
async fn a_generated_key_unwraps_to_the_same_key_each_time() {
    let place = Place::with_default_key().await;
    let wrapped = place.generate("default", &context("1")).await;
    let first = place
        .unwrap(unwrap("default", &wrapped.blob, &context("1")))
        .await
        .unwrap();
    let again = place
        .unwrap(unwrap("default", &wrapped.blob, &context("1")))
        .await
        .unwrap();
    let by_id = place
        .unwrap(unwrap(&wrapped.key_id, &wrapped.blob, &context("1")))
        .await
        .unwrap();
    assert_eq!(first.commitment(), again.commitment());
    assert_eq!(first.commitment(), by_id.commitment());

    let other = place.generate("default", &context("1")).await;
    let other = place
        .unwrap(unwrap("default", &other.blob, &context("1")))
        .await
        .unwrap();
    assert_ne!(first.commitment(), other.commitment());
}

#[tokio::test]
async fn keys_of_a_batch_come_in_the_order_of_its_successful_calls_and_nothing_follows() {
    let place = Place::with_default_key().await;
    let one = place.generate("default", &context("1")).await.blob;
    let two = place.generate("default", &context("2")).await.blob;
    let calls = vec![
        unwrap("default", &two, &context("2")),
        unwrap("default", &two, &context("1")),
        unwrap("default", &one, &context("1")),
    ];
    let mut answer = place.answer(Right::Attach, calls).await;
    assert!(answer.results[0].is_ok() && answer.results[1].is_err() && answer.results[2].is_ok());

    let mut commitments = Vec::new();
    for _ in 0..2 {
        let key = VolumeKey::read_from(&memory(), &mut answer.keys).unwrap();
        commitments.push(key.commitment());
    }
    assert_eq!(
        answer.keys.read(&mut [0]).unwrap(),
        0,
        "the end follows the last key"
    );
    for (blob, volume, commitment) in [(&two, "2", commitments[0]), (&one, "1", commitments[1])] {
        let alone = place
            .unwrap(unwrap("default", blob, &context(volume)))
            .await
            .unwrap();
        assert_eq!(alone.commitment(), commitment);
    }
}

#[tokio::test]
async fn a_check_ends_as_an_unwrap_would_and_brings_no_key() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let check = |context: &Context| Call::Check {
        key: "default".to_owned(),
        wrapped: blob.clone(),
        context: context.clone(),
    };
    let calls = vec![check(&context("1")), check(&context("2"))];
    let mut answer = place.answer(Right::Attach, calls.clone()).await;
    assert!(matches!(
        answer.results[0],
        Ok(Done::Check { key_version: 1, .. })
    ));
    let refused = answer.results[1].as_ref().unwrap_err();
    assert_eq!(refused.class, TAMPER);
    assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0, "key bytes came");

    let answer = place.answer(Right::Create, calls).await;
    let refused = answer.results[0].as_ref().unwrap_err();
    assert_eq!(refused.class, FailureClass::NotPermitted);
}

#[tokio::test]
async fn a_full_batch_fits_the_key_socket() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let mut calls = vec![unwrap("default", &blob, &context("1")); CALLS_MAX];
    let mut answer = place.answer(Right::Attach, calls.clone()).await;
    assert!(answer.results.iter().all(Result::is_ok));
    let memory = memory();
    for _ in 0..CALLS_MAX {
        VolumeKey::read_from(&memory, &mut answer.keys).unwrap();
    }
    calls.push(Call::ListKeys);
    let error = child()
        .call(&place.batch(Right::Attach, calls))
        .await
        .unwrap_err();
    assert!(matches!(error, KeyChildError::TooManyCalls { calls } if calls == CALLS_MAX + 1));
}

#[tokio::test]
async fn nothing_but_unwrap_puts_a_byte_on_the_key_socket() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let calls = vec![
        generate("default", &context("1")),
        rewrap(
            ("default", &blob, &context("1")),
            ("default", &context("2")),
        ),
        Call::Describe {
            key: "default".to_owned(),
        },
        Call::ListKeys,
    ];
    let mut answer = place.answer(Right::Create, calls).await;
    assert!(
        answer.results.iter().all(Result::is_ok),
        "{:?}",
        answer.results
    );
    assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_wrapped_key_is_bound_to_every_pair_of_its_context() {
    let place = Place::with_default_key().await;
    let right = context("1");
    let blob = place.generate("default", &right).await.blob;
    let mut fewer = right.clone();
    fewer.pop_first();
    let mut more = right.clone();
    more.insert("sealvol:extra".to_owned(), String::new());
    // The same bytes, cut elsewhere.
    let shifted = right
        .iter()
        .map(|(key, value)| (format!("{key}{value}"), String::new()));
    for wrong in [
        context("2"),
        context(""),
        fewer,
        more,
        shifted.collect(),
        Default::default(),
    ] {
        let refusal = place
            .refusal(Right::Attach, unwrap("default", &blob, &wrong))
            .await;
        assert_eq!(
            refusal,
            refused(TAMPER, "InvalidCiphertextException"),
            "{wrong:?}"
        );
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_byte_of_a_wrapped_key_is_refused_as_tampering() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let mut changed = Vec::new();
    for position in 0..blob.len() {
        let mut blob = blob.clone();
        blob[position] ^= 1 << (position % 8);
        changed.push(blob);
    }
    changed.extend([0, 1, 25, blob.len() - 1].map(|length| blob[..length].to_vec()));
    changed.push([blob.as_slice(), &[0]].concat());
    let calls: Vec<_> = changed
        .iter()
        .map(|blob| unwrap("default", blob, &context("1")))
        .collect();
    for calls in calls.chunks(CALLS_MAX) {
        let mut answer = place.answer(Right::Attach, calls.to_vec()).await;
        for (call, result) in calls.iter().zip(&answer.results) {
            let failure = result.as_ref().expect_err(&format!("{call:?}"));
            assert_eq!(failure.class, TAMPER, "{failure}");
        }
        assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0);
    }
}

#[tokio::test]
async fn swapped_headers_and_other_keys_are_refused() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let mine = place.generate("default", &context("1")).await;
    let others = place.generate("other", &context("1")).await;

    // The blob is sound, but not of the key that the caller names.
    let refusal = place
        .refusal(Right::Attach, unwrap("other", &mine.blob, &context("1")))
        .await;
    assert_eq!(refusal, refused(TAMPER, "IncorrectKeyException"));

    // The header of one (magic, format, key id, key version) before the rest of the other.
    let swapped = [&mine.blob[..25], &others.blob[25..]].concat();
    let refusal = place
        .refusal(Right::Attach, unwrap("default", &swapped, &context("1")))
        .await;
    assert_eq!(refusal, refused(TAMPER, "InvalidCiphertextException"));
}

#[tokio::test]
async fn a_key_of_another_database_does_not_open_here() {
    let (one, two) = (
        Place::with_default_key().await,
        Place::with_default_key().await,
    );
    let blob = one.generate("default", &context("1")).await.blob;
    let refusal = two
        .refusal(Right::Attach, unwrap("default", &blob, &context("1")))
        .await;
    assert_eq!(refusal, refused(TAMPER, "IncorrectKeyException"));
}

#[tokio::test]
async fn an_unknown_key_is_gone_for_ever() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let gone = refused(FailureClass::GoneForEver, "NotFoundException");
    for key in ["nothing", "6a1e7c3c-0000-4000-8000-000000000000", ""] {
        assert_eq!(
            place
                .refusal(Right::Create, generate(key, &context("1")))
                .await,
            gone
        );
        assert_eq!(
            place
                .refusal(Right::Attach, unwrap(key, &blob, &context("1")))
                .await,
            gone
        );
        let describe = Call::Describe {
            key: key.to_owned(),
        };
        assert_eq!(place.refusal(Right::Attach, describe).await, gone);
    }
}

#[tokio::test]
async fn a_disabled_key_refuses_every_use_and_is_still_described() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let mine = place.generate("default", &context("1")).await.blob;
    let others = place.generate("other", &context("1")).await.blob;
    place.change("default", KeyChange::Disable).await.unwrap();

    let disabled = refused(FailureClass::KeyUnusable, "DisabledException");
    let ctx = context("1");
    for (right, call) in [
        (Right::Create, generate("default", &ctx)),
        (Right::Attach, unwrap("default", &mine, &ctx)),
        (
            Right::Create,
            rewrap(("default", &mine, &ctx), ("other", &ctx)),
        ),
        (
            Right::Create,
            rewrap(("other", &others, &ctx), ("default", &ctx)),
        ),
    ] {
        assert_eq!(
            place.refusal(right, call.clone()).await,
            disabled,
            "{call:?}"
        );
    }
    match place
        .call(
            Right::Attach,
            Call::Describe {
                key: "default".to_owned(),
            },
        )
        .await
    {
        Ok(Done::Describe(key)) => assert_eq!(key.state, KeyState::Disabled),
        other => panic!("describe: {other:?}"),
    }

    place.change("default", KeyChange::Enable).await.unwrap();
    place
        .unwrap(unwrap("default", &mine, &ctx))
        .await
        .expect("an enabled key works again");
}

#[tokio::test]
async fn rewrap_keeps_the_volume_key_and_binds_it_anew() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let (source, clone) = (context("source"), context("clone"));
    let old = place.generate("default", &source).await;
    let call = rewrap(("default", &old.blob, &source), ("other", &clone));
    let new = match place.call(Right::Create, call).await {
        Ok(Done::Rewrap(new)) => new,
        other => panic!("rewrap: {other:?}"),
    };
    assert_ne!(new.key_id, old.key_id);

    let before = place
        .unwrap(unwrap("default", &old.blob, &source))
        .await
        .unwrap();
    let after = place
        .unwrap(unwrap("other", &new.blob, &clone))
        .await
        .unwrap();
    assert_eq!(before.commitment(), after.commitment());
    let refusal = place
        .refusal(Right::Attach, unwrap("other", &new.blob, &source))
        .await;
    assert_eq!(refusal, refused(TAMPER, "InvalidCiphertextException"));

    let call = rewrap(("default", &old.blob, &clone), ("other", &clone));
    let refusal = place.refusal(Right::Create, call).await;
    assert_eq!(refusal, refused(TAMPER, "InvalidCiphertextException"));
}

#[tokio::test]
async fn each_right_covers_its_calls_and_no_others() {
    let place = Place::with_default_key().await;
    let ctx = context("1");
    let blob = place.generate("default", &ctx).await.blob;
    let denied = refused(FailureClass::NotPermitted, "AccessDeniedException");
    let calls = [
        (generate("default", &ctx), [true, false, false]),
        (unwrap("default", &blob, &ctx), [false, true, false]),
        (
            rewrap(("default", &blob, &ctx), ("default", &ctx)),
            [true, false, true],
        ),
        (
            Call::CreateKey {
                name: "new".to_owned(),
                origin: Origin::Local,
            },
            [false, false, true],
        ),
        (
            Call::Describe {
                key: "default".to_owned(),
            },
            [true, true, true],
        ),
        (Call::ListKeys, [true, true, true]),
        (change("default", KeyChange::Rotate), [false, false, true]),
        (Call::Tend, [false, false, true]),
        (Call::AcceptTable, [false, false, true]),
    ];
    for (call, covered) in calls {
        for (right, covered) in [Right::Create, Right::Attach, Right::Administer]
            .into_iter()
            .zip(covered)
        {
            if covered {
                place.call(right, call.clone()).await.unwrap();
            } else {
                assert_eq!(
                    place.refusal(right, call.clone()).await,
                    denied,
                    "{right:?} {call:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn keys_are_described_and_listed_by_name() {
    let place = Place::with_default_key().await;
    let created = place.create_key("backup/2026").await;
    let Ok(Done::ListKeys(keys)) = place.call(Right::Attach, Call::ListKeys).await else {
        panic!("the keys are listed")
    };
    let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["backup/2026", "default"]);
    assert_eq!(created, Ok(Done::CreateKey(keys[0].clone())));
    let described = Call::Describe {
        key: keys[0].key_id.clone(),
    };
    assert_eq!(
        place.call(Right::Attach, described).await,
        Ok(Done::Describe(keys[0].clone()))
    );
    assert_eq!(keys[0].state, KeyState::Enabled);
    assert_eq!(keys[0].algorithm, "AES-256-GCM");
    assert_eq!(keys[0].versions.len(), 1);
    assert_eq!(keys[0].versions[0].version, 1);
}

#[tokio::test]
async fn names_that_exist_or_mean_something_else_are_refused() {
    let place = Place::with_default_key().await;
    let create = |name: &str| Call::CreateKey {
        name: name.to_owned(),
        origin: Origin::Local,
    };
    let exists = place.refusal(Right::Administer, create("default")).await;
    assert_eq!(
        exists,
        refused(FailureClass::CallerBug, "AlreadyExistsException")
    );
    let bad = refused(FailureClass::CallerBug, "ValidationException");
    let long = "k".repeat(257);
    for name in [
        "",
        "a b",
        "a:b",
        "ä",
        "6a1e7c3c-0000-4000-8000-000000000000",
        &long,
    ] {
        assert_eq!(
            place.refusal(Right::Administer, create(name)).await,
            bad,
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn an_oversized_wrapped_key_is_the_callers_fault() {
    let place = Place::with_default_key().await;
    let call = unwrap("default", &[0; 6145], &context("1"));
    let refusal = place.refusal(Right::Attach, call).await;
    assert_eq!(
        refusal,
        refused(FailureClass::CallerBug, "ValidationException")
    );
}
