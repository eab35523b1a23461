//! The five data operations that every front end speaks, and their answers.
use bytes::Bytes;

/// One data operation on one volume. Offsets and lengths are bytes, at any alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `length` bytes from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes to read.
        length: u64,
    },
    /// Write `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// What to write. Block-aligned memory (see [`crate::device::Buffer`]) is not copied.
        data: Bytes,
        /// Answer only when the write is durable.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes to zero.
        length: u64,
        /// Keep (or get) space for the whole blocks of the range instead of making a hole.
        allocate: bool,
        /// Answer only when the change is durable.
        fua: bool,
    },
    /// Give the space of the whole blocks inside a range back; they read as zeroes afterwards.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes to trim.
        length: u64,
        /// Answer only when the change is durable.
        fua: bool,
    },
    /// Make every change that was answered before, on any volume, durable.
    Flush,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; nothing to say.
    Done,
    /// The bytes read, in order; adjacent segments are adjacent in the volume.
    Data(Vec<Segment>),
}

/// A piece of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes that were written, verified against their checksum.
    Data(Bytes),
    /// So many bytes that read as zeroes and take no space.
    Hole(u64),
}

impl Segment {
    /// Bytes in this segment.
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(length) => *length,
        }
    }
}
