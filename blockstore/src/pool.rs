//! The open pool: a device, the state, and what wakes whom.
use crate::cache::NodeCache;
use crate::device::{Buffer, Device};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::geometry::Geometry;
use crate::format::pointer::NodeRef;
use crate::mapping::Node;
use crate::readers::Reading;
use crate::runtime::Clock;
use crate::state::State;
use crate::store::Options;
use crate::units::{Address, BLOCK_SIZE};
use event_listener::Event;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What everything in this crate works on. The lock is short and never held across an await.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: Options,
    pub(crate) state: Mutex<State>,
    pub(crate) cache: NodeCache,
    /// The pool's identity.
    pub(crate) id: [u8; 16],
    pub(crate) geometry: Geometry,
    pub(crate) flushes: AtomicU64,
    /// A commit ended.
    pub(crate) committed: Event,
    /// A checkpoint ended, or space was freed: waiting changes try again.
    pub(crate) room: Event,
    /// There is work for the checkpointer, for jobs, for the scrub.
    pub(crate) checkpoint_work: Event,
    pub(crate) job_work: Event,
    pub(crate) scrub_work: Event,
    pub(crate) commit_work: Event,
    /// Blocks being read, merged and written by parts: one writer at a time for each.
    pub(crate) edges: crate::edges::Edges,
    /// The superblock as last written; only the checkpointer changes it.
    pub(crate) superblock: Mutex<crate::format::superblock::Superblock>,
}

impl Pool {
    /// Refuses changes from now on: what was ordered to be durable may not be.
    pub(crate) fn poison(&self, what: &str, error: &io::Error) -> Error {
        let message = format!(
            "{what} failed: {error}; the pool refuses changes until it is reopened, because the \
             kernel may have dropped what was written"
        );
        tracing::error!("{message}");
        let poisoned = Error::new(ErrorKind::Poisoned, message);
        self.state
            .lock()
            .refusal
            .get_or_insert_with(|| poisoned.clone());
        for event in [
            &self.committed,
            &self.room,
            &self.checkpoint_work,
            &self.job_work,
        ] {
            event.notify(usize::MAX);
        }
        poisoned
    }

    /// A device flush; its failure poisons the pool, for it must never be tried again.
    pub(crate) async fn flush_device(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let flushed = self.device.flush().await;
        flushed.map_err(|error| self.poison("a device flush", &error))
    }

    /// A write that others are ordered after; its failure poisons the pool.
    pub(crate) async fn write_ordered(&self, what: &str, block: u64, bytes: Vec<u8>) -> Result<()> {
        let mut buffer = Buffer::new(bytes.len());
        buffer.copy_from_slice(&bytes);
        let written = self.device.write(block, buffer.freeze()).await;
        written.map_err(|error| self.poison(what, &error))
    }

    /// One block, if it hashes to `crc`.
    pub(crate) async fn read_block(&self, address: Address, crc: u32) -> Result<Buffer> {
        let (buffer, read) = self.device.read(address.0, Buffer::new(BLOCK_SIZE)).await;
        read.map_err(|error| Error::io(format!("reading {address}"), error))?;
        if checksum(&buffer) != crc {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{address}: checksum mismatch"),
            ));
        }
        Ok(buffer)
    }

    /// A mapping node, from either copy. `_reading` keeps its address from being used again; hold
    /// none while waiting for space.
    pub(crate) async fn load_node(
        &self,
        stored: &NodeRef,
        _reading: &Reading,
    ) -> Result<Arc<Node>> {
        if let Some(node) = self.cache.find(stored) {
            return Ok(node);
        }
        let first = self.load_copy(stored, stored.address).await;
        let node = match first {
            Err(error) if stored.twin != Address(0) => {
                tracing::warn!("{error}; using the twin at {}", stored.twin);
                self.load_copy(stored, stored.twin).await
            }
            other => other,
        };
        let node = node.inspect_err(|error| {
            self.state.lock().checksum_errors += 1;
            tracing::error!("a mapping node is lost: {error}");
        })?;
        let node = Arc::new(node);
        self.cache.keep(Arc::clone(&node));
        Ok(node)
    }

    async fn load_copy(&self, stored: &NodeRef, address: Address) -> Result<Node> {
        let block = self.read_block(address, stored.crc).await?;
        let fanout = self.state.lock().geometry.fanout;
        Node::from_block(&block, stored, fanout).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{address}: not the mapping node expected there"),
            )
        })
    }

    /// Asks for a checkpoint.
    pub(crate) fn want_checkpoint(&self) {
        self.state.lock().checkpoint_wanted = true;
        self.checkpoint_work.notify(usize::MAX);
    }
}
