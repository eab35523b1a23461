//! Applying the accepted records.
use super::scan::Found;
use crate::allocator::Short;
use crate::cache::NodeSource;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Change;
use crate::journal::Mark;
use crate::mapping::Node;
use crate::pool::Pool;
use crate::units::{Address, Record};
use crate::versions::SMALL_UNMAP_LEAVES;
use std::sync::Arc;

impl Pool {
    /// Applies what was found; where the journal goes on.
    pub(super) async fn replay(&self, found: Found) -> Result<Mark> {
        let changes = || found.records.iter().flat_map(|(_, changes)| changes);
        // Jobs that replay makes must not take ids that later records name.
        let newest_id = changes().map(largest_id).max().unwrap_or(0);
        {
            let mut state = self.state.lock();
            state.next_id = state.next_id.max(newest_id + 1);
        }
        for change in changes() {
            if let Change::Map { runs, .. } = change {
                for run in runs {
                    self.mark(run.address, run.crcs.len() as u64).await?;
                }
            }
        }
        for (record, changes) in &found.records {
            for change in changes {
                self.apply_again(change, *record).await?;
            }
        }
        if let Some((last, _)) = found.records.last() {
            tracing::info!(
                "replayed {} journal records up to {last}",
                found.records.len()
            );
        }
        Ok(found.mark)
    }

    /// Claims addresses that an accepted record names, before anything can be allocated there.
    async fn mark(&self, start: Address, blocks: u64) -> Result<()> {
        for address in (start.0..start.0 + blocks).map(Address) {
            loop {
                let claimed = self.state.lock().allocator.claim_this(address);
                match claimed {
                    Ok(()) => break,
                    Err(Short::Load(region)) => self.load_region(region).await?,
                    Err(Short::Full) => {
                        let message = format!("the journal names {address}, which is not free");
                        return Err(Error::new(ErrorKind::Corrupt, message));
                    }
                }
            }
        }
        Ok(())
    }

    async fn apply_again(&self, change: &Change, record: Record) -> Result<()> {
        let nodes_max = match change {
            Change::Map { runs, .. } => {
                let blocks = runs.iter().map(|run| run.crcs.len() as u64).sum();
                self.geometry.nodes_for(blocks)
            }
            Change::Unmap { count, .. } => {
                let released = (SMALL_UNMAP_LEAVES * self.span()).min(*count);
                2 * self.geometry.nodes_for(released)
            }
            _ => 0,
        };
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let wait = {
                let mut state = self.state.lock();
                let nodes = NodeSource::new(&self.cache, &loaded);
                match state.allocator.stock_metadata(nodes_max) {
                    Err(short) => Err(short),
                    Ok(()) => match state.missing(change, &nodes)? {
                        Some(missing) => Ok((missing, state.readers.begin())),
                        None => return state.apply(change, record, &nodes),
                    },
                }
            };
            match wait {
                Ok((missing, reading)) => loaded.push(self.load_node(&missing, &reading).await?),
                Err(Short::Load(region)) => self.load_region(region).await?,
                Err(Short::Full) => {
                    let message = "no space is left to replay the journal";
                    return Err(Error::new(ErrorKind::NoSpace, message));
                }
            }
        }
    }
}

fn largest_id(change: &Change) -> u64 {
    match change {
        Change::CreateVolume { volume, head, .. } => *volume.max(head),
        Change::Clone {
            volume,
            head,
            ghost,
            ..
        } => *volume.max(head).max(ghost),
        Change::Snapshot { cuts, .. } => cuts.iter().map(|cut| cut.version).max().unwrap_or(0),
        Change::Rollback { head, .. } => *head,
        Change::Map { .. }
        | Change::Unmap { .. }
        | Change::Resize { .. }
        | Change::Rename { .. }
        | Change::DeleteVolume { .. }
        | Change::DeleteSnapshot { .. }
        | Change::Reap { .. } => 0,
    }
}
