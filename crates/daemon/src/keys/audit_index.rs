//! The TPM that keeps heads of the audit log: which one, and the call.

use sealvol_audit::{Anchor, BYTES, extension};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{Call, Done, Right, Service};

use super::{Attempts, Keys, mismatched};
use crate::daemon::Daemon;
use crate::error::Error;

impl Keys {
    /// The provider that has an index for it: the first by name.
    pub(crate) fn audit_index(&self) -> Option<&str> {
        let has = |service: &Service| matches!(service, Service::Tpm2(tpm) if tpm.audit.is_some());
        let mut providers = self.providers().filter(|provider| has(&provider.service));
        providers.next().map(|provider| provider.name.as_str())
    }

    /// Extends that index by a line; gives where it stood, if it ever did, and where it stands.
    ///
    /// # Errors
    /// When the TPM refuses or cannot be asked.
    pub(crate) async fn extend_audit(
        &self,
        provider: &str,
        line: &Anchor,
    ) -> Result<(Option<[u8; BYTES]>, [u8; BYTES]), Error> {
        let whole = KeyRef::new(provider, "*")?;
        let call = Call::ExtendAudit {
            extension: extension(line).to_vec(),
        };
        let (done, _) = self
            .ask(
                Daemon::itself(),
                Right::Administer,
                &whole,
                call,
                Attempts::One,
            )
            .await?;
        let Done::ExtendAudit { before, after } = done else {
            return Err(mismatched(&done));
        };
        let other = |_| Error::AuditIndex {
            cause: "it has another length than SHA-256 makes",
        };
        let before = if before.is_empty() {
            None
        } else {
            Some(before.try_into().map_err(other)?)
        };
        Ok((before, after.try_into().map_err(other)?))
    }
}
