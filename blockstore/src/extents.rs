//! Where a version has data, and where two versions differ, without reading data.
//!
//! Every step begins at the roots, under the lock, and what it has to load it loads under a
//! reader's gate: nothing needs to be kept from being deleted meanwhile. A version that is deleted
//! half-way answers `Gone`.
use crate::cache::NodeSource;
use crate::error::Result;
use crate::format::geometry::Geometry;
use crate::format::pointer::{NodeRef, Packed};
use crate::info::Extent;
use crate::mapping::{Child, Node, Root};
use crate::pool::Pool;
use crate::read::Target;
use crate::state::State;
use crate::units::BLOCK_BYTES;
use std::sync::Arc;

/// Steps within one hold of the lock.
const STEPS: u32 = 64;

/// What is at a block, compared with another version's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The very same block, or a hole in both.
    Same,
    Data,
    Hole,
}

/// Blocks up to `end` are of one class.
#[derive(Clone, Copy, Debug)]
struct Run {
    end: u64,
    class: Class,
}

/// A node, or none, that is not borrowed from a parent.
#[derive(Clone, Debug)]
enum Place {
    Hole,
    Node(Arc<Node>),
    Stored(NodeRef),
    /// Above the root: the root is in its first child, the rest is a hole.
    Above(Root),
}

impl Place {
    fn of(child: Child<'_>) -> Self {
        match child {
            Child::Hole => Self::Hole,
            Child::Memory(node) => Self::Node(Arc::clone(node)),
            Child::Stored(stored) => Self::Stored(stored),
        }
    }

    fn at_level(root: &Root, level: u8) -> Self {
        match root.level() {
            None => Self::Hole,
            Some(own) if own == level => Self::of(root.as_child()),
            Some(_) => Self::Above(root.clone()),
        }
    }

    fn same(&self, other: &Self) -> bool {
        let identity = |place: &Self| match place {
            Self::Hole => Some((0, 0)),
            Self::Node(node) => Some((node.header.address.0, node.header.birth.0)),
            Self::Stored(stored) => Some((stored.address.0, stored.birth.0)),
            Self::Above(_) => None,
        };
        identity(self).is_some() && identity(self) == identity(other)
    }

    /// What is `level` below, at child `index`.
    fn child(
        &self,
        level: u8,
        index: u64,
        nodes: &NodeSource<'_>,
    ) -> std::result::Result<Self, NodeRef> {
        let node = match self {
            Self::Above(root) if index == 0 => return Ok(Self::at_level(root, level)),
            Self::Hole | Self::Above(_) => return Ok(Self::Hole),
            Self::Node(node) => Arc::clone(node),
            Self::Stored(stored) => nodes.find(stored).ok_or(*stored)?,
        };
        Ok(Self::of(
            node.child(usize::try_from(index).unwrap_or(usize::MAX)),
        ))
    }

    fn leaf(&self, nodes: &NodeSource<'_>) -> std::result::Result<Option<Arc<Node>>, NodeRef> {
        match self {
            Self::Hole | Self::Above(_) => Ok(None),
            Self::Node(node) => Ok(Some(Arc::clone(node))),
            Self::Stored(stored) => nodes.find(stored).map(Some).ok_or(*stored),
        }
    }
}

/// The run that begins at `block`, as far as one leaf, hole or common subtree goes.
fn run_at(
    from: &Root,
    to: &Root,
    geometry: &Geometry,
    nodes: &NodeSource<'_>,
    block: u64,
) -> std::result::Result<Run, NodeRef> {
    let top = from.level().max(to.level());
    let Some(mut level) = top.filter(|top| block < geometry.span(*top)) else {
        return Ok(Run {
            end: u64::MAX,
            class: Class::Same,
        });
    };
    let (mut old, mut new) = (Place::at_level(from, level), Place::at_level(to, level));
    let mut start = 0;
    loop {
        let end = start + geometry.span(level);
        if old.same(&new) {
            return Ok(Run {
                end,
                class: Class::Same,
            });
        }
        if level == 0 {
            break;
        }
        level -= 1;
        let span = geometry.span(level);
        let index = (block - start) / span;
        (old, new) = (
            old.child(level, index, nodes)?,
            new.child(level, index, nodes)?,
        );
        start += index * span;
    }
    let (old, new) = (old.leaf(nodes)?, new.leaf(nodes)?);
    let slot = |leaf: &Option<Arc<Node>>, block: u64| {
        let index = usize::try_from(block - start).unwrap_or(usize::MAX);
        leaf.as_ref().map_or(Packed::HOLE, |leaf| leaf.slot(index))
    };
    let class = |block| match (slot(&old, block), slot(&new, block)) {
        (old, new) if old == new => Class::Same,
        (_, new) if new.is_hole() => Class::Hole,
        _ => Class::Data,
    };
    let leaf_end = start + geometry.span(0);
    let first = class(block);
    let end = (block..leaf_end)
        .find(|block| class(*block) != first)
        .unwrap_or(leaf_end);
    Ok(Run { end, class: first })
}

impl State {
    fn run(
        &self,
        from: Option<Target>,
        to: Target,
        nodes: &NodeSource<'_>,
        block: u64,
    ) -> Result<std::result::Result<Run, NodeRef>> {
        let to = &self.version(to.version(self)?)?.root;
        let nothing = Root::Empty;
        let from = match from {
            Some(from) => &self.version(from.version(self)?)?.root,
            None => &nothing,
        };
        Ok(run_at(from, to, &self.geometry, nodes, block))
    }
}

/// Why a comparison paused.
enum Stopped {
    /// The caller has enough.
    Enough,
    /// The end, or others' turn.
    Rest,
    Missing(NodeRef),
}

impl State {
    /// Compares on from byte `at`, for as long as the lock should be held.
    fn compare_some(
        &self,
        from: Option<Target>,
        to: Target,
        nodes: &NodeSource<'_>,
        at: &mut u64,
        end: u64,
        take: &mut impl FnMut(Extent, Class) -> bool,
    ) -> Result<Stopped> {
        for _ in 0..STEPS {
            if *at >= end {
                break;
            }
            let run = match self.run(from, to, nodes, *at / BLOCK_BYTES)? {
                Ok(run) => run,
                Err(missing) => return Ok(Stopped::Missing(missing)),
            };
            let stop = run.end.saturating_mul(BLOCK_BYTES).min(end);
            assert!(stop > *at, "a run goes on");
            let extent = Extent {
                offset: *at,
                length: stop - *at,
                allocated: run.class == Class::Data,
            };
            if !take(extent, run.class) {
                return Ok(Stopped::Enough);
            }
            *at = stop;
        }
        Ok(Stopped::Rest)
    }
}

impl Pool {
    /// Calls `take` with adjacent byte ranges from `offset` to `end` and what they are in `to`,
    /// compared with `from` or with nothing, until it answers false; where it got to.
    pub(crate) async fn compare(
        &self,
        from: Option<Target>,
        to: Target,
        offset: u64,
        end: u64,
        mut take: impl FnMut(Extent, Class) -> bool,
    ) -> Result<u64> {
        let mut at = offset;
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        while at < end {
            let (stopped, reading) = {
                let state = self.state.lock();
                let nodes = NodeSource::new(&self.cache, &loaded);
                let stopped = state.compare_some(from, to, &nodes, &mut at, end, &mut take)?;
                (stopped, state.readers.begin())
            };
            match stopped {
                Stopped::Enough => return Ok(at),
                Stopped::Missing(missing) => {
                    loaded.truncate(64);
                    loaded.insert(0, self.load_node(&missing, &reading).await?);
                }
                Stopped::Rest => {
                    drop(reading);
                    crate::runtime::yield_now().await;
                }
            }
        }
        Ok(at)
    }

    /// As [`Self::compare`], gathered: adjacent equal answers joined, at most `extents_max`.
    pub(crate) async fn extents(
        &self,
        from: Option<Target>,
        to: Target,
        range: std::ops::Range<u64>,
        extents_max: usize,
        allocated: impl Fn(Class) -> bool,
    ) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        self.compare(from, to, range.start, range.end, |extent, class| {
            let extent = Extent {
                allocated: allocated(class),
                ..extent
            };
            push(&mut extents, extent, extents_max)
        })
        .await?;
        Ok(extents)
    }
}

/// Appends an extent, to the last one if they are adjacent and alike; false if there is no room.
pub(crate) fn push(extents: &mut Vec<Extent>, extent: Extent, extents_max: usize) -> bool {
    if let Some(last) = extents.last_mut()
        && last.allocated == extent.allocated
        && last.offset + last.length == extent.offset
    {
        last.length += extent.length;
        return true;
    }
    let fits = extents.len() < extents_max;
    if fits {
        extents.push(extent);
    }
    fits
}
