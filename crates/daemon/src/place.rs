//! Where the files of a layer are, and how they come and go.
//!
//! ```text
//! state         <state-dir>/layers/ID/{meta,data}
//! directory     DIR/ID/{meta,data}
//! device        <state-dir>/layers/ID/meta and the whole device
//! ```
//! What always holds: only the two files of the layer and its own directory are ever made or removed;
//! a directory that holds anything else stays.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sealvol_control::api::VolumeName;
use sealvol_store::{
    Access, Caching, Directory as _, FileDirectory, FileStore, Store as _, StoreError,
};
use sealvol_volume::{DATA_FILE, LayerId, META_FILE};

use crate::error::Error;
use crate::registry::Backing;

/// The place of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    directory: PathBuf,
    device: Option<PathBuf>,
}

/// The open files of a layer.
pub(crate) struct Files {
    pub(crate) data: FileStore,
    pub(crate) meta: FileStore,
}

impl Place {
    pub(crate) fn of(backing: &Backing, layer: LayerId, layers: &Path) -> Self {
        let parent = match backing {
            Backing::State | Backing::Device(_) => layers,
            Backing::Directory(directory) => directory,
        };
        let device = match backing {
            Backing::Device(device) => Some(device.clone()),
            Backing::State | Backing::Directory(_) => None,
        };
        Self {
            directory: parent.join(layer.to_string()),
            device,
        }
    }

    /// Makes the directory, durably.
    pub(crate) fn make(&self) -> Result<FileDirectory, StoreError> {
        let made = FileDirectory::make(&self.directory)?;
        Ok(made.with_large_extents(DATA_FILE))
    }

    /// The directory, to look at or change its files.
    pub(crate) fn directory(&self) -> Result<FileDirectory, StoreError> {
        FileDirectory::open(&self.directory)
    }

    /// Whether `data` is a file of the directory, rather than a device.
    pub(crate) fn has_data_file(&self) -> bool {
        self.device.is_none()
    }

    /// Bytes that files may still take where `data` is; none for a device, which has its space.
    pub(crate) fn free(&self) -> Result<Option<u64>, io::Error> {
        if self.device.is_some() {
            return Ok(None);
        }
        let about = rustix::fs::statvfs(&self.directory)?;
        Ok(Some(about.f_bavail.saturating_mul(about.f_frsize)))
    }

    /// Bytes that work which nobody waits for may take where `data` is: the last sixteenth, a gigabyte at most, stays for clients and for
    /// the registry. None for a device, which has its space.
    pub(crate) fn free_for_jobs(&self) -> Result<Option<u64>, io::Error> {
        if self.device.is_some() {
            return Ok(None);
        }
        let about = rustix::fs::statvfs(&self.directory)?;
        let reserve = about.f_blocks.saturating_mul(about.f_frsize) / 16;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        Ok(Some(free.saturating_sub(reserve.min(RESERVE_MAX))))
    }

    /// Bytes that its files take; of a device its size. Files that went meanwhile take none.
    pub(crate) fn taken(&self) -> Result<u64, io::Error> {
        let allocated = |name: &str| match std::fs::symlink_metadata(self.directory.join(name)) {
            Ok(file) => Ok(file.blocks() * 512),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        };
        let meta = allocated(META_FILE)?;
        let data = match &self.device {
            Some(device) => {
                io::Seek::seek(&mut std::fs::File::open(device)?, io::SeekFrom::End(0))?
            }
            None => allocated(DATA_FILE)?,
        };
        Ok(meta + data)
    }

    /// Whether `data` is a file of which no byte was ever written. A device never tells.
    pub(crate) fn data_is_empty(&self) -> Result<bool, io::Error> {
        let data = self.directory.join(DATA_FILE);
        Ok(self.device.is_none() && std::fs::symlink_metadata(data)?.blocks() == 0)
    }

    /// Opens and locks both files. Both in the same way: a mix of direct and cached access to one
    /// device is not coherent.
    pub(crate) async fn open(&self, access: Access, caching: Caching) -> Result<Files, StoreError> {
        let directory = self.directory()?.caching(caching);
        // In this order always, so that two who race for a volume meet at the first lock.
        let meta = directory.open(META_FILE, access).await?;
        let data = match &self.device {
            Some(device) => FileStore::open_block_device(device, access, caching)?,
            None => directory.open(DATA_FILE, access).await?,
        };
        Ok(Files { data, meta })
    }

    /// Removes the files and the directory, durably. What is gone already is no error.
    pub(crate) async fn remove(&self) -> Result<(), StoreError> {
        let directory = match self.directory() {
            Ok(directory) => directory,
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        for name in [META_FILE, DATA_FILE] {
            match directory.remove(name).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        directory.sync().await?;
        drop(directory);
        // Somebody's file in it, or a file system that is gone by now: an empty directory is no harm.
        if let Err(error) = remove_directory(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "layer directory stays");
        }
        Ok(())
    }
}

/// Of a large file system a sixteenth would be more than anybody needs to be told in time.
const RESERVE_MAX: u64 = 1 << 30;

fn remove_directory(path: &Path) -> io::Result<()> {
    std::fs::remove_dir(path)?;
    let parent = path.parent().unwrap_or(path);
    std::fs::File::open(parent)?.sync_all()
}

/// What `path` is as a backing for a volume of `size` bytes.
///
/// # Errors
/// [`Error::Backing`] when it is neither directory nor block device, [`Error::DeviceSize`] when the
/// device's size is another one, [`Error::Store`] when the device is in use or cannot be opened.
pub(crate) fn examine_backing(name: &VolumeName, path: &Path, size: u64) -> Result<Backing, Error> {
    let unusable = |cause: String| Error::Backing {
        path: path.to_owned(),
        cause,
    };
    if !path.is_absolute() {
        return Err(unusable("the path is not absolute".to_owned()));
    }
    // What a link points to may change: the registry records what it is now.
    let path = path
        .canonicalize()
        .map_err(|error| unusable(error.to_string()))?;
    if path.to_str().is_none() {
        return Err(unusable("the path is not UTF-8".to_owned()));
    }
    let kind = path
        .metadata()
        .map_err(|error| unusable(error.to_string()))?
        .file_type();
    if kind.is_dir() {
        return Ok(Backing::Directory(path));
    }
    if !kind.is_block_device() {
        return Err(unusable(
            "it is neither a directory nor a block device".to_owned(),
        ));
    }
    let device = FileStore::open_block_device(&path, Access::Writable, Caching::PageCache)
        .map_err(Error::store(name))?
        .len();
    if device != size {
        return Err(Error::DeviceSize {
            path,
            device,
            asked: size,
        });
    }
    Ok(Backing::Device(path))
}

/// Whether two paths lead to one device, whatever they are called.
pub(crate) fn is_same_device(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|metadata| metadata.rdev()).ok();
    one == other || device(one).is_some_and(|number| device(other) == Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backing_has_its_place() {
        let layer: LayerId = "00112233-4455-4677-8899-aabbccddeeff"
            .parse()
            .expect("an id");
        let place = |backing| Place::of(&backing, layer, Path::new("/s/layers"));
        let state = place(Backing::State);
        assert_eq!(state.directory, Path::new(&format!("/s/layers/{layer}")));
        assert!(state.has_data_file());
        let directory = place(Backing::Directory("/srv".into()));
        assert_eq!(directory.directory, Path::new(&format!("/srv/{layer}")));
        let device = place(Backing::Device("/dev/vdb".into()));
        assert_eq!(device.directory, state.directory);
        assert_eq!(device.device.as_deref(), Some(Path::new("/dev/vdb")));
        assert!(!device.has_data_file());
    }

    #[test]
    fn what_is_no_backing_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let name: VolumeName = "v".parse().expect("a name");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        for path in [
            Path::new("relative"),
            Path::new("/nonexistent"),
            &file,
            Path::new("/dev/null"),
        ] {
            let refused = examine_backing(&name, path, 1 << 20);
            assert!(
                matches!(refused, Err(Error::Backing { .. })),
                "{}",
                path.display()
            );
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("linked");
        let real = folder.path().canonicalize().expect("there");
        assert_eq!(
            examine_backing(&name, &link, 1).expect("a directory"),
            Backing::Directory(real)
        );
    }

    #[tokio::test]
    async fn removal_leaves_what_is_not_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let layer = LayerId::random();
        let place = Place::of(
            &Backing::Directory(folder.path().to_owned()),
            layer,
            Path::new("/"),
        );
        place.remove().await.expect("nothing there is no error");
        place.make().expect("made");
        let inside = folder.path().join(layer.to_string());
        std::fs::write(inside.join(META_FILE), "m").expect("written");
        std::fs::write(inside.join("foreign"), "f").expect("written");
        place.remove().await.expect("removed");
        assert!(inside.join("foreign").exists() && !inside.join(META_FILE).exists());
        std::fs::remove_file(inside.join("foreign")).expect("removed");
        place.remove().await.expect("removed");
        assert!(!inside.exists());
    }

    #[test]
    fn a_device_is_the_same_by_every_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).expect("linked");
        assert!(is_same_device(&link, Path::new("/dev/null")));
        assert!(!is_same_device(&link, Path::new("/dev/zero")));
        assert!(!is_same_device(&link, Path::new("/nonexistent")));
    }
}
