//! AWS KMS set up as the manual says: the policies of its two credentials, word for word, and the words of the daemon's configuration
//! that name it `aws`.

use std::path::Path;

use serde_json::{Value, json};

use crate::moto::{Moto, REGION};

/// The policy that the manual gives for `role`, for every key: moto looks at calls only.
///
/// # Panics
/// If the manual gives none.
#[must_use]
pub fn policy(role: &str) -> Value {
    let manual = include_str!("../../docs/key-services.md");
    let begin = format!("`{role}` in AWS:\n\n```json\n");
    let policy = manual.split(&begin).nth(1).expect("a policy of that name");
    let policy = policy.split("```").next().expect("its end");
    let mut policy: Value = serde_json::from_str(policy).expect("JSON");
    for statement in policy["Statement"].as_array_mut().expect("statements") {
        statement["Resource"] = json!("*");
    }
    policy
}

/// The section of the configuration that names the service `aws`, with the credentials of its two roles. More lines of it may follow.
///
/// # Panics
/// Never: paths of this harness are UTF-8.
#[must_use]
pub fn provider(moto: &Moto, create: &Path, attach: &Path) -> String {
    let [create, attach] = [create, attach].map(|path| path.to_str().expect("UTF-8"));
    format!(
        "[providers.aws]\ntype = \"aws-kms\"\nregion = \"{REGION}\"\nendpoint = \"http://127.0.0.1:{}\"\n\
         create = {{ file = {create:?} }}\nattach = {{ file = {attach:?} }}\n",
        moto.gate().port(),
    )
}
