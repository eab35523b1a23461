//! A device in memory, for tests and examples.
use super::sparse::Sparse;
use super::{Buffer, Device, IoFuture, check_range};
use bytes::Bytes;
use parking_lot::Mutex;
use std::future::ready;
use std::io;

/// Blocks in memory; only those that were written take space. Every operation completes at once.
#[derive(Debug)]
pub struct MemoryDevice {
    blocks: u64,
    content: Mutex<Sparse>,
}

impl MemoryDevice {
    /// So many blocks of zeroes.
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks,
            content: Mutex::default(),
        }
    }
}

impl Device for MemoryDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, address: u64, mut buffer: Buffer) -> IoFuture<(Buffer, io::Result<()>)> {
        let result = check_range(self.blocks, address, buffer.len());
        if result.is_ok() {
            self.content.lock().read(address, &mut buffer);
        }
        Box::pin(ready((buffer, result)))
    }

    fn write(&self, address: u64, data: Bytes) -> IoFuture<io::Result<()>> {
        let result = check_range(self.blocks, address, data.len());
        if result.is_ok() {
            self.content.lock().write(address, &data);
        }
        Box::pin(ready(result))
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn backend(&self) -> &'static str {
        "memory"
    }
}
