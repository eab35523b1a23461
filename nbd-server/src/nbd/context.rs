//! Metadata contexts: their names, which query means which, and what their flags say.
use super::protocol::{DIRTY, allocation};
use blockstore::Extent;

/// One metadata context of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// `base:allocation`: holes, which read as zeroes.
    Allocation,
    /// What may differ from a snapshot, under our own name.
    DirtySince(String),
    /// The same under the name that qemu and `nbdinfo` know.
    DirtyBitmap(String),
}

const ALLOCATION: &str = "base:allocation";
const DIRTY_SINCE: &str = "x-basalt:dirty-since:";
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Queries that mean every context whose name begins so, in `LIST_META_CONTEXT` only.
///
/// A snapshot's name may contain a colon, so that not every query that ends in one is a wildcard.
const WILDCARDS: [&str; 5] = ["base:", "x-basalt:", DIRTY_SINCE, "qemu:", DIRTY_BITMAP];

impl Context {
    /// Its full name.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Allocation => ALLOCATION.to_owned(),
            Self::DirtySince(snapshot) => format!("{DIRTY_SINCE}{snapshot}"),
            Self::DirtyBitmap(snapshot) => format!("{DIRTY_BITMAP}{snapshot}"),
        }
    }

    /// All contexts of an export with these snapshots.
    pub(crate) fn all(snapshots: &[String]) -> impl Iterator<Item = Self> + '_ {
        std::iter::once(Self::Allocation)
            .chain(snapshots.iter().cloned().map(Self::DirtySince))
            .chain(snapshots.iter().cloned().map(Self::DirtyBitmap))
    }

    /// The context of exactly that name, if the export has it.
    pub(crate) fn find(name: &str, snapshots: &[String]) -> Option<Self> {
        let known = |snapshot: &str| snapshots.iter().any(|s| s == snapshot);
        if name == ALLOCATION {
            Some(Self::Allocation)
        } else if let Some(s) = name.strip_prefix(DIRTY_SINCE).filter(|s| known(s)) {
            Some(Self::DirtySince(s.to_owned()))
        } else {
            let snapshot = name.strip_prefix(DIRTY_BITMAP).filter(|s| known(s));
            snapshot.map(|s| Self::DirtyBitmap(s.to_owned()))
        }
    }

    /// The query names this context or a group that it is in.
    pub(crate) fn is_listed_by(&self, query: &str) -> bool {
        let name = self.name();
        name == query || (WILDCARDS.contains(&query) && name.starts_with(query))
    }

    /// The status flags of an extent. `marked` is what the store says: allocated, or changed.
    fn flags(&self, marked: bool) -> u32 {
        match (self, marked) {
            (Self::Allocation, false) => allocation::HOLE | allocation::ZERO,
            (Self::DirtySince(_) | Self::DirtyBitmap(_), true) => DIRTY,
            _ => 0,
        }
    }

    /// Extents that follow one another, as (length, flags). "The server SHOULD use different status
    /// values between consecutive descriptors": what the store tells apart, flags may not.
    pub(crate) fn describe(&self, extents: &[Extent]) -> Vec<(u32, u32)> {
        let mut described: Vec<(u32, u32)> = Vec::with_capacity(extents.len());
        for extent in extents {
            let flags = self.flags(extent.allocated);
            // A range of more than 2^32 - 1 bytes cannot be asked for.
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
            match described.last_mut() {
                Some(last) if last.1 == flags => last.0 = last.0.saturating_add(length),
                _ => described.push((length, flags)),
            }
        }
        described
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(query: &str, snapshots: &[&str]) -> Vec<String> {
        let snapshots: Vec<String> = snapshots.iter().map(|&s| s.to_owned()).collect();
        let all = Context::all(&snapshots);
        all.filter(|c| c.is_listed_by(query))
            .map(|c| c.name())
            .collect()
    }

    #[test]
    fn a_namespace_or_a_group_lists_what_is_in_it() {
        let snapshots = ["a", "b"];
        assert_eq!(listed("base:", &snapshots), ["base:allocation"]);
        assert_eq!(
            listed("x-basalt:", &snapshots),
            ["x-basalt:dirty-since:a", "x-basalt:dirty-since:b"]
        );
        assert_eq!(
            listed("qemu:", &snapshots),
            listed("qemu:dirty-bitmap:", &snapshots)
        );
        assert_eq!(
            listed("qemu:dirty-bitmap:b", &snapshots),
            ["qemu:dirty-bitmap:b"]
        );
        assert!(listed("qemu:dirty", &snapshots).is_empty());
        assert!(listed("qemu:allocation-depth", &snapshots).is_empty());
        assert!(listed("x-other:", &snapshots).is_empty());
    }

    #[test]
    fn a_snapshot_with_a_colon_is_not_a_wildcard() {
        assert_eq!(
            listed("qemu:dirty-bitmap:a:", &["a:", "a:b"]),
            ["qemu:dirty-bitmap:a:"]
        );
    }

    #[test]
    fn find_takes_whole_names_of_known_snapshots_only() {
        let snapshots = ["a".to_owned()];
        for context in Context::all(&snapshots) {
            assert_eq!(Context::find(&context.name(), &snapshots), Some(context));
        }
        for name in [
            "base:",
            "base:allocatio",
            "qemu:dirty-bitmap:",
            "x-basalt:dirty-since:b",
            "",
        ] {
            assert_eq!(Context::find(name, &snapshots), None, "{name}");
        }
    }

    #[test]
    fn like_neighbours_are_one_descriptor() {
        let extent = |offset, length, allocated| Extent {
            offset,
            length,
            allocated,
        };
        let extents = [extent(0, 1, true), extent(1, 2, true), extent(3, 4, false)];
        assert_eq!(Context::Allocation.describe(&extents), [(3, 0), (4, 3)]);
        let dirty = Context::DirtyBitmap(String::new());
        assert_eq!(dirty.describe(&extents), [(3, 1), (4, 0)]);
    }

    #[test]
    fn flags_say_hole_and_zero_or_dirty() {
        assert_eq!(Context::Allocation.flags(true), 0);
        assert_eq!(Context::Allocation.flags(false), 3);
        assert_eq!(Context::DirtySince(String::new()).flags(true), 1);
        assert_eq!(Context::DirtyBitmap(String::new()).flags(false), 0);
    }
}
