//! The host of a volume under test: it remembers what the daemon's registry and its runtime directory would.

use std::sync::{Arc, Mutex};

use sealvol_crypto::Commitment;
use sealvol_store::fault::FaultDisk;
use sealvol_volume::{Change, Host, LayerId, LayerParams, Loss, MapCache, Pins, Task, VolumeError};

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
    /// Bytes of the map's cache.
    cache: usize,
    /// What the runtime directory holds: it survives the process, and goes with the power.
    working: Option<Working>,
    /// Whether the layer was opened for writing since the power came: then there must be a working state, if it is not
    /// closed.
    begun: bool,
    watch: Watch,
    /// The layer was made its volume's top.
    is_head: bool,
    /// Whether making it that fails.
    refuses_head: bool,
}

/// What a test does in the middle of a call that the volume makes.
#[derive(Clone, Default)]
struct Watch {
    remembered: Option<Arc<dyn Fn(Change) + Send + Sync>>,
    commit_begins: Option<Arc<dyn Fn() + Send + Sync>>,
}

struct Working {
    session: u64,
    changes: Vec<Change>,
    /// How many of them the commit under way covers.
    committing: usize,
}

impl Registry {
    /// How many changes can be remembered.
    pub(crate) const ROOM: u64 = 20;

    pub(crate) fn new(spawner: Spawner, disk: Option<FaultDisk>, params: LayerParams) -> Arc<Self> {
        let pins = Pins {
            params,
            commitment: None,
            generation: 1,
            bound: false,
            former_parents: Vec::new(),
        };
        Arc::new(Self {
            spawner,
            disk,
            state: Mutex::new(State {
                pins,
                losses: Vec::new(),
                slow: 0,
                fails: false,
                cache: 16 << 20,
                working: None,
                begun: false,
                watch: Watch::default(),
                is_head: false,
                refuses_head: false,
            }),
        })
    }

    /// Whether the layer is recorded as its volume's top.
    pub(crate) fn is_head(&self) -> bool {
        self.state.lock().unwrap().is_head
    }

    /// Makes switching the head to the layer fail from now on.
    pub(crate) fn refuse_head(&self, refuses: bool) {
        self.state.lock().unwrap().refuses_head = refuses;
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

    /// Bounds the map's cache of volumes that are opened from now on.
    pub(crate) fn bound_cache(&self, bytes: usize) {
        self.state.lock().unwrap().cache = bytes;
    }

    /// The power is gone, and with it what the runtime directory held.
    pub(crate) fn forget_working_state(&self) {
        let mut state = self.state.lock().unwrap();
        (state.working, state.begun) = (None, false);
    }

    /// Calls this with each change before it is remembered.
    pub(crate) fn when_remembered(&self, watch: impl Fn(Change) + Send + Sync + 'static) {
        self.state.lock().unwrap().watch.remembered = Some(Arc::new(watch));
    }

    /// Calls this when a commit begins, before what is remembered by then is counted.
    pub(crate) fn when_commit_begins(&self, watch: impl Fn() + Send + Sync + 'static) {
        self.state.lock().unwrap().watch.commit_begins = Some(Arc::new(watch));
    }

    /// Not while the state is locked: whoever watches may call the volume.
    fn watch(&self) -> Watch {
        self.state.lock().unwrap().watch.clone()
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

    fn map_cache(&self) -> Arc<MapCache> {
        MapCache::new(self.0.state.lock().unwrap().cache)
    }

    fn head_switched(&self, _sealed: LayerId) -> Task<Result<(), VolumeError>> {
        let registry = Arc::clone(&self.0);
        Box::pin(async move {
            let slow = registry.state.lock().unwrap().slow;
            yields(slow).await;
            let powered = registry.is_powered();
            let mut state = registry.state.lock().unwrap();
            if state.refuses_head || !powered {
                return Err(VolumeError::Registry("the registry is read-only".into()));
            }
            state.is_head = true;
            Ok(())
        })
    }

    fn adopt(&self, sessions: [u64; 2]) -> Result<Vec<Change>, VolumeError> {
        let state = self.0.state.lock().unwrap();
        let Some(working) = &state.working else {
            if state.begun {
                let cause = "there is none".into();
                return Err(VolumeError::WorkingStateLost { cause });
            }
            return Ok(Vec::new());
        };
        assert!(
            sessions.contains(&working.session),
            "the working state is of another opening"
        );
        Ok(working.changes.clone())
    }

    fn begin_session(&self, session: u64, changes: &[Change]) -> Result<(), VolumeError> {
        if !self.0.is_powered() {
            return Err(VolumeError::WorkingState("the power is gone".into()));
        }
        let mut state = self.0.state.lock().unwrap();
        state.begun = true;
        state.working = Some(Working {
            session,
            changes: changes.to_vec(),
            committing: 0,
        });
        Ok(())
    }

    fn remember(&self, change: Change) -> Result<(), VolumeError> {
        assert_ne!(change.state, sealvol_volume::BlockState::Absent);
        if let Some(watch) = self.0.watch().remembered {
            watch(change);
        }
        let mut state = self.0.state.lock().unwrap();
        if let Some(working) = &mut state.working {
            // Now and then there is no room: then a commit comes before the answer.
            if working.changes.len() as u64 >= Registry::ROOM {
                return Err(VolumeError::WorkingState("full".into()));
            }
            working.changes.push(change);
        }
        Ok(())
    }

    fn commit_begins(&self) {
        if let Some(watch) = self.0.watch().commit_begins {
            watch();
        }
        if let Some(working) = &mut self.0.state.lock().unwrap().working {
            working.committing = working.changes.len();
        }
    }

    fn commit_done(&self) {
        if let Some(working) = &mut self.0.state.lock().unwrap().working {
            working.changes.drain(..working.committing);
            working.committing = 0;
        }
    }

    fn end_session(&self) {
        self.0.state.lock().unwrap().working = None;
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
