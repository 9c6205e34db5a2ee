//! Who joins which commit, and who is told what when it has ended (rules R1 and R6).
//!
//! ```text
//!   flush A ──▶ commit 1 begins ──────────▶ ends ─▶ A answered
//!       flush B, flush C: wait for commit 2, which ──▶ begins ─────────▶ ends ─▶ B, C answered
//! ```
//!
//! Always:
//! - whoever asks is answered by a commit that begins after it asked: it never joins one that has begun;
//! - all that ask while one is under way share the next;
//! - one commit at a time; whoever finds none under way begins the next, on behalf of all that wait;
//! - a loss is for ever, and nobody is told of it before it is recorded outside the layer; then everybody is.
//!
//! Never: I/O. What a commit does is `commit.rs`'s.

use crate::error::{Loss, VolumeError};
use crate::sync::{Event, Mutex, MutexGuard, PoisonError, listener};

/// The commits of one volume, counted.
#[derive(Default)]
pub(crate) struct Commits {
    state: Mutex<State>,
    ended: Event,
}

#[derive(Default)]
struct State {
    started: u64,
    ended: u64,
    lost: Option<Loss>,
    /// Whether the loss is recorded outside the layer, so that it may be answered.
    recorded: bool,
    /// The last one that made everything durable.
    done: u64,
    /// Why the last one that did not, did not; the next one tries again.
    refused: String,
}

/// Why a commit did not make everything durable.
pub(crate) enum CommitFailed {
    /// For ever.
    Lost(Loss),
    /// This time: the registry does not take what has to be in it first.
    Refused(String),
}

impl From<Loss> for CommitFailed {
    fn from(loss: Loss) -> Self {
        Self::Lost(loss)
    }
}

impl From<VolumeError> for CommitFailed {
    fn from(error: VolumeError) -> Self {
        Self::Refused(match error {
            VolumeError::Registry(cause) => cause,
            other => other.to_string(),
        })
    }
}

impl Commits {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a commit that begins after this call. `begin` has one run, as a task of its own that ends with
    /// [`Self::end`]; it is called if none is under way.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Failed`] once a sync or map write has failed, for ever; [`VolumeError::Registry`] if the commit was
    /// refused.
    pub(crate) async fn join(&self, begin: impl Fn()) -> Result<(), VolumeError> {
        // The next commit to begin is the first that is sure to see all of it.
        let wanted = self.state().started + 1;
        loop {
            listener!(self.ended => ended);
            let idle = {
                let mut state = self.state();
                match &state.lost {
                    Some(loss) if state.recorded => return Err(VolumeError::Failed(loss.clone())),
                    None if state.done >= wanted => return Ok(()),
                    None if state.ended >= wanted => {
                        return Err(VolumeError::Registry(state.refused.clone()));
                    }
                    _ => {}
                }
                let idle = state.lost.is_none() && state.started == state.ended;
                if idle {
                    state.started += 1;
                }
                idle
            };
            if idle {
                begin();
            }
            ended.await;
        }
    }

    /// The commit that is under way has ended. A loss is recorded before this is called.
    pub(crate) fn end(&self, how: Result<(), CommitFailed>) {
        {
            let mut state = self.state();
            state.ended = state.started;
            match how {
                Ok(()) => state.done = state.ended,
                Err(CommitFailed::Refused(cause)) => state.refused = cause,
                Err(CommitFailed::Lost(_)) => {}
            }
        }
        self.ended.notify(usize::MAX);
    }

    /// The loss that stopped the volume, if there is one.
    pub(crate) fn lost(&self) -> Option<Loss> {
        self.state().lost.clone()
    }

    /// Stops the volume at once. The loss that counts, the first one, and whether it is on record already; if it is not, whoever
    /// asks records it and calls [`Self::recorded`].
    pub(crate) fn lose(&self, loss: Loss) -> (Loss, bool) {
        let mut state = self.state();
        let first = state.lost.get_or_insert(loss).clone();
        (first, state.recorded)
    }

    /// The loss is recorded outside the layer: everybody may be told.
    pub(crate) fn recorded(&self) {
        self.state().recorded = true;
        self.ended.notify(usize::MAX);
    }

    /// Refuses if the volume has stopped, once the loss is recorded.
    pub(crate) async fn check(&self) -> Result<(), VolumeError> {
        loop {
            {
                let state = self.state();
                if state.lost.is_none() {
                    return Ok(());
                }
            }
            listener!(self.ended => ended);
            {
                let state = self.state();
                if let (Some(loss), true) = (&state.lost, state.recorded) {
                    return Err(VolumeError::Failed(loss.clone()));
                }
            }
            ended.await;
        }
    }
}
