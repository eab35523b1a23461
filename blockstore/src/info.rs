//! What the store tells about itself: plain data, read by the command line and the control API.
use crate::units::{VersionId, VolumeId};
use std::time::SystemTime;

/// Bytes of one volume or snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Size that its user sees.
    pub logical: u64,
    /// Data mapped, shared or not.
    pub used: u64,
    /// What deleting it would give back now: its own data and mapping, shared with nothing. A lower
    /// bound once an older snapshot of its lineage was deleted: what both shared is not counted.
    pub exclusive: u64,
}

/// A volume, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: SystemTime,
    /// Space for all of it is set aside.
    pub reserved: bool,
    /// The volume is deleted; its name is kept until its last snapshot is deleted too.
    pub deleted: bool,
    /// What it was cloned from: `VOLUME` or `VOLUME@SNAPSHOT`, as named at the time.
    pub origin: Option<String>,
    /// Its bytes; all zero once it is deleted.
    pub usage: Usage,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// How many open handles may write to it.
    pub writers: u64,
}

/// A snapshot, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: VersionId,
    /// The volume's name.
    pub volume: String,
    /// The snapshot's own name.
    pub name: String,
    /// When it was cut.
    pub created: SystemTime,
    /// Its bytes.
    pub usage: Usage,
}

/// The pool, at one moment. Sizes are bytes. `used + gated + free` is `usable`.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolStatus {
    /// The pool's identity, made at `init`.
    pub pool_id: [u8; 16],
    /// Size of the device.
    pub size: u64,
    /// What volumes and their metadata can use of it.
    pub usable: u64,
    /// Data and metadata in use.
    pub used: u64,
    /// Freed, and reusable after the next checkpoint.
    pub gated: u64,
    /// Free now.
    pub free: u64,
    /// Part of `free` that is set aside for volumes with a reservation.
    pub reserved: u64,
    /// Part of `used` that only deleted snapshots with several descendants still hold.
    pub ghost: u64,
    /// Sum of the sizes of all volumes.
    pub provisioned: u64,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Background deletions not finished yet.
    pub jobs: u64,
    /// Size of the journal.
    pub journal_size: u64,
    /// Bytes of the journal that a recovery would read now.
    pub journal_used: u64,
    /// Memory of changed mapping nodes that no checkpoint has written yet.
    pub dirty: u64,
    /// Checkpoints taken since the pool was made.
    pub checkpoints: u64,
    /// Times the pool was opened.
    pub epoch: u64,
    /// Device flushes since the pool was opened.
    pub flushes: u64,
    /// Blocks that failed their checksum since the pool was opened.
    pub checksum_errors: u64,
    /// Why the pool refuses changes, if it does.
    pub refuses_changes: Option<String>,
    /// How device I/O is done: `io_uring`, `blocking`, `memory`, …
    pub backend: String,
    /// The scrub, running or last.
    pub scrub: ScrubStatus,
}

/// How far the scrub is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// It is running.
    pub running: bool,
    /// Blocks verified in this round.
    pub blocks_done: u64,
    /// Blocks in use when the round began.
    pub blocks_total: u64,
    /// Rounds completed since the pool was opened.
    pub rounds: u64,
    /// Damage found in this round, and where: at most [`crate::limits::SCRUB_FINDINGS_MAX`].
    pub findings: Vec<String>,
}

/// A range of a volume or of a difference between two versions, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The range holds data; otherwise it is a hole and reads as zeroes.
    pub allocated: bool,
}

/// How far a long job is. Units are bytes unless the job says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Done so far.
    pub done: u64,
    /// All there is to do, as far as known now.
    pub total: u64,
}
