//! Worker threads, each with one ring (placeholder until the real one lands).
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A started operation. It goes on whether this is awaited, waited for, or dropped.
#[derive(Debug)]
pub struct Pending<T>(std::marker::PhantomData<T>);

impl<T> Pending<T> {
    /// Blocks the calling thread until the operation is done. Not for worker threads.
    pub fn wait(self) -> T {
        unimplemented!()
    }
}

impl<T> Future for Pending<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        unimplemented!()
    }
}

/// A way to one worker thread.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// Runs a future on that worker.
    pub fn spawn<F>(&self, _future: F) -> Pending<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        unimplemented!()
    }
}

/// Runs a future on this worker thread, detached. Panics elsewhere.
pub fn spawn_local(_future: impl Future<Output = ()> + 'static) {
    unimplemented!()
}

/// Completes after `duration`, on a worker thread. Panics elsewhere.
pub async fn sleep(_duration: std::time::Duration) {
    unimplemented!()
}
