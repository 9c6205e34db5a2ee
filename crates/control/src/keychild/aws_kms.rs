//! Configuration of the `aws-kms` provider: which region of AWS KMS, and who the child is to be there.
//!
//! What always holds: an [`AwsKmsService`] that exists names one region, and has either two credentials or the leave to use one for
//! everything. It holds no secret: credentials are files that the child reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::{Address, timeout_s, two_credentials};

/// AWS KMS in one region, for one account or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct AwsKmsService {
    /// The region that the keys are in: requests are signed for it.
    pub region: String,
    /// Where its endpoint is, if not where AWS says: one in a VPC, or a stand-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Address>,
    /// Use the region's FIPS endpoint.
    pub fips: bool,
    /// PEM file with the certificates that the endpoint's must come from: these and no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What makes wrapped keys. It may not unwrap any: that is tried with each key that it makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<CredentialsFile>,
    /// What unwraps, and wraps anew.
    pub attach: CredentialsFile,
    /// `attach` is used for everything.
    pub single_credential: bool,
    /// Seconds that a single call has, from connecting to the last byte of its answer.
    pub timeout_s: u8,
}

/// An access key in a shared-credentials file, as the AWS command line has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CredentialsFile {
    /// A private file, read anew for each batch: whoever renews the key may replace the file.
    pub file: PathBuf,
    /// Which of its profiles.
    #[serde(default = "default")]
    pub profile: String,
}

fn default() -> String {
    "default".to_owned()
}

/// The same, as it stands in the configuration and in messages.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    region: String,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    fips: bool,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    create: Option<CredentialsFile>,
    attach: CredentialsFile,
    #[serde(default)]
    single_credential: bool,
    #[serde(default)]
    timeout_s: Option<u8>,
}

impl TryFrom<Written> for AwsKmsService {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        two_credentials(
            written.create.as_ref(),
            &written.attach,
            written.single_credential,
        )?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let region = &written.region;
        if !(1..=32).contains(&region.len()) || !region.chars().all(allowed) {
            return Err("`region` is one of AWS, as eu-west-1");
        }
        let endpoint = match &written.endpoint {
            Some(_) if written.fips => {
                return Err(
                    "an `endpoint` says by itself whether it is a FIPS one: take out fips = true",
                );
            }
            Some(text) => {
                let usual = if text.starts_with("http://") { 80 } else { 443 };
                let endpoint = Address::parse(text, usual)?;
                if !endpoint.secure && !endpoint.is_here() {
                    return Err(
                        "an `endpoint` with http:// carries keys in the clear: it is for this machine only",
                    );
                }
                if endpoint.secure && written.ca_file.is_none() {
                    return Err(NO_AUTHORITY);
                }
                Some(endpoint)
            }
            None if written.ca_file.is_none() => return Err(NO_AUTHORITY),
            None => None,
        };
        Ok(Self {
            endpoint,
            fips: written.fips,
            ca_file: written.ca_file,
            create: written.create,
            attach: written.attach,
            single_credential: written.single_credential,
            timeout_s: timeout_s(written.timeout_s)?,
            region: written.region,
        })
    }
}

const NO_AUTHORITY: &str = "`ca-file` is missing: name the PEM file of the authorities that may speak for AWS (that of this system is \
                            /etc/ssl/certs/ca-certificates.crt)";

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<AwsKmsService, String> {
        serde_json::from_str(&format!("{{{text}}}")).map_err(|error| error.to_string())
    }

    const SOUND: &str = r#""region":"eu-west-1","ca-file":"/ca","create":{"file":"/c"},"attach":{"file":"/a","profile":"p"}"#;

    #[test]
    fn what_is_written_comes_back_the_same() {
        let fips = format!(r#"{SOUND},"fips":true,"timeout-s":9"#);
        let vpc =
            format!(r#"{SOUND},"endpoint":"https://vpce-1.kms.eu-west-1.vpce.amazonaws.com""#);
        for text in [SOUND, &fips, &vpc] {
            let understood = service(text).unwrap();
            assert_eq!(understood.attach.profile, "p");
            assert_eq!(
                understood.create.as_ref().map(|c| c.profile.as_str()),
                Some("default")
            );
            let again = serde_json::to_string(&understood).unwrap();
            assert_eq!(serde_json::from_str(&again).ok(), Some(understood));
        }
        assert_eq!(service(&vpc).unwrap().endpoint.map(|at| at.port), Some(443));
    }

    #[test]
    fn a_service_that_could_not_be_used_as_it_says_is_refused_by_name() {
        let create = r#""create":{"file":"/c"}"#;
        let same = r#""create":{"file":"/a","profile":"p"}"#;
        for (text, named) in [
            (
                SOUND.replace(create, r#""fips":true"#),
                "`create` is missing",
            ),
            (
                format!(r#"{SOUND},"single-credential":true"#),
                "single-credential",
            ),
            (SOUND.replace(create, same), "the same credential"),
            (SOUND.replace(r#""ca-file":"/ca","#, ""), "ca-file"),
            (SOUND.replace("eu-west-1", "eu west"), "region"),
            (SOUND.replace("eu-west-1", ""), "region"),
            (
                format!(r#"{SOUND},"fips":true,"endpoint":"https://a""#),
                "fips",
            ),
            (format!(r#"{SOUND},"endpoint":"http://a""#), "in the clear"),
            (format!(r#"{SOUND},"endpoint":"https://a/b""#), "HOST:PORT"),
            (format!(r#"{SOUND},"timeout-s":61"#), "timeout-s"),
            (
                format!(r#"{SOUND},"secret-access-key":"s""#),
                "secret-access-key",
            ),
        ] {
            let error = service(&text).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
