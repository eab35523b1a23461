//! Replies, encoded into one batch of memory pieces that a single send can carry.
use super::errno::Errno;
use super::protocol::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk};
use crate::limits::{SEND_BYTES, SEND_PIECES};
use blockstore::Segment;
use blockstore::device::zeroes;
use bytes::Bytes;
use std::ops::Range;

/// What a command is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// It failed.
    Error(Errno),
    /// What was read from `offset` on; `whole`: in one content chunk.
    Data {
        offset: u64,
        segments: Vec<Segment>,
        whole: bool,
    },
    /// For each context, in the order of their ids, extents as (length, flags).
    Status(Vec<Vec<(u32, u32)>>),
}

/// Replies in the order in which they go out. Headers are gathered in one vector, and data is
/// shared, not copied.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    headers: Vec<u8>,
    pieces: Vec<Piece>,
    /// The first piece that is not sent, and how much of it is.
    sent: (usize, usize),
    /// Replies in the batch.
    replies: u32,
    /// Bytes of memory that the commands were charged with.
    charge: u64,
}

#[derive(Debug)]
enum Piece {
    /// A range of `headers`.
    Headers(Range<usize>),
    Data(Bytes),
}

/// The largest piece of zeroes that the store shares.
const ZEROES_BYTES: u64 = 1 << 20;

/// An emptied batch keeps this much memory for the next replies.
const HEADERS_KEPT: usize = 64 << 10;

impl Batch {
    /// Appends a reply; `charge` is what its command was charged with.
    pub(crate) fn push(&mut self, cookie: u64, structured: bool, answer: Answer, charge: u64) {
        match answer {
            Answer::Done => self.simple(cookie, 0),
            Answer::Error(errno) if structured => self.error_chunk(cookie, errno),
            Answer::Error(errno) => self.simple(cookie, errno.code()),
            Answer::Data {
                offset,
                segments,
                whole,
            } if structured => {
                self.read_chunks(cookie, offset, segments, whole);
            }
            Answer::Data { segments, .. } => {
                self.simple(cookie, 0);
                for segment in segments {
                    self.data(segment);
                }
            }
            Answer::Status(contexts) => self.status_chunks(cookie, &contexts),
        }
        self.replies += 1;
        self.charge += charge;
    }

    /// Appends bytes as they are: what the handshake says.
    pub(crate) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.pieces.push(Piece::Data(bytes.into()));
    }

    /// No reply was appended since the batch was made or cleared.
    pub(crate) fn is_empty(&self) -> bool {
        self.replies == 0
    }

    /// Replies, and bytes of memory charged for them.
    pub(crate) fn cost(&self) -> (u32, u64) {
        (self.replies, self.charge)
    }

    /// Everything was sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.0 == self.pieces.len()
    }

    /// What the next send carries: the first pieces not sent yet, within the limits of one send.
    pub(crate) fn window(&self) -> impl Iterator<Item = &[u8]> {
        let (first, mut skip) = self.sent;
        let mut bytes = 0;
        self.pieces[first..]
            .iter()
            .take(SEND_PIECES)
            .map_while(move |piece| {
                if bytes >= SEND_BYTES {
                    return None;
                }
                let memory = &self.memory(piece)[std::mem::take(&mut skip)..];
                bytes += memory.len();
                Some(memory)
            })
    }

    /// `count` more bytes were sent.
    pub(crate) fn advance(&mut self, count: usize) {
        let (mut piece, mut offset) = self.sent;
        offset += count;
        while let Some(length) = self.pieces.get(piece).map(|p| self.memory(p).len()) {
            if offset < length {
                break;
            }
            // What is sent is let go at once: a later piece may wait long for a slow client.
            self.pieces[piece] = Piece::Headers(0..0);
            offset -= length;
            piece += 1;
        }
        assert!(
            piece < self.pieces.len() || offset == 0,
            "more was sent than there is"
        );
        self.sent = (piece, offset);
    }

    /// Empties the batch for use again.
    pub(crate) fn clear(&mut self) {
        self.headers.clear();
        self.headers.shrink_to(HEADERS_KEPT);
        self.pieces.clear();
        (self.sent, self.replies, self.charge) = ((0, 0), 0, 0);
    }

    fn memory<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Headers(range) => &self.headers[range.clone()],
            Piece::Data(data) => data,
        }
    }

    /// Appends to the headers; those of adjacent replies without data are one piece.
    fn header(&mut self, parts: &[&[u8]]) {
        let start = self.headers.len();
        for part in parts {
            self.headers.extend_from_slice(part);
        }
        let end = self.headers.len();
        match self.pieces.last_mut() {
            Some(Piece::Headers(range)) if range.end == start => range.end = end,
            _ => self.pieces.push(Piece::Headers(start..end)),
        }
    }

    fn data(&mut self, segment: Segment) {
        match segment {
            Segment::Data(data) => self.pieces.push(Piece::Data(data)),
            Segment::Hole(mut length) => {
                while length > 0 {
                    let part = length.min(ZEROES_BYTES);
                    length -= part;
                    let part = usize::try_from(part).unwrap_or(usize::MAX);
                    self.pieces.push(Piece::Data(zeroes(part)));
                }
            }
        }
    }

    /// "S: 32 bits, 0x67446698, magic; 32 bits, error (MAY be zero); 64 bits, cookie"
    fn simple(&mut self, cookie: u64, error: u32) {
        let magic = SIMPLE_REPLY_MAGIC.to_be_bytes();
        self.header(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes()]);
    }

    /// "S: 32 bits, 0x668e33ef, magic; 16 bits, flags; 16 bits, type; 64 bits, cookie; 32 bits,
    /// length of payload"
    fn chunk(&mut self, cookie: u64, last: bool, kind: u16, length: u32) {
        let flags = if last { chunk::FLAG_DONE } else { 0 };
        self.header(&[
            &CHUNK_MAGIC.to_be_bytes(),
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &length.to_be_bytes(),
        ]);
    }

    /// "32 bits: error (MUST be nonzero); 16 bits: message length; optional string suitable for
    /// direct display to a human being"
    fn error_chunk(&mut self, cookie: u64, errno: Errno) {
        let text = errno.text();
        let length = u16::try_from(text.len()).unwrap_or(0);
        let text = &text.as_bytes()[..usize::from(length)];
        self.chunk(cookie, true, chunk::ERROR, 6 + u32::from(length));
        self.header(&[&errno.code().to_be_bytes(), &length.to_be_bytes(), text]);
    }

    fn read_chunks(&mut self, cookie: u64, offset: u64, segments: Vec<Segment>, whole: bool) {
        let is_hole = |segment: &Segment| matches!(segment, Segment::Hole(_));
        let end = offset + total(&segments);
        // "If the area being read contains both data and a hole, the server MUST use
        // `NBD_REPLY_TYPE_OFFSET_DATA` with the zeroes explicitly present."
        let fill = whole && segments.iter().any(|segment| !is_hole(segment));
        if offset == end {
            // "each chunk MUST describe at least one byte"
            return self.chunk(cookie, true, chunk::NONE, 0);
        }
        let mut at = offset;
        let mut segments = segments.into_iter().peekable();
        while let Some(first) = segments.next() {
            let hole = is_hole(&first) && !fill;
            let mut run = vec![first];
            while let Some(next) = segments.next_if(|next| fill || is_hole(next) == hole) {
                run.push(next);
            }
            let length = total(&run);
            let start = at.to_be_bytes();
            at += length;
            // A reply is at most 32 MiB long.
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            if hole {
                self.chunk(cookie, at == end, chunk::OFFSET_HOLE, 12);
                self.header(&[&start, &length.to_be_bytes()]);
            } else {
                self.chunk(cookie, at == end, chunk::OFFSET_DATA, 8 + length);
                self.header(&[&start]);
                for segment in run {
                    self.data(segment);
                }
            }
        }
    }

    /// "32 bits, metadata context ID … a list of one or more descriptors: 32 bits, length; 32 bits,
    /// status flags"
    fn status_chunks(&mut self, cookie: u64, contexts: &[Vec<(u32, u32)>]) {
        for (id, extents) in (0_u32..).zip(contexts) {
            let last = usize::try_from(id) == Ok(contexts.len() - 1);
            let length = u32::try_from(4 + 8 * extents.len()).unwrap_or(u32::MAX);
            self.chunk(cookie, last, chunk::BLOCK_STATUS, length);
            self.header(&[&id.to_be_bytes()]);
            for (length, flags) in extents {
                self.header(&[&length.to_be_bytes(), &flags.to_be_bytes()]);
            }
        }
    }
}

/// Bytes in all segments.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::length).sum()
}

#[cfg(test)]
mod tests;
