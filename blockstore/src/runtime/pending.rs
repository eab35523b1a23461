//! `Pending`: the result of a task on a worker, for a task or a thread to wait for.
use super::worker::on_worker;
use crate::{Error, ErrorKind};
use async_task::FallibleTask;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// A result that can say: the runtime stopped before there was one.
pub trait Lost {
    /// The result of a task that was dropped before its end.
    fn lost() -> Self;
}

impl<T> Lost for crate::Result<T> {
    fn lost() -> Self {
        Err(Error::new(ErrorKind::Gone, "the store is closed"))
    }
}

impl<T> Lost for io::Result<T> {
    fn lost() -> Self {
        Err(io::Error::other("the worker threads were stopped"))
    }
}

impl<T> Lost for Option<T> {
    fn lost() -> Self {
        None
    }
}

impl Lost for () {
    fn lost() -> Self {}
}

/// A started operation. It goes on whether this is awaited, waited for, or dropped.
#[must_use = "the result is lost; drop it explicitly to let the operation go on by itself"]
pub struct Pending<T>(State<T>);

enum State<T> {
    /// The result, until it is taken.
    Ready(Option<T>),
    /// The task, until its result is taken, and what to say if it was dropped.
    Task(Option<FallibleTask<T>>, fn() -> T),
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// An operation that is done.
    pub fn ready(value: T) -> Self {
        Self(State::Ready(Some(value)))
    }

    pub(super) fn of(task: async_task::Task<T>) -> Self
    where
        T: Lost,
    {
        Self(State::Task(Some(task.fallible()), T::lost))
    }

    /// Blocks the calling thread until the operation is done. Not for worker threads.
    pub fn wait(mut self) -> T {
        assert!(!on_worker(), "a worker thread must await, not block");
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let value = match &mut self.0 {
            State::Ready(value) => value.take(),
            State::Task(slot, lost) => match slot {
                None => None,
                Some(task) => match Pin::new(task).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(value) => {
                        *slot = None;
                        Some(value.unwrap_or_else(lost))
                    }
                },
            },
        };
        assert!(value.is_some(), "a result was asked for twice");
        value.map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let State::Task(task, _) = &mut self.0
            && let Some(task) = task.take()
        {
            task.detach();
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// Wakes a thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
