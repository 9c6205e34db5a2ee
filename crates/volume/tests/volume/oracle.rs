//! Real files against the second implementation of the format in `tests/oracle/format.py`, both ways, and the golden
//! layer, whose bytes must never change.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use futures_executor::block_on;
use sealvol_crypto::{Commitment, UnitSize, sha256};
use sealvol_store::{Directory, Durability, FileDirectory, FileStore, IoBuf, Store};
use sealvol_volume::{
    Access, BLOCK, BlockState, DATA_FILE, DataKeyId, Host, Layer, LayerId, LayerParams, LayerParts,
    Loss, META_FILE, MapRun, Pins, Task, Volume, VolumeError, create, create_ephemeral,
    finish_sealing, open, read_layer,
};

use crate::rig::{KEY, OTHER_KEY, cipher, params, pattern, wrapped_keys};

const GIB: u64 = 1 << 30;
const PAGE: u64 = 64 << 20;
/// Two directory pages; the last map page is not whole.
const SIZE: u64 = 17 * GIB + 3 * BLOCK;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/format.py");
const GOLDEN: &[u8] = include_bytes!("../oracle/golden-v1.layer");
const GOLDEN_READS: &str = include_str!("../oracle/golden-v1.txt");
/// SHA-256 of the golden layer. A change of it is a change of the format: that takes a new version, not a new hash.
const GOLDEN_SHA256: &str = "6dc1e770b5da154f9b2b675650599efb6e7d8765873940b328451afe63b3570e";

/// SHA-256 of a slot of an ephemeral layer, for which the same holds.
const EPHEMERAL_SHA256: &str = "228689a49af9c1f29b018a2bc3109580c515e0be8b422473b0f42c807b6bdf40";

fn digest(bytes: &[u8]) -> String {
    let digest = sha256(&[bytes]);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A host that keeps the last pin, and runs tasks on threads.
#[derive(Default)]
struct Threads {
    pinned: std::sync::Mutex<Option<(u64, u64, Commitment)>>,
}

impl Host for Threads {
    fn spawn(&self, task: Task<()>) {
        std::thread::spawn(move || block_on(task));
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        panic!("{loss}");
    }

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        *self.pinned.lock().unwrap() = Some((generation, size, commitment));
        Box::pin(async { Ok(()) })
    }
}

/// An empty directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&path));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn python(command: &str, path: &Path) -> String {
    let check = Command::new("python3")
        .args(["-c", "import cryptography.hazmat.primitives.ciphers.modes"])
        .output();
    assert!(
        check.as_ref().is_ok_and(|output| output.status.success()),
        "the second implementation needs python3 with `cryptography` 42 or later:\n    \
         python3 -m pip install 'cryptography>=42'\n{check:?}"
    );
    let key: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("python3")
        .args([SCRIPT, command, &key])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

async fn open_files(
    below: Vec<Arc<Layer<FileStore>>>,
    path: &Path,
    host: &Arc<Threads>,
    pins: &Pins,
    access: Access,
) -> Arc<Volume<FileStore>> {
    let top = parts(path, host, pins, access).await;
    open(below, top, access).await.unwrap()
}

async fn parts(
    path: &Path,
    host: &Arc<Threads>,
    pins: &Pins,
    access: Access,
) -> LayerParts<FileStore> {
    let directory = FileDirectory::open(path).unwrap();
    let file_access = match access {
        Access::ReadOnly => sealvol_store::Access::ReadOnly,
        Access::Writable => sealvol_store::Access::Writable,
    };
    let data = directory.open(DATA_FILE, file_access).await.unwrap();
    let meta = directory.open(META_FILE, file_access).await.unwrap();
    let host = Arc::clone(host) as Arc<dyn Host>;
    LayerParts {
        data,
        meta,
        cipher: Arc::new(cipher(&KEY)),
        pins: pins.clone(),
        host,
    }
}

fn pins(params: LayerParams, generation: u64, bound: bool) -> Pins {
    Pins {
        params,
        commitment: bound.then(|| cipher(&KEY).commitment()),
        generation,
        bound,
        former_parents: Vec::new(),
    }
}

/// What `format.py read` prints, said by the volume.
async fn describe(volume: &Arc<Volume<FileStore>>, clean: bool) -> String {
    let sector = volume.sector_size().bytes();
    let mut text = format!(
        "size {} sector {sector} clean {}\n",
        volume.size(),
        u8::from(clean)
    );
    let mut plain = Vec::new();
    let mut at = 0;
    while let Some(run) = next_run(volume, at).await {
        let state = match run.state {
            BlockState::Absent => "absent",
            BlockState::Zero => "zero",
            BlockState::Data => "data",
        };
        text += &format!("{} {} {state}\n", run.offset, run.len);
        if run.state == BlockState::Data {
            let len = usize::try_from(run.len).unwrap();
            plain.extend_from_slice(volume.read(run.offset, len).await.unwrap().bytes().unwrap());
        }
        at = run.offset + run.len;
    }
    let digest: String = sha256(&[&plain])
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    text + &format!("plaintext {digest}\n")
}

/// The run at `at`, whole.
async fn next_run(volume: &Arc<Volume<FileStore>>, at: u64) -> Option<MapRun> {
    volume.map(at, 1).await.unwrap().pop()
}

async fn write(volume: &Arc<Volume<FileStore>>, offset: u64, len: usize, version: u64) {
    let bytes: Vec<u8> = (0..)
        .flat_map(|piece| pattern(version, piece))
        .take(len)
        .collect();
    volume
        .prepare_write(offset, &bytes)
        .unwrap()
        .run(false)
        .await
        .unwrap();
}

/// All kinds of blocks and pages.
async fn use_it(volume: &Arc<Volume<FileStore>>) {
    write(volume, 0, 4096, 1).await;
    write(volume, 5 * BLOCK + 100, 700, 2).await;
    write(volume, PAGE - 1500, 3000, 3).await;
    write(volume, 16 * GIB - BLOCK, 8192, 4).await;
    write(volume, SIZE - 512, 512, 5).await;
    volume.flush().await.unwrap();
    volume.trim(0, BLOCK, false).await.unwrap();
    // A whole page: the layer below has data there, so absent blocks become zero, and the page uniform.
    volume.trim(3 * PAGE, PAGE, false).await.unwrap();
    write(volume, 2 * PAGE, 8192, 6).await;
    volume.flush().await.unwrap();
    write(volume, 2 * PAGE + BLOCK, 4096, 7).await;
    volume.flush().await.unwrap();
}

/// A sealed layer with nothing but one page full of data.
async fn sealed_parent(path: &Path, sector_size: UnitSize) -> Arc<Layer<FileStore>> {
    let layer = LayerParams {
        layer: LayerId([0x55; 16]),
        ..params(SIZE, sector_size)
    };
    let directory = FileDirectory::open(path).unwrap();
    create(&directory, true, &layer, &wrapped_keys())
        .await
        .unwrap();
    let host = Arc::new(Threads::default());
    let new = pins(layer, 1, false);
    let volume = open_files(Vec::new(), path, &host, &new, Access::Writable).await;
    for at in (3 * PAGE..4 * PAGE).step_by(1 << 20) {
        write(&volume, at, 1 << 20, 9).await;
    }
    volume.close().await.unwrap();
    drop(volume);
    let (generation, ..) = host.pinned.lock().unwrap().unwrap();
    let closed = pins(layer, generation, true);
    finish_sealing(
        Vec::new(),
        parts(path, &host, &closed, Access::Writable).await,
    )
    .await
    .unwrap()
}

#[test]
fn the_second_implementation_reads_what_is_written_here() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let parent = scratch("oracle-parent");
        let below = block_on(sealed_parent(&parent, sector_size));
        for clean in [true, false] {
            let path = scratch("oracle-reads");
            let layer = LayerParams {
                parent: Some(LayerId([0x55; 16])),
                ..params(SIZE, sector_size)
            };
            let host = Arc::new(Threads::default());
            let here = block_on(async {
                let directory = FileDirectory::open(&path).unwrap();
                create(&directory, true, &layer, &wrapped_keys())
                    .await
                    .unwrap();
                let on = |pins| {
                    let (path, host, below) = (&path, &host, vec![Arc::clone(&below)]);
                    async move { open_files(below, path, host, &pins, Access::Writable).await }
                };
                let volume = on(pins(layer, 1, false)).await;
                use_it(&volume).await;
                volume.close().await.unwrap();
                drop(volume);
                let (generation, ..) = host.pinned.lock().unwrap().unwrap();
                let volume = on(pins(layer, generation, true)).await;
                write(&volume, PAGE + 9 * BLOCK, 4096, 8).await;
                volume.flush().await.unwrap();
                if clean {
                    volume.close().await.unwrap();
                }
                describe(&volume, clean).await
            });
            assert_eq!(python("read", &path), here);
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::remove_dir_all(&parent).unwrap();
    }
}

/// Puts the golden layer into a directory.
async fn unpack(path: &Path) {
    let directory = FileDirectory::open(path).unwrap();
    let data = directory.create(DATA_FILE, SIZE).await.unwrap();
    let meta_len = (64 << 20) + 8192 * SIZE.div_ceil(PAGE);
    let meta = directory.create(META_FILE, meta_len).await.unwrap();
    let mut rest = GOLDEN;
    while let Some((head, tail)) = rest.split_at_checked(13) {
        let offset = u64::from_le_bytes(head[1..9].try_into().unwrap());
        let len = u32::from_le_bytes(head[9..13].try_into().unwrap());
        let (content, tail) = tail.split_at(usize::try_from(len).unwrap());
        let store = if head[0] == 0 { &data } else { &meta };
        let (_, result) = store
            .write_at(IoBuf::copy_of(content), offset, Durability::Volatile)
            .await;
        result.unwrap();
        rest = tail;
    }
    assert!(rest.is_empty());
}

#[test]
fn the_golden_layer_is_read_as_the_second_implementation_reads_it() {
    let path = scratch("golden-reads");
    let layer = params(SIZE, UnitSize::B4096);
    let host = Arc::new(Threads::default());
    block_on(async {
        unpack(&path).await;
        let volume = open_files(
            Vec::new(),
            &path,
            &host,
            &pins(layer, 9, true),
            Access::ReadOnly,
        )
        .await;
        assert_eq!(volume.generation(), 9);
        assert_eq!(describe(&volume, true).await, GOLDEN_READS);
    });
    assert_eq!(python("read", &path), GOLDEN_READS);
    // What this crate makes of it is the same layer to the other one.
    let here = block_on(async {
        let volume = open_files(
            Vec::new(),
            &path,
            &host,
            &pins(layer, 9, true),
            Access::Writable,
        )
        .await;
        write(&volume, 4 * PAGE + 5 * BLOCK, 4096, 1).await;
        write(&volume, 7 * BLOCK + 512, 512, 2).await;
        volume.trim(4 * PAGE + BLOCK, BLOCK, false).await.unwrap();
        volume.close().await.unwrap();
        describe(&volume, true).await
    });
    assert_eq!(python("read", &path), here);
    assert_ne!(here, GOLDEN_READS);
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn the_golden_layer_never_changes() {
    assert_eq!(digest(GOLDEN), GOLDEN_SHA256);
    let path = scratch("golden-made");
    let image = path.join("image");
    python("golden", &image);
    assert!(
        std::fs::read(&image).unwrap() == GOLDEN,
        "FORMAT.md's second implementation makes another layer"
    );
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn an_ephemeral_layer_is_what_the_second_implementation_says() {
    let path = scratch("ephemeral");
    let slot = path.join("slot");
    python("ephemeral", &slot);
    let golden = std::fs::read(&slot).unwrap();
    assert_eq!(digest(&golden), EPHEMERAL_SHA256);
    let layer = path.join("layer");
    std::fs::create_dir(&layer).unwrap();
    let params = params(17 * GIB, UnitSize::B4096);
    block_on(async {
        let directory = FileDirectory::open(&layer).unwrap();
        let key = DataKeyId([0x33; 16]);
        create_ephemeral(&directory, true, &params, key)
            .await
            .unwrap();
        let meta = std::fs::read(layer.join(META_FILE)).unwrap();
        for offset in [0, 256 << 10] {
            assert_eq!(meta[offset..offset + golden.len()], golden);
        }
        // Bound to its key, it stays what it is, and opens under no other one.
        let host = Arc::new(Threads::default());
        let volume = open_files(
            Vec::new(),
            &layer,
            &host,
            &pins(params, 0, false),
            Access::Writable,
        )
        .await;
        write(&volume, 7 * BLOCK, 4096, 1).await;
        volume.close().await.unwrap();
        drop(volume);
        let meta = directory
            .open(META_FILE, sealvol_store::Access::ReadOnly)
            .await
            .unwrap();
        let found = read_layer(&meta).await.unwrap();
        assert!(found.ephemeral && found.bound && found.clean && found.keys.is_empty());
        drop(meta);
        python("read", &layer);
        let (generation, _, commitment) = host.pinned.lock().unwrap().expect("pinned");
        let mut parts = parts(
            &layer,
            &host,
            &pins(params, generation, true),
            Access::ReadOnly,
        )
        .await;
        assert_eq!(parts.cipher.commitment(), commitment);
        parts.cipher = Arc::new(cipher(&OTHER_KEY));
        parts.pins.commitment = None;
        let opened = open(Vec::new(), parts, Access::ReadOnly).await;
        assert!(matches!(opened, Err(VolumeError::Tampered { .. })));
    });
}
