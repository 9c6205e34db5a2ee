//! Configuration of the `azure-kv` provider: which vault, who gives tokens for it, and who the child is to be there.
//!
//! What always holds: an [`AzureService`] that exists has either two identities or the leave to use one for everything, and
//! asks nobody without TLS but this host's own metadata service. It holds no secret: those are files that the child reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::{Address, timeout_s, two_credentials};

/// An Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct AzureService {
    /// The vault, as key ids begin.
    pub vault: Address,
    /// Who gives tokens for client secrets.
    pub authority: Address,
    /// Who gives tokens for managed identities: a service of the host that this machine runs on.
    pub metadata: Address,
    /// What a token is for.
    pub audience: String,
    /// PEM file with the certificates that those of vault and authority must come from: these and no others.
    pub ca_file: PathBuf,
    /// Who has keys wrapped. It may not unwrap any: that is tried before each use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<Identity>,
    /// Who has them unwrapped.
    pub attach: Identity,
    /// `attach` is used for everything.
    pub single_credential: bool,
    /// The keys that may be used; any if empty.
    pub keys: Vec<String>,
    /// Seconds that a single call to a server has, from connecting to the last byte of its answer.
    pub timeout_s: u8,
}

/// Somebody whom the vault knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Identity {
    /// An application, by a secret (OAuth 2.0 client credentials, RFC 6749 section 4.4).
    ClientSecret {
        /// Of the directory that knows it.
        tenant: String,
        /// Of the application.
        client_id: String,
        /// A private file with the secret, read anew for each batch.
        secret_file: PathBuf,
    },
    /// This machine, as its host says.
    ManagedIdentity {
        /// Of a user-assigned identity; the system-assigned one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_id: Option<String>,
    },
}

impl Identity {
    /// Names in it, for URLs and forms.
    fn names(&self) -> impl Iterator<Item = &String> {
        let (first, second) = match self {
            Self::ClientSecret {
                tenant, client_id, ..
            } => (Some(tenant), Some(client_id)),
            Self::ManagedIdentity { client_id } => (client_id.as_ref(), None),
        };
        first.into_iter().chain(second)
    }

    /// What tells it from others: another secret of the same application is no other identity.
    fn who(&self) -> Option<(Option<&String>, &String)> {
        match self {
            Self::ClientSecret {
                tenant, client_id, ..
            } => Some((Some(tenant), client_id)),
            Self::ManagedIdentity { client_id } => Some((None, client_id.as_ref()?)),
        }
    }
}

/// The same, as it stands in the configuration and in messages.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    vault: String,
    #[serde(default)]
    authority: Option<String>,
    #[serde(default)]
    metadata: Option<String>,
    #[serde(default)]
    audience: Option<String>,
    ca_file: PathBuf,
    #[serde(default)]
    create: Option<Identity>,
    attach: Identity,
    #[serde(default)]
    single_credential: bool,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    timeout_s: Option<u8>,
}

impl TryFrom<Written> for AzureService {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let who = written.create.as_ref().map(Identity::who);
        two_credentials(
            who.as_ref(),
            &written.attach.who(),
            written.single_credential,
        )?;
        let identities = written.create.iter().chain([&written.attach]);
        if !identities.flat_map(Identity::names).all(|name| is_id(name)) {
            return Err("`tenant` and `client-id` are made of letters, digits, . and -");
        }
        let secure = |text: &str| match Address::parse(text, HTTPS)? {
            address if address.secure => Ok(address),
            _ => Err("`vault` and `authority` are asked over TLS: https://"),
        };
        let mut vault = secure(&written.vault)?;
        // As the vault writes it in the ids of its keys.
        vault.host.make_ascii_lowercase();
        let authority = written.authority.as_deref().unwrap_or(AUTHORITY);
        let metadata = written.metadata.as_deref().unwrap_or(METADATA);
        let metadata = Address::parse(metadata, HTTP)?;
        if !metadata.is_here() && !metadata.is_on_link() {
            return Err(
                "`metadata` is a service of this machine's own host: 169.254.169.254, or this machine",
            );
        }
        let audience = written.audience.unwrap_or_else(|| AUDIENCE.to_owned());
        if Address::parse(&audience, HTTPS).is_err() {
            return Err("`audience` is a URL, such as https://vault.azure.net");
        }
        Ok(Self {
            vault,
            authority: secure(authority)?,
            metadata,
            audience: audience.trim_end_matches('/').to_owned(),
            ca_file: written.ca_file,
            create: written.create,
            attach: written.attach,
            single_credential: written.single_credential,
            keys: written.keys,
            timeout_s: timeout_s(written.timeout_s)?,
        })
    }
}

/// Whether this can stand in a URL or a form as it is.
fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    !matches!(text, "" | "." | "..") && text.chars().all(allowed)
}

/// Azure's public cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";
const AUDIENCE: &str = "https://vault.azure.net";
const METADATA: &str = "http://169.254.169.254";
const HTTPS: u16 = 443;
const HTTP: u16 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<AzureService, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    const CREATE: &str =
        r#""create":{"client-secret":{"tenant":"t","client-id":"c","secret-file":"/c"}}"#;
    const ATTACH: &str = r#""attach":{"managed-identity":{}}"#;

    #[test]
    fn the_public_cloud_is_meant_if_nothing_else_is_said() {
        let text = format!(
            r#"{{"vault":"https://V.vault.azure.net/","ca-file":"/ca",{CREATE},{ATTACH}}}"#
        );
        let understood = service(&text).unwrap();
        let at = [
            &understood.vault,
            &understood.authority,
            &understood.metadata,
        ];
        assert_eq!(
            at.map(Address::origin),
            [
                "https://v.vault.azure.net",
                "https://login.microsoftonline.com",
                "http://169.254.169.254"
            ]
        );
        assert_eq!(understood.audience, "https://vault.azure.net");
        let again = serde_json::to_string(&understood).unwrap();
        assert_eq!(service(&again), Ok(understood));
    }

    #[test]
    fn a_service_that_could_not_be_used_as_it_says_is_refused_by_name() {
        let sound = format!(r#""vault":"https://v","ca-file":"/ca",{CREATE},{ATTACH}"#);
        assert!(service(&format!("{{{sound}}}")).is_ok());
        let same = CREATE.replace("create", "attach").replace("/c", "/d");
        let other = CREATE.replace("\"c\"", "\"d\"").replace("create", "attach");
        assert!(service(&format!("{{{}}}", sound.replace(ATTACH, &other))).is_ok());
        for (text, named) in [
            (sound.replace(CREATE, r#""keys":[]"#), "`create` is missing"),
            (
                format!(r#"{sound},"single-credential":true"#),
                "single-credential",
            ),
            (sound.replace(ATTACH, &same), "the same credential"),
            (
                sound.replace(CREATE, r#""create":{"managed-identity":{}}"#),
                "the same credential",
            ),
            (sound.replace("https", "http"), "over TLS"),
            (
                format!(r#"{sound},"authority":"http://localhost""#),
                "over TLS",
            ),
            (
                format!(r#"{sound},"metadata":"http://10.0.0.1""#),
                "metadata",
            ),
            (format!(r#"{sound},"audience":"vault""#), "audience"),
            (sound.replace("\"t\"", "\"a/b\""), "tenant"),
            (format!(r#"{sound},"timeout-s":61"#), "timeout-s"),
            (format!(r#"{sound},"secret":"s""#), "secret"),
        ] {
            let error = service(&format!("{{{text}}}")).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
