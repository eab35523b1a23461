//! Bytes of memory that all clients share: taken and given back, first come first served.
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// A number of bytes that many hold parts of.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u64,
    queue: VecDeque<Arc<Request>>,
}

/// Somebody who waits. Only changed under the budget's lock.
#[derive(Debug)]
struct Request {
    bytes: u64,
    stage: Mutex<Stage>,
}

#[derive(Debug)]
enum Stage {
    Waiting(Waker),
    Granted,
    /// Nobody waits any more.
    Abandoned,
}

impl Budget {
    pub(crate) fn new(capacity: u64) -> Self {
        let state = State {
            free: capacity,
            queue: VecDeque::new(),
        };
        Self {
            capacity,
            state: Mutex::new(state),
        }
    }

    /// Takes `bytes`, or all there are if they are fewer, once those who came before have theirs.
    /// Returns how many to [`Self::give`] back.
    pub(crate) async fn take(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.capacity);
        let mut waiting: Option<Waiting<'_>> = None;
        poll_fn(|context| {
            let mut state = self.state.lock();
            if let Some(waiting) = &waiting {
                return waiting.poll(context.waker());
            }
            if state.queue.is_empty() && bytes <= state.free {
                state.free -= bytes;
                return Poll::Ready(());
            }
            let stage = Mutex::new(Stage::Waiting(context.waker().clone()));
            let request = Arc::new(Request { bytes, stage });
            state.queue.push_back(request.clone());
            waiting = Some(Waiting {
                budget: self,
                request,
            });
            Poll::Pending
        })
        .await;
        bytes
    }

    /// Gives bytes back that were taken.
    pub(crate) fn give(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.free += bytes;
        assert!(
            state.free <= self.capacity,
            "more bytes were given back than taken"
        );
        state.grant();
    }

    /// Somebody waits.
    pub(crate) fn is_short(&self) -> bool {
        !self.state.lock().queue.is_empty()
    }
}

impl State {
    fn grant(&mut self) {
        while let Some(first) = self.queue.front() {
            let mut stage = first.stage.lock();
            match &*stage {
                Stage::Waiting(waker) if first.bytes <= self.free => {
                    self.free -= first.bytes;
                    waker.wake_by_ref();
                    *stage = Stage::Granted;
                }
                Stage::Waiting(_) => return,
                Stage::Granted | Stage::Abandoned => {}
            }
            drop(stage);
            self.queue.pop_front();
        }
    }
}

/// A place in the queue, given up when dropped before its turn was noticed.
struct Waiting<'a> {
    budget: &'a Budget,
    request: Arc<Request>,
}

impl Waiting<'_> {
    fn poll(&self, waker: &Waker) -> Poll<()> {
        let mut stage = self.request.stage.lock();
        match &mut *stage {
            Stage::Waiting(old) => {
                old.clone_from(waker);
                Poll::Pending
            }
            Stage::Granted | Stage::Abandoned => {
                *stage = Stage::Abandoned;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        let before = std::mem::replace(&mut *self.request.stage.lock(), Stage::Abandoned);
        if matches!(before, Stage::Granted) {
            state.free += self.request.bytes;
        }
        state.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::Context;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_large_request_is_not_overtaken_by_small_ones() {
        let budget = Budget::new(100);
        assert_eq!(poll(pin!(budget.take(60))), Poll::Ready(60));
        let mut large = pin!(budget.take(80));
        assert_eq!(poll(large.as_mut()), Poll::Pending);
        let mut small = pin!(budget.take(10));
        assert_eq!(poll(small.as_mut()), Poll::Pending);
        assert!(budget.is_short());
        budget.give(60);
        assert_eq!(poll(small.as_mut()), Poll::Ready(10));
        assert_eq!(poll(large.as_mut()), Poll::Ready(80));
        assert!(!budget.is_short());
        budget.give(90);
        assert_eq!(poll(pin!(budget.take(100))), Poll::Ready(100));
    }

    #[test]
    fn more_than_there_can_be_is_all_there_is() {
        let budget = Budget::new(100);
        assert_eq!(poll(pin!(budget.take(1))), Poll::Ready(1));
        let mut all = pin!(budget.take(u64::MAX));
        assert_eq!(poll(all.as_mut()), Poll::Pending);
        budget.give(1);
        assert_eq!(poll(all.as_mut()), Poll::Ready(100));
    }

    #[test]
    fn who_gives_up_leaves_the_queue_and_what_he_was_given() {
        let budget = Budget::new(100);
        assert_eq!(poll(pin!(budget.take(100))), Poll::Ready(100));
        let mut first = Box::pin(budget.take(70));
        let mut second = Box::pin(budget.take(40));
        assert_eq!(poll(first.as_mut()), Poll::Pending);
        assert_eq!(poll(second.as_mut()), Poll::Pending);
        drop(first);
        budget.give(50);
        assert!(!budget.is_short(), "the second was given its part");
        drop(second);
        budget.give(50);
        assert_eq!(poll(pin!(budget.take(100))), Poll::Ready(100));
    }

    /// Takes and gives back many times, on this thread.
    fn use_much(budget: &Budget, seed: u64) {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        for round in 0..2000 {
            let bytes = (seed * 37 + round) % 400;
            let mut take = pin!(budget.take(bytes));
            while take.as_mut().poll(&mut context).is_pending() {
                std::thread::park();
            }
            budget.give(bytes);
        }
    }

    #[test]
    fn threads_share_it_without_loss() {
        let budget = Budget::new(1000);
        std::thread::scope(|scope| {
            for seed in 1..8 {
                let budget = &budget;
                scope.spawn(move || use_much(budget, seed));
            }
        });
        assert_eq!(budget.state.lock().free, 1000);
    }

    struct Unpark(std::thread::Thread);

    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
}
