//! Background deletions: what they own, and what they will pass on.
use super::Checker;
use super::catalogue::{JobEntry, Work};
use super::lists::Bag;
use super::reading::READS;
use crate::format::entry::Output;
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::{Child, Node};
use crate::units::{Address, Record};
use futures_util::future::join_all;

/// Where a job's blocks go in the end.
#[derive(Clone, Copy, Debug)]
struct Route {
    /// The lowest cut on the way: what was born after it will be freed, and is the job's.
    cut: Record,
    /// The version to whose list the others go.
    version: Option<u64>,
}

/// What a walk holds, as found so far.
struct Walked {
    title: String,
    route: Route,
    /// The walk's own cut.
    cut: Record,
    cursor: u64,
    own: u64,
    passed: Bag,
    whole: bool,
}

impl Checker<'_> {
    pub(super) async fn check_jobs(&mut self) {
        let jobs: Vec<(u64, JobEntry)> = self
            .catalogue
            .jobs
            .iter()
            .map(|(id, job)| (*id, *job))
            .collect();
        for (id, job) in jobs {
            let Some(route) = self.route(&job) else {
                self.problem(format!("catalogue: job {id} passes blocks on in a circle"));
                continue;
            };
            match job.work {
                Work::Walk { root, cursor } => {
                    let title = format!("background deletion {id}");
                    let walked = Walked {
                        title,
                        route,
                        cut: job.cut,
                        cursor,
                        own: 0,
                        passed: Bag::default(),
                        whole: true,
                    };
                    self.check_walk(root, walked).await;
                }
                Work::Filter { chain, count } => self.check_filter(id, route, chain, count).await,
            }
        }
    }

    fn route(&self, job: &JobEntry) -> Option<Route> {
        let mut route = Route {
            cut: job.cut,
            version: None,
        };
        let mut output = job.output;
        for _ in 0..=self.catalogue.jobs.len() {
            match output {
                Output::Discard => return Some(route),
                Output::Version(id) => {
                    route.version = Some(id);
                    return Some(route);
                }
                Output::Job(id) => {
                    let Some(next) = self.catalogue.jobs.get(&id) else {
                        return Some(route); // said already
                    };
                    route.cut = route.cut.min(next.cut);
                    output = next.output;
                }
            }
        }
        None
    }

    async fn check_filter(&mut self, id: u64, route: Route, chain: Packed, count: u64) {
        let title = format!("the list of background deletion {id}");
        let (mut own, mut passed) = (0, Bag::default());
        let whole = self
            .read_chain(&title, chain, count, |checker, entry| {
                if entry.birth() <= route.cut {
                    passed.add(entry.address(), entry.birth());
                    return;
                }
                own += 1;
                checker.claim(entry.address(), || title.clone());
            })
            .await;
        self.pass_on(route, own, passed, whole);
    }

    /// Adds what a job has to the version that it works for.
    fn pass_on(&mut self, route: Route, own: u64, passed: Bag, whole: bool) {
        let Some(version) = route.version else { return };
        *self.own.entry(version).or_default() += own;
        match self.dead.get_mut(&version) {
            Some(bag) if whole => bag.join(passed),
            _ => drop(self.dead.remove(&version)),
        }
    }

    async fn check_walk(&mut self, root: Option<NodeRef>, mut walked: Walked) {
        let mut stack: Vec<(NodeRef, u64)> = root.map(|root| (root, 0)).into_iter().collect();
        while !stack.is_empty() {
            let batch = stack.split_off(stack.len().saturating_sub(READS));
            let batch: Vec<_> = batch
                .into_iter()
                .filter(|(stored, _)| self.enter_walked(stored, &mut walked))
                .collect();
            let source = self.source.clone();
            let cut = walked.route.cut;
            let read = batch
                .iter()
                .map(|(stored, _)| source.node(stored, stored.birth > cut));
            let found = join_all(read).await;
            for ((stored, first), found) in batch.into_iter().zip(found) {
                for why in found.bad {
                    self.problem(format!("I3: {}: {why}", walked.title));
                }
                let node = found.node.filter(|node| node.header.first == first);
                let Some(node) = node else {
                    self.problem(format!(
                        "I3: {}: the node of block {first}, {}, is lost",
                        walked.title, stored.address
                    ));
                    walked.whole = false;
                    continue;
                };
                self.check_walked(&node, &mut walked, &mut stack);
            }
        }
        self.pass_on(walked.route, walked.own, walked.passed, walked.whole);
    }

    /// Takes note of a node's blocks; false if what is below does not matter or is not to be read.
    fn enter_walked(&mut self, stored: &NodeRef, walked: &mut Walked) -> bool {
        let copies = [
            Some(stored.address),
            Some(stored.twin).filter(|twin| *twin != Address(0)),
        ];
        if stored.birth <= walked.route.cut {
            for address in copies.into_iter().flatten() {
                walked.passed.add(address, stored.birth);
            }
            // A loop would name more blocks than there are.
            return walked.route.version.is_some() && walked.passed.count <= self.blocks_total;
        }
        for address in copies.into_iter().flatten() {
            if !self.claim(address, || walked.title.clone()) {
                walked.whole = false;
                return false;
            }
            walked.own += 1;
            self.count_blocks(1);
        }
        true
    }

    fn check_walked(&mut self, node: &Node, walked: &mut Walked, stack: &mut Vec<(NodeRef, u64)>) {
        let geometry = self.superblock.geometry;
        let header = node.header;
        let span = match header.level {
            0 => 1,
            level => geometry.span(level - 1),
        };
        // I9: what an ancestor still has was frozen by the cut.
        let newest = if header.birth <= walked.cut {
            walked.cut
        } else {
            self.newest
        };
        let mut too_young = None;
        for (index, first) in (0..node.children_len()).zip((header.first..).step_by(step(span))) {
            if first + span <= walked.cursor {
                continue; // freed already
            }
            let birth = if header.level > 0 {
                let Child::Stored(child) = node.child(index) else {
                    continue;
                };
                stack.push((child, first));
                child.birth
            } else {
                let slot = node.slot(index);
                if slot.is_hole() {
                    continue;
                }
                if slot.birth() <= walked.route.cut {
                    walked.passed.add(slot.address(), slot.birth());
                } else if self.claim(slot.address(), || walked.title.clone()) {
                    walked.own += 1;
                    self.count_blocks(1);
                }
                slot.birth()
            };
            if birth > newest {
                too_young = Some((first, birth));
            }
        }
        if let Some((first, birth)) = too_young {
            self.problem(format!(
                "I9: {}: block {first} is born at {birth}, below a node of {}",
                walked.title, header.birth
            ));
        }
    }
}

/// A span as a step of an iterator; no pool has volumes beyond 2^64 blocks.
fn step(span: u64) -> usize {
    usize::try_from(span).unwrap_or(usize::MAX)
}
