//! What is only so of `azure-kv`: its identities and permissions, its versions, dates and deleted keys, and servers that fail.

use sealvol_control::keychild::{
    AzureService, Call, CallResult, Done, FailureClass, Identity, KeyFailure, KeyState, Origin,
    Provider, Right, UNTRUSTED_SERVER,
};
use serde_json::{Value, json};

use crate::place::{context, generate, rewrap, set_mode, unwrap};
use crate::proxy::{Fault, Proxy};
use crate::subject::{Subject, answer, call, class, opened, wrapped};
use crate::vault::{Vault, provider};

/// A vault, asked by another configuration.
struct Configured<'a>(&'a Vault, AzureService);

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

fn failure(result: CallResult) -> KeyFailure {
    result.expect_err("it is refused")
}

fn set(vault: &Vault, key: &str, attributes: Value) {
    let body = json!({ "key": key, "attributes": attributes });
    vault.server.operate("attributes", &body);
}

fn describe(key: &str) -> Call {
    Call::Describe {
        key: key.to_owned(),
    }
}

#[tokio::test]
async fn a_wrapped_key_stays_with_the_version_that_wrapped_it_until_it_is_wrapped_anew() {
    let vault = Vault::start();
    let ctx = context("1");
    let old = wrapped(&vault, "default", &ctx).await;
    assert!(
        old.key_id
            .starts_with(&format!("{}/keys/default/", vault.server.address())),
        "{old:?}"
    );
    let key = opened(&vault, &old.key_id, &old.blob, &ctx).await.unwrap();
    let newest = vault.server.make_key("default");
    assert_ne!(newest, old.key_id);
    assert_eq!(opened(&vault, &old.key_id, &old.blob, &ctx).await, Ok(key));

    let asked = rewrap((&old.key_id, &old.blob, &ctx), ("default", &ctx));
    let Ok(Done::Rewrap(new)) = call(&vault, Right::Administer, asked).await else {
        panic!("no rewrap");
    };
    assert_eq!((&new.key_id, new.commitment), (&newest, Some(key.0)));
    assert_eq!(opened(&vault, &newest, &new.blob, &ctx).await, Ok(key));
    let refused = opened(&vault, &old.key_id, &new.blob, &ctx).await;
    assert_eq!(class(refused), FailureClass::WrongKeyOrTamper);
    match call(&vault, Right::Create, describe("default")).await {
        Ok(Done::Describe(told)) => {
            assert_eq!((told.key_id, told.name), (newest, "default".to_owned()));
            assert_eq!(told.algorithm, "RSA 2048 RSA-OAEP-256");
        }
        other => panic!("describe: {other:?}"),
    }
}

#[tokio::test]
async fn outside_its_dates_a_key_wraps_nothing_and_still_unwraps() {
    let vault = Vault::start();
    let ctx = context("1");
    let blob = wrapped(&vault, "default", &ctx).await.blob;
    for (attributes, says) in [
        (json!({ "exp": 1_700_000_000 }), "KeyExpired"),
        (
            json!({ "exp": 9_000_000_000_u64, "nbf": 8_000_000_000_u64 }),
            "KeyNotYetValid",
        ),
    ] {
        set(&vault, "default", attributes);
        let refused = failure(call(&vault, Right::Create, generate("default", &ctx)).await);
        assert_eq!(refused.class, FailureClass::KeyUnusable, "{refused}");
        assert_eq!(refused.provider_error, says, "{refused}");
        opened(&vault, "default", &blob, &ctx).await.unwrap();
    }
    set(&vault, "default", json!({ "nbf": 1_700_000_000 }));
    wrapped(&vault, "default", &ctx).await;
    let only = json!({ "key": "default", "operations": ["wrapKey"] });
    vault.server.operate("operations", &only);
    let refused = failure(call(&vault, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert_eq!(refused.class, FailureClass::KeyUnusable, "{refused}");
    let refused = failure(call(&vault, Right::Create, generate("default", &ctx)).await);
    assert_eq!(refused.provider_error, "InvalidKeyUsageException");
}

#[tokio::test]
async fn a_deleted_key_is_unusable_until_it_is_recovered_and_gone_when_it_is_purged() {
    let vault = Vault::start();
    let ctx = context("1");
    let made = wrapped(&vault, "default", &ctx).await;
    let attach = || {
        call(
            &vault,
            Right::Attach,
            unwrap(&made.key_id, &made.blob, &ctx),
        )
    };
    vault.server.operate("delete", &json!({ "key": "default" }));
    let refused = failure(attach().await);
    assert_eq!(refused.class, FailureClass::KeyUnusable, "{refused}");
    assert_eq!(refused.provider_error, "ObjectIsDeletedButRecoverable");
    assert!(refused.next_step.contains("recover"), "{refused}");
    let refused = call(&vault, Right::Create, generate("default", &ctx)).await;
    assert_eq!(class(refused), FailureClass::KeyUnusable);
    match call(&vault, Right::Create, describe("default")).await {
        Ok(Done::Describe(told)) => {
            assert_eq!(told.state, KeyState::PendingDeletion);
            assert!(told.lifecycle.deletion.is_some());
        }
        other => panic!("describe: {other:?}"),
    }
    vault
        .server
        .operate("recover", &json!({ "key": "default" }));
    attach().await.expect("it is there again");

    // Without `get` nobody can say whether it comes back, so nobody says that it does not.
    vault.server.operate("delete", &json!({ "key": "default" }));
    vault.server.permit("attach", &["unwrapKey"]);
    assert_eq!(class(attach().await), FailureClass::KeyUnusable);
    vault.server.permit("attach", &["get", "unwrapKey"]);
    vault.server.operate("purge", &json!({ "key": "default" }));
    assert_eq!(class(attach().await), FailureClass::GoneForEver);
}

#[tokio::test]
async fn the_permissions_of_the_manual_keep_making_and_opening_apart() {
    let vault = Vault::start();
    let ctx = context("1");
    let made = wrapped(&vault, "default", &ctx).await;
    let calls = vault.server.operate("calls", &json!({}));
    let asked = json!([
        ["create", "get"],
        ["create", "wrapKey"],
        ["create", "unwrapKey"],
        ["create", "wrapKey"]
    ]);
    assert_eq!(calls["calls"], asked, "it tries, and is refused");
    opened(&vault, &made.key_id, &made.blob, &ctx)
        .await
        .unwrap();
    let calls = vault.server.operate("calls", &json!({}));
    assert_eq!(calls["calls"], json!([["attach", "unwrapKey"]]));
    // The identity that opens can make nothing: with `create` gone, nothing is made.
    vault.server.permit("create", &[]);
    let refused = failure(call(&vault, Right::Create, generate("default", &ctx)).await);
    assert_eq!(refused.class, FailureClass::NotPermitted, "{refused}");
    assert_eq!(refused.provider_error, "AccessDenied");
}

#[tokio::test]
async fn a_create_identity_that_could_unwrap_makes_nothing() {
    let vault = Vault::start();
    let ctx = context("1");
    vault
        .server
        .permit("create", &["get", "wrapKey", "unwrapKey"]);
    let refused = failure(call(&vault, Right::Create, generate("default", &ctx)).await);
    assert_eq!(
        (refused.class, refused.provider_error.as_str()),
        (FailureClass::NotPermitted, "CredentialTooPowerful")
    );
    // Unless one identity is allowed for everything.
    let single = AzureService {
        create: None,
        attach: vault.create.clone(),
        single_credential: true,
        ..vault.service()
    };
    let single = Configured(&vault, single);
    let blob = wrapped(&single, "default", &ctx).await.blob;
    opened(&single, "default", &blob, &ctx).await.unwrap();
}

#[tokio::test]
async fn a_managed_identity_asks_the_host_of_its_machine() {
    let vault = Vault::start();
    let ctx = context("1");
    let blob = wrapped(&vault, "default", &ctx).await.blob;
    let key = opened(&vault, "default", &blob, &ctx).await.unwrap();
    for client_id in [None, Some("user-assigned".to_owned())] {
        let name = client_id.clone().unwrap_or_default();
        let attach = Identity::ManagedIdentity { client_id };
        let service = AzureService {
            attach,
            ..vault.service()
        };
        let machine = Configured(&vault, service);
        let refused = call(&machine, Right::Attach, unwrap("default", &blob, &ctx)).await;
        let refused = failure(refused);
        assert_eq!(refused.class, FailureClass::NotPermitted, "{refused}");
        assert!(refused.message.contains("Identity not found"), "{refused}");
        vault
            .server
            .operate("machine", &json!({ "client-id": name }));
        vault.server.permit(&name, &["get", "unwrapKey"]);
        assert_eq!(opened(&machine, "default", &blob, &ctx).await, Ok(key));
    }
}

#[tokio::test]
async fn what_an_identity_is_refused_for_is_told_and_no_secret_with_it() {
    let vault = Vault::start();
    let ctx = context("1");
    let blob = wrapped(&vault, "default", &ctx).await.blob;
    let Identity::ClientSecret { secret_file, .. } = &vault.attach else {
        panic!("another kind of identity");
    };
    let attach = || call(&vault, Right::Attach, unwrap("default", &blob, &ctx));
    let secret = std::fs::read_to_string(secret_file).unwrap();
    set_mode(secret_file, 0o640);
    assert_eq!(failure(attach().await).provider_error, "UnsafePlace");
    set_mode(secret_file, 0o600);
    std::fs::write(secret_file, "wrong-secret").unwrap();
    let refused = failure(attach().await);
    assert_eq!(
        (refused.class, refused.provider_error.as_str()),
        (FailureClass::NotPermitted, "invalid_client")
    );
    assert!(!format!("{refused:?}").contains("wrong-secret"));
    std::fs::write(secret_file, secret).unwrap();
    attach().await.expect("the right one is there again");

    // A token for something else, or one that has expired.
    let elsewhere = AzureService {
        audience: "https://storage.azure.com".to_owned(),
        ..vault.service()
    };
    let elsewhere = Configured(&vault, elsewhere);
    let refused = call(&elsewhere, Right::Attach, unwrap("default", &blob, &ctx)).await;
    let refused = failure(refused);
    assert_eq!(refused.class, FailureClass::NotPermitted, "{refused}");
    for part in ["Invalid audience", "resource=", "vault.azure.net"] {
        assert!(refused.message.contains(part), "{part}: {refused}");
    }
    vault.server.operate("lifetime", &json!({ "seconds": -1 }));
    let refused = failure(attach().await);
    assert_eq!(refused.class, FailureClass::NotPermitted, "{refused}");
    assert!(refused.message.contains("expired"), "{refused}");
}

#[tokio::test]
async fn keys_that_are_unsuitable_elsewhere_or_not_allowed_are_refused() {
    let vault = Vault::start();
    let ctx = context("1");
    let made = wrapped(&vault, "default", &ctx).await;
    for (name, kind) in [
        ("elliptic", json!({ "key": "elliptic", "kty": "EC" })),
        ("signs", json!({ "key": "signs", "operations": ["sign"] })),
    ] {
        vault.server.operate("create", &kind);
        let refused = failure(call(&vault, Right::Create, generate(name, &ctx)).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::CallerBug, "InvalidKeyUsageException"),
            "{name}: {refused}"
        );
    }
    vault.server.operate("calls", &json!({}));
    let elsewhere = made.key_id.replace("localhost", "vault.evil");
    for name in ["../secrets/a", "a/b/c", "default?x", "", "a%2e", &elsewhere] {
        let asked = unwrap(name, &made.blob, &ctx);
        let refused = failure(call(&vault, Right::Attach, asked).await);
        assert_eq!(refused.class, FailureClass::CallerBug, "{name}: {refused}");
    }
    let only_other = AzureService {
        keys: vec!["other".to_owned()],
        ..vault.service()
    };
    let only_other = Configured(&vault, only_other);
    for (right, asked) in [
        (Right::Create, generate("default", &ctx)),
        (Right::Attach, unwrap(&made.key_id, &made.blob, &ctx)),
    ] {
        let refused = failure(call(&only_other, right, asked).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::NotPermitted, "KeyNotAllowed")
        );
    }
    let calls = vault.server.operate("calls", &json!({}));
    assert_eq!(calls["calls"], json!([]), "nobody is asked about them");
    match call(&only_other, Right::Create, Call::ListKeys).await {
        Ok(Done::ListKeys(keys)) => assert_eq!(keys.len(), 1),
        other => panic!("list: {other:?}"),
    }
}

#[tokio::test]
async fn a_list_goes_on_over_its_pages() {
    let vault = Vault::start();
    for name in ["third", "fourth", "fifth"] {
        vault.server.make_key(name);
    }
    match call(&vault, Right::Create, Call::ListKeys).await {
        Ok(Done::ListKeys(keys)) => {
            let names: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
            assert_eq!(names, ["default", "fifth", "fourth", "other", "third"]);
        }
        other => panic!("list: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_is_made_once_and_not_in_the_place_of_a_deleted_one() {
    let vault = Vault::start();
    let create = |name: &str| Call::CreateKey {
        name: name.to_owned(),
        origin: Origin::Local,
    };
    let refused = call(&vault, Right::Administer, create("new")).await;
    assert_eq!(
        class(refused),
        FailureClass::NotPermitted,
        "the manual's permissions make no keys"
    );
    vault.server.permit("create", &["get", "wrapKey", "create"]);
    call(&vault, Right::Administer, create("new"))
        .await
        .expect("made");
    let blob = wrapped(&vault, "new", &context("1")).await.blob;
    assert_eq!(blob.len(), 384);
    let again = failure(call(&vault, Right::Administer, create("new")).await);
    assert_eq!(again.provider_error, "AlreadyExistsException");
    vault.server.operate("delete", &json!({ "key": "new" }));
    let again = failure(call(&vault, Right::Administer, create("new")).await);
    assert_eq!(again.class, FailureClass::KeyUnusable, "{again}");
}

#[tokio::test]
async fn a_throttled_vault_says_when_it_wants_to_be_asked_again() {
    let vault = Vault::start();
    let ctx = context("1");
    let blob = wrapped(&vault, "default", &ctx).await.blob;
    vault.server.operate("throttle", &json!({ "requests": 1 }));
    let refused = failure(call(&vault, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(refused.may_pass(), "{refused}");
    assert_eq!(
        (refused.provider_error.as_str(), refused.retry_after_s),
        ("Throttled", Some(1))
    );
    opened(&vault, "default", &blob, &ctx).await.unwrap();
}

#[tokio::test]
async fn servers_that_are_away_silent_or_not_who_they_should_be_are_an_outage() {
    let vault = Vault::start();
    let ctx = context("1");
    let made = wrapped(&vault, "default", &ctx).await;
    let asked = || unwrap(&made.key_id, &made.blob, &ctx);
    let stranger = AzureService {
        ca_file: vault.server.other_authority(),
        ..vault.service()
    };
    let stranger = Configured(&vault, stranger);
    let refused = failure(call(&stranger, Right::Attach, asked()).await);
    assert_eq!(
        (refused.class, refused.provider_error.as_str()),
        (FailureClass::Transient, UNTRUSTED_SERVER)
    );
    let by = async |service: AzureService| {
        failure(call(&Configured(&vault, service), Right::Attach, asked()).await)
    };
    let machine = Identity::ManagedIdentity { client_id: None };
    for fault in [
        Fault::Silence,
        Fault::CutAfter(40),
        Fault::Says("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"),
        Fault::Says("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"),
        Fault::Says("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let port = vault.server.metadata().rsplit_once(':').unwrap().1.parse();
        let proxy = Proxy::before(port.unwrap(), fault);
        let metadata = format!("http://127.0.0.1:{}", proxy.port());
        let refused = by(AzureService {
            attach: machine.clone(),
            metadata: metadata.try_into().unwrap(),
            timeout_s: 1,
            ..vault.service()
        })
        .await;
        assert!(refused.may_pass(), "{fault:?}: {refused}");
    }
    for fault in [
        Fault::Silence,
        Fault::CutAfter(100),
        Fault::Says("SSH-2.0-OpenSSH_9.2\r\n"),
    ] {
        let proxy = Proxy::before(vault.server.tls_port(), fault);
        let address = format!("https://localhost:{}", proxy.port());
        let refused = by(AzureService {
            authority: address.try_into().unwrap(),
            timeout_s: 1,
            ..vault.service()
        })
        .await;
        assert!(refused.may_pass(), "{fault:?}: {refused}");
    }
    vault.server.kill();
    let answer = answer(&vault, Right::Attach, vec![asked(); 3]).await;
    for result in answer.results {
        let refused = failure(result);
        assert!(refused.may_pass(), "{refused}");
    }
}
