//! The platter: the store below a file of the fault disk, which holds exactly what is durable.
//! Sectors in and out, as far as it reaches.

use super::{SECTOR, SECTOR_LEN};
use crate::{Durability, IoBuf, Store, StoreError};

/// Sectors in one write at most.
const RUN_SECTORS: usize = 128;

/// One sector; `None` is zeros.
pub(super) type Content = Option<Box<[u8; SECTOR_LEN]>>;

/// Writes sectors (ascending), in runs; what lies beyond the end is dropped.
pub(super) async fn write(
    platter: &impl Store,
    sectors: &[(u64, Content)],
) -> Result<(), StoreError> {
    let follows = |a: &(u64, Content), b: &(u64, Content)| a.0 + 1 == b.0;
    let runs = sectors
        .chunk_by(follows)
        .flat_map(|run| run.chunks(RUN_SECTORS));
    for run in runs {
        let start = run[0].0 * SECTOR;
        let mut buf = IoBuf::for_overwrite(run.len() * SECTOR_LEN);
        for ((_, content), to) in run.iter().zip(buf.chunks_mut(SECTOR_LEN)) {
            match content {
                Some(bytes) => to.copy_from_slice(&**bytes),
                None => to.fill(0),
            }
        }
        let reached = platter.len().saturating_sub(start);
        buf.truncate(index(reached.min(buf.len() as u64)));
        if !buf.is_empty() {
            platter.write_at(buf, start, Durability::Volatile).await.1?;
        }
    }
    Ok(())
}

/// What is durable of a sector.
pub(super) async fn read_sector(platter: &impl Store, sector: u64) -> Result<Content, StoreError> {
    let mut bytes = Box::new([0; _]);
    read(platter, sector * SECTOR, &mut *bytes).await?;
    Ok(Some(bytes).filter(|bytes| bytes.iter().any(|&byte| byte != 0)))
}

/// Reads what is durable; zeros beyond the end.
pub(super) async fn read(
    platter: &impl Store,
    offset: u64,
    to: &mut [u8],
) -> Result<(), StoreError> {
    let there = platter.len().saturating_sub(offset).min(to.len() as u64);
    let (there, beyond) = to.split_at_mut(index(there));
    beyond.fill(0);
    if !there.is_empty() {
        let (buf, result) = platter
            .read_at(IoBuf::for_overwrite(there.len()), offset)
            .await;
        result?;
        there.copy_from_slice(&buf);
    }
    Ok(())
}

/// A distance within a buffer.
pub(super) fn index(within_buffer: u64) -> usize {
    usize::try_from(within_buffer).expect("no longer than the buffer")
}
