//! The life of a key: which call is possible in which state, and what each change does.
//!
//! ```text
//!               disable                       schedule-deletion
//!   create ─▶ Enabled ◀──▶ Disabled        any ──────────▶ PendingDeletion ──(waiting period over)──▶ gone
//!               enable                     Disabled ◀───── cancel-deletion
//!
//!                             import
//!   create, external ─▶ PendingImport ──────▶ Enabled      (the key is as any other then, but that it is not rotated)
//!                       PendingImport ◀────── any but PendingDeletion
//!                             delete-material, or the material expires
//! ```
//! As AWS KMS has it, state by state, with its error names; *state* is `KMSInvalidStateException`:
//!
//! | call | Enabled | Disabled | PendingDeletion | PendingImport |
//! |---|---|---|---|---|
//! | `Generate`, `Unwrap`, `Rewrap` (from and to) | ok | `DisabledException` | *state* | *state* |
//! | `Describe`, `ListKeys` | ok | ok | ok | ok |
//! | `EnableKey`, `DisableKey` | ok | ok | *state* | *state* |
//! | `RotateKeyOnDemand` | ok | `DisabledException` | *state* | as below |
//! | `EnableKeyRotation`, `DisableKeyRotation` | ok | `DisabledException` | *state* | as below |
//! | the three above, of an external key | `UnsupportedOperationException` | the same | the same | the same |
//! | `ScheduleKeyDeletion` | ok | ok | *state* | ok |
//! | `CancelKeyDeletion` | *state* | *state* | ok: Disabled; PendingImport if there is no material | *state* |
//! | `DestroyKey` (ours) | *state* | *state* | ok once it is due, else *state* | *state* |
//! | `GetParametersForImport` | ok | ok | *state* | ok |
//! | `ImportKeyMaterial` | ok, stays | ok, stays | *state* | ok: Enabled |
//! | `DeleteImportedKeyMaterial` | ok: PendingImport | ok: PendingImport | ok, stays | ok, no effect |
//! | the three above, of a key that is not external | `UnsupportedOperationException` | the same | the same | |
//!
//! A key that is gone is as one that never was: `NotFoundException`. The 26th `RotateKeyOnDemand` is refused by
//! `LimitExceededException`; a period or window out of bounds by `ValidationException`.
//!
//! What always holds:
//! - a rotation adds a version and takes none away: what an older one wrapped is unwrapped as before;
//! - a key is destroyed only by a call that names it, when both clocks are past its deadline ([`super::clock`]);
//! - a destruction that has begun is carried to its end, over restarts; nothing takes it back;
//! - once it is answered, none of the database's files holds a byte of the sealed material, and whoever keeps a
//!   copy of them from before needs the master key.
//!
//! It does not ask who needs the key: that is for the caller, who knows the volumes.

use rusqlite::{Transaction, params};
use sealvol_control::keychild::{
    DELETION_WINDOW, KeyChange, KeyDescription, KeyState, ROTATION_PERIOD, ROTATIONS_ON_DEMAND_MAX,
    Right, Tended,
};
use sealvol_crypto::KeyEncryptionKey;

use super::clock::{DAY, Deadline, Now};
use super::table::{Cause, External, Key, Material, Table, signed};
use super::{Local, Use, context, key_error};
use crate::Refusal;

impl Local {
    pub(super) fn carry_out(
        &self,
        key: &str,
        change: &KeyChange,
    ) -> Result<KeyDescription, Refusal> {
        check_bounds(change)?;
        match change {
            KeyChange::Destroy => return self.destroy(key),
            KeyChange::DeleteMaterial => return self.delete_material(key),
            _ => {}
        }
        let id = self.change(|transaction, table, now| {
            let key = self.find_key_in(table, key)?;
            self.permit(key, Right::Administer, None)?;
            self.check_state(key, change)?;
            self.apply(transaction, key, change, now)?;
            Ok(key.id)
        })?;
        let table = self.table()?;
        Ok(self.description(self.find_id_in(&table, &id)?))
    }

    /// Refuses a use of a key that is not enabled.
    pub(super) fn check_usable(&self, key: &Key) -> Result<(), Refusal> {
        match key.state {
            KeyState::Enabled => Ok(()),
            _ => Err(self.in_state(key)),
        }
    }

    /// The table above.
    pub(super) fn check_state(&self, key: &Key, change: &KeyChange) -> Result<(), Refusal> {
        self.check_origin(key, change)?;
        let possible = match change {
            KeyChange::Enable | KeyChange::Disable => {
                matches!(key.state, KeyState::Enabled | KeyState::Disabled)
            }
            KeyChange::ScheduleDeletion { .. } => key.state != KeyState::PendingDeletion,
            KeyChange::DeleteMaterial => !key.destroying,
            KeyChange::Rotate | KeyChange::SetRotation { .. } => key.state == KeyState::Enabled,
            KeyChange::CancelDeletion if key.destroying => false,
            KeyChange::CancelDeletion | KeyChange::Destroy => {
                if key.state != KeyState::PendingDeletion {
                    return Err(Refusal::NotPendingDeletion {
                        key: self.reference(&key.name),
                        state: key.state.as_str(),
                    });
                }
                true
            }
        };
        if possible {
            Ok(())
        } else {
            Err(self.in_state(key))
        }
    }

    pub(super) fn in_state(&self, key: &Key) -> Refusal {
        let name = self.reference(&key.name);
        match key.state {
            KeyState::PendingDeletion => Refusal::PendingDeletion { key: name },
            KeyState::PendingImport => Refusal::PendingImport { key: name },
            _ => Refusal::Disabled { key: name },
        }
    }

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        key: &Key,
        change: &KeyChange,
        now: &Now,
    ) -> Result<(), Refusal> {
        let set_state = |state: KeyState| {
            let sql = "UPDATE keys SET state = ?2, delete_wall = NULL, delete_counted = NULL WHERE id = ?1";
            self.execute(transaction, sql, params![key.id, state.as_str()])
        };
        match change {
            KeyChange::CancelDeletion | KeyChange::Disable => set_state(KeyState::Disabled),
            KeyChange::Enable => {
                set_state(KeyState::Enabled)?;
                // It was not rotated while it was disabled.
                self.rotate_if_due(transaction, key, now).map(|_| ())
            }
            KeyChange::Rotate => {
                let on_demand = key.versions.iter();
                let on_demand = on_demand.filter(|version| version.cause == Cause::OnDemand);
                if on_demand.count() >= ROTATIONS_ON_DEMAND_MAX {
                    let key = self.reference(&key.name);
                    return Err(Refusal::RotatedTooOften { key });
                }
                self.rotate(transaction, key, Cause::OnDemand, now)
            }
            KeyChange::ScheduleDeletion { days } => {
                let deadline = now.after(u64::from(*days) * DAY);
                self.execute(
                    transaction,
                    "UPDATE keys SET state = 'pending-deletion', delete_wall = ?2, delete_counted = ?3 WHERE id = ?1",
                    params![key.id, signed(deadline.wall), signed(deadline.counted)],
                )
            }
            KeyChange::SetRotation { days } => self.set_rotation(transaction, key, *days, now),
            KeyChange::DeleteMaterial | KeyChange::Destroy => Ok(()),
        }
    }

    /// From now on, or not any more.
    fn set_rotation(
        &self,
        transaction: &Transaction<'_>,
        key: &Key,
        days: Option<u32>,
        now: &Now,
    ) -> Result<(), Refusal> {
        let next = days.map(|days| now.after(u64::from(days) * DAY));
        self.execute(
            transaction,
            "UPDATE keys SET rotation_days = ?2, rotate_wall = ?3, rotate_counted = ?4 WHERE id = ?1",
            params![
                key.id,
                days,
                next.map(|next| signed(next.wall)),
                next.map(|next| signed(next.counted))
            ],
        )
    }

    /// Adds a version, which wraps from now on.
    fn rotate(
        &self,
        transaction: &Transaction<'_>,
        key: &Key,
        cause: Cause,
        now: &Now,
    ) -> Result<(), Refusal> {
        let version = key.latest().unwrap_or(0) + 1;
        let material = KeyEncryptionKey::generate(&self.memory).map_err(key_error)?;
        let context = context(&self.database_id, Use::KeyMaterial);
        let sealed = self.master.seal(&material, &context, &key.id, version);
        self.execute(
            transaction,
            "INSERT INTO versions (key_id, version, created, cause, sealed) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![key.id, version, signed(now.wall), cause.as_str(), sealed],
        )
    }

    /// Whether it was. The next one is a whole period from now, however late this one is.
    fn rotate_if_due(
        &self,
        transaction: &Transaction<'_>,
        key: &Key,
        now: &Now,
    ) -> Result<bool, Refusal> {
        let Some(rotation) = key.rotation.filter(|rotation| rotation.next.is_due(now)) else {
            return Ok(false);
        };
        self.rotate(transaction, key, Cause::Automatic, now)?;
        self.set_rotation(transaction, key, Some(rotation.days), now)?;
        Ok(true)
    }

    /// Counts the time, and does what is due and can be taken back by nobody's loss. Nothing is written while no key waits for
    /// anything.
    pub(super) fn tend_keys(&self) -> Result<Tended, Refusal> {
        let waits = |key: &Key| {
            let expires = |external: &External| {
                external.expires.is_some() || external.material == Material::Going
            };
            key.rotation.is_some()
                || key.deletion.is_some()
                || key.import_key.is_some()
                || key.external.as_ref().is_some_and(expires)
        };
        if !self.table()?.keys.iter().any(waits) {
            return Ok(Tended::default());
        }
        let (rotated, expired, due) = self.change(|transaction, table, now| {
            let mut rotated = Vec::new();
            for key in table
                .keys
                .iter()
                .filter(|key| key.state == KeyState::Enabled)
            {
                if self.rotate_if_due(transaction, key, now)? {
                    rotated.push(key.id);
                }
            }
            self.forget_expired_import_keys(transaction, table, now)?;
            let of = |due: &dyn Fn(&&Key) -> bool| -> Vec<[u8; 16]> {
                table.keys.iter().filter(due).map(|key| key.id).collect()
            };
            let expired = of(&|key| key.is_material_due(now) && !key.destroying);
            Ok((rotated, expired, of(&|key| is_over(key.deletion, now))))
        })?;
        for id in &expired {
            self.remove_material(id)?;
        }
        let table = self.table()?;
        let told = |ids: Vec<[u8; 16]>| -> Result<Vec<KeyDescription>, Refusal> {
            let told = |id| Ok(self.description(self.find_id_in(&table, id)?));
            ids.iter().map(told).collect()
        };
        Ok(Tended {
            expired: told(expired)?,
            rotated: told(rotated)?,
            due: told(due)?,
        })
    }

    /// Removes a key whose time is over, and makes sure that its material is gone.
    ///
    /// The material goes first, then the key: whatever comes in between, the key is still there and due, and the next call does
    /// the rest.
    fn destroy(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let (id, sealed) = self.begin_destruction(key)?;
        self.database.erase(&sealed)?;
        self.change(|transaction, table, _| {
            let told = self.description(self.find_id_in(table, &id)?);
            self.forget_aliases(transaction, &id)?;
            for sql in [
                "DELETE FROM external_keys WHERE key_id = ?1",
                "DELETE FROM policies WHERE key_id = ?1",
                "DELETE FROM versions WHERE key_id = ?1",
                "DELETE FROM keys WHERE id = ?1",
            ] {
                self.execute(transaction, sql, params![id])?;
            }
            Ok(told)
        })
    }

    /// Overwrites the material; what it was.
    fn begin_destruction(&self, key: &str) -> Result<([u8; 16], Vec<Vec<u8>>), Refusal> {
        self.change(|transaction, table, now| {
            let key = self.find_key_in(table, key)?;
            self.permit(key, Right::Administer, None)?;
            self.check_state(key, &KeyChange::Destroy)?;
            if !is_over(key.deletion, now) {
                let key = self.reference(&key.name);
                return Err(Refusal::NotDue { key });
            }
            let mut sealed = Vec::new();
            for version in &key.versions {
                sealed.extend(self.database.sealed(&key.id, version.told.version)?);
            }
            for sql in [
                "UPDATE versions SET sealed = zeroblob(length(sealed)) WHERE key_id = ?1",
                "UPDATE keys SET state = 'destroying' WHERE id = ?1",
                "DELETE FROM import_keys WHERE key_id = ?1",
            ] {
                self.execute(transaction, sql, params![key.id])?;
            }
            Ok((key.id, sealed))
        })
    }

    pub(super) fn find_id_in<'t>(
        &self,
        table: &'t Table,
        id: &[u8; 16],
    ) -> Result<&'t Key, Refusal> {
        self.find_in(table, &super::id_text(id))
    }

    pub(super) fn execute(
        &self,
        transaction: &Transaction<'_>,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<(), Refusal> {
        let changed = transaction.execute(sql, values);
        changed
            .map(|_| ())
            .map_err(|error| self.database.fault(error))
    }
}

fn is_over(deadline: Option<Deadline>, now: &Now) -> bool {
    deadline.is_some_and(|deadline| deadline.is_over(now))
}

fn check_bounds(change: &KeyChange) -> Result<(), Refusal> {
    let (what, found, bounds) = match change {
        KeyChange::ScheduleDeletion { days } => ("waiting period", *days, DELETION_WINDOW),
        KeyChange::SetRotation { days: Some(days) } => ("rotation period", *days, ROTATION_PERIOD),
        _ => return Ok(()),
    };
    if bounds.contains(&found) {
        return Ok(());
    }
    let (low, high) = bounds.into_inner();
    Err(Refusal::DaysOutOfBounds {
        what,
        found,
        low,
        high,
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use sealvol_control::keychild::{LocalService, MasterKey, Origin, Principal};
    use sealvol_crypto::locked::{KeyMemory, Policy};

    use super::super::Opening;
    use super::super::clock::{Clock, Reading};
    use super::*;
    use crate::KeyService as _;

    /// Days after the first.
    struct Day(u64);

    impl Clock for Day {
        fn read(&self) -> io::Result<Reading> {
            let day = self.0 * DAY * 1000;
            Ok(Reading {
                boot: [1; 16],
                running: day,
                wall: 1_790_000_000_000 + day,
            })
        }
    }

    fn open(directory: &Path, day: u64) -> Local {
        let service = LocalService {
            database: directory.join("keys.db"),
            master_key: MasterKey::File {
                path: directory.join("master"),
            },
            create: true,
        };
        let opening = Opening {
            name: "local",
            service: &service,
            create: true,
            passphrase: None,
            data_keys: None,
            sink: None,
            relied_on: None,
            accept_table: false,
            principal: Principal::Daemon,
            right: Right::Administer,
            clock: Box::new(Day(day)),
        };
        let policy = Policy {
            require_secretmem: false,
        };
        let memory = KeyMemory::new(policy).expect("memory for keys");
        Local::open(opening, &memory).expect("opened")
    }

    #[tokio::test]
    async fn a_destruction_that_was_cut_short_goes_on_and_cannot_be_taken_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let local = open(directory.path(), 0);
        let created = local.create_key("default", Origin::Local).await;
        created.expect("created");
        let schedule = KeyChange::ScheduleDeletion { days: 7 };
        local.carry_out("default", &schedule).expect("scheduled");
        let early = open(directory.path(), 6).begin_destruction("default");
        assert!(matches!(early, Err(Refusal::NotDue { .. })));
        open(directory.path(), 7)
            .begin_destruction("default")
            .expect("begun");

        let local = open(directory.path(), 7);
        let told = local.describe("default").await.expect("there");
        assert_eq!(told.state, KeyState::PendingDeletion);
        for refused in [KeyChange::CancelDeletion, KeyChange::Enable, schedule] {
            let refused = local.carry_out("default", &refused);
            assert!(matches!(refused, Err(Refusal::PendingDeletion { .. })));
        }
        let due = local.tend().await.expect("tended").due;
        assert_eq!(due, [told]);
        local
            .carry_out("default", &KeyChange::Destroy)
            .expect("destroyed");
        assert!(local.list_keys().await.expect("listed").is_empty());
    }
}
