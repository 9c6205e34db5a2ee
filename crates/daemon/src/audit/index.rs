//! The head of the log goes into an index of the TPM, so that an older log that is put back in its place shows.
//!
//! ```text
//! head of the log ─▶ TPM2_NV_Extend ─▶ a line: which head, and where the index stands now
//! ```
//! What always holds: where the index stood before is compared with what the log says. A head that went in while nobody could
//! tell any more, because the machine died, is found among the lines and told late. What fits neither is told and recorded, and
//! the log goes on from there: a daemon that refused to work would help only whoever wants it not to.
//!
//! Never: a wait of anything else for the TPM. It is asked at a start, once an hour if the log went on, and at a stop.

use sealvol_audit::{Anchor, BYTES, extended, hex};

use super::{Operation, Record};
use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;

impl Daemon {
    /// Has the head of the log go into the index of the TPM, if one is configured.
    pub(crate) async fn anchor_audit_log(&self) {
        let Some(provider) = self.keys.audit_index() else {
            return;
        };
        match self.extend_index(provider).await {
            Ok(()) => self.failures.clear(OUTAGE),
            // It stays while the daemon runs: whether somebody reads it must not depend on the hour.
            Err(error @ Error::AuditIndex { .. }) => {
                tracing::error!(provider, %error, "the audit log");
                self.failures.set(SUBJECT, reply::in_words(&error));
            }
            Err(error) => {
                tracing::warn!(provider, %error, "the audit log was not anchored");
                let next = "It is tried again within the hour";
                let message = format!("{}. {next}", reply::in_words(&error));
                self.failures.set(OUTAGE, message);
            }
        }
    }

    async fn extend_index(&self, provider: &str) -> Result<(), Error> {
        let Some(head) = self.audit.head().filter(|_| self.audit.has_news()) else {
            return Ok(());
        };
        let said = self.audit.index_value();
        let (before, after) = self.keys.extend_audit(provider, &head).await?;
        let from = before.unwrap_or([0; BYTES]);
        if extended(&from, &head) != after {
            return Err(Error::AuditIndex {
                cause: "it is not extended by SHA-256, or somebody else extends it",
            });
        }
        let late = before.and_then(|before| self.audit.unrecorded(&before));
        if let Some(line) = &late {
            self.tell(line, &from, "ok").await?;
        }
        let fits = late.is_some() || said.is_none() || said == before;
        let cause = "it does not stand where the log says";
        self.tell(&head, &after, if fits { "ok" } else { cause })
            .await?;
        if fits {
            return Ok(());
        }
        Err(Error::AuditIndex { cause })
    }

    async fn tell(&self, line: &Anchor, value: &[u8; BYTES], result: &str) -> Result<(), Error> {
        let record = Record {
            anchored: Some(line.to_string()),
            tpm_value: Some(hex(value)),
            result: result.to_owned(),
            ..Record::of(Operation::Anchor, Self::itself())
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

/// What it is listed under that the index stands elsewhere.
const SUBJECT: &str = "audit log";
/// What it is listed under that the TPM can't be asked.
const OUTAGE: &str = "audit log's anchor";
