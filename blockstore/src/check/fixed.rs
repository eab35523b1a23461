//! What is in fixed places: superblocks, the region table, bitmaps.
use super::Checker;
use super::reading::READS;
use crate::allocator::Bitmap;
use crate::checkpoint::read_bitmap;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::geometry::{Geometry, SLOTS};
use crate::format::superblock::{self, Superblock};
use crate::format::table::{RegionEntry, decode};
use crate::limits::TABLE_ENTRIES;
use crate::units::BLOCK_SIZE;
use futures_util::future::join_all;
use std::ops::Range;

/// Every slot of the superblock, or why it holds none.
pub(super) async fn read_slots(device: &dyn Device) -> Vec<Result<Superblock>> {
    let mut slots = Vec::new();
    for (slot, start) in (0u32..).zip(SLOTS) {
        let (buffer, read) = device.read(start, Buffer::new(superblock::BYTES)).await;
        let decoded = read
            .map_err(|error| Error::io(format!("reading superblock {slot}"), error))
            .and_then(|()| Superblock::decode(&buffer, slot));
        slots.push(decoded);
    }
    slots
}

impl Checker<'_> {
    /// I8: the newest generation is there twice, and says the same.
    pub(super) async fn check_superblocks(&mut self) {
        let slots = read_slots(&*self.source.device).await;
        let newest = self.superblock.generation;
        for (slot, found) in slots.into_iter().enumerate() {
            if slot as u64 % 2 != newest % 2 {
                continue;
            }
            match found {
                Ok(found) if found == self.superblock => {}
                Ok(found) => self.problem(format!(
                    "I8: superblock {slot} is of generation {}, its copy of {newest}",
                    found.generation
                )),
                Err(error) => self.problem(format!("I8: {error}")),
            }
        }
        let superblock = &self.superblock;
        if superblock.replay_first.0 == 0 || superblock.epoch_first.0 == 0 {
            self.problem("I8: the superblock's record numbers begin with 1".to_owned());
        }
    }

    /// The entries of every region; of those that cannot be read, empty ones.
    pub(super) async fn read_table(&mut self) -> Vec<RegionEntry> {
        let geometry = self.superblock.geometry;
        let mut entries = Vec::new();
        for (index, block) in self.superblock.table.clone().iter().enumerate() {
            let start = Geometry::table_place(index, block.place);
            let (buffer, read) = self
                .source
                .device
                .read(start, Buffer::new(BLOCK_SIZE))
                .await;
            let decoded = match read {
                Err(error) => Err(format!("cannot be read: {error}")),
                Ok(()) if checksum(&buffer) != block.crc => Err("checksum mismatch".to_owned()),
                Ok(()) => decode(&buffer).ok_or_else(|| "holds impossible places".to_owned()),
            };
            entries.extend(decoded.unwrap_or_else(|why| {
                self.problem(format!("I3: region table block {index}: {why}"));
                vec![RegionEntry::default(); TABLE_ENTRIES]
            }));
        }
        let beyond = entries.split_off(geometry.regions().min(entries.len()));
        if beyond.iter().any(|entry| *entry != RegionEntry::default()) {
            let line = "I2: the region table has entries beyond the last region";
            self.problem(line.to_owned());
        }
        entries
    }

    /// I2: every bitmap has exactly the owned blocks set.
    pub(super) async fn check_bitmaps(&mut self, table: &[RegionEntry]) {
        let geometry = self.superblock.geometry;
        for (batch, entries) in table.chunks(READS).enumerate() {
            let device = &*self.source.device;
            let regions = batch * READS..;
            let reads = regions
                .clone()
                .zip(entries)
                .map(|(region, entry)| read_bitmap(device, &geometry, region, *entry));
            let bitmaps = join_all(reads).await;
            for ((region, entry), bitmap) in regions.zip(entries).zip(bitmaps) {
                match bitmap {
                    Ok(bitmap) => self.check_bitmap(region, *entry, &bitmap),
                    Err(error) => self.problem(format!("I3: {error}")),
                }
            }
        }
    }

    fn check_bitmap(&mut self, region: usize, entry: RegionEntry, stored: &Bitmap) {
        if entry.used != stored.count() {
            self.problem(format!(
                "I2: region {region}: the table counts {} used blocks, the bitmap {}",
                entry.used,
                stored.count()
            ));
        }
        let difference = self.owners.compare(region, stored);
        let show = |run: Range<u64>| format!("blocks {} to {}", run.start, run.end - 1);
        for run in difference.leaked {
            let blocks = show(run);
            self.problem(format!(
                "I2: region {region}: {blocks} are in use and nobody's: leaked"
            ));
        }
        for run in difference.missing {
            let blocks = show(run);
            self.problem(format!(
                "I2: region {region}: {blocks} are somebody's and not marked as in use"
            ));
        }
    }
}
