//! What the allocator says, to be compared with what the structures refer to.
use super::{Allocator, Bitmap, apply};
use std::collections::BTreeSet;

impl Allocator {
    /// Addresses in use by the published state, and what does not add up; `stored` reads the bitmap
    /// of a region as it is on disk.
    pub(crate) fn audit(&self, stored: impl Fn(usize) -> Bitmap) -> (BTreeSet<u64>, Vec<String>) {
        let (mut used, mut problems) = (BTreeSet::new(), Vec::new());
        let (mut free, mut claimed) = (0, 0);
        for (index, region) in self.regions.iter().enumerate() {
            let mut bitmap = stored(index);
            if bitmap.count() != region.entry.used {
                problems.push(format!("region {index} counts {}", region.entry.used));
            }
            if let Some(deltas) = self.log.get(&index) {
                apply(&mut bitmap, deltas);
            }
            let start = self.geometry.region_start(index);
            for run in bitmap.set_runs() {
                used.extend(run.map(|bit| start + u64::from(bit)));
            }
            free += u64::from(region.free);
            claimed += u64::from(region.outstanding);
            if let Some(unavailable) = &region.unavailable {
                if unavailable.bits() - unavailable.count() != region.free {
                    problems.push(format!("region {index} counts {} free", region.free));
                }
                for run in bitmap.set_runs() {
                    if run.into_iter().any(|bit| !unavailable.get(bit)) {
                        problems.push(format!("region {index} offers what is used"));
                    }
                }
            }
        }
        if used.len() as u64 != self.used {
            problems.push(format!(
                "{} used are counted, {} are",
                self.used,
                used.len()
            ));
        }
        if free + claimed != self.free() {
            problems.push(format!(
                "I2: {} free counted, {free}+{claimed} are",
                self.free()
            ));
        }
        (used, problems)
    }
}
