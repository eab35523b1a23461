//! `sleep`: the timers of one worker.
use super::worker;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// When a timer fires; the number tells timers of the same instant, on any worker, apart.
type Key = (Instant, u64);

/// The timers that have not fired yet.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeMap<Key, Waker>);

impl Timers {
    /// How long until the next one fires.
    pub(super) fn next_in(&self) -> Option<Duration> {
        let ((at, _), _) = self.0.first_key_value()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Takes one that is due.
    pub(super) fn due(&mut self) -> Option<Waker> {
        let first = self.0.first_entry()?;
        (first.key().0 <= Instant::now()).then(|| first.remove())
    }
}

/// Completes after `duration`, on a worker thread. Panics elsewhere.
pub fn sleep(duration: Duration) -> impl Future<Output = ()> + Send {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // Far beyond any use, and still an instant.
    let century = Duration::from_hours(100 * 365 * 24);
    let at = Instant::now() + duration.min(century);
    Sleep {
        key: (at, NUMBER.fetch_add(1, Ordering::Relaxed)),
        waiting: false,
    }
}

struct Sleep {
    key: Key,
    waiting: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let worker = worker::here();
        if self.key.0 <= Instant::now() {
            return Poll::Ready(());
        }
        self.waiting = true;
        let waker = context.waker().clone();
        let before = worker.timers.borrow_mut().0.insert(self.key, waker);
        drop(before); // not under the borrow: a waker may run anything when it goes
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.waiting
            && let Some(worker) = worker::current()
        {
            let waker = worker.timers.borrow_mut().0.remove(&self.key);
            drop(waker);
        }
    }
}
