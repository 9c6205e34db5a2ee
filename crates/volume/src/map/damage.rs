//! Pages of the map that can't be trusted: the host is told of each once in an opening, so that a client that asks again and
//! again does not fill a log, and before the first error is answered.
//!
//! Never: more memory than [`RANGES_MAX`] ranges, however many pages somebody damages.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::VolumeError;
use crate::host::{Damage, Host};
use crate::ids::LayerId;

/// Ranges that the host is told of, in one opening.
const RANGES_MAX: usize = 1024;

/// What one opening has told.
pub(super) struct Damages {
    layer: LayerId,
    host: Arc<dyn Host>,
    told: Mutex<BTreeSet<(u64, u64)>>,
}

impl Damages {
    pub(super) fn new(layer: LayerId, host: Arc<dyn Host>) -> Self {
        Self {
            layer,
            host,
            told: Mutex::default(),
        }
    }

    /// The same result; if it is damage that was not told yet, it is on record by then.
    pub(super) async fn on_record<T>(
        &self,
        result: Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        if let Err(VolumeError::DamagedMap { offset, end, cause }) = &result
            && let Some(last) = self.is_new(*offset, *end)
        {
            let damage = Damage {
                layer: self.layer,
                offset: *offset,
                end: *end,
                cause,
                last,
            };
            self.host.record_damage(damage).await;
        }
        result
    }

    /// Whether it is to be told, and then whether it is the last that is.
    fn is_new(&self, offset: u64, end: u64) -> Option<bool> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = told.len() < RANGES_MAX && told.insert((offset, end));
        new.then_some(told.len() == RANGES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Loss;
    use crate::host::Task;
    use sealvol_crypto::Commitment;

    #[derive(Default)]
    struct Log(Mutex<Vec<Damage>>);

    impl Host for Log {
        fn spawn(&self, _: Task<()>) {
            unreachable!("damage needs no task of its own")
        }

        fn record_loss(&self, _: Loss) -> Task<()> {
            unreachable!("damage is no loss")
        }

        fn record_damage(&self, damage: Damage) -> Task<()> {
            self.0.lock().unwrap().push(damage);
            Box::pin(async {})
        }

        fn pin(&self, _: u64, _: u64, _: Commitment) -> Task<Result<(), VolumeError>> {
            unreachable!("damage pins nothing")
        }
    }

    fn damaged(offset: u64) -> Result<(), VolumeError> {
        Err(VolumeError::DamagedMap {
            offset,
            end: offset + 1,
            cause: "torn",
        })
    }

    #[test]
    fn each_range_is_told_once_and_not_without_bound() {
        let log = Arc::new(Log::default());
        let damages = Damages::new(LayerId([7; 16]), Arc::clone(&log) as Arc<dyn Host>);
        let told = |result| {
            let result: Result<(), _> = futures_executor::block_on(damages.on_record(result));
            assert!(result.is_err(), "the error goes on");
            log.0.lock().unwrap().len()
        };
        assert_eq!(told(damaged(0)), 1);
        assert_eq!(told(damaged(0)), 1, "the same once more");
        assert_eq!(told(Err(VolumeError::NoSpace)), 1, "no damage");
        for offset in 1..RANGES_MAX as u64 + 10 {
            told(damaged(offset));
        }
        let told = log.0.lock().unwrap();
        assert_eq!(told.len(), RANGES_MAX);
        let last: Vec<_> = told.iter().map(|damage| damage.last).collect();
        assert!(last[RANGES_MAX - 1] && !last[..RANGES_MAX - 1].contains(&true));
    }
}
