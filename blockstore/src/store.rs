//! CONTROL PATH IN: init and open a pool; create, snapshot, clone, resize, roll back, delete, list.
use crate::runtime::{Handle, Pending};
use crate::*;
use std::path::Path;

/// How to make a pool.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Bytes. Needed for a file; a device is used whole if none is given.
    pub size: Option<u64>,
    /// Use what is there although it carries a signature or is an existing file.
    pub force: bool,
    /// Bytes of journal; by default from the pool's size.
    pub journal: Option<u64>,
}

/// How to run an open pool.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, each with its own ring.
    pub workers: usize,
    /// The sum of all volumes' sizes may be this many times the usable space; `None`: any.
    pub overcommit: Option<f64>,
    /// Bytes of changed mapping nodes kept in memory before a checkpoint must write them.
    pub dirty_bytes_max: u64,
    /// Bytes of unchanged mapping nodes kept in memory.
    pub cache_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 1, overcommit: None, dirty_bytes_max: 256 << 20, cache_bytes_max: 64 << 20 }
    }
}

/// What a handle may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write; refused for a snapshot.
    Write,
}

/// What `check` found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// One line for each violation; empty if the pool is clean.
    pub problems: Vec<String>,
    /// Volumes, snapshots and blocks that were verified.
    pub volumes: u64,
    /// Snapshots verified.
    pub snapshots: u64,
    /// Blocks verified.
    pub blocks: u64,
}

/// An open pool. Clones share it; it closes when told to, or when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store {}

/// `VOLUME` or `VOLUME@SNAPSHOT` in every `source`, `from` and `to` below.
impl Store {
    /// Makes a pool in a file (created, preallocated) or on a block device.
    pub fn init(_path: &Path, _o: &InitOptions, _p: &mut dyn FnMut(Progress)) -> Result<()> {
        unimplemented!()
    }
    /// Opens a pool, recovering it if it was not closed. `Busy` names the pid that has it open.
    pub fn open(_path: &Path, _options: &Options) -> Result<Self> {
        unimplemented!()
    }
    /// Verifies a pool that nobody has open, changing nothing.
    pub fn check(_path: &Path, _p: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
        unimplemented!()
    }
    /// Makes everything durable and lets the pool go. Later calls on any clone answer `Gone`.
    pub fn close(&self) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// The worker threads, for a server to run its own tasks on.
    pub fn workers(&self) -> &[Handle] {
        unimplemented!()
    }
    /// Creates a volume; `reserve` sets its whole size aside. `metadata`: ≤ 4 KiB for the caller.
    pub fn create_volume(&self, _n: &str, _size: u64, _reserve: bool) -> Pending<Result<VolumeInfo>> {
        unimplemented!()
    }
    /// Creates a volume with the content of a volume or snapshot, sharing all its space.
    pub fn clone_volume(&self, _source: &str, _name: &str) -> Pending<Result<VolumeInfo>> {
        unimplemented!()
    }
    /// Cuts `(volume, name)` snapshots, all at one instant.
    pub fn snapshot(&self, _names: &[(&str, &str)]) -> Pending<Result<Vec<SnapshotInfo>>> {
        unimplemented!()
    }
    /// Grows a volume. Shrinking is `InvalidArgument`.
    pub fn resize_volume(&self, _name: &str, _size: u64) -> Pending<Result<VolumeInfo>> {
        unimplemented!()
    }
    /// Renames a volume.
    pub fn rename_volume(&self, _name: &str, _new: &str) -> Pending<Result<VolumeInfo>> {
        unimplemented!()
    }
    /// Makes a volume's content its snapshot's again. `Busy` while a writer has it open.
    pub fn rollback(&self, _volume: &str, _snapshot: &str) -> Pending<Result<VolumeInfo>> {
        unimplemented!()
    }
    /// Deletes a volume; its snapshots stay. `Busy` while a writer has it open.
    pub fn delete_volume(&self, _name: &str) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// Deletes a snapshot.
    pub fn delete_snapshot(&self, _volume: &str, _snapshot: &str) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        unimplemented!()
    }
    /// One volume.
    pub fn volume(&self, _name: &str) -> Result<VolumeInfo> {
        unimplemented!()
    }
    /// The snapshots of one volume, or all, oldest first.
    pub fn snapshots(&self, _volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        unimplemented!()
    }
    /// What differs between two versions of any volumes, from `offset` on: at most `extents_max`
    /// extents, and the offset to go on from, or `None` at the end. Without `from`, what is
    /// allocated in `to`.
    pub fn diff(
        &self,
        _from: Option<&str>,
        _to: &str,
        _offset: u64,
        _extents_max: usize,
    ) -> Pending<Result<(Vec<Extent>, Option<u64>)>> {
        unimplemented!()
    }
    /// Opens a volume or snapshot for data.
    pub fn open_volume(&self, _source: &str, _access: Access) -> Result<Volume> {
        unimplemented!()
    }
    /// The pool at this moment.
    pub fn status(&self) -> PoolStatus {
        unimplemented!()
    }
    /// Starts a scrub; `Busy` if one is running.
    pub fn scrub_start(&self) -> Result<()> {
        unimplemented!()
    }
    /// Stops the scrub; it goes on from there when started again.
    pub fn scrub_stop(&self) {
        unimplemented!()
    }
}
