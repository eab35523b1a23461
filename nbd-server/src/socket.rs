//! Stream sockets on a worker's ring: receive, send, hang up.
#![expect(
    unsafe_code,
    reason = "the ring is given pointers into memory that each operation owns"
)]
use crate::limits::{KEEPALIVE, SEND_BUFFER_BYTES};
use crate::nbd::Batch;
use blockstore::device::Buffer;
use blockstore::runtime::ring;
use io_uring::{opcode, squeue, types};
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

/// One connected stream socket. Operations keep it open until they are complete.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Arc<OwnedFd>);

impl Socket {
    /// Takes a connected socket over and sets what makes it fast.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        // Without it reads are slower, and nothing else is wrong.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_BYTES);
        // A unix socket refuses these, and needs none of them.
        let _ = sockopt::set_tcp_nodelay(&fd, true)
            .and_then(|()| sockopt::set_socket_keepalive(&fd, true))
            .and_then(|()| sockopt::set_tcp_keepidle(&fd, KEEPALIVE))
            .and_then(|()| sockopt::set_tcp_keepintvl(&fd, KEEPALIVE));
        Self(Arc::new(fd))
    }

    /// Ends every operation, now and later, from any thread: receiving finds the end of the stream,
    /// and sending fails. The peer can still read what was sent.
    pub(crate) fn hang_up(&self) {
        // An error means that the other side was first.
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Both);
    }

    /// Receives what there is into a part of `memory`: at least a byte, unless the stream ended.
    pub(crate) async fn receive(
        &self,
        memory: Buffer,
        part: Range<usize>,
    ) -> (io::Result<usize>, Buffer) {
        self.receive_with(memory, part, RecvFlags::empty()).await
    }

    /// Receives all of a part of `memory`, or less only if the stream ended.
    pub(crate) async fn receive_all(
        &self,
        memory: Buffer,
        part: Range<usize>,
    ) -> (io::Result<usize>, Buffer) {
        self.receive_with(memory, part, RecvFlags::WAITALL).await
    }

    async fn receive_with(
        &self,
        mut memory: Buffer,
        part: Range<usize>,
        flags: RecvFlags,
    ) -> (io::Result<usize>, Buffer) {
        loop {
            let target = &mut memory[part.clone()];
            let length = u32::try_from(target.len()).unwrap_or(u32::MAX);
            let entry = opcode::Recv::new(self.fd(), target.as_mut_ptr(), length)
                .flags(flags.bits().cast_signed())
                .build();
            // SAFETY: the entry points into `memory`, which does not move with its owner and is
            // owned, together with the socket, by the operation until it is complete.
            let (result, owned) = unsafe { complete(entry, (memory, self.clone())) }.await;
            memory = owned.0;
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return (result, memory),
            }
        }
    }

    /// Sends a batch to its end, calling `progress` whenever the peer took something.
    pub(crate) async fn send(
        &self,
        mut outgoing: Outgoing,
        progress: impl Fn(),
    ) -> (io::Result<()>, Outgoing) {
        while !outgoing.batch.is_sent() {
            outgoing.aim();
            let entry = opcode::SendMsg::new(self.fd(), &raw const *outgoing.header)
                .flags(SendFlags::NOSIGNAL.bits())
                .build();
            // SAFETY: the header and the vector it points to are on the heap, the vector points
            // into memory of the batch, none of it moves with its owner, and the operation owns all
            // of it, together with the socket, until it is complete.
            let (result, owned) = unsafe { complete(entry, (outgoing, self.clone())) }.await;
            outgoing = owned.0;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), outgoing),
                Ok(count) => {
                    outgoing.batch.advance(count);
                    progress();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), outgoing),
            }
        }
        (Ok(()), outgoing)
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.0.as_raw_fd())
    }
}

/// Replies on their way out, and what the kernel needs to find them.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The replies.
    pub(crate) batch: Batch,
    header: Box<libc::msghdr>,
    pieces: Vec<libc::iovec>,
}

impl Outgoing {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        let header = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Self {
            batch: Batch::default(),
            header: Box::new(header),
            pieces: Vec::new(),
        }
    }

    /// Points the header at what is not sent yet.
    fn aim(&mut self) {
        let pieces = self.batch.window().map(|memory| libc::iovec {
            iov_base: memory.as_ptr().cast_mut().cast(),
            iov_len: memory.len(),
        });
        self.pieces.clear();
        self.pieces.extend(pieces);
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len();
    }
}

/// Waits until `listener` has a client to accept.
pub(crate) async fn readable(listener: &Arc<impl AsFd + 'static>) -> io::Result<()> {
    let fd = types::Fd(listener.as_fd().as_raw_fd());
    let entry = opcode::PollAdd::new(fd, u32::from(libc::POLLIN.cast_unsigned())).build();
    // SAFETY: the entry has no pointers, and the operation owns a share of what keeps the fd open.
    let (result, _) = unsafe { complete(entry, listener.clone()) }.await;
    result.map(drop)
}

/// Runs one operation.
///
/// # Safety
/// Everything that the entry points to must be owned by `owned` and stay where it is when `owned`
/// is moved.
async unsafe fn complete<T: 'static>(entry: squeue::Entry, owned: T) -> (io::Result<usize>, T) {
    // SAFETY: as demanded of the caller.
    let done = unsafe { ring::submit(entry, owned) }.await;
    (
        done.result
            .map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        done.owned,
    )
}
