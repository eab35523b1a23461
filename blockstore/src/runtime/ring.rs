//! One worker's `io_uring`: operations as futures that cannot lose their memory.
//!
//! An operation owns the memory that the kernel uses. If its future is dropped before the end, the
//! kernel is asked to cancel it, and the ring keeps the memory until the kernel is done with it. A
//! future that is leaked leaks its memory, which is safe too.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory that the compiler cannot see"
)]

use super::worker::{self, Worker};
use crate::device::Buffer;
use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode};
use slab::Slab;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Operations that one `io_uring_enter` can submit.
const SUBMISSIONS: u32 = 512;
/// Completions that the kernel can post before it must set some aside.
const COMPLETIONS: u32 = 4096;
/// `user_data` of operations whose outcome nobody asked for.
const IGNORED: u64 = u64::MAX;
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
                ring.slots.remove(key.index);
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
                ring.slots.remove(key.index);
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

/// Names one started operation: its ring, its slot there, and which of the slot's uses it is.
#[derive(Clone, Copy, Debug)]
struct Key {
    ring: u32,
    index: usize,
    user_data: u64,
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

#[derive(Clone, Copy, Debug)]
struct Completion {
    result: i32,
    flags: u32,
}

#[derive(Debug)]
enum State {
    /// In flight; whom to wake.
    Waiting(Waker),
    /// Completed; nobody has taken it yet.
    Done(Completion),
    /// In flight (until `ended`), completing many times.
    Stream {
        ready: VecDeque<Completion>,
        waker: Option<Waker>,
        ended: bool,
    },
    /// In flight, but nobody waits; what to drop at the end.
    Abandoned(Box<dyn Any>),
}

impl State {
    fn stream() -> Self {
        Self::Stream {
            ready: VecDeque::new(),
            waker: None,
            ended: false,
        }
    }
}

#[derive(Debug)]
struct Slot {
    user_data: u64,
    /// Each result is a new descriptor, to close if nobody takes it.
    opens: bool,
    state: State,
}

/// What a turn of the ring brought, to be dealt with when the ring is not borrowed.
#[derive(Debug, Default)]
pub(super) struct Finished {
    wakers: Vec<Waker>,
    given_up: Vec<Box<dyn Any>>,
}

impl Finished {
    pub(super) fn deliver(self) {
        self.wakers.into_iter().for_each(Waker::wake);
        drop(self.given_up);
    }
}

/// A ring and the operations in it.
pub(super) struct Ring {
    uring: IoUring,
    id: u32,
    slots: Slab<Slot>,
    /// Counts the uses of slots, so that a late completion cannot be taken for another's.
    uses: u32,
    /// What the submission queue had no room for, in order.
    backlog: VecDeque<Entry>,
    /// Operations that will complete (again).
    in_flight: usize,
}

impl Ring {
    /// Sets a ring up for the calling thread, with what the kernel knows of what helps:
    /// completions that wait for the worker's own `enter` (6.1), or that at least do not interrupt
    /// it (5.19). Needs timeouts in `enter` (5.11).
    pub(super) fn new() -> io::Result<Self> {
        static ID: AtomicU32 = AtomicU32::new(0);
        let base = || {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(COMPLETIONS);
            builder
        };
        let mut deferring = base();
        deferring
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
        let mut cooperative = base();
        cooperative
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag();
        let uring = deferring
            .build(SUBMISSIONS)
            .or_else(|_| cooperative.build(SUBMISSIONS))
            .or_else(|_| base().build(SUBMISSIONS))?;
        let parameters = uring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring is too old",
            ));
        }
        Ok(Self {
            uring,
            id: ID.fetch_add(1, Ordering::Relaxed),
            slots: Slab::new(),
            uses: 0,
            backlog: VecDeque::new(),
            in_flight: 0,
        })
    }

    /// Operations that the kernel has, or will get at the next `enter`.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether `enter` would reap something; looks at shared memory only.
    pub(super) fn has_completions(&mut self) -> bool {
        if !self.uring.completion().is_empty() {
            return true;
        }
        let submissions = self.uring.submission();
        submissions.taskrun() || submissions.cq_overflow()
    }

    /// Submits everything, reaps what has completed; if `wait`, sleeps until something has, or
    /// `timeout` is over.
    pub(super) fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> Finished {
        let mut finished = Finished::default();
        loop {
            self.refill();
            let whole = self.backlog.is_empty();
            let result = if wait && whole {
                self.submit_and_wait(timeout)
            } else if self.uring.submission().is_empty() && !self.has_completions() {
                return finished;
            } else {
                self.uring.submit().map(drop)
            };
            self.reap(&mut finished);
            match result {
                // Nothing was lost: what was not submitted is still in the queue. If memory, or
                // room for completions, was short: let the tasks run first.
                Err(error) => {
                    assert!(is_transient(&error), "io_uring_enter failed: {error}");
                    return finished;
                }
                Ok(()) if whole => return finished,
                Ok(()) => {}
            }
        }
    }

    fn submit_and_wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.uring.submitter();
        match timeout {
            None => submitter.submit_and_wait(1).map(drop),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter
                    .submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
                    .map(drop)
            }
        }
    }

    /// Waits until some operation has ended, or says that there is none left. Only abandoned ones
    /// may be left.
    pub(super) fn drain(&mut self) -> Option<Finished> {
        (self.in_flight > 0).then(|| self.enter(true, None))
    }

    fn start(&mut self, entry: Entry, state: State) -> Key {
        self.uses = self.uses.wrapping_add(1);
        let slot = self.slots.vacant_entry();
        let index = slot.key();
        let low = u32::try_from(index).unwrap_or(u32::MAX);
        assert!(low != u32::MAX, "too many operations in one ring");
        let user_data = u64::from(self.uses) << 32 | u64::from(low);
        let opens = entry.get_opcode() == u32::from(opcode::Accept::CODE);
        slot.insert(Slot {
            user_data,
            opens,
            state,
        });
        self.push(entry.user_data(user_data));
        Key {
            ring: self.id,
            index,
            user_data,
        }
    }

    fn push(&mut self, entry: Entry) {
        self.in_flight += 1;
        self.backlog.push_back(entry);
        self.refill();
    }

    /// Moves the backlog to the submission queue, as far as there is room.
    fn refill(&mut self) {
        let mut submissions = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the one who made the entry promised in `submit` that what it points to lives
            // until its completion, and the slot or a leaked future keeps that promise.
            if unsafe { submissions.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.index];
        assert!(
            slot.user_data == key.user_data,
            "an operation's slot is used by another"
        );
        slot
    }

    fn reap(&mut self, finished: &mut Finished) {
        for entry in self.uring.completion() {
            let more = cqueue::more(entry.flags());
            if !more {
                self.in_flight -= 1;
            }
            if entry.user_data() == IGNORED {
                continue;
            }
            let index = usize::try_from(entry.user_data() & u64::from(u32::MAX)).unwrap_or(0);
            let slot = &mut self.slots[index];
            assert!(
                slot.user_data == entry.user_data(),
                "a completion has no operation"
            );
            let completion = Completion {
                result: entry.result(),
                flags: entry.flags(),
            };
            match &mut slot.state {
                State::Stream {
                    ready,
                    waker,
                    ended,
                } => {
                    ready.push_back(completion);
                    *ended = !more;
                    finished.wakers.extend(waker.take());
                }
                State::Abandoned(_) => {
                    if slot.opens {
                        close(completion.result);
                    }
                    if !more && let State::Abandoned(owned) = self.slots.remove(index).state {
                        finished.given_up.push(owned);
                    }
                }
                State::Waiting(_) | State::Done(_) => {
                    assert!(!more, "an operation that completes once promised more");
                    let before = std::mem::replace(&mut slot.state, State::Done(completion));
                    assert!(
                        matches!(before, State::Waiting(_)),
                        "an operation completed twice"
                    );
                    if let State::Waiting(waker) = before {
                        finished.wakers.push(waker);
                    }
                }
            }
        }
    }

    /// Returns what can be dropped now.
    fn abandon(&mut self, key: Key, owned: Box<dyn Any>) -> (Option<Box<dyn Any>>, Option<State>) {
        let slot = self.slot(key);
        let opens = slot.opens;
        let unclaimed: Vec<Completion> = match &mut slot.state {
            State::Done(completion) => vec![*completion],
            State::Stream { ready, .. } => ready.drain(..).collect(),
            State::Waiting(_) | State::Abandoned(_) => Vec::new(),
        };
        let ended = matches!(
            slot.state,
            State::Done(_) | State::Stream { ended: true, .. }
        );
        if opens {
            for completion in unclaimed {
                close(completion.result);
            }
        }
        if ended {
            self.slots.remove(key.index);
            return (Some(owned), None);
        }
        let before = std::mem::replace(&mut slot.state, State::Abandoned(owned));
        self.push(
            opcode::AsyncCancel::new(key.user_data)
                .build()
                .user_data(IGNORED),
        );
        (None, Some(before))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // `Worker::end` has drained the ring, unless the kernel refuses to work with it; then what
        // the slots own may still be in use and must not be freed.
        if self.in_flight > 0 {
            Box::leak(Box::new(std::mem::take(&mut self.slots)));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Closes a descriptor that an abandoned operation opened.
fn close(result: i32) {
    if result >= 0 {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

/// Errors of `io_uring_enter` after which the same call may succeed: a signal, the timeout, too
/// little memory, too many completions not yet reaped.
fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let transient = [Errno::INTR, Errno::TIME, Errno::AGAIN, Errno::BUSY];
    transient
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
