//! What a job is to do, and what of it must outlive the daemon. How far a copy has come is not in it: the volume's map says so.

use std::str::FromStr;

use sealvol_control::api::JobKind;
use sealvol_volume::{DataKeyId, InvalidId, LayerId};
use serde::{Deserialize, Serialize};

/// What a job does, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Work {
    /// `operations/rekey.rs`.
    Rekey(Rekey),
    /// `operations/key_sets.rs`.
    Rewrap(RewrapMember),
}

/// A volume is to be wrapped anew by what its key set names, whatever that is by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RewrapMember {
    /// The set's name. A volume that has left it stays as it is.
    pub key_set: String,
}

/// A re-key: of what is below the volume's top, nothing is to be left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rekey {
    /// Bytes a second at most.
    pub rate: Option<u64>,
    /// It opens the volume by itself while nobody has it attached.
    pub detached: bool,
    /// Id of the layer that was the top until then, from which it copies.
    pub sealed: String,
    /// The top stands alone, durably: what is left to do is to destroy.
    pub cut_over: bool,
    /// Ids of the other data keys that were below it.
    pub old_keys: Vec<String>,
    /// Ids of the layers that nobody stands on any more, from the top down.
    pub to_destroy: Vec<String>,
    /// It is the copy of a snapshot: at its end the volume gets a snapshot of this name, and nobody uses it before.
    #[serde(default)]
    pub then_snapshot: Option<String>,
    /// The volume's snapshots are to be under the new key too.
    #[serde(default)]
    pub with_snapshots: bool,
    /// For that, the layers that they stand on and their copies, the lowest first; none before there are any.
    #[serde(default)]
    pub copies: Option<Vec<LayerCopy>>,
    /// The snapshots stand on the copies.
    #[serde(default)]
    pub switched: bool,
}

/// A layer, and the one that is to be exactly what it is, under another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerCopy {
    from: String,
    to: String,
}

impl LayerCopy {
    pub(crate) fn new(from: LayerId, to: LayerId) -> Self {
        Self {
            from: from.to_string(),
            to: to.to_string(),
        }
    }

    /// The layer, and its copy.
    pub(crate) fn layers(&self) -> Result<(LayerId, LayerId), InvalidId> {
        Ok((self.from.parse()?, self.to.parse()?))
    }
}

impl Work {
    pub(crate) fn kind(&self) -> JobKind {
        match self {
            Self::Rekey(rekey) if rekey.then_snapshot.is_some() => JobKind::SnapshotCopy,
            Self::Rekey(_) => JobKind::Rekey,
            Self::Rewrap(_) => JobKind::Rewrap,
        }
    }

    /// Bytes a second that it is held to.
    pub(crate) fn rate_max(&self) -> Option<u64> {
        match self {
            Self::Rekey(rekey) => rekey.rate,
            Self::Rewrap(_) => None,
        }
    }

    /// The snapshot that the volume gets at the end, and nobody uses the volume before.
    pub(crate) fn then_snapshot(&self) -> Option<&str> {
        match self {
            Self::Rekey(rekey) => rekey.then_snapshot.as_deref(),
            Self::Rewrap(_) => None,
        }
    }

    /// The volume's top stands alone: under these data keys was what lay below, and these layers are nobody's any more.
    pub(crate) fn has_cut_over(&mut self, old_keys: &[DataKeyId], orphans: &[LayerId]) {
        match self {
            Self::Rekey(rekey) => {
                rekey.cut_over = true;
                add(&mut rekey.old_keys, old_keys);
                add(&mut rekey.to_destroy, orphans);
            }
            Self::Rewrap(_) => {}
        }
    }
}

impl Work {
    /// These layers are to be copied so.
    pub(crate) fn has_begun_copies(&mut self, layers: Vec<LayerCopy>) {
        match self {
            Self::Rekey(rekey) => rekey.copies = Some(layers),
            Self::Rewrap(_) => {}
        }
    }

    /// The snapshots stand on the copies: under these data keys was what they stood on, and these layers are nobody's any more.
    pub(crate) fn has_switched(&mut self, old_keys: &[DataKeyId], orphans: &[LayerId]) {
        match self {
            Self::Rekey(rekey) => {
                rekey.switched = true;
                rekey.copies = None;
                add(&mut rekey.old_keys, old_keys);
                add(&mut rekey.to_destroy, orphans);
            }
            Self::Rewrap(_) => {}
        }
    }

    /// What it had begun to copy is nobody's.
    pub(crate) fn gives_up_copies(&mut self) -> bool {
        match self {
            Self::Rekey(rekey) => rekey.copies.take().is_some(),
            Self::Rewrap(_) => false,
        }
    }
}

impl Rekey {
    /// [`Self::old_keys`] as ids.
    pub(crate) fn old_key_ids(&self) -> Result<Vec<DataKeyId>, InvalidId> {
        ids(&self.old_keys)
    }

    /// [`Self::to_destroy`] as ids.
    pub(crate) fn layers_to_destroy(&self) -> Result<Vec<LayerId>, InvalidId> {
        ids(&self.to_destroy)
    }
}

fn add<T: ToString>(texts: &mut Vec<String>, ids: &[T]) {
    for text in ids.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
}

fn ids<T: FromStr<Err = InvalidId>>(texts: &[String]) -> Result<Vec<T>, InvalidId> {
    texts.iter().map(|text| text.parse()).collect()
}
