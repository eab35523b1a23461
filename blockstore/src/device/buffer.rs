//! Block-aligned memory for I/O, recycled by size.
//!
//! Up to [`POOLED_BYTES_MAX`] memory comes in powers of two from the allocator and goes back to a
//! free list of the thread that drops it, at most [`FREE_BYTES_MAX`] a thread and size. What is
//! longer is an anonymous map of its own, and goes back to the kernel.
#![expect(
    unsafe_code,
    reason = "aligned memory needs the allocator's raw interface"
)]

use crate::BLOCK_SIZE;
use bytes::Bytes;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::LazyLock;

/// Longest memory that is recycled.
const POOLED_BYTES_MAX: usize = 1 << 20;
/// Free memory that one thread keeps, of each size.
const FREE_BYTES_MAX: usize = 2 << 20;
/// Sizes: 4 KiB, 8 KiB, … 1 MiB.
const CLASSES: usize = 9;
const _: () = assert!(BLOCK_SIZE << (CLASSES - 1) == POOLED_BYTES_MAX);

/// Block-aligned bytes, owned by one holder. They do not move when the holder does.
pub struct Buffer {
    memory: Memory,
    length: usize,
}

impl Buffer {
    /// Memory for `length` bytes; content is unspecified but initialised.
    pub fn new(length: usize) -> Self {
        let memory = if length <= POOLED_BYTES_MAX {
            Memory::Pooled(Chunk::new(class_of(length)))
        } else {
            Memory::Mapped(map(length))
        };
        Self { memory, length }
    }

    /// The same bytes in block-aligned memory.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Shares the memory, read-only from now on; it is recycled when the last share is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Pooled(chunk) => &chunk.bytes()[..self.length],
            Memory::Mapped(map) => &map[..self.length],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Pooled(chunk) => &mut chunk.bytes_mut()[..self.length],
            Memory::Mapped(map) => &mut map[..self.length],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// `length` zero bytes, shared and aligned, without new memory where `length` is at most 1 MiB.
pub fn zeroes(length: usize) -> Bytes {
    static ZEROES: LazyLock<Bytes> = LazyLock::new(|| Bytes::from_owner(map(POOLED_BYTES_MAX)));
    if length <= POOLED_BYTES_MAX {
        ZEROES.slice(..length)
    } else {
        Bytes::from_owner(map(length)).slice(..length)
    }
}

/// Whether direct I/O can use these bytes where they are.
pub fn is_aligned(bytes: &Bytes) -> bool {
    bytes.as_ptr().addr().is_multiple_of(BLOCK_SIZE)
}

enum Memory {
    Pooled(Chunk),
    Mapped(MmapMut),
}

/// Zeroed memory of its own, whole blocks, page-aligned.
fn map(length: usize) -> MmapMut {
    let layout = Layout::new::<[u8; BLOCK_SIZE]>();
    MmapMut::map_anon(length.next_multiple_of(BLOCK_SIZE))
        .unwrap_or_else(|_| handle_alloc_error(layout))
}

/// The smallest class that holds `length` bytes, for `length` at most [`POOLED_BYTES_MAX`].
fn class_of(length: usize) -> usize {
    let blocks = length.div_ceil(BLOCK_SIZE).max(1);
    usize::try_from(blocks.next_power_of_two().trailing_zeros()).unwrap_or(CLASSES)
}

const fn class_bytes(class: usize) -> usize {
    BLOCK_SIZE << class
}

fn layout(class: usize) -> Layout {
    assert!(class < CLASSES, "buffer size class {class} does not exist");
    Layout::from_size_align(class_bytes(class), BLOCK_SIZE)
        .unwrap_or(Layout::new::<[u8; BLOCK_SIZE]>())
}

/// Memory of one class: `class_bytes(class)` initialised bytes at `start`, owned alone.
struct Chunk {
    start: NonNull<u8>,
    class: usize,
}

// SAFETY: a chunk owns its memory alone, as a `Box<[u8]>` does.
unsafe impl Send for Chunk {}
// SAFETY: through a shared reference the memory is only read.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(class: usize) -> Self {
        let recycled = FREE
            .try_with(|free| free.borrow_mut().0[class].pop())
            .ok()
            .flatten();
        let start = recycled.unwrap_or_else(|| {
            let layout = layout(class);
            // SAFETY: no layout of a class has size zero.
            let start = unsafe { alloc_zeroed(layout) };
            NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
        });
        Self { start, class }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for the class's length, initialised since its allocation, and
        // nobody writes to it while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), class_bytes(self.class)) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), class_bytes(self.class)) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let kept = FREE.try_with(|free| {
            let list = &mut free.borrow_mut().0[self.class];
            let room = list.len() < FREE_BYTES_MAX / class_bytes(self.class);
            if room {
                list.push(self.start);
            }
            room
        });
        if kept != Ok(true) {
            // SAFETY: allocated with this layout, and given up by its only owner.
            unsafe { dealloc(self.start.as_ptr(), layout(self.class)) }
        }
    }
}

/// Memory that nobody uses, by class.
struct Free([Vec<NonNull<u8>>; CLASSES]);

impl Drop for Free {
    fn drop(&mut self) {
        for (class, list) in self.0.iter_mut().enumerate() {
            for start in list.drain(..) {
                // SAFETY: allocated with this layout; the list was its only owner.
                unsafe { dealloc(start.as_ptr(), layout(class)) }
            }
        }
    }
}

thread_local! {
    static FREE: RefCell<Free> = const { RefCell::new(Free([const { Vec::new() }; CLASSES])) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_aligned_and_initialised() {
        for length in [
            0,
            1,
            4095,
            4096,
            4097,
            12288,
            1 << 20,
            (1 << 20) + 1,
            32 << 20,
        ] {
            let mut buffer = Buffer::new(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr().addr() % 4096, 0);
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn frozen_memory_comes_back_when_the_last_share_goes() {
        let mut buffer = Buffer::new(5000);
        buffer.fill(9);
        let address = buffer.as_ptr();
        let bytes = buffer.freeze();
        assert!(is_aligned(&bytes) && !is_aligned(&bytes.slice(1..)));
        let share = bytes.slice(10..20);
        drop(bytes);
        assert_ne!(
            Buffer::new(5000).as_ptr(),
            address,
            "recycled under a share"
        );
        assert_eq!(&share[..], [9; 10]);
        drop(share);
        assert_eq!(Buffer::new(8192).as_ptr(), address, "not recycled");
    }

    #[test]
    fn memory_may_be_dropped_on_another_thread() {
        let bytes = Buffer::copy_of(&[3; 4096]).freeze();
        let sum =
            std::thread::spawn(move || bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        assert_eq!(sum.join().unwrap(), 3 * 4096);
    }

    #[test]
    fn a_thread_keeps_a_bounded_amount() {
        let class = class_of(POOLED_BYTES_MAX);
        let many: Vec<Buffer> = (0..8).map(|_| Buffer::new(POOLED_BYTES_MAX)).collect();
        drop(many);
        let kept = FREE.with(|free| free.borrow().0[class].len());
        assert_eq!(kept, FREE_BYTES_MAX / POOLED_BYTES_MAX);
    }

    #[test]
    fn zeroes_are_zero_and_shared() {
        assert_eq!(zeroes(4096).as_ptr(), zeroes(1 << 20).as_ptr());
        for length in [0, 1, 1 << 20, (1 << 20) + 1] {
            let bytes = zeroes(length);
            assert_eq!(bytes.len(), length);
            assert!(is_aligned(&bytes) && bytes.iter().all(|byte| *byte == 0));
        }
    }
}
