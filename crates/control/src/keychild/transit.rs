//! Configuration of the `transit` provider: where the key service is, and who the child is to be there.
//!
//! What always holds: a [`TransitService`] that exists has either two credentials or the leave to use one for everything.
//! It holds no secret: credentials are files that the child reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::{Address, timeout_s, two_credentials};

/// The transit engine of an OpenBao or HashiCorp Vault server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct TransitService {
    /// The server, or a load balancer or agent before it.
    pub address: Address,
    /// Path of the transit engine, without slashes around it.
    pub mount: String,
    /// Sent as `X-Vault-Namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// PEM file with the certificates that the server's must come from: these and no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What makes wrapped keys. It may not unwrap any: that is asked of the server before each use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<Credential>,
    /// What unwraps.
    pub attach: Credential,
    /// `attach` is used for everything.
    pub single_credential: bool,
    /// The keys that may be used; any if empty.
    pub keys: Vec<String>,
    /// Seconds that a single call to the server has, from connecting to the last byte of its answer.
    pub timeout_s: u8,
}

/// The same, as it stands in the configuration and in messages.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    address: Address,
    #[serde(default)]
    mount: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    create: Option<Credential>,
    attach: Credential,
    #[serde(default)]
    single_credential: bool,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    timeout_s: Option<u8>,
}

impl TryFrom<Written> for TransitService {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let create = written.create.as_ref();
        two_credentials(create, &written.attach, written.single_credential)?;
        let mount = written.mount.unwrap_or_else(|| "transit".to_owned());
        if !is_path(&mount) {
            return Err(
                "transit: `mount` is a path of letters, digits and . _ - between single slashes",
            );
        }
        let header = |text: &String| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        if !written.namespace.as_ref().is_none_or(header) {
            return Err("transit: `namespace` is printable ASCII without spaces");
        }
        if written.address.secure && written.ca_file.is_none() {
            return Err(
                "transit: `ca-file` is missing: name the PEM file of the authority that signed the server's \
                 certificate (that of this system is /etc/ssl/certs/ca-certificates.crt)",
            );
        }
        let timeout_s = timeout_s(written.timeout_s)?;
        Ok(Self {
            address: written.address,
            mount,
            namespace: written.namespace,
            ca_file: written.ca_file,
            create: written.create,
            attach: written.attach,
            single_credential: written.single_credential,
            keys: written.keys,
            timeout_s,
        })
    }
}

/// Who the child is to the key service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Credential {
    /// An AppRole, logged in with for each batch.
    Approle {
        /// Path of the auth method, without slashes around it.
        #[serde(default = "approle")]
        mount: String,
        /// A private file with the role id.
        role_id_file: PathBuf,
        /// A private file with the secret id.
        secret_id_file: PathBuf,
    },
    /// A private file with a token, read anew for each batch: whoever renews it may replace the file.
    TokenFile(PathBuf),
}

impl Credential {
    /// The files it is in.
    pub fn files(&self) -> Vec<&PathBuf> {
        match self {
            Self::Approle {
                role_id_file,
                secret_id_file,
                ..
            } => vec![role_id_file, secret_id_file],
            Self::TokenFile(path) => vec![path],
        }
    }
}

/// Whether this can stand in a URL as a path: names between single slashes, none of them `.` or `..`.
fn is_path(text: &str) -> bool {
    text.split('/').all(|name| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !matches!(name, "" | "." | "..") && name.chars().all(allowed)
    })
}

fn approle() -> String {
    "approle".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<TransitService, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_comes_back_the_same() {
        let text = r#"{"address":"https://bao.example:8200","ca-file":"/ca.pem","namespace":"team",
            "create":{"token-file":"/c"},"keys":["a"],
            "attach":{"approle":{"role-id-file":"/r","secret-id-file":"/s"}}}"#;
        let understood = service(text).unwrap();
        assert_eq!(understood.mount, "transit");
        assert_eq!(understood.timeout_s, 3);
        let again = serde_json::to_string(&understood).unwrap();
        assert_eq!(service(&again), Ok(understood));
    }

    #[test]
    fn a_service_that_could_not_be_used_as_it_says_is_refused_by_name() {
        let (ca, create) = (r#""ca-file":"/ca""#, r#""create":{"token-file":"/c"}"#);
        let attach = r#""attach":{"token-file":"/a"}"#;
        let address = r#""address":"https://a""#;
        let sound = format!("{address},{ca},{create},{attach}");
        assert!(service(&format!("{{{sound}}}")).is_ok());
        let single = sound.replace(create, r#""single-credential":true"#);
        assert!(service(&format!("{{{single}}}")).is_ok());
        for (text, named) in [
            (sound.replace(create, r#""keys":[]"#), "`create` is missing"),
            (
                format!(r#"{sound},"single-credential":true"#),
                "single-credential",
            ),
            (sound.replace("/c\"", "/a\""), "the same credential"),
            (sound.replace(ca, r#""keys":[]"#), "ca-file"),
            (sound.replace("https", "http"), "in the clear"),
            (format!(r#"{sound},"mount":"a//b""#), "mount"),
            (format!(r#"{sound},"mount":"../sys""#), "mount"),
            (format!(r#"{sound},"namespace":"a\r\nb""#), "namespace"),
            (format!(r#"{sound},"timeout-s":0"#), "timeout-s"),
            (format!(r#"{sound},"token":"s.1""#), "token"),
        ] {
            let error = service(&format!("{{{text}}}")).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
