//! What is only so of `transit`: its credentials and policies, its kinds of key, and a server or a network that fails.

use std::time::Duration;

use sealvol_control::keychild::{
    Call, CallResult, Credential, Done, FailureClass, KeyFailure, KeyState, Origin, Right,
    TransitService, UNTRUSTED_SERVER,
};
use serde_json::{Value, json};

use crate::bao::{Bao, manual_policy, provider};
use crate::openbao::OpenBao;
use crate::place::{context, generate, rewrap, set_mode, unwrap};
use crate::proxy::{Fault, Proxy};
use crate::subject::{Subject, answer, call, class, opened, wrapped};

/// A server, asked by another configuration.
struct Configured<'a>(&'a Bao, TransitService);

impl Subject for Configured<'_> {
    fn provider(&self) -> sealvol_control::keychild::Provider {
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

fn rotate(bao: &Bao, key: &str) {
    bao.server
        .admin("POST", &format!("transit/keys/{key}/rotate"), &json!({}));
}

#[tokio::test]
async fn a_rewrap_takes_the_newest_version_and_an_older_one_can_be_shut_out() {
    let bao = Bao::start();
    let ctx = context("1");
    let old = wrapped(&bao, "default", &ctx).await;
    let key = opened(&bao, "default", &old.blob, &ctx).await.unwrap();
    rotate(&bao, "default");
    assert_eq!(opened(&bao, "default", &old.blob, &ctx).await, Ok(key));

    let asked = rewrap(("default", &old.blob, &ctx), ("default", &ctx));
    let Ok(Done::Rewrap(new)) = call(&bao, Right::Administer, asked).await else {
        panic!("no rewrap");
    };
    assert_eq!((old.key_version, new.key_version), (1, 2));
    assert_eq!(opened(&bao, "default", &new.blob, &ctx).await, Ok(key));
    match call(
        &bao,
        Right::Create,
        Call::Describe {
            key: "default".to_owned(),
        },
    )
    .await
    {
        Ok(Done::Describe(key)) => {
            assert_eq!(
                key.versions.iter().map(|v| v.version).collect::<Vec<_>>(),
                [1, 2]
            );
            assert_eq!(
                (key.state, key.algorithm.as_str()),
                (KeyState::Enabled, "aes256-gcm96")
            );
        }
        other => panic!("describe: {other:?}"),
    }

    let least = json!({ "min_decryption_version": 2 });
    bao.server
        .admin("POST", "transit/keys/default/config", &least);
    let refused = opened(&bao, "default", &old.blob, &ctx).await;
    assert_eq!(class(refused), FailureClass::KeyUnusable);
    assert_eq!(opened(&bao, "default", &new.blob, &ctx).await, Ok(key));
    // A version that never was: somebody changed the text.
    let future = String::from_utf8(new.blob)
        .unwrap()
        .replace("vault:v2:", "vault:v3:");
    let refused = opened(&bao, "default", future.as_bytes(), &ctx).await;
    assert_eq!(class(refused), FailureClass::WrongKeyOrTamper);
}

#[tokio::test]
async fn the_policies_of_the_manual_keep_making_and_opening_apart() {
    let bao = Bao::start();
    let [create, attach] =
        [&bao.create, &bao.attach].map(|file| std::fs::read_to_string(file).unwrap());
    let ctx = "AAAA";
    let made = bao.server.ask(
        create.trim(),
        "POST",
        "transit/datakey/wrapped/default",
        &json!({ "context": ctx, "bits": 512 }),
    );
    assert_eq!(made.0, 200, "{made:?}");
    let blob = &made.1["data"]["ciphertext"];
    for (path, body) in [
        (
            "transit/decrypt/default",
            json!({ "ciphertext": blob, "context": ctx }),
        ),
        (
            "transit/encrypt/default",
            json!({ "plaintext": "AAAA", "context": ctx }),
        ),
        (
            "transit/datakey/plaintext/default",
            json!({ "context": ctx }),
        ),
    ] {
        let (status, answer) = bao.server.ask(create.trim(), "POST", path, &body);
        assert_eq!(status, 403, "{path}: {answer}");
    }
    for path in ["datakey/wrapped", "datakey/plaintext", "rewrap"] {
        let path = format!("transit/{path}/default");
        let body = json!({ "ciphertext": blob, "context": ctx });
        let (status, answer) = bao.server.ask(attach.trim(), "POST", &path, &body);
        assert_eq!(status, 403, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_create_credential_that_could_unwrap_makes_nothing() {
    let bao = Bao::start();
    let ctx = context("1");
    let more = |path: &str| {
        format!(
            "{}\npath \"{path}\" {{ capabilities = [\"update\", \"read\"] }}",
            manual_policy("create")
        )
    };
    for (name, policy) in [
        ("decrypts", more("transit/decrypt/default")),
        ("decrypts-any", more("transit/decrypt/*")),
        ("encrypts", more("transit/encrypt/default")),
        ("plaintext", more("transit/datakey/plaintext/+")),
        ("exports", more("transit/export/encryption-key/default")),
        (
            "all",
            "path \"transit/*\" { capabilities = [\"create\", \"update\", \"read\"] }".to_owned(),
        ),
    ] {
        let service = TransitService {
            create: Some(Credential::TokenFile(bao.server.token_file(name, &policy))),
            ..bao.service()
        };
        let refused = failure(
            call(
                &Configured(&bao, service),
                Right::Create,
                generate("default", &ctx),
            )
            .await,
        );
        assert_eq!(
            refused.class,
            FailureClass::NotPermitted,
            "{name}: {refused}"
        );
        assert_eq!(
            refused.provider_error, "CredentialTooPowerful",
            "{name}: {refused}"
        );
    }

    // Unless one credential is allowed for everything.
    let both = bao.server.token_file(
        "both",
        &format!("{}{}", manual_policy("create"), manual_policy("attach")),
    );
    let single = TransitService {
        create: None,
        attach: Credential::TokenFile(both),
        single_credential: true,
        ..bao.service()
    };
    let single = Configured(&bao, single);
    let blob = wrapped(&single, "default", &ctx).await.blob;
    opened(&single, "default", &blob, &ctx).await.unwrap();
}

#[tokio::test]
async fn keys_that_would_ignore_the_volume_or_are_not_allowed_are_refused() {
    let bao = Bao::start();
    let ctx = context("1");
    bao.server.admin(
        "POST",
        "transit/keys/plain",
        &json!({ "type": "aes256-gcm96" }),
    );
    bao.server
        .admin("POST", "transit/keys/rsa", &json!({ "type": "rsa-2048" }));
    let blob = wrapped(&bao, "default", &ctx).await.blob;
    for key in ["plain", "rsa"] {
        for asked in [
            generate(key, &ctx),
            rewrap(("default", &blob, &ctx), (key, &ctx)),
        ] {
            let refused = failure(call(&bao, Right::Create, asked).await);
            assert_eq!(
                (refused.class, refused.provider_error.as_str()),
                (FailureClass::CallerBug, "InvalidKeyUsageException"),
                "{key}: {refused}"
            );
        }
    }
    for name in ["../sys/seal", "a/b", "default?x", "", "..", "a%2e"] {
        let refused = failure(call(&bao, Right::Attach, unwrap(name, &blob, &ctx)).await);
        assert_eq!(refused.class, FailureClass::CallerBug, "{name}: {refused}");
    }
    let only_other = TransitService {
        keys: vec!["other".to_owned()],
        ..bao.service()
    };
    let only_other = Configured(&bao, only_other);
    for (right, asked) in [
        (Right::Create, generate("default", &ctx)),
        (Right::Attach, unwrap("default", &blob, &ctx)),
        (
            Right::Create,
            Call::Describe {
                key: "default".to_owned(),
            },
        ),
    ] {
        let refused = failure(call(&only_other, right, asked).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::NotPermitted, "KeyNotAllowed")
        );
    }
    match call(&only_other, Right::Create, Call::ListKeys).await {
        Ok(Done::ListKeys(keys)) => assert_eq!(keys.len(), 1),
        other => panic!("list: {other:?}"),
    }
}

#[tokio::test]
async fn keys_of_others_are_not_listed() {
    let bao = Bao::start();
    bao.server.make_key("theirs");
    match call(&bao, Right::Create, Call::ListKeys).await {
        Ok(Done::ListKeys(keys)) => assert_eq!(keys.len(), 2, "{keys:?}"),
        other => panic!("list: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_is_made_derived_once() {
    let bao = Bao::start();
    let asked = Call::CreateKey {
        name: "new".to_owned(),
        origin: Origin::Local,
    };
    let refused = call(&bao, Right::Administer, asked.clone()).await;
    assert_eq!(
        class(refused),
        FailureClass::NotPermitted,
        "the manual's policy makes no keys"
    );
    let policy = manual_policy("create")
        + "path \"transit/keys/new\" { capabilities = [\"create\", \"read\", \"update\"] }";
    let makes = TransitService {
        create: Some(Credential::TokenFile(
            bao.server.token_file("makes", &policy),
        )),
        ..bao.service()
    };
    let makes = Configured(&bao, makes);
    call(&makes, Right::Administer, asked.clone())
        .await
        .expect("made");
    wrapped(&bao, "new", &context("1")).await;
    let again = failure(call(&makes, Right::Administer, asked).await);
    assert_eq!(again.provider_error, "AlreadyExistsException");
}

#[tokio::test]
async fn credentials_are_believed_only_where_nobody_else_could_read_or_change_them() {
    let bao = Bao::start();
    let ctx = context("1");
    let blob = wrapped(&bao, "default", &ctx).await.blob;
    let attach = || call(&bao, Right::Attach, unwrap("default", &blob, &ctx));
    let token = std::fs::read(&bao.attach).unwrap();

    set_mode(&bao.attach, 0o640);
    assert_eq!(failure(attach().await).provider_error, "UnsafePlace");
    set_mode(&bao.attach, 0o600);
    for text in [&b""[..], b" \n", b"two words\n", b"\xff\xfe", &[b'a'; 9000]] {
        std::fs::write(&bao.attach, text).unwrap();
        let refused = failure(attach().await);
        assert_eq!(refused.provider_error, "CredentialMissing");
        assert!(refused.may_pass(), "somebody may be writing it: {refused}");
    }
    std::fs::write(&bao.attach, "s.nobody\n").unwrap();
    assert_eq!(class(attach().await), FailureClass::NotPermitted);
    std::fs::remove_file(&bao.attach).unwrap();
    assert_eq!(failure(attach().await).provider_error, "CredentialMissing");

    std::fs::write(&bao.attach, &token).unwrap();
    set_mode(&bao.attach, 0o600);
    attach().await.expect("it is there again");
    let revoked = json!({ "token": String::from_utf8(token).unwrap().trim() });
    bao.server.admin("POST", "auth/token/revoke", &revoked);
    let refused = failure(attach().await);
    assert_eq!(refused.class, FailureClass::NotPermitted);
    assert!(
        refused.provider_error.contains("permission denied"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_approle_logs_in_for_each_batch() {
    let bao = Bao::start();
    let ctx = context("1");
    bao.server
        .admin("POST", "sys/auth/approle", &json!({ "type": "approle" }));
    let role = json!({ "token_policies": "attach", "token_type": "batch", "token_ttl": "1m" });
    bao.server.admin("POST", "auth/approle/role/host", &role);
    let text = |answer: &Value, field: &str| answer["data"][field].as_str().unwrap().to_owned();
    let role_id = text(
        &bao.server
            .admin("GET", "auth/approle/role/host/role-id", &json!(null)),
        "role_id",
    );
    let secret_id = bao
        .server
        .admin("POST", "auth/approle/role/host/secret-id", &json!({}));
    let service = |role_id: &str, secret_id: &str| TransitService {
        attach: Credential::Approle {
            mount: "approle".to_owned(),
            role_id_file: bao.server.secret_file("role-id", role_id),
            secret_id_file: bao.server.secret_file("secret-id", secret_id),
        },
        ..bao.service()
    };
    let blob = wrapped(&bao, "default", &ctx).await.blob;
    let secret_id = text(&secret_id, "secret_id");
    let logs_in = Configured(&bao, service(&role_id, &secret_id));
    let key = opened(&bao, "default", &blob, &ctx).await.unwrap();
    assert_eq!(opened(&logs_in, "default", &blob, &ctx).await, Ok(key));

    for (role_id, secret_id) in [
        (role_id.as_str(), "wrong"),
        ("wrong", secret_id.as_str()),
        ("a\"b", "c\\d"),
    ] {
        let refused = failure(
            call(
                &Configured(&bao, service(role_id, secret_id)),
                Right::Attach,
                unwrap("default", &blob, &ctx),
            )
            .await,
        );
        assert_eq!(refused.class, FailureClass::NotPermitted, "{refused}");
        assert!(refused.message.contains("login"), "{refused}");
        assert!(
            !format!("{refused:?}").contains(secret_id),
            "no secret in a message"
        );
    }
}

#[tokio::test]
async fn a_namespace_is_asked_in_its_place() {
    let bao = Bao::start();
    bao.server.admin("POST", "sys/namespaces/team", &json!({}));
    bao.server.admin(
        "POST",
        "team/sys/mounts/keys/volumes",
        &json!({ "type": "transit" }),
    );
    bao.server.admin(
        "POST",
        "team/keys/volumes/keys/default",
        &json!({ "derived": true }),
    );
    let all = "path \"team/keys/volumes/*\" { capabilities = [\"update\", \"read\"] }";
    let elsewhere = TransitService {
        mount: "keys/volumes".to_owned(),
        namespace: Some("team".to_owned()),
        create: None,
        attach: Credential::TokenFile(bao.server.token_file("team", all)),
        single_credential: true,
        ..bao.service()
    };
    let ctx = context("1");
    let team = Configured(&bao, elsewhere.clone());
    let blob = wrapped(&team, "default", &ctx).await.blob;
    opened(&team, "default", &blob, &ctx).await.unwrap();
    // The key of that name in the root namespace is another one, and there is no such mount.
    assert_eq!(
        class(opened(&bao, "default", &blob, &ctx).await),
        FailureClass::WrongKeyOrTamper
    );
    let nowhere = TransitService {
        namespace: None,
        ..elsewhere
    };
    let refused = call(
        &Configured(&bao, nowhere),
        Right::Attach,
        unwrap("default", &blob, &ctx),
    )
    .await;
    let class = class(refused);
    assert!(
        !matches!(
            class,
            FailureClass::GoneForEver | FailureClass::WrongKeyOrTamper
        ),
        "{class:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_sealed_or_dead_is_an_outage_and_comes_back() {
    let mut bao = Bao::on(OpenBao::start_on_raft());
    let ctx = context("1");
    let blob = wrapped(&bao, "default", &ctx).await.blob;
    let key = opened(&bao, "default", &blob, &ctx).await.unwrap();

    bao.server.seal();
    let sealed = failure(call(&bao, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(
        sealed.may_pass() && sealed.to_string().contains("sealed"),
        "{sealed}"
    );
    let sealed = failure(call(&bao, Right::Create, generate("default", &ctx)).await);
    assert!(sealed.may_pass(), "{sealed}");
    bao.server.unseal();
    assert_eq!(opened(&bao, "default", &blob, &ctx).await, Ok(key));

    bao.server.kill();
    let dead = failure(call(&bao, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(
        dead.may_pass() && dead.message.contains("connect"),
        "{dead}"
    );
    bao.server.restart();
    let sealed = failure(call(&bao, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(sealed.may_pass(), "{sealed}");
    bao.server.unseal();
    assert_eq!(opened(&bao, "default", &blob, &ctx).await, Ok(key));
}

#[tokio::test]
async fn a_server_without_the_right_certificate_is_told_nothing_and_says_nothing_about_the_key() {
    let bao = Bao::start();
    let asked = || unwrap("default", b"vault:v1:AAAA", &context("1"));
    let wrong_authority = TransitService {
        ca_file: Some(bao.server.other_authority()),
        ..bao.service()
    };
    let wrong_name = TransitService {
        address: format!("https://127.0.0.1:{}", bao.server.tls_port())
            .try_into()
            .unwrap(),
        ..bao.service()
    };
    for service in [wrong_authority, wrong_name] {
        let refused = failure(call(&Configured(&bao, service), Right::Attach, asked()).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::Transient, UNTRUSTED_SERVER),
            "{refused}"
        );
        assert!(!refused.may_pass(), "no repetition helps");
    }
    for (ca_file, class) in [
        (bao.server.secret_file("empty", ""), FailureClass::CallerBug),
        ("/nonexistent/ca.pem".into(), FailureClass::CallerBug),
    ] {
        let service = TransitService {
            ca_file: Some(ca_file),
            ..bao.service()
        };
        let refused = failure(call(&Configured(&bao, service), Right::Attach, asked()).await);
        assert_eq!(refused.class, class, "{refused}");
    }
    // Plain HTTP where TLS is expected: not a certificate, so it may be a server that is just being set up.
    let plain = TransitService {
        address: format!("https://localhost:{}", bao.server.plain_port())
            .try_into()
            .unwrap(),
        ..bao.service()
    };
    let refused = failure(call(&Configured(&bao, plain), Right::Attach, asked()).await);
    assert!(refused.may_pass(), "{refused}");
}

#[tokio::test]
async fn half_an_answer_is_an_outage_wherever_it_is_cut() {
    let bao = Bao::start();
    let ctx = context("1");
    let blob = wrapped(&bao, "default", &ctx).await.blob;
    let proxy = Proxy::before(bao.server.plain_port(), Fault::None);
    let whole = Configured(&bao, bao.service_at(proxy.port()));
    opened(&whole, "default", &blob, &ctx)
        .await
        .expect("nothing is wrong with the proxy");
    // Within the status line, the headers and the body; answers differ by a few bytes in their dates and ids.
    let whole = proxy.passed();
    assert!(whole > 300, "{whole} bytes");
    for bytes in [
        0,
        1,
        9,
        60,
        whole / 2,
        whole - 200,
        whole - 100,
        whole - 50,
        whole - 10,
    ] {
        let proxy = Proxy::before(bao.server.plain_port(), Fault::CutAfter(bytes));
        let cut = Configured(&bao, bao.service_at(proxy.port()));
        let mut answer = answer(&cut, Right::Attach, vec![unwrap("default", &blob, &ctx); 3]).await;
        for result in answer.results.drain(..) {
            let refused = failure(result);
            assert!(refused.may_pass(), "after {bytes} bytes: {refused}");
        }
        assert_eq!(std::io::Read::read(&mut answer.keys, &mut [0]).unwrap(), 0);
        assert_eq!(
            proxy.connections(),
            1,
            "the rest of the batch fails with the first call"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_slow_or_overloaded_is_an_outage() {
    let bao = Bao::start();
    let ctx = context("1");
    let silent = Proxy::before(bao.server.plain_port(), Fault::Silence);
    let service = TransitService {
        timeout_s: 1,
        ..bao.service_at(silent.port())
    };
    let slow = Configured(&bao, service);
    let began = std::time::Instant::now();
    let calls = vec![unwrap("default", b"vault:v1:AAAA", &ctx); 64];
    for result in answer(&slow, Right::Attach, calls).await.results {
        let refused = failure(result);
        assert!(
            refused.may_pass() && refused.message.contains("within 1 s"),
            "{refused}"
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "one wait for the whole batch"
    );

    for says in [
        "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 29\r\n\r\n{\"errors\":[\"internal error\"]}",
        "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: https://other/\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 34\r\n\r\n{\"data\":{\"plaintext\":\"\\u0041AAA\"}}",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let proxy = Proxy::before(bao.server.plain_port(), Fault::Says(says));
        let service = Configured(&bao, bao.service_at(proxy.port()));
        let refused = failure(
            call(
                &service,
                Right::Attach,
                unwrap("default", b"vault:v1:AAAA", &ctx),
            )
            .await,
        );
        assert!(refused.may_pass(), "{says:?}: {refused}");
    }
    // What is well formed and no volume key is another matter: somebody wrapped something else.
    let says = "HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"data\":{\"plaintext\":\"AAAA\"}}";
    let proxy = Proxy::before(bao.server.plain_port(), Fault::Says(says));
    let service = Configured(&bao, bao.service_at(proxy.port()));
    let refused = call(
        &service,
        Right::Attach,
        unwrap("default", b"vault:v1:AAAA", &ctx),
    )
    .await;
    assert_eq!(class(refused), FailureClass::WrongKeyOrTamper);
}

#[tokio::test]
async fn a_host_that_cannot_be_found_is_an_outage() {
    let bao = Bao::start();
    let service = TransitService {
        address: "https://nothing.invalid:8200"
            .to_owned()
            .try_into()
            .unwrap(),
        ..bao.service()
    };
    let refused = failure(
        call(
            &Configured(&bao, service),
            Right::Attach,
            unwrap("default", b"vault:v1:AAAA", &context("1")),
        )
        .await,
    );
    assert!(refused.may_pass(), "{refused}");
}
