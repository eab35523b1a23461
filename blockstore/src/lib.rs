//! Basalt's block store: thin, checksummed, snapshottable volumes in one file or disk.
pub mod device;
mod error;
mod info;
mod request;
pub mod runtime;
mod store;
mod units;
mod volume;

pub use error::{Error, ErrorKind, Result};
pub use info::{Extent, PoolStatus, Progress, ScrubStatus, SnapshotInfo, Usage, VolumeInfo};
pub use request::{Reply, Request, Segment};
pub use store::{Access, CheckReport, InitOptions, Options, Store};
pub use units::{Address, BLOCK_BYTES, BLOCK_SIZE, Record, VersionId, VolumeId};
pub use volume::Volume;
