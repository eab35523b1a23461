//! Which records of the journal count.
//!
//! From the first record to replay the hash chain is followed: up to the first record of the
//! current epoch whatever the records' epochs (that part was accepted by the recovery that began
//! the epoch), from there on within the current epoch only. M is the highest record that any record
//! says was flushed. At or below M anything bad is corruption, never a reason to cut; above M the
//! first bad record, or the first whose data does not verify, ends the log.
use crate::device::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::geometry::JOURNAL_START;
use crate::format::record::{Change, RecordHeader};
use crate::format::superblock::Superblock;
use crate::journal::Mark;
use crate::pool::Pool;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};
use futures_util::future::join_all;

/// Blocks of the ring read at once.
const WINDOW_BLOCKS: u64 = 256;

/// The accepted part of the journal.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) records: Vec<(Record, Vec<Change>)>,
    /// Where the next record goes.
    pub(super) mark: Mark,
    /// Why changes must be refused: something that was acknowledged is lost.
    pub(super) damage: Option<String>,
}

/// Reads the ring through a window.
struct Ring<'a> {
    pool: &'a Pool,
    start: u64,
    blocks: u64,
    window: Option<(u64, Buffer)>,
}

impl Ring<'_> {
    /// `count` blocks from `position` on, around the end of the ring.
    async fn read(&mut self, position: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for block in position..position + count {
            bytes.extend_from_slice(self.block(block % self.blocks).await?);
        }
        Ok(bytes)
    }

    async fn block(&mut self, block: u64) -> Result<&[u8]> {
        let first = block / WINDOW_BLOCKS * WINDOW_BLOCKS;
        if self.window.as_ref().is_none_or(|(at, _)| *at != first) {
            let count = WINDOW_BLOCKS.min(self.blocks - first);
            let length = usize::try_from(count * BLOCK_BYTES).unwrap_or_default();
            let (buffer, read) = self
                .pool
                .device
                .read(self.start + first, Buffer::new(length))
                .await;
            read.map_err(|error| {
                Error::io(format!("reading the journal at block {first}"), error)
            })?;
            self.window = Some((first, buffer));
        }
        let at = usize::try_from((block - first) * BLOCK_BYTES).unwrap_or_default();
        let window = self
            .window
            .as_ref()
            .map(|(_, buffer)| &buffer[at..at + BLOCK_SIZE]);
        Ok(window.unwrap_or_else(|| unreachable!("the window was just filled")))
    }

    /// The record at `position`, if header and body verify.
    async fn record(&mut self, position: u64) -> Result<Option<(RecordHeader, Vec<u8>)>> {
        let Some(header) = RecordHeader::decode(self.block(position % self.blocks).await?) else {
            return Ok(None);
        };
        if header.pool_id != self.pool.id || header.blocks() > self.blocks {
            return Ok(None);
        }
        let bytes = self.read(position, header.blocks()).await?;
        Ok(header.body(&bytes).map(|body| (header, body.to_vec())))
    }
}

impl Pool {
    pub(super) async fn scan_journal(&self, superblock: &Superblock) -> Result<Found> {
        let geometry = superblock.geometry;
        let mut ring = Ring {
            pool: self,
            start: JOURNAL_START,
            blocks: geometry.journal_blocks,
            window: None,
        };
        let mut mark = Mark {
            first: superblock.replay_first,
            position: superblock.replay_position,
            previous: superblock.replay_previous,
        };
        let checkpointed = Record(superblock.replay_first.0.saturating_sub(1));
        let before_epoch = Record(superblock.epoch_first.0.saturating_sub(1));
        let mut durable = checkpointed.max(before_epoch);
        let mut chain: Vec<(RecordHeader, Vec<u8>, Mark)> = Vec::new();
        while let Some((header, body)) = ring.record(mark.position).await? {
            if !follows(&header, &mark, superblock) {
                break;
            }
            durable = durable.max(header.durable);
            chain.push((header, body, mark));
            mark.first.0 += 1;
            mark.position += header.blocks();
            mark.previous = header.crc;
        }
        let lap = superblock.replay_position + ring.blocks;
        durable = durable.max(later_word(&mut ring, &mark, lap, superblock.epoch).await?);
        tracing::debug!(
            "the journal's chain ends before {}; {durable} was flushed",
            mark.first
        );
        let mut found = self.accept(chain, mark, durable).await?;
        let at_epoch = mark.first == superblock.epoch_first;
        if at_epoch && mark.previous != superblock.epoch_previous {
            found.damage = Some(format!(
                "journal record {} is not the one that the last recovery accepted",
                superblock.epoch_first.0.saturating_sub(1)
            ));
        }
        Ok(found)
    }

    /// Cuts the chain at the first record above `durable` whose data does not verify.
    async fn accept(
        &self,
        chain: Vec<(RecordHeader, Vec<u8>, Mark)>,
        end: Mark,
        durable: Record,
    ) -> Result<Found> {
        let mut records = Vec::new();
        let mut mark = end;
        let mut damage = None;
        for (header, body, at) in chain {
            let changes = Change::decode_all(&body).ok_or_else(|| {
                let message = format!("{} verifies but says nothing known", header.number);
                Error::new(ErrorKind::Corrupt, message)
            })?;
            if header.number > durable && !self.data_verifies(&changes).await? {
                tracing::info!(
                    "the journal ends before {}: its data never landed",
                    header.number
                );
                mark = at;
                break;
            }
            records.push((header.number, changes));
        }
        if mark.first <= durable {
            damage = Some(format!(
                "journal record {} is damaged, although it and those up to {} were acknowledged",
                mark.first.0, durable.0
            ));
        }
        Ok(Found {
            records,
            mark,
            damage,
        })
    }

    /// Whether the data of a record landed. A read that fails says nothing about that: the opening
    /// fails with it, for cutting here would give up what may have been acknowledged.
    async fn data_verifies(&self, changes: &[Change]) -> Result<bool> {
        let runs = changes.iter().flat_map(|change| match change {
            Change::Map { runs, .. } => runs.as_slice(),
            _ => &[],
        });
        let verify = async |address: u64, crcs: &[u32]| {
            let buffer = Buffer::new(crcs.len() * BLOCK_SIZE);
            let (buffer, read) = self.device.read(address, buffer).await;
            read.map_err(|error| {
                Error::io(format!("reading data at block {address} to recover"), error)
            })?;
            let blocks = buffer.as_chunks::<BLOCK_SIZE>().0;
            Ok(crcs
                .iter()
                .zip(blocks)
                .all(|(crc, block)| checksum(block) == *crc))
        };
        let pieces: Vec<_> = runs
            .flat_map(|run| {
                let starts = (run.address.0..).step_by(256);
                starts.zip(run.crcs.chunks(256))
            })
            .collect();
        for batch in pieces.chunks(64) {
            let verified = join_all(batch.iter().map(|(at, crcs)| verify(*at, crcs))).await;
            for landed in verified {
                if !landed? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Whether a record that verifies is the next of the chain.
fn follows(header: &RecordHeader, mark: &Mark, superblock: &Superblock) -> bool {
    let current = mark.first >= superblock.epoch_first;
    let epoch_fits = if current {
        header.epoch == superblock.epoch
    } else {
        header.epoch < superblock.epoch
    };
    let chain_fits =
        mark.first != superblock.epoch_first || mark.previous == superblock.epoch_previous;
    header.number == mark.first && header.previous == mark.previous && epoch_fits && chain_fits
}

/// The highest `durable` that any record of this epoch beyond the chain's end knows of: if record k
/// is bad and a later one says that k was flushed, k is damaged, not torn.
async fn later_word(ring: &mut Ring<'_>, end: &Mark, lap: u64, epoch: u64) -> Result<Record> {
    let mut durable = Record(0);
    for position in end.position..lap {
        let Some(header) = RecordHeader::decode(ring.block(position % ring.blocks).await?) else {
            continue;
        };
        let later = header.epoch == epoch && header.number > end.first;
        if later && header.durable >= end.first && ring.record(position).await?.is_some() {
            durable = durable.max(header.durable);
        }
    }
    Ok(durable)
}
