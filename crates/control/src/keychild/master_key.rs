//! Where the `local` provider's master key comes from, as it is configured.
//!
//! What always holds: shares that are configured could be enough (two or more, each once, by absolute paths); the service that
//! wraps a master key is no `local` one, so that no chain of them ends in a key that lies open or in a circle. Nothing here
//! is secret.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::message::{LocalService, Provider, Service};
use crate::key_ref::KeyRef;

/// Where the `local` provider's master key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MasterKey {
    /// A systemd credential: 32 bytes in a file below `$CREDENTIALS_DIRECTORY`.
    Credential {
        /// The value of `$CREDENTIALS_DIRECTORY` in the daemon; the child's environment is empty.
        directory: PathBuf,
        /// The credential's name.
        name: String,
    },
    /// 32 bytes in a regular file of the daemon's own user with mode 0600 or 0400.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Derived by Argon2id (RFC 9106) from a passphrase, which is read from the file descriptor
    /// that goes with the batch. Salt and costs stand in the database.
    Passphrase,
    /// Shares of 32 bytes, of which as many as their threshold says have to be there.
    Shares(SharePaths),
    /// 32 bytes that another key service protects.
    Wrapped(WrappedMasterKey),
}

impl MasterKey {
    /// What kind it is, in a few words for an operator. No more than the configuration says.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Credential { .. } => "credential".to_owned(),
            Self::File { .. } => "file".to_owned(),
            Self::Passphrase => "passphrase".to_owned(),
            Self::Shares(shares) => format!("shares in {} files", shares.paths().len()),
            Self::Wrapped(wrapped) => format!("wrapped by {}", wrapped.by),
        }
    }
}

/// The files of shares, in the order in which they are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<PathBuf>", into = "Vec<PathBuf>")]
pub struct SharePaths(Vec<PathBuf>);

/// Fewest and most shares that there can be of a key.
const SHARES: std::ops::RangeInclusive<usize> = 2..=10;

impl SharePaths {
    /// The files.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

impl TryFrom<Vec<PathBuf>> for SharePaths {
    type Error = String;

    fn try_from(paths: Vec<PathBuf>) -> Result<Self, String> {
        if !SHARES.contains(&paths.len()) {
            return Err(format!(
                "master-key: shares: {} files; a key has from {} to {} shares",
                paths.len(),
                SHARES.start(),
                SHARES.end()
            ));
        }
        for (number, path) in paths.iter().enumerate() {
            if !path.is_absolute() {
                let path = path.display();
                return Err(format!("master-key: shares: {path} is not absolute"));
            }
            if paths[..number].contains(path) {
                let path = path.display();
                return Err(format!("master-key: shares: {path} stands there twice"));
            }
        }
        Ok(Self(paths))
    }
}

impl From<SharePaths> for Vec<PathBuf> {
    fn from(shares: SharePaths) -> Self {
        shares.0
    }
}

/// A master key that a data key of another key service protects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WrappedMasterKey {
    /// The key that wraps it: one of another configured provider.
    pub by: KeyRef,
    /// The file with the wrapped master key. Not secret.
    pub file: PathBuf,
    /// A file with 32 bytes that are to be wrapped, if there is no wrapped master key yet: those of a database that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// The provider of `by`, as it is configured: the daemon adds it, and no configuration file says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<Provider>>,
}

impl LocalService {
    /// The master key that another key service wraps, if one does.
    #[must_use]
    pub fn wrapped_master_key(&self) -> Option<&WrappedMasterKey> {
        match &self.master_key {
            MasterKey::Wrapped(wrapped) => Some(wrapped),
            MasterKey::Credential { .. }
            | MasterKey::File { .. }
            | MasterKey::Passphrase
            | MasterKey::Shares(_) => None,
        }
    }

    /// The other key service that this one asks for its master key.
    #[must_use]
    pub fn asks(&self) -> Option<&Provider> {
        self.wrapped_master_key()?.service.as_deref()
    }
}

impl WrappedMasterKey {
    /// Adds the provider that wraps it.
    ///
    /// # Errors
    /// The configuration has given one already, or this one is of a kind that cannot wrap a master key; in words that follow the
    /// name of the key.
    pub fn provide(&mut self, provider: Option<&Provider>) -> Result<(), &'static str> {
        if self.service.is_some() {
            return Err("`service` is not to be written: the provider is found by its name");
        }
        match provider {
            None => Err("there is no such provider in the configuration"),
            Some(Provider {
                service: Service::Local(_),
                ..
            }) => Err("is itself of the type `local`: name a key of a token, a TPM or a server"),
            Some(provider) => {
                self.service = Some(Box::new(provider.clone()));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master_key(text: &str) -> Result<MasterKey, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_comes_back_the_same_and_is_told_by_its_kind() {
        for (text, kind) in [
            (r#"{"file":{"path":"/k"}}"#, "file"),
            (
                r#"{"credential":{"directory":"/c","name":"k"}}"#,
                "credential",
            ),
            (r#""passphrase""#, "passphrase"),
            (r#"{"shares":["/a/1","/b/2"]}"#, "shares in 2 files"),
            (
                r#"{"wrapped":{"by":"hsm:pkcs11:id=%01","file":"/w"}}"#,
                "wrapped by hsm:pkcs11:id=%01",
            ),
            (
                r#"{"wrapped":{"by":"tpm:master","file":"/w","from":"/k"}}"#,
                "wrapped by tpm:master",
            ),
        ] {
            let understood = master_key(text).expect(text);
            assert_eq!(understood.kind(), kind);
            assert_eq!(serde_json::to_string(&understood).expect("JSON"), text);
        }
    }

    #[test]
    fn shares_that_could_not_be_used_are_refused_by_name() {
        let many: Vec<_> = (0..11).map(|number| format!(r#""/{number}""#)).collect();
        for (text, named) in [
            (r#"{"shares":[]}"#.to_owned(), "0 files"),
            (r#"{"shares":["/a"]}"#.to_owned(), "1 files"),
            (format!(r#"{{"shares":[{}]}}"#, many.join(",")), "11 files"),
            (r#"{"shares":["/a","b"]}"#.to_owned(), "b is not absolute"),
            (
                r#"{"shares":["/a","/b","/a"]}"#.to_owned(),
                "/a stands there twice",
            ),
        ] {
            let error = master_key(&text).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_wraps_a_master_key_is_configured_and_no_local_service() {
        let provider = |text: &str| -> Provider { serde_json::from_str(text).expect("a provider") };
        let tpm = provider(
            r#"{"name":"tpm","service":{"type":"tpm2","directory":"/t","pcrs":[7],"single-credential":true}}"#,
        );
        let local = provider(
            r#"{"name":"other","service":{"type":"local","database":"/d","master-key":"passphrase"}}"#,
        );
        let wrapped = || {
            let text = r#"{"wrapped":{"by":"tpm:master","file":"/w"}}"#;
            match master_key(text) {
                Ok(MasterKey::Wrapped(wrapped)) => wrapped,
                other => panic!("{other:?}"),
            }
        };
        assert!(wrapped().provide(None).is_err());
        assert!(wrapped().provide(Some(&local)).is_err());
        let mut provided = wrapped();
        provided.provide(Some(&tpm)).expect("provided");
        assert!(provided.provide(Some(&tpm)).is_err(), "written beforehand");
        let service = LocalService {
            database: "/d".into(),
            master_key: MasterKey::Wrapped(provided),
            create: true,
        };
        assert_eq!(service.asks(), Some(&tpm));
        // It goes to the child whole.
        let text = serde_json::to_string(&service).expect("JSON");
        let again: LocalService = serde_json::from_str(&text).expect("the same");
        assert_eq!(again, service);
    }
}
