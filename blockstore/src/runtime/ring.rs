//! One worker's `io_uring`: operations as futures that cannot lose their memory.
//!
//! An operation owns the memory that the kernel uses. If its future is dropped before the end, the
//! kernel is asked to cancel it, and the ring keeps the memory until the kernel is done with it. A
//! future that is leaked leaks its memory, which is safe too.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory that the compiler cannot see"
)]

use super::queues::{Completion, Key, State};
use super::worker::{self, Worker};
use crate::device::Buffer;
use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{Submitter, opcode};
use std::any::Any;
use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Longest read or write asked for at once; longer ones are continued, which tests do often.
pub(crate) const TRANSFER_BYTES_MAX: usize = if cfg!(test) { 12 << 10 } else { 1 << 30 };

/// Whether the calling thread is a worker with a ring.
pub fn available() -> bool {
    worker::current().is_some_and(|worker| worker.ring.is_some())
}

/// Registers buffers, files and the like with this worker's ring. `None` where there is none.
pub fn with_submitter<R>(work: impl FnOnce(&Submitter<'_>) -> R) -> Option<R> {
    let worker = worker::current()?;
    let ring = worker.ring.as_ref()?.borrow();
    Some(work(&ring.uring.submitter()))
}

/// Prepares an operation that completes once. It starts when first polled, on a worker with a ring
/// (see [`available`]), and must be polled and dropped on that worker from then on.
///
/// # Safety
/// Until the operation completes, `owned` must keep everything valid that `entry` points to or
/// names: memory at an address that does not change when `owned` moves, and open descriptors. While
/// the kernel may write to memory, nobody else may use it; while it may read, nobody may write.
/// `entry` must not carry flags that link it to others.
pub unsafe fn submit<T: 'static>(entry: Entry, owned: T) -> Op<T> {
    Op {
        entry: Some(entry),
        key: None,
        owned: Some(owned),
    }
}

/// Prepares an operation that completes many times (multishot accept, receive or poll).
///
/// # Safety
/// As for [`submit`].
pub unsafe fn submit_multi<T: 'static>(entry: Entry, owned: T) -> Multi<T> {
    Multi {
        entry: Some(entry),
        key: None,
        owned: Some(owned),
    }
}

/// Reads up to `buffer[skip..]` from `offset`.
pub fn read(
    file: Arc<File>,
    mut buffer: Buffer,
    skip: usize,
    offset: u64,
) -> Op<(Buffer, Arc<File>)> {
    let part = &mut buffer[skip..];
    let length = u32::try_from(part.len().min(TRANSFER_BYTES_MAX)).unwrap_or(0);
    let entry = opcode::Read::new(Fd(file.as_raw_fd()), part.as_mut_ptr(), length).offset(offset);
    // SAFETY: a buffer's bytes stay where they are, and it and the file go along.
    unsafe { submit(entry.build(), (buffer, file)) }
}

/// Writes up to `data` at `offset`.
pub fn write(file: Arc<File>, data: Bytes, offset: u64) -> Op<(Bytes, Arc<File>)> {
    let length = u32::try_from(data.len().min(TRANSFER_BYTES_MAX)).unwrap_or(0);
    let entry = opcode::Write::new(Fd(file.as_raw_fd()), data.as_ptr(), length).offset(offset);
    // SAFETY: shared bytes stay where they are and do not change; they and the file go along.
    unsafe { submit(entry.build(), (data, file)) }
}

/// Makes the file's data durable, and what is needed to read it back (`fdatasync`).
pub fn sync_data(file: Arc<File>) -> Op<Arc<File>> {
    let entry = opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC);
    // SAFETY: no memory; the file goes along.
    unsafe { submit(entry.build(), file) }
}

/// Waits until an eventfd is not zero, and makes it zero.
pub(super) fn read_bell(bell: Arc<OwnedFd>) -> Op<(Buffer, Arc<OwnedFd>)> {
    let mut count = Buffer::new(8);
    let entry = opcode::Read::new(Fd(bell.as_raw_fd()), count.as_mut_ptr(), 8);
    // SAFETY: as in `read`.
    unsafe { submit(entry.build(), (count, bell)) }
}

/// How an operation ended.
#[derive(Debug)]
pub struct Done<T> {
    /// What the system call would have returned.
    pub result: io::Result<u32>,
    /// The completion's flags (`IORING_CQE_F_*`).
    pub flags: u32,
    /// What the operation owned.
    pub owned: T,
}

/// An operation that completes once.
pub struct Op<T: 'static> {
    entry: Option<Entry>,
    key: Option<Key>,
    owned: Option<T>,
}

impl<T> Unpin for Op<T> {}

impl<T> Future for Op<T> {
    type Output = Done<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done<T>> {
        if let Some(entry) = self.entry.take() {
            let state = State::Waiting(context.waker().clone());
            self.key = Some(start(entry, state));
            return Poll::Pending;
        }
        assert!(self.key.is_some(), "an operation was polled after its end");
        let Some(key) = self.key else {
            return Poll::Pending;
        };
        let worker = key.worker();
        let Some(ring) = &worker.ring else {
            return Poll::Pending;
        };
        let before;
        {
            let mut ring = ring.borrow_mut();
            let slot = ring.slot(key);
            if let State::Done(completion) = slot.state {
                ring.remove(key);
                drop(ring);
                self.key = None;
                let Some(owned) = self.owned.take() else {
                    return Poll::Pending;
                };
                let Completion { result, flags } = completion;
                return Poll::Ready(Done {
                    result: outcome(result),
                    flags,
                    owned,
                });
            }
            before = std::mem::replace(&mut slot.state, State::Waiting(context.waker().clone()));
        }
        drop(before); // not under the borrow: a waker may run anything when it goes
        Poll::Pending
    }
}

impl<T> Drop for Op<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            abandon(key, self.owned.take());
        }
    }
}

impl<T> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// An operation that completes many times.
pub struct Multi<T: 'static> {
    entry: Option<Entry>,
    key: Option<Key>,
    owned: Option<T>,
}

impl<T> Multi<T> {
    /// The next completion: what the system call would have returned, and the flags. `None` once
    /// the kernel has ended the operation and everything was handed out.
    pub async fn next(&mut self) -> Option<(io::Result<u32>, u32)> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<(io::Result<u32>, u32)>> {
        if let Some(entry) = self.entry.take() {
            self.key = Some(start(entry, State::stream()));
        }
        let Some(key) = self.key else {
            return Poll::Ready(None);
        };
        let worker = key.worker();
        let Some(ring) = &worker.ring else {
            return Poll::Ready(None);
        };
        let before;
        {
            let mut ring = ring.borrow_mut();
            let State::Stream {
                ready,
                waker,
                ended,
            } = &mut ring.slot(key).state
            else {
                return Poll::Ready(None);
            };
            if let Some(Completion { result, flags }) = ready.pop_front() {
                return Poll::Ready(Some((outcome(result), flags)));
            }
            if *ended {
                ring.remove(key);
                self.key = None;
                return Poll::Ready(None);
            }
            before = waker.replace(context.waker().clone());
        }
        drop(before);
        Poll::Pending
    }
}

impl<T> Drop for Multi<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            abandon(key, self.owned.take());
        }
    }
}

impl<T> fmt::Debug for Multi<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multi")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

impl Key {
    /// The worker of the operation, which must be the calling thread.
    fn worker(self) -> Rc<Worker> {
        let worker = worker::here();
        let ring = worker.ring.as_ref().map(|ring| ring.borrow().id);
        assert!(
            ring == Some(self.ring),
            "an operation was polled on another worker than its own"
        );
        worker
    }
}

fn start(entry: Entry, state: State) -> Key {
    let worker = worker::here();
    assert!(
        worker.ring.is_some(),
        "an operation needs a worker with a ring"
    );
    let ring = worker.ring.as_ref().unwrap_or_else(|| unreachable!());
    ring.borrow_mut().start(entry, state)
}

/// Nobody waits for the operation any more: cancel it, and keep what it owns until it has ended.
fn abandon<T: 'static>(key: Key, owned: Option<T>) {
    let owned: Box<dyn Any> = Box::new(owned);
    let worker = worker::current();
    let ring = worker.as_ref().and_then(|worker| worker.ring.as_ref());
    if let Some(ring) = ring.filter(|ring| ring.borrow().id == key.ring) {
        let given_up = ring.borrow_mut().abandon(key, owned);
        drop(given_up); // not under the borrow: it may drop other operations
    } else {
        // Its ring cannot be reached from here, so nobody can tell when the kernel is done.
        tracing::error!("an operation was dropped on another thread; its memory is lost");
        let _: &mut dyn Any = Box::leak(owned);
    }
}
