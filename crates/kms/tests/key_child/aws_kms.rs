//! What is only so of `aws-kms`: the names of its errors, its credentials and policies, key states, aliases and regions. The SDK is the real one throughout.

use std::io::Read as _;

use sealvol_control::keychild::{
    AwsKmsService, Call, CallResult, CredentialsFile, Done, FailureClass, KeyChange, KeyFailure,
    KeyState, Origin, Provider, Right,
};
use serde_json::json;

use crate::aws::{Aws, and, credential, manual_policy, provider};
use crate::kms_gate;
use crate::place::{change, context, generate, rewrap, set_mode, unwrap};
use crate::subject::{Subject, answer, call, class, opened, wrapped};

/// A service, asked by another configuration.
pub(crate) struct Configured<'a>(pub(crate) &'a Aws, pub(crate) AwsKmsService);

impl Subject for Configured<'_> {
    fn provider(&self) -> Provider {
        provider(self.1.clone())
    }

    fn disable(&self, key: &str) {
        self.0.disable(key);
    }

    fn enable(&self, key: &str) {
        self.0.enable(key);
    }

    fn destroy(&self, key: &str) {
        self.0.destroy(key);
    }
}

pub(crate) fn failure(result: CallResult) -> KeyFailure {
    result.expect_err("it is refused")
}

#[tokio::test]
async fn each_name_of_an_error_means_its_class_by_the_real_sdk() {
    use FailureClass::*;
    let aws = Aws::start();
    let ctx = context("1");
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    for (status, name, message, class) in [
        (400, "DisabledException", "arn:… is disabled.", KeyUnusable),
        (
            400,
            "DisabledException",
            "arn:… is pending deletion.",
            KeyUnusable,
        ),
        (
            400,
            "KMSInvalidStateException",
            "arn:… is pending deletion.",
            KeyUnusable,
        ),
        (
            400,
            "KMSInvalidStateException",
            "arn:… is pending import.",
            KeyUnusable,
        ),
        (
            400,
            "KMSInvalidStateException",
            "arn:… is unavailable.",
            KeyUnusable,
        ),
        (
            400,
            "KMSInvalidStateException",
            "arn:… is creating.",
            Transient,
        ),
        (
            400,
            "KMSInvalidStateException",
            "The external key store proxy did not respond in time.",
            Transient,
        ),
        (
            400,
            "AccessDeniedException",
            "User: … is not authorized to perform: kms:Decrypt",
            NotPermitted,
        ),
        (
            400,
            "com.amazonaws.kms#InvalidGrantTokenException",
            "",
            NotPermitted,
        ),
        (400, "NotAuthorized", "", NotPermitted),
        (
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
            NotPermitted,
        ),
        (
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            NotPermitted,
        ),
        (403, "InvalidClientTokenId", "", NotPermitted),
        (
            400,
            "InvalidSignatureException",
            "Signature expired: now is earlier than then",
            Transient,
        ),
        (
            400,
            "InvalidSignatureException",
            "The request signature we calculated does not match",
            NotPermitted,
        ),
        (400, "InvalidCiphertextException", "", WrongKeyOrTamper),
        (
            400,
            "IncorrectKeyException",
            "The key ID in the request does not identify …",
            WrongKeyOrTamper,
        ),
        (
            400,
            "NotFoundException",
            "Key 'arn:…' does not exist",
            GoneForEver,
        ),
        (400, "NotFoundException", "Invalid arn us-east-1", CallerBug),
        (400, "ThrottlingException", "Rate exceeded", Transient),
        (503, "DependencyTimeoutException", "", Transient),
        (500, "KeyUnavailableException", "", Transient),
        (500, "KMSInternalException", "", Transient),
        (500, "AccessDeniedException", "", Transient),
        (503, "NotFoundException", "", Transient),
        (429, "TooManyRequestsException", "", Transient),
        (
            400,
            "ValidationException",
            "1 validation error detected",
            CallerBug,
        ),
        (400, "InvalidKeyUsageException", "", CallerBug),
        (400, "InvalidArnException", "", CallerBug),
        (400, "LimitExceededException", "", CallerBug),
        (
            400,
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
            CallerBug,
        ),
        (400, "SomethingOfNextYear", "", CallerBug),
    ] {
        for asked in [unwrap("default", &blob, &ctx), generate("default", &ctx)] {
            let right = match asked {
                Call::Generate { .. } => Right::Create,
                _ => Right::Attach,
            };
            aws.moto.gate().say(status, name, message);
            let refused = failure(call(&aws, right, asked).await);
            assert_eq!(refused.class, class, "{status} {name} {message}: {refused}");
            let short = name.rsplit('#').next().unwrap();
            assert_eq!(
                refused.provider_error, short,
                "the service's own name is kept"
            );
            assert!(
                refused.message.contains("of-the-gate"),
                "and the request's id: {refused}"
            );
            assert_eq!(refused.may_pass(), class == Transient, "{refused}");
        }
    }
    assert!(opened(&aws, "default", &blob, &ctx).await.is_ok());
}

#[tokio::test]
async fn each_state_of_a_key_refuses_every_use_and_is_told() {
    let aws = Aws::start();
    let ctx = context("1");
    let arn = wrapped(&aws, "default", &ctx).await.key_id;
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    for (state, class_of_all) in [
        (kms_gate::KeyState::Disabled, FailureClass::KeyUnusable),
        (
            kms_gate::KeyState::PendingDeletion,
            FailureClass::KeyUnusable,
        ),
        (kms_gate::KeyState::PendingImport, FailureClass::KeyUnusable),
        (kms_gate::KeyState::Unavailable, FailureClass::KeyUnusable),
        (kms_gate::KeyState::Creating, FailureClass::Transient),
        (kms_gate::KeyState::Gone, FailureClass::GoneForEver),
    ] {
        aws.moto.gate().set_state(&arn, state);
        for (right, asked) in [
            (Right::Create, generate("default", &ctx)),
            (Right::Attach, unwrap(&arn, &blob, &ctx)),
            (Right::Create, rewrap((&arn, &blob, &ctx), ("other", &ctx))),
        ] {
            let refused = call(&aws, right, asked.clone()).await;
            assert_eq!(class(refused), class_of_all, "{state:?}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn the_policies_of_the_manual_keep_making_and_opening_apart() {
    let aws = Aws::start();
    let ctx = context("1");
    let made = wrapped(&aws, "default", &ctx).await;
    let calls = aws.moto.gate().calls();
    let made_by = &calls[calls.len() - 2..];
    assert_eq!(
        made_by,
        ["GenerateDataKeyWithoutPlaintext", "Decrypt"],
        "the second is a try"
    );
    opened(&aws, "default", &made.blob, &ctx)
        .await
        .expect("the other credential opens it");

    let swapped = AwsKmsService {
        create: Some(credential(&aws.attach)),
        attach: credential(&aws.create),
        ..aws.service()
    };
    let swapped = Configured(&aws, swapped);
    for (right, asked) in [
        (Right::Create, generate("default", &ctx)),
        (Right::Attach, unwrap("default", &made.blob, &ctx)),
        (
            Right::Create,
            rewrap(("default", &made.blob, &ctx), ("other", &ctx)),
        ),
        (Right::Administer, change("default", KeyChange::Disable)),
    ] {
        let refused = failure(call(&swapped, right, asked.clone()).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::NotPermitted, "AccessDeniedException"),
            "{asked:?}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_create_credential_that_could_unwrap_makes_nothing() {
    let aws = Aws::start();
    let ctx = context("1");
    let powerful = and(manual_policy("create"), &["kms:Decrypt"]);
    let powerful = aws.moto.credentials("powerful", &powerful);
    let create = Some(credential(&powerful));
    let service = AwsKmsService {
        create: create.clone(),
        ..aws.service()
    };
    // Where DryRun is honoured, and where it is ignored and the plaintext comes: moto by itself.
    for at in [aws.moto.gate().port(), aws.moto.port()] {
        let service = AwsKmsService {
            endpoint: aws.service_at(at).endpoint,
            ..service.clone()
        };
        let asked = vec![generate("default", &ctx)];
        let mut answer = answer(&Configured(&aws, service), Right::Create, asked).await;
        let refused = failure(answer.results.remove(0));
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::NotPermitted, "CredentialTooPowerful"),
            "{refused}"
        );
        assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0, "and no key comes");
    }

    // Unless one credential is allowed for everything; then nothing is tried.
    let both = and(manual_policy("create"), &["kms:Decrypt", "kms:ReEncrypt*"]);
    let single = AwsKmsService {
        create: None,
        attach: credential(&aws.moto.credentials("both", &both)),
        single_credential: true,
        ..aws.service()
    };
    let single = Configured(&aws, single);
    aws.moto.gate().calls();
    let blob = wrapped(&single, "default", &ctx).await.blob;
    assert_eq!(aws.moto.gate().calls(), ["GenerateDataKeyWithoutPlaintext"]);
    opened(&single, "default", &blob, &ctx).await.unwrap();

    // What keeps it from being tried is no leave.
    for name in ["ThrottlingException", "ValidationException"] {
        aws.moto.gate().say_after(1, 400, name, "");
        let refused = failure(call(&aws, Right::Create, generate("default", &ctx)).await);
        assert_eq!(refused.provider_error, name, "{refused}");
    }
}

#[tokio::test]
async fn a_rewrap_is_the_services_own_and_shows_nobody_the_key() {
    let aws = Aws::start();
    let [source, clone] = [context("source"), context("clone")];
    let old = wrapped(&aws, "default", &source).await;
    aws.moto.gate().calls();
    let asked = rewrap((&old.key_id, &old.blob, &source), ("other", &clone));
    let Ok(Done::Rewrap(new)) = call(&aws, Right::Create, asked).await else {
        panic!("no rewrap");
    };
    assert_eq!(aws.moto.gate().calls(), ["ReEncrypt"]);
    assert_ne!(new.key_id, old.key_id);
}

#[tokio::test]
async fn an_alias_is_resolved_once_and_may_mean_another_key_later() {
    let aws = Aws::start();
    let ctx = context("1");
    let old = wrapped(&aws, "default", &ctx).await;
    assert!(
        old.key_id.starts_with("arn:aws:kms:eu-west-1:"),
        "{}",
        old.key_id
    );
    let other = wrapped(&aws, "other", &ctx).await;
    let id = other.key_id.rsplit('/').next().unwrap().to_owned();
    let moved = json!({ "AliasName": "alias/default", "TargetKeyId": id });
    aws.moto.admin("UpdateAlias", &moved);

    opened(&aws, &old.key_id, &old.blob, &ctx)
        .await
        .expect("the volume keeps its key");
    let new = wrapped(&aws, "default", &ctx).await;
    assert_eq!(new.key_id, other.key_id, "a new one gets the other");
    for name in ["default", "alias/default", &id, &new.key_id] {
        opened(&aws, name, &new.blob, &ctx).await.expect(name);
    }
    let refused = opened(&aws, "default", &old.blob, &ctx).await;
    assert_eq!(class(refused), FailureClass::WrongKeyOrTamper);
}

#[tokio::test]
async fn a_key_of_another_region_or_no_name_is_refused_before_anybody_is_asked() {
    let aws = Aws::start();
    let ctx = context("1");
    let wrapped = wrapped(&aws, "default", &ctx).await;
    aws.moto.gate().calls();
    let elsewhere = wrapped.key_id.replace("eu-west-1", "us-east-1");
    for name in [
        &elsewhere,
        "",
        "a b",
        "arn:aws:s3:::bucket",
        "arn:aws:kms:eu-west-1:1:grant/1",
    ] {
        for (right, asked) in [
            (Right::Attach, unwrap(name, &wrapped.blob, &ctx)),
            (Right::Create, generate(name, &ctx)),
            (Right::Administer, change(name, KeyChange::Disable)),
        ] {
            let refused = failure(call(&aws, right, asked).await);
            assert_eq!(refused.class, FailureClass::CallerBug, "{name}: {refused}");
        }
    }
    assert_eq!(aws.moto.gate().calls(), [""; 0]);
}

#[tokio::test]
async fn keys_are_made_and_led_through_their_life() {
    let aws = Aws::start();
    let asked = Call::CreateKey {
        name: "new".to_owned(),
        origin: Origin::Local,
    };
    let refused = call(&aws, Right::Administer, asked.clone()).await;
    assert_eq!(
        class(refused),
        FailureClass::NotPermitted,
        "the manual's policy makes no keys"
    );
    let changes = [
        "kms:CreateKey",
        "kms:CreateAlias",
        "kms:DisableKey",
        "kms:EnableKey",
        "kms:RotateKeyOnDemand",
        "kms:EnableKeyRotation",
        "kms:DisableKeyRotation",
        "kms:ScheduleKeyDeletion",
        "kms:CancelKeyDeletion",
    ];
    let makes = and(manual_policy("create"), &changes);
    let makes = AwsKmsService {
        create: Some(credential(&aws.moto.credentials("makes", &makes))),
        ..aws.service()
    };
    let makes = Configured(&aws, makes);
    let Ok(Done::CreateKey(made)) = call(&makes, Right::Administer, asked.clone()).await else {
        panic!("not made");
    };
    assert_eq!((made.name.as_str(), made.state), ("new", KeyState::Enabled));
    let again = failure(call(&makes, Right::Administer, asked).await);
    assert_eq!(again.provider_error, "AlreadyExistsException");
    wrapped(&makes, "new", &context("1")).await;

    let rotation = KeyChange::SetRotation { days: Some(180) };
    let deletion = KeyChange::ScheduleDeletion { days: 8 };
    for (how, state) in [
        (KeyChange::Disable, KeyState::Disabled),
        (KeyChange::Enable, KeyState::Enabled),
        (KeyChange::Rotate, KeyState::Enabled),
        (rotation.clone(), KeyState::Enabled),
        (KeyChange::SetRotation { days: None }, KeyState::Enabled),
        (deletion.clone(), KeyState::PendingDeletion),
        (KeyChange::CancelDeletion, KeyState::Disabled),
    ] {
        match call(&makes, Right::Administer, change("new", how.clone())).await {
            Ok(Done::Change(key)) => {
                assert_eq!(key.state, state, "{how:?}");
                let days = key.lifecycle.rotation_days;
                // moto takes the period and tells none; then it is the usual one.
                assert_eq!(days, (how == rotation).then_some(365), "{how:?}");
                assert_eq!(key.lifecycle.deletion.is_some(), how == deletion, "{how:?}");
            }
            other => panic!("{how:?}: {other:?}"),
        }
    }
    // The service does that itself.
    let destroy = call(&makes, Right::Administer, change("new", KeyChange::Destroy)).await;
    assert_eq!(
        failure(destroy).provider_error,
        "UnsupportedOperationException"
    );
}

#[tokio::test]
async fn only_keys_that_can_wrap_are_listed_by_alias_or_id() {
    let aws = Aws::start();
    let usage = json!({ "KeyUsage": "ENCRYPT_DECRYPT" });
    let bare = aws.moto.admin("CreateKey", &usage);
    let rsa = json!({ "KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT" });
    aws.moto.admin("CreateKey", &rsa);
    let bare = bare["KeyMetadata"]["KeyId"].as_str().unwrap();
    match call(&aws, Right::Create, Call::ListKeys).await {
        Ok(Done::ListKeys(keys)) => {
            let mut expected = [bare, "default", "other"];
            expected.sort_unstable();
            let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
            assert_eq!(names, expected);
        }
        other => panic!("list: {other:?}"),
    }
}

#[tokio::test]
async fn credentials_are_believed_only_where_nobody_else_could_read_or_change_them() {
    let aws = Aws::start();
    let ctx = context("1");
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    let attach = || call(&aws, Right::Attach, unwrap("default", &blob, &ctx));
    let sound = std::fs::read_to_string(&aws.attach).unwrap();

    set_mode(&aws.attach, 0o640);
    assert_eq!(failure(attach().await).provider_error, "UnsafePlace");
    set_mode(&aws.attach, 0o600);
    for text in [
        "",
        "[default]\n",
        "[other]\naws_access_key_id = a\n",
        &"a".repeat(9000),
    ] {
        std::fs::write(&aws.attach, text).unwrap();
        let refused = failure(attach().await);
        assert_eq!(refused.provider_error, "CredentialMissing");
        assert!(refused.may_pass(), "somebody may be writing it: {refused}");
    }
    for (from, to, name) in [
        (
            "secret_access_key = ",
            "secret_access_key = hidden",
            "InvalidSignatureException",
        ),
        (
            "access_key_id = ",
            "access_key_id = AKIAHIDDEN",
            "UnrecognizedClientException",
        ),
    ] {
        std::fs::write(&aws.attach, sound.replace(from, to)).unwrap();
        let refused = failure(attach().await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::NotPermitted, name),
            "{refused}"
        );
        assert!(
            !refused.to_string().to_lowercase().contains("hidden"),
            "{refused}"
        );
    }
    std::fs::write(&aws.attach, &sound).unwrap();
    attach().await.expect("it is there again");

    // Another profile of the same file.
    let two = format!("[empty]\n{}", sound.replace("[default]", "[attach]"));
    std::fs::write(&aws.attach, two).unwrap();
    let named = AwsKmsService {
        attach: CredentialsFile {
            file: aws.attach.clone(),
            profile: "attach".to_owned(),
        },
        ..aws.service()
    };
    let named = Configured(&aws, named);
    opened(&named, "default", &blob, &ctx)
        .await
        .expect("the profile is found");

    // What AWS repeats of a request that is signed wrongly has the session token in it.
    std::fs::write(
        &aws.attach,
        format!("{sound}aws_session_token = session-hidden\n"),
    )
    .unwrap();
    let repeated = "The request signature we calculated does not match.\n\nThe Canonical String for this request should have \
                    been\n'POST\n/\n\nx-amz-security-token:session-hidden\n'";
    aws.moto
        .gate()
        .say(400, "InvalidSignatureException", repeated);
    let refused = failure(attach().await);
    assert!(
        !format!("{refused:?}").contains("session-hidden"),
        "{refused:?}"
    );
    assert!(refused.message.contains("does not match"), "{refused}");
}
