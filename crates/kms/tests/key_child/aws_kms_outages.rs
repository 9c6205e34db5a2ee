//! A service or a network that fails, as `aws-kms` meets it: it says nothing about the key. The SDK is the real one throughout.

use std::io::Read as _;
use std::time::Duration;

use sealvol_control::keychild::{AwsKmsService, FailureClass, Right, UNTRUSTED_SERVER};
use serde_json::json;

use crate::aws::Aws;
use crate::aws_kms::{Configured, failure};
use crate::openbao::OpenBao;
use crate::place::{context, generate, unwrap};
use crate::proxy::{Fault, Proxy};
use crate::subject::{answer, call, class, opened, wrapped};

#[tokio::test]
async fn half_an_answer_is_an_outage_wherever_it_is_cut() {
    let aws = Aws::start();
    let ctx = context("1");
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    let gate = aws.moto.gate().port();
    let proxy = Proxy::before(gate, Fault::None);
    let whole = Configured(&aws, aws.service_at(proxy.port()));
    opened(&whole, "default", &blob, &ctx)
        .await
        .expect("nothing is wrong with the proxy");
    let whole = proxy.passed();
    assert!(whole > 200, "{whole} bytes");
    for bytes in [
        0,
        1,
        9,
        60,
        whole / 2,
        whole - 100,
        whole - 50,
        whole - 10,
        whole - 1,
    ] {
        let proxy = Proxy::before(gate, Fault::CutAfter(bytes));
        let cut = Configured(&aws, aws.service_at(proxy.port()));
        let mut answer = answer(&cut, Right::Attach, vec![unwrap("default", &blob, &ctx); 3]).await;
        for result in answer.results.drain(..) {
            let refused = failure(result);
            assert!(refused.may_pass(), "after {bytes} bytes: {refused}");
        }
        assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0);
        assert_eq!(
            proxy.connections(),
            1,
            "the rest of the batch fails with the first call"
        );
    }
}

#[tokio::test]
async fn a_service_that_is_slow_or_talks_nonsense_says_nothing_about_the_key() {
    let aws = Aws::start();
    let ctx = context("1");
    let gate = aws.moto.gate().port();
    let silent = Proxy::before(gate, Fault::Silence);
    let slow = AwsKmsService {
        timeout_s: 1,
        ..aws.service_at(silent.port())
    };
    let slow = Configured(&aws, slow);
    let began = std::time::Instant::now();
    let calls = vec![unwrap("default", b"blob", &ctx); 64];
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

    let tried = "HTTP/1.1 200 OK\r\ncontent-length: ";
    for (says, may_pass) in [
        (
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n".to_owned(),
            true,
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>".to_owned(),
            true,
        ),
        (
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: https://a/\r\ncontent-length: 0\r\n\r\n"
                .to_owned(),
            true,
        ),
        (format!("{tried}2\r\n\r\n{{}}"), true),
        (format!("{tried}6\r\n\r\n<html>"), true),
        (format!("{tried}999999999999\r\n\r\n"), true),
        (
            format!("{tried}33\r\n\r\n{{\"KeyId\":\"k\",\"Plaintext\":\"AAAA\"}}"),
            true,
        ),
        (format!("{tried}19\r\n\r\n{{\"Plaintext\":\"***\"}}"), true),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), true),
        // A portal or a firewall: no repetition helps.
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\n<html>".to_owned(),
            false,
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
            false,
        ),
    ] {
        let proxy = Proxy::before(gate, Fault::Says(says.clone().leak()));
        let service = Configured(&aws, aws.service_at(proxy.port()));
        let asked = unwrap("default", b"blob", &ctx);
        let refused = failure(call(&service, Right::Attach, asked).await);
        assert_eq!(refused.may_pass(), may_pass, "{says:?}: {refused}");
        assert!(!refused.is_revocation(), "{says:?}: {refused}");
    }
    // A sound answer with something else than a volume key in it is another matter: somebody wrapped that.
    let arn = wrapped(&aws, "default", &ctx).await.key_id;
    let body = json!({ "KeyId": arn, "Plaintext": "AAAA" }).to_string();
    let says = format!("{tried}{}\r\n\r\n{body}", body.len());
    let proxy = Proxy::before(gate, Fault::Says(says.leak()));
    let service = Configured(&aws, aws.service_at(proxy.port()));
    let refused = call(&service, Right::Attach, unwrap("default", b"blob", &ctx)).await;
    assert_eq!(class(refused), FailureClass::WrongKeyOrTamper);
    // And so is a key that was not asked for.
    let body =
        json!({ "KeyId": arn.replace("eu-west-1:1", "eu-west-1:9"), "Plaintext": "A".repeat(88) });
    let says = format!("{tried}{}\r\n\r\n{body}", body.to_string().len());
    let proxy = Proxy::before(gate, Fault::Says(says.leak()));
    let service = Configured(&aws, aws.service_at(proxy.port()));
    let refused = failure(call(&service, Right::Attach, unwrap(&arn, b"blob", &ctx)).await);
    assert_eq!(refused.provider_error, "IncorrectKeyException", "{refused}");
}

#[tokio::test]
async fn a_service_that_is_asked_too_often_says_so() {
    let mut aws = Aws::start();
    let ctx = context("1");
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    aws.moto.gate().limit(0);
    let refused = failure(call(&aws, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(
        refused.may_pass() && refused.retry_after_s == Some(1),
        "{refused:?}"
    );
    assert!(refused.next_step.contains("quota"), "{refused}");
    assert_eq!(
        aws.moto.gate().throttled(),
        1,
        "it is asked once: who tries again is the daemon"
    );
    aws.moto.kill();
    let refused = Configured(&aws, aws.service_at(aws.moto.port()));
    let refused = failure(call(&refused, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(
        refused.may_pass() && refused.retry_after_s.is_none(),
        "an outage is no overload: {refused:?}"
    );
}

#[tokio::test]
async fn a_service_that_dies_is_an_outage() {
    let mut aws = Aws::start();
    let ctx = context("1");
    let blob = wrapped(&aws, "default", &ctx).await.blob;
    aws.moto.kill();
    // The gate takes the call and can't hand it on; moto's own port refuses.
    for port in [aws.moto.gate().port(), aws.moto.port()] {
        let dead = Configured(&aws, aws.service_at(port));
        for (right, asked) in [
            (Right::Attach, unwrap("default", &blob, &ctx)),
            (Right::Create, generate("default", &ctx)),
        ] {
            let refused = failure(call(&dead, right, asked).await);
            assert!(refused.may_pass(), "{refused}");
        }
    }
    let nowhere = AwsKmsService {
        endpoint: Some("https://nothing.invalid".to_owned().try_into().unwrap()),
        ca_file: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        ..aws.service()
    };
    let nowhere = Configured(&aws, nowhere);
    let refused = failure(call(&nowhere, Right::Attach, unwrap("default", &blob, &ctx)).await);
    assert!(refused.may_pass(), "{refused}");
}

#[tokio::test]
async fn an_endpoint_without_the_right_certificate_is_told_nothing() {
    let aws = Aws::start();
    // Any server will do that has a certificate of an authority of its own, for localhost.
    let bao = OpenBao::start();
    let asked = || unwrap("default", b"blob", &context("1"));
    for (host, authority) in [
        ("localhost", bao.other_authority()),
        ("127.0.0.1", bao.authority()),
    ] {
        let endpoint = format!("https://{host}:{}", bao.tls_port());
        let service = AwsKmsService {
            endpoint: Some(endpoint.try_into().unwrap()),
            ca_file: Some(authority),
            ..aws.service()
        };
        let refused = failure(call(&Configured(&aws, service), Right::Attach, asked()).await);
        assert_eq!(
            (refused.class, refused.provider_error.as_str()),
            (FailureClass::Transient, UNTRUSTED_SERVER),
            "{refused}"
        );
        assert!(!refused.may_pass(), "no repetition helps");
    }
    // One that is trusted and is no KMS says nothing about the key.
    let service = AwsKmsService {
        endpoint: Some(bao.address().try_into().unwrap()),
        ca_file: Some(bao.authority()),
        ..aws.service()
    };
    let refused = failure(call(&Configured(&aws, service), Right::Attach, asked()).await);
    assert!(!refused.is_revocation(), "{refused}");
}
