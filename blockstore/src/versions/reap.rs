//! Taking deleted versions out of the tree of versions.
use super::{Deadlist, Job, Kind, Output};
use crate::error::{Error, ErrorKind, Result};
use crate::mapping::Root;
use crate::state::State;
use crate::units::Record;

/// Nothing is born after it: a filter with this cut frees nothing.
const NEVER: Record = Record((1 << 44) - 1);

impl State {
    /// Whether a version is deleted, and a parent of at most one version.
    pub(crate) fn is_reapable(&self, id: u64) -> bool {
        self.versions
            .get(&id)
            .is_some_and(|version| version.kind == Kind::Ghost && version.children.len() <= 1)
    }

    /// Takes a reapable version out. Without children its tree goes to a job that frees what was
    /// born after its cut. With one, that child takes over its parent, cut and deadlist, and a job
    /// frees what the child had found dead but shared with this version alone.
    pub(super) fn reap(&mut self, id: u64) -> Result<()> {
        let impossible = || {
            Error::new(
                ErrorKind::Corrupt,
                format!("version {id} is not to be reaped"),
            )
        };
        let version = self.versions.remove(&id).ok_or_else(impossible)?;
        if version.kind != Kind::Ghost || version.children.len() > 1 {
            return Err(impossible());
        }
        self.changed.insert(id);
        let parent = version.parent;
        if let Some(parent) = self.versions.get_mut(&parent) {
            parent.children.retain(|child| *child != id);
            parent.children.extend(&version.children);
        }
        let Some(child_id) = version.children.first().copied() else {
            // Its dead blocks are an ancestor's: only the list itself is to be freed.
            self.redirect(Output::Version(id), Output::Discard);
            self.filter(NEVER, version.dead, Output::Discard);
            if !matches!(version.root, Root::Empty) {
                let (root, cut) = (version.root, version.cut);
                self.add_job(Job::Walk {
                    root,
                    cut,
                    cursor: 0,
                    output: Output::Discard,
                });
            }
            return Ok(());
        };
        let child = self.version_mut(child_id)?;
        let list = std::mem::replace(&mut child.dead, version.dead);
        // What the child has found dead of it is counted off as the filter frees it: how much that
        // is cannot be told now, for the cut may have moved since the list was counted.
        child.own += version.own;
        child.dead_own = version.dead_own;
        child.parent = version.parent;
        child.cut = version.cut;
        // What jobs still append to the child's list was found dead under the old cut, and what
        // they append to this version's list goes to the child's unfiltered.
        let waiting = self
            .jobs
            .values()
            .any(|job| job.output() == Output::Version(child_id));
        if waiting || !list.is_empty() {
            let filter = self.next_id;
            self.redirect(Output::Version(child_id), Output::Job(filter));
            self.add_job(Job::Filter {
                cut: version.cut,
                list,
                output: Output::Version(child_id),
            });
        }
        self.redirect(Output::Version(id), Output::Version(child_id));
        Ok(())
    }

    fn filter(&mut self, cut: Record, list: Deadlist, output: Output) {
        if !list.is_empty() {
            self.add_job(Job::Filter { cut, list, output });
        }
    }

    pub(super) fn redirect(&mut self, from: Output, to: Output) {
        for (id, job) in &mut self.jobs {
            if job.output() == from {
                job.set_output(to);
                self.changed.insert(*id);
            }
        }
    }
}
