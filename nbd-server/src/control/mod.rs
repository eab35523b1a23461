//! The control API: what the command line and the CSI adapter ask of a running daemon.
pub mod client;
pub mod convert;
pub mod server;
pub mod socket;

/// The messages and stubs of `proto/control.proto`.
pub mod proto {
    #![allow(
        warnings,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated from control.proto"
    )]
    tonic::include_proto!("basalt.control.v1");
}

/// Where a client looks when nobody told it, and where a daemon of root's listens.
pub const SOCKET_DEFAULT: &str = "/run/basalt/control.sock";

/// The environment variable that tells clients which control socket to use.
pub const SOCKET_VARIABLE: &str = "BASALT_CONTROL";

/// Rows in one message of a list: at most 512 rows of less than 1 KiB stay far below the 4 MiB
/// that gRPC implementations accept by default.
pub const PAGE_ROWS_MAX: usize = 512;

/// Bytes of one message, in both directions: a group of ten thousand snapshots with the longest
/// names takes 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
