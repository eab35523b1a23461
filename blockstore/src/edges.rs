//! One read-modify-write at a time for each block.
//!
//! Correctness does not need it (a merge is published only if what it read is still current); it
//! keeps neighbours that write parts of one block from merging over and over.
use event_listener::{Event, EventListener};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks, by volume and number, that are being merged.
#[derive(Debug, Default)]
pub(crate) struct Edges(Mutex<BTreeMap<(u64, u64), Arc<Event>>>);

/// Held while blocks are being merged.
#[derive(Debug)]
pub(crate) struct Merging<'a> {
    edges: &'a Edges,
    blocks: Vec<(u64, u64)>,
}

impl Edges {
    /// Waits for each of `blocks`, which must be in ascending order, so that nobody waits in a
    /// ring.
    pub(crate) async fn merge(&self, volume: u64, blocks: &[u64]) -> Merging<'_> {
        let mut merging = Merging {
            edges: self,
            blocks: Vec::new(),
        };
        for block in blocks {
            let key = (volume, *block);
            while let Some(busy) = self.take(key) {
                busy.await;
            }
            merging.blocks.push(key);
        }
        merging
    }

    /// Takes a block, or says what to wait for before trying again.
    fn take(&self, key: (u64, u64)) -> Option<EventListener> {
        let mut held = self.0.lock();
        let busy = held.get(&key).map(|event| event.listen());
        if busy.is_none() {
            held.insert(key, Arc::default());
        }
        busy
    }
}

impl Drop for Merging<'_> {
    fn drop(&mut self) {
        let mut held = self.edges.0.lock();
        for key in &self.blocks {
            if let Some(event) = held.remove(key) {
                event.notify(usize::MAX);
            }
        }
    }
}
