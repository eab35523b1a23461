//! The checker: reads every structure and every block of a pool, and holds it against every rule.
//!
//! A pool is recovered on an overlay, so that nothing on disk changes, and a checkpoint is taken
//! there; then all is verified as it is on the overlay's disk, without the engine's own memory of
//! it. What is verified, by the number of the invariant:
//!
//! * I1: no block has two owners. A version owns what its tree leads to that was born after its
//!   cut; a walk what is beyond its cursor, and a filter the entries of its list, that were born
//!   after the lowest cut on the way to where they pass blocks on; every list owns its chain; the
//!   catalogue its nodes and blocks.
//! * I2: the bitmaps have exactly the owned blocks set; the region table counts them.
//! * I3: every block and both copies of every node verify and say what they should.
//! * I8: the superblock's copies agree, and what it leads to is there.
//! * I9: nothing that a version reaches was born after the cuts of its children, which froze it.
//! * I10: the deadlist of a version, with what jobs will still pass on to it, is exactly what its
//!   parent has and it has not: neither less, which would leak, nor more, which would free a block
//!   that is in use. Both sides are added up as a count and a hash, so this takes no memory.
//! * The catalogue's entries fit one another: names, heads, parents, cuts, outputs, counters.
//!
//! Memory is one bit for each block of regions in use, and the catalogue.
mod catalogue;
mod findings;
mod fixed;
mod jobs;
mod lists;
mod offline;
mod owners;
mod reading;
mod trees;

#[cfg(test)]
mod tests;

pub(crate) use offline::check_file;

use crate::device::Device;
use crate::error::Result;
use crate::format::superblock::Superblock;
use crate::info::Progress;
use crate::pool::Pool;
use crate::recovery::read_superblock;
use crate::store::CheckReport;
use crate::units::{Address, Record};
use catalogue::Catalogue;
use findings::Findings;
use lists::Bag;
use owners::{Claim, Owners};
use reading::Source;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tells how far the checker is; units are blocks.
type Tell<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// One run of the checker over a checkpoint.
struct Checker<'a> {
    source: Source,
    superblock: Superblock,
    /// The last record that the checkpoint holds: nothing is born after it.
    newest: Record,
    catalogue: Catalogue,
    owners: Owners,
    findings: Findings,
    /// Blocks that each version and its jobs have to themselves, as found.
    own: BTreeMap<u64, u64>,
    /// What each version's deadlist, and jobs on the way to it, name.
    dead: BTreeMap<u64, Bag>,
    blocks: u64,
    blocks_total: u64,
    tell: Tell<'a>,
}

/// Verifies the last checkpoint of a pool in which nothing goes on, and that it is all there is.
/// For tests of an open pool, right after a checkpoint.
pub(crate) async fn verify(pool: &Pool, tell: Tell<'_>) -> CheckReport {
    let mut report = match verify_device(&pool.device, tell).await {
        Ok(report) => report,
        Err(error) => CheckReport {
            problems: vec![format!("I8: {error}")],
            ..CheckReport::default()
        },
    };
    let state = pool.state.lock();
    let allocator = &state.allocator;
    let (used, gated, free) = (allocator.used(), allocator.gated(), allocator.free());
    if used + gated + free != allocator.usable() {
        report.problems.push(format!(
            "I2: {used} used, {gated} gated and {free} free blocks are not {}",
            allocator.usable()
        ));
    }
    let quiet = state.changed.is_empty() && state.journal.newest() <= state.frozen;
    if quiet && report.problems.is_empty() && report.blocks != used {
        report.problems.push(format!(
            "I2: {used} blocks are counted as used, {} are",
            report.blocks
        ));
    }
    report
}

/// Verifies the newest checkpoint on a device, as it is there. `Err`: there is no superblock.
async fn verify_device(device: &Arc<dyn Device>, tell: Tell<'_>) -> Result<CheckReport> {
    let superblock = read_superblock(&**device).await?;
    let geometry = superblock.geometry;
    let mut checker = Checker {
        source: Source {
            device: Arc::clone(device),
            fanout: geometry.fanout,
        },
        newest: Record(superblock.replay_first.0.saturating_sub(1)),
        superblock,
        catalogue: Catalogue::default(),
        owners: Owners::new(geometry),
        findings: Findings::default(),
        own: BTreeMap::new(),
        dead: BTreeMap::new(),
        blocks: 0,
        blocks_total: 0,
        tell,
    };
    checker.run().await;
    let (volumes, snapshots) = checker.catalogue.totals();
    Ok(CheckReport {
        blocks: checker.owners.count(),
        problems: checker.findings.into_lines(),
        volumes,
        snapshots,
    })
}

impl Checker<'_> {
    async fn run(&mut self) {
        self.check_superblocks().await;
        let table = self.read_table().await;
        self.blocks_total = table.iter().map(|entry| u64::from(entry.used)).sum();
        self.read_catalogue().await;
        self.check_relations();
        self.check_lists().await;
        self.check_jobs().await;
        let versions: Vec<u64> = self.catalogue.versions.keys().copied().collect();
        for id in versions {
            self.check_version(id).await;
        }
        self.check_bitmaps(&table).await;
    }

    fn problem(&mut self, line: String) {
        self.findings.add(line);
    }

    /// Takes note of a block's owner; false if it cannot be had.
    fn claim(&mut self, address: Address, whose: impl FnOnce() -> String) -> bool {
        match self.owners.claim(address) {
            Claim::First => true,
            Claim::Again => {
                let line = format!("I1: {address} has two owners; one is {}", whose());
                self.problem(line);
                false
            }
            Claim::Outside => {
                let line = format!("I1: {address} of {} is in no region", whose());
                self.problem(line);
                false
            }
        }
    }

    fn count_blocks(&mut self, blocks: u64) {
        self.blocks += blocks;
        let (done, total) = (self.blocks, self.blocks_total.max(self.blocks));
        (self.tell)(Progress { done, total });
    }
}
