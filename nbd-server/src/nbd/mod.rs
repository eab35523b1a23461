//! The NBD protocol: from option haggling to the last reply.
mod connection;
mod context;
mod errno;
mod exports;
mod fuzz;
mod handshake;
pub mod protocol;
mod receive;
mod reply;
mod signal;
mod validate;

pub(crate) use connection::serve;
pub(crate) use context::Context;
pub use errno::Errno;
pub use fuzz::{fuzz_commands, fuzz_handshake};
pub(crate) use reply::{Answer, Batch, total};
pub(crate) use validate::Command;
