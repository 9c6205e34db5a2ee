//! A key service under test, and what its operator can do to it. What every provider promises is in `conformance.rs`.

use std::io;
use std::thread;

use sealvol_control::keychild::{
    Answer, Batch, Call, CallResult, Context, Done, FailureClass, KeyChange, KeyFailure, Principal,
    Provider, Right, Service, Wrapped,
};
use sealvol_crypto::{Commitment, VolumeKey};
use sealvol_kms::KeyService as _;
use sealvol_kms::local::clock::{Clock, DAY, Reading, SystemClock};
use sealvol_kms::local::{Local, Opening};

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
    /// Whether it knows when a key was made.
    fn tells_age(&self) -> bool {
        true
    }
    /// Whether it can refuse a volume for ever.
    fn keeps_tombstones(&self) -> bool {
        false
    }
}

impl Subject for Place {
    fn provider(&self) -> Provider {
        self.batch(Right::Attach, Vec::new()).provider
    }

    fn disable(&self, key: &str) {
        lead(self, key, KeyChange::Disable, 0);
    }

    fn enable(&self, key: &str) {
        lead(self, key, KeyChange::Enable, 0);
    }

    fn destroy(&self, key: &str) {
        lead(self, key, KeyChange::ScheduleDeletion { days: 7 }, 0);
        lead(self, key, KeyChange::Destroy, 7);
    }

    fn keeps_tombstones(&self) -> bool {
        true
    }
}

/// The host's clocks, some days on.
struct Later(u64);

impl Clock for Later {
    fn read(&self) -> io::Result<Reading> {
        let mut reading = SystemClock.read()?;
        reading.running += self.0 * DAY * 1000;
        reading.wall += self.0 * DAY * 1000;
        Ok(reading)
    }
}

/// Changes a key some days from now: in this process, since a child has the host's clocks and no others. In a thread of its
/// own, since the caller may be in a runtime.
fn lead(place: &Place, key: &str, change: KeyChange, days: u64) {
    let Service::Local(service) = place.provider().service else {
        panic!("another kind of key service")
    };
    let change = || {
        let opening = Opening {
            name: "local",
            service: &service,
            create: false,
            passphrase: None,
            data_keys: None,
            sink: None,
            relied_on: None,
            accept_table: false,
            principal: Principal::Daemon,
            right: Right::Administer,
            clock: Box::new(Later(days)),
        };
        let local = Local::open(opening, &memory()).expect("opened");
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let changed = runtime
            .expect("a runtime")
            .block_on(local.change_key(key, &change));
        changed.expect("changed");
    };
    thread::scope(|scope| scope.spawn(change).join().expect("changed"));
}

/// Carries out a batch by a child of its own.
pub(crate) async fn answer(subject: &impl Subject, right: Right, calls: Vec<Call>) -> Answer {
    let batch = Batch {
        right,
        principal: Principal::Daemon,
        provider: subject.provider(),
        require_secretmem: false,
        calls,
        relied_on: None,
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
