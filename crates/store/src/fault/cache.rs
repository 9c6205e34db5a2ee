//! The volatile cache of one file on the fault disk: what was written and is not durable.
//!
//! The *platter* is a store below that holds exactly what is durable. What is not lies here, per
//! 512-byte sector every version since the last sync that covered it, and the file's unsynced
//! punches, allocations and growth in order. A read sees the newest; a crash keeps any.
//!
//! What always holds: the platter changes only by a sync, a durable write or a crash. A sector
//! with an entry is shown from it, whatever ranges cover it: an entry that is made while a punch
//! is unsynced begins with the version that the punch left.

use std::collections::BTreeMap;
use std::ops::Range;

use super::extents::{Extents, covered, touched};
use super::journal::Covers;
use super::platter::{self, Content, index};
use super::random::Random;
use super::{SECTOR, SECTOR_LEN};
use crate::{Store, StoreError};

/// A punch tears into at most this many pieces.
const PUNCH_PIECES: u64 = 8;

/// What is not durable of one file, and what space it takes.
pub(super) struct Cache {
    /// As reads see it.
    len: u64,
    sectors: BTreeMap<u64, Sector>,
    /// Unsynced operations on ranges, oldest first, with their numbers.
    ranges: Vec<(u64, RangeChange)>,
    allocated: Extents,
    allocated_durable: Extents,
}

#[derive(Default)]
struct Sector {
    /// Unsynced, oldest first, with the operations that left them.
    versions: Vec<(u64, Content)>,
    /// What is shown if there are none: a version that a failed sync has lost, or a durable one
    /// that an older, unsynced punch must not hide.
    shown: Option<Content>,
}

enum RangeChange {
    Allocate(Range<u64>),
    Grow(u64),
    /// Whole sectors, in bytes.
    Punch(Range<u64>),
}

impl Sector {
    fn newest(&self) -> &Content {
        let newest = self.versions.last().map(|(_, content)| content);
        newest.or(self.shown.as_ref()).unwrap_or(&None)
    }

    /// Index of the newest version that a sync covers.
    fn newest_covered(&self, covers: &Covers) -> Option<usize> {
        self.versions.iter().rposition(|(id, _)| covers.covers(*id))
    }

    fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.shown.is_none()
    }
}

impl Cache {
    /// Nothing unsynced, over a platter that is `len` bytes long.
    pub(super) fn clean(len: u64, allocated: Extents) -> Self {
        Self {
            len,
            sectors: BTreeMap::new(),
            ranges: Vec::new(),
            allocated_durable: allocated.clone(),
            allocated,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Blocks that take space.
    pub(super) fn allocated(&self) -> &Extents {
        &self.allocated
    }

    /// Bytes of space that writing or allocating a range would take.
    pub(super) fn space_missing(&self, offset: u64, len: u64) -> u64 {
        self.allocated.missing(&touched(offset, len))
    }

    /// Reads the newest.
    pub(super) async fn read(
        &self,
        platter: &impl Store,
        offset: u64,
        to: &mut [u8],
    ) -> Result<(), StoreError> {
        let end = offset + to.len() as u64;
        platter::read(platter, offset, to).await?;
        for (_, change) in &self.ranges {
            if let RangeChange::Punch(punched) = change {
                let (from, past) = (punched.start.max(offset), punched.end.min(end));
                if from < past {
                    to[index(from - offset)..index(past - offset)].fill(0);
                }
            }
        }
        for (&sector, entry) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = sector * SECTOR;
            let (from, past) = (start.max(offset), (start + SECTOR).min(end));
            let part = &mut to[index(from - offset)..index(past - offset)];
            match entry.newest() {
                Some(bytes) => {
                    part.copy_from_slice(&bytes[index(from - start)..index(past - start)])
                }
                None => part.fill(0),
            }
        }
        Ok(())
    }

    /// Writes as operation `id`; nothing of it is durable.
    pub(super) async fn write(
        &mut self,
        platter: &impl Store,
        id: u64,
        offset: u64,
        from: &[u8],
    ) -> Result<(), StoreError> {
        let end = offset + from.len() as u64;
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let start = sector * SECTOR;
            let (first, past) = (start.max(offset), (start + SECTOR).min(end));
            let mut content = Box::new([0; _]);
            if past - first < SECTOR {
                self.read_sector(platter, sector, &mut content).await?;
            }
            content[index(first - start)..index(past - start)]
                .copy_from_slice(&from[index(first - offset)..index(past - offset)]);
            self.entry(sector).versions.push((id, Some(content)));
        }
        self.allocated.insert(touched(offset, from.len() as u64));
        Ok(())
    }

    /// Makes what operation `id` has just written durable, and what is needed to find it.
    /// Each sector that `reaches` denies is lost instead, and shown all the same.
    pub(super) async fn write_through(
        &mut self,
        platter: &impl Store,
        (offset, len): (u64, u64),
        mut reaches: impl FnMut() -> bool,
    ) -> Result<(), StoreError> {
        let end = offset + len;
        if end > platter.len() {
            for (_, change) in &self.ranges {
                if let RangeChange::Grow(len) = change {
                    platter.grow((*len).max(platter.len())).await?;
                }
            }
            self.ranges
                .retain(|(_, change)| !matches!(change, RangeChange::Grow(_)));
        }
        let mut targets = Vec::new();
        let punches: Vec<Range<u64>> = self.punches().cloned().collect();
        for (&sector, entry) in self
            .sectors
            .range_mut(offset / SECTOR..end.div_ceil(SECTOR))
        {
            let content = entry.newest().clone();
            entry.versions.clear();
            let reached = reaches();
            if reached {
                targets.push((sector, content.clone()));
            }
            let keep = !reached || is_in(sector, &punches);
            entry.shown = keep.then_some(content);
        }
        self.sectors.retain(|_, entry| !entry.is_empty());
        self.write_platter(platter, targets).await
    }

    /// Punches as operation `id`; returns the bytes of space that came free.
    pub(super) async fn punch(
        &mut self,
        platter: &impl Store,
        id: u64,
        offset: u64,
        len: u64,
    ) -> Result<u64, StoreError> {
        let end = offset + len;
        let first_whole = offset.next_multiple_of(SECTOR).min(end);
        let past_whole = (end / SECTOR * SECTOR).max(first_whole);
        let freed = self.allocated.remove(&covered(offset, len));
        let kept = self.allocated.clone();
        for edge in [offset..first_whole, past_whole..end] {
            if !edge.is_empty() {
                let zeros = [0; SECTOR_LEN];
                self.write(
                    platter,
                    id,
                    edge.start,
                    &zeros[..index(edge.end - edge.start)],
                )
                .await?;
            }
        }
        self.allocated = kept; // zeroing the edges takes no space
        for (_, entry) in self
            .sectors
            .range_mut(first_whole / SECTOR..past_whole / SECTOR)
        {
            entry.versions.push((id, None));
        }
        self.ranges
            .push((id, RangeChange::Punch(first_whole..past_whole)));
        Ok(freed)
    }

    /// Allocates as operation `id`.
    pub(super) fn allocate(&mut self, id: u64, offset: u64, len: u64) {
        let blocks = touched(offset, len);
        self.allocated.insert(blocks.clone());
        self.ranges.push((id, RangeChange::Allocate(blocks)));
    }

    /// Grows as operation `id`.
    pub(super) fn grow(&mut self, id: u64, len: u64) {
        self.len = len;
        self.ranges.push((id, RangeChange::Grow(len)));
    }

    /// Makes everything covered durable.
    pub(super) async fn sync(
        &mut self,
        platter: &impl Store,
        covers: &Covers,
    ) -> Result<(), StoreError> {
        let (durable, remaining): (Vec<_>, Vec<_>) = std::mem::take(&mut self.ranges)
            .into_iter()
            .partition(|(id, _)| covers.covers(*id));
        self.ranges = remaining;
        let punched: Vec<Range<u64>> = durable.iter().filter_map(|(_, it)| it.punch()).collect();
        let mut targets = Vec::new();
        for (&sector, entry) in &self.sectors {
            if let Some(newest) = entry.newest_covered(covers) {
                targets.push((sector, entry.versions[newest].1.clone()));
            } else if is_in(sector, &punched) {
                // What is durable of it is newer than the punch, which must not reach it.
                targets.push((sector, platter::read_sector(platter, sector).await?));
            }
        }
        for (_, change) in &durable {
            self.make_durable(platter, change).await?;
        }
        let still_punched: Vec<Range<u64>> = self.punches().cloned().collect();
        self.sectors.retain(|sector, entry| {
            if let Some(newest) = entry.newest_covered(covers) {
                let (_, content) = entry
                    .versions
                    .drain(..=newest)
                    .next_back()
                    .expect("covered");
                entry.shown = is_in(*sector, &still_punched).then_some(content);
            }
            !entry.is_empty()
        });
        self.write_platter(platter, targets).await
    }

    /// A sync that fails: of the data it covers some sectors reach the platter, the others are
    /// lost; all are clean afterwards and shown as new. Changes to ranges stay unsynced.
    pub(super) async fn fail_sync(
        &mut self,
        platter: &impl Store,
        covers: &Covers,
        random: &mut Random,
    ) -> Result<(), StoreError> {
        let mut targets = Vec::new();
        for (&sector, entry) in &mut self.sectors {
            if let Some(newest) = entry.newest_covered(covers) {
                let (_, content) = entry
                    .versions
                    .drain(..=newest)
                    .next_back()
                    .expect("covered");
                if random.chance(1, 2) {
                    targets.push((sector, content.clone()));
                }
                entry.shown = Some(content);
            }
        }
        self.write_platter(platter, targets).await
    }

    /// Forgets what is clean: lost sectors read as the platter has them.
    pub(super) async fn discard_clean(&mut self, platter: &impl Store) -> Result<(), StoreError> {
        let punches: Vec<Range<u64>> = self.punches().cloned().collect();
        for (&sector, entry) in &mut self.sectors {
            entry.shown = match is_in(sector, &punches) {
                true => Some(platter::read_sector(platter, sector).await?),
                false => None,
            };
        }
        self.sectors.retain(|_, entry| !entry.is_empty());
        Ok(())
    }

    /// Leaves on the platter what a crash leaves, and nothing in the cache.
    pub(super) async fn crash(
        &mut self,
        platter: &impl Store,
        random: &mut Random,
    ) -> Result<(), StoreError> {
        let ranges = std::mem::take(&mut self.ranges);
        // How much survives is drawn for each file, so that all and none are not one in 2^n.
        let bias = [0, 1, 4, 7, 8][random.index(5)];
        let mut targets = Vec::new();
        for (sector, entry) in std::mem::take(&mut self.sectors) {
            let mut versions = entry.versions;
            let content = if versions.is_empty() || !random.chance(bias, 8) {
                platter::read_sector(platter, sector).await?
            } else if random.chance(1, 2) {
                versions.pop().expect("one at least").1
            } else {
                versions.swap_remove(random.index(versions.len())).1
            };
            targets.push((sector, content));
        }
        for (_, change) in &ranges {
            match change {
                RangeChange::Punch(whole) => {
                    for piece in torn(whole, random) {
                        if random.chance(bias, 8) {
                            let change = RangeChange::Punch(piece);
                            self.make_durable(platter, &change).await?;
                        }
                    }
                }
                _ if random.chance(1, 2) => self.make_durable(platter, change).await?,
                _ => {}
            }
        }
        self.write_platter(platter, targets).await?;
        *self = Self::clean(platter.len(), std::mem::take(&mut self.allocated_durable));
        Ok(())
    }

    async fn make_durable(
        &mut self,
        platter: &impl Store,
        change: &RangeChange,
    ) -> Result<(), StoreError> {
        match change {
            RangeChange::Allocate(blocks) => {
                self.allocated_durable.insert(blocks.clone());
                Ok(())
            }
            RangeChange::Grow(len) => platter.grow((*len).max(platter.len())).await,
            RangeChange::Punch(bytes) => {
                let len = bytes.end.min(platter.len()).saturating_sub(bytes.start);
                self.allocated_durable.remove(&covered(bytes.start, len));
                if len == 0 {
                    Ok(())
                } else {
                    platter.punch(bytes.start, len).await
                }
            }
        }
    }

    /// Writes sectors (ascending) to the platter as far as it reaches.
    async fn write_platter(
        &mut self,
        platter: &impl Store,
        targets: Vec<(u64, Content)>,
    ) -> Result<(), StoreError> {
        let reached = platter.len().div_ceil(SECTOR);
        for (sector, _) in targets
            .iter()
            .filter(|(at, data)| *at < reached && data.is_some())
        {
            self.allocated_durable
                .insert(touched(sector * SECTOR, SECTOR));
        }
        platter::write(platter, &targets).await
    }

    /// The entry of a sector that is about to get a new version.
    fn entry(&mut self, sector: u64) -> &mut Sector {
        let ranges = &self.ranges;
        self.sectors.entry(sector).or_insert_with(|| {
            let punched = ranges.iter().filter_map(|(id, change)| {
                let hit = change
                    .punch()
                    .is_some_and(|range| range.contains(&(sector * SECTOR)));
                hit.then_some((*id, None))
            });
            Sector {
                versions: punched.collect(),
                shown: None,
            }
        })
    }

    /// A whole sector as reads see it; zeros beyond the end.
    async fn read_sector(
        &self,
        platter: &impl Store,
        sector: u64,
        to: &mut [u8; SECTOR_LEN],
    ) -> Result<(), StoreError> {
        self.read(platter, sector * SECTOR, to).await
    }

    fn punches(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter().filter_map(|(_, change)| match change {
            RangeChange::Punch(range) => Some(range),
            _ => None,
        })
    }
}

impl RangeChange {
    fn punch(&self) -> Option<Range<u64>> {
        match self {
            Self::Punch(range) => Some(range.clone()),
            _ => None,
        }
    }
}

fn is_in(sector: u64, ranges: &[Range<u64>]) -> bool {
    ranges
        .iter()
        .any(|range| range.contains(&(sector * SECTOR)))
}

/// Cuts a range at sectors into pieces that survive one by one.
fn torn(range: &Range<u64>, random: &mut Random) -> Vec<Range<u64>> {
    let sectors = (range.end - range.start) / SECTOR;
    if sectors == 0 {
        return Vec::new();
    }
    let count = random.below(PUNCH_PIECES) + 1;
    let mut cuts: Vec<u64> = (1..count)
        .map(|_| range.start + random.below(sectors) * SECTOR)
        .collect();
    cuts.extend([range.start, range.end]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}
