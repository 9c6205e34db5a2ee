//! Which call is possible in which state of a key: every cell of the table in `local/lifecycle.rs`, by a call to the real child.

use std::fs;

use sealvol_control::keychild::{
    Call, Done, FailureClass, KeyChange, KeyDescription, KeyState, Origin, ROTATIONS_ON_DEMAND_MAX,
    Right, WrappingAlgorithm, WrappingKeySpec,
};

use crate::place::{Place, change, context, generate, import_parameters, rewrap, unwrap};

const DISABLED: &str = "DisabledException";
const INVALID: &str = "KMSInvalidStateException";
const OK: &str = "ok";
const UNSUPPORTED: &str = "UnsupportedOperationException";

/// The states that a key can be brought to by calls alone, and those calls. The last one is for keys whose material is imported.
fn ways() -> [(KeyState, Vec<KeyChange>); 4] {
    [
        (KeyState::Enabled, vec![]),
        (KeyState::Disabled, vec![KeyChange::Disable]),
        (
            KeyState::PendingDeletion,
            vec![KeyChange::ScheduleDeletion { days: 7 }],
        ),
        (KeyState::PendingImport, vec![KeyChange::DeleteMaterial]),
    ]
}

fn described(done: Done) -> KeyDescription {
    match done {
        Done::Change(key) | Done::Describe(key) => key,
        other => panic!("no key: {other:?}"),
    }
}

#[tokio::test]
async fn every_use_in_every_state_answers_as_aws_kms_does() {
    let place = Place::with_default_key().await;
    let ctx = context("1");
    let of_default = place.generate("default", &ctx).await.blob;
    for (state, way) in ways() {
        let name = state.as_str();
        if state == KeyState::PendingImport {
            place.create_external_key(name).await;
            place.import(name, 1).await.unwrap();
        } else {
            place.create_key(name).await.unwrap();
        }
        let mine = place.generate(name, &ctx).await.blob;
        for how in way {
            place.change(name, how).await.unwrap();
        }
        let expected = match state {
            KeyState::Enabled => OK,
            KeyState::Disabled => DISABLED,
            KeyState::PendingDeletion | KeyState::PendingImport => INVALID,
        };
        let describe = Call::Describe {
            key: name.to_owned(),
        };
        for (right, call, expected) in [
            (Right::Create, generate(name, &ctx), expected),
            (Right::Attach, unwrap(name, &mine, &ctx), expected),
            (
                Right::Create,
                rewrap((name, &mine, &ctx), ("default", &ctx)),
                expected,
            ),
            (
                Right::Administer,
                rewrap(("default", &of_default, &ctx), (name, &ctx)),
                expected,
            ),
            (Right::Attach, describe, OK),
            (Right::Create, Call::ListKeys, OK),
        ] {
            match place.call(right, call.clone()).await {
                Ok(_) => assert_eq!(expected, OK, "{state:?} {call:?}"),
                Err(failure) => {
                    assert_eq!(failure.provider_error, expected, "{state:?} {call:?}");
                    assert_eq!(failure.class, FailureClass::KeyUnusable, "{failure}");
                    assert!(
                        failure.message.contains(&format!("local:{name}")),
                        "{failure}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn every_change_in_every_state_answers_as_aws_kms_does() {
    use KeyState::{Disabled, Enabled, PendingDeletion};
    let place = Place::with_default_key().await;
    // In the order of `ways`: what is answered; and what the state is after a success.
    let cells = [
        (KeyChange::Enable, [OK, OK, INVALID], Enabled),
        (KeyChange::Disable, [OK, OK, INVALID], Disabled),
        (KeyChange::Rotate, [OK, DISABLED, INVALID], Enabled),
        (
            KeyChange::SetRotation { days: Some(90) },
            [OK, DISABLED, INVALID],
            Enabled,
        ),
        (
            KeyChange::SetRotation { days: None },
            [OK, DISABLED, INVALID],
            Enabled,
        ),
        (
            KeyChange::ScheduleDeletion { days: 30 },
            [OK, OK, INVALID],
            PendingDeletion,
        ),
        (KeyChange::CancelDeletion, [INVALID, INVALID, OK], Disabled),
        // Whatever the state, it is not due.
        (KeyChange::Destroy, [INVALID; 3], Enabled),
    ];
    for (row, (tried, answers, after)) in cells.into_iter().enumerate() {
        for ((state, way), expected) in ways().into_iter().zip(answers) {
            let name = format!("{}-{row}", state.as_str());
            let mut calls = vec![Call::CreateKey {
                name: name.clone(),
                origin: Origin::Local,
            }];
            calls.extend(way.into_iter().map(|how| change(&name, how)));
            calls.push(change(&name, tried.clone()));
            calls.push(Call::Describe { key: name.clone() });
            let mut results = place.answer(Right::Administer, calls).await.results;
            let now = described(results.pop().expect("described").expect("described"));
            let cell = format!("{tried:?} in {state:?}");
            match results.pop().expect("an answer") {
                Ok(done) => {
                    assert_eq!(expected, OK, "{cell}");
                    assert_eq!(now.state, after, "{cell}");
                    assert_eq!(described(done), now, "{cell}");
                }
                Err(failure) => {
                    assert_eq!(failure.provider_error, expected, "{cell}");
                    assert_eq!(now.state, state, "{cell}: nothing changed");
                }
            }
            assert!(results.iter().all(Result::is_ok), "{cell}: {results:?}");
        }
    }
    // A key that never was.
    for how in [KeyChange::Enable, KeyChange::Rotate, KeyChange::Destroy] {
        let failure = place.change("nothing", how).await.unwrap_err();
        assert_eq!(failure.provider_error, "NotFoundException");
    }
}

#[tokio::test]
async fn every_change_of_an_external_key_in_every_state_answers_as_aws_kms_does() {
    use KeyState::{Disabled, Enabled, PendingDeletion, PendingImport};
    let place = Place::with_default_key().await;
    // In the order of `ways`; no state after it: it stays.
    let cells = [
        (KeyChange::Enable, [OK, OK, INVALID, INVALID], Some(Enabled)),
        (
            KeyChange::Disable,
            [OK, OK, INVALID, INVALID],
            Some(Disabled),
        ),
        (KeyChange::Rotate, [UNSUPPORTED; 4], None),
        (
            KeyChange::SetRotation { days: Some(90) },
            [UNSUPPORTED; 4],
            None,
        ),
        (
            KeyChange::SetRotation { days: None },
            [UNSUPPORTED; 4],
            None,
        ),
        (
            KeyChange::ScheduleDeletion { days: 30 },
            [OK, OK, INVALID, OK],
            Some(PendingDeletion),
        ),
        (
            KeyChange::CancelDeletion,
            [INVALID, INVALID, OK, INVALID],
            Some(Disabled),
        ),
        (KeyChange::Destroy, [INVALID; 4], None),
        (KeyChange::DeleteMaterial, [OK; 4], Some(PendingImport)),
    ];
    // A key in each state; each cell begins with them as they are now.
    for (state, way) in ways() {
        let name = state.as_str();
        place.create_external_key(name).await;
        place.import(name, 1).await.unwrap();
        for how in way {
            place.change(name, how).await.unwrap();
        }
    }
    let sound = fs::read(place.database()).unwrap();
    for (tried, answers, after) in cells {
        for ((state, _), expected) in ways().into_iter().zip(answers) {
            fs::write(place.database(), &sound).unwrap();
            let name = state.as_str();
            let describe = Call::Describe {
                key: name.to_owned(),
            };
            let calls = vec![change(name, tried.clone()), describe];
            let mut results = place.answer(Right::Administer, calls).await.results;
            let now = described(results.pop().expect("described").expect("described"));
            let cell = format!("{tried:?} in {state:?}");
            // Whoever destroys the material of a key that is pending deletion leaves it so.
            let stays = state == PendingDeletion && tried == KeyChange::DeleteMaterial;
            let after = after.filter(|_| expected == OK && !stays).unwrap_or(state);
            assert_eq!(now.state, after, "{cell}");
            match results.pop().expect("an answer") {
                Ok(done) => {
                    assert_eq!(expected, OK, "{cell}");
                    assert_eq!(described(done), now, "{cell}");
                }
                Err(failure) => assert_eq!(failure.provider_error, expected, "{cell}"),
            }
        }
    }
}

#[tokio::test]
async fn every_step_of_an_import_in_every_state_answers_as_aws_kms_does() {
    let place = Place::with_default_key().await;
    for ((state, way), expected) in ways().into_iter().zip([OK, OK, INVALID, OK]) {
        let name = state.as_str();
        place.create_external_key(name).await;
        place.import(name, 1).await.unwrap();
        for how in way {
            place.change(name, how).await.unwrap();
        }
        let (spec, algorithm) = (WrappingKeySpec::Rsa2048, WrappingAlgorithm::RsaesOaepSha256);
        let asked = import_parameters(name, spec, algorithm);
        let made = place.call(Right::Administer, asked).await;
        let imported = match &made {
            Ok(_) => place.import(name, 1).await,
            // With what another key got: the state is looked at first.
            Err(_) => {
                let other = place.import_parameters("enabled").await;
                let call = other.import(name, other.encrypt(&[1; 32]));
                place.call(Right::Administer, call).await
            }
        };
        for (step, answer) in [
            ("parameters", made.map(|_| ())),
            ("import", imported.map(|_| ())),
        ] {
            let said = answer.map_or_else(|failure| failure.provider_error, |()| OK.to_owned());
            assert_eq!(said, expected, "{step} in {state:?}");
        }
    }
}

#[tokio::test]
async fn what_an_older_version_wrapped_is_unwrapped_and_a_rewrap_takes_the_newest() {
    let place = Place::with_default_key().await;
    let ctx = context("1");
    let old = place.generate("default", &ctx).await;
    let key = described(place.change("default", KeyChange::Rotate).await.unwrap());
    assert_eq!(
        key.versions
            .iter()
            .map(|version| version.version)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    let new = place.generate("default", &ctx).await;
    assert_eq!((old.key_version, new.key_version), (1, 2));
    let call = rewrap(("default", &old.blob, &ctx), ("default", &ctx));
    let Ok(Done::Rewrap(again)) = place.call(Right::Administer, call).await else {
        panic!("not rewrapped")
    };
    assert_eq!((again.key_id, again.key_version), (old.key_id, 2));
    let [first, second] = [&old.blob, &again.blob].map(|blob| unwrap("default", blob, &ctx));
    let first = place.unwrap(first).await.unwrap();
    let second = place.unwrap(second).await.unwrap();
    assert_eq!(first.commitment(), second.commitment());
}

#[tokio::test]
async fn a_key_is_rotated_on_demand_twenty_five_times_and_no_more() {
    let place = Place::with_default_key().await;
    let calls = vec![change("default", KeyChange::Rotate); ROTATIONS_ON_DEMAND_MAX + 1];
    let mut results = place.answer(Right::Administer, calls).await.results;
    let last = results.pop().expect("an answer").unwrap_err();
    assert_eq!(last.provider_error, "LimitExceededException");
    assert!(results.iter().all(Result::is_ok));
    let Ok(Done::Change(key)) = results.pop().expect("an answer") else {
        panic!("not rotated")
    };
    assert_eq!(key.versions.len(), 26);
}

#[tokio::test]
async fn periods_and_windows_have_bounds() {
    let place = Place::with_default_key().await;
    for how in [
        KeyChange::ScheduleDeletion { days: 6 },
        KeyChange::ScheduleDeletion { days: 31 },
        KeyChange::SetRotation { days: Some(89) },
        KeyChange::SetRotation { days: Some(2561) },
    ] {
        let failure = place.change("default", how.clone()).await.unwrap_err();
        assert_eq!(failure.provider_error, "ValidationException", "{how:?}");
        assert_eq!(failure.class, FailureClass::CallerBug);
    }
    let rotation = KeyChange::SetRotation { days: Some(2560) };
    let key = described(place.change("default", rotation).await.unwrap());
    assert_eq!(key.lifecycle.rotation_days, Some(2560));
    let next = key.lifecycle.next_rotation.expect("a date");
    assert!(next >= key.created + 2560 * 86_400);

    // Told as off while it waits for its destruction, and as it was when that is taken back.
    let schedule = KeyChange::ScheduleDeletion { days: 7 };
    let key = described(place.change("default", schedule).await.unwrap());
    assert_eq!(key.lifecycle.rotation_days, None);
    assert!(key.lifecycle.deletion.expect("a date") >= key.created + 7 * 86_400);
    let key = described(
        place
            .change("default", KeyChange::CancelDeletion)
            .await
            .unwrap(),
    );
    assert_eq!(key.lifecycle.rotation_days, Some(2560));
    assert_eq!(key.lifecycle.deletion, None);
}
