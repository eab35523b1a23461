//! Where a background job's blocks go: freed, or on to the next list.
use super::{Job, Output};
use crate::format::pointer::Packed;
use crate::state::State;
use crate::units::{Address, Record};

impl State {
    /// A job lets go of a block born after its cut: it is freed.
    pub(crate) fn job_frees(&mut self, address: Address, birth: Record, is_node: bool) {
        if is_node && birth > self.frozen {
            self.allocator.free_now(address);
        } else {
            self.allocator.free_gated(address);
        }
    }

    /// A job gives up a block that its version counts as its own.
    pub(crate) fn job_counts_off(&mut self, output: Output) {
        if let Some(version) = self.final_version(output)
            && let Some(version) = self.versions.get_mut(&version)
        {
            version.own -= 1;
            // The counter is part of the entry.
        }
    }

    /// A job passes on a dead block that an ancestor still has.
    pub(crate) fn job_passes(&mut self, entry: Packed, output: Output) {
        match output {
            Output::Discard => {}
            Output::Version(id) => {
                let parent = self.versions.get(&id).map_or(0, |version| version.parent);
                let parent_cut = self.parent_cut(parent);
                self.changed.insert(id);
                if let Some(version) = self.versions.get_mut(&id) {
                    self.dead_new += 1;
                    version.dead.append(entry);
                    version.dead_own += u64::from(entry.birth() > parent_cut);
                }
            }
            Output::Job(id) => {
                self.changed.insert(id);
                if let Some(Job::Filter { list, .. }) = self.jobs.get_mut(&id) {
                    list.append(entry);
                    self.dead_new += 1;
                }
            }
        }
    }

    /// The version at the end of a chain of filters.
    fn final_version(&mut self, mut output: Output) -> Option<u64> {
        loop {
            match output {
                Output::Discard => return None,
                Output::Version(id) => {
                    self.changed.insert(id);
                    return Some(id);
                }
                Output::Job(id) => output = self.jobs.get(&id)?.output(),
            }
        }
    }

    /// Whether any job still passes blocks to this filter.
    pub(crate) fn is_fed(&self, id: u64) -> bool {
        self.jobs
            .values()
            .any(|job| job.output() == Output::Job(id))
    }
}
