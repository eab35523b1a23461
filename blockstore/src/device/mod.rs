//! `Device`: read, write and flush aligned blocks of something that keeps them.
//!
//! # Contract
//! * A write that completed may be lost in a crash until a flush that began after its completion
//!   has completed. Until then any subset of its 512-byte sectors may have landed.
//! * Buffers belong to the device until the operation completes, even if the future is dropped.
//! * An operation starts when its future is first polled.
mod buffer;
mod file;
mod lock;
mod memory;
mod overlay;
mod random;
mod signature;
mod simulated;
mod simulation;
mod sparse;
mod transfer;

pub use buffer::{Buffer, is_aligned, zeroes};
pub use file::{FileDevice, OpenMode};
pub use memory::MemoryDevice;
pub use overlay::OverlayDevice;
pub use random::Random;
pub use signature::{mounted, signature};
pub use simulated::{Counts, Cut, Fault, Image, SimulatedDevice};
pub use simulation::{JoinCell, SimulatedClock, Simulation};

use crate::BLOCK_SIZE;
use bytes::Bytes;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::pin::Pin;

/// What a [`Device`] returns: the operation, which starts when first polled.
pub type IoFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Somewhere to keep blocks of [`crate::BLOCK_SIZE`] bytes. Addresses and sizes are block numbers.
pub trait Device: Send + Sync + Debug + 'static {
    /// Blocks that can be addressed.
    fn blocks(&self) -> u64;

    /// Fills `buffer`, whose length is a multiple of a block, from block `address` on.
    fn read(&self, address: u64, buffer: Buffer) -> IoFuture<(Buffer, io::Result<()>)>;

    /// Writes `data`, whose length is a multiple of a block, from block `address` on.
    fn write(&self, address: u64, data: Bytes) -> IoFuture<io::Result<()>>;

    /// Makes every write that completed before this call durable.
    fn flush(&self) -> IoFuture<io::Result<()>>;

    /// How I/O is done, for status and metrics: `io_uring`, `blocking`, `memory`, …
    fn backend(&self) -> &'static str;
}

/// Refuses an operation of `length` bytes from block `address` on that does not fit the device.
fn check_range(blocks: u64, address: u64, length: usize) -> io::Result<()> {
    assert!(
        length.is_multiple_of(BLOCK_SIZE),
        "a transfer of {length} bytes is not whole blocks"
    );
    let count = (length / BLOCK_SIZE) as u64;
    if address.checked_add(count).is_some_and(|end| end <= blocks) {
        return Ok(());
    }
    let message = format!("{count} blocks from {address} on do not fit a device of {blocks}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}
