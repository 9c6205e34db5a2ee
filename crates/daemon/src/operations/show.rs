//! `volume list`, `volume show`, `volume map`, `status`: looking, without changing anything.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealvol_control::api::{self, VolumeName, VolumeState};
use sealvol_control::keychild::{Provider, Service};
use sealvol_crypto::UnitSize;
use sealvol_volume::{BlockState, DataKeyId, LayerId, VolumeId, Waits};

use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::limits::Limits;
use crate::registry::{
    Attached, Backing, Database, LayerRow, RegistryError, RowState, SnapshotRow, VolumeRow,
    WrappedBy,
};

impl Daemon {
    pub(crate) async fn show_volume(&self, name: &VolumeName) -> Result<api::Volume, Error> {
        let row = self.registered(name).await?;
        let (id, top) = (row.id, row.top);
        let parts = self
            .registry
            .call(move |registry| parts(registry, id, top))
            .await?;
        Ok(self.describe(row, parts))
    }

    pub(crate) async fn list_volumes(&self) -> Result<api::VolumeList, Error> {
        let rows = self.registry.call(|registry| {
            let mut rows = Vec::new();
            for row in registry.volumes()? {
                let parts = parts(registry, row.id, row.top)?;
                rows.push((row, parts));
            }
            Ok(rows)
        });
        let rows = rows
            .await?
            .into_iter()
            .filter(|(row, _)| row.state == RowState::Available);
        Ok(api::VolumeList {
            volumes: rows.map(|(row, parts)| self.describe(row, parts)).collect(),
        })
    }

    /// At most [`MAP_RUNS_MAX`] runs from `offset` on, and where the next ones begin.
    pub(crate) async fn map_volume(
        &self,
        name: &VolumeName,
        offset: u64,
    ) -> Result<api::VolumeMap, Error> {
        self.registered(name).await?;
        let export = self
            .exports
            .get(name.as_str())
            .ok_or_else(|| Error::NotAttached(name.clone()))?;
        let found = export
            .volume
            .map(offset, MAP_RUNS_MAX)
            .await
            .map_err(Error::volume(name))?;
        let end = found.last().map(|run| run.offset + run.len);
        let next = end.filter(|&end| found.len() >= MAP_RUNS_MAX && end < export.volume.size());
        let runs = found.iter().map(|run| api::MapRun {
            offset: run.offset,
            length: run.len,
            state: match run.state {
                BlockState::Absent => "absent",
                BlockState::Zero => "zero",
                BlockState::Data => "data",
            }
            .to_owned(),
            layer: run.layer.map(|layer| layer.to_string()),
        });
        Ok(api::VolumeMap {
            runs: runs.collect(),
            next,
        })
    }

    pub(crate) async fn status(&self) -> Result<api::Status, Error> {
        let mut volumes = BTreeMap::new();
        let mut failures = self.failures.all();
        for volume in self.list_volumes().await?.volumes {
            *volumes.entry(volume.state.to_string()).or_insert(0) += 1;
            failures.extend(volume.loss.map(|loss| api::Failure {
                subject: volume.name.to_string(),
                message: reply::in_words(&Error::LossRecorded {
                    name: volume.name,
                    loss,
                }),
            }));
        }
        let ready = self.memory.ready();
        let (memory, selftest) = self.memory.look();
        let selftest = selftest.unwrap_or_else(|| api::SelfTest {
            passed: false,
            tests: Vec::new(),
            failure: Some("it has not run, for want of locked memory".to_owned()),
        });
        let state = if selftest.passed { "ready" } else { "error" };
        let key_memory = match memory {
            Some(memory) => api::KeyMemoryStatus {
                protection: memory.protection().to_string(),
                locked_bytes: memory.locked_bytes(),
                keys: memory.slots_in_use(),
                failure: None,
            },
            None => api::KeyMemoryStatus {
                protection: "none".to_owned(),
                locked_bytes: 0,
                keys: 0,
                failure: ready.err().map(|error| error.to_string()),
            },
        };
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: state.to_owned(),
            started: self.started.clone(),
            state_dir: self.state.path().to_owned(),
            listening: self.listening.clone(),
            audit: api::AuditStatus {
                log: self.audit.path().to_owned(),
                head: self.audit.head().map(|head| head.to_string()),
                verification_key: self.audit.verification_key().map(Path::to_owned),
            },
            key_memory,
            key_services: self.config.providers.values().map(key_service).collect(),
            selftest,
            volumes,
            ephemeral: self.attached_ephemeral().await?,
            failures,
        })
    }

    fn describe(&self, row: VolumeRow, parts: Parts) -> api::Volume {
        let export = self.exports.get(row.name.as_str());
        let state = match &export {
            Some(export) if export.volume.failed().is_some() => VolumeState::Failed,
            Some(_) => VolumeState::Attached,
            None if row.attached.is_some() => VolumeState::Error,
            None => VolumeState::Available,
        };
        let attachment = export
            .as_ref()
            .map(|export| self.attachment(row.attached.as_ref(), export));
        let top = parts.layers.first();
        let wrapped_by = top.and_then(|layer| parts.data_keys.get(&layer.data_key).cloned());
        let layers: Vec<_> = parts
            .layers
            .iter()
            .map(|layer| self.layer(&row, layer, &parts.snapshots))
            .collect();
        api::Volume {
            id: row.id.to_string(),
            size: export
                .as_ref()
                .map_or(row.size, |export| export.volume.size()),
            sector_size: match row.sector_size {
                UnitSize::B512 => 512,
                UnitSize::B4096 => 4096,
            },
            state,
            created: row.created,
            key: if row.ephemeral {
                "none".to_owned()
            } else {
                row.key.to_string()
            },
            ephemeral: row.ephemeral,
            key_id: wrapped_by
                .as_ref()
                .map_or_else(String::new, |by| by.key_id.clone()),
            key_version: wrapped_by.map_or(0, |by| by.key_version),
            key_set: parts.key_set,
            backing: self.backing(&row.backing),
            limits: limits(row.limits),
            enforcement: parts.enforcement,
            attachment,
            loss: row.loss,
            attach_failure: self.failures.of(row.name.as_str()),
            depth: layers.len(),
            layers,
            origin: parts.origin,
            job: parts.job,
            name: row.name,
        }
    }

    pub(super) fn attachment(
        &self,
        attached: Option<&Attached>,
        export: &Arc<Export>,
    ) -> api::Attachment {
        api::Attachment {
            uri: uri(&export.name, &self.nbd_socket),
            read_only: export.read_only,
            allow: attached
                .map(|attached| attached.allow.clone())
                .unwrap_or_default(),
            attached_by: attached.map_or(0, |attached| attached.by),
            connections: export.connected(),
            access: export.volume.access_path().to_owned(),
            waits: waits(&export.volume.waits()),
        }
    }

    fn layer(&self, row: &VolumeRow, layer: &LayerRow, snapshots: &[SnapshotRow]) -> api::Layer {
        let mut of_layer = snapshots
            .iter()
            .filter(|snapshot| snapshot.layer == layer.id);
        api::Layer {
            id: layer.id.to_string(),
            data_key: layer.data_key.to_string(),
            generation: layer.generation,
            sealed: layer.sealed,
            backing: self.backing(&layer.backing),
            from_volume: (layer.volume != row.id).then(|| layer.volume.to_string()),
            snapshot: of_layer.next().map(|snapshot| snapshot.name.clone()),
        }
    }

    fn backing(&self, backing: &Backing) -> PathBuf {
        match backing {
            Backing::State => self.state.layers(),
            Backing::Directory(path) | Backing::Device(path) => path.clone(),
        }
    }
}

fn waits(waits: &Waits) -> api::Waits {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    api::Waits {
        count: waits.count,
        p99: nanos(waits.percentile(99)),
        longest: nanos(waits.longest),
        histogram: waits
            .buckets
            .iter()
            .map(|&(up_to, count)| api::WaitBucket {
                up_to: nanos(up_to),
                count,
            })
            .collect(),
    }
}

fn limits(limits: Limits) -> Option<api::Limits> {
    let Limits {
        iops,
        bandwidth,
        burst_seconds,
    } = limits;
    (iops.is_some() || bandwidth.is_some()).then_some(api::Limits {
        iops,
        bandwidth,
        burst_seconds,
    })
}

/// What belongs to a volume in the registry.
struct Parts {
    /// From the top down.
    layers: Vec<LayerRow>,
    data_keys: HashMap<DataKeyId, WrappedBy>,
    snapshots: Vec<SnapshotRow>,
    origin: Option<api::Origin>,
    /// Number of the one that has not ended.
    job: Option<u64>,
    enforcement: Option<api::Enforcement>,
    key_set: Option<api::KeySetName>,
}

fn parts(registry: &mut Database, volume: VolumeId, top: LayerId) -> Result<Parts, RegistryError> {
    let layers = registry.stack(top)?;
    let inherited = layers.iter().find(|layer| layer.volume != volume);
    let origin = match inherited {
        None => None,
        Some(layer) => Some(api::Origin {
            layer: layer.id.to_string(),
            volume: layer.volume.to_string(),
            snapshot: registry.snapshot_of_layer(layer.id)?,
        }),
    };
    Ok(Parts {
        origin,
        layers,
        data_keys: registry.data_keys(volume)?,
        snapshots: registry.snapshots(volume)?,
        enforcement: registry.enforcement(volume)?,
        key_set: registry.key_set_of(volume)?.map(|set| set.name),
        job: registry.job_of(volume)?.map(|job| job.id.0),
    })
}

/// How a key service is configured.
fn key_service(provider: &Provider) -> api::KeyServiceStatus {
    let (kind, at, single_credential) = match &provider.service {
        Service::AwsKms(aws) => (
            "aws-kms",
            match &aws.endpoint {
                Some(endpoint) => format!("{} at {endpoint}", aws.region),
                None if aws.fips => format!("{}, FIPS endpoint", aws.region),
                None => aws.region.clone(),
            },
            aws.single_credential,
        ),
        Service::AzureKv(azure) => ("azure-kv", azure.vault.origin(), azure.single_credential),
        Service::Local(local) => ("local", local.database.display().to_string(), false),
        Service::Pkcs11(token) => ("pkcs11", token.token.clone(), token.single_credential),
        Service::Tpm2(tpm) => (
            "tpm2",
            tpm.device.display().to_string(),
            tpm.single_credential,
        ),
        Service::Transit(transit) => (
            "transit",
            transit.address.to_string(),
            transit.single_credential,
        ),
    };
    let master_key = match &provider.service {
        Service::Local(local) => Some(local.master_key.kind()),
        Service::AwsKms(_)
        | Service::AzureKv(_)
        | Service::Pkcs11(_)
        | Service::Tpm2(_)
        | Service::Transit(_) => None,
    };
    api::KeyServiceStatus {
        name: provider.name.clone(),
        kind: kind.to_owned(),
        at,
        master_key,
        single_credential,
    }
}

/// The NBD URI of an export on a Unix socket (NBD project, uri.md).
fn uri(name: &str, socket: &Path) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// Some megabytes of JSON.
pub(super) const MAP_RUNS_MAX: usize = 32 * 1024;
