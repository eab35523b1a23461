//! Wakes one task of the same thread: what a condition variable is to threads, without a lock.
use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Where at most one task waits.
#[derive(Default)]
pub(super) struct Signal(Cell<Option<Waker>>);

impl Signal {
    /// Wakes the task that waits, if one does.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }

    /// Waits until `ready`, which is asked now and at each wake.
    pub(super) async fn until(&self, mut ready: impl FnMut() -> bool) {
        poll_fn(|context| {
            if ready() {
                return Poll::Ready(());
            }
            self.0.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
