//! An access key from a shared-credentials file, read by the SDK's own parser.
//!
//! What always holds: only the file that is configured counts, no environment variable and no other file; what a profile
//! would have to ask elsewhere (a role, a process, single sign-on) is refused by name, for the child may not go there.

use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_runtime::env_config::section::EnvConfigSections;
use aws_runtime::env_config::source;
use aws_sdk_kms::config::Credentials;
use aws_types::os_shim_internal::{Env, Fs};
use sealvol_control::keychild::CredentialsFile;

use crate::Refusal;
use crate::credential::{self, unusable};

/// What a profile says that gets its access key from elsewhere.
const ELSEWHERE: [&str; 6] = [
    "credential_process",
    "credential_source",
    "role_arn",
    "source_profile",
    "sso_session",
    "web_identity_token_file",
];

/// The access key of a profile.
pub(super) async fn read(from: &CredentialsFile) -> Result<Credentials, Refusal> {
    let CredentialsFile { file, profile } = from;
    let text = credential::text(file)?;
    let files = EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Credentials, text.as_str())
        .build();
    // Neither this process's environment nor its files.
    let source = source::load(&Env::from_slice(&[]), &Fs::from_slice(&[]), &files).await;
    // What these errors say may quote the file.
    let unreadable = || unusable(file, "is not a shared-credentials file of AWS");
    let source = source.map_err(|_| unreadable())?;
    let sections = EnvConfigSections::parse(source).map_err(|_| unreadable())?;
    let missing = |what: &str| unusable(file, &format!("has no {what}"));
    let found = sections
        .get_profile(profile)
        .ok_or_else(|| missing(&format!("profile {profile}")))?;
    if let Some(word) = ELSEWHERE.iter().find(|word| found.get(word).is_some()) {
        let reason = format!(
            "its profile {profile} has {word}, but only access keys that stand in the file are used: let what renews them \
             write them there"
        );
        return Err(unusable(file, &reason));
    }
    let value = |word: &str| {
        let value = found.get(word).filter(|value| !value.is_empty());
        value.map(str::to_owned)
    };
    let must =
        |word: &str| value(word).ok_or_else(|| missing(&format!("{word} in profile {profile}")));
    Ok(Credentials::new(
        must("aws_access_key_id")?,
        must("aws_secret_access_key")?,
        value("aws_session_token"),
        None,
        "sealvol",
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read_text(text: &str, profile: &str) -> Result<Credentials, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("credentials");
        std::fs::write(&file, text).expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&file, private).expect("private");
        let from = CredentialsFile {
            file,
            profile: profile.to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let read = runtime.expect("a runtime").block_on(read(&from));
        read.map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_profile_that_is_named_is_read() {
        let text = "# two of them\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key = one\n\
                    [team]\naws_access_key_id=AKIA2\naws_secret_access_key=two\naws_session_token = three\n";
        let of = |profile| {
            let read = read_text(text, profile).expect("read");
            let text = |text: &str| text.to_owned();
            (
                text(read.access_key_id()),
                text(read.secret_access_key()),
                read.session_token().map(text),
            )
        };
        assert_eq!(of("default"), ("AKIA1".into(), "one".into(), None));
        assert_eq!(
            of("team"),
            ("AKIA2".into(), "two".into(), Some("three".into()))
        );
        let refused = read_text(text, "other").expect_err("there is none");
        assert!(refused.contains("no profile other"), "{refused}");
    }

    #[test]
    fn what_is_no_access_key_is_refused_by_name_and_never_repeated() {
        for (text, named) in [
            (
                "[default]\naws_access_key_id = AKIA1\n",
                "aws_secret_access_key",
            ),
            (
                "[default]\naws_secret_access_key = hidden\n",
                "aws_access_key_id",
            ),
            (
                "[default]\naws_access_key_id =\naws_secret_access_key = hidden\n",
                "aws_access_key_id",
            ),
            ("[default\nhidden\n", "not a shared-credentials file"),
            ("hidden\n", "not a shared-credentials file"),
            (
                "[default]\nrole_arn = hidden\nsource_profile = hidden\n",
                "role_arn",
            ),
            (
                "[default]\ncredential_process = hidden\n",
                "credential_process",
            ),
        ] {
            let refused = read_text(text, "default").expect_err(text);
            assert!(
                refused.contains(named) && !refused.contains("hidden"),
                "{text}: {refused}"
            );
        }
    }
}
