//! `aws-kms` by moto, which plays AWS KMS and IAM, with the least policies that the manual gives. What moto does otherwise than
//! AWS stands in the gate's table (`kms_gate.rs`).

use std::path::PathBuf;

use sealvol_control::keychild::{AwsKmsService, CredentialsFile, Provider, Service};
use serde_json::{Value, json};

use crate::kms_gate::KeyState;
use crate::moto::{Moto, REGION};
use crate::subject::Subject;

/// A service with the keys `default` and `other`, and the two credentials.
pub(crate) struct Aws {
    pub(crate) moto: Moto,
    pub(crate) create: PathBuf,
    pub(crate) attach: PathBuf,
}

impl Aws {
    pub(crate) fn start() -> Self {
        let moto = Moto::start();
        for name in ["default", "other"] {
            let _ = moto.make_key(name);
        }
        let [create, attach] =
            ["create", "attach"].map(|role| moto.credentials(role, &manual_policy(role)));
        Self {
            moto,
            create,
            attach,
        }
    }

    /// As the manual configures it, but for where it is.
    pub(crate) fn service(&self) -> AwsKmsService {
        self.service_at(self.moto.gate().port())
    }

    /// Reached through `port` of this machine.
    pub(crate) fn service_at(&self, port: u16) -> AwsKmsService {
        let endpoint = format!("http://127.0.0.1:{port}");
        AwsKmsService {
            region: REGION.to_owned(),
            endpoint: Some(endpoint.try_into().expect("an address")),
            fips: false,
            ca_file: None,
            create: Some(credential(&self.create)),
            attach: credential(&self.attach),
            single_credential: false,
            timeout_s: 10,
        }
    }
}

impl Subject for Aws {
    fn provider(&self) -> Provider {
        provider(self.service())
    }

    fn disable(&self, key: &str) {
        self.lead("DisableKey", key);
    }

    fn enable(&self, key: &str) {
        self.lead("EnableKey", key);
    }

    fn destroy(&self, key: &str) {
        self.lead("ScheduleKeyDeletion", key);
        self.moto.gate().set_state(key, KeyState::Gone);
    }
}

impl Aws {
    fn lead(&self, call: &str, key: &str) {
        let described = json!({ "KeyId": format!("alias/{key}") });
        let described = self.moto.admin("DescribeKey", &described);
        let key = json!({ "KeyId": described["KeyMetadata"]["KeyId"] });
        self.moto.admin(call, &key);
    }
}

pub(crate) fn credential(file: &std::path::Path) -> CredentialsFile {
    CredentialsFile {
        file: file.to_owned(),
        profile: "default".to_owned(),
    }
}

pub(crate) fn provider(service: AwsKmsService) -> Provider {
    Provider {
        name: "aws".to_owned(),
        service: Service::AwsKms(service),
    }
}

/// What stands in the manual: the policy of a role. Its resources become all of them, for moto looks at actions only.
pub(crate) fn manual_policy(role: &str) -> Value {
    let manual = include_str!("../../../../docs/key-services.md");
    let begin = format!("`{role}` in AWS:\n\n```json\n");
    let policy = manual.split(&begin).nth(1).expect("a policy of that name");
    let policy = policy.split("```").next().expect("its end");
    let mut policy: Value = serde_json::from_str(policy).expect("JSON");
    for statement in policy["Statement"].as_array_mut().expect("statements") {
        assert_eq!(statement["Effect"], "Allow");
        statement["Resource"] = json!("*");
    }
    policy
}

/// A policy that allows these calls, too.
pub(crate) fn and(mut policy: Value, calls: &[&str]) -> Value {
    let more = json!({ "Effect": "Allow", "Action": calls, "Resource": "*" });
    policy["Statement"]
        .as_array_mut()
        .expect("statements")
        .push(more);
    policy
}
