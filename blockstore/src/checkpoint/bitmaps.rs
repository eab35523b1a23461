//! Writing bitmaps and the region table, each to the one of its two places that is not current.
use crate::allocator::{Bitmap, Log, apply};
use crate::device::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::geometry::Geometry;
use crate::format::superblock::{Superblock, TableBlock};
use crate::format::table::{RegionEntry, encode};
use crate::limits::TABLE_ENTRIES;
use crate::pool::Pool;
use crate::units::BLOCK_SIZE;
use futures_util::future::join_all;
use std::collections::BTreeMap;

/// Bitmaps read, changed and written at once.
const BATCH: usize = 64;

/// A region's bitmap as its entry says it is stored.
pub(crate) async fn read_bitmap(
    device: &dyn crate::device::Device,
    geometry: &Geometry,
    region: usize,
    entry: RegionEntry,
) -> Result<Bitmap> {
    if entry == RegionEntry::default() {
        return Ok(Bitmap::new(geometry.region_blocks)); // never written: nothing was ever used
    }
    let bytes = usize::try_from(geometry.bitmap_blocks()).unwrap_or_default() * BLOCK_SIZE;
    let place = geometry.bitmap_place(region, entry.place);
    let (buffer, read) = device.read(place, Buffer::new(bytes)).await;
    read.map_err(|error| Error::io(format!("reading the bitmap of region {region}"), error))?;
    if checksum(&buffer) != entry.crc {
        let message = format!("the bitmap of region {region} fails its checksum");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(Bitmap::from_bytes(&buffer, geometry.region_blocks))
}

impl Pool {
    /// Writes the bitmap of every region in the log; their new entries.
    pub(super) async fn write_bitmaps(&self, log: &Log) -> Result<BTreeMap<usize, RegionEntry>> {
        let mut settled = BTreeMap::new();
        let regions: Vec<usize> = log.keys().copied().collect();
        for batch in regions.chunks(BATCH) {
            let written =
                join_all(batch.iter().map(|region| self.write_bitmap(*region, log))).await;
            for (region, entry) in batch.iter().zip(written) {
                settled.insert(*region, entry?);
            }
        }
        Ok(settled)
    }

    async fn write_bitmap(&self, region: usize, log: &Log) -> Result<RegionEntry> {
        // In memory it must be before it settles, as it was before these changes.
        self.load_region(region).await?;
        let (entry, geometry) = {
            let state = self.state.lock();
            (state.allocator.entry(region), state.geometry)
        };
        let mut bitmap = read_bitmap(&*self.device, &geometry, region, entry).await?;
        apply(&mut bitmap, log.get(&region).map_or(&[], Vec::as_slice));
        let bytes = usize::try_from(geometry.bitmap_blocks()).unwrap_or_default() * BLOCK_SIZE;
        let bytes = bitmap.to_bytes(bytes);
        let place = entry.place ^ 1;
        let new = RegionEntry {
            crc: checksum(&bytes),
            used: bitmap.count(),
            place,
        };
        let start = geometry.bitmap_place(region, place);
        self.write_ordered("a bitmap write", start, bytes).await?;
        Ok(new)
    }

    /// Writes the table blocks that hold changed entries, and puts them into the superblock.
    pub(super) async fn write_table(
        &self,
        superblock: &mut Superblock,
        settled: &BTreeMap<usize, RegionEntry>,
    ) -> Result<()> {
        let mut blocks: Vec<usize> = settled
            .keys()
            .map(|region| region / TABLE_ENTRIES)
            .collect();
        blocks.dedup();
        let geometry = superblock.geometry;
        for index in blocks {
            let bytes = {
                let state = self.state.lock();
                let regions =
                    index * TABLE_ENTRIES..geometry.regions().min((index + 1) * TABLE_ENTRIES);
                let entry = |region: usize| {
                    settled
                        .get(&region)
                        .copied()
                        .unwrap_or_else(|| state.allocator.entry(region))
                };
                encode(&regions.map(entry).collect::<Vec<_>>())
            };
            let place = superblock.table[index].place ^ 1;
            superblock.table[index] = TableBlock {
                place,
                crc: checksum(&bytes),
            };
            let start = Geometry::table_place(index, place);
            self.write_ordered("a region table write", start, bytes)
                .await?;
        }
        Ok(())
    }
}
