//! CONTROL PATH IN: init and open a pool; create, snapshot, clone, resize, roll back, delete, list.
use crate::check;
use crate::commit::closed;
use crate::control::Name;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::extents::{Class, push};
use crate::files;
use crate::info::{Extent, PoolStatus, Progress, SnapshotInfo, VolumeInfo};
use crate::pool::Pool;
use crate::read::Target;
use crate::runtime::{Handle, Lost, Pending, Runtime, SystemClock, on_worker};
use crate::units::BLOCK_BYTES;
use crate::volume::Volume;
use parking_lot::Mutex;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

/// How to make a pool.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Bytes. Needed for a file; a device is used whole if none is given.
    pub size: Option<u64>,
    /// Use what is there although it carries a signature or is an existing file.
    pub force: bool,
    /// Bytes of journal; by default a 64th of the pool, from 4 MiB to 1 GiB.
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
    /// Bytes of allocation bitmaps kept in memory.
    pub bitmap_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            overcommit: None,
            dirty_bytes_max: 256 << 20,
            cache_bytes_max: 64 << 20,
            bitmap_bytes_max: 32 << 20,
        }
    }
}

impl Options {
    /// Changed mapping nodes that may be kept.
    pub(crate) fn dirty_nodes_max(&self) -> u64 {
        self.dirty_bytes_max / BLOCK_BYTES
    }

    /// Bitmaps of the usual regions that may be kept.
    pub(crate) fn bitmaps_max(&self) -> usize {
        usize::try_from(self.bitmap_bytes_max / (32 << 10)).unwrap_or(usize::MAX)
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
    /// Volumes verified.
    pub volumes: u64,
    /// Snapshots verified.
    pub snapshots: u64,
    /// Blocks verified.
    pub blocks: u64,
}

/// An open pool. Clones share it; it closes when told to, or when the last clone and the last open
/// [`Volume`] are dropped.
///
/// Operations return [`Pending`]: they start at once, and can be awaited from any async runtime, or
/// waited for with [`Pending::wait`] on a thread of one's own. Control operations are durable when
/// they are answered. A `source`, `from` or `to` is `VOLUME` or `VOLUME@SNAPSHOT`.
///
/// ```
/// # fn main() -> blockstore::Result<()> {
/// # let dir = tempfile::tempdir().map_err(|e| blockstore::Error::io("a directory", e))?;
/// # let path = dir.path().join("demo.pool");
/// use blockstore::{Access, InitOptions, Options, Store};
///
/// let init = InitOptions { size: Some(64 << 20), ..InitOptions::default() };
/// Store::init(&path, &init, &mut |_| {})?;
/// let store = Store::open(&path, &Options::default())?;
///
/// store.create_volume("data", 1 << 30, false).wait()?; // thin: larger than the pool
/// let data = store.open_volume("data", Access::Write)?;
/// data.write(4096, b"before".as_slice()).wait()?;
/// store.snapshot(&[("data", "monday")]).wait()?;
/// data.write(4096, b"after!".as_slice()).wait()?;
/// data.flush().wait()?; // now it survives a crash
///
/// let monday = store.open_volume("data@monday", Access::Read)?;
/// assert_eq!(&monday.read(4096, 6).wait()?[..], b"before");
/// assert_eq!(&data.read(4096, 6).wait()?[..], b"after!");
///
/// let (changed, _) = store.diff(Some("data@monday"), "data", 0, 100).wait()?;
/// assert_eq!((changed[0].offset, changed[0].length), (4096, 4096));
///
/// drop((data, monday));
/// store.rollback("data", "monday").wait()?;
/// store.close().wait()
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    workers: Vec<Handle>,
    background: Mutex<Vec<Pending<()>>>,
    /// Dropped, and so stopped, last.
    runtime: Mutex<Option<Runtime>>,
    closing: Mutex<bool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::mem::replace(&mut *self.closing.lock(), true) {
            return;
        }
        let background = std::mem::take(&mut *self.background.lock());
        let Some(worker) = self.workers.first() else {
            return;
        };
        let closed = worker.spawn(close(Arc::clone(&self.pool), background));
        let runtime = self.runtime.lock().take();
        if on_worker() {
            // A thread of its own waits: this one is needed for the work.
            let wait = move || {
                log_close(closed.wait());
                drop(runtime);
            };
            drop(
                std::thread::Builder::new()
                    .name("close".to_owned())
                    .spawn(wait),
            );
        } else {
            log_close(closed.wait());
        }
    }
}

fn log_close(result: Result<()>) {
    if let Err(error) = result {
        tracing::error!("closing the pool: {error}");
    }
}

/// Ends the background, makes everything durable, and marks the pool as closed.
async fn close(pool: Arc<Pool>, background: Vec<Pending<()>>) -> Result<()> {
    pool.stop_background();
    for task in background {
        task.await;
    }
    let refusal = pool.state.lock().refusal.clone();
    let result = match refusal {
        Some(refusal) => Err(refusal),
        None => match pool.checkpoint().await {
            Ok(()) => pool.write_clean().await,
            Err(error) => Err(error),
        },
    };
    pool.state.lock().refusal.get_or_insert_with(closed);
    result
}

impl Store {
    /// Makes a pool in a file (created, preallocated) or on a block device, which is not opened.
    ///
    /// `AlreadyExists`: the file exists, or the device carries a signature or is mounted, and
    /// `force` is not set; `InvalidArgument`: no usable size; `NoSpace`; `Io`.
    pub fn init(
        path: &Path,
        options: &InitOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<()> {
        files::init(path, options, progress)
    }

    /// Opens a pool, recovering it if it was not closed.
    ///
    /// `Busy`: another process, which the message names, has it open; `NotFound`; `Unsupported`:
    /// made by another version; `Corrupt`: damaged or cut short; `Io`. A pool whose journal lost
    /// what was acknowledged is opened, but refuses changes, and its status says why.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        Self::open_device(files::open(path)?, options)
    }

    /// As [`Self::open`], on a device of the caller's own.
    pub fn open_device(device: Arc<dyn Device>, options: &Options) -> Result<Self> {
        let failed = |error| Error::io("starting worker threads", error);
        let runtime = Runtime::start(options.workers.max(1), "basalt").map_err(failed)?;
        let workers = runtime.handles().to_vec();
        let worker = workers.first().cloned();
        let worker = worker.ok_or_else(|| Error::new(ErrorKind::Io, "no worker was started"))?;
        let clock = Arc::new(SystemClock::new());
        let pool = worker
            .spawn(Pool::open(device, clock, options.clone()))
            .wait()?;
        let spread = workers.iter().cycle();
        let background = pool
            .background()
            .into_iter()
            .zip(spread)
            .map(|(task, w)| w.spawn(task))
            .collect();
        let store = Self(Arc::new(Inner {
            pool: Arc::clone(&pool),
            workers,
            background: Mutex::new(background),
            runtime: Mutex::new(Some(runtime)),
            closing: Mutex::new(false),
        }));
        Ok(store)
    }

    /// Verifies a pool that nobody has open, changing nothing: it is recovered in memory, and then
    /// every structure and every block is read and compared with every rule of the format.
    pub fn check(path: &Path, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<CheckReport> {
        check::check_file(path, progress)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0.pool
    }

    /// Runs an operation on a worker: this one, or the first.
    pub(crate) fn spawn<T, F>(&self, operation: F) -> Pending<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Lost + Send + 'static,
    {
        let current = self.0.workers.iter().find(|worker| worker.is_current());
        match current.or_else(|| self.0.workers.first()) {
            Some(worker) => worker.spawn(operation),
            None => Pending::ready(T::lost()),
        }
    }

    /// Makes everything durable and lets the pool go. Later changes on any clone answer `Gone`.
    pub fn close(&self) -> Pending<Result<()>> {
        if std::mem::replace(&mut *self.0.closing.lock(), true) {
            return Pending::ready(Ok(()));
        }
        let background = std::mem::take(&mut *self.0.background.lock());
        self.spawn(close(Arc::clone(&self.0.pool), background))
    }

    /// The worker threads, for a server to run its own tasks on.
    pub fn workers(&self) -> &[Handle] {
        &self.0.workers
    }

    fn volume_after<F>(&self, name: &str, operation: F) -> Pending<Result<VolumeInfo>>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let (pool, name) = (Arc::clone(self.pool()), name.to_owned());
        self.spawn(async move {
            operation.await?;
            pool.state.lock().volume_info_named(&name)
        })
    }

    /// Creates a volume of `size` bytes; `reserve` sets its whole size aside.
    ///
    /// `AlreadyExists`; `InvalidArgument`: the name or size breaks its rule; `NoSpace`: beyond what
    /// can be reserved or overcommitted.
    pub fn create_volume(
        &self,
        name: &str,
        size: u64,
        reserve: bool,
    ) -> Pending<Result<VolumeInfo>> {
        let (pool, owned) = (Arc::clone(self.pool()), name.to_owned());
        let create = async move { pool.create_volume(&owned, size, reserve).await };
        self.volume_after(name, create)
    }

    /// Creates a volume with the content of a volume or snapshot, sharing all its space.
    pub fn clone_volume(&self, source: &str, name: &str) -> Pending<Result<VolumeInfo>> {
        let pool = Arc::clone(self.pool());
        let (source, owned) = (source.to_owned(), name.to_owned());
        self.volume_after(
            name,
            async move { pool.clone_volume(&source, &owned).await },
        )
    }

    /// Cuts `(volume, name)` snapshots, all at one instant: after every write that was answered
    /// before the call. At most [`crate::limits::GROUP_MAX`].
    pub fn snapshot(&self, names: &[(&str, &str)]) -> Pending<Result<Vec<SnapshotInfo>>> {
        let owned = |(volume, name): &(&str, &str)| ((*volume).to_owned(), (*name).to_owned());
        let names: Vec<(String, String)> = names.iter().map(owned).collect();
        let pool = Arc::clone(self.pool());
        self.spawn(async move {
            let ids = pool.snapshot(&names).await?;
            Ok(pool.state.lock().snapshots_by_id(&ids))
        })
    }

    /// Grows a volume to `size` bytes. Shrinking is `InvalidArgument`.
    pub fn resize_volume(&self, name: &str, size: u64) -> Pending<Result<VolumeInfo>> {
        let (pool, owned) = (Arc::clone(self.pool()), name.to_owned());
        self.volume_after(name, async move { pool.resize_volume(&owned, size).await })
    }

    /// Renames a volume.
    pub fn rename_volume(&self, name: &str, new: &str) -> Pending<Result<VolumeInfo>> {
        let (pool, old, owned) = (Arc::clone(self.pool()), name.to_owned(), new.to_owned());
        self.volume_after(new, async move { pool.rename_volume(&old, &owned).await })
    }

    /// Makes a volume's content its snapshot's again; later snapshots stay, and its size does not
    /// shrink. `Busy` while a writer has it open.
    pub fn rollback(&self, volume: &str, snapshot: &str) -> Pending<Result<VolumeInfo>> {
        let pool = Arc::clone(self.pool());
        let (owned, snapshot) = (volume.to_owned(), snapshot.to_owned());
        self.volume_after(
            volume,
            async move { pool.rollback(&owned, &snapshot).await },
        )
    }

    /// Deletes a volume; its snapshots stay, and so does its name until the last of them is gone.
    /// Its space comes back in the background. `Busy` while a writer has it open.
    pub fn delete_volume(&self, name: &str) -> Pending<Result<()>> {
        let (pool, name) = (Arc::clone(self.pool()), name.to_owned());
        self.spawn(async move { pool.delete_volume(&name).await })
    }

    /// Deletes a snapshot. Its space comes back in the background.
    pub fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Pending<Result<()>> {
        let pool = Arc::clone(self.pool());
        let (volume, snapshot) = (volume.to_owned(), snapshot.to_owned());
        self.spawn(async move { pool.delete_snapshot(&volume, &snapshot).await })
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.pool().state.lock().volume_infos()
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.pool().state.lock().volume_info_named(name)
    }

    /// The snapshots of one volume, or all, oldest first.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        self.pool().state.lock().snapshot_infos(volume)
    }

    /// What differs between two versions of any volumes, from byte `offset` on: at most
    /// `extents_max` extents, and the offset to go on from, or `None` at the end. Without `from`,
    /// what is allocated in `to`.
    pub fn diff(
        &self,
        from: Option<&str>,
        to: &str,
        offset: u64,
        extents_max: usize,
    ) -> Pending<Result<(Vec<Extent>, Option<u64>)>> {
        let targets = from.map(|from| self.pool().target(from)).transpose();
        let targets = targets.and_then(|from| Ok((from, self.pool().target(to)?)));
        let pool = Arc::clone(self.pool());
        self.spawn(async move {
            let (from, to) = targets?;
            let end = {
                let state = pool.state.lock();
                state.version(to.version(&state)?)?.size
            };
            let mut extents = Vec::new();
            let changed = |extent: Extent, class| {
                class == Class::Same || push(&mut extents, extent, extents_max)
            };
            let reached = pool.compare(from, to, offset, end, changed).await?;
            Ok((extents, (reached < end).then_some(reached)))
        })
    }

    /// Opens a volume or snapshot for data.
    ///
    /// `NotFound`; `ReadOnly`: writing to a snapshot was asked for.
    pub fn open_volume(&self, source: &str, access: Access) -> Result<Volume> {
        let target = self.pool().target(source)?;
        let writes = access == Access::Write;
        if let Target::Volume(id) = target {
            let mut state = self.pool().state.lock();
            let volume = state.volumes.get_mut(&id);
            let gone = || Error::new(ErrorKind::NotFound, format!("{source:?} was just deleted"));
            volume.ok_or_else(gone)?.writers += u64::from(writes);
        } else if writes {
            let snapshot = Name::parse(source).snapshot.unwrap_or_default();
            let message = format!("snapshot {snapshot:?} cannot be written: clone it");
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        Ok(Volume::open(self.clone(), target, source, !writes))
    }

    /// The pool at this moment.
    pub fn status(&self) -> PoolStatus {
        self.pool().status()
    }

    /// Starts a scrub, or lets a stopped one go on; `Busy` if one is running.
    pub fn scrub_start(&self) -> Result<()> {
        self.pool().state.lock().start_scrub()?;
        self.pool().scrub_work.notify(usize::MAX);
        Ok(())
    }

    /// Stops the scrub; it goes on from there when started again.
    pub fn scrub_stop(&self) {
        self.pool().state.lock().scrub.status.running = false;
    }
}
