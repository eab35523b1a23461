//! A raw command becomes a command or an errno: the one table of rules. Below it nothing re-checks.
//!
//! | command | flags beside FUA | past the end | length 0 | too long |
//! |---|---|---|---|---|
//! | `READ` | `DF` with structured replies | `EINVAL` | no data | `EINVAL`; with `DF` `EOVERFLOW` |
//! | `WRITE` | | `ENOSPC` | done | the connection ends (see [`payload_fits`]) |
//! | `WRITE_ZEROES` | `NO_HOLE`, `FAST_ZERO` | `ENOSPC` | done | any length |
//! | `TRIM`, `CACHE` | | `EINVAL` | done | any length |
//! | `BLOCK_STATUS` | `REQ_ONE` | `EINVAL` | `EINVAL` | any length |
//! | `FLUSH` | | `EINVAL` unless offset and length are 0 | | |
//! | `DISC` | any | | | |
//! | others | `EINVAL` | | | |
//!
//! A change to a read-only export is `EPERM` wherever it lies. What a length of zero means is
//! "unspecified" in the specification. Here it does nothing; only `BLOCK_STATUS`, which must answer
//! at least one extent of at least one byte, cannot do nothing.
use super::errno::Errno;
use super::protocol::{RawRequest, command, command_flag};
use crate::limits::{PAYLOAD_BYTES_MAX, PREFERRED_BLOCK};
use blockstore::BLOCK_BYTES;

/// What the rules depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bytes in the export, now.
    pub(crate) size: u64,
    /// Changes are refused.
    pub(crate) read_only: bool,
    /// Structured replies were agreed on.
    pub(crate) structured: bool,
    /// Metadata contexts were selected.
    pub(crate) contexts: bool,
}

/// A command that keeps the rules: the range lies in the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Read; `whole`: answer with at most one content chunk.
    Read {
        offset: u64,
        length: u32,
        whole: bool,
    },
    /// Write the payload.
    Write { offset: u64, length: u32, fua: bool },
    /// Make a range read as zeroes, keeping space for it or not.
    Zero {
        offset: u64,
        length: u32,
        allocate: bool,
        fua: bool,
    },
    /// Give space back.
    Trim { offset: u64, length: u32, fua: bool },
    /// Make what was answered durable.
    Flush,
    /// Describe a range; `one`: one extent for each context.
    Status { offset: u64, length: u32, one: bool },
    /// Answer that it is done.
    Nothing,
    /// End the session.
    Disconnect,
}

/// The payload is one that can be received, used or not. "the server … MAY initiate a hard
/// disconnect" for more, since all of it would have to be taken to find the next command.
pub(crate) fn payload_fits(raw: &RawRequest) -> bool {
    raw.payload_bytes() <= PAYLOAD_BYTES_MAX
}

/// Applies the rules to one command.
pub(crate) fn validate(raw: &RawRequest, rules: Rules) -> Result<Command, Errno> {
    if raw.kind == command::DISC {
        return Ok(Command::Disconnect);
    }
    let flag = |flag: u16| raw.flags & flag != 0;
    if raw.flags & !allowed_flags(raw.kind, rules)? != 0 {
        return Err(Errno::Inval);
    }
    let changes = matches!(
        raw.kind,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    );
    if changes && rules.read_only {
        return Err(Errno::Perm);
    }
    let inside = raw
        .offset
        .checked_add(raw.length.into())
        .is_some_and(|end| end <= rules.size);
    if !inside && raw.kind != command::FLUSH {
        let grows = matches!(raw.kind, command::WRITE | command::WRITE_ZEROES);
        return Err(if grows { Errno::NoSpace } else { Errno::Inval });
    }
    let RawRequest { offset, length, .. } = *raw;
    let fua = flag(command_flag::FUA);
    Ok(match raw.kind {
        command::READ if length > PAYLOAD_BYTES_MAX => {
            // "MAY reject a client's request with the error `NBD_EOVERFLOW` if the length is too
            // large to send without fragmentation"
            return Err(if flag(command_flag::DF) {
                Errno::Overflow
            } else {
                Errno::Inval
            });
        }
        command::READ => Command::Read {
            offset,
            length,
            whole: flag(command_flag::DF),
        },
        command::FLUSH if offset != 0 || length != 0 => return Err(Errno::Inval),
        command::FLUSH => Command::Flush,
        command::BLOCK_STATUS if length == 0 || !rules.contexts => return Err(Errno::Inval),
        command::BLOCK_STATUS => Command::Status {
            offset,
            length,
            one: flag(command_flag::REQ_ONE),
        },
        _ if length == 0 => Command::Nothing,
        command::WRITE => Command::Write {
            offset,
            length,
            fua,
        },
        command::TRIM => Command::Trim {
            offset,
            length,
            fua,
        },
        command::WRITE_ZEROES => {
            let allocate = flag(command_flag::NO_HOLE);
            if flag(command_flag::FAST_ZERO) && (allocate || !has_whole_block(offset, length)) {
                return Err(Errno::NotSupported);
            }
            Command::Zero {
                offset,
                length,
                allocate,
                fua,
            }
        }
        // Nothing above the device caches data, so there is nothing to prepare.
        _ => Command::Nothing,
    })
}

/// "SHOULD return `NBD_EINVAL` if it receives a request with a flag not explicitly documented as
/// applicable to the given request", and so for an unknown command. FUA: "the server MUST accept
/// all commands with this bit set".
fn allowed_flags(kind: u16, rules: Rules) -> Result<u16, Errno> {
    let own = match kind {
        command::READ if rules.structured => command_flag::DF,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
        _ => return Err(Errno::Inval),
    };
    Ok(own | command_flag::FUA)
}

/// Whole blocks become a hole without being written; parts of blocks are written, so zeroing
/// nothing else is no faster than a write.
fn has_whole_block(offset: u64, length: u32) -> bool {
    let first = offset.checked_next_multiple_of(BLOCK_BYTES);
    let end = offset.checked_add(length.into());
    first
        .zip(end)
        .is_some_and(|(first, end)| end.saturating_sub(first) >= BLOCK_BYTES)
}

impl Command {
    /// Bytes of memory that the command and its reply take at most, `contexts` being selected.
    pub(crate) fn memory(&self, contexts: usize) -> u64 {
        const EXTENT_BYTES: u64 = 32;
        match *self {
            // A part of a block takes the block.
            Self::Read { length, .. } | Self::Write { length, .. } => {
                u64::from(length).next_multiple_of(PREFERRED_BLOCK.into())
                    + u64::from(PREFERRED_BLOCK)
            }
            Self::Status { one: false, .. } => {
                (contexts as u64) * (crate::limits::EXTENTS_MAX as u64) * EXTENT_BYTES
            }
            _ => u64::from(PREFERRED_BLOCK),
        }
    }
}

#[cfg(test)]
mod tests;
