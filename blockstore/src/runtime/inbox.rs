//! A worker's inbox: how other threads hand it tasks, wake it and stop it.
use super::worker;
use async_task::Runnable;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What reaches one worker from outside.
pub(super) struct Inbox {
    state: Mutex<State>,
    /// There may be something in `state` to look at; a hint, for looking without the lock.
    mail: AtomicBool,
    /// Counts up when the worker must wake.
    bell: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<Runnable>,
    /// The worker sleeps, or is about to: ring the bell.
    sleeping: bool,
    /// The worker is to drop its tasks and end.
    stop: bool,
    /// The worker has ended; nothing arrives any more.
    closed: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        // Not non-blocking: a ring's read of it must wait.
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self {
            state: Mutex::default(),
            mail: AtomicBool::new(false),
            bell: Arc::new(bell),
        })
    }

    /// Queues a task on this worker, from any thread.
    pub(super) fn schedule(self: &Arc<Self>, runnable: Runnable) {
        let Some(runnable) = worker::queue_if_here(self, runnable) else {
            return;
        };
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            // Only a task that never ran can arrive so late (see `Worker::end`): it is `Send`.
            drop(runnable);
            return;
        }
        state.arrived.push_back(runnable);
        self.notify(state);
    }

    /// Tells the worker to end.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stop = true;
        self.notify(state);
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "an eventfd counts in the machine's order"
    )]
    fn notify(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        self.mail.store(true, Ordering::Release);
        let sleeping = std::mem::take(&mut state.sleeping);
        drop(state);
        if sleeping && let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "could not wake a worker thread");
        }
    }

    /// Whether there may be something to take.
    pub(super) fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    /// Moves what arrived to `queue`; true if the worker is to end.
    pub(super) fn take(&self, queue: &mut VecDeque<Runnable>) -> bool {
        let mut state = self.state.lock();
        state.sleeping = false;
        self.mail.store(false, Ordering::Relaxed);
        queue.append(&mut state.arrived);
        state.stop
    }

    /// Announces sleep. False if there is something to take first.
    pub(super) fn fall_asleep(&self) -> bool {
        let mut state = self.state.lock();
        state.sleeping = !self.has_mail();
        state.sleeping
    }

    /// Refuses everything from now on. False, and still open, if something arrived meanwhile.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = state.arrived.is_empty();
        state.closed
    }

    pub(super) fn bell(&self) -> &Arc<OwnedFd> {
        &self.bell
    }

    /// Sleeps until the bell rings or `timeout` is over; for a worker without a ring.
    pub(super) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(Timespec::try_from).transpose().unwrap_or(None);
        let mut bells = [PollFd::new(&self.bell, PollFlags::IN)];
        match poll(&mut bells, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                let mut count = [0; 8];
                rustix::io::read(&self.bell, &mut count)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}
