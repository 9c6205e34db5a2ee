//! The key service that wraps a `local` provider's master key, as that provider asks it: call by call, each waited for.

use std::sync::Arc;

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::Wrapped;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{EncryptionContext, VolumeKey};
use tokio::runtime::Runtime;

use crate::local::DataKeys;
use crate::{KeyService, Refusal, WrappedUnder};

/// A key service, the key in it that wraps, and what its answers are waited for on.
pub(super) struct Asked<'a, S> {
    pub(super) service: S,
    pub(super) by: &'a KeyRef,
    pub(super) runtime: &'a Runtime,
    pub(super) memory: &'a Arc<KeyMemory>,
}

impl<S: KeyService> DataKeys for Asked<'_, S> {
    fn generate(&self, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        self.runtime
            .block_on(self.service.generate(self.by.key(), context))
    }

    fn unwrap(
        &self,
        key: &str,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<VolumeKey, Refusal> {
        let wrapped = WrappedUnder { key, blob, context };
        let unwrapped = self.service.unwrap(&wrapped, self.memory);
        Ok(self.runtime.block_on(unwrapped)?.volume_key)
    }

    fn by(&self) -> &KeyRef {
        self.by
    }
}
