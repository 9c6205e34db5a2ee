//! What every key service promises, asked of each provider: `local` by its database, `transit` by a real OpenBao server,
//! `azure-kv` by a vault of our own, `pkcs11` by a SoftHSM token, with AES-GCM and without, `tpm2` by swtpm,
//! `aws-kms` by moto, corrected where it is no AWS KMS (`kms_gate.rs` names each place).

use std::io::Read as _;

use sealvol_control::keychild::{
    CALLS_MAX, Call, Context, Done, FailureClass, KeyState, Origin, Right,
};
use sealvol_crypto::VolumeKey;

use crate::aws::Aws;
use crate::bao::Bao;
use crate::hsm::Hsm;
use crate::place::{Place, context, generate, memory, rewrap, tombstone, unwrap};
use crate::subject::{Subject, answer, call, class, opened, wrapped};
use crate::tpm::Tpm;
use crate::vault::Vault;

const TAMPER: FailureClass = FailureClass::WrongKeyOrTamper;

/// Each of these tests, of each provider.
macro_rules! every_provider {
    ($($name:ident),* $(,)?) => {
        mod local {
            $(#[tokio::test] async fn $name() { super::$name(&super::local().await).await })*
        }
        mod aws {
            $(#[tokio::test] async fn $name() { super::$name(&super::Aws::start()).await })*
        }
        mod azure {
            $(#[tokio::test] async fn $name() { super::$name(&super::Vault::start()).await })*
        }
        mod pkcs11 {
            $(#[tokio::test] async fn $name() { super::$name(&super::Hsm::start().await).await })*
        }
        mod pkcs11_without_gcm {
            $(#[tokio::test] async fn $name() { super::$name(&super::Hsm::without_gcm().await).await })*
        }
        mod tpm2 {
            $(#[tokio::test] async fn $name() { super::$name(&super::Tpm::start().await).await })*
        }
        mod transit {
            $(#[tokio::test] async fn $name() { super::$name(&super::Bao::start()).await })*
        }
    };
}

every_provider!(
    a_key_comes_back_the_same_each_time_and_no_two_are_alike,
    a_new_key_is_the_one_that_its_commitment_says,
    a_batch_succeeds_and_fails_call_by_call,
    a_wrapped_key_is_bound_to_every_pair_of_its_context,
    wrapped_keys_of_two_volumes_do_not_change_places,
    a_flipped_bit_in_any_byte_and_a_cut_anywhere_is_tampering,
    a_key_opens_what_it_wrapped_and_nothing_else,
    what_is_disabled_wraps_and_opens_nothing_until_it_is_enabled,
    what_is_gone_is_gone_for_ever,
    a_rewrap_keeps_the_volume_key_and_binds_it_anew,
    rights_are_kept_apart,
    what_is_shredded_is_refused_for_ever_or_not_promised,
    keys_are_described_and_listed,
);

async fn local() -> Place {
    let place = Place::with_default_key().await;
    place.create_key("other").await.expect("created");
    place
}

async fn a_key_comes_back_the_same_each_time_and_no_two_are_alike(subject: &impl Subject) {
    let ctx = context("1");
    let one = wrapped(subject, "default", &ctx).await;
    let two = wrapped(subject, "default", &ctx).await;
    assert_ne!(one.blob, two.blob);
    assert_eq!((one.key_version, &one.key_id), (1, &two.key_id));
    let first = opened(subject, "default", &one.blob, &ctx).await.unwrap();
    let again = opened(subject, &one.key_id, &one.blob, &ctx).await.unwrap();
    let other = opened(subject, "default", &two.blob, &ctx).await.unwrap();
    assert_eq!(first, again);
    assert_ne!(first, other);
}

async fn a_new_key_is_the_one_that_its_commitment_says(subject: &impl Subject) {
    let described = Call::Describe {
        key: "default".to_owned(),
    };
    let Ok(Done::Describe(key)) = call(subject, Right::Create, described).await else {
        panic!("not described");
    };
    let ctx = context("1");
    let new = wrapped(subject, "default", &ctx).await;
    let found = opened(subject, "default", &new.blob, &ctx).await.unwrap();
    // Whoever has not made the key can't be committed to it; whoever has must be.
    let told = (!key.creates_without_plaintext).then_some(found.0);
    assert_eq!(new.commitment, told);
}

async fn a_batch_succeeds_and_fails_call_by_call(subject: &impl Subject) {
    let one = wrapped(subject, "default", &context("1")).await.blob;
    let two = wrapped(subject, "default", &context("2")).await.blob;
    let calls = vec![
        unwrap("default", &two, &context("2")),
        unwrap("default", &two, &context("1")),
        Call::Describe {
            key: "nothing".to_owned(),
        },
        unwrap("default", &one, &context("1")),
    ];
    let mut answer = answer(subject, Right::Attach, calls).await;
    let came: Vec<_> = answer.results.iter().map(Result::is_ok).collect();
    assert_eq!(came, [true, false, false, true], "{:?}", answer.results);
    for (blob, volume) in [(two, "2"), (one, "1")] {
        let key = VolumeKey::read_from(&memory(), &mut answer.keys).unwrap();
        let alone = opened(subject, "default", &blob, &context(volume)).await;
        assert_eq!(alone.unwrap(), key.commitment());
    }
    assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0, "and nothing else");
}

async fn a_wrapped_key_is_bound_to_every_pair_of_its_context(subject: &impl Subject) {
    let right = context("1");
    let blob = wrapped(subject, "default", &right).await.blob;
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
        Context::default(),
    ] {
        let refused = opened(subject, "default", &blob, &wrong).await;
        assert_eq!(class(refused), TAMPER, "{wrong:?}");
    }
}

async fn wrapped_keys_of_two_volumes_do_not_change_places(subject: &impl Subject) {
    let [a, b] = [context("a"), context("b")];
    let of_a = wrapped(subject, "default", &a).await.blob;
    let of_b = wrapped(subject, "default", &b).await.blob;
    for (blob, context) in [(&of_a, &b), (&of_b, &a)] {
        assert_eq!(
            class(opened(subject, "default", blob, context).await),
            TAMPER
        );
    }
}

async fn a_flipped_bit_in_any_byte_and_a_cut_anywhere_is_tampering(subject: &impl Subject) {
    let blob = wrapped(subject, "default", &context("1")).await.blob;
    let mut changed = Vec::new();
    for position in 0..blob.len() {
        let mut flipped = blob.clone();
        flipped[position] ^= 1 << (position % 8);
        changed.extend([flipped, blob[..position].to_vec()]);
    }
    changed.push([blob.as_slice(), &[0]].concat());
    changed.push([blob.as_slice(), b"\n"].concat());
    let calls: Vec<_> = changed
        .iter()
        .map(|blob| unwrap("default", blob, &context("1")))
        .collect();
    for calls in calls.chunks(CALLS_MAX) {
        let mut answer = answer(subject, Right::Attach, calls.to_vec()).await;
        for (call, result) in calls.iter().zip(&answer.results) {
            let failure = result.as_ref().expect_err(&format!("{call:?}"));
            assert_eq!(failure.class, TAMPER, "{call:?}: {failure}");
        }
        assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0);
    }
}

async fn a_key_opens_what_it_wrapped_and_nothing_else(subject: &impl Subject) {
    let blob = wrapped(subject, "default", &context("1")).await.blob;
    let refused = opened(subject, "other", &blob, &context("1")).await;
    assert_eq!(class(refused), TAMPER);
}

async fn what_is_disabled_wraps_and_opens_nothing_until_it_is_enabled(subject: &impl Subject) {
    let ctx = context("1");
    let mine = wrapped(subject, "default", &ctx).await.blob;
    let others = wrapped(subject, "other", &ctx).await.blob;
    subject.disable("default");
    for (right, asked) in [
        (Right::Create, generate("default", &ctx)),
        (Right::Attach, unwrap("default", &mine, &ctx)),
        (
            Right::Create,
            rewrap(("default", &mine, &ctx), ("default", &ctx)),
        ),
        (
            Right::Create,
            rewrap(("default", &mine, &ctx), ("other", &ctx)),
        ),
        (
            Right::Create,
            rewrap(("other", &others, &ctx), ("default", &ctx)),
        ),
    ] {
        let refused = call(subject, right, asked.clone()).await;
        assert_eq!(class(refused), FailureClass::KeyUnusable, "{asked:?}");
    }
    let described = Call::Describe {
        key: "default".to_owned(),
    };
    match call(subject, Right::Attach, described).await {
        Ok(Done::Describe(key)) => assert_eq!(key.state, KeyState::Disabled),
        other => panic!("describe: {other:?}"),
    }
    subject.enable("default");
    opened(subject, "default", &mine, &ctx)
        .await
        .expect("it works again");
}

async fn what_is_gone_is_gone_for_ever(subject: &impl Subject) {
    let ctx = context("1");
    let mine = wrapped(subject, "default", &ctx).await.blob;
    subject.destroy("default");
    for key in ["default", "nothing"] {
        for (right, asked) in [
            (Right::Create, generate(key, &ctx)),
            (Right::Attach, unwrap(key, &mine, &ctx)),
            (Right::Create, rewrap((key, &mine, &ctx), ("other", &ctx))),
            (
                Right::Attach,
                Call::Describe {
                    key: key.to_owned(),
                },
            ),
        ] {
            let refused = call(subject, right, asked.clone()).await;
            assert_eq!(class(refused), FailureClass::GoneForEver, "{asked:?}");
        }
    }
}

async fn a_rewrap_keeps_the_volume_key_and_binds_it_anew(subject: &impl Subject) {
    let [source, clone] = [context("source"), context("clone")];
    let old = wrapped(subject, "default", &source).await;
    let key = opened(subject, "default", &old.blob, &source)
        .await
        .unwrap();
    for (to, context) in [
        ("default", &source),
        ("default", &clone),
        ("other", &source),
        ("other", &clone),
    ] {
        let asked = rewrap(("default", &old.blob, &source), (to, context));
        let new = match call(subject, Right::Create, asked).await {
            Ok(Done::Rewrap(new)) => new,
            other => panic!("rewrap: {other:?}"),
        };
        assert_ne!(new.blob, old.blob);
        assert_eq!(opened(subject, to, &new.blob, context).await.unwrap(), key);
        for (other, others) in [
            ("default", &source),
            ("default", &clone),
            ("other", &source),
            ("other", &clone),
        ] {
            if (other, others) != (to, context) {
                let refused = opened(subject, other, &new.blob, others).await;
                assert_eq!(
                    class(refused),
                    TAMPER,
                    "{to} {context:?} by {other} {others:?}"
                );
            }
        }
    }
}

async fn rights_are_kept_apart(subject: &impl Subject) {
    let ctx = context("1");
    let blob = wrapped(subject, "default", &ctx).await.blob;
    for (right, asked) in [
        (Right::Create, unwrap("default", &blob, &ctx)),
        (Right::Administer, unwrap("default", &blob, &ctx)),
        (Right::Attach, generate("default", &ctx)),
        (
            Right::Attach,
            rewrap(("default", &blob, &ctx), ("default", &ctx)),
        ),
        (
            Right::Create,
            Call::CreateKey {
                name: "new".to_owned(),
                origin: Origin::Local,
            },
        ),
    ] {
        let refused = call(subject, right, asked.clone()).await;
        assert_eq!(class(refused), FailureClass::NotPermitted, "{asked:?}");
    }
}

async fn what_is_shredded_is_refused_for_ever_or_not_promised(subject: &impl Subject) {
    let (ctx, other) = (context("1"), context("other"));
    let mine = wrapped(subject, "default", &ctx).await.blob;
    let others = wrapped(subject, "default", &other).await.blob;
    let put = tombstone(&["1"], &[]);
    for right in [Right::Attach, Right::Create] {
        let refused = call(subject, right, put.clone()).await;
        assert_eq!(class(refused), FailureClass::NotPermitted);
    }
    opened(subject, "default", &mine, &ctx)
        .await
        .expect("nothing was put");
    let stands = call(subject, Right::Administer, put).await;
    if subject.keeps_tombstones() {
        assert_eq!(stands, Ok(Done::Tombstone));
        for (right, asked) in [
            (Right::Attach, unwrap("default", &mine, &ctx)),
            (Right::Create, generate("default", &ctx)),
            (Right::Create, generate("other", &ctx)),
            (
                Right::Create,
                rewrap(("default", &mine, &ctx), ("other", &other)),
            ),
            (
                Right::Create,
                rewrap(("default", &others, &other), ("default", &ctx)),
            ),
        ] {
            let refused = call(subject, right, asked.clone()).await;
            assert_eq!(class(refused), FailureClass::GoneForEver, "{asked:?}");
        }
    } else {
        // Whoever can't must say so: a promise is made of it.
        assert_eq!(class(stands), FailureClass::CallerBug);
        opened(subject, "default", &mine, &ctx)
            .await
            .expect("nothing was changed");
    }
    opened(subject, "default", &others, &other)
        .await
        .expect("another volume's");
}

async fn keys_are_described_and_listed(subject: &impl Subject) {
    let Ok(Done::ListKeys(keys)) = call(subject, Right::Attach, Call::ListKeys).await else {
        panic!("no list");
    };
    let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["default", "other"]);
    for key in keys {
        assert_eq!(key.state, KeyState::Enabled);
        assert_eq!(
            key.versions
                .iter()
                .map(|version| version.version)
                .collect::<Vec<_>>(),
            [1]
        );
        if subject.tells_age() {
            assert!(
                key.created > 1_700_000_000 && key.versions[0].created >= key.created,
                "{key:?}"
            );
        } else {
            assert_eq!((key.created, key.versions[0].created), (0, 0), "{key:?}");
        }
        let asked = Call::Describe {
            key: key.key_id.clone(),
        };
        let described = call(subject, Right::Create, asked).await;
        assert_eq!(described, Ok(Done::Describe(key)));
    }
}
