//! Configuration of the `pkcs11` provider: the module that is loaded, the token, and what the module may reach.
//!
//! What always holds: a [`Pkcs11Service`] that exists names a module by an absolute path and a token by what lasts, and was
//! told that one credential does everything. It holds no secret: the PIN is in a file that the child reads. Its environment
//! changes nothing of how programs are loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pkcs11_uri::Pkcs11Uri;

/// A token that a PKCS #11 module reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct Pkcs11Service {
    /// The module, a shared library that root owns.
    pub module: PathBuf,
    /// The token, as a URI [RFC 7512].
    pub token: String,
    /// A private file with the user's PIN, read anew for each batch.
    pub pin_file: PathBuf,
    /// Always true: a token has one PIN for its user, and whoever has it can unwrap. It has to be said.
    pub single_credential: bool,
    /// What wraps; the better one that the token has, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<WrapMechanism>,
    /// What the module finds in its environment; nothing secret.
    pub environment: BTreeMap<String, String>,
    /// Files and directories that the module reads, besides system libraries.
    pub read: Vec<PathBuf>,
    /// Files, directories and devices that the module reads and writes.
    pub write: Vec<PathBuf>,
    /// TCP ports that the module connects to.
    pub ports: Vec<u16>,
}

/// What a token wraps volume keys with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WrapMechanism {
    /// `CKM_AES_GCM`, with the encryption context as additional data.
    AesGcm,
    /// `CKM_AES_KEY_WRAP_PAD`, with a digest of the encryption context wrapped along.
    AesKeyWrapPad,
}

/// The same, as it stands in the configuration and in messages.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    module: PathBuf,
    token: String,
    pin_file: PathBuf,
    #[serde(default)]
    single_credential: bool,
    #[serde(default)]
    mechanism: Option<WrapMechanism>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    read: Vec<PathBuf>,
    #[serde(default)]
    write: Vec<PathBuf>,
    #[serde(default)]
    ports: Vec<u16>,
}

impl TryFrom<Written> for Pkcs11Service {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if !written.single_credential {
            return Err(
                "pkcs11: a token has one PIN for all that its user does, so whoever makes volumes can open them: \
                 say that this is meant with single-credential = true"
                    .to_owned(),
            );
        }
        let paths = [&written.module, &written.pin_file];
        let paths = paths.into_iter().chain(&written.read).chain(&written.write);
        if let Some(path) = paths.into_iter().find(|path| !path.is_absolute()) {
            return Err(format!("pkcs11: {} is not absolute", path.display()));
        }
        let uri = Pkcs11Uri::parse(&written.token).map_err(|error| format!("token: {error}"))?;
        if uri.names_object() || uri.token.is_none() && uri.serial.is_none() {
            return Err(
                "pkcs11: `token` names a token by its label or serial number, and no key in it: pkcs11:token=LABEL"
                    .to_owned(),
            );
        }
        if let Some(name) = written.environment.keys().find(|name| !is_variable(name)) {
            return Err(format!(
                "pkcs11: environment: {name:?} is not for a module: a name has A-Z, 0-9 and _, and is none by which \
                 the system loads programs or libraries"
            ));
        }
        if written
            .environment
            .values()
            .any(|value| value.contains('\0'))
        {
            return Err("pkcs11: environment: a value has a zero byte".to_owned());
        }
        Ok(Self {
            module: written.module,
            token: written.token,
            pin_file: written.pin_file,
            single_credential: written.single_credential,
            mechanism: written.mechanism,
            environment: written.environment,
            read: written.read,
            write: written.write,
            ports: written.ports,
        })
    }
}

/// Whether a module may be given this variable: not those by which ld.so, glibc and OpenSSL take other code or files.
fn is_variable(name: &str) -> bool {
    let allowed = |c: char| matches!(c, 'A'..='Z' | '0'..='9' | '_');
    let loads = ["LD_", "GLIBC_", "MALLOC_", "GCONV_", "OPENSSL_", "PATH"];
    !name.is_empty()
        && name.chars().all(allowed)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !loads.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<Pkcs11Service, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    const SOUND: &str =
        r#""module":"/m.so","token":"pkcs11:token=vol","pin-file":"/pin","single-credential":true"#;

    #[test]
    fn what_is_written_comes_back_the_same() {
        let whole = format!(
            r#"{{{SOUND},"mechanism":"aes-key-wrap-pad","environment":{{"SOFTHSM2_CONF":"/c"}},"read":["/c"],"write":["/t"],"ports":[1792]}}"#
        );
        for text in [format!("{{{SOUND}}}"), whole] {
            let understood = service(&text).unwrap();
            let again = serde_json::to_string(&understood).unwrap();
            assert_eq!(service(&again), Ok(understood));
        }
    }

    #[test]
    fn a_service_that_could_not_be_used_as_it_says_is_refused_by_name() {
        assert!(service(&format!("{{{SOUND}}}")).is_ok());
        let with = |more: &str| format!("{SOUND},{more}");
        for (text, named) in [
            (
                SOUND.replace(r#","single-credential":true"#, ""),
                "single-credential",
            ),
            (SOUND.replace("true", "false"), "single-credential"),
            (SOUND.replace("/m.so", "m.so"), "not absolute"),
            (SOUND.replace("/pin", "pin"), "not absolute"),
            (with(r#""read":["c"]"#), "not absolute"),
            (
                SOUND.replace("pkcs11:token=vol", "vol"),
                "token: pkcs11 URI",
            ),
            (SOUND.replace("token=vol", "model=m"), "by its label"),
            (
                SOUND.replace("token=vol", "token=vol;object=k"),
                "no key in it",
            ),
            (
                SOUND.replace("token=vol", "token=vol?pin-value=1"),
                "pin-value",
            ),
            (SOUND.replace("token=vol", "slot-id=1"), "slot-id"),
            (with(r#""environment":{"LD_PRELOAD":"/x"}"#), "LD_PRELOAD"),
            (
                with(r#""environment":{"OPENSSL_CONF":"/x"}"#),
                "OPENSSL_CONF",
            ),
            (with(r#""environment":{"a=b":"/x"}"#), "a=b"),
            (with(r#""environment":{"A":"\u0000"}"#), "zero byte"),
            (with(r#""pin":"1234""#), "pin"),
            (with(r#""mechanism":"aes-cbc""#), "aes-cbc"),
        ] {
            let error = service(&format!("{{{text}}}")).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
