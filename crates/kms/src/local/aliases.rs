//! Aliases: second names of keys, which may come to mean another key.
//!
//! As AWS KMS has them: an alias is a thing of its own, means one key, and begins with `alias/`; a key has at most 50. Whoever
//! uses or describes a key may name it by an alias; whoever changes one names the key itself.
//!
//! | call | key is enabled, disabled or pending import | pending deletion |
//! |---|---|---|
//! | `CreateAlias` | ok | `KMSInvalidStateException` |
//! | `UpdateAlias`, to that key | ok | `KMSInvalidStateException` |
//! | `UpdateAlias`, away from that key; `DeleteAlias` | ok | ok |
//!
//! What always holds: an alias means a key that exists, for it goes with its key; nothing that was wrapped remembers an alias.

use rusqlite::{Transaction, params};
use sealvol_control::keychild::{
    ALIAS_PREFIX, ALIASES_MAX, AliasChange, AliasChanged, KeyState, Right,
};

use super::table::{Key, Table, signed};
use super::{Local, NAME_MAX, id_text};
use crate::Refusal;

impl Local {
    pub(super) fn carry_out_on_alias(
        &self,
        alias: &str,
        change: &AliasChange,
    ) -> Result<AliasChanged, Refusal> {
        check_alias(alias)?;
        self.change(|transaction, table, now| {
            let former = with_alias(table, alias);
            if let Some(former) = former {
                self.permit(former, Right::Administer, None)?;
            }
            let target = match change {
                AliasChange::Create { key } => {
                    let taken = table.keys.iter().any(|key| key.name == alias);
                    if taken || former.is_some() {
                        let alias = self.reference(alias);
                        return Err(Refusal::AliasExists { alias });
                    }
                    let key = self.target(table, key, None)?;
                    self.execute(
                        transaction,
                        "INSERT INTO aliases (name, key_id, created) VALUES (?1, ?2, ?3)",
                        params![alias, key.id, signed(now.wall)],
                    )?;
                    Some(key)
                }
                AliasChange::Update { key } => {
                    former.ok_or_else(|| self.unknown_alias(alias))?;
                    let key = self.target(table, key, former)?;
                    let sql = "UPDATE aliases SET key_id = ?2 WHERE name = ?1";
                    self.execute(transaction, sql, params![alias, key.id])?;
                    Some(key)
                }
                AliasChange::Delete => {
                    former.ok_or_else(|| self.unknown_alias(alias))?;
                    let sql = "DELETE FROM aliases WHERE name = ?1";
                    self.execute(transaction, sql, [alias])?;
                    None
                }
            };
            let id = |key: &Key| id_text(&key.id);
            Ok(AliasChanged {
                key_id: target.map(id),
                former: former.map(id),
            })
        })
    }

    /// Takes the aliases of a key away, which is about to go.
    pub(super) fn forget_aliases(
        &self,
        transaction: &Transaction<'_>,
        id: &[u8; 16],
    ) -> Result<(), Refusal> {
        let sql = "DELETE FROM aliases WHERE key_id = ?1";
        self.execute(transaction, sql, params![id])
    }

    /// The key that an alias is to mean, which means `former` now.
    fn target<'t>(
        &self,
        table: &'t Table,
        key: &str,
        former: Option<&Key>,
    ) -> Result<&'t Key, Refusal> {
        let key = self.find_key_in(table, key)?;
        self.permit(key, Right::Administer, None)?;
        if key.state == KeyState::PendingDeletion {
            return Err(self.in_state(key));
        }
        let has_it = former.is_some_and(|former| former.id == key.id);
        if !has_it && key.aliases.len() >= ALIASES_MAX {
            let key = self.reference(&key.name);
            return Err(Refusal::TooManyAliases { key });
        }
        Ok(key)
    }

    fn unknown_alias(&self, alias: &str) -> Refusal {
        let alias = self.reference(alias);
        Refusal::UnknownAlias { alias }
    }
}

fn with_alias<'t>(table: &'t Table, alias: &str) -> Option<&'t Key> {
    let mut keys = table.keys.iter();
    keys.find(|key| key.aliases.iter().any(|name| name == alias))
}

fn check_alias(alias: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let reason = match alias.strip_prefix(ALIAS_PREFIX) {
        None => "the name of an alias begins with alias/",
        Some("") => "a name follows alias/",
        Some(_) if alias.len() > NAME_MAX => "a name has at most 256 bytes",
        Some(name) if !name.chars().all(allowed) => "a name is made of letters, digits and . _ / -",
        Some(_) => return Ok(()),
    };
    Err(Refusal::BadAliasName {
        alias: alias.chars().take(NAME_MAX).collect(),
        reason,
    })
}
