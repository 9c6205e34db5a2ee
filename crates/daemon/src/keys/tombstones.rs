//! Tombstones, and what ends a wrapped key where nobody keeps any.
//!
//! | provider | keeps tombstones | what else ends a wrapped key, for every volume under the key |
//! |---|---|---|
//! | `local` | yes, but whoever has imported a key's material needs no key service | – ; the end of each copy of that material |
//! | `transit` | no | the key is deleted |
//! | `aws-kms` | no | `ScheduleKeyDeletion`, and its waiting period |
//! | `azure-kv` | no | the key is deleted and purged |
//! | `pkcs11` | no | the token destroys the key's object |
//! | `tpm2` | no | the counter is moved on; without one, the TPM is cleared |
//!
//! What always holds: a command that is told names what is configured and registered, quoted for a shell, and is for an operator
//! with credentials of his own; nothing here runs one.

use sealvol_control::api::{OnlyEnd, VolumeTombstone};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{
    Call, Done, FailureClass, Origin, Provider, Right, Service, Tombstones,
};

use super::{Attempts, Keys, mismatched};
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// Whether a provider can be told to refuse a volume for ever.
    pub(crate) fn keeps_tombstones(&self, provider: &str) -> bool {
        let service = self.providers.get(provider).map(|one| &one.service);
        matches!(service, Some(Service::Local(_)))
    }

    /// Has a provider refuse volumes and data keys for ever. The record is the caller's to write: it is a part of a larger one.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked.
    pub(crate) async fn bury(
        &self,
        caller: Caller,
        provider: &str,
        tombstones: Tombstones,
    ) -> Result<VolumeTombstone, Error> {
        // For messages only: the call names no key.
        let whole = KeyRef::new(provider, "*")?;
        let call = Call::Tombstone(tombstones);
        // What stands already is put again, so it may be tried as often as need be.
        let (done, answer) = self
            .ask(caller, Right::Administer, &whole, call, Attempts::Several)
            .await?;
        match (done, answer.table) {
            (Done::Tombstone, Some(table)) => Ok(VolumeTombstone {
                provider: provider.to_owned(),
                database: table.database,
                changes: table.version,
            }),
            (Done::Tombstone, None) => Err(Error::Internal(
                "the key child told no table of keys".to_owned(),
            )),
            (other, _) => Err(mismatched(&other)),
        }
    }

    /// What alone ends the copies that a key has wrapped, if a tombstone does not.
    ///
    /// # Errors
    /// When a key service that keeps tombstones refuses or cannot be asked.
    pub(crate) async fn only_end(&self, key: &KeyRef) -> Result<Option<OnlyEnd>, Error> {
        if !self.keeps_tombstones(key.provider()) {
            return Ok(Some(only_end(self.providers.get(key.provider()), key)));
        }
        match self.describe(key).await {
            Ok(described) if described.lifecycle.origin == Origin::External => Ok(Some(OnlyEnd {
                key: key.to_string(),
                cause: "its material was imported, and whoever has that opens what it wrapped without this key service"
                    .to_owned(),
                end: "destroy each copy of that material, which ends every volume under the key".to_owned(),
                command: None,
            })),
            Ok(_) => Ok(None),
            // What is gone opens nothing.
            Err(Error::Key { failure, .. }) if failure.class == FailureClass::GoneForEver => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn only_end(provider: Option<&Provider>, key: &KeyRef) -> OnlyEnd {
    const NOTHING_FORGETS: &str = "its key service forgets no single wrapped key";
    let id = key.key();
    let (end, command) = match provider.map(|provider| &provider.service) {
        Some(Service::Transit(service)) => {
            let namespace = service.namespace.as_ref();
            let namespace = namespace.map_or_else(String::new, |namespace| {
                format!("-namespace={} ", quoted(namespace))
            });
            let path = quoted(&format!("{}/keys/{id}", service.mount));
            let config = quoted(&format!("{}/keys/{id}/config", service.mount));
            (
                "delete the key, which ends every volume under it".to_owned(),
                Some(format!(
                    "bao write {namespace}{config} deletion_allowed=true && bao delete {namespace}{path}"
                )),
            )
        }
        Some(Service::AwsKms(_)) => (
            "have the key deleted (ScheduleKeyDeletion), which ends every volume under it when the waiting period is over"
                .to_owned(),
            Some(format!(
                "sealvol key schedule-deletion {}",
                quoted(&key.to_string())
            )),
        ),
        Some(Service::AzureKv(service)) => {
            // The id of a version; what is deleted is the key, with all of them.
            let name = id.rsplit('/').nth(1).unwrap_or(id);
            let vault = service.vault.origin();
            let delete = quoted(&format!("{vault}/keys/{name}"));
            let purge = quoted(&format!("{vault}/deletedkeys/{name}"));
            (
                "delete the key and purge it, which ends every volume under it; with purge protection it is gone when its \
                 retention is over"
                    .to_owned(),
                Some(format!(
                    "az keyvault key delete --id {delete} && az keyvault key purge --id {purge}"
                )),
            )
        }
        Some(Service::Pkcs11(_)) => (
            "have the token destroy the key's object (C_DestroyObject), and destroy each backup of the token, which ends every \
             volume under the key"
                .to_owned(),
            None,
        ),
        Some(Service::Tpm2(service)) => match service.counter {
            Some(counter) => (
                "move the counter on, which ends every key that was made before".to_owned(),
                Some(format!("tpm2_nvincrement -C o {counter:#010x}")),
            ),
            None => (
                "remove the key's file and each copy of it; against a copy that nobody knows of clear the TPM, which ends every \
                 key that it has sealed"
                    .to_owned(),
                Some("tpm2_clear".to_owned()),
            ),
        },
        Some(Service::Local(_)) | None => {
            return OnlyEnd {
                key: key.to_string(),
                cause: "its provider is not configured here".to_owned(),
                end: "end the key in its key service, which ends every volume under it".to_owned(),
                command: None,
            };
        }
    };
    OnlyEnd {
        key: key.to_string(),
        cause: NOTHING_FORGETS.to_owned(),
        end,
        command,
    }
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(service: &str, key: &str) -> OnlyEnd {
        let service = serde_json::from_str(service).expect(service);
        let key: KeyRef = key.parse().expect("a key reference");
        let name = key.provider().to_owned();
        only_end(Some(&Provider { name, service }), &key)
    }

    #[test]
    fn each_provider_has_one_thing_that_ends_a_wrapped_key() {
        let single = r#""single-credential":true"#;
        for (service, key, command) in [
            (
                format!(
                    r#"{{"type":"transit","address":"https://a","ca-file":"/c",{single},"attach":{{"token-file":"/t"}}}}"#
                ),
                "bao:volumes",
                Some(
                    "bao write transit/keys/volumes/config deletion_allowed=true && bao delete transit/keys/volumes",
                ),
            ),
            (
                format!(
                    r#"{{"type":"transit","address":"https://a","ca-file":"/c",{single},"attach":{{"token-file":"/t"}},
                         "mount":"a/b","namespace":"team"}}"#
                ),
                "bao:v",
                Some(
                    "bao write -namespace=team a/b/keys/v/config deletion_allowed=true && bao delete -namespace=team a/b/keys/v",
                ),
            ),
            (
                format!(
                    r#"{{"type":"aws-kms","region":"eu-west-1","ca-file":"/c",{single},"attach":{{"file":"/a"}}}}"#
                ),
                "aws:arn:aws:kms:eu-west-1:111122223333:key/1234abcd",
                Some(
                    "sealvol key schedule-deletion aws:arn:aws:kms:eu-west-1:111122223333:key/1234abcd",
                ),
            ),
            (
                format!(
                    r#"{{"type":"azure-kv","vault":"https://v.vault.azure.net","ca-file":"/c",{single},
                         "attach":{{"managed-identity":{{}}}}}}"#
                ),
                "azure:https://v.vault.azure.net/keys/volumes/0a1b",
                Some(
                    "az keyvault key delete --id https://v.vault.azure.net/keys/volumes && \
                     az keyvault key purge --id https://v.vault.azure.net/deletedkeys/volumes",
                ),
            ),
            (
                format!(
                    r#"{{"type":"pkcs11","module":"/m.so","token":"pkcs11:token=vol","pin-file":"/p",{single}}}"#
                ),
                "hsm:pkcs11:id=%01",
                None,
            ),
            (
                format!(r#"{{"type":"tpm2","directory":"/k","pcrs":[7],{single}}}"#),
                "tpm:00112233-4455-4677-8899-aabbccddeeff",
                Some("tpm2_clear"),
            ),
            (
                format!(
                    r#"{{"type":"tpm2","directory":"/k","pcrs":[7],"counter":22020097,{single}}}"#
                ),
                "tpm:00112233-4455-4677-8899-aabbccddeeff",
                Some("tpm2_nvincrement -C o 0x01500001"),
            ),
        ] {
            let end = end_of(&service, key);
            assert_eq!(end.command.as_deref(), command, "{service}");
            assert_eq!(end.key, key);
            assert!(
                end.end.contains("every"),
                "it says what else it ends: {end:?}"
            );
        }
        let key: KeyRef = "gone:k".parse().expect("a key reference");
        assert!(only_end(None, &key).cause.contains("not configured"));
    }

    #[test]
    fn a_word_of_a_command_stays_one_word() {
        for (word, quoted_word) in [
            ("transit/keys/a", "transit/keys/a"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$(x)", "'$(x)'"),
            ("it's;", r"'it'\''s;'"),
        ] {
            assert_eq!(quoted(word), quoted_word);
        }
    }
}
