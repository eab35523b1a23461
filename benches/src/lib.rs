//! The shared harness of the benchmarks: a pool in a temporary file, which goes with it.
use blockstore::{Access, InitOptions, Options, Result, Store, Volume};
use std::path::PathBuf;

/// A pool with one volume, written once from end to end.
#[derive(Debug)]
pub struct Bench {
    /// The open pool.
    pub store: Store,
    /// Its volume, called `bench`.
    pub volume: Volume,
    directory: PathBuf,
}

impl Bench {
    /// A pool of `pool` bytes with a volume of `volume` bytes, below the target directory.
    ///
    /// # Errors
    /// Whatever making, opening or writing the pool answers.
    pub fn new(name: &str, pool: u64, volume: u64) -> Result<Self> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(format!("bench-{name}-{}", std::process::id()));
        let failed = |error| blockstore::Error::io(directory.display(), error);
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let path = directory.join("pool");
        let init = InitOptions {
            size: Some(pool),
            ..InitOptions::default()
        };
        Store::init(&path, &init, &mut |_| {})?;
        let store = Store::open(&path, &Options::default())?;
        store.create_volume("bench", volume, false).wait()?;
        let opened = store.open_volume("bench", Access::Write)?;
        let piece = vec![0x5a; 1 << 20];
        for offset in (0..volume).step_by(piece.len()) {
            opened.write(offset, piece.clone()).wait()?;
        }
        opened.flush().wait()?;
        Ok(Self {
            store,
            volume: opened,
            directory,
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.store.close().wait() {
            tracing::error!("closing the benchmark's pool: {error}");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::error!("removing {}: {error}", self.directory.display());
        }
    }
}
