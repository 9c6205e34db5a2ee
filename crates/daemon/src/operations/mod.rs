//! What can be done with volumes and keys, one file an operation.
//!
//! Each begins after the caller's right was checked, and each is carried to its end: it runs as a
//! task of its own, so a caller that goes away does not cut it short.

mod adopt;
mod aliases;
mod attach;
mod attach_again;
mod backup;
mod bench;
mod clone;
mod copy;
mod create;
mod delete;
mod detach;
mod ephemeral;
mod flatten;
mod fresh_key;
mod import;
mod jobs;
mod key_sets;
mod keys;
mod limit;
mod merge;
mod on_revoke;
mod policy;
mod provided;
mod recover;
mod rekey;
mod rekey_end;
mod rekey_family;
mod resize;
mod rewrap;
mod show;
mod shred;
mod snapshot;
mod snapshot_attach;
mod snapshot_show;
mod stack;

use sealvol_control::keychild::{CONTEXT_DATA_KEY, CONTEXT_VOLUME, Context};
use sealvol_crypto::UnitSize;
use sealvol_volume::{DataKeyId, LayerParams, Pins, VolumeId, params_digest};

use crate::registry::{LayerRow, VolumeRow};

pub(crate) use merge::Merges;
pub(crate) use stack::OpenLayers;

/// The encryption context of a data key, from what the registry says of its volume.
fn context(volume: VolumeId, data_key: DataKeyId, sector_size: UnitSize) -> Context {
    let digest = params_digest(volume, sector_size);
    let params = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Context::from([
        (CONTEXT_VOLUME.to_owned(), volume.to_string()),
        (CONTEXT_DATA_KEY.to_owned(), data_key.to_string()),
        ("sealvol:params".to_owned(), params),
    ])
}

/// What the registry is sure of about a layer of a volume. Of the top its size may be what it is to grow to.
fn pins(row: &VolumeRow, layer: &LayerRow) -> Pins {
    let params = LayerParams {
        volume: layer.volume,
        layer: layer.id,
        parent: layer.parent,
        size: if layer.id == row.top {
            row.size.max(layer.size)
        } else {
            layer.size
        },
        sector_size: row.sector_size,
    };
    Pins {
        params,
        commitment: layer.commitment,
        generation: layer.generation,
        bound: layer.bound,
        former_parents: layer.former_parents.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_name_volume_data_key_and_parameters() {
        let volume: VolumeId = "00112233-4455-4677-8899-aabbccddeeff"
            .parse()
            .expect("an id");
        let data_key: DataKeyId = "ffeeddcc-bbaa-4988-a766-554433221100"
            .parse()
            .expect("an id");
        let of = |sector_size| context(volume, data_key, sector_size);
        let context = of(UnitSize::B4096);
        assert_eq!(context.len(), 3);
        assert_eq!(context["sealvol:volume"], volume.to_string());
        assert_eq!(context["sealvol:data-key"], data_key.to_string());
        let params = &context["sealvol:params"];
        assert_eq!(params.len(), 64);
        assert!(
            params
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        );
        assert_ne!(*params, of(UnitSize::B512)["sealvol:params"]);
    }
}
