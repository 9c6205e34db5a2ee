//! Tombstones: volumes that were shredded, and whose data keys this database opens for nobody any more, wherever a wrapped copy
//! of them comes from.
//!
//! | call | in a context with a pair of a tombstone |
//! |---|---|
//! | `Generate`, `Unwrap`, `Check`, `Rewrap` (from and to) | `VolumeShredded`, in every state of the key |
//! | everything else | as in any other: it uses no data key |
//!
//! What always holds:
//! - a tombstone stands under the table's MAC, and no call takes one back;
//! - it is the database's and no key's: it outlives the keys that wrapped for the volume, and binds those that are made later;
//! - the policy of a key is asked first: whoever may not use the key does not learn what was shredded;
//! - one that stands is put again without a change, so whoever was cut short may ask once more.
//!
//! It destroys nothing. Whoever has the master key, a copy of the database and a wrapped key opens that without this program; and
//! a copy of the database from before the tombstone has none, which is refused only as long as the caller relies on a newer one.

use rusqlite::params;
use sealvol_control::keychild::{CONTEXT_VOLUME, Tombstones};
use sealvol_crypto::EncryptionContext;

use super::Local;
use super::table::{Key, Table, signed};
use crate::Refusal;

impl Local {
    /// Puts tombstones, where they do not stand already.
    pub(super) fn bury(&self, tombstones: &Tombstones) -> Result<(), Refusal> {
        tombstones.check().map_err(|reason| Refusal::BadContext {
            reason: reason.to_owned(),
        })?;
        let table = self.table()?;
        if tombstones.pairs().all(|pair| table.is_buried(pair)) {
            return Ok(());
        }
        self.change(|transaction, _, now| {
            for (name, value) in tombstones.pairs() {
                self.execute(
                    transaction,
                    "INSERT INTO tombstones (name, value, created) VALUES (?1, ?2, ?3) ON CONFLICT (name, value) DO NOTHING",
                    params![name, value, signed(now.wall)],
                )?;
            }
            Ok(())
        })
    }

    /// Refuses what is bound to something that was shredded.
    pub(super) fn check_not_buried(
        &self,
        table: &Table,
        key: &Key,
        context: &EncryptionContext,
    ) -> Result<(), Refusal> {
        let mut pairs = context.iter();
        match pairs.find(|pair| table.is_buried(*pair)) {
            None => Ok(()),
            Some((name, value)) => Err(Refusal::Shredded {
                key: self.reference(&key.name),
                what: match name {
                    CONTEXT_VOLUME => format!("volume {value}"),
                    _ => format!("data key {value}"),
                },
            }),
        }
    }
}
