//! How keys are called in AWS KMS.
//!
//! ```text
//! volumes, alias/volumes                              an alias in the account of the credential
//! 1234abcd-12ab-34cd-56ef-1234567890ab, mrk-…         the id of a key in that account
//! arn:aws:kms:REGION:ACCOUNT:key/ID, …:alias/NAME     a key anywhere in the region
//! ```
//! An alias may come to mean another key; what is stored with a wrapped key is the ARN of the key that wrapped it.

/// Why a name is none.
const UNKNOWN: &str = "is called by its alias, its id, or its ARN in the configured region";

/// The name as the service takes it.
pub(super) fn asked(key: &str, region: &str) -> Result<String, &'static str> {
    if key.starts_with("arn:") {
        let (of, what) = arn(key).ok_or(UNKNOWN)?;
        if of != region {
            return Err("is in another region than the one of this provider");
        }
        let name = what
            .strip_prefix("alias/")
            .or_else(|| what.strip_prefix("key/"));
        return match name {
            Some(name) if is_plain(name) => Ok(key.to_owned()),
            _ => Err(UNKNOWN),
        };
    }
    let alias = key.strip_prefix("alias/");
    match alias.unwrap_or(key) {
        name if !is_plain(name) => Err(UNKNOWN),
        _ if alias.is_some() || is_id(key) => Ok(key.to_owned()),
        name => Ok(format!("alias/{name}")),
    }
}

/// Whether the key that answered can be the one that was asked for: an alias may be any.
pub(super) fn fits(asked: &str, answered: &str) -> bool {
    match asked.strip_prefix("alias/") {
        Some(_) => true,
        None if asked.contains(":alias/") => true,
        None if asked.starts_with("arn:") => asked == answered,
        None => arn(answered).is_some_and(|(_, what)| what.strip_prefix("key/") == Some(asked)),
    }
}

/// Whether this is the ARN of a key, as the service answers.
pub(super) fn is_key(answered: &str, region: &str) -> bool {
    arn(answered).is_some_and(|(of, what)| of == region && what.starts_with("key/"))
}

/// Region and resource: `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`.
fn arn(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.splitn(6, ':');
    let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, what) = (parts.next()?, parts.next()?, parts.next()?);
    let sound = arn == "arn"
        && partition.starts_with("aws")
        && service == "kms"
        && account.bytes().all(|c| c.is_ascii_digit());
    sound.then_some((region, what))
}

/// A key's id: a UUID, or that of a multi-Region key.
fn is_id(name: &str) -> bool {
    let hexadecimal = |digits: &str| digits.bytes().all(|c| c.is_ascii_hexdigit());
    match name.strip_prefix("mrk-") {
        Some(digits) => digits.len() == 32 && hexadecimal(digits),
        None => {
            let parts: Vec<_> = name.split('-').collect();
            let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
            lengths == [8, 4, 4, 4, 12] && parts.iter().all(|part| hexadecimal(part))
        }
    }
}

fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-');
    (1..=250).contains(&name.len()) && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn a_key_is_asked_for_by_what_the_service_knows() {
        let mrk = format!("mrk-{}", "0".repeat(32));
        let alias = "arn:aws-cn:kms:eu-west-1:111122223333:alias/a";
        for (key, meant) in [
            ("volumes", "alias/volumes"),
            ("alias/volumes", "alias/volumes"),
            ("team/volumes_1", "alias/team/volumes_1"),
            (ID, ID),
            (&mrk, &mrk),
            (ARN, ARN),
            (alias, alias),
        ] {
            assert_eq!(asked(key, "eu-west-1").as_deref(), Ok(meant));
        }
        for key in [
            "",
            "alias/",
            "a b",
            "a:b",
            "a.b",
            "arn:aws:kms:eu-west-1:111122223333:key/",
            "arn:aws:s3:eu-west-1:111122223333:key/a",
            "arn:aws:kms:eu-west-1:account:key/a",
            "arn:aws:kms:eu-west-1:111122223333:grant/a",
            "arn:aws:kms",
            &"a".repeat(251),
        ] {
            assert!(asked(key, "eu-west-1").is_err(), "{key}");
        }
        let elsewhere = asked(ARN, "us-east-1").expect_err("it is in another region");
        assert!(elsewhere.contains("region"), "{elsewhere}");
    }

    #[test]
    fn the_key_that_answers_is_the_one_that_was_asked() {
        let other = ARN.replace("1234abcd", "00000000");
        assert!(fits(ARN, ARN) && fits(ID, ARN) && fits("alias/a", ARN));
        assert!(fits("arn:aws:kms:eu-west-1:111122223333:alias/a", ARN));
        assert!(!fits(ARN, &other) && !fits(ID, &other) && !fits(ARN, ID));
        assert!(is_key(ARN, "eu-west-1") && !is_key(ARN, "us-east-1") && !is_key(ID, "eu-west-1"));
    }
}
