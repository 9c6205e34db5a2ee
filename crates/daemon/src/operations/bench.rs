//! `bench`: the cipher, and a temporary volume over the daemon's own NBD socket.
//!
//! The temporary volume is made, served and closed as every other, but it is never registered as *available*: nobody can ask
//! for it by its name, and should the daemon die meanwhile, the next start finds it *creating* and undoes it.
//! Its export is for the daemon's own user id alone.

use std::sync::Weak;

use sealvol_control::api::{self, bench};
use sealvol_volume::VolumeId;

use super::attach::Accepts;
use crate::bench::{Measurement, cipher, load};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::place::Place;
use crate::registry::{Attached, NewVolume};
use crate::rights::Caller;

/// Large enough for random places to be no longer in a processor's caches, small enough to be written in a second.
const SIZE: u64 = 256 << 20;

impl Daemon {
    pub(crate) async fn bench_cipher(
        &self,
        request: bench::Bench,
        wanted: Weak<()>,
    ) -> Result<bench::CipherReport, Error> {
        let measurement = self.benches.begin(&request, wanted)?;
        let memory = self.memory.ready()?;
        on_a_thread(move || cipher::measure(&memory, &measurement)).await
    }

    pub(crate) async fn bench_volume(
        &self,
        caller: Caller,
        request: bench::Bench,
        wanted: Weak<()>,
    ) -> Result<bench::VolumeReport, Error> {
        let measurement = self.benches.begin(&request, wanted)?;
        let id = VolumeId::random().to_string();
        let create = api::CreateVolume {
            name: format!("bench-{}", &id[..8]).parse()?,
            size: Some(SIZE),
            key_set: None,
            key: None,
            sector_size: None,
            backing: None,
            layers_dir: None,
            from_snapshot: None,
            ephemeral: false,
            fresh_key: None,
        };
        let _turn = self.turn(&create.name).await;
        let new = self.check_create(caller, &create).await?;
        let row = new.clone();
        self.registry
            .call(move |registry| registry.begin_create(&row))
            .await?;
        let place = Place::of(&new.backing, new.layer, &self.state.layers());
        let report = self.bench_new(caller, &new, &place, measurement).await;
        self.undo_create(&new, &place).await;
        report
    }

    /// Makes, measures and closes it; whatever fails, its files may be removed afterwards.
    async fn bench_new(
        &self,
        caller: Caller,
        new: &NewVolume,
        place: &Place,
        measurement: Measurement,
    ) -> Result<bench::VolumeReport, Error> {
        let by = self.make_layer(caller, new, place).await?;
        let (id, data_key, name) = (new.id, new.data_key, new.name.clone());
        let row = self.registry.call(move |registry| {
            registry.set_wrapped(id, data_key, &by)?;
            registry.volume(&name)
        });
        let row = row.await?;
        let row = row.ok_or_else(|| Error::NoSuchVolume(new.name.clone()))?;
        let itself = Self::itself();
        let attached = Attached {
            read_only: false,
            direct: false,
            allow: vec![itself.uid],
            by: itself.uid,
        };
        let volume = self
            .open_volume(caller, &row, &attached, Accepts::default(), None)
            .await?;
        let access = volume.access_path().to_owned();
        self.serve(&row, volume, attached);
        let (socket, name) = (self.nbd_socket.clone(), new.name.to_string());
        let loads = on_a_thread(move || load::measure(&socket, &name, &measurement)).await;
        if let Some(export) = self.exports.get(new.name.as_str()) {
            self.take_down(&new.name, export, true).await?;
        }
        Ok(bench::VolumeReport {
            size: new.size,
            backing: self.state.layers(),
            access,
            loads: loads?,
        })
    }
}

/// Runs what blocks its thread.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}
