//! The server as a library, so that tests and benches start it in process.
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod serve;
pub mod size;
