//! The server as a library, so that tests and benches start it in process.
mod budget;
mod clients;
mod execute;
pub mod limits;
mod listen;
pub mod nbd;
pub mod serve;
mod socket;
