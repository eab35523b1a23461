//! An entry of the catalogue: a volume, a version of one, or a job.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use super::pointer::{NodeRef, Packed};
use super::superblock::{put_root, read_root};
use crate::limits::{CATALOGUE_ENTRY_BYTES, NAME_BYTES_MAX};
use crate::units::Record;

/// What a version is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A volume's writable content.
    Head,
    /// A named, frozen content.
    Snapshot,
    /// Deleted, or never named, but still a parent.
    Ghost,
}

/// Where a job's, or a version's, dead blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nobody needs to know of them.
    Discard,
    /// The deadlist of this version.
    Version(u64),
    /// The input of this filter job.
    Job(u64),
}

/// An entry, `id` apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Volume {
        name: String,
        origin: String,
        head: u64,
        created: u64,
        reserved: bool,
    },
    Version(VersionEntry),
    /// Frees a tree that no version has any more, from block `cursor` on.
    Walk {
        root: Option<NodeRef>,
        cut: Record,
        cursor: u64,
        output: Output,
    },
    /// Frees the entries of a list born after `cut`, and passes the others on.
    Filter {
        cut: Record,
        chain: Packed,
        count: u64,
        output: Output,
    },
}

/// A version as the catalogue keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VersionEntry {
    pub(crate) kind: Kind,
    pub(crate) volume: u64,
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) created: u64,
    pub(crate) root: Option<NodeRef>,
    pub(crate) parent: u64,
    pub(crate) cut: Record,
    pub(crate) own: u64,
    pub(crate) dead_own: u64,
    pub(crate) chain: Packed,
    pub(crate) dead: u64,
}

impl Entry {
    /// The entry's 512 bytes.
    pub(crate) fn encode(&self, id: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(CATALOGUE_ENTRY_BYTES);
        out.put_u64(id);
        match self {
            Self::Volume {
                name,
                origin,
                head,
                created,
                reserved,
            } => {
                out.put_u64(1);
                out.put_u64(*head);
                out.put_u64(*created);
                out.put_u64(u64::from(*reserved));
                out.put_string(name);
                out.put_string(origin);
            }
            Self::Version(version) => {
                out.put_u64(match version.kind {
                    Kind::Head => 2,
                    Kind::Snapshot => 3,
                    Kind::Ghost => 4,
                });
                version.put(&mut out);
            }
            Self::Walk {
                root,
                cut,
                cursor,
                output,
            } => {
                out.put_u64(5);
                out.put_u64(cut.0);
                out.put_u64(*cursor);
                put_output(&mut out, *output);
                put_root(&mut out, *root);
            }
            Self::Filter {
                cut,
                chain,
                count,
                output,
            } => {
                out.put_u64(6);
                out.put_u64(cut.0);
                out.put_u64(*count);
                put_output(&mut out, *output);
                out.put_u64(chain.0);
                out.put_u64(chain.1);
            }
        }
        assert!(
            out.len() <= CATALOGUE_ENTRY_BYTES,
            "entry {id} has {} bytes",
            out.len()
        );
        out.resize(CATALOGUE_ENTRY_BYTES, 0);
        out
    }

    /// The id and entry of 512 verified bytes; the inner `None`: an unused entry.
    #[expect(
        clippy::option_option,
        reason = "unused and damaged are different answers"
    )]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Option<(u64, Self)>> {
        let r = &mut Reader::new(bytes);
        let (id, kind) = (r.u64()?, r.u64()?);
        let entry = match kind {
            0 => return (id == 0).then_some(None),
            1 => {
                let (head, created, reserved) = (r.u64()?, r.u64()?, r.u64()? != 0);
                let (name, origin) = (r.string()?, r.string()?);
                Self::Volume {
                    name,
                    origin,
                    head,
                    created,
                    reserved,
                }
            }
            2 => Self::Version(VersionEntry::read(r, Kind::Head)?),
            3 => Self::Version(VersionEntry::read(r, Kind::Snapshot)?),
            4 => Self::Version(VersionEntry::read(r, Kind::Ghost)?),
            5 => {
                let (cut, cursor, output) = (Record(r.u64()?), r.u64()?, read_output(r)?);
                Self::Walk {
                    root: read_root(r)?,
                    cut,
                    cursor,
                    output,
                }
            }
            6 => {
                let (cut, count, output) = (Record(r.u64()?), r.u64()?, read_output(r)?);
                Self::Filter {
                    cut,
                    chain: Packed(r.u64()?, r.u64()?),
                    count,
                    output,
                }
            }
            _ => return None,
        };
        Some(Some((id, entry)))
    }
}

impl VersionEntry {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [
            self.volume,
            self.size,
            self.created,
            self.parent,
            self.cut.0,
        ] {
            out.put_u64(number);
        }
        for number in [
            self.own,
            self.dead_own,
            self.dead,
            self.chain.0,
            self.chain.1,
        ] {
            out.put_u64(number);
        }
        put_root(out, self.root);
        out.put_string(&self.name);
    }

    fn read(r: &mut Reader<'_>, kind: Kind) -> Option<Self> {
        let (volume, size, created) = (r.u64()?, r.u64()?, r.u64()?);
        let (parent, cut) = (r.u64()?, Record(r.u64()?));
        let (own, dead_own, dead) = (r.u64()?, r.u64()?, r.u64()?);
        let chain = Packed(r.u64()?, r.u64()?);
        let root = read_root(r)?;
        let name = r.string()?;
        Some(Self {
            kind,
            volume,
            name,
            size,
            created,
            root,
            parent,
            cut,
            own,
            dead_own,
            chain,
            dead,
        })
    }
}

fn put_output(out: &mut Vec<u8>, output: Output) {
    let (tag, id) = match output {
        Output::Discard => (0, 0),
        Output::Version(id) => (1, id),
        Output::Job(id) => (2, id),
    };
    out.put_u64(tag);
    out.put_u64(id);
}

fn read_output(r: &mut Reader<'_>) -> Option<Output> {
    Some(match (r.u64()?, r.u64()?) {
        (0, _) => Output::Discard,
        (1, id) => Output::Version(id),
        (2, id) => Output::Job(id),
        _ => return None,
    })
}

const _: () = {
    // The longest volume entry: its name, and an origin of two names joined by `@`.
    assert!(5 * 8 + 2 + NAME_BYTES_MAX + 2 + 2 * NAME_BYTES_MAX < CATALOGUE_ENTRY_BYTES);
    assert!(12 * 8 + 40 + 2 + NAME_BYTES_MAX <= CATALOGUE_ENTRY_BYTES);
};
