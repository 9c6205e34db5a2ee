//! A key service under test, and what its operator can do to it. What every provider promises is in `conformance.rs`.

use sealvol_control::keychild::{
    Answer, Batch, Call, CallResult, Context, Done, FailureClass, KeyFailure, Provider, Right,
    Wrapped,
};
use sealvol_crypto::{Commitment, VolumeKey};

use crate::place::{Place, child, generate, memory, unwrap};

/// A provider with the keys `default` and `other`, and nothing else.
pub(crate) trait Subject {
    /// As it is configured.
    fn provider(&self) -> Provider;
    /// Takes a key out of use.
    fn disable(&self, key: &str);
    /// Brings it back.
    fn enable(&self, key: &str);
    /// Takes it away for ever.
    fn destroy(&self, key: &str);
}

impl Subject for Place {
    fn provider(&self) -> Provider {
        self.batch(Right::Attach, Vec::new()).provider
    }

    fn disable(&self, key: &str) {
        self.sql(&format!(
            "UPDATE keys SET state = 'disabled' WHERE name = '{key}'"
        ));
    }

    fn enable(&self, key: &str) {
        self.sql(&format!(
            "UPDATE keys SET state = 'enabled' WHERE name = '{key}'"
        ));
    }

    fn destroy(&self, key: &str) {
        let id = format!("(SELECT id FROM keys WHERE name = '{key}')");
        self.sql(&format!("DELETE FROM versions WHERE key_id = {id}"));
        self.sql(&format!("DELETE FROM keys WHERE name = '{key}'"));
    }
}

/// Carries out a batch by a child of its own.
pub(crate) async fn answer(subject: &impl Subject, right: Right, calls: Vec<Call>) -> Answer {
    let batch = Batch {
        right,
        provider: subject.provider(),
        require_secretmem: false,
        calls,
    };
    child().call(&batch).await.expect("the child replies")
}

/// One call.
pub(crate) async fn call(subject: &impl Subject, right: Right, call: Call) -> CallResult {
    answer(subject, right, vec![call]).await.results.remove(0)
}

/// A new wrapped key.
pub(crate) async fn wrapped(subject: &impl Subject, key: &str, context: &Context) -> Wrapped {
    match call(subject, Right::Create, generate(key, context)).await {
        Ok(Done::Generate(wrapped)) => wrapped,
        other => panic!("generate: {other:?}"),
    }
}

/// The volume key in a wrapped one, by its commitment.
pub(crate) async fn opened(
    subject: &impl Subject,
    key: &str,
    blob: &[u8],
    context: &Context,
) -> Result<Commitment, KeyFailure> {
    let mut answer = answer(subject, Right::Attach, vec![unwrap(key, blob, context)]).await;
    answer.results.remove(0)?;
    let key = VolumeKey::read_from(&memory(), &mut answer.keys).expect("64 bytes follow");
    Ok(key.commitment())
}

/// The class of a refusal, which must say what to do.
#[track_caller]
pub(crate) fn class<T: std::fmt::Debug>(result: Result<T, KeyFailure>) -> FailureClass {
    let failure = result.expect_err("it is refused");
    let whole = [
        &failure.message,
        &failure.provider_error,
        &failure.next_step,
    ];
    assert!(whole.iter().all(|part| !part.is_empty()), "{failure:?}");
    failure.class
}
