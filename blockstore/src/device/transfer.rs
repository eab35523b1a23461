//! Reads, writes and flushes of one file: through the worker's ring, or by blocking calls.
use super::{Buffer, is_aligned};
use crate::runtime::ring::{self, TRANSFER_BYTES_MAX};
use crate::runtime::yield_now;
use bytes::{Buf, Bytes};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest transfer that is done by a blocking call although there is a ring, where the file is in
/// memory: a copy of so few bytes costs less than its way through the ring.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// What direct I/O transfers at least.
const SECTOR: usize = 512;

/// A file, and how to do its I/O.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    file: Arc<File>,
    /// The file is open for direct I/O.
    direct: bool,
    /// The file is in memory.
    in_memory: bool,
    /// Something went through a ring.
    used_ring: Arc<AtomicBool>,
}

impl Transfer {
    pub(super) fn new(file: File, direct: bool, in_memory: bool) -> Self {
        Self {
            file: Arc::new(file),
            direct,
            in_memory,
            used_ring: Arc::default(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn used_ring(&self) -> bool {
        self.used_ring.load(Ordering::Relaxed)
    }

    fn takes_ring(&self, length: usize) -> bool {
        let takes = !(self.in_memory && length <= INLINE_BYTES_MAX) && ring::available();
        if takes && !self.used_ring() {
            self.used_ring.store(true, Ordering::Relaxed);
        }
        takes
    }

    /// Fills `buffer` from `offset` on. The end of the file is an error.
    pub(super) async fn read(self, offset: u64, mut buffer: Buffer) -> (Buffer, io::Result<()>) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let result = if self.takes_ring(buffer.len() - done) {
                let read = ring::read(self.file.clone(), buffer, done, at).await;
                buffer = read.owned.0;
                read.result.map(|count| count as usize)
            } else {
                let end = buffer.len().min(done + TRANSFER_BYTES_MAX);
                self.file.read_at(&mut buffer[done..end], at)
            };
            match result {
                Ok(0) => return (buffer, Err(ErrorKind::UnexpectedEof.into())),
                Ok(count) => done += count,
                Err(error) if is_transient(&error) => yield_now().await,
                Err(error) => return (buffer, Err(error)),
            }
            // Direct I/O stops inside a sector at the end of the file only.
            if self.direct && !done.is_multiple_of(SECTOR) {
                return (buffer, Err(ErrorKind::UnexpectedEof.into()));
            }
        }
        (buffer, Ok(()))
    }

    /// Writes `data` at `offset`.
    pub(super) async fn write(self, mut offset: u64, mut data: Bytes) -> io::Result<()> {
        if self.direct && !is_aligned(&data) {
            data = Buffer::copy_of(&data).freeze();
        }
        while !data.is_empty() {
            let result = if self.takes_ring(data.len()) {
                let write = ring::write(self.file.clone(), data.clone(), offset).await;
                write.result.map(|count| count as usize)
            } else {
                self.file
                    .write_at(&data[..data.len().min(TRANSFER_BYTES_MAX)], offset)
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    data.advance(count);
                    offset += count as u64;
                }
                Err(error) if is_transient(&error) => yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes what was written durable. Never repeated after an error: the kernel reports a lost
    /// write once.
    pub(super) async fn flush(self) -> io::Result<()> {
        if self.takes_ring(0) {
            ring::sync_data(self.file.clone()).await.result.map(drop)
        } else {
            self.file.sync_data()
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}
