//! Block-aligned memory for I/O (placeholder until the real one lands).
use bytes::Bytes;

/// Block-aligned bytes, owned by one holder.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Memory for `length` bytes, a multiple of the block size; content is unspecified but initialised.
    pub fn new(length: usize) -> Self {
        Self(vec![0; length])
    }
    /// Shares the memory, read-only from now on; it is recycled when the last share is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from(self.0)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// `length` zero bytes, shared and aligned, without new memory where `length` is at most 1 MiB.
pub fn zeroes(length: usize) -> Bytes {
    Bytes::from(vec![0; length])
}
