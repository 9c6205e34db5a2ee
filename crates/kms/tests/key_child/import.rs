//! Import of key material: what is taken, what is refused, and that what comes in is what was given.

use std::fs;

use sealvol_control::keychild::{
    Call, Done, FailureClass, KeyChange, KeyDescription, KeyState, Right, WrappingAlgorithm,
    WrappingKeySpec,
};
use sealvol_crypto::{EncryptionContext, KeyEncryptionKey, wrap};

use crate::place::{Place, context, generate, import_parameters, memory, unwrap};

const DAY: u64 = 86_400;

fn described(done: Done) -> KeyDescription {
    match done {
        Done::ImportMaterial(key) | Done::Change(key) | Done::Describe(key) => key,
        other => panic!("no key: {other:?}"),
    }
}

fn expiring(call: Call, at: u64) -> Call {
    match call {
        Call::ImportMaterial {
            key,
            material,
            token,
            ..
        } => Call::ImportMaterial {
            key,
            material,
            token,
            expires: Some(at),
        },
        other => other,
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.expect("after 1970").as_secs()
}

impl Place {
    async fn administer(&self, call: Call) -> Result<Done, String> {
        let done = self.call(Right::Administer, call).await;
        done.map_err(|failure| {
            assert_eq!(failure.class, FailureClass::CallerBug, "{failure}");
            failure.provider_error
        })
    }
}

#[tokio::test]
async fn what_is_imported_is_what_was_given_under_each_pair_and_algorithm() {
    let place = Place::with_default_key().await;
    let specs = [
        WrappingKeySpec::Rsa2048,
        WrappingKeySpec::Rsa3072,
        WrappingKeySpec::Rsa4096,
    ];
    for (number, spec) in (1..).zip(specs) {
        for algorithm in WrappingAlgorithm::ALL {
            let name = format!("{number}-{}", algorithm.as_str());
            place.create_external_key(&name).await;
            let made = place.import_parameters_of(&name, spec, algorithm).await;
            let material: Vec<u8> = (0..32).map(|byte| byte * 7 + number).collect();
            let call = made.import(&name, made.encrypt(&material));
            let key = described(place.administer(call).await.expect("imported"));
            assert_eq!(key.state, KeyState::Enabled);
            assert_eq!(key.lifecycle.material_expires, None);
            // A volume key that it wraps opens with the material and nothing of the database.
            let ctx = context("1");
            let wrapped = place.generate(&name, &ctx).await;
            let pairs = ctx
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()));
            let memory = memory();
            let given = KeyEncryptionKey::read_from(&memory, &mut &material[..]).expect("a key");
            let pairs = EncryptionContext::new(pairs).expect("a context");
            let opened = wrap::unwrap(&memory, &given, &wrapped.blob, &pairs).expect("opened");
            let by_child = place.unwrap(unwrap(&name, &wrapped.blob, &ctx)).await;
            assert_eq!(opened.commitment(), by_child.expect("opened").commitment());
        }
    }
}

#[tokio::test]
async fn only_the_same_material_is_imported_again() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    place.import("own", 1).await.expect("imported");
    let ctx = context("1");
    let blob = place.generate("own", &ctx).await.blob;
    let other = place.import("own", 2).await.unwrap_err();
    assert_eq!(other.provider_error, "IncorrectKeyMaterialException");
    // While it is there, it stays as it is; when it was destroyed, it comes back.
    place
        .unwrap(unwrap("own", &blob, &ctx))
        .await
        .expect("as before");
    let key = described(
        place
            .change("own", KeyChange::DeleteMaterial)
            .await
            .unwrap(),
    );
    assert_eq!(key.state, KeyState::PendingImport);
    let refused = place
        .refusal(Right::Attach, unwrap("own", &blob, &ctx))
        .await;
    let pending = (FailureClass::KeyUnusable, "KMSInvalidStateException".into());
    assert_eq!(refused, pending);
    let other = place.import("own", 2).await.unwrap_err();
    assert_eq!(other.provider_error, "IncorrectKeyMaterialException");
    let key = described(place.import("own", 1).await.unwrap());
    assert_eq!(key.state, KeyState::Enabled);
    place
        .unwrap(unwrap("own", &blob, &ctx))
        .await
        .expect("as before");
    // A disabled key stays so when material is imported that it has; and is enabled when it had none.
    place.change("own", KeyChange::Disable).await.unwrap();
    let key = described(place.import("own", 1).await.unwrap());
    assert_eq!(key.state, KeyState::Disabled);
    place
        .change("own", KeyChange::DeleteMaterial)
        .await
        .unwrap();
    let key = described(place.import("own", 1).await.unwrap());
    assert_eq!(key.state, KeyState::Enabled);
}

#[tokio::test]
async fn the_same_material_in_two_keys_opens_nothing_of_the_other() {
    let place = Place::with_default_key().await;
    for key in ["one", "two"] {
        place.create_external_key(key).await;
        place.import(key, 9).await.expect("imported");
    }
    let ctx = context("1");
    let one = place.generate("one", &ctx).await;
    let refused = place
        .refusal(Right::Attach, unwrap("two", &one.blob, &ctx))
        .await;
    assert_eq!(refused.1, "IncorrectKeyException");
    // Nor if the header says the other one: it is authenticated.
    let two = place.generate("two", &ctx).await;
    let mut forged = one.blob.clone();
    forged[5..21].copy_from_slice(&two.blob[5..21]);
    let refused = place
        .refusal(Right::Attach, unwrap("two", &forged, &ctx))
        .await;
    let tampered = (
        FailureClass::WrongKeyOrTamper,
        "InvalidCiphertextException".into(),
    );
    assert_eq!(refused, tampered);
}

#[tokio::test]
async fn a_token_is_good_for_its_key_and_its_newest_public_key_only() {
    let place = Place::with_default_key().await;
    for key in ["own", "other"] {
        place.create_external_key(key).await;
    }
    let old = place.import_parameters("own").await;
    let new = place.import_parameters("own").await;
    let others = place.import_parameters("other").await;
    let import = |from: &crate::place::Import| from.import("own", new.encrypt(&[1; 32]));
    let invalid = Err("InvalidImportTokenException".to_owned());
    for refused in [&old, &others] {
        assert_eq!(place.administer(import(refused)).await, invalid);
    }
    for position in 0..new.parameters.token.len() {
        let mut token = new.parameters.token.clone();
        token[position] ^= 1;
        let call = Call::ImportMaterial {
            key: "own".to_owned(),
            material: Vec::new(),
            token,
            expires: None,
        };
        assert_eq!(place.administer(call).await, invalid, "byte {position}");
    }
    for cut in [0, 4, 76] {
        let call = Call::ImportMaterial {
            key: "own".to_owned(),
            material: Vec::new(),
            token: new.parameters.token[..cut].to_vec(),
            expires: None,
        };
        assert_eq!(place.administer(call).await, invalid, "{cut} bytes");
    }
    // A token of another key service, with keys of the same names.
    let elsewhere = Place::with_default_key().await;
    elsewhere.create_external_key("own").await;
    let foreign = elsewhere.import_parameters("own").await;
    assert_eq!(place.administer(import(&foreign)).await, invalid);
    place.administer(import(&new)).await.expect("the good one");
}

#[tokio::test]
async fn material_that_is_no_key_of_32_bytes_under_the_public_key_is_refused() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    let cipher = Err("InvalidCiphertextException".to_owned());
    let material = Err("IncorrectKeyMaterialException".to_owned());
    for algorithm in WrappingAlgorithm::ALL {
        let spec = WrappingKeySpec::Rsa2048;
        let made = place.import_parameters_of("own", spec, algorithm).await;
        let import = |bytes: Vec<u8>| place.administer(made.import("own", bytes));
        for length in [1, 16, 31, 33, 64] {
            let refused = import(made.encrypt(&vec![1; length])).await;
            assert_eq!(refused, material, "{length} bytes by {algorithm:?}");
        }
        let sound = made.encrypt(&[1; 32]);
        for position in [0, 100, 255, sound.len() - 1] {
            let mut changed = sound.clone();
            changed[position] ^= 1;
            assert_eq!(
                import(changed).await,
                cipher,
                "byte {position} by {algorithm:?}"
            );
        }
        for cut in [0, 1, 32, 255, sound.len() - 1] {
            assert_eq!(import(sound[..cut].to_vec()).await, cipher, "{cut} bytes");
        }
        // Bare, or longer than any.
        assert_eq!(import(vec![1; 32]).await, cipher);
        let longer = [sound.clone(), vec![0; 8]].concat();
        assert_eq!(import(longer).await, cipher);
        assert_eq!(import(vec![1; 7000]).await, material);
        // By the other algorithm than was asked for.
        let other = WrappingAlgorithm::ALL
            .into_iter()
            .find(|other| *other != algorithm);
        let mixed = crate::place::Import {
            algorithm: other.expect("another one"),
            parameters: made.parameters.clone(),
        };
        assert_eq!(
            import(mixed.encrypt(&[1; 32])).await,
            cipher,
            "{algorithm:?}"
        );
    }
    let call = Call::Describe {
        key: "own".to_owned(),
    };
    let key = described(place.call(Right::Attach, call).await.unwrap());
    assert_eq!(
        key.state,
        KeyState::PendingImport,
        "nothing of it was taken"
    );
}

#[tokio::test]
async fn an_expiry_lies_within_a_year() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    let made = place.import_parameters("own").await;
    let import = |at| expiring(made.import("own", made.encrypt(&[1; 32])), at);
    let invalid = Err("ValidationException".to_owned());
    let far = now() + 366 * DAY;
    for at in [0, now() - 1, far, u64::MAX] {
        assert_eq!(place.administer(import(at)).await, invalid, "{at}");
    }
    let at = now() + 300 * DAY;
    let key = described(place.administer(import(at)).await.unwrap());
    assert_eq!(key.lifecycle.material_expires, Some(at));
    // Imported again, it is as the last import says.
    let again = made.import("own", made.encrypt(&[1; 32]));
    let key = described(place.administer(again).await.unwrap());
    assert_eq!(key.lifecycle.material_expires, None);
}

#[tokio::test]
async fn a_key_whose_material_is_made_here_takes_none_and_gives_none_up() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    let made = place.import_parameters("own").await;
    let unsupported = Err("UnsupportedOperationException".to_owned());
    let spec = WrappingKeySpec::Rsa2048;
    for call in [
        import_parameters("default", spec, WrappingAlgorithm::RsaesOaepSha256),
        made.import("default", made.encrypt(&[1; 32])),
        crate::place::change("default", KeyChange::DeleteMaterial),
        crate::place::change("own", KeyChange::Rotate),
        crate::place::change("own", KeyChange::SetRotation { days: Some(90) }),
    ] {
        assert_eq!(
            place.administer(call.clone()).await,
            unsupported,
            "{call:?}"
        );
    }
    for right in [Right::Create, Right::Attach] {
        let call = made.import("own", Vec::new());
        assert_eq!(place.refusal(right, call).await.1, "AccessDeniedException");
    }
}

#[tokio::test]
async fn what_is_said_of_an_import_cannot_be_changed_without_the_master_key() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    place.import("own", 1).await.expect("imported");
    place
        .change("own", KeyChange::DeleteMaterial)
        .await
        .unwrap();
    place.import_parameters("own").await;
    let sound = fs::read(place.database()).unwrap();
    for change in [
        "UPDATE external_keys SET material = 'imported'",
        "UPDATE external_keys SET fingerprint = NULL",
        "UPDATE external_keys SET expires_wall = 0, expires_counted = 0",
        "DELETE FROM external_keys",
        "UPDATE import_keys SET algorithm = 'RSA_AES_KEY_WRAP_SHA_256'",
        "UPDATE import_keys SET expires_wall = expires_wall + 1",
        "UPDATE import_keys SET key_id = (SELECT id FROM keys WHERE name = 'default')",
    ] {
        place.sql(change);
        let refused = place.refusal(Right::Attach, Call::ListKeys).await;
        assert_eq!(refused.1, "TableChanged", "{change}");
        fs::write(place.database(), &sound).unwrap();
    }
    // The private key of the import is authenticated by what seals it.
    let made = place.import_parameters("own").await;
    place.sql("UPDATE import_keys SET sealed = zeroblob(length(sealed))");
    let call = made.import("own", made.encrypt(&[1; 32]));
    let refused = place.refusal(Right::Administer, call).await;
    assert_eq!(refused.1, "KeyMaterialChanged");
}

#[tokio::test]
async fn a_key_pending_import_that_is_given_up_and_taken_back_is_pending_import() {
    let place = Place::with_default_key().await;
    place.create_external_key("own").await;
    place.import("own", 1).await.expect("imported");
    let schedule = KeyChange::ScheduleDeletion { days: 7 };
    place.change("own", schedule).await.unwrap();
    let made = place.refusal(
        Right::Administer,
        import_parameters("own", WrappingKeySpec::Rsa2048, WrappingAlgorithm::ALL[0]),
    );
    assert_eq!(made.await.1, "KMSInvalidStateException");
    let key = described(
        place
            .change("own", KeyChange::DeleteMaterial)
            .await
            .unwrap(),
    );
    assert_eq!(key.state, KeyState::PendingDeletion);
    let key = described(
        place
            .change("own", KeyChange::CancelDeletion)
            .await
            .unwrap(),
    );
    assert_eq!(key.state, KeyState::PendingImport);
    place.import("own", 1).await.expect("imported");
    place
        .call(Right::Create, generate("own", &context("1")))
        .await
        .expect("enabled");
}
