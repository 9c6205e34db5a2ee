//! `azure-kv` by a vault of our own, with the least permissions that the manual gives.

use sealvol_control::keychild::{AzureService, Identity, Provider, Service};
use serde_json::json;

use crate::key_vault::{KeyVault, TENANT};
use crate::subject::Subject;

/// A vault with the keys `default` and `other`, and two applications.
pub(crate) struct Vault {
    pub(crate) server: KeyVault,
    pub(crate) create: Identity,
    pub(crate) attach: Identity,
}

impl Vault {
    pub(crate) fn start() -> Self {
        let server = KeyVault::start();
        server.make_key("default");
        server.make_key("other");
        let [create, attach] = ["create", "attach"].map(|role| Identity::ClientSecret {
            tenant: TENANT.to_owned(),
            client_id: role.to_owned(),
            secret_file: server.application(role, &manual_permissions(role)),
        });
        Self {
            server,
            create,
            attach,
        }
    }

    /// As the manual configures it.
    pub(crate) fn service(&self) -> AzureService {
        let address = self.server.address();
        AzureService {
            vault: address.clone().try_into().expect("an address"),
            authority: address.try_into().expect("an address"),
            metadata: self.server.metadata().try_into().expect("an address"),
            audience: "https://vault.azure.net".to_owned(),
            ca_file: self.server.authority(),
            create: Some(self.create.clone()),
            attach: self.attach.clone(),
            single_credential: false,
            keys: Vec::new(),
            timeout_s: 10,
        }
    }
}

impl Subject for Vault {
    fn provider(&self) -> Provider {
        provider(self.service())
    }

    fn disable(&self, key: &str) {
        let disabled = json!({ "key": key, "attributes": { "enabled": false } });
        self.server.operate("attributes", &disabled);
    }

    fn enable(&self, key: &str) {
        let enabled = json!({ "key": key, "attributes": { "enabled": true } });
        self.server.operate("attributes", &enabled);
    }

    fn destroy(&self, key: &str) {
        self.server.operate("delete", &json!({ "key": key }));
        self.server.operate("purge", &json!({ "key": key }));
    }
}

pub(crate) fn provider(service: AzureService) -> Provider {
    Provider {
        name: "azure".to_owned(),
        service: Service::AzureKv(service),
    }
}

/// What stands in the manual: the permissions of a role.
pub(crate) fn manual_permissions(role: &str) -> Vec<&'static str> {
    let manual = include_str!("../../../../docs/key-services.md");
    let begin = format!(
        "    az keyvault set-policy --name VAULT --spn {}-ID --key-permissions ",
        role.to_uppercase()
    );
    let line = manual.lines().find_map(|line| line.strip_prefix(&begin));
    line.expect("a policy of that role").split(' ').collect()
}
