//! The host of a volume under test: it remembers what the daemon's registry would.

use std::sync::{Arc, Mutex};

use sealvol_crypto::Commitment;
use sealvol_store::fault::FaultDisk;
use sealvol_volume::{Host, LayerParams, Loss, Pins, Task, VolumeError};

use super::executor::{Spawner, yields};

/// Pins and losses, in memory. It is on the machine that loses power: what it is told after that is lost.
pub(crate) struct Registry {
    spawner: Spawner,
    disk: Option<FaultDisk>,
    state: Mutex<State>,
}

struct State {
    pins: Pins,
    losses: Vec<Loss>,
    /// Polls that recording a loss takes.
    slow: u64,
    fails: bool,
}

impl Registry {
    pub(crate) fn new(spawner: Spawner, disk: Option<FaultDisk>, params: LayerParams) -> Arc<Self> {
        let pins = Pins {
            params,
            commitment: None,
            generation: 1,
            bound: false,
        };
        Arc::new(Self {
            spawner,
            disk,
            state: Mutex::new(State {
                pins,
                losses: Vec::new(),
                slow: 0,
                fails: false,
            }),
        })
    }

    pub(crate) fn pins(&self) -> Pins {
        self.state.lock().unwrap().pins.clone()
    }

    pub(crate) fn change_pins(&self, change: impl FnOnce(&mut Pins)) {
        change(&mut self.state.lock().unwrap().pins);
    }

    pub(crate) fn losses(&self) -> Vec<Loss> {
        self.state.lock().unwrap().losses.clone()
    }

    /// Makes recording a loss take so many polls.
    pub(crate) fn record_slowly(&self, polls: u64) {
        self.state.lock().unwrap().slow = polls;
    }

    /// Makes pinning fail from now on.
    pub(crate) fn fail_pins(&self, fails: bool) {
        self.state.lock().unwrap().fails = fails;
    }

    fn is_powered(&self) -> bool {
        self.disk.as_ref().is_none_or(FaultDisk::is_powered)
    }
}

/// The registry as the host that a volume is given.
pub(crate) struct RegistryHost(pub(crate) Arc<Registry>);

impl Host for RegistryHost {
    fn spawn(&self, task: Task<()>) {
        self.0.spawner.spawn(task);
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        let registry = Arc::clone(&self.0);
        Box::pin(async move {
            let slow = registry.state.lock().unwrap().slow;
            yields(slow).await;
            if registry.is_powered() {
                registry.state.lock().unwrap().losses.push(loss);
            }
        })
    }

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        let registry = Arc::clone(&self.0);
        Box::pin(async move {
            let powered = registry.is_powered();
            let mut state = registry.state.lock().unwrap();
            if state.fails || !powered {
                return Err(VolumeError::Registry("the registry is read-only".into()));
            }
            let pins = &mut state.pins;
            assert!(generation >= pins.generation, "a generation went back");
            pins.generation = generation;
            pins.params.size = size;
            pins.commitment = Some(commitment);
            pins.bound = true;
            Ok(())
        })
    }
}
