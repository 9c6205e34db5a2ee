//! Key material that somebody else made: the calls, and their records. All that passes through here is encrypted to a key that
//! only the key service has.

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{
    Call, Done, ImportParameters, KeyDescription, Right, WrappingAlgorithm, WrappingKeySpec,
};

use super::{Attempts, Keys, mismatched};
use crate::audit::{Operation, Record};
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// Has a pair of keys made by which the material of a key can be imported.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn import_parameters(
        &self,
        caller: Caller,
        key: &KeyRef,
        spec: WrappingKeySpec,
        algorithm: WrappingAlgorithm,
    ) -> Result<ImportParameters, Error> {
        let call = Call::ImportParameters {
            key: key.key().to_owned(),
            spec,
            algorithm,
        };
        let answer = self
            .ask(caller, Right::Administer, key, call, Attempts::One)
            .await;
        let made = answer.and_then(|(done, _)| match done {
            Done::ImportParameters(made) => Ok(made),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key: Some(key.to_string()),
            ..Record::of(Operation::ImportParameters, caller)
        };
        self.record(record, made).await
    }

    /// Gives a key its material, encrypted.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn import(
        &self,
        caller: Caller,
        key: &KeyRef,
        material: Vec<u8>,
        token: Vec<u8>,
        expires: Option<u64>,
    ) -> Result<KeyDescription, Error> {
        let call = Call::ImportMaterial {
            key: key.key().to_owned(),
            material,
            token,
            expires,
        };
        let answer = self
            .ask(caller, Right::Administer, key, call, Attempts::One)
            .await;
        let imported = answer.and_then(|(done, _)| match done {
            Done::ImportMaterial(description) => Ok(description),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key: Some(key.to_string()),
            ..Record::of(Operation::ImportKeyMaterial, caller)
        };
        self.record(record, imported).await
    }
}
