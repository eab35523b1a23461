//! Basalt's block store: thin, checksummed, snapshottable volumes in one file or disk.
#![deny(clippy::big_endian_bytes)]

mod admit;
mod allocator;
mod background;
mod cache;
mod check;
mod checkpoint;
mod commit;
mod control;
pub mod device;
mod edges;
mod error;
#[cfg(test)]
mod explore;
mod extents;
mod files;
mod format;
mod info;
mod init;
mod jobs;
mod journal;
pub mod limits;
mod mapping;
mod pool;
mod publish;
mod read;
mod readers;
mod recovery;
mod request;
pub mod runtime;
mod scrub;
mod state;
mod status;
mod store;
mod units;
mod versions;
mod volume;
mod write;

pub use error::{Error, ErrorKind, Result};
pub use info::{Extent, PoolStatus, Progress, ScrubStatus, SnapshotInfo, Usage, VolumeInfo};
pub use request::{Reply, Request, Segment};
pub use store::{Access, CheckReport, InitOptions, Options, Store};
pub use units::{Address, BLOCK_BYTES, BLOCK_SIZE, Record, VersionId, VolumeId};
pub use volume::Volume;
