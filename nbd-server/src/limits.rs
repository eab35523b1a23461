//! Every maximum of the server, and proof that they agree.
use std::time::Duration;

/// Largest payload of one read or write, bytes; advertised as the maximum block size.
///
/// "Clients … SHOULD NOT … exceed 32 MiB", and a server that takes this much works with all of
/// them.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Preferred block size, bytes: the store's block.
pub const PREFERRED_BLOCK: u32 = 4096;

/// Largest option that is parsed, bytes: an export name and some dozens of queries. A longer one is
/// skipped up to [`OPTION_SKIP_BYTES_MAX`] and refused.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;

/// Largest option that is skipped, bytes. The sender of a longer one is dropped.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// Options that one client may send; more is an attack.
pub const OPTIONS_MAX: u32 = 64;

/// Largest reply to `LIST`, bytes. A pool with more names than that answers `ERR_TOO_BIG`.
pub const LIST_BYTES_MAX: usize = 1 << 20;

/// Metadata contexts that one client may select.
pub const CONTEXTS_MAX: usize = 16;

/// Extents in one `BLOCK_STATUS` chunk; the client asks on from there.
pub const EXTENTS_MAX: usize = 4096;

/// Bytes received at once, and so the most of a payload that is copied.
pub const RECEIVE_BYTES: usize = 64 << 10;

/// The same until a client sends more at once, so that a thousand idle clients take 4 MiB.
pub const RECEIVE_BYTES_FIRST: usize = 4 << 10;

/// A payload, or the rest of one, of so many bytes is received where it will stay, without a copy.
pub const STRAIGHT_BYTES: usize = 32 << 10;

/// Bytes of a payload that are received in one operation. A client must send as many within
/// [`Limits::stall`].
pub const PROGRESS_BYTES: usize = 1 << 20;

/// Socket send buffer, bytes. The default of 208 KiB halves the rate of 256 KiB reads.
pub const SEND_BUFFER_BYTES: usize = 1 << 20;

/// How long a TCP client may be silent before it is asked whether it is still there, and how often
/// it is asked then. It is taken for gone after as many questions as the kernel's default says (9).
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// Bytes in one send, about: a piece of data that begins below it is sent whole.
pub const SEND_BYTES: usize = 1 << 20;

/// Pieces of memory in one send: the kernel's `UIO_MAXIOV`.
pub const SEND_PIECES: usize = 1024;

/// Connections waiting to be accepted.
pub const BACKLOG: i32 = 1024;

/// What the server lets its clients use. The defaults bound its memory whatever clients do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Clients connected at once; the next is accepted and closed.
    pub connections: usize,
    /// Commands of one client that are not answered yet.
    pub commands: usize,
    /// Bytes of payloads and replies that one client can always have in memory, so that no other
    /// client can starve it.
    pub own_bytes: u64,
    /// Bytes of payloads and replies that one client can have in memory.
    pub connection_bytes: u64,
    /// Bytes that all clients together can have in memory beyond their own.
    pub shared_bytes: u64,
    /// How long option haggling may take.
    pub handshake: Duration,
    /// How long a client may leave a reply unread, or a payload half sent.
    pub stall: Duration,
    /// The same while other clients wait for the memory that it holds.
    pub stall_crowded: Duration,
    /// How long a shutdown waits for commands in flight.
    pub drain: Duration,
    /// How long a client must have been silent before a shutdown hangs up.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            commands: 128,
            own_bytes: 256 << 10,
            connection_bytes: 64 << 20,
            shared_bytes: 256 << 20,
            handshake: Duration::from_secs(10),
            stall: Duration::from_mins(1),
            stall_crowded: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            farewell: Duration::from_millis(50),
        }
    }
}

/// Bytes of memory that a command of the largest size is charged with, at most.
pub const COMMAND_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX as u64 + 2 * PREFERRED_BLOCK as u64;

const _: () = {
    assert!(
        OPTION_BYTES_MAX >= 2 * 4096,
        "a name and a query of the longest legal size fit"
    );
    assert!(OPTION_BYTES_MAX <= OPTION_SKIP_BYTES_MAX);
    assert!(RECEIVE_BYTES >= OPTION_BYTES_MAX as usize + super::nbd::protocol::OPTION_HEADER_BYTES);
    assert!(RECEIVE_BYTES_FIRST >= super::nbd::protocol::REQUEST_BYTES);
    assert!(STRAIGHT_BYTES <= RECEIVE_BYTES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_command_fits_into_every_budget() {
        let limits = Limits::default();
        assert!(COMMAND_BYTES_MAX <= limits.connection_bytes);
        assert!(COMMAND_BYTES_MAX <= limits.shared_bytes);
        assert!(limits.own_bytes <= limits.connection_bytes);
    }
}
