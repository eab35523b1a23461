//! A list of dead blocks in memory: what is on disk, what a checkpoint is writing, what is new.
use crate::format::pointer::Packed;
use std::sync::{Arc, OnceLock};

/// The entries are a bag: their order means nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadlist {
    base: Base,
    tail: Vec<Packed>,
    count: u64,
}

#[derive(Clone, Debug)]
enum Base {
    /// The last block of a chain; a hole for none.
    Stored(Packed),
    Freezing(Arc<FrozenDeadlist>),
}

impl Default for Base {
    fn default() -> Self {
        Self::Stored(Packed::HOLE)
    }
}

/// What a checkpoint has to write of a list.
#[derive(Debug)]
pub(crate) struct FrozenDeadlist {
    /// The chain that the entries are put behind.
    pub(crate) chain: Packed,
    pub(crate) entries: Vec<Packed>,
    /// The chain with them.
    pub(crate) written: OnceLock<Packed>,
}

impl Deadlist {
    pub(crate) fn from_stored(chain: Packed, count: u64) -> Self {
        Self {
            base: Base::Stored(chain),
            tail: Vec::new(),
            count,
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Entries in memory that no checkpoint has taken yet.
    #[cfg(test)]
    pub(crate) fn new_entries_slice(&self) -> &[Packed] {
        &self.tail
    }

    pub(crate) fn append(&mut self, entry: Packed) {
        self.tail.push(entry);
        self.count += 1;
    }

    /// Removes some of the newest entries, if they are in memory still.
    pub(crate) fn pop_new(&mut self, most: usize) -> Vec<Packed> {
        let taken = self.tail.split_off(self.tail.len().saturating_sub(most));
        self.count -= taken.len() as u64;
        taken
    }

    /// The chain on disk, without the new entries; `None` while a checkpoint writes it.
    pub(crate) fn chain(&self) -> Option<Packed> {
        match &self.base {
            Base::Stored(chain) => Some(*chain),
            Base::Freezing(frozen) => frozen.written.get().copied(),
        }
    }

    /// The last block of the chain was consumed: `entries` of it; `chain` goes on before it.
    pub(crate) fn shorten(&mut self, chain: Packed, entries: usize) {
        self.base = Base::Stored(chain);
        self.count -= entries as u64;
    }

    /// Hands the new entries over to a checkpoint; the chain must not be in another's hands.
    /// `None`: there are none, and the list is as it was last written.
    pub(crate) fn freeze(&mut self) -> Option<Arc<FrozenDeadlist>> {
        let chain = self.chain();
        assert!(chain.is_some(), "two checkpoints at once write one list");
        let chain = chain.unwrap_or_default();
        self.base = Base::Stored(chain);
        if self.tail.is_empty() {
            return None;
        }
        let entries = std::mem::take(&mut self.tail);
        let frozen = Arc::new(FrozenDeadlist {
            chain,
            entries,
            written: OnceLock::new(),
        });
        self.base = Base::Freezing(Arc::clone(&frozen));
        Some(frozen)
    }
}
