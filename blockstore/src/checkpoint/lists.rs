//! Writing deadlists: new entries go behind the chain, whose last block is copied if it has room.
use super::freeze::FrozenEntry;
use crate::allocator::Log;
use crate::error::{Error, ErrorKind, Result};
use crate::format::deadlist::DeadlistBlock;
use crate::format::pointer::Packed;
use crate::limits::DEADLIST_ENTRIES;
use crate::pool::Pool;
use crate::units::{Address, Record};
use crate::versions::FrozenDeadlist;

impl Pool {
    /// Writes the new entries of every frozen list.
    pub(super) async fn write_lists(
        &self,
        entries: &[FrozenEntry],
        record: Record,
        log: &mut Log,
    ) -> Result<()> {
        for list in entries.iter().filter_map(FrozenEntry::new_list) {
            let chain = self.write_list(list, record, log).await?;
            let first = list.written.set(chain);
            assert!(first.is_ok(), "a deadlist was written twice");
        }
        Ok(())
    }

    async fn write_list(
        &self,
        list: &FrozenDeadlist,
        record: Record,
        log: &mut Log,
    ) -> Result<Packed> {
        let mut previous = list.chain;
        let mut entries = Vec::new();
        if !previous.is_hole() {
            let last = self.read_list_block(previous).await?;
            if last.entries.len() < DEADLIST_ENTRIES {
                let old = previous.address();
                self.allocate_frozen(log, 0, |allocator| allocator.free_gated(old))
                    .await?;
                (previous, entries) = (last.previous, last.entries);
            }
        }
        entries.extend(&list.entries);
        let mut batch = Vec::new();
        for chunk in entries.chunks(DEADLIST_ENTRIES) {
            let mut address = Address(0);
            self.allocate_frozen(log, 1, |allocator| address = allocator.take_metadata(0))
                .await?;
            let (bytes, crc) = DeadlistBlock {
                previous,
                entries: chunk.to_vec(),
            }
            .encode();
            previous = Packed::new(address, 0, record, crc);
            batch.push((address, bytes));
        }
        self.write_batch(batch).await?;
        Ok(previous)
    }

    /// A block of a deadlist, verified.
    pub(crate) async fn read_list_block(&self, pointer: Packed) -> Result<DeadlistBlock> {
        let block = self.read_block(pointer.address(), pointer.crc()).await?;
        DeadlistBlock::decode(&block).ok_or_else(|| {
            let message = format!("{} is no block of a deadlist", pointer.address());
            Error::new(ErrorKind::Corrupt, message)
        })
    }
}
