//! NBD's numbers and wire structures, big-endian, without I/O.
//!
//! Every quotation in this folder is from the NBD specification,
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

/// `NBDMAGIC`, the first eight bytes a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second eight bytes, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every command.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, which the server sends, and the client flags that answer them.
pub mod handshake_flag {
    /// Options are answered, and unknown ones do not end the session.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The 124 zero bytes after `EXPORT_NAME` can be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
    /// The client's answer to [`FIXED_NEWSTYLE`].
    pub const C_FIXED_NEWSTYLE: u32 = 1 << 0;
    /// The client's answer to [`NO_ZEROES`].
    pub const C_NO_ZEROES: u32 = 1 << 1;
}

/// Option numbers.
pub mod option {
    /// Choose an export and start the transmission; cannot fail politely.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on in TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export and start the transmission.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    /// Accepted, and nothing more to say.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known here.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option breaks the syntax, or comes at the wrong time.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// No export of that name.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// The request or its reply is too large.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Kinds of information in a reply to `INFO` and `GO`.
pub mod info {
    /// Size and transmission flags; always sent.
    pub const EXPORT: u16 = 0;
    /// The export's real name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission_flag {
    /// "MUST always be 1."
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `FUA` works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` and `NO_HOLE` work.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `DF` works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes that were answered on all of them.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `FAST_ZERO` works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command numbers.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the only command with a payload.
    pub const WRITE: u16 = 1;
    /// End the session; has no reply.
    pub const DISC: u16 = 2;
    /// Make answered writes durable.
    pub const FLUSH: u16 = 3;
    /// Give space back.
    pub const TRIM: u16 = 4;
    /// Prepare for reads.
    pub const CACHE: u16 = 5;
    /// Make a range read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Describe a range in the chosen metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod command_flag {
    /// Answer only when the change is durable.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must not become a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// At most one content chunk.
    pub const DF: u16 = 1 << 2;
    /// At most one extent for each context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail with `ENOTSUP` rather than be as slow as a write.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunk types.
pub mod chunk {
    /// The last chunk of its reply (a flag, not a type).
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Flags of an extent in `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// The flag of an extent in `qemu:dirty-bitmap:` and `x-basalt:dirty-since:` that may have changed.
pub const DIRTY: u32 = 1 << 0;

/// "Where this document refers to a string, … MUST be no longer than 4096 bytes."
pub const STRING_BYTES_MAX: usize = 4096;

/// Bytes of the zero padding after the answer to `EXPORT_NAME`.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Bytes of an option's header: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;

/// Bytes of a command's header.
pub const REQUEST_BYTES: usize = 28;

/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Bytes of a chunk's header.
pub const CHUNK_BYTES: usize = 20;

/// A command as it came: decoded, and not yet trusted. `validate` makes it a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// Command flags.
    pub flags: u16,
    /// Command number.
    pub kind: u16,
    /// What its reply carries back ("handle" in older texts).
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl RawRequest {
    /// Decodes a header; `None` if the magic is wrong, after which nothing can be trusted.
    ///
    /// "C: 32 bits, 0x25609513, magic; 16 bits, command flags; 16 bits, type; 64 bits, cookie;
    /// 64 bits, offset (unsigned); 32 bits, length (unsigned)"
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE {
            self.length
        } else {
            0
        }
    }
}

/// Takes big-endian numbers and strings off the front of bytes; `None` when they end too early.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its 32-bit length in front.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.bytes(length)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_decodes_field_by_field() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0x00, 0x05, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0, 0, 0,
            0, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xfe,
        ];
        let expected = RawRequest {
            flags: 5,
            kind: 6,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x8000_0000_0000_1000,
            length: 0xffff_fffe,
        };
        assert_eq!(RawRequest::decode(&bytes), Some(expected));
        assert_eq!(expected.payload_bytes(), 0);
    }

    #[test]
    fn a_wrong_magic_is_no_request() {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&0x2560_9514_u32.to_be_bytes());
        assert_eq!(RawRequest::decode(&bytes), None);
    }

    #[test]
    fn reading_past_the_end_is_none_and_never_wraps() {
        let mut reader = Reader(&[0xff; 6]);
        assert_eq!(reader.counted(), None);
        assert_eq!(Reader(&[0xff; 6]).u64(), None);
        assert_eq!(Reader(&[]).bytes(0), Some(&[][..]));
    }
}
