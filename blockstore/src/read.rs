//! The way of a read: find the runs, read adjacent addresses together, verify, answer.
use crate::cache::NodeSource;
use crate::device::{Buffer, zeroes};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::{Leaf, Node, leaf_at};
use crate::pool::Pool;
use crate::readers::Reading;
use crate::request::Segment;
use crate::state::State;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};
use crate::write::{head_of, slot_at};
use bytes::Bytes;
use futures_util::future::join_all;
use std::sync::Arc;

/// What is read: a volume's head, whichever version that is, or a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Volume(u64),
    Version(u64),
}

impl Target {
    /// The version's id, or `Gone`.
    pub(crate) fn version(self, state: &State) -> Result<u64> {
        match self {
            Self::Volume(volume) => head_of(state, volume),
            Self::Version(version) => {
                let gone = || Error::new(ErrorKind::Gone, "the snapshot was deleted");
                let found = state.versions.get(&version).ok_or_else(gone)?;
                if found.kind == crate::versions::Kind::Ghost {
                    return Err(gone());
                }
                Ok(version)
            }
        }
    }
}

/// Blocks that are read by one device operation, or need none.
#[derive(Debug)]
enum Piece {
    Hole(u64),
    Data(Vec<Packed>),
}

/// A plan, or the node to load first.
type Planned = std::result::Result<Vec<Piece>, NodeRef>;

fn plan(
    state: &mut State,
    version: u64,
    first: u64,
    end: u64,
    nodes: &NodeSource<'_>,
) -> Result<Planned> {
    let (root, ground) = state.ground(version, Record(0), nodes)?;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut block = first;
    while block < end {
        match leaf_at(root, &ground, block) {
            Err(missing) => return Ok(Err(missing)),
            Ok(Leaf::Hole { end: hole_end }) => {
                let stop = hole_end.min(end);
                add_hole(&mut pieces, stop - block);
                block = stop;
            }
            Ok(Leaf::Node(leaf)) => {
                let stop = end.min(leaf.header.first + ground.geometry.span(0));
                for block in block..stop {
                    let index = usize::try_from(block - leaf.header.first).unwrap_or(usize::MAX);
                    add_slot(&mut pieces, leaf.slot(index));
                }
                block = stop;
            }
        }
    }
    Ok(Ok(pieces))
}

fn add_hole(pieces: &mut Vec<Piece>, blocks: u64) {
    if let Some(Piece::Hole(length)) = pieces.last_mut() {
        *length += blocks;
    } else {
        pieces.push(Piece::Hole(blocks));
    }
}

fn add_slot(pieces: &mut Vec<Piece>, slot: Packed) {
    if slot.is_hole() {
        return add_hole(pieces, 1);
    }
    if let Some(Piece::Data(run)) = pieces.last_mut()
        && run
            .last()
            .is_some_and(|last| last.address().0 + 1 == slot.address().0)
    {
        return run.push(slot);
    }
    pieces.push(Piece::Data(vec![slot]));
}

impl Pool {
    /// Reads a byte range, verified.
    pub(crate) async fn read(
        &self,
        target: Target,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Segment>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let end = offset + length;
        let (first, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let mut failed = None;
        // A mismatch is looked up anew and read once more: a stale look-up heals, damage does not.
        for _ in 0..2 {
            let (pieces, reading) = self.plan_read(target, first, last).await?;
            let segments = self.read_pieces(pieces).await;
            drop(reading);
            match segments {
                Ok(segments) => return Ok(cut(segments, offset, end)),
                Err(error) => failed = Some(error),
            }
        }
        let error = failed.unwrap_or_else(|| Error::new(ErrorKind::Io, "a read failed"));
        if error.kind() == ErrorKind::Corrupt {
            self.state.lock().checksum_errors += 1;
        }
        tracing::error!("reading {target:?} at byte {offset}: {error}");
        Err(error)
    }

    async fn plan_read(
        &self,
        target: Target,
        first: u64,
        end: u64,
    ) -> Result<(Vec<Piece>, Reading)> {
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let (missing, reading) = {
                let mut state = self.state.lock();
                let version = target.version(&state)?;
                let nodes = NodeSource::new(&self.cache, &loaded);
                let reading = state.readers.begin();
                match plan(&mut state, version, first, end, &nodes)? {
                    Ok(pieces) => return Ok((pieces, reading)),
                    Err(missing) => (missing, reading),
                }
            };
            loaded.push(self.load_node(&missing, &reading).await?);
        }
    }

    async fn read_pieces(&self, mut pieces: Vec<Piece>) -> Result<Vec<Segment>> {
        if pieces.len() == 1
            && let Some(piece) = pieces.pop()
        {
            return Ok(vec![self.read_piece(piece).await?]);
        }
        let reads = pieces.into_iter().map(|piece| self.read_piece(piece));
        join_all(reads).await.into_iter().collect()
    }

    async fn read_piece(&self, piece: Piece) -> Result<Segment> {
        let run = match piece {
            Piece::Hole(blocks) => return Ok(Segment::Hole(blocks * BLOCK_BYTES)),
            Piece::Data(run) => run,
        };
        let address = run
            .first()
            .map_or(crate::units::Address(0), |slot| slot.address());
        let buffer = Buffer::new(run.len() * BLOCK_SIZE);
        let (buffer, read) = self.device.read(address.0, buffer).await;
        read.map_err(|error| Error::io(format!("reading {address}"), error))?;
        for (slot, block) in run.iter().zip(buffer.as_chunks::<BLOCK_SIZE>().0) {
            if checksum(block) != slot.crc() {
                let message = format!("{}: checksum mismatch", slot.address());
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
        }
        Ok(Segment::Data(buffer.freeze()))
    }

    /// What a volume's head maps at `block`, and its content: to merge with.
    pub(crate) async fn read_current(&self, volume: u64, block: u64) -> Result<(Packed, Bytes)> {
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let (found, reading) = {
                let mut state = self.state.lock();
                let version = head_of(&state, volume)?;
                let nodes = NodeSource::new(&self.cache, &loaded);
                (
                    slot_at(&mut state, version, block, &nodes)?,
                    state.readers.begin(),
                )
            };
            match found {
                Err(missing) => loaded.push(self.load_node(&missing, &reading).await?),
                Ok(slot) if slot.is_hole() => return Ok((slot, zeroes(BLOCK_SIZE))),
                Ok(slot) => match self.read_piece(Piece::Data(vec![slot])).await? {
                    Segment::Data(data) => return Ok((slot, data)),
                    Segment::Hole(_) => unreachable!("data is no hole"),
                },
            }
        }
    }
}

/// Cuts whole blocks down to the bytes asked for.
fn cut(segments: Vec<Segment>, offset: u64, end: u64) -> Vec<Segment> {
    let mut at = offset / BLOCK_BYTES * BLOCK_BYTES;
    let piece = |segment: Segment| {
        let (start, stop) = (at.max(offset), (at + segment.length()).min(end));
        let skip = usize::try_from(start - at).unwrap_or(usize::MAX);
        at += segment.length();
        match segment {
            Segment::Hole(_) => Segment::Hole(stop - start),
            Segment::Data(data) => {
                let length = usize::try_from(stop - start).unwrap_or(usize::MAX);
                Segment::Data(data.slice(skip..skip + length))
            }
        }
    };
    segments.into_iter().map(piece).collect()
}
