//! A journal record: a header and a body of changes.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use super::checksum;
use crate::limits::RECORD_BYTES_MAX;
use crate::units::{Address, BLOCK_SIZE, Record};

const MAGIC: &[u8; 8] = b"BASALTJR";
/// Bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = 64;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) pool_id: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) number: Record,
    /// The highest record whose flush had completed when this one was sealed.
    pub(crate) durable: Record,
    /// CRC of the record before. A record's CRC does not cover its own field, so that the chain
    /// never hashes to the constant that a CRC over data and its own CRC is.
    pub(crate) previous: u32,
    pub(crate) body_length: u32,
    pub(crate) crc: u32,
}

impl RecordHeader {
    /// Blocks of the journal that the record takes.
    pub(crate) fn blocks(&self) -> u64 {
        blocks_of(usize::try_from(self.body_length).unwrap_or(usize::MAX))
    }

    /// The header at the front of `block`, not yet verified; `None` if it is none.
    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(block);
        if reader.take(8)? != MAGIC {
            return None;
        }
        let header = Self {
            pool_id: reader.take(16)?.try_into().ok()?,
            epoch: reader.u64()?,
            number: Record(reader.u64()?),
            durable: Record(reader.u64()?),
            previous: reader.u32()?,
            body_length: reader.u32()?,
            crc: reader.u32()?,
        };
        (usize::try_from(header.body_length).ok()? <= RECORD_BYTES_MAX).then_some(header)
    }

    /// The body, if header and body hash to what the header says.
    pub(crate) fn body<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let length = usize::try_from(self.body_length).ok()?;
        let end = HEADER_BYTES.checked_add(length)?;
        let mut copy = bytes.get(..HEADER_BYTES)?.to_vec();
        copy.splice(56..60, [0; 4]);
        let body = bytes.get(HEADER_BYTES..end)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&copy);
        hasher.update(body);
        (hasher.finalize() == self.crc).then_some(body)
    }

    /// The record's bytes, padded to whole blocks; fills in length and CRC.
    pub(crate) fn encode(&mut self, body: &[u8]) -> Vec<u8> {
        assert!(
            body.len() <= RECORD_BYTES_MAX,
            "a record of {} bytes",
            body.len()
        );
        self.body_length = u32::try_from(body.len()).unwrap_or_default();
        let padded = usize::try_from(self.blocks())
            .unwrap_or_default()
            .saturating_mul(BLOCK_SIZE);
        let mut out = Vec::with_capacity(padded);
        out.put(MAGIC);
        out.put(&self.pool_id);
        out.put_u64(self.epoch);
        out.put_u64(self.number.0);
        out.put_u64(self.durable.0);
        out.put_u32(self.previous);
        out.put_u32(self.body_length);
        out.put_u32(0); // the CRC, put in last
        out.put_u32(0);
        out.put(body);
        self.crc = checksum(&out);
        out.splice(56..60, self.crc.to_le_bytes());
        out.resize(padded, 0);
        out
    }
}

/// Blocks of a record with a body of so many bytes.
pub(crate) fn blocks_of(body: usize) -> u64 {
    body.saturating_add(HEADER_BYTES).div_ceil(BLOCK_SIZE) as u64
}

/// Adjacent addresses with the CRC of each block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) address: Address,
    pub(crate) crcs: Vec<u32>,
}

/// One change, as the journal keeps it. Numbers are ids; `first` and `count` are volume blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Map {
        version: u64,
        first: u64,
        runs: Vec<Run>,
    },
    Unmap {
        version: u64,
        first: u64,
        count: u64,
    },
    CreateVolume {
        volume: u64,
        head: u64,
        name: String,
        size: u64,
        reserved: bool,
        created: u64,
    },
    Clone {
        volume: u64,
        head: u64,
        source: u64,
        ghost: u64,
        name: String,
        origin: String,
        created: u64,
    },
    Snapshot {
        cuts: Vec<Cut>,
        created: u64,
    },
    Resize {
        volume: u64,
        size: u64,
    },
    Rename {
        volume: u64,
        name: String,
    },
    Rollback {
        volume: u64,
        snapshot: u64,
        head: u64,
        created: u64,
    },
    DeleteVolume {
        volume: u64,
    },
    DeleteSnapshot {
        version: u64,
    },
    Reap {
        version: u64,
    },
}

/// One snapshot of a group: the head it is cut from, its own id and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) head: u64,
    pub(crate) version: u64,
    pub(crate) name: String,
}

impl Change {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Map {
                version,
                first,
                runs,
            } => {
                put_numbers(out, 1, &[*version, *first]);
                put_runs(out, runs);
            }
            Self::Unmap {
                version,
                first,
                count,
            } => put_numbers(out, 2, &[*version, *first, *count]),
            _ => self.encode_control(out),
        }
    }

    fn encode_control(&self, out: &mut Vec<u8>) {
        match self {
            Self::Map { .. } | Self::Unmap { .. } => {}
            Self::CreateVolume {
                volume,
                head,
                name,
                size,
                reserved,
                created,
            } => {
                put_numbers(
                    out,
                    3,
                    &[*volume, *head, *size, u64::from(*reserved), *created],
                );
                out.put_string(name);
            }
            Self::Clone {
                volume,
                head,
                source,
                ghost,
                name,
                origin,
                created,
            } => {
                put_numbers(out, 4, &[*volume, *head, *source, *ghost, *created]);
                out.put_string(name);
                out.put_string(origin);
            }
            Self::Snapshot { cuts, created } => {
                put_numbers(out, 5, &[*created, cuts.len() as u64]);
                for cut in cuts {
                    out.put_u64(cut.head);
                    out.put_u64(cut.version);
                    out.put_string(&cut.name);
                }
            }
            Self::Resize { volume, size } => put_numbers(out, 6, &[*volume, *size]),
            Self::Rename { volume, name } => {
                put_numbers(out, 7, &[*volume]);
                out.put_string(name);
            }
            Self::Rollback {
                volume,
                snapshot,
                head,
                created,
            } => {
                put_numbers(out, 8, &[*volume, *snapshot, *head, *created]);
            }
            Self::DeleteVolume { volume } => put_numbers(out, 9, &[*volume]),
            Self::DeleteSnapshot { version } => put_numbers(out, 10, &[*version]),
            Self::Reap { version } => put_numbers(out, 11, &[*version]),
        }
    }

    /// All changes of a body, or `None` if it is not one.
    pub(crate) fn decode_all(body: &[u8]) -> Option<Vec<Self>> {
        let mut reader = Reader::new(body);
        let mut changes = Vec::new();
        while !reader.is_empty() {
            changes.push(Self::decode(&mut reader)?);
        }
        Some(changes)
    }

    fn decode(r: &mut Reader<'_>) -> Option<Self> {
        match r.u8()? {
            1 => {
                let (version, first, count) = (r.u64()?, r.u64()?, r.u32()?);
                let runs = (0..count)
                    .map(|_| read_run(r))
                    .collect::<Option<Vec<_>>>()?;
                let count = |n: u64, run: &Run| n.checked_add(run.crcs.len() as u64);
                runs.iter().try_fold(first, count)?;
                Some(Self::Map {
                    version,
                    first,
                    runs,
                })
            }
            2 => {
                let (version, first, count) = (r.u64()?, r.u64()?, r.u64()?);
                first.checked_add(count)?;
                Some(Self::Unmap {
                    version,
                    first,
                    count,
                })
            }
            tag => Self::decode_control(tag, r),
        }
    }

    fn decode_control(tag: u8, r: &mut Reader<'_>) -> Option<Self> {
        Some(match tag {
            3 => {
                let (volume, head, size) = (r.u64()?, r.u64()?, r.u64()?);
                let (reserved, created) = (r.u64()? != 0, r.u64()?);
                Self::CreateVolume {
                    volume,
                    head,
                    name: r.string()?,
                    size,
                    reserved,
                    created,
                }
            }
            4 => {
                let (volume, head, source) = (r.u64()?, r.u64()?, r.u64()?);
                let (ghost, created) = (r.u64()?, r.u64()?);
                let (name, origin) = (r.string()?, r.string()?);
                Self::Clone {
                    volume,
                    head,
                    source,
                    ghost,
                    name,
                    origin,
                    created,
                }
            }
            5 => {
                let (created, count) = (r.u64()?, r.u64()?);
                let cut = |r: &mut Reader<'_>| {
                    Some(Cut {
                        head: r.u64()?,
                        version: r.u64()?,
                        name: r.string()?,
                    })
                };
                Self::Snapshot {
                    cuts: (0..count).map(|_| cut(r)).collect::<Option<_>>()?,
                    created,
                }
            }
            6 => Self::Resize {
                volume: r.u64()?,
                size: r.u64()?,
            },
            7 => Self::Rename {
                volume: r.u64()?,
                name: r.string()?,
            },
            8 => {
                let (volume, snapshot, head) = (r.u64()?, r.u64()?, r.u64()?);
                Self::Rollback {
                    volume,
                    snapshot,
                    head,
                    created: r.u64()?,
                }
            }
            9 => Self::DeleteVolume { volume: r.u64()? },
            10 => Self::DeleteSnapshot { version: r.u64()? },
            11 => Self::Reap { version: r.u64()? },
            _ => return None,
        })
    }
}

fn read_run(r: &mut Reader<'_>) -> Option<Run> {
    let (address, count) = (Address(r.u64()?), r.u32()?);
    let end = address.0.checked_add(u64::from(count))?;
    if end >> 44 != 0 || usize::try_from(count).ok()? > r.len() / 4 {
        return None;
    }
    let crcs = (0..count).map(|_| r.u32()).collect::<Option<Vec<_>>>()?;
    Some(Run { address, crcs })
}

fn put_numbers(out: &mut Vec<u8>, tag: u8, numbers: &[u64]) {
    out.put_u8(tag);
    for number in numbers {
        out.put_u64(*number);
    }
}

fn put_runs(out: &mut Vec<u8>, runs: &[Run]) {
    out.put_u32(u32::try_from(runs.len()).unwrap_or_default());
    for run in runs {
        out.put_u64(run.address.0);
        out.put_u32(u32::try_from(run.crcs.len()).unwrap_or_default());
        for crc in &run.crcs {
            out.put_u32(*crc);
        }
    }
}
