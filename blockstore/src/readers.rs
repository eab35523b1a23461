//! Gate (b): a freed block is not reused while a reader that may have found it is still reading.
//!
//! Readers are counted by the epoch in which they began; each freeze of a checkpoint begins a new
//! one. A block freed before a freeze can only be found by readers of epochs up to that freeze.
use event_listener::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The readers of one epoch. Dropping the last share of a count tells the waiting checkpoint.
#[derive(Debug, Default)]
struct Epoch {
    reading: AtomicU64,
    left: Event,
}

/// Held while blocks that were found in a mapping are being read.
#[derive(Debug)]
pub(crate) struct Reading(Arc<Epoch>);

impl Drop for Reading {
    fn drop(&mut self) {
        if self.0.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.left.notify(usize::MAX);
        }
    }
}

/// All epochs that still have readers, oldest first; the last is the current one.
#[derive(Debug)]
pub(crate) struct Readers(VecDeque<Arc<Epoch>>);

impl Default for Readers {
    fn default() -> Self {
        Self(VecDeque::from([Arc::default()]))
    }
}

impl Readers {
    /// A reader begins.
    pub(crate) fn begin(&self) -> Reading {
        let current = self
            .0
            .back()
            .unwrap_or_else(|| unreachable!("there is a current epoch"));
        current.reading.fetch_add(1, Ordering::AcqRel);
        Reading(Arc::clone(current))
    }

    /// Ends the current epoch; the answer completes when every reader that began so far is done.
    pub(crate) fn turn(&mut self) -> Departed {
        self.0
            .retain(|epoch| epoch.reading.load(Ordering::Acquire) > 0);
        let ended = self.0.iter().map(Arc::clone).collect();
        self.0.push_back(Arc::default());
        Departed(ended)
    }
}

/// Waits for readers.
#[derive(Debug)]
pub(crate) struct Departed(Vec<Arc<Epoch>>);

impl Departed {
    pub(crate) async fn wait(self) {
        for epoch in self.0 {
            loop {
                let left = epoch.left.listen();
                if epoch.reading.load(Ordering::Acquire) == 0 {
                    break;
                }
                left.await;
            }
        }
    }
}
