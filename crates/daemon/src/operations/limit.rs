//! `volume limit`: how many requests and bytes a second, attached or not.
//!
//! Registered first, then in force: what is in force is what the next attach finds.

use sealvol_control::api::{self, VolumeName};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::limits::Limits;

impl Daemon {
    pub(crate) async fn limit_volume(
        &self,
        name: VolumeName,
        request: api::LimitVolume,
    ) -> Result<api::Volume, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        let limits = changed(row.limits, &request)?;
        let id = row.id;
        self.registry
            .call(move |registry| registry.set_limits(id, limits))
            .await?;
        if let Some(export) = self.exports.get(name.as_str()) {
            export.limiter.set(limits);
        }
        tracing::info!(volume = %name, ?limits, "limited");
        self.show_volume(&name).await
    }
}

/// `limits` with what was asked for; what was not stays.
fn changed(limits: Limits, request: &api::LimitVolume) -> Result<Limits, Error> {
    let burst_seconds = request.burst_seconds.unwrap_or(limits.burst_seconds);
    if burst_seconds > BURST_SECONDS_MAX {
        return Err(Error::BadRequest(format!(
            "a burst is of at most {BURST_SECONDS_MAX} seconds, not {burst_seconds}"
        )));
    }
    Ok(Limits {
        iops: rate("iops", limits.iops, request.iops, 1)?,
        bandwidth: rate(
            "bandwidth",
            limits.bandwidth,
            request.bandwidth,
            BANDWIDTH_MIN,
        )?,
        burst_seconds,
    })
}

fn rate(
    what: &str,
    present: Option<u64>,
    asked: Option<u64>,
    least: u64,
) -> Result<Option<u64>, Error> {
    match asked {
        None => Ok(present),
        Some(0) => Ok(None),
        Some(rate) if (least..=RATE_MAX).contains(&rate) => Ok(Some(rate)),
        Some(rate) => Err(Error::BadRequest(format!(
            "{what} can be limited to {least} to {RATE_MAX} a second, or 0 for no limit, not to {rate}"
        ))),
    }
}

/// A day: what is saved up longer is no burst.
const BURST_SECONDS_MAX: u32 = 86_400;
/// A block a second: with less, one request could hold up a client for hours.
const BANDWIDTH_MIN: u64 = 4096;
/// More than any machine does.
const RATE_MAX: u64 = 1 << 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_and_zero_takes_a_limit_away() {
        let before = Limits {
            iops: Some(100),
            bandwidth: Some(1 << 20),
            burst_seconds: 5,
        };
        let ask = |iops, bandwidth, burst_seconds| api::LimitVolume {
            iops,
            bandwidth,
            burst_seconds,
        };
        let same = changed(before, &ask(None, None, None)).expect("valid");
        assert_eq!(same, before);
        let other = changed(before, &ask(Some(0), Some(1 << 30), Some(0))).expect("valid");
        let expected = Limits {
            iops: None,
            bandwidth: Some(1 << 30),
            burst_seconds: 0,
        };
        assert_eq!(other, expected);
        for wrong in [
            ask(Some(RATE_MAX + 1), None, None),
            ask(None, Some(4095), None),
            ask(None, None, Some(BURST_SECONDS_MAX + 1)),
        ] {
            assert!(changed(before, &wrong).is_err(), "{wrong:?}");
        }
    }
}
