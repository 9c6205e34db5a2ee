//! `volume on-revoke`: whether a volume's key is watched while it is attached.

use sealvol_control::api::{self, Enforcement, OnRevoke, VolumeName};

use crate::daemon::Daemon;
use crate::error::Error;

/// A month: a longer grace or period protects against nothing.
const SECONDS_MAX: u32 = 30 * 86_400;

impl Daemon {
    pub(crate) async fn set_on_revoke(
        &self,
        name: VolumeName,
        request: OnRevoke,
    ) -> Result<api::Volume, Error> {
        let enforcement = checked(request)?;
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        Self::check_not_ephemeral(&row, "no key service has its key, so nobody can revoke it")?;
        Self::check_not_provided(&row, "no key service has it, so nobody can revoke it")?;
        let id = row.id;
        self.registry
            .call(move |registry| registry.set_enforcement(id, enforcement))
            .await?;
        self.revocation.changed();
        tracing::info!(volume = %name, ?enforcement, "what a revocation does");
        self.show_volume(&name).await
    }
}

fn checked(request: OnRevoke) -> Result<Option<Enforcement>, Error> {
    let OnRevoke::Enforce {
        every_seconds,
        grace_seconds,
    } = request
    else {
        return Ok(None);
    };
    if !(1..=SECONDS_MAX).contains(&every_seconds) || grace_seconds > SECONDS_MAX {
        let bounds = format!(
            "a key is asked for every 1 to {SECONDS_MAX} seconds, with a grace of at most as many"
        );
        return Err(Error::BadRequest(bounds));
    }
    if grace_seconds < every_seconds {
        let short = "the grace is shorter than the time from one question to the next";
        return Err(Error::BadRequest(short.to_owned()));
    }
    Ok(Some(Enforcement {
        every_seconds,
        grace_seconds,
        away_seconds: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_bounded_and_a_grace_is_no_shorter() {
        let ask = |every_seconds, grace_seconds| {
            checked(OnRevoke::Enforce {
                every_seconds,
                grace_seconds,
            })
        };
        assert!(matches!(ask(60, 60), Ok(Some(_))));
        assert!(matches!(checked(OnRevoke::Hold), Ok(None)));
        for (every, grace) in [
            (0, 60),
            (60, 59),
            (SECONDS_MAX + 1, SECONDS_MAX),
            (60, SECONDS_MAX + 1),
        ] {
            assert!(ask(every, grace).is_err(), "{every} {grace}");
        }
    }
}
