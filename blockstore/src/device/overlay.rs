//! A device whose writes stay in memory, over one that is only read.
use super::sparse::Sparse;
use super::{Buffer, Device, IoFuture, check_range};
use crate::BLOCK_SIZE;
use bytes::Bytes;
use parking_lot::Mutex;
use std::future::ready;
use std::io;
use std::sync::Arc;

/// Lets a pool be recovered and checked without changing it.
#[derive(Debug)]
pub struct OverlayDevice {
    inner: Arc<dyn Device>,
    written: Arc<Mutex<Sparse>>,
}

impl OverlayDevice {
    /// Reads `inner`, and never writes to it or flushes it.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self {
            inner,
            written: Arc::default(),
        }
    }
}

impl Device for OverlayDevice {
    fn blocks(&self) -> u64 {
        self.inner.blocks()
    }

    fn read(&self, address: u64, buffer: Buffer) -> IoFuture<(Buffer, io::Result<()>)> {
        let (below, written) = (self.inner.read(address, buffer), self.written.clone());
        Box::pin(async move {
            let (mut buffer, result) = below.await;
            let written = written.lock();
            let mut all_written = true;
            for (at, block) in (address..).zip(buffer.chunks_exact_mut(BLOCK_SIZE)) {
                match written.block(at) {
                    Some(content) => block.copy_from_slice(content),
                    None => all_written = false,
                }
            }
            // What was overwritten here is readable whatever the device below says.
            let result = if all_written { Ok(()) } else { result };
            drop(written);
            (buffer, result)
        })
    }

    fn write(&self, address: u64, data: Bytes) -> IoFuture<io::Result<()>> {
        let result = check_range(self.blocks(), address, data.len());
        let written = self.written.clone();
        Box::pin(async move {
            result?;
            written.lock().write(address, &data);
            Ok(())
        })
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn backend(&self) -> &'static str {
        "overlay"
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryDevice;
    use super::*;
    use crate::runtime::Runtime;

    #[test]
    fn writes_are_seen_above_and_not_below() {
        let runtime = Runtime::start_without_ring(1, "test").unwrap();
        let done = runtime.handles()[0].spawn(async {
            let inner = Arc::new(MemoryDevice::new(4));
            inner.write(1, vec![1; 8192].into()).await?;
            let overlay = OverlayDevice::new(inner.clone());
            overlay.write(2, vec![2; 8192].into()).await?;
            overlay.flush().await?;
            let (above, result) = overlay.read(0, Buffer::new(16384)).await;
            result?;
            let (below, result) = inner.read(0, Buffer::new(16384)).await;
            result?;
            let firsts =
                |buffer: Buffer| -> Vec<u8> { buffer.chunks(4096).map(|block| block[0]).collect() };
            assert!(overlay.write(3, vec![0; 8192].into()).await.is_err());
            assert!(overlay.read(4, Buffer::new(4096)).await.1.is_err());
            io::Result::Ok((firsts(above), firsts(below)))
        });
        assert_eq!(done.wait().unwrap(), (vec![0, 1, 2, 2], vec![0, 1, 1, 0]));
        runtime.stop();
    }
}
