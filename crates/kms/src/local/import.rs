//! Key material that somebody else made: how it comes in, and how it goes.
//!
//! ```text
//!   GetParametersForImport ─▶ an RSA pair: the private key sealed in the database, the public one and a token to the caller
//!   (elsewhere)               material, encrypted to the public key
//!   ImportKeyMaterial      ─▶ token checked ─▶ decrypted into locked memory ─▶ the same as before? ─▶ sealed by the master key
//! ```
//! What always holds:
//! - no call takes bare material, and none gives it;
//! - a token is good for the key that it was made for, for a day, with the newest pair of that key;
//! - a key has one material: what is imported again must be the same 32 bytes, also years after they were destroyed;
//! - material that goes (deleted, or expired by both clocks) is gone from the database's files when that is answered, as with
//!   the destruction of a key.
//!
//! What wrapped keys are bound to is the key's id: two keys with the same material open nothing of each other's.

use rusqlite::{OptionalExtension as _, Transaction, params};
use sealvol_control::keychild::{
    IMPORT_BYTES_MAX, IMPORT_SECONDS, ImportParameters, KeyChange, KeyDescription, KeyState,
    MATERIAL_DAYS_MAX, Origin, Right, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_crypto::{KeyEncryptionKey, constant_time_eq};

use super::clock::{DAY, Deadline, Now};
use super::table::{Key, Table, signed};
use super::unwrapping::{self, UnwrapError};
use super::{Local, Use, context, id_text, new_id};
use crate::Refusal;

/// The only version of a key whose material is imported.
const VERSION: u32 = 1;

/// Material, encrypted, with what came along.
#[derive(Clone, Copy)]
pub(super) struct Import<'a> {
    pub(super) material: &'a [u8],
    pub(super) token: &'a [u8],
    /// Seconds since 1970.
    pub(super) expires: Option<u64>,
}

impl Local {
    /// Makes the one pair of keys by which material for a key can be imported from now on.
    pub(super) fn make_import_key(
        &self,
        key: &str,
        spec: WrappingKeySpec,
        algorithm: WrappingAlgorithm,
    ) -> Result<ImportParameters, Refusal> {
        // It takes a moment, in which others may want to write.
        let pair = unwrapping::new_pair(spec)?;
        self.change(|transaction, table, now| {
            let key = self.importable(table, key, "GetParametersForImport")?;
            let id = new_id();
            let private_key = pair.private_key.as_ref();
            let context = context(&self.database_id, Use::ImportKey);
            let sealed = self.master.seal_import_key(private_key, &context, &id);
            let expires = now.after(IMPORT_SECONDS);
            self.execute(
                transaction,
                "INSERT OR REPLACE INTO import_keys (key_id, id, algorithm, expires_wall, expires_counted, sealed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    key.id,
                    id,
                    algorithm.as_str(),
                    signed(expires.wall),
                    signed(expires.counted),
                    sealed
                ],
            )?;
            Ok(ImportParameters {
                key_id: id_text(&key.id),
                public_key: pair.public_key.clone(),
                token: self.token(&key.id, &id, expires.wall),
                expires: expires.wall,
            })
        })
    }

    /// Takes the material in.
    pub(super) fn import(&self, key: &str, import: Import<'_>) -> Result<KeyDescription, Refusal> {
        let id = self.change(|transaction, table, now| {
            let key = self.importable(table, key, "ImportKeyMaterial")?;
            let algorithm = self.check_token(key, import.token, now)?;
            let expires = check_expiry(import.expires, now)?;
            let material = self.decrypt(transaction, key, algorithm, import.material)?;
            let fingerprint = self.master.fingerprint(&key.id, &material);
            let known = key.external.as_ref().and_then(|external| external.fingerprint);
            if known.is_some_and(|known| !constant_time_eq(&known, &fingerprint)) {
                let reason = "it is not the material that was imported for this key first";
                return Err(self.incorrect(key, reason));
            }
            let context = context(&self.database_id, Use::KeyMaterial);
            let sealed = self.master.seal(&material, &context, &key.id, VERSION);
            let sql = "UPDATE versions SET sealed = ?2 WHERE key_id = ?1";
            self.execute(transaction, sql, params![key.id, sealed])?;
            self.execute(
                transaction,
                "UPDATE external_keys SET material = 'imported', fingerprint = ?2, expires_wall = ?3, expires_counted = ?4
                 WHERE key_id = ?1",
                params![
                    key.id,
                    fingerprint,
                    expires.map(|expires| signed(expires.wall)),
                    expires.map(|expires| signed(expires.counted))
                ],
            )?;
            if key.state == KeyState::PendingImport {
                let sql = "UPDATE keys SET state = 'enabled' WHERE id = ?1";
                self.execute(transaction, sql, params![key.id])?;
            }
            Ok(key.id)
        })?;
        let table = self.table()?;
        Ok(self.description(self.find_id_in(&table, &id)?))
    }

    /// Destroys the material now.
    pub(super) fn delete_material(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let id = {
            let table = self.table()?;
            let key = self.find_key_in(&table, key)?;
            self.permit(key, Right::Administer, None)?;
            self.check_state(key, &KeyChange::DeleteMaterial)?;
            key.id
        };
        self.remove_material(&id)?;
        let table = self.table()?;
        Ok(self.description(self.find_id_in(&table, &id)?))
    }

    /// Overwrites the material and makes sure that it is gone. Cut short, it is done by the next call, or when the keys are
    /// looked after.
    pub(super) fn remove_material(&self, id: &[u8; 16]) -> Result<(), Refusal> {
        let sealed = self.change(|transaction, table, _| {
            let key = self.find_id_in(table, id)?;
            self.check_state(key, &KeyChange::DeleteMaterial)?;
            let sealed = self.database.sealed(id, VERSION)?;
            for sql in [
                "UPDATE versions SET sealed = zeroblob(length(sealed)) WHERE key_id = ?1",
                "UPDATE external_keys SET material = 'going', expires_wall = NULL, expires_counted = NULL WHERE key_id = ?1",
                "DELETE FROM import_keys WHERE key_id = ?1",
            ] {
                self.execute(transaction, sql, params![id])?;
            }
            Ok(sealed)
        })?;
        self.database.erase(sealed.as_slice())?;
        self.change(|transaction, _, _| {
            let sql = "UPDATE external_keys SET material = 'none' WHERE key_id = ?1 AND material = 'going'";
            self.execute(transaction, sql, params![id])
        })
    }

    /// Takes away what can't be used any more: the private keys of imports.
    pub(super) fn forget_expired_import_keys(
        &self,
        transaction: &Transaction<'_>,
        table: &Table,
        now: &Now,
    ) -> Result<(), Refusal> {
        for key in &table.keys {
            let import_key = key.import_key.as_ref();
            if import_key.is_some_and(|import_key| import_key.expires.is_due(now)) {
                let sql = "DELETE FROM import_keys WHERE key_id = ?1";
                self.execute(transaction, sql, params![key.id])?;
            }
        }
        Ok(())
    }

    /// Refuses what is not possible with the origin of a key.
    pub(super) fn check_origin(&self, key: &Key, change: &KeyChange) -> Result<(), Refusal> {
        let possible = match change {
            KeyChange::Rotate | KeyChange::SetRotation { .. } => key.external.is_none(),
            KeyChange::DeleteMaterial => key.external.is_some(),
            _ => true,
        };
        if possible {
            return Ok(());
        }
        Err(self.wrong_origin(key, change.as_str()))
    }

    fn wrong_origin(&self, key: &Key, call: &'static str) -> Refusal {
        Refusal::WrongOrigin {
            key: self.reference(&key.name),
            call,
            origin: key.origin(),
        }
    }

    fn importable<'t>(
        &self,
        table: &'t Table,
        key: &str,
        call: &'static str,
    ) -> Result<&'t Key, Refusal> {
        let key = self.find_key_in(table, key)?;
        self.permit(key, Right::Administer, None)?;
        if key.external.is_none() {
            return Err(self.wrong_origin(key, call));
        }
        if key.state == KeyState::PendingDeletion {
            return Err(self.in_state(key));
        }
        Ok(key)
    }

    /// `SVit` ‖ 1 ‖ key id ‖ id of the pair ‖ when it expires ‖ MAC of all that.
    fn token(&self, key: &[u8; 16], pair: &[u8; 16], expires: u64) -> Vec<u8> {
        let mut token = Vec::with_capacity(TOKEN_BYTES);
        token.extend_from_slice(TOKEN_BEGIN);
        token.extend_from_slice(key);
        token.extend_from_slice(pair);
        token.extend_from_slice(&expires.to_be_bytes());
        let mac = self.master.import_token_mac(&self.database_id, &token);
        token.extend_from_slice(&mac);
        token
    }

    /// How the material that comes with a token is encrypted, if the token is good for that key now.
    fn check_token(
        &self,
        key: &Key,
        token: &[u8],
        now: &Now,
    ) -> Result<WrappingAlgorithm, Refusal> {
        let reference = || self.reference(&key.name);
        let invalid = |reason| Refusal::InvalidImportToken {
            key: reference(),
            reason,
        };
        let form = "it is not one that this key service made";
        let parsed = Token::parse(token).ok_or_else(|| invalid(form))?;
        let ours = self.token(&parsed.key, &parsed.pair, parsed.expires);
        if !constant_time_eq(&ours, token) {
            return Err(invalid(form));
        }
        if parsed.key != key.id {
            return Err(invalid("it was made for another key"));
        }
        let pair = key
            .import_key
            .as_ref()
            .filter(|pair| pair.id == parsed.pair);
        let over = pair.is_some_and(|pair| pair.expires.is_due(now));
        if over || now.wall >= parsed.expires {
            return Err(Refusal::ExpiredImportToken { key: reference() });
        }
        let pair = pair.ok_or_else(|| {
            invalid("a newer one was made for this key, or its material was deleted")
        })?;
        let algorithm = WrappingAlgorithm::ALL.into_iter();
        let mut algorithm = algorithm.filter(|algorithm| algorithm.as_str() == pair.algorithm);
        algorithm
            .next()
            .ok_or_else(|| invalid("its algorithm is not known"))
    }

    fn decrypt(
        &self,
        transaction: &Transaction<'_>,
        key: &Key,
        algorithm: WrappingAlgorithm,
        material: &[u8],
    ) -> Result<KeyEncryptionKey, Refusal> {
        if material.len() > IMPORT_BYTES_MAX {
            return Err(self.incorrect(key, "it is longer than any key"));
        }
        let sql = "SELECT sealed FROM import_keys WHERE key_id = ?1";
        let sealed: Option<Vec<u8>> = transaction
            .query_row(sql, params![key.id], |row| row.get(0))
            .optional()
            .map_err(|error| self.database.fault(error))?;
        let context = context(&self.database_id, Use::ImportKey);
        let opened =
            self.master
                .with_import_key(&sealed.unwrap_or_default(), &context, |private_key| {
                    unwrapping::decrypt(private_key, algorithm, material, &self.memory)
                });
        let changed = |_| Refusal::KeyMaterialChanged {
            key: self.reference(&key.name),
            version: 0,
        };
        opened.map_err(changed)?.map_err(|error| match error {
            UnwrapError::Key(error) => super::key_error(error),
            UnwrapError::Length => self.incorrect(key, "it has not exactly 32 bytes"),
            UnwrapError::NotEncryptedSo => Refusal::ImportNotDecrypted {
                key: self.reference(&key.name),
                algorithm: algorithm.as_str(),
            },
        })
    }

    fn incorrect(&self, key: &Key, reason: &'static str) -> Refusal {
        Refusal::IncorrectKeyMaterial {
            key: self.reference(&key.name),
            reason,
        }
    }
}

impl Key {
    pub(super) fn origin(&self) -> Origin {
        if self.external.is_some() {
            Origin::External
        } else {
            Origin::Local
        }
    }
}

const TOKEN_BEGIN: &[u8] = b"SVit\x01";
const TOKEN_BYTES: usize = TOKEN_BEGIN.len() + 16 + 16 + 8 + 32;

/// What a token says.
struct Token {
    key: [u8; 16],
    pair: [u8; 16],
    expires: u64,
}

impl Token {
    fn parse(token: &[u8]) -> Option<Self> {
        if token.len() != TOKEN_BYTES {
            return None;
        }
        let rest = token.strip_prefix(TOKEN_BEGIN)?;
        let (key, rest) = rest.split_first_chunk()?;
        let (pair, rest) = rest.split_first_chunk()?;
        let (expires, _) = rest.split_first_chunk()?;
        Some(Self {
            key: *key,
            pair: *pair,
            expires: u64::from_be_bytes(*expires),
        })
    }
}

fn check_expiry(expires: Option<u64>, now: &Now) -> Result<Option<Deadline>, Refusal> {
    let Some(expires) = expires else {
        return Ok(None);
    };
    let left = expires.saturating_sub(now.wall);
    if left == 0 || left > MATERIAL_DAYS_MAX * DAY {
        return Err(Refusal::ExpiryOutOfBounds);
    }
    Ok(Some(now.after(left)))
}
