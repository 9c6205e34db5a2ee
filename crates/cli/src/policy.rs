//! `key policy`: who may use a key, and for what.

use sealvol_control::api;
use sealvol_control::client::Client;

use crate::args::Policy;
use crate::run::{CommandError, Printer};

pub(crate) async fn run(
    client: &Client,
    print: &Printer,
    verb: Policy,
) -> Result<(), CommandError> {
    match verb {
        Policy::Show { key } => print.answer(&client.key_policy(&key).await?, show),
        Policy::Set {
            key,
            file,
            bypass_lockout_check,
            ..
        } => {
            let read = |path| {
                std::fs::read_to_string(&path).map_err(|source| CommandError::File { path, source })
            };
            let request = api::SetKeyPolicy {
                policy: file.map(read).transpose()?,
                bypass_lockout_check,
            };
            print.answer(&client.set_key_policy(&key, &request).await?, set)
        }
    }
}

fn show(policy: &api::KeyPolicy) -> String {
    match &policy.policy {
        Some(policy) => format!("{policy:#}\n"),
        None => "null\n".to_owned(),
    }
}

fn set(policy: &api::KeyPolicy) -> String {
    let key = &policy.key;
    if policy.policy.is_some() {
        format!("Key {key} is used by whom its policy allows it, and by nobody else\n")
    } else {
        format!("Key {key} has no policy: the daemon's configuration says who may use it\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_shown_as_it_can_be_set_again() {
        let policy = api::KeyPolicy {
            key: "local:own".into(),
            policy: Some(serde_json::json!({"version": 1, "statements": []})),
        };
        assert_eq!(
            show(&policy),
            "{\n  \"statements\": [],\n  \"version\": 1\n}\n"
        );
        assert_eq!(
            set(&policy),
            "Key local:own is used by whom its policy allows it, and by nobody else\n"
        );
        let none = api::KeyPolicy {
            policy: None,
            ..policy
        };
        assert_eq!(show(&none), "null\n");
        assert_eq!(
            set(&none),
            "Key local:own has no policy: the daemon's configuration says who may use it\n"
        );
    }
}
