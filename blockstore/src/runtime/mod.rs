//! Worker threads, each with one ring and a small executor that the ring drives.
//!
//! Everything that waits on a worker is a future: operations of its ring ([`ring`]), timers
//! ([`sleep`]), results of other tasks ([`Pending`]). One `io_uring_enter` for each turn submits
//! what the tasks asked for, and reaps and waits for whatever ends first: an operation, a timer, a
//! wake-up from another thread (a read of an eventfd that is always in the ring).
//!
//! A panic in a task stops all workers of its runtime.
mod busy;
mod clock;
mod inbox;
mod pending;
mod queues;
pub mod ring;
#[cfg(test)]
mod tests;
mod timer;
mod worker;

pub use clock::{Clock, SystemClock};
pub use pending::{Lost, Pending};
pub use timer::sleep;
pub use worker::{on_worker, spawn_local, yield_now};

use inbox::Inbox;
use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

/// A way to one worker thread.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inbox>);

impl Handle {
    /// Runs a future on that worker, from any thread.
    pub fn spawn<F>(&self, future: F) -> Pending<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Lost + Send + 'static,
    {
        worker::spawn(&self.0, future)
    }

    /// Makes a future on that worker, where it need not be `Send`, and runs it, detached.
    pub fn spawn_with<F, M>(&self, make: M)
    where
        F: Future<Output = ()> + 'static,
        M: FnOnce() -> F + Send + 'static,
    {
        drop(self.spawn(async move { spawn_local(make()) }));
    }

    /// Whether the calling thread is this worker.
    pub fn is_current(&self) -> bool {
        worker::is_here(&self.0)
    }
}

/// Worker threads. They stop when this is dropped.
#[derive(Debug)]
pub struct Runtime {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    has_rings: bool,
}

impl Runtime {
    /// Starts `workers` threads named `name-0`, `name-1`, … Where the system refuses `io_uring`,
    /// they run without, and the log says so once.
    pub fn start(workers: usize, name: &str) -> io::Result<Self> {
        Self::start_threads(workers, name, true)
    }

    /// The same, but does not use `io_uring`: devices do blocking I/O on the workers.
    pub fn start_without_ring(workers: usize, name: &str) -> io::Result<Self> {
        Self::start_threads(workers, name, false)
    }

    fn start_threads(workers: usize, name: &str, with_rings: bool) -> io::Result<Self> {
        assert!(workers > 0, "a runtime needs a worker");
        let inboxes: io::Result<Vec<_>> =
            (0..workers).map(|_| Inbox::new().map(Arc::new)).collect();
        let all: Arc<[Arc<Inbox>]> = inboxes?.into();
        let mut runtime = Self {
            handles: all.iter().cloned().map(Handle).collect(),
            threads: Vec::new(),
            has_rings: with_rings,
        };
        let (started, starts) = mpsc::channel();
        for (index, inbox) in all.iter().cloned().enumerate() {
            let (all, started) = (all.clone(), started.clone());
            let main = move || worker::main(inbox, &all, with_rings, &started);
            runtime.threads.push(
                thread::Builder::new()
                    .name(format!("{name}-{index}"))
                    .spawn(main)?,
            );
        }
        drop(started);
        for refused in starts.iter().take(workers).flatten() {
            if runtime.has_rings {
                tracing::warn!(error = %refused, "io_uring cannot be used; doing blocking I/O");
            }
            runtime.has_rings = false;
        }
        Ok(runtime)
    }

    /// The workers.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Whether every worker has a ring.
    pub fn has_rings(&self) -> bool {
        self.has_rings
    }

    /// Stops: tasks are dropped where they are, the kernel's operations are awaited or cancelled,
    /// and the threads joined, except the calling one. Panics if a task had panicked.
    pub fn stop(mut self) {
        if let Some(panic) = self.join() {
            resume_unwind(panic);
        }
    }

    fn join(&mut self) -> Option<Box<dyn std::any::Any + Send>> {
        self.handles.iter().for_each(|handle| handle.0.stop());
        let here = thread::current().id();
        let others = self
            .threads
            .drain(..)
            .filter(|thread| thread.thread().id() != here);
        others
            .filter_map(|thread| thread.join().err())
            .fold(None, |first, panic| first.or(Some(panic)))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.join().is_some() {
            tracing::error!("a task had panicked");
        }
    }
}
