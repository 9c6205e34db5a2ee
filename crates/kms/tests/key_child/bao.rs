//! `transit` by a real OpenBao server, with the least policies that the manual gives.

use std::path::PathBuf;

use sealvol_control::keychild::{Credential, Provider, Service, TransitService};
use serde_json::json;

use crate::openbao::OpenBao;
use crate::subject::Subject;

/// A server with the keys `default` and `other`, and the two credentials.
pub(crate) struct Bao {
    pub(crate) server: OpenBao,
    pub(crate) create: PathBuf,
    pub(crate) attach: PathBuf,
}

impl Bao {
    pub(crate) fn start() -> Self {
        Self::on(OpenBao::start())
    }

    pub(crate) fn on(server: OpenBao) -> Self {
        server.make_key("default");
        server.make_key("other");
        let [create, attach] =
            ["create", "attach"].map(|role| server.token_file(role, &manual_policy(role)));
        Self {
            server,
            create,
            attach,
        }
    }

    /// As the manual configures it.
    pub(crate) fn service(&self) -> TransitService {
        TransitService {
            address: self.server.address().try_into().expect("an address"),
            mount: "transit".to_owned(),
            namespace: None,
            ca_file: Some(self.server.authority()),
            create: Some(Credential::TokenFile(self.create.clone())),
            attach: Credential::TokenFile(self.attach.clone()),
            single_credential: false,
            keys: Vec::new(),
            timeout_s: 10,
        }
    }

    /// Reached without TLS, through `port` of this machine.
    pub(crate) fn service_at(&self, port: u16) -> TransitService {
        let address = format!("http://127.0.0.1:{port}");
        TransitService {
            address: address.try_into().expect("an address"),
            ca_file: None,
            ..self.service()
        }
    }
}

impl Subject for Bao {
    fn provider(&self) -> Provider {
        provider(self.service())
    }

    fn disable(&self, key: &str) {
        self.server.admin(
            "DELETE",
            &format!("transit/keys/{key}/soft-delete"),
            &json!(null),
        );
    }

    fn enable(&self, key: &str) {
        self.server.admin(
            "POST",
            &format!("transit/keys/{key}/soft-delete-restore"),
            &json!({}),
        );
    }

    fn destroy(&self, key: &str) {
        let allowed = json!({ "deletion_allowed": true });
        self.server
            .admin("POST", &format!("transit/keys/{key}/config"), &allowed);
        self.server
            .admin("DELETE", &format!("transit/keys/{key}"), &json!(null));
    }
}

pub(crate) fn provider(service: TransitService) -> Provider {
    Provider {
        name: "bao".to_owned(),
        service: Service::Transit(service),
    }
}

/// What stands in the manual: the policy of a role, for the keys of these tests.
pub(crate) fn manual_policy(role: &str) -> String {
    let manual = include_str!("../../../../docs/key-services.md");
    let begin = format!("```hcl\n# {role}\n");
    let policy = manual.split(&begin).nth(1).expect("a policy of that name");
    let policy = policy.split("```").next().expect("its end");
    assert!(policy.contains("/volumes\""), "{policy}");
    ["default", "other", "nothing", "rsa", "plain", "new"]
        .map(|key| policy.replace("/volumes\"", &format!("/{key}\"")))
        .concat()
}
