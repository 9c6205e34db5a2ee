//! How a key of a vault is called: `NAME`, `NAME/VERSION`, or the vault's own `https://VAULT/keys/NAME/VERSION`.
//!
//! What always holds: a [`KeyId`] that exists can stand in a path without coming to mean another call, and is of the
//! configured vault.

/// A key, or a version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyId {
    pub(super) name: String,
    /// The newest one if none.
    pub(super) version: Option<String>,
}

impl KeyId {
    /// `origin` is how URLs of the vault begin.
    pub(super) fn parse(text: &str, origin: &str) -> Result<Self, &'static str> {
        let path = match text.strip_prefix("https://") {
            None => text,
            Some(_) => text
                .strip_prefix(origin)
                .and_then(|rest| rest.strip_prefix("/keys/"))
                .ok_or("is not a key of the vault that the provider is configured for")?,
        };
        let (name, version) = match path.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (path, None),
        };
        let name_char = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let sound = (1..=127).contains(&name.len())
            && name.chars().all(name_char)
            && version.is_none_or(|version| {
                (1..=64).contains(&version.len())
                    && version.chars().all(|c| c.is_ascii_alphanumeric())
            });
        if !sound {
            return Err(
                "a key of this key service is called NAME or NAME/VERSION, by letters, digits and -",
            );
        }
        Ok(Self {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        })
    }

    /// Below the vault's address, without a slash before it.
    pub(super) fn path(&self) -> String {
        match &self.version {
            Some(version) => format!("keys/{}/{version}", self.name),
            None => format!("keys/{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: &str = "https://v.vault.azure.net";

    #[test]
    fn a_key_is_named_shortly_or_by_its_url() {
        for (text, path) in [
            ("volumes", "keys/volumes"),
            ("volumes/0a1b", "keys/volumes/0a1b"),
            ("https://v.vault.azure.net/keys/a-1/2", "keys/a-1/2"),
            ("https://v.vault.azure.net/keys/a", "keys/a"),
        ] {
            assert_eq!(KeyId::parse(text, VAULT).expect(text).path(), path);
        }
    }

    #[test]
    fn nothing_else_is_a_key_of_this_vault() {
        for text in [
            "",
            "/",
            "a/",
            "/1",
            "a/1/2",
            "a//",
            "..",
            "a/..",
            "a?b",
            "a#b",
            "a%2f",
            "a.b",
            "a_b",
            "https://v.vault.azure.net",
            "https://v.vault.azure.net/keys/",
            "https://v.vault.azure.net/secrets/a/1",
            "https://v.vault.azure.net.evil/keys/a/1",
            "https://w.vault.azure.net/keys/a/1",
            "http://v.vault.azure.net/keys/a/1",
        ] {
            assert!(KeyId::parse(text, VAULT).is_err(), "{text}");
        }
        assert!(KeyId::parse(&"a".repeat(128), VAULT).is_err());
    }
}
