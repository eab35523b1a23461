//! The superblock: identity, shape, and the root of one checkpoint.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use super::checksum;
use super::geometry::Geometry;
use super::pointer::NodeRef;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{LEVEL_MAX, TABLE_BLOCKS};
use crate::units::{Address, BLOCK_SIZE, Record};

pub(crate) const MAGIC: &[u8; 8] = b"BASALTSB";
/// The version of the format that this code writes.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a superblock: a head and a directory block.
pub(crate) const BYTES: usize = 2 * BLOCK_SIZE;
/// The one checksum algorithm there is: CRC-32 (IEEE), as `crc32fast` computes it.
const CHECKSUM_CRC32: u32 = 1;
/// Autoclear feature: the pool was closed; the journal holds nothing to replay.
const AUTOCLEAR_CLEAN: u64 = 1;
/// Bytes 0-4095 are the head; the directory of the region table follows.
const PLACES_AT: usize = 512;

/// Record numbers fit a birth; other counters leave room to go on. Neither is reached in practice.
const RECORDS_END: u64 = 1 << 44;
const COUNTERS_END: u64 = 1 << 62;

/// Which of its two places each region-table block is in, and what it hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableBlock {
    pub(crate) place: u8,
    pub(crate) crc: u32,
}

/// One generation of the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) pool_id: [u8; 16],
    pub(crate) geometry: Geometry,
    pub(crate) generation: u64,
    /// Closed in order: nothing to replay.
    pub(crate) clean: bool,
    pub(crate) epoch: u64,
    /// The first record that this epoch accepts, and the CRC of the one before.
    pub(crate) epoch_first: Record,
    pub(crate) epoch_previous: u32,
    pub(crate) checkpoints: u64,
    /// The first record to replay, its place in the journal, and the CRC of the one before.
    pub(crate) replay_first: Record,
    pub(crate) replay_position: u64,
    pub(crate) replay_previous: u32,
    /// The catalogue's root; `None` while it is empty.
    pub(crate) catalogue: Option<NodeRef>,
    /// The next id of a volume, version or job.
    pub(crate) next_id: u64,
    pub(crate) table: Vec<TableBlock>,
}

impl Superblock {
    /// The bytes for slot `slot`.
    pub(crate) fn encode(&self, slot: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.put(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0); // the CRC, put in last
        out.put(&self.pool_id);
        out.put_u64(self.generation);
        out.put_u32(slot);
        out.put_u32(CHECKSUM_CRC32);
        out.put_u64(0); // incompatible features
        out.put_u64(0); // compatible features
        out.put_u64(if self.clean { AUTOCLEAR_CLEAN } else { 0 });
        out.put_u64(self.geometry.blocks);
        out.put_u64(self.geometry.journal_blocks);
        out.put_u32(self.geometry.fanout);
        out.put_u32(self.geometry.region_blocks);
        out.put_u64(self.epoch);
        out.put_u64(self.epoch_first.0);
        out.put_u64(self.checkpoints);
        out.put_u64(self.replay_first.0);
        out.put_u64(self.replay_position);
        out.put_u32(self.epoch_previous);
        out.put_u32(self.replay_previous);
        out.put_u64(self.next_id);
        put_root(&mut out, self.catalogue);
        out.resize(PLACES_AT, 0);
        let mut places = [0u8; TABLE_BLOCKS / 8];
        for (index, block) in self.table.iter().enumerate() {
            if let Some(byte) = places.get_mut(index >> 3) {
                *byte |= (block.place & 1) << (index & 7);
            }
        }
        out.put(&places);
        out.resize(BLOCK_SIZE, 0);
        for block in &self.table {
            out.put_u32(block.crc);
        }
        out.resize(BYTES, 0);
        let crc = checksum(&out);
        out.splice(12..16, crc.to_le_bytes());
        out
    }

    /// What slot `slot` holds. `Unsupported`: a Basalt pool of a form unknown here; `Corrupt`: not
    /// a superblock, or a damaged one.
    pub(crate) fn decode(bytes: &[u8], slot: u32) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorKind::Corrupt, format!("superblock {slot}: {what}"));
        let mut reader = Reader::new(bytes);
        if reader.take(8) != Some(MAGIC) {
            return Err(bad("no magic: not a Basalt pool, or damaged"));
        }
        let version = reader.u32().ok_or_else(|| bad("cut short"))?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the pool has format version {version}; this build knows version {VERSION}: \
                     use the build that made it"
                ),
            ));
        }
        let crc = reader.u32().ok_or_else(|| bad("cut short"))?;
        let mut copy = bytes.get(..BYTES).ok_or_else(|| bad("cut short"))?.to_vec();
        copy.splice(12..16, [0; 4]);
        if checksum(&copy) != crc {
            return Err(bad("checksum mismatch"));
        }
        Self::fields(&mut reader, bytes, slot)?.ok_or_else(|| bad("impossible contents"))
    }

    /// Counters that can be counted on, and record numbers that can be births.
    fn has_sound_numbers(&self) -> bool {
        let counters = [
            self.generation,
            self.epoch,
            self.replay_position,
            self.next_id,
        ];
        let records = [self.epoch_first.0, self.replay_first.0];
        counters.iter().all(|number| *number < COUNTERS_END)
            && records
                .iter()
                .all(|number| (1..RECORDS_END).contains(number))
    }

    fn fields(reader: &mut Reader<'_>, bytes: &[u8], slot: u32) -> Result<Option<Self>> {
        let parse = || -> Option<(Self, u64, u32)> {
            let pool_id = reader.take(16)?.try_into().ok()?;
            let generation = reader.u64()?;
            if reader.u32()? != slot {
                return None; // a write that went astray
            }
            let algorithm = reader.u32()?;
            let incompatible = reader.u64()?;
            let _compatible = reader.u64()?;
            let clean = reader.u64()? & AUTOCLEAR_CLEAN != 0;
            let (blocks, journal_blocks) = (reader.u64()?, reader.u64()?);
            let (fanout, region_blocks) = (reader.u32()?, reader.u32()?);
            let geometry = Geometry {
                blocks,
                fanout,
                region_blocks,
                journal_blocks,
            };
            if !geometry.is_sound() {
                return None;
            }
            let (epoch, epoch_first) = (reader.u64()?, Record(reader.u64()?));
            let checkpoints = reader.u64()?;
            let (replay_first, replay_position) = (Record(reader.u64()?), reader.u64()?);
            let (epoch_previous, replay_previous) = (reader.u32()?, reader.u32()?);
            let next_id = reader.u64()?;
            let catalogue = read_root(reader)?;
            let table = directory(bytes, geometry.table_blocks())?;
            let superblock = Self {
                pool_id,
                geometry,
                generation,
                clean,
                epoch,
                epoch_first,
                epoch_previous,
                checkpoints,
                replay_first,
                replay_position,
                replay_previous,
                catalogue,
                next_id,
                table,
            };
            let sound = superblock.has_sound_numbers();
            sound.then_some((superblock, incompatible, algorithm))
        };
        let Some((superblock, incompatible, algorithm)) = { parse }() else {
            return Ok(None);
        };
        if incompatible != 0 || algorithm != CHECKSUM_CRC32 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the pool uses features {incompatible:#x} and checksum {algorithm}, unknown \
                     to this build: use a newer one"
                ),
            ));
        }
        Ok(Some(superblock))
    }
}

fn directory(bytes: &[u8], blocks: usize) -> Option<Vec<TableBlock>> {
    let places = bytes.get(PLACES_AT..)?;
    let mut crcs = Reader::new(bytes.get(BLOCK_SIZE..)?);
    (0..blocks)
        .map(|index| {
            let place = *places.get(index >> 3)? >> (index & 7) & 1;
            Some(TableBlock {
                place,
                crc: crcs.u32()?,
            })
        })
        .collect()
}

/// A root takes 40 bytes: address, twin, birth, count, CRC, level, three zeroes. Address 0: none.
pub(crate) fn put_root(out: &mut Vec<u8>, root: Option<NodeRef>) {
    let zero = Address(0);
    out.put_u64(root.map_or(zero, |r| r.address).0);
    out.put_u64(root.map_or(zero, |r| r.twin).0);
    out.put_u64(root.map_or(0, |r| r.birth.0));
    out.put_u64(root.map_or(0, |r| r.count));
    out.put_u32(root.map_or(0, |r| r.crc));
    out.put_u32(root.map_or(0, |r| r.level.into()));
}

/// The outer `None`: not a root.
#[expect(
    clippy::option_option,
    reason = "empty and damaged are different answers"
)]
pub(crate) fn read_root(reader: &mut Reader<'_>) -> Option<Option<NodeRef>> {
    let (address, twin) = (Address(reader.u64()?), Address(reader.u64()?));
    let (birth, count) = (Record(reader.u64()?), reader.u64()?);
    let (crc, level) = (reader.u32()?, u8::try_from(reader.u32()?).ok()?);
    if level > LEVEL_MAX || address.0 >> 44 != 0 || twin.0 >> 44 != 0 || birth.0 >> 44 != 0 {
        return None;
    }
    Some((address.0 != 0).then_some(NodeRef {
        address,
        twin,
        birth,
        crc,
        level,
        count,
    }))
}

const _: () = {
    assert!(PLACES_AT + TABLE_BLOCKS / 8 <= BLOCK_SIZE);
    assert!(TABLE_BLOCKS * 4 <= BLOCK_SIZE);
};
