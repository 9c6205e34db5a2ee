//! PINs that a token refused: not given again before their file was changed, since a token locks after a few wrong ones.
//!
//! What always holds: as long as nobody has seen the PIN of a provider accepted, one child at a time gives it; what was refused
//! is refused here from then on, without a child, until the file is another one or was written again. The daemon reads
//! no PIN: it knows the file by what the file system says of it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sealvol_control::keychild::{Answer, FailureClass, KeyFailure, Provider, Service};
use tokio::sync::{Mutex, MutexGuard};

/// What tokens call it when a PIN is wrong; given again it would be counted again.
const WRONG: [&str; 3] = ["CKR_PIN_INCORRECT", "CKR_PIN_INVALID", "CKR_PIN_LEN_RANGE"];

/// What is known of the PIN of each provider that has one.
#[derive(Debug)]
pub(super) struct Pins {
    known: BTreeMap<String, Mutex<Option<Known>>>,
}

#[derive(Debug)]
struct Known {
    file: Stamp,
    refused: Option<KeyFailure>,
}

/// A file as it was at a moment: device, inode, length, and when it was written, to the nanosecond.
type Stamp = (u64, u64, u64, i64, i64);

/// Leave to give a PIN that is not known yet. Whoever else wants to waits for its end.
pub(super) struct Turn<'a> {
    known: MutexGuard<'a, Option<Known>>,
    file: Option<Stamp>,
    /// Whoever is asked logs in itself, and does not ask another one for its master key.
    direct: bool,
}

impl Pins {
    pub(super) fn new(providers: &BTreeMap<String, Provider>) -> Self {
        let with_pin = providers.values().filter_map(pin);
        let known = with_pin.map(|(name, _)| (name.to_owned(), Mutex::default()));
        Self {
            known: known.collect(),
        }
    }

    /// Leave to ask `provider`: none is needed where its PIN was accepted as it is now, or it has none.
    ///
    /// # Errors
    /// The refusal of the PIN as it is now.
    pub(super) async fn turn(&self, provider: &Provider) -> Result<Option<Turn<'_>>, KeyFailure> {
        let Some((name, path)) = pin(provider) else {
            return Ok(None);
        };
        let Some(known) = self.known.get(name) else {
            return Ok(None);
        };
        let known = known.lock().await;
        let file = stamp(path);
        match known.as_ref().filter(|known| Some(known.file) == file) {
            Some(Known {
                refused: Some(failure),
                ..
            }) => Err(KeyFailure {
                message: format!("{}; that PIN is not given again", failure.message),
                ..failure.clone()
            }),
            Some(Known { refused: None, .. }) => Ok(None),
            None => Ok(Some(Turn {
                known,
                file,
                direct: name == provider.name,
            })),
        }
    }
}

impl Turn<'_> {
    /// Notes what came of it.
    pub(super) fn end(mut self, answer: &Answer) {
        let failures = || {
            answer
                .results
                .iter()
                .filter_map(|result| result.as_ref().err())
        };
        let refused = failures().find(|failure| WRONG.contains(&failure.provider_error.as_str()));
        // What is said of a key was said behind the login; by a service that has its master key opened first, perhaps before it.
        let of_key = |failure: &KeyFailure| {
            self.direct
                && matches!(
                    failure.class,
                    FailureClass::GoneForEver
                        | FailureClass::KeyUnusable
                        | FailureClass::WrongKeyOrTamper
                )
        };
        let accepted = answer.results.iter().any(Result::is_ok) || failures().any(of_key);
        if let Some(file) = self.file
            && (accepted || refused.is_some())
        {
            let refused = refused.cloned();
            *self.known = Some(Known { file, refused });
        }
    }
}

/// The file with the PIN that a call to `provider` gives, and whose PIN it is: a token's that wraps a master key is the same
/// whichever way it is asked.
fn pin(provider: &Provider) -> Option<(&str, &Path)> {
    match &provider.service {
        Service::Pkcs11(service) => Some((&provider.name, &service.pin_file)),
        Service::Local(service) => pin(service.asks()?),
        Service::AwsKms(_) | Service::AzureKv(_) | Service::Tpm2(_) | Service::Transit(_) => None,
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = path.metadata().ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use sealvol_control::keychild::{Confinement, Done, Landlock};

    use super::*;

    fn answer(error: Option<&str>) -> Answer {
        let result = match error {
            None => Ok(Done::ListKeys(Vec::new())),
            Some(name) => Err(KeyFailure {
                class: FailureClass::NotPermitted,
                provider_error: name.to_owned(),
                message: "token of provider hsm: refused".to_owned(),
                next_step: "put the right one there".to_owned(),
                retry_after_s: None,
            }),
        };
        Answer {
            results: vec![result],
            keys: UnixStream::pair().expect("a pair").0,
            confinement: Confinement {
                landlock: Landlock::Full,
                protection: None,
            },
            table: None,
        }
    }

    fn provider(pin_file: &Path) -> Provider {
        let service = serde_json::json!({
            "type": "pkcs11", "module": "/m.so", "token": "pkcs11:token=t",
            "pin-file": pin_file, "single-credential": true,
        });
        Provider {
            name: "hsm".to_owned(),
            service: serde_json::from_value(service).expect("a provider"),
        }
    }

    #[tokio::test]
    async fn a_pin_that_was_refused_is_given_again_only_when_its_file_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pin");
        std::fs::write(&file, "1").expect("written");
        let provider = provider(&file);
        let pins = Pins::new(&[("hsm".to_owned(), provider.clone())].into());

        // What says nothing of the PIN leaves the turn to the next.
        for silent in ["TokenNotPresent", "CKR_DEVICE_ERROR"] {
            let turn = pins
                .turn(&provider)
                .await
                .expect("not refused")
                .expect("a turn");
            turn.end(&answer(Some(silent)));
        }
        let turn = pins
            .turn(&provider)
            .await
            .expect("not refused")
            .expect("a turn");
        turn.end(&answer(Some("CKR_PIN_INCORRECT")));
        for _ in 0..3 {
            let refused = pins.turn(&provider).await.err().expect("refused");
            assert_eq!(refused.provider_error, "CKR_PIN_INCORRECT");
            assert!(refused.message.ends_with("not given again"), "{refused}");
        }
        std::fs::write(&file, "12").expect("written");
        let turn = pins
            .turn(&provider)
            .await
            .expect("another file")
            .expect("a turn");
        turn.end(&answer(None));
        for _ in 0..3 {
            let free = pins.turn(&provider).await.expect("not refused");
            assert!(free.is_none(), "an accepted one needs no turn");
        }
        std::fs::write(&file, "123").expect("written");
        assert!(pins.turn(&provider).await.expect("not refused").is_some());
    }

    #[tokio::test]
    async fn a_pin_that_was_refused_is_not_given_by_way_of_a_master_key_either() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pin");
        std::fs::write(&file, "1").expect("written");
        let hsm = provider(&file);
        let service = serde_json::json!({
            "type": "local", "database": "/d",
            "master-key": { "wrapped": { "by": "hsm:master", "file": "/w", "service": hsm } },
        });
        let local = Provider {
            name: "local".to_owned(),
            service: serde_json::from_value(service).expect("a provider"),
        };
        let both = [hsm, local].map(|provider| (provider.name.clone(), provider));
        let pins = Pins::new(&both.clone().into());
        let [(_, hsm), (_, local)] = both;
        // That its own files are not there says nothing of the PIN.
        let turn = pins.turn(&local).await.expect("not refused");
        let mut silent = answer(Some("MasterKeyUnavailable"));
        for failure in silent
            .results
            .iter_mut()
            .filter_map(|result| result.as_mut().err())
        {
            failure.class = FailureClass::KeyUnusable;
        }
        turn.expect("a turn").end(&silent);
        let turn = pins.turn(&local).await.expect("not refused");
        turn.expect("a turn")
            .end(&answer(Some("CKR_PIN_INCORRECT")));
        assert!(pins.turn(&hsm).await.is_err());
        assert!(pins.turn(&local).await.is_err());
        std::fs::write(&file, "12").expect("written");
        let turn = pins.turn(&local).await.expect("another file");
        turn.expect("a turn").end(&answer(None));
        assert!(pins.turn(&hsm).await.expect("not refused").is_none());
    }

    #[tokio::test]
    async fn of_those_that_would_give_an_unknown_pin_one_does_and_the_others_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pin");
        std::fs::write(&file, "1").expect("written");
        let provider = provider(&file);
        let pins = Pins::new(&[("hsm".to_owned(), provider.clone())].into());
        let first = pins
            .turn(&provider)
            .await
            .expect("not refused")
            .expect("a turn");
        let second = pins.turn(&provider);
        tokio::pin!(second);
        let waits = tokio::select! { biased; _ = &mut second => false, () = async {} => true };
        assert!(waits, "the second has to wait");
        first.end(&answer(Some("CKR_PIN_INCORRECT")));
        assert!(second.await.is_err(), "and learns what the first was told");
    }
}
