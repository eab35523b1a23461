//! The queues of one `io_uring`: what is in flight, who waits for it, and what it keeps alive.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory that the compiler cannot see"
)]

use io_uring::squeue::Entry;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use slab::Slab;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::Duration;

/// Operations that one `io_uring_enter` can submit.
const SUBMISSIONS: u32 = 512;
/// Completions that the kernel can post before it must set some aside.
const COMPLETIONS: u32 = 4096;
/// `user_data` of operations whose outcome nobody asked for.
const IGNORED: u64 = u64::MAX;
/// Names one started operation: its ring, its slot there, and which of the slot's uses it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) ring: u32,
    index: usize,
    user_data: u64,
}
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) result: i32,
    pub(super) flags: u32,
}

#[derive(Debug)]
pub(super) enum State {
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
    pub(super) fn stream() -> Self {
        Self::Stream {
            ready: VecDeque::new(),
            waker: None,
            ended: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    user_data: u64,
    /// Each result is a new descriptor, to close if nobody takes it.
    opens: bool,
    pub(super) state: State,
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
    pub(super) uring: IoUring,
    pub(super) id: u32,
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

    /// Operations that the next `enter` will submit.
    pub(super) fn queued(&mut self) -> usize {
        self.uring.submission().len() + self.backlog.len()
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

    pub(super) fn start(&mut self, entry: Entry, state: State) -> Key {
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

    pub(super) fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.index];
        assert!(
            slot.user_data == key.user_data,
            "an operation's slot is used by another"
        );
        slot
    }

    /// Forgets an operation that has ended.
    pub(super) fn remove(&mut self, key: Key) {
        self.slots.remove(key.index);
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

    /// Cancels an operation that nobody waits for. Returns what can be dropped now.
    pub(super) fn abandon(
        &mut self,
        key: Key,
        owned: Box<dyn Any>,
    ) -> (Option<Box<dyn Any>>, Option<State>) {
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
