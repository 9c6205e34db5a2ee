//! What is relied on of each provider's table of keys: the newest state that was seen, in the registry.
//!
//! What always holds: a state is in the registry before anything that came with it is used; it goes to the key child with
//! each batch, which refuses an older table before it opens a key of it. A child that changes the table and dies before it
//! answers leaves a newer one, which is believed: the master key made its MAC.

use std::collections::BTreeMap;

use sealvol_control::keychild::TableState;
use tokio::sync::Mutex;

use crate::registry::{Registry, RegistryError};

#[derive(Debug)]
pub(super) struct ReliedOn {
    registry: Registry,
    /// What the registry says, as far as it was asked.
    known: Mutex<BTreeMap<String, Option<TableState>>>,
}

impl ReliedOn {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry,
            known: Mutex::default(),
        }
    }

    /// The newest state that was seen of a provider's table.
    pub(super) async fn of(&self, provider: &str) -> Result<Option<TableState>, RegistryError> {
        let mut known = self.known.lock().await;
        if let Some(found) = known.get(provider) {
            return Ok(found.clone());
        }
        let name = provider.to_owned();
        let found = self
            .registry
            .call(move |registry| registry.key_table(&name))
            .await?;
        known.insert(provider.to_owned(), found.clone());
        Ok(found)
    }

    /// A child answered from a table in this state.
    pub(super) async fn saw(&self, provider: &str, seen: &TableState) -> Result<(), RegistryError> {
        let mut known = self.known.lock().await;
        if known
            .get(provider)
            .is_some_and(|known| known.as_ref() == Some(seen))
        {
            return Ok(());
        }
        let (name, seen) = (provider.to_owned(), seen.clone());
        let now = self
            .registry
            .call(move |registry| registry.saw_key_table(&name, &seen))
            .await?;
        known.insert(provider.to_owned(), Some(now));
        Ok(())
    }
}
