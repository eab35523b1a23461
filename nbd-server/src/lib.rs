//! The server as a library, so that tests and benches start it in process.
mod budget;
pub mod cli;
mod clients;
pub mod config;
pub mod control;
pub mod daemon;
mod execute;
pub mod limits;
mod listen;
pub mod nbd;
pub mod serve;
pub mod size;
mod socket;
