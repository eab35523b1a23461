//! The journal in memory: the open record, what is sealed, and where it all lies in the ring.
//!
//! # Contract
//! * A change is appended only after its data write completed: no record refers to data in flight.
//! * Appending never fails: room for a change is promised before it is begun.
//! * A record is sealed once, written once, and its blocks are not written again before a
//!   checkpoint has moved the tail past them.
use crate::format::record::{Change, RecordHeader, blocks_of};
use crate::limits::{JOURNAL_KEPT_BACK, RECORD_BYTES_MAX, RECORD_BYTES_SEAL};
use crate::units::Record;

/// A sealed record on its way to the disk.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) number: Record,
    /// First block, counted from the pool's beginning of time; modulo the ring, its place.
    pub(crate) position: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Where replay begins after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) first: Record,
    pub(crate) position: u64,
    pub(crate) previous: u32,
}

/// The journal of a pool.
#[derive(Debug)]
pub(crate) struct Journal {
    pool_id: [u8; 16],
    epoch: u64,
    ring_blocks: u64,
    open: Vec<u8>,
    /// The number of the open record.
    next: Record,
    /// CRC of the last sealed record.
    previous: u32,
    head: u64,
    tail: u64,
    promised: u64,
    sealed: Vec<Sealed>,
    /// The last sealed record that holds changes.
    changed: Record,
    /// Every record up to here was written: a flush that begins now makes it durable.
    pub(crate) written: Record,
    /// Every record up to here is durable.
    pub(crate) durable: Record,
    /// What the last written record says of `durable`.
    pub(crate) told: Record,
    /// A commit is being written.
    pub(crate) committing: bool,
    /// Bytes of data written since the last commit began.
    pub(crate) uncommitted_bytes: u64,
}

impl Journal {
    /// A journal that goes on from `mark`, every record before which is durable.
    pub(crate) fn new(
        pool_id: [u8; 16],
        epoch: u64,
        ring_blocks: u64,
        tail: u64,
        mark: Mark,
    ) -> Self {
        let before = Record(mark.first.0 - 1);
        Self {
            pool_id,
            epoch,
            ring_blocks,
            open: Vec::new(),
            next: mark.first,
            previous: mark.previous,
            head: mark.position,
            tail,
            promised: 0,
            sealed: Vec::new(),
            changed: before,
            written: before,
            durable: before,
            told: before,
            committing: false,
            uncommitted_bytes: 0,
        }
    }

    /// The record that the next change goes into: its birth.
    pub(crate) fn open_record(&self) -> Record {
        self.next
    }

    /// The last sealed record.
    pub(crate) fn last_sealed(&self) -> Record {
        Record(self.next.0 - 1)
    }

    /// The record that holds every change made so far. Records that only tell what is durable do
    /// not count: nobody waits for them to become durable.
    pub(crate) fn newest(&self) -> Record {
        if self.open.is_empty() {
            self.changed
        } else {
            self.next
        }
    }

    pub(crate) fn ring_blocks(&self) -> u64 {
        self.ring_blocks
    }

    /// Blocks that a recovery would read now.
    pub(crate) fn used_blocks(&self) -> u64 {
        self.head - self.tail + self.open_blocks()
    }

    fn open_blocks(&self) -> u64 {
        if self.open.is_empty() {
            0
        } else {
            blocks_of(self.open.len())
        }
    }

    fn free_blocks(&self) -> u64 {
        self.ring_blocks
            .saturating_sub(self.used_blocks() + self.promised)
    }

    /// Blocks that a change of so many bytes may take, in a record of its own at worst.
    pub(crate) fn need(bytes: usize) -> u64 {
        blocks_of(bytes)
    }

    /// Promises room for a change, if there is any beside what is kept back. `urgent`: a change
    /// that gives space back, or a control operation, may use half of that.
    pub(crate) fn promise(&mut self, blocks: u64, urgent: bool) -> bool {
        let kept = if urgent {
            JOURNAL_KEPT_BACK / 2
        } else {
            JOURNAL_KEPT_BACK
        };
        let fits = self.free_blocks() >= blocks + kept;
        if fits {
            self.promised += blocks;
        }
        fits
    }

    /// Gives a promise back, because the change is appended now or given up.
    pub(crate) fn unpromise(&mut self, blocks: u64) {
        self.promised -= blocks;
    }

    /// How full the part for writes is, in thousandths.
    pub(crate) fn fill(&self) -> u64 {
        (self.used_blocks() + self.promised) * 1000 / (self.ring_blocks - JOURNAL_KEPT_BACK)
    }

    /// Seals the open record if changes of so many bytes do not fit it any more.
    pub(crate) fn make_room(&mut self, bytes: usize) {
        if self.open.len() + bytes > RECORD_BYTES_MAX {
            self.seal();
        }
    }

    /// Records wait to be written.
    pub(crate) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Appends a change, already encoded, to the open record.
    pub(crate) fn append(&mut self, change: &[u8], data_bytes: u64) {
        assert!(
            self.open.len() + change.len() <= RECORD_BYTES_MAX,
            "no room was made"
        );
        self.open.extend_from_slice(change);
        self.uncommitted_bytes += data_bytes;
    }

    /// Whether the open record is large enough to be sealed before the next change.
    pub(crate) fn is_large(&self) -> bool {
        self.open.len() >= RECORD_BYTES_SEAL
    }

    /// Closes the open record, if it holds anything.
    pub(crate) fn seal(&mut self) {
        if !self.open.is_empty() {
            self.changed = self.next;
            self.seal_record();
        }
    }

    /// Seals a record without changes, which only tells that every change is durable; if that is
    /// so, nothing says it yet, and there is room.
    pub(crate) fn seal_durable(&mut self) -> bool {
        let wanted = self.open.is_empty() && self.told < self.changed;
        let wanted = wanted && self.changed <= self.durable;
        let fits = wanted && self.free_blocks() > JOURNAL_KEPT_BACK;
        if fits {
            self.seal_record();
        }
        fits
    }

    fn seal_record(&mut self) {
        let mut header = RecordHeader {
            pool_id: self.pool_id,
            epoch: self.epoch,
            number: self.next,
            durable: self.durable,
            previous: self.previous,
            body_length: 0,
            crc: 0,
        };
        let bytes = header.encode(&self.open);
        self.open.clear();
        self.told = self.durable;
        self.sealed.push(Sealed {
            number: self.next,
            position: self.head,
            bytes,
        });
        self.head += header.blocks();
        self.next.0 += 1;
        self.previous = header.crc;
        assert!(
            self.head - self.tail <= self.ring_blocks,
            "the journal overran its tail"
        );
    }

    /// Sealed records to be written, in order.
    pub(crate) fn take_sealed(&mut self) -> Vec<Sealed> {
        self.uncommitted_bytes = 0;
        std::mem::take(&mut self.sealed)
    }

    /// Where replay begins if everything sealed so far is in a checkpoint.
    pub(crate) fn freeze(&self) -> Mark {
        assert!(
            self.open.is_empty(),
            "a checkpoint freezes at a record's boundary"
        );
        Mark {
            first: self.next,
            position: self.head,
            previous: self.previous,
        }
    }

    /// A checkpoint with this mark is durable.
    pub(crate) fn move_tail(&mut self, mark: Mark) {
        assert!(
            mark.position >= self.tail,
            "the journal's tail moves forward"
        );
        self.tail = mark.position;
    }
}

/// Encodes changes for [`Journal::append`].
pub(crate) fn encode(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for change in changes {
        change.encode(&mut bytes);
    }
    bytes
}
