//! The two credentials of a provider: `create`, with which keys are wrapped, and `attach`, with which they are unwrapped.
//!
//! What always holds: where only one is configured it is the one that attaches; what is made of a credential, a token or a
//! client, is made once for a batch, however many of its calls ask for it at once.

use tokio::sync::Mutex;

use crate::Refusal;

/// Whose credential.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Attach,
    Create,
}

/// What a batch has made of each credential so far.
pub(crate) struct PerRole<T> {
    made: Mutex<Made<T>>,
}

struct Made<T> {
    create: Option<T>,
    attach: Option<T>,
}

impl<T: Clone> PerRole<T> {
    pub(crate) fn new() -> Self {
        let (create, attach) = (None, None);
        Self {
            made: Mutex::new(Made { create, attach }),
        }
    }

    /// What there is for `role`; if nothing yet, what `make` makes of its credential.
    pub(crate) async fn of<C>(
        &self,
        role: Role,
        create: Option<&C>,
        attach: &C,
        make: impl AsyncFnOnce(&C) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut made = self.made.lock().await;
        let (known, credential) = match (role, create) {
            (Role::Create, Some(create)) => (&mut made.create, create),
            _ => (&mut made.attach, attach),
        };
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let new = make(credential).await?;
        Ok(known.insert(new).clone())
    }
}
